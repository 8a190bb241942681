"""Public checkpoints as priors and classifiers: a file, a folder laid out like the hub's, or ``hf:owner/name``.

    prior = load("256x256_diffusion_uncond.pt")
    guide = load_classifier("256x256_classifier.pt")
    prior = load("mine.pt", {"size": 64, "heads": 4})

Networks are those of ``diffjax.convert``: ADM, improved-diffusion, DDPM, diffusers' `UNet2DModel` and SR3; latent diffusion,
CompVis' whole files and diffusers' folders with an autoencoder, is ``zoo.public_latents``. What a file does
not say is taken from the published model it looks like, is written into the card ("assumed") and can be given: in
``config``, or in a JSON file beside the checkpoint (mine.json for mine.pt); the parent codes' names are understood.
What was chosen (averaged weights, a variant) or cut off (a prefix of all names) is said in the same place.

Published values: the READMEs of openai/guided-diffusion and openai/improved-diffusion; Ho et al. 2020.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from .. import denoisers
from ..base import nearest, pytree, replace, static, time_dtype
from ..convert import adm, ddpm, files, strict
from ..nets import DDPMUNet, Encoder, LatentUNet, SR3UNet, UNet
from ..wording import printable, reading, some
from . import hub, parents, public_latents, schedulers, sr3
from .network import safe_name
from .places import is_public, locate
from .prior import Assumed, Prior

# settings of `config` that are no fields of the network
SETTINGS = ("name", "size", "schedule", "T", "beta_min", "beta_max", "sigma_min", "sigma_max", "sigma_data", "loss",
            "time_scale", "sha256")  # fmt: skip
LOSSES = ("eps", "hybrid", "v", "x0", "velocity", "edm", "edm-v", "unit-score")
CONTINUOUS = {"flow": ("velocity",), "edm": ("edm", "edm-v"), "ve": ("unit-score",)}  # schedules, and what belongs to each
__all__ = ["Classifier", "is_public", "load", "load_classifier"]

_WIDE = {"multipliers": (1, 1, 2, 2, 4, 4), "resblock_updown": True}
_PLAIN = {"width": 128, "blocks": 3, "resblock_updown": False}
_COSINE = {"heads": 4, "schedule": "cosine", "T": 4000}
# name, what the state dict shows, what it does not show
PUBLISHED = (
    ("ADM 64x64", {"width": 192, "multipliers": (1, 2, 3, 4), "resblock_updown": True},
     {"size": 64, "head_channels": 64, "qkv_order": "new", "schedule": "cosine"}),
    ("ADM 128x128", {"width": 256, "multipliers": (1, 1, 2, 3, 4), "resblock_updown": True}, {"size": 128, "heads": 4}),
    ("ADM 256x256", {"width": 256, **_WIDE}, {"size": 256, "head_channels": 64}),
    ("ADM 512x512", {"width": 256, **_WIDE, "multipliers": (0.5, 1, 1, 2, 2, 4, 4)}, {"size": 512, "head_channels": 64}),
    ("improved-diffusion 64x64", {**_PLAIN, "multipliers": (1, 2, 3, 4)}, {"size": 64, **_COSINE, "time_scale": 0.25}),
    ("improved-diffusion CIFAR-10", {**_PLAIN, "multipliers": (1, 2, 2, 2)}, {"size": 32, **_COSINE, "time_scale": 0.25}),
    ("improved-diffusion 64x64 with classes", {**_PLAIN, "width": 192, "multipliers": (1, 2, 3, 4)}, {"size": 64, **_COSINE}),
    ("improved-diffusion LSUN", {"width": 128, "multipliers": (1, 1, 2, 2, 4, 4), "resblock_updown": False},
     {"size": 256, "heads": 1}),
)  # fmt: skip
IMPROVED = "improved-diffusion's defaults"
USUAL = {"schedule": "linear", "T": 1000}
OTHERS = {"all_modules.": "score-SDE", "denoise_fn.": "a port of DDPM",
          "model.map_layer0.": "EDM", "map_layer0.": "EDM", "unet.": "a pipeline of several networks"}  # fmt: skip


@reading()
def load(source, config: Mapping | None = None) -> Prior:
    """The prior of a public checkpoint.

    source:  a .safetensors, .npz, .pt, .pth, .ckpt or .bin file; a folder with config.json (or unet/config.json),
             diffusion_pytorch_model.safetensors (or .bin) and, if there is one, scheduler_config.json; or
             "hf:owner/name[@revision]"; of latent diffusion a whole file of CompVis, or a folder with unet and vae or vqvae
    config:  name, size (side of the images), schedule ("linear", "cosine", "scaled_linear"; "flow", "edm", "ve"), T,
             beta_min, beta_max, sigma_min, sigma_max, sigma_data, loss ("eps", "hybrid", "v", "x0"; of flow "velocity",
             of edm "edm" or "edm-v", of ve "unit-score"), time_scale (the network is told time_scale (t - 1)), sha256 (of the
             file, checked), and fields of the network (heads, head_channels, qkv_order, groups, dtype ...)
    What had to be assumed is a warning, in one line. Raises ValueError, one line, for whatever does not fit.
    """
    facts, notes = {}, []
    if str(source).startswith("hf:"):
        source, facts = hub.fetch(str(source))
    path, latents = Path(source), None
    if path.is_dir() and (part := public_latents.pipeline(path)) is not None:
        file, given = path, config or {}
        latents = lambda given: public_latents.of_folder(path, given, notes, part)
    else:
        file, given, unet, scheduler = locate(path, config, notes)
    with _border(file):
        given = parents.ours(given)
    if latents is None:
        state = _read(file, given, notes)
        if sr3.is_sr3(state):
            return _sr3(file, state, given, notes, facts)
        if public_latents.is_whole(state):
            latents = lambda given: public_latents.of_file(state, file, given, notes)
    if latents is not None:
        given = _checked(given | {k: v for k, v in facts.items() if k == "name" and k not in given}, LatentUNet,
                         (*SETTINGS, *public_latents.SETTINGS))  # fmt: skip
        with _border(file):
            prior = latents(given)
        return replace(prior, text=json.dumps(prior.card | {k: v for k, v in facts.items() if k != "name"}))
    family = family_of(state, file)
    given = _checked(given, DDPMUNet if family is ddpm else UNet)
    hints = {k: v for k, v in given.items() if k not in SETTINGS}
    with _border(file):
        if family is adm:
            network, fields, usual, whose = _adm(state, hints)
            if network is not UNet:
                what = "a classifier: give it as the classifier" if network is Encoder else "no prior: it enlarges images"
                raise ValueError(f"this is {what}, and another file as the prior")
        else:
            network, (fields, usual, whose) = DDPMUNet, _ddpm(state, unet, hints)
        told = schedulers.read(scheduler) if scheduler else {}
        usual = USUAL | usual | _implied_by_T(given, usual, whose)
        assumed = {k: v for k, v in usual.items() if k not in {**given, **told}}
        settings = usual | told | {k: v for k, v in given.items() if k in SETTINGS}
        net = network(**fields)
        channels = (unet or {}).get("in_channels") or _channels(state)
        schedule = schedulers.schedule(settings)
        params = family.params_from_state(net, state, *([] if family is adm else [np.float32, channels]))
        loss = loss_of(net.out_channels, channels, settings.get("loss"), settings["schedule"])
        settings["size"] = settings.get("size") or (unet or {}).get("sample_size") or _size(net, assumed)
        _check_size(settings["size"], net)
        time = time_of(settings)
    name = safe_name(settings.get("name") or facts.get("name") or (file.parent.name if unet else file.stem))
    assumed = _say(file, notes, assumed, whose)
    shown = {"size": settings["size"], "channels": channels, "classes": net.classes or 0, "loss": loss,
             "schedule": settings["schedule"], "T": schedule.T, "network": strict.describe(net)}  # fmt: skip
    shape = (settings["size"], settings["size"], channels)
    params = flax.core.unfreeze(params)
    card = _card(name, file, facts, shown, assumed)
    seen, loss = schedulers.as_denoised(net, settings | {"loss": loss})
    return Prior(params, schedule, name, seen, shape, loss, net.classes or 0, (), card, time)


def _say(file, notes, assumed, whose, level=4) -> str:
    """Warns of what was chosen and what was assumed, a line each; both as one text."""
    lines = [f"{file.name}: {'; '.join(notes)}"] if notes else []
    if assumed:
        lines.append(f"{file.name} does not say {', '.join(f'{k}={v}' for k, v in assumed.items())}: assumed as in {whose}")
    for line, how in zip(lines, [""] * len(notes[:1]) + [f"; say otherwise with config={assumed}"]):
        warnings.warn(f"{printable(line, 1000)}{how}", Assumed, stacklevel=level)
    return printable("; ".join(lines), 1500)


def _card(name, file, facts, shown, assumed) -> str:
    facts = {k: v for k, v in facts.items() if k != "name"}
    return json.dumps({"name": name, "source": str(file), **facts, "config": shown, "assumed": assumed})


def _sr3(file, state, given, notes, facts) -> Prior:
    given = _checked(given, SR3UNet)
    with _border(file):
        fields, shown, assumed, whose = sr3.read(state, given)
        _check_size(shown["size"], fields["net"])
    name = safe_name(given.get("name") or facts.get("name") or file.stem)
    card = _card(name, file, facts, shown, _say(file, notes, assumed, whose, 5))
    return Prior(name=name, text=card, **fields)


@contextlib.contextmanager
def _border(file):
    """What comes of foreign names, shapes and numbers ends in one line that names the file."""
    try:
        yield
    except Exception as error:
        what = "" if isinstance(error, ValueError) else f"nothing can be made of it, {type(error).__name__}: "
        raise ValueError(f"{file}: {what}{printable(error, 1500)}") from error


# --- classifiers ----------------------------------------------------------------------------------------------------


@pytree
class Classifier:
    """p(label | x_t) of a noisy image. params, time: leaves, as of a prior; net: ``net.apply(params, x, i)`` gives logits
    (classes,); size: side of its images, None if any."""

    params: Any
    name: str = static(default="")
    net: Any = static(default=None)
    size: int | None = static(default=None)
    classes: int = static(default=0)
    time: Any = denoisers.IndexTime()

    def check(self, prior) -> None:
        """Raises ValueError if it is not for this prior's images and classes."""
        if self.size not in (None, prior.shape[0]):
            raise ValueError(f"classifier {self.name} takes {self.size}x{self.size} images, prior {prior.name} has "
                             f"{prior.shape[0]}x{prior.shape[1]}: use the classifier of that size")  # fmt: skip
        if prior.classes not in (0, self.classes):
            raise ValueError(f"classifier {self.name} has {self.classes} classes, prior {prior.name} {prior.classes}")

    def label(self, label) -> int:
        """The index of a label given as a number. Raises ValueError for one that does not exist."""
        text = str(label)
        if not text.isdecimal() or int(text) >= self.classes:
            raise ValueError(f"label {label!r} is none of classifier {self.name}: choose a number, 0 to {self.classes - 1}")
        return int(text)

    def gradient(self, label, schedule):
        """(x, t) -> d log p(label | x_t) / d x_t (H, W, C), a pytree for ``kernels.guided`` and ``denoisers.classifier``.

        label may be traced; schedule: the prior's."""
        return jax.tree_util.Partial(_gradient, self, schedule, jnp.asarray(label, jnp.int32))


def _gradient(classifier, schedule, label, x, t):
    i = jnp.asarray(classifier.time(schedule, t)).astype(time_dtype(x.dtype))
    log_p = lambda x: jax.nn.log_softmax(classifier.net.apply(classifier.params, x, i))[label]
    return jax.grad(log_p)(x)


@reading()
def load_classifier(source, config: Mapping | None = None) -> Classifier:
    """A classifier of noisy images of guided-diffusion (64x64_classifier.pt ... 512x512_classifier.pt) from a file.

    config: as of :func:`load`; heads have 64 channels as in the released ones unless it says otherwise. Raises ValueError.
    """
    notes: list = []
    file, given, _, _ = locate(Path(source), config, notes)
    with _border(file):
        given = parents.ours(given)
    state = _read(file, given, notes)
    if family_of(state, file) is not adm:
        raise ValueError(f"{file} is no classifier of guided-diffusion: it is a UNet2DModel")
    given = _checked(given, Encoder)
    with _border(file):
        network, fields, *_ = _adm(state, {k: v for k, v in given.items() if k not in SETTINGS})
        if network is not Encoder:
            raise ValueError("this is no classifier but a network that makes images: give it as the prior")
        net = network(**fields)
        params = adm.params_from_state(net, state)
    size = adm.inputs(net, state)[0].shape[0] if net.pool == "attention" else None
    if notes:
        warnings.warn(f"{file.name}: {printable('; '.join(notes), 1000)}", Assumed, stacklevel=3)
    return Classifier(flax.core.unfreeze(params), safe_name(file.stem), net, size, net.out_channels, time_of(given))


# --- reading --------------------------------------------------------------------------------------------------------


def _read(file, given, notes):
    wanted = given.pop("sha256", None) or hub.recorded_sha256(file)
    if wanted and file.is_file():
        with open(file, "rb") as stream:
            got = hashlib.file_digest(stream, "sha256").hexdigest()
        if got != str(wanted).lower():
            raise ValueError(f"{file} has the sha256 {got}, not {printable(wanted, 80)}: it is damaged or another file, "
                             "fetch it again")  # fmt: skip
    state = files.read(file, notes)
    with _border(file):
        state = ddpm.modern(state)
    if not state:
        raise ValueError(f"{file}: there are no arrays in it")
    if narrow := [name for name, a in state.items() if a.dtype.name.startswith("float8")]:
        notes.append(f"{len(narrow)} arrays have {state[narrow[0]].dtype.name} numbers of one digit, and no scale is known")
    if bad := [n for n, a in state.items() if jnp.issubdtype(a.dtype, jnp.floating) and not _finite(a)]:
        raise ValueError(f"{file} is not finite in {some(bad)}: it is damaged, fetch it again")
    return state


def _finite(a):
    return np.isfinite(a.astype(np.float32) if a.dtype.name.startswith("float8") else a).all()


def family_of(state, file):
    """The converter (`convert.adm` or `convert.ddpm`) whose names most arrays have. ValueError names what it looks like."""
    first = [name.split(".")[0] for name in state]
    counts = {
        adm: sum(n in ("time_embed", "label_emb", "input_blocks", "middle_block", "output_blocks", "out") for n in first),
        ddpm: sum(n in ("time_embedding", "down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out") for n in first),
    }
    best = max(counts, key=counts.get)
    if 2 * counts[best] > len(state) and not any(".transformer_blocks." in name for name in state):
        return best
    guess = next((f" ({what})" for prefix, what in OTHERS.items() if any(n.startswith(prefix) for n in state)), "")
    guess = " (a network that is told a text)" if any(".transformer_blocks." in n for n in state) else guess
    raise ValueError(f"{file} is of another family{guess}, its arrays are {some(list(state)[:3])} ...: supported are ADM and "
                     "improved-diffusion (input_blocks.*), UNet2DModel (down_blocks.*), SR3 (denoise_fn.downs.*)")  # fmt: skip


def _implied_by_T(given, usual, whose) -> dict:
    """improved-diffusion tells the network 1000 / T times the index unless told otherwise."""
    T = given.get("T", 1000)
    if whose != IMPROVED or isinstance(T, bool) or not isinstance(T, int) or T in (0, 1000) or "time_scale" in usual:
        return {}
    return {"time_scale": 1000 / T}


def _checked(given, network, settings=SETTINGS):
    """The given configuration with lists as tuples and types by name; ValueError for what does not exist."""
    own = [f for f in network.__dataclass_fields__ if f not in ("parent", "name", "null_label", "remat", "patch")]
    valid = list(dict.fromkeys((*settings, *own)))
    for key in given:
        if key not in valid:
            near = difflib.get_close_matches(printable(key, 40), (*valid, *parents.KNOWN), n=1, cutoff=0.0)[0]
            said = f"{printable(key, 40)}={printable(given[key], 40)}"
            raise ValueError(f"{said} is no setting of a checkpoint: did you mean {near}? "
                             f"({', '.join(valid)})")  # fmt: skip
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    if "dtype" in given:
        if given["dtype"] not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype={given['dtype']!r}: choose float32, bfloat16 or float16")
        given["dtype"] = jnp.dtype(given["dtype"])
    return given


# --- what is read, what is assumed ----------------------------------------------------------------------------------


def time_of(settings):
    factor = settings.get("time_scale", 1)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1e6:
        raise ValueError(f"time_scale={printable(factor, 40)!r} is out of range: give a number above 0, for example 0.25")
    factor = float(factor)
    return denoisers.IndexTime() if factor == 1 else denoisers.Scaled(factor)


def _adm(state, hints):
    """(network, fields, what was assumed, as in what)."""
    shown = {k: v for k, v in hints.items() if k not in ("heads", "head_channels")}
    network, fields = adm.config_from_state(state, heads=1, **shown)
    found = (p for p in PUBLISHED if network is UNet and all(fields[k] == v for k, v in p[1].items()))
    whose, _, usual = next(found, ("ADM's released networks", {}, {"head_channels": 64}))
    if not usual.keys() & {"heads", "head_channels"}:
        usual = usual | {"heads": 4}
    if network is UNet and whose.startswith("ADM's") and not fields["resblock_updown"]:
        whose, usual = IMPROVED, {"heads": 4}
    if fields["resblock_updown"]:
        usual = {"qkv_order": "legacy"} | usual
    if hints.keys() & {"heads", "head_channels"}:
        usual = {k: v for k, v in usual.items() if k not in ("heads", "head_channels")}
    del fields["heads"]
    own = {k: v for k, v in usual.items() if k in network.__dataclass_fields__}
    return network, own | fields | hints, usual, whose


def _ddpm(state, unet, hints):
    """(fields, what was assumed, as in what) of a UNet2DModel."""
    if unet is not None:
        return ddpm.from_config(unet) | hints, {}, "DDPM"
    usual = {"heads": 1} | {k: getattr(DDPMUNet, k) for k in ("epsilon", "sin_first", "frequency_shift", "down_padding")}
    return ddpm.config_from_state(state, **hints), usual, "DDPM (Ho et al. 2020); its config.json would say"


def _channels(state):
    return strict.vote(state, ("input_blocks.0.0.weight", 1), ("conv_in.weight", 1)) or 3


def loss_of(out, channels, given, schedule="linear"):
    if given and given not in list(LOSSES):
        raise ValueError(f"loss={printable(given, 40)!r} is unknown: {nearest(str(given)[:40], LOSSES)}")
    own = CONTINUOUS.get(schedule)
    if (given in sum(CONTINUOUS.values(), ())) if own is None else (given not in own):
        fits = " or ".join(own or ("eps", "v", "x0", "hybrid"))
        raise ValueError(f"loss={given!r} does not fit schedule={schedule!r}: give loss={fits}")
    if own and out != channels:
        raise ValueError(f"it makes {out} channels from {channels}, and a network of schedule={schedule!r} makes as many")
    if out not in (channels, 2 * channels):
        raise ValueError(f"it makes {out} channels from {channels}: wanted {channels}, or {2 * channels} (a learned variance)")
    read = "hybrid" if out == 2 * channels else "eps"
    if given and (given == "hybrid") != (read == "hybrid"):
        raise ValueError(f"loss={given!r} does not fit {out} output channels for {channels}: use {read}")
    return given or read


def _size(net, assumed):
    """The side of the images: published networks attend at 32, 16 and 8 pixels, or at 16 (and 8)."""
    factors = [2**level for level in range(len(net.multipliers)) if net.attends("down", level)]
    if not factors:
        raise ValueError("the side of its images cannot be told: give size=...")
    assumed["size"] = min(factors) * (32 if len(factors) == 3 else 16)
    return assumed["size"]


def _check_size(size, net):
    multiple = net.patch * 2 ** (len(net.multipliers) - 1)
    if not isinstance(size, int) or size < multiple or size % multiple:
        raise ValueError(
            f"size={printable(size, 40)} is not a multiple of {multiple}, which {len(net.multipliers)} levels need"
        )
    if math.prod((size, size)) > 2**26:
        raise ValueError(f"size={size} is beyond any of these networks: give the side of the images in pixels")
