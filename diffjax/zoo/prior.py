"""Trained priors: a folder with ``card.json`` (what it is, how it was made, how good it is) and ``weights.safetensors``.

Reading is strict: weights that do not fit the card's network exactly are refused, with a list of what does not fit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import denoisers
from ..base import is_concrete, nearest
from ..wording import printable, reading, some
from . import network
from .network import build, read_json, safe_name

__all__ = ["Assumed", "Prior", "build", "from_config", "load", "names", "read_json", "read_run", "save", "sign",
           "write_card"]  # fmt: skip

CARD, WEIGHTS = "card.json", "weights.safetensors"
SIGNATURE = "signature.txt"  # beside a training run's config.json; of a card it is an entry
_HERE = Path(__file__).parent


class Assumed(UserWarning):
    """What a checkpoint does not say and was assumed, in one line."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
    """What a denoiser needs, and where it came from. A pytree: hand it to jitted functions as an argument.

    Leaves
    params:       of ``net``, float32
    schedule:     the one it was trained on
    time:         what the network is told of the time (``denoisers.times``); default the index i = t - 1
    null:         the condition that means none, a pytree; None where there is none: no guidance, a condition is needed

    Part of the program
    net:          ``net.apply(params, x, i)``, with a fourth argument where it takes a condition
    shape:        (H, W, C) of its images, in [-1, 1]
    loss:         what it predicts: "v", "x0", "eps", "score", "velocity" or "hybrid" (eps and a learned variance)
    classes:      number of labels; 0: its condition, if any, is no label
    class_names:  a tuple of ``classes`` strings, or ()
    conditional:  whether it takes a condition that is no label: tokens, boxes, an image, any pytree

    name, card:   its name, and the card as a dict (a copy). Not part of the program: two priors of one network run the same
                  compiled function, which, if it asks for them, sees those of the prior it was traced with
    """

    params: Any
    schedule: Any
    name: str = ""
    net: Any = None
    shape: tuple = ()
    loss: str = "v"
    classes: int = 0
    class_names: tuple = ()
    text: str = "{}"  # the card as JSON
    time: Any = dataclasses.field(default_factory=denoisers.IndexTime)
    null: Any = None
    conditional: bool = False

    @property
    def card(self) -> dict:
        return json.loads(self.text)

    def label(self, label=None):
        """The index of a label given by number or class name; the null label for None.

        Traced labels pass unchecked. Raises ValueError for a label that does not exist, for one of a prior without classes,
        and for None where there is no null label.
        """
        if label is None:
            if self.classes and self.null is None:
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

    def condition(self, cond=None):
        """``cond`` as the network is told it: a label as its index, another pytree as it is, the null for None.

        Raises ValueError for what :meth:`label` refuses, for a condition of another structure or shape than the null, and for
        None where a condition is needed.
        """
        if self.classes or not self.conditional:
            label = self.label(cond)
            return jnp.asarray(label, jnp.int32) if self.classes else None
        if cond is None:
            if self.null is None:
                raise ValueError(f"prior {self.name!r} needs a condition and has no null: pass cond=")
            return jax.tree.map(jnp.asarray, self.null)
        if self.null is not None:
            denoisers.null_like(cond, self.null)
        return jax.tree.map(jnp.asarray, cond)

    def denoiser(self, cond=None, scale=1.0, clip=True):
        """``denoise(x, t) -> Prediction`` for one image of ``shape``.

        cond:   the condition: of a prior with classes a number or class name, else a pytree; None: the null condition, or
                none for an unconditional prior; may be traced
        scale:  of classifier-free guidance: 1 (a plain number) is the network as it is, anything else runs it with the
                condition and with the null; may be traced
        clip:   clamp x0 to [-1, 1]
        Condition and scale are leaves: others cost no retrace. Raises ValueError for what :meth:`condition` refuses, and for
        a scale without a condition or without a null.
        """
        guided = not (isinstance(scale, (int, float)) and scale == 1)
        what = "label" if self.classes or not self.conditional else "condition"
        if guided and cond is None:
            raise ValueError(f"scale {scale} needs a {what} to guide towards: pass cond=, or scale=1")
        told = self.condition(cond)
        if guided and self.null is None:
            raise ValueError(f"prior {self.name!r} has no null {what} to guide away from: use scale=1, or a classifier")
        make = denoisers.from_eps if self.loss == "hybrid" else getattr(denoisers, f"from_{self.loss}")
        learned = self.loss == "hybrid"
        denoise = make(self.net.apply, self.params, self.schedule, cond=told, learned_variance=learned, time=self.time)
        if guided:
            denoise = denoisers.classifier_free(denoise, told, self.null, scale)
        return denoisers.clipped(denoise) if clip else denoise


# --- as a pytree ------------------------------------------------------------------------------------------------------

LEAVES = ("params", "schedule", "time", "null")
PROGRAM = ("net", "shape", "loss", "classes", "class_names", "conditional")


class _Beside:
    """What travels with a pytree and is not compared: name and card."""

    def __init__(self, name, text):
        self.name, self.text = name, text

    def __eq__(self, other):
        return isinstance(other, _Beside)

    def __hash__(self):
        return 0


def _flatten(prior, with_keys=False):
    children = [getattr(prior, name) for name in LEAVES]
    if with_keys:
        children = [(jax.tree_util.GetAttrKey(name), child) for name, child in zip(LEAVES, children)]
    return children, (*(getattr(prior, name) for name in PROGRAM), _Beside(prior.name, prior.text))


def _unflatten(program, children):
    *values, beside = program
    return Prior(**dict(zip(LEAVES, children)), **dict(zip(PROGRAM, values)), name=beside.name, text=beside.text)


jax.tree_util.register_pytree_with_keys(Prior, lambda prior: _flatten(prior, True), _unflatten, _flatten)


# --- from files -------------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """The priors that ship."""
    return sorted(p.parent.name for p in _HERE.glob(f"*/{CARD}"))


@reading()
def load(name: str | os.PathLike, config: Mapping | None = None) -> Prior:
    """A prior by name (:func:`names`), or from a folder with a card and weights, or of a training run (its averaged weights
    of the checkpoint with the lowest held-out loss), or a public checkpoint: a file, a folder laid out like the hub's, or
    "hf:owner/name[@revision]". ``config``: of public checkpoints, see :func:`zoo.public.load`.

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
        config = card.get("config", {})
        if not isinstance(config, dict):
            raise ValueError(f"{folder / CARD} holds no configuration: its entry config is no JSON object")
        _described(config, folder / CARD, network.build_schedule)
        leaves = read_arrays(folder / WEIGHTS)
        shapes = {key: a.shape for key, a in leaves.items()}
        if card.get("signature") != network.signature(config, shapes):
            _described(config, folder / CARD, build)
            network.check(config, shapes, folder / WEIGHTS)
        if bad := [key for key, a in leaves.items() if not np.isfinite(a).all()]:
            raise ValueError(f"weights {folder / WEIGHTS} are not finite in {some(bad)}: the file is damaged, "
                             "copy it again")  # fmt: skip
        if bad := [key for key, a in leaves.items() if not jnp.issubdtype(a.dtype, jnp.floating)]:
            raise ValueError(
                f"weights {folder / WEIGHTS} hold no floating numbers in {some(bad)}: the file is of something else"
            )
        leaves = jax.device_put({key: a.astype(np.float32) for key, a in leaves.items()})
        params = {"params": network.nested(leaves)}
    elif (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        _described(config, folder / "config.json", network.build_schedule)
        params, step = read_run(folder)
        shapes = {key: a.shape for key, a in network.flat(params["params"]).items()}
        signed = (folder / SIGNATURE).read_text().strip() if (folder / SIGNATURE).is_file() else None
        if signed != network.signature(config, shapes):
            _described(config, folder / "config.json", build)
            network.check(config, shapes, folder)
        if bad := [key for key, a in network.flat(params["params"]).items() if not np.isfinite(a).all()]:
            raise ValueError(f"checkpoint {step} of {folder} is not finite in {some(bad)}: it is damaged, or the run diverged")
        card = {"name": config.get("name", folder.name), "config": config, "training": {"checkpoint": step}}
    else:
        raise ValueError(
            f"folder {folder} holds no prior: it has neither {CARD} with {WEIGHTS} nor a training run's config.json"
        )
    return from_config(config, params, card=card, name=card.get("name") or folder.name)


def from_config(config: Mapping, params, *, card: Mapping | None = None, name="") -> Prior:
    """The prior of a training configuration and its trained parameters. Raises ValueError as :func:`build` does."""
    card = {} if card is None else card
    names = card.get("class_names") or ()
    if (
        not isinstance(names, list | tuple)
        or not all(isinstance(n, str) for n in names)
        or (len(names) not in (0, config["classes"]))
    ):
        raise ValueError(f"class_names {printable(names, 60)} of prior {safe_name(name)}: the card needs one text for each of "
                         f"its {config['classes']} classes, or none")  # fmt: skip
    null = np.int32(config["classes"]) if config["classes"] else None
    return Prior(params, network.build_schedule(config), safe_name(name), network.Network.of(config),
                 (config["size"], config["size"], config["channels"]), config["loss"], int(config["classes"]),
                 tuple(names), json.dumps(card), null=null)  # fmt: skip


def save(folder: str | os.PathLike, params, card: Mapping, dtype=np.float16) -> None:
    """Write ``card.json`` and ``weights.safetensors`` (names joined by ".") into ``folder``, made if missing.

    card: a dict; its entry "config", the training configuration, says which network the weights are compared with. Without
    it nothing is compared, and :func:`load` refuses the folder. The comparison is written into the card ("signature").
    Raises ValueError if a weight does not fit into ``dtype``, is not finite, or if weights and network do not fit.
    """
    from safetensors.numpy import save

    arrays = {}
    for key, leaf in network.flat(params["params"]).items():
        with np.errstate(over="ignore"):
            arrays[key] = np.ascontiguousarray(np.asarray(leaf, np.float32).astype(dtype))
        if not np.isfinite(arrays[key]).all():
            raise ValueError(f"weight {key} is not finite as {np.dtype(dtype).name}: use dtype=np.float32, "
                             "or another checkpoint")  # fmt: skip
    folder = Path(folder)
    if config := card.get("config"):
        shapes = {key: a.shape for key, a in arrays.items()}
        network.check(config, shapes, folder / WEIGHTS)
        card = {**card, "signature": network.signature(config, shapes)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / (WEIGHTS + ".tmp")).write_bytes(save(arrays))
    (folder / (WEIGHTS + ".tmp")).replace(folder / WEIGHTS)
    write_card(folder, card)


def sign(folder: str | os.PathLike, config: Mapping, params) -> None:
    """Write the signature of a training run into its folder: that ``params`` (arrays or shapes) are this network's. Without
    it :func:`load` has to trace the network."""
    shapes = {key: a.shape for key, a in network.flat(params["params"]).items()}
    (Path(folder) / SIGNATURE).write_text(network.signature(config, shapes) + "\n")


def write_card(folder: str | os.PathLike, card: Mapping) -> None:
    """Replace ``card.json`` in one move."""
    temporary = Path(folder) / (CARD + ".tmp")
    temporary.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(Path(folder) / CARD)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_arrays(file) -> dict[str, np.ndarray]:
    """{name: array} of a safetensors file; ValueError, one line, if it is missing or damaged."""
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    except Exception as error:
        raise ValueError(
            f"weights {file} cannot be read ({printable(error, 200)}): the file is missing or damaged, copy it again"
        ) from None


def _described(config, file, make):
    try:
        make(config)
    except Exception as error:  # values of any kind
        raise ValueError(f"{file} describes no network of ours: {printable(error)}") from error


def _readable(store, which):
    """The averages of a step; where the best or last cannot be read, of the newest one that can, which is said."""
    from ..training.checkpoints import Damaged

    try:
        return store.read("ema", which)
    except Damaged as error:
        bad = {"best": store.best() or store.last(), "last": store.last()}.get(which)
        for step in sorted(set(store.steps()) - {bad}, reverse=True) if bad is not None else ():
            with contextlib.suppress(Damaged):
                found = store.read("ema", step)
                warnings.warn(f"{error}: step {step} is used", Assumed, stacklevel=5)
                return found
        raise


def read_run(folder, which="best", player="net"):
    """(averaged parameters, step) of a training run's checkpoint: "best", "last" or a step. Neither the network nor its
    optimiser is needed. player: of a run with several networks. Raises ValueError."""
    from ..training import checkpoints

    with checkpoints.Checkpoints(Path(folder) / "checkpoints", read_only=True) as store:
        if store.last() is None:
            damaged = sorted(p.name for p in store.folder.iterdir() if p.name.isdecimal())
            why = f"no whole checkpoint, {some(damaged)} is damaged" if damaged else "no checkpoint yet"
            raise ValueError(f"run {folder} has {why}: wait for its next, or train longer")
        averages, step = _readable(store, which)
    if player not in averages:
        raise ValueError(f"run {folder} has no averaged weights of {player!r}: {nearest(player, averages)}")
    return averages[player], step
