"""The network and schedule that a training configuration describes, and whether weights fit it.

Neither Flax nor a trace is needed to read a prior: the network is built at its first use, and a *signature* in the card
says that weights of these names and shapes have been compared with this network when they were saved.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import schedules
from ..base import nearest

BETAS = {"cosine": schedules.cosine_betas, "linear": schedules.linear_betas, "scaled_linear": schedules.scaled_linear_betas}
FORMULAS = {"vp": schedules.VP, "subvp": schedules.SubVP, "flow": schedules.RectifiedFlow}  # without numbers of their own
NETWORK = "width multipliers blocks attention heads groups patch scale_shift resblock_updown dropout remat".split()
NCSNPP = "width multipliers blocks attention patch dropout embedding fourier_scale progressive_input progressive".split()
NEEDED = ("size", "channels", "classes", "loss", "schedule", "T", *NETWORK)
WORDS = "vocabulary words boxes box_classes context depth encoder_layers".split()
NETWORKS = ("unet", "ncsnpp", "latent")


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
        raise ValueError(f"schedule {name!r} is unknown: {nearest(name, valid)}")
    if name == "ve":
        return schedules.VE(config["sigma_min"], config["sigma_max"])
    return FORMULAS[name]() if name in FORMULAS else schedules.discrete(BETAS[name](config["T"]))


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
    make = {"unet": nets.UNet, "ncsnpp": nets.NCSNpp}[network.kind]
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
    of = {"unet": NETWORK, "ncsnpp": ("network", "schedule", "sigma_data", *NCSNPP), "latent": ("network", *NETWORK, *WORDS)}
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
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"the configuration beside {weights} is of a network that cannot be built: {error}") from None
    wanted = {".".join(path): shape for path, shape in wanted.items()}
    missing = [name for name in wanted if name not in shapes]
    left_over = [name for name in shapes if name not in wanted]
    wrong = [f"{n} {tuple(shapes[n])} (wanted {wanted[n]})" for n in wanted if n in shapes and tuple(shapes[n]) != wanted[n]]
    found = [f"{label}: {', '.join(some[:8])}{f' and {len(some) - 8} more' if len(some) > 8 else ''}" for label, some in
             (("missing", missing), ("left over", left_over), ("of another shape", wrong)) if some]  # fmt: skip
    if found:
        raise ValueError(f"weights {weights} are of another architecture than {strict.describe(net)}: {'; '.join(found)}")
