"""Public checkpoints of latent diffusion as priors: CompVis' single files, and diffusers' folders with an autoencoder.

A file or folder is taken apart by ``convert.latent``, ``convert.first_stage`` and ``convert.diffusers_unet``; here they become
one prior, with what the network is told as its condition: a label, tokens, or an image beside x. Settings besides those of
``zoo.public``: scale, shift (of the latents), weights ("ema" or "raw"), stages (of a rescaler of conditions), classes (one
less than the table has, where the last label means none), beside (the measurement that the image beside x is made of, as in
``zoo.beside``: "inpaint-ldm" where the first stage encodes it, "sr4" of bsr_sr, "sr" and its f of diffusers'
super-resolution, else none); size is the side of the pictures.

Published values: the configurations of CompVis/latent-diffusion (Rombach et al. 2022), defaults of diffusers 0.42.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path

import flax
import numpy as np

from .. import schedules
from ..convert import diffusers_unet, files, first_stage, latent
from ..nets import AutoencoderKL, ClassEmbedder, LatentUNet, TextTransformer
from ..wording import printable, some
from . import beside, places, schedulers
from .network import read_json, safe_name
from .prior import Assumed, Prior

SETTINGS = ("scale", "shift", "weights", "stages", "classes", "beside")
BESIDE = {"bsr_sr": "sr4"}  # of the published networks, what the image beside x is made of
USUAL = {"schedule": "scaled_linear", "T": 1000, "beta_min": 0.0015, "beta_max": 0.0195}  # of most of the configurations
SIZE = 256  # of all published pictures
SCALES = {"txt2img-1p4B": 0.18215}  # where the file of a KL first stage does not say it
ENLARGES = "LDMSuperResolutionPipeline"  # of diffusers: the small picture beside latents of its own size
DIFFUSERS_SCALE = 0.18215  # what AutoencoderKL takes where its configuration says nothing
EMPTY_TEXT = (101, 102)  # of bert-base-uncased: begin, end
BERT = 30522  # its words


def is_whole(state) -> bool:
    """Whether these are the arrays of a whole file of CompVis, or of its first stage."""
    starts = (latent.UNET, latent.FIRST_STAGE)
    return any(name.startswith(starts) for name in state) or any(name.startswith("encoder.down.") for name in state)


def of_file(state, file, given, notes) -> Prior:
    """The prior of a CompVis file's arrays. Raises ValueError, one line."""
    hints = {k: v for k, v in given.items() if k in LatentUNet.__dataclass_fields__ and k not in SETTINGS}
    parts = latent.split(state, given.get("weights"))
    if not parts.unet:
        raise ValueError("this is a first stage alone, no prior: give the file of the whole model, or train a prior on its "
                         "latents (diffjax train)")  # fmt: skip
    if not parts.first_stage:
        raise ValueError(f"this is the network alone: its latents cannot be decoded without {latent.FIRST_STAGE}*, give the "
                         "file of the whole model")  # fmt: skip
    if parts.weights == "ema":
        notes.append("took the averaged weights")
    with _part("the network"):
        net, params = latent.convert(parts.unet, **hints)
        if net.ids:
            raise ValueError("it predicts entries of the codebook, and is no diffusion network by itself")
    assumed = {}
    name = latent.published(net)
    with _part("the first stage"):
        auto = _autoencoder(parts.first_stage, None, given, parts.scale_factor, SCALES.get(name, 1.0), assumed)
    channels = net.out_channels
    if auto.channels != channels:
        raise ValueError(f"the network makes latents of {channels} channels, the first stage has {auto.channels}: these are "
                         "parts of two models")  # fmt: skip
    classes, null = net.classes or 0, None
    if parts.conditioner:
        with _part("what reads the condition"):
            stages = {"stages": given["stages"]} if "stages" in given else {}
            reader, of_reader = latent.conditioner(parts.conditioner, **stages)
        net, params = latent.join(net, params, reader, of_reader)
        if isinstance(reader, ClassEmbedder):
            classes, null = _labels(reader.classes, given, assumed)
        elif isinstance(reader, TextTransformer) and reader.vocabulary == BERT:
            null = {"tokens": np.array([*EMPTY_TEXT, *[0] * (reader.length - 2)], np.int32)}
    if set(given) & {"schedule", "T", "beta_min", "beta_max"} or "betas" not in parts.schedule:
        told = {k: v for k, v in given.items() if k in USUAL}
        assumed |= {k: v for k, v in USUAL.items() if k not in told}
        schedule = schedulers.schedule(USUAL | told)
    else:
        schedule = _schedule(parts.schedule["betas"])
    size = given.get("size")
    if size is None:
        size = assumed["size"] = SIZE
    told = "inpaint-ldm" if parts.condition_is_first_stage else BESIDE.get(name, "")
    return _prior(net, params, auto, schedule, size, classes, null, given, assumed, notes, file, file.stem, name, told)


def of_folder(path, given, notes, part) -> Prior:
    """The prior of a folder of diffusers with sub-folders ``unet`` and ``part``, its autoencoder. Raises ValueError, one
    line."""
    assumed: dict = {}
    enlarges = _pipeline_class(path) == ENLARGES
    given = {"scale": 1.0} | given if enlarges else given  # it decodes its latents as they are, whatever part says
    with _part("unet"):
        config = _config(path / "unet")
        net = diffusers_unet.network(config)
        state = files.read(places.weights(path / "unet", notes), notes)
        params = diffusers_unet.params_from_state(net, state, config)
    with _part(part):
        about = _config(path / part)
        state = files.read(places.weights(path / part, notes), notes)
        kl = about.get("_class_name", "AutoencoderKL") == "AutoencoderKL"
        auto = _autoencoder(state, about, given, None, DIFFUSERS_SCALE if kl else 1.0, assumed)
    if auto.channels != net.out_channels:
        raise ValueError(f"unet makes latents of {net.out_channels} channels, {part} has {auto.channels}: these are parts of "
                         "two models")  # fmt: skip
    found = places.scheduler(path)
    told = (schedulers.read(found) if found else {}) | {k: v for k, v in given.items() if k in (*USUAL, "loss", "time_scale")}
    assumed |= {k: v for k, v in USUAL.items() if k not in told} if not found else {}
    given = given | {k: v for k, v in told.items() if k in ("loss", "schedule", "time_scale")}
    side = config.get("sample_size")
    side = side[0] if isinstance(side, list) and side else side
    size = given.get("size") or (side * auto.f if isinstance(side, int) and side > 0 else None)
    if size is None:
        size = assumed["size"] = SIZE
    schedule = schedulers.schedule(USUAL | told)
    left = [name for name in ("bert", "text_encoder", "tokenizer") if (path / name).is_dir()]
    if left:
        notes.append(f"left out {some(left)}: words are given as tokens of the network, prior.denoiser(cond=...)")
    return _prior(net, params, auto, schedule, size, net.classes or 0, None, given, assumed, notes, path, path.name, None,
                  f"sr{auto.f}" if enlarges else "")  # fmt: skip


# --- parts ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _part(name):
    """Which part of a checkpoint an error is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _config(folder) -> dict:
    if not (folder / "config.json").is_file():
        raise ValueError(f"folder {folder} has no config.json: copy the whole folder of the model")
    return read_json(folder / "config.json")


def _autoencoder(state, config, given, scale, usual, assumed):
    """The autoencoder; its scale: as given, as the file or configuration says, or ``usual``, which is then said."""
    groups = {"groups": given["groups"]} if "groups" in given and config is None else {}
    for name in ("scale", "shift"):
        value = given.get(name)
        if value is not None and not _numbers(value):
            raise ValueError(f"{name}={printable(value, 40)}: give a number, or one for each channel of the latents")
    told = first_stage.latent_units({}, config)[1] if config else scale
    scale = given.get("scale", scale if told is None else told)
    if scale is None:
        scale = usual
        if usual != 1 or first_stage.config_from_state(first_stage.own(state))[0] is AutoencoderKL:
            assumed["scale"] = usual
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what belongs to training alone is left out of every file
        as_array = lambda a: None if a is None else np.asarray(a, np.float32)
        return first_stage.autoencoder(state, config, shift=as_array(given.get("shift")), scale=as_array(scale), **groups)


def _numbers(value) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _labels(rows, given, assumed):
    """(classes, the label that means none or None) of a table of so many rows."""
    classes = given.get("classes")
    if classes is None:
        classes = rows - 1 if rows == 1001 else rows  # ImageNet's, and one more for none
        if classes < rows:
            assumed["classes"] = classes
    if type(classes) is not int or classes not in (rows, rows - 1):
        raise ValueError(f"classes={printable(classes, 40)} does not fit a table of {rows} labels: give {rows}, or {rows - 1} "
                         "where the last means none")  # fmt: skip
    return classes, np.int32(classes) if classes < rows else None


def _schedule(betas):
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not 0 < len(betas) <= schedulers.MOST_T or not (np.all(betas > 0) and np.all(betas < 1)):
        raise ValueError(f"its betas, of shape {betas.shape}, are no table of numbers between 0 and 1: give schedule=, T=, "
                         "beta_min= and beta_max=")  # fmt: skip
    return schedules.discrete(betas)


def _condition(net, shape, classes):
    """{name: shape} of what the network is told, with "L" for any number; {} for a label alone or nothing."""
    takes = net.net.takes() if hasattr(net, "reader") else net.takes() if isinstance(net, LatentUNet) else []
    if hasattr(net, "reader"):
        takes = [*net.reader.reads, *(name for name in takes if name not in net.reader.gives)]
    if not set(takes) - {"label"} and classes:
        return {}
    inner = net.net if hasattr(net, "reader") else net
    shapes = {"label": [], "concat": [*shape[:2], getattr(inner, "concat", 0)], "context": ["L", getattr(inner, "context", 0)],
              "tokens": [getattr(getattr(net, "reader", None), "length", "L")], "image": ["H", "W", "C"]}  # fmt: skip
    return {name: shapes.get(name, ["?"]) for name in takes}


def _beside(given, usual, net, pictures, latents) -> str:
    """``given``, checked against what the network takes; where it is None ``usual``, if it fits. Raises ValueError."""
    takes = net.takes() if isinstance(net, LatentUNet) else []
    fits = lambda told: takes == ["concat"] and net.concat == beside.channels(told, pictures, latents)
    if given is None:
        return usual if usual and usual != "sr1" and fits(usual) else ""
    if not given:
        return ""
    if not isinstance(given, str):
        raise ValueError(
            f"beside={printable(given, 40)} is no name: give inpaint-ldm, or sr4 for pictures made 4 times smaller"
        )
    if not fits(given):
        what = {"concat": f"{getattr(net, 'concat', 0)} channels beside its input"}
        of = " and ".join(what.get(name, f"a {name}") for name in takes) or "no image beside its input"
        made = beside.channels(given, pictures, latents)
        raise ValueError(f"beside={given} makes {made} channels beside x alone, and this network takes {of}: leave it out")
    return given


def _prior(net, params, auto, schedule, size, classes, null, given, assumed, notes, source, name, published, usual) -> Prior:
    """All of it, checked against each other; what had to be assumed is a warning."""
    from . import public

    inner = net.net if hasattr(net, "reader") else net
    channels = auto.channels
    least = auto.f * 2 ** (len(inner.multipliers) - 1) * getattr(inner, "patch", 1)
    if type(size) is not int or size < least or size % least:
        down = max(size // least, 1) * least if type(size) is int else least
        raise ValueError(f"size={printable(size, 40)} is no multiple of {least}: the autoencoder makes sides {auto.f} times "
                         f"smaller, and the network has {len(inner.multipliers)} levels; give size={down}")  # fmt: skip
    shape = (size // auto.f, size // auto.f, channels)
    loss = public.loss_of(inner.out_channels, channels, given.get("loss"), given.get("schedule", USUAL["schedule"]))
    condition = _condition(net, shape, classes)
    told = _beside(given.get("beside"), usual, net, auto.decoder.net.channels, channels)
    lines = [f"{source.name}: {'; '.join(notes)}"] if notes else []
    if assumed:
        said = ", ".join(f"{k}={v}" for k, v in assumed.items())
        lines.append(f"{source.name} does not say {said}: assumed as in {published or 'the published models'}")
    for line in lines:
        warnings.warn(printable(line, 1000), Assumed, stacklevel=4)
    units = {k: np.atleast_1d(np.asarray(getattr(auto, k), np.float64)).tolist() for k in ("shift", "scale")}
    pictures = auto.decoder.net.channels
    shown = {"size": shape[0], "channels": channels, "classes": classes, "loss": loss, "T": schedule.T}
    card = {"name": safe_name(given.get("name") or name), "source": str(source), "config": shown,
            "autoencoder": {"config": {"channels": pictures, "size": size}, **units}, "condition": condition,
            "assumed": printable("; ".join(lines), 1500)}  # fmt: skip
    return Prior(flax.core.unfreeze(params), schedule, card["name"], net, shape, loss, classes, (), json.dumps(card),
                 public.time_of(given), null=null, conditional=bool(condition), autoencoder=auto, beside=told)  # fmt: skip


def _pipeline_class(path) -> str:
    index = path / "model_index.json"
    return str(read_json(index).get("_class_name", "")) if index.is_file() else ""


def pipeline(path: Path) -> str | None:
    """The sub-folder with the autoencoder of a folder of diffusers; None where it has none."""
    index = path / "model_index.json"
    named = read_json(index).keys() if index.is_file() else ()
    return next((name for name in places.AUTOENCODERS if name in named or (path / name).is_dir()), None)
