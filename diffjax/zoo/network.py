"""The network and schedule that a training configuration describes, and whether weights fit it.

Neither Flax nor a trace is needed to read a prior: the network is built at its first use, and a *signature* in the card
says that weights of these names and shapes have been compared with this network when they were saved.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import schedules, wording
from ..base import nearest
from ..wording import printable, some
from . import beside

BETAS = {"cosine": schedules.cosine_betas, "linear": schedules.linear_betas, "scaled_linear": schedules.scaled_linear_betas}
FORMULAS = {"vp": schedules.VP, "subvp": schedules.SubVP, "flow": schedules.RectifiedFlow}  # without numbers of their own
NETWORK = "width multipliers blocks attention heads groups patch scale_shift resblock_updown dropout remat".split()
NCSNPP = "width multipliers blocks attention patch dropout embedding fourier_scale progressive_input progressive".split()
NEEDED = ("size", "channels", "classes", "loss", "schedule", "T", *NETWORK)
NETWORKS = ("unet", "ncsnpp", "latent", "concat", "sr3")
BESIDE = ("concat", "sr3")  # told a measurement beside their input
LOSSES = ("v", "x0", "eps", "score", "velocity", "hybrid")
# whole numbers of a configuration: from, to. More is no network of ours, and building it would not end
WHOLE = {"size": (1, 8192), "channels": (1, 1024), "classes": (0, 10**6), "T": (1, 100_000), "width": (1, 2**16),
         "blocks": (1, 100), "heads": (1, 2**16), "groups": (1, 2**16), "patch": (1, 256)}  # fmt: skip
WORDS = {"vocabulary": (0, 2**20), "words": (0, 2**12), "boxes": (0, 2**12), "box_classes": (0, 2**20), "context": (1, 2**16),
         "depth": (1, 100), "encoder_layers": (0, 100)}  # fmt: skip


def build(config: Mapping):
    """-> (net, schedule) of a training configuration as a dict. Raises ValueError for what is missing or does not fit."""
    return Network.of(config).module, build_schedule(config)


def build_schedule(config: Mapping):
    """The schedule of a training configuration. Raises ValueError, in one line, if an entry is missing or unknown."""
    missing = [k for k in NEEDED if k not in config]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(missing)}: it is not one of a training run")
    name, valid = config["schedule"], [*BETAS, *FORMULAS, "ve"]
    if name not in valid:
        raise ValueError(f"schedule {printable(name, 40)!r} is unknown: {nearest(str(name)[:40], valid)}")
    check_numbers(config)
    if name == "ve":
        return schedules.VE(config["sigma_min"], config["sigma_max"])
    return FORMULAS[name]() if name in FORMULAS else schedules.discrete(BETAS[name](config["T"]))


def check_numbers(config: Mapping) -> None:
    """The one door for what a card or a run's configuration says: kinds of values and their ranges. Raises ValueError."""
    told = {"latent": WORDS, **{kind: {"condition_channels": (1, 1024)} for kind in BESIDE}}.get(config.get("network"), {})
    for name, (least, most) in (WHOLE | told).items():
        value = config.get(name)
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{name} {printable(value, 40)} is out of range: use a whole number from {least} to {most}")
    if config["loss"] not in LOSSES:
        raise ValueError(f"loss {printable(config['loss'], 40)!r} is unknown: {nearest(str(config['loss'])[:40], LOSSES)}")
    for name, most in (("multipliers", 64), ("attention", 2**15)):
        values = config[name]
        plain = isinstance(values, list | tuple) and all(type(v) in (int, float) and 0 < v <= most for v in values)
        if not plain or len(values) > 16 or (name == "multipliers" and not values):
            raise ValueError(f"{name} {printable(values, 40)}: use up to 16 numbers above 0, for example 1,2,4")
    if type(config["dropout"]) not in (int, float) or not 0 <= config["dropout"] < 1:
        raise ValueError(f"dropout {printable(config['dropout'], 40)} is out of range: use 0 or more, below 1")


def safe_name(name) -> str:
    """A name from a file as the name of a file: letters, digits and ``. + @ - _``, never a path."""
    return re.sub(r"[^\w.+@-]+", "-", str(name)[:200]).strip(".-")[:80] or "prior"


def read_json(file) -> dict:
    """The object in a JSON file; ValueError, one line, if there is none."""
    value = wording.read_json(file)
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds no JSON object: copy it again")
    return value


@dataclasses.dataclass(frozen=True)
class Network:
    """A ``nets.UNet`` or ``NCSNpp`` by its fields, built (and Flax imported) when it is first used. Compared by value, as
    modules are."""

    fields: tuple
    bfloat16: bool = False
    kind: str = "unet"

    @classmethod
    def of(cls, config: Mapping) -> Network:
        build_schedule(config)
        kind = config.get("network", "unet")
        if kind not in NETWORKS:
            raise ValueError(f"network {kind!r} is unknown: {nearest(kind, NETWORKS)}")
        if kind == "ncsnpp":
            fields = _ncsnpp(config)
        else:
            fields = {k: tuple(config[k]) if isinstance(config[k], list) else config[k] for k in NETWORK}
        if kind in BESIDE:
            beside.factor(config["condition"])
            if config["classes"]:
                raise ValueError(f"network {kind} takes a picture as its condition, no label: use classes 0")
            told = "level" if kind == "sr3" else "index"
            fields |= {"condition": config["condition_channels"], "told": told, "rescale": bool(config.get("rescale"))}
        if kind == "latent":
            if not (config["vocabulary"] and config["words"]) and not (config["boxes"] and config["box_classes"]):
                raise ValueError("network latent reads words or boxes: set vocabulary and words, or boxes and box_classes")
            fields |= {k: config[k] for k in WORDS}
        fields |= {
            "out_channels": config["channels"] * (2 if config["loss"] == "hybrid" else 1),
            "classes": config["classes"] or None,
            "null_label": bool(config["classes"]),
        }
        return cls(tuple(sorted(fields.items())), bool(config.get("bfloat16")), kind)

    @property
    def module(self):
        """The Flax module."""
        return _module(self)

    def apply(self, *args, **kwargs):
        return self.module.apply(*args, **kwargs)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.module, name)


def _ncsnpp(config: Mapping) -> dict:
    """Fields of ``nets.NCSNpp``: for the score of noise levels it divides by them, one way or the other."""
    fields = {k: tuple(config[k]) if isinstance(config[k], list) else config[k] for k in NCSNPP}
    fields |= {k: None if config[k] == "none" else config[k] for k in ("progressive_input", "progressive")}
    data = config["sigma_data"] or None
    scaled = config["loss"] == "score" and config["schedule"] == "ve" and not data
    return fields | {"sigma_data": data, "scale_by_sigma": scaled}


@functools.lru_cache(maxsize=32)
def _module(network: Network):
    import jax.numpy as jnp

    from .. import nets

    dtype, fields = jnp.bfloat16 if network.bfloat16 else None, dict(network.fields)
    if network.kind == "latent":
        told = {k: fields.pop(k) for k in WORDS}
        reader = nets.TokenEncoder(told["context"], told["vocabulary"], told["words"], told["box_classes"],
                                   told["encoder_layers"], dtype=dtype)  # fmt: skip
        net = nets.LatentUNet(dtype=dtype, context=told["context"], depth=told["depth"], **fields)
        return nets.Conditioned(net, reader)
    make = {"unet": nets.UNet, "ncsnpp": nets.NCSNpp, "concat": nets.SR3UNet, "sr3": nets.SR3UNet}[network.kind]
    return make(dtype=dtype, **fields)


# --- do weights fit? ------------------------------------------------------------------------------------------------


def flat(tree: Mapping, path: tuple = ()) -> dict[str, Any]:
    """{names joined by ".": leaf} of nested dicts."""
    leaves = {}
    for name, value in tree.items():
        leaves |= flat(value, (*path, name)) if isinstance(value, Mapping) else {".".join((*path, name)): value}
    return leaves


def nested(leaves: Mapping[str, Any]) -> dict:
    """The way back."""
    tree: dict = {}
    for name, leaf in leaves.items():
        *folders, last = name.split(".")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[last] = leaf
    return tree


def signature(config: Mapping, shapes: Mapping[str, tuple]) -> str:
    """A fingerprint of a network's configuration together with the names and shapes of weights that fit it."""
    of = {"unet": NETWORK, "ncsnpp": ("network", "schedule", "sigma_data", *NCSNPP), "latent": ("network", *NETWORK, *WORDS),
          **dict.fromkeys(BESIDE, ("network", "condition", "condition_channels", "rescale", *NETWORK))}  # fmt: skip
    names = of[config.get("network", "unet")]
    network = [config.get(k) for k in ("size", "channels", "classes", "loss", *names)]
    text = json.dumps([network, sorted((name, list(shape)) for name, shape in shapes.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check(config: Mapping, shapes: Mapping[str, tuple], weights: str | Path) -> None:
    """Raise one ValueError that lists all weights that are missing, left over or of another shape than the network wants.

    The network is traced for this, which takes a second with a fresh Python. weights: where they are from, for the message.
    """
    from ..convert import strict

    net, _ = build(config)
    try:
        wanted = strict.shapes(net, *strict.image_inputs(net, config["size"], config["channels"]))
    except Exception as error:  # flax and jax have kinds of their own
        raise ValueError(
            f"the configuration beside {weights} is of a network that cannot be built: {printable(error)}"
        ) from error
    wanted = {".".join(path): shape for path, shape in wanted.items()}
    missing = [name for name in wanted if name not in shapes]
    left_over = [name for name in shapes if name not in wanted]
    wrong = [
        f"{printable(n, 80)} {tuple(shapes[n])} (wanted {wanted[n]})"
        for n in wanted
        if n in shapes and tuple(shapes[n]) != wanted[n]
    ]
    found = [f"{label}: {some(names, width=160)}" for label, names in
             (("missing", missing), ("left over", left_over), ("of another shape", wrong)) if names]  # fmt: skip
    if found:
        raise ValueError(f"weights {weights} are of another architecture than {strict.describe(net)}: {'; '.join(found)}")
