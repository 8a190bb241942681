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

import jax
import jax.numpy as jnp
import numpy as np

from .. import denoisers
from ..base import is_concrete, nearest
from ..wording import printable, reading, some
from . import beside, first_stage, network
from .network import build, read_json, safe_name
from .stored import (
    CARD,
    SIGNATURE,
    WEIGHTS,
    Assumed,
    packed,
    read_arrays,
    read_run,
    read_vocabulary,
    sign,
    write_card,
    write_vocabulary,
)
from .vocabulary import Vocabulary

__all__ = ["Assumed", "Prior", "build", "from_config", "load", "names", "read_json", "read_run", "read_vocabulary", "save",
           "sign", "write_card", "write_vocabulary"]  # fmt: skip

_HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
    """What a denoiser needs, and where it came from. A pytree: hand it to jitted functions as an argument.

    Leaves
    params:       of ``net``, float32
    schedule:     the one it was trained on
    time:         what the network is told of the time (``denoisers.times``); default the index i = t - 1
    null:         the condition that means none, a pytree; None where there is none: no guidance, a condition is needed
    autoencoder:  of a latent prior, the ``Autoencoder`` between its latents and pictures; None: it is one of pixels

    Part of the program
    net:          ``net.apply(params, x, i)``, with a fourth argument where it takes a condition
    shape:        (H, W, C) of its images, in [-1, 1]; of a latent prior (h, w, c) of z, see :attr:`image_shape`
    loss:         what it predicts: "v", "x0", "eps", "score", "velocity" or "hybrid" (eps and a learned variance)
    classes:      number of labels; 0: its condition, if any, is no label
    class_names:  a tuple of ``classes`` strings, or ()
    conditional:  whether it takes a condition that is no label: tokens, boxes, an image, any pytree
    beside:       what measurement of the picture that condition is made of (``zoo.beside``): "sr4", "inpaint" ...; "": of none

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
    autoencoder: Any = None
    beside: str = ""

    @property
    def card(self) -> dict:
        return json.loads(self.text)

    @property
    def vocabulary(self) -> Vocabulary:
        """The words and boxes it can be told: ``prior.vocabulary.condition("a red apple")``. ValueError if there are none."""
        if "vocabulary" not in self.card:
            raise ValueError(f"prior {self.name!r} knows no words: leave the text and the boxes out")
        return Vocabulary.of(self.card["vocabulary"])

    @property
    def image_shape(self) -> tuple:
        """(H, W, C) of the pictures: ``shape``, or what ``decode`` makes of it."""
        if self.autoencoder is None:
            return self.shape
        channels = self.card["autoencoder"]["config"]["channels"]
        return (*(side * self.autoencoder.f for side in self.shape[:2]), channels)

    def decode(self, z):
        """Pictures in about [-1, 1] of what was sampled: z itself, or its decoding."""
        return z if self.autoencoder is None else self.autoencoder.decode(z)

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

    def told(self, measurement, autoencoder=None):
        """The condition that a measurement of a picture gives, for a prior trained to be told one. autoencoder: in place of
        the prior's own. Raises ValueError where it was trained for another kind, or for none."""
        if not self.beside:
            raise ValueError(f"prior {self.name!r} is not told measurements: restore by a method of diffjax.methods")
        return beside.condition(self.beside, measurement, autoencoder or self.autoencoder, self.shape)

    def denoiser(self, cond=None, scale=1.0, clip=None):
        """``denoise(x, t) -> Prediction`` for one image of ``shape``.

        cond:   the condition: of a prior with classes a number or class name, else a pytree; None: the null condition, or
                none for an unconditional prior; may be traced
        scale:  of classifier-free guidance: 1 (a plain number) is the network as it is, anything else runs it with the
                condition and with the null; may be traced
        clip:   clamp x0 to [-1, 1]; default: of pixels yes, of latents, which have no bounds, no
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
        clip = self.autoencoder is None if clip is None else clip
        return denoisers.clipped(denoise) if clip else denoise


# --- as a pytree ------------------------------------------------------------------------------------------------------

LEAVES = ("params", "schedule", "time", "null", "autoencoder")
PROGRAM = ("net", "shape", "loss", "classes", "class_names", "conditional", "beside")


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
        auto = first_stage.read(folder, card["autoencoder"]) if "autoencoder" in card else None
    elif (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        if config.get("phase") == "first":
            raise ValueError(f"{folder} is the run of an autoencoder, no prior: train one with --autoencoder {folder}")
        _described(config, folder / "config.json", network.build_schedule)
        params, step = read_run(folder)
        shapes = {key: a.shape for key, a in network.flat(params["params"]).items()}
        signed = (folder / SIGNATURE).read_text().strip() if (folder / SIGNATURE).is_file() else None
        if signed != network.signature(config, shapes):
            _described(config, folder / "config.json", build)
            network.check(config, shapes, folder)
        if bad := [key for key, a in network.flat(params["params"]).items() if not np.isfinite(a).all()]:
            raise ValueError(f"checkpoint {step} of {folder} is not finite in {some(bad)}: it is damaged, or the run diverged")
        params = {"params": params["params"]}
        card = {"name": config.get("name", folder.name), "config": config, "training": {"checkpoint": step}}
        auto, entry = first_stage.of_run(folder, config)
        card |= entry | read_vocabulary(folder)
    else:
        raise ValueError(
            f"folder {folder} holds no prior: it has neither {CARD} with {WEIGHTS} nor a training run's config.json"
        )
    return from_config(config, params, card=card, name=card.get("name") or folder.name, autoencoder=auto)


def from_config(config: Mapping, params, *, card: Mapping | None = None, name="", autoencoder=None) -> Prior:
    """The prior of a training configuration and its trained parameters. autoencoder: of a latent prior. Raises ValueError as
    :func:`build` does."""
    card = {} if card is None else card
    names = card.get("class_names") or ()
    if (
        not isinstance(names, list | tuple)
        or not all(isinstance(n, str) for n in names)
        or (len(names) not in (0, config["classes"]))
    ):
        raise ValueError(f"class_names {printable(names, 60)} of prior {safe_name(name)}: the card needs one text for each of "
                         f"its {config['classes']} classes, or none")  # fmt: skip
    told = config.get("network") in network.BESIDE
    return Prior(params, network.build_schedule(config), safe_name(name), network.Network.of(config),
                 (config["size"], config["size"], config["channels"]), config["loss"], int(config["classes"]),
                 tuple(names), json.dumps(card), null=null_of(config),
                 conditional=told or config.get("network") == "latent",
                 autoencoder=autoencoder,
                 beside=config["condition"] if told else "",
                 time=denoisers.NoiseLevel() if config.get("network") == "sr3" else denoisers.IndexTime())  # fmt: skip


def null_of(config: Mapping):
    """The condition that means none, of a training configuration: the label after the last, no words and no boxes, or None."""
    if config.get("network") == "latent":
        words, boxes = config["words"] if config["vocabulary"] else 0, config["boxes"] if config["box_classes"] else 0
        told = {"tokens": np.zeros(words, np.int32), "boxes": np.zeros((boxes, 4), np.float32),
                "classes": np.zeros(boxes, np.int32)}  # fmt: skip
        return {name: a for name, a in told.items() if a.size}
    return np.int32(config["classes"]) if config["classes"] else None


def save(folder: str | os.PathLike, params, card: Mapping, dtype=np.float16, autoencoder=None) -> None:
    """Write ``card.json`` and ``weights.safetensors`` (names joined by ".") into ``folder``, made if missing.

    autoencoder: of a latent prior; its weights go beside, in ``autoencoder.safetensors``, and the card has an entry for it

    card: a dict; its entry "config", the training configuration, says which network the weights are compared with. Without
    it nothing is compared, and :func:`load` refuses the folder. The comparison is written into the card ("signature").
    Raises ValueError if a weight does not fit into ``dtype``, is not finite, or if weights and network do not fit.
    """
    from safetensors.numpy import save

    arrays = packed(params, dtype)
    folder = Path(folder)
    if config := card.get("config"):
        shapes = {key: a.shape for key, a in arrays.items()}
        network.check(config, shapes, folder / WEIGHTS)
        card = {**card, "signature": network.signature(config, shapes)}
    folder.mkdir(parents=True, exist_ok=True)
    if autoencoder is not None:
        shared = first_stage.save(folder, autoencoder, dtype)
        card = {**card, "autoencoder": {**card["autoencoder"], **shared}}
    (folder / (WEIGHTS + ".tmp")).write_bytes(save(arrays))
    (folder / (WEIGHTS + ".tmp")).replace(folder / WEIGHTS)
    write_card(folder, card)


def _described(config, file, make):
    try:
        make(config)
    except Exception as error:  # values of any kind
        raise ValueError(f"{file} describes no network of ours: {printable(error)}") from error
