"""Trained priors: a folder with ``card.json`` (what it is, how it was made, how good it is) and ``weights.safetensors``.

Reading is strict: weights that do not fit the card's network exactly are refused, with a list of what does not fit.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import denoisers, schedules
from ..base import is_concrete, nearest, pytree, static

CARD, WEIGHTS = "card.json", "weights.safetensors"
BETAS = {"cosine": schedules.cosine_betas, "linear": schedules.linear_betas, "scaled_linear": schedules.scaled_linear_betas}
NETWORK = "width multipliers blocks attention heads groups patch scale_shift resblock_updown dropout remat".split()
_HERE = Path(__file__).parent


class Assumed(UserWarning):
    """What a checkpoint does not say and was assumed, in one line."""


@pytree
class Prior:
    """What a denoiser needs, and where it came from.

    params:       of ``net``, float32 (leaves); schedule: the one it was trained on (leaves)
    name, net:    its name; the Flax module, ``net.apply(params, x, i, label)`` with i = t - 1
    shape:        (H, W, C) of its images, in [-1, 1]
    loss:         what it predicts: "v", "x0", "eps" or "hybrid" (eps and a learned variance)
    classes:      number of labels, 0 for an unconditional prior; the index ``classes`` is the null label if ``net`` has one
    class_names:  a tuple of ``classes`` strings, or ()
    time_scale:   the network is told time_scale * i
    card:         the card as a dict (a copy)
    """

    params: Any
    schedule: Any
    name: str = static(default="")
    net: Any = static(default=None)
    shape: tuple = static(default=())
    loss: str = static(default="v")
    classes: int = static(default=0)
    class_names: tuple = static(default=())
    text: str = static(default="{}")  # the card as JSON: static fields must be hashable
    time_scale: float = static(default=1.0)

    @property
    def card(self) -> dict:
        return json.loads(self.text)

    def label(self, label=None):
        """The index of a label given by number or class name; the null label for None.

        Traced labels pass unchecked. Raises ValueError for a label that does not exist, for one of an unconditional prior,
        and for None where there is no null label.
        """
        if label is None:
            if self.classes and not self.net.null_label:
                raise ValueError(f"prior {self.name!r} was trained with labels only: give one, 0 to {self.classes - 1}")
            return self.classes
        if not self.classes:
            raise ValueError(f"prior {self.name!r} knows no labels, got {label!r}: leave the label out")
        if isinstance(label, str) and not label.isdecimal():
            if label not in self.class_names:
                valid = self.class_names or range(self.classes)
                raise ValueError(f"unknown label {label!r} of prior {self.name!r}: {nearest(label, valid)}")
            return self.class_names.index(label)
        if not is_concrete(label):
            return label
        if np.ndim(label) or int(label) != float(label) or not 0 <= int(label) < self.classes:
            raise ValueError(
                f"label {label} of prior {self.name!r} is out of range: choose 0 to {self.classes - 1}, or None for no label"
            )
        return int(label)

    def denoiser(self, label=None, scale=1.0, clip=True):
        """``denoise(x, t) -> Prediction`` for one image of ``shape``.

        label:  number, class name, or None (the null label: no condition); may be traced
        scale:  of classifier-free guidance: 1 (a plain number) is the network as it is, anything else runs it with and
                without the label; may be traced
        clip:   clamp x0 to [-1, 1]
        Label and scale are leaves: others cost no retrace. Raises ValueError for an unknown label, or a scale without one.
        """
        guided = not (isinstance(scale, (int, float)) and scale == 1)
        if guided and label is None:
            raise ValueError(f"scale {scale} needs a label to guide towards: pass label=, or scale=1")
        if guided and not self.net.null_label:
            raise ValueError(f"prior {self.name!r} has no null label to guide away from: use scale=1, or a classifier")
        index = self.label(label)
        args, null = ((jnp.asarray(n, jnp.int32),) if self.classes else () for n in (index, self.classes))
        make = {"v": denoisers.from_v, "x0": denoisers.from_x0}.get(self.loss, denoisers.from_eps)
        apply = self.net.apply if self.time_scale == 1 else _Rescaled(self.net, self.time_scale)
        denoise = make(apply, self.params, self.schedule, args=args, learned_variance=self.loss == "hybrid")
        if guided:
            denoise = denoisers.classifier_free(denoise, args, null, scale)
        return denoisers.clipped(denoise) if clip else denoise


@dataclasses.dataclass(frozen=True)
class _Rescaled:
    """A network that is told time_scale * i; compared by value, so that building it again costs no retrace."""

    net: Any
    time_scale: float

    def __call__(self, params, x, i, *args):
        return self.net.apply(params, x, i * self.time_scale, *args)


def build(config: Mapping):
    """-> (net, schedule) of a training configuration (``experiments.configs``) as a dict. Raises ValueError."""
    from ..nets import UNet

    missing = [k for k in ("size", "channels", "classes", "loss", "schedule", "T", *NETWORK) if k not in config]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(missing)}: it is not one of experiments.train")
    if config["schedule"] not in BETAS:
        raise ValueError(f"schedule {config['schedule']!r} is unknown: {nearest(config['schedule'], BETAS)}")
    fields = {k: tuple(config[k]) if isinstance(config[k], list) else config[k] for k in NETWORK}
    net = UNet(
        out_channels=config["channels"] * (2 if config["loss"] == "hybrid" else 1),
        classes=config["classes"] or None,
        null_label=bool(config["classes"]),
        dtype=jnp.bfloat16 if config.get("bfloat16") else None,
        **fields,
    )
    return net, schedules.discrete(BETAS[config["schedule"]](config["T"]))


def names() -> list[str]:
    """The priors that ship."""
    return sorted(p.parent.name for p in _HERE.glob(f"*/{CARD}"))


def load(name: str | os.PathLike, config: Mapping | None = None) -> Prior:
    """A prior by name (:func:`names`), or from a folder with a card and weights, or of a run of ``experiments.train``
    (its averaged weights of the checkpoint with the lowest held-out loss), or a public checkpoint: a file, a folder laid
    out like the hub's, or "hf:owner/name[@revision]". ``config``: of public checkpoints, see :func:`zoo.public.load`.

    Raises ValueError, one line, for an unknown name, a missing or damaged file, or weights of another network.
    """
    folder = _HERE / str(name) if str(name) in names() else Path(name)
    if str(name).startswith("hf:") or folder.is_file() or (folder.is_dir() and not (folder / CARD).is_file()):
        from . import public

        if str(name).startswith("hf:") or folder.is_file() or public.is_public(folder):
            return public.load(name, config)
    if config:
        raise ValueError(f"{name} has its own configuration, {', '.join(config)} cannot be given: leave that out")
    if not folder.is_dir():
        close = f"{nearest(name, names())} Or give" if names() else "give"
        raise ValueError(f"unknown prior {str(name)!r}: {close} the folder of a training run, one with {CARD}, "
                         "a public checkpoint's file or folder, or hf:owner/name")  # fmt: skip
    if (folder / CARD).is_file():
        card = read_json(folder / CARD)
        net, schedule = _built(card.get("config", {}), folder / CARD)
        params = _read_weights(folder / WEIGHTS, net, card["config"])
    elif (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        net, schedule = _built(config, folder / "config.json")
        params, step = read_run(folder, net, config)
        card = {"name": config.get("name", folder.name), "config": config, "training": {"checkpoint": step}}
    else:
        raise ValueError(
            f"folder {folder} holds no prior: it has neither {CARD} with {WEIGHTS} nor a training run's config.json"
        )
    c = card["config"]
    return Prior(params, schedule, str(card.get("name", folder.name)), net, (c["size"], c["size"], c["channels"]), c["loss"],
                 int(c["classes"]), tuple(card.get("class_names", ())), json.dumps(card))  # fmt: skip


def save(folder: str | os.PathLike, params, card: Mapping, dtype=np.float16) -> None:
    """Write ``card.json`` and ``weights.safetensors`` (names joined by ".") into ``folder``, made if missing.

    Raises ValueError if a weight does not fit into ``dtype`` or is not finite.
    """
    from safetensors.numpy import save

    arrays = {}
    for path, leaf in _flat(params).items():
        with np.errstate(over="ignore"):
            arrays[".".join(path)] = np.ascontiguousarray(np.asarray(leaf, np.float32).astype(dtype))
        if not np.isfinite(arrays[".".join(path)]).all():
            raise ValueError(
                f"weight {'.'.join(path)} is not finite as {np.dtype(dtype).name}: use dtype=np.float32, or another checkpoint"
            )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / (WEIGHTS + ".tmp")).write_bytes(save(arrays))
    (folder / (WEIGHTS + ".tmp")).replace(folder / WEIGHTS)
    write_card(folder, card)


def write_card(folder: str | os.PathLike, card: Mapping) -> None:
    """Replace ``card.json`` in one move."""
    temporary = Path(folder) / (CARD + ".tmp")
    temporary.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(Path(folder) / CARD)


# --- reading ------------------------------------------------------------------------------------------------------


def _flat(params) -> dict:
    import flax

    return flax.traverse_util.flatten_dict(flax.core.unfreeze(params)["params"])


def read_json(file) -> dict:
    """The object in a JSON file; ValueError, one line, if there is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}): copy it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds no JSON object: copy it again")
    return value


def _built(config, file):
    try:
        return build(config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} describes no network of ours: {error}") from None


def _read_weights(file, net, config):
    """Parameters, float32, that fit ``net`` exactly."""
    import flax
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from ..convert import strict

    try:
        state = load_file(file)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"weights {file} cannot be read ({str(error).strip()}): the file is missing or damaged, copy it again"
        ) from None
    try:
        wanted = {".".join(path): shape for path, shape in _shapes(net, config).items()}
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"the card beside {file} describes a network that cannot be built: {error}") from None
    missing, left_over, wrong = strict.mismatches(state, wanted)
    found = [f"{label}: {', '.join(some[:8])}{f' and {len(some) - 8} more' if len(some) > 8 else ''}" for label, some in
             (("missing", missing), ("left over", left_over), ("of another shape", wrong)) if some]  # fmt: skip
    if found:
        raise ValueError(f"weights {file} are of another architecture than {strict.describe(net)}: {'; '.join(found)}")
    if bad := [name for name, a in state.items() if not np.isfinite(a).all()]:
        raise ValueError(f"weights {file} are not finite in {', '.join(bad[:8])}: the file is damaged, copy it again")
    flat = {tuple(name.split(".")): jnp.asarray(a.astype(np.float32)) for name, a in state.items()}
    return flax.core.freeze({"params": flax.traverse_util.unflatten_dict(flat)})


def _shapes(net, config):
    from ..convert import strict

    return strict.shapes(net, *strict.image_inputs(net, config["size"], config["channels"]))


def read_run(folder, net, config, which="best"):
    """(averaged parameters, step) of a training run's checkpoint: "best", "last" or a step. Raises ValueError."""
    import flax
    import jax

    from ..convert import strict
    from ..training import checkpoints, state

    optimizer = state.adam(state.warmup_stable_decay(1e-3, 1, 0, 0))  # only the layout of its state matters here
    inputs = strict.image_inputs(net, config["size"], config["channels"])
    params = flax.core.freeze(jax.eval_shape(net.init, jax.random.key(0), *inputs))
    layout = jax.eval_shape(lambda p: state.create(p, optimizer), params)
    with checkpoints.Checkpoints(folder / "checkpoints", read_only=True) as store:
        if store.last() is None:
            raise ValueError(f"run {folder} has no checkpoint yet: wait for its first, or train longer")
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        restored = store.restore(checkpoints.abstract(layout, one), which)
    return restored.ema, int(restored.step)
