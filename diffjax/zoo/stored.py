"""What lies in the folder of a prior or of a training run, piece by piece: weights, card, signature, words, averages."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..base import nearest
from ..wording import printable, some
from . import network
from .network import read_json

CARD, WEIGHTS = "card.json", "weights.safetensors"
SIGNATURE = "signature.txt"  # beside a training run's config.json; of a card it is an entry
WORDS = "vocabulary.json"  # likewise


class Assumed(UserWarning):
    """What a checkpoint does not say and was assumed, in one line."""


def write_vocabulary(folder: str | os.PathLike, entry: Mapping | None) -> None:
    """Keep the words of a training run's data in its folder, where there are any."""
    if entry is not None:
        (Path(folder) / WORDS).write_text(json.dumps(entry) + "\n", encoding="utf-8")


def read_vocabulary(folder: str | os.PathLike) -> dict:
    """The entry of a card for the words of a training run: {"vocabulary": ...}, or {}."""
    file = Path(folder) / WORDS
    return {"vocabulary": read_json(file)} if file.is_file() else {}


def packed(params, dtype) -> dict[str, np.ndarray]:
    """{names joined by ".": array} for a file. Raises ValueError if a weight does not fit into ``dtype`` or is not finite."""
    arrays = {}
    for key, leaf in network.flat(params["params"]).items():
        with np.errstate(over="ignore"):
            arrays[key] = np.ascontiguousarray(np.asarray(leaf, np.float32).astype(dtype))
        if not np.isfinite(arrays[key]).all():
            raise ValueError(f"weight {key} is not finite as {np.dtype(dtype).name}: use dtype=np.float32, "
                             "or another checkpoint")  # fmt: skip
    return arrays


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
