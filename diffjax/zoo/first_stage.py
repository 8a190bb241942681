"""Trained autoencoders of phase one: the network that a configuration describes, and its weights from a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from .. import autoencoder
from ..base import nearest
from . import network

CARD, WEIGHTS = "card.json", "autoencoder.safetensors"
LATENTS = "latents.npz"  # in the folder of a run of a latent prior
KINDS = ("kl", "vq")
FIELDS = "channels latent_channels width multipliers blocks attention middle groups".split()
PLAYERS = ("autoencoder", "discriminator")


def build(config: Mapping):
    """The network (``nets.AutoencoderKL`` or ``AutoencoderVQ``) of a configuration of phase one as a dict. Raises ValueError
    for what is missing or unknown."""
    from .. import nets

    missing = [k for k in ("kind", *FIELDS) if k not in config]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(missing)}: it is not one of an autoencoder")
    if config["kind"] not in KINDS:
        raise ValueError(f"autoencoder {config['kind']!r} is unknown: {nearest(config['kind'], KINDS)}")
    fields = {k: tuple(config[k]) if isinstance(config[k], list) else config[k] for k in FIELDS}
    if config["kind"] == "vq":
        return nets.AutoencoderVQ(codes=config["codes"], **fields)
    return nets.AutoencoderKL(**fields)


def from_config(config: Mapping, params, *, shift=0.0, scale=1.0) -> autoencoder.Autoencoder:
    """The ``Autoencoder`` of a configuration and its trained parameters."""
    return autoencoder.from_network(build(config), params, shift=shift, scale=scale)


def load(folder: str | os.PathLike, which="best") -> tuple[autoencoder.Autoencoder, dict]:
    """(autoencoder, its configuration) of the folder of a run of phase one (averaged weights of checkpoint ``which``) or of an
    exported prior. Raises ValueError, one line, for a folder that holds none."""
    from . import prior

    folder = Path(folder)
    if not folder.is_dir() and (prior._HERE / str(folder)).is_dir():
        folder = prior._HERE / str(folder)
    if (folder / CARD).is_file():
        entry = prior.read_json(folder / CARD).get("autoencoder")
        if not entry:
            raise ValueError(f"prior {folder} has no autoencoder, it is one of pixels: give the folder of a run of phase one")
        return read(folder, entry), entry["config"]
    if not (folder / "config.json").is_file():
        raise ValueError(f"autoencoder {folder} does not exist: train it first, diffjax train {folder.name}")
    config = prior.read_json(folder / "config.json")
    if config.get("phase") != "first":
        raise ValueError(f"{folder} is the run of a prior, not of an autoencoder: give the folder of a run of phase one")
    params, _ = prior.read_run(folder, which, player=PLAYERS[0])
    return from_config(config, params), config


def of_run(folder: Path, config: Mapping) -> tuple[autoencoder.Autoencoder | None, dict]:
    """(autoencoder, entry of the card) of a training run of a latent prior: shift and scale as measured on its data. (None,
    {}) for one of pixels. Raises ValueError if the autoencoder or the latents are not where the run left them."""
    if not config.get("autoencoder"):
        return None, {}
    from ..training import latents

    auto, about = load(config["autoencoder"])
    found = latents.load(folder / LATENTS, autoencoder=latents.fingerprint(auto))
    auto = found.normalise(auto)
    return auto, {"autoencoder": entry(auto, about)}


def entry(auto: autoencoder.Autoencoder, config: Mapping) -> dict:
    """What a card says of the autoencoder: its configuration, shift and scale."""
    numbers = {k: np.atleast_1d(np.asarray(getattr(auto, k), np.float64)).tolist() for k in ("shift", "scale")}
    return {"config": dict(config), **numbers}


def save(folder: Path, auto: autoencoder.Autoencoder, dtype=np.float16) -> dict:
    """Write the weights beside a card; where a bundled prior has the very same, nothing is written. -> {"weights_of": its
    name} for the card, or {}. Raises ValueError if a weight does not fit into ``dtype``."""
    from safetensors.numpy import save

    from . import prior

    made = save(prior.packed(auto.params, dtype))
    for same in sorted(prior._HERE.glob(f"*/{WEIGHTS}")):
        if same.parent.name != folder.name and same.read_bytes() == made:
            return {"weights_of": same.parent.name}
    (folder / (WEIGHTS + ".tmp")).write_bytes(made)
    (folder / (WEIGHTS + ".tmp")).replace(folder / WEIGHTS)
    return {}


def read(folder: Path, entry: Mapping) -> autoencoder.Autoencoder:
    """The autoencoder of a folder whose card has this entry. ValueError if weights are missing, damaged or of another
    network."""
    from . import prior

    if "weights_of" in entry:
        folder = prior._HERE / network.safe_name(entry["weights_of"])
    leaves = {k: a.astype(np.float32) for k, a in prior.read_arrays(folder / WEIGHTS).items()}
    net = build(entry["config"])
    size, channels = entry["config"]["size"], entry["config"]["channels"]
    wanted = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((size, size, channels), np.float32))
    shapes = {k: tuple(a.shape) for k, a in network.flat(wanted["params"]).items()}
    odd = sorted(set(shapes.items()) ^ {(k, a.shape) for k, a in leaves.items()})
    if odd:
        raise ValueError(f"weights {folder / WEIGHTS} are of another autoencoder than its card: {odd[0][0]} differs, "
                         f"and {len({k for k, _ in odd}) - 1} more; copy the folder again")  # fmt: skip
    if bad := [k for k, a in leaves.items() if not np.isfinite(a).all()]:
        raise ValueError(f"weights {folder / WEIGHTS} are not finite in {bad[0]}: the file is damaged, copy it again")
    number = lambda k: np.asarray(entry[k], np.float32)
    params = {"params": network.nested(jax.device_put(leaves))}
    return autoencoder.from_network(net, params, shift=number("shift"), scale=number("scale"))
