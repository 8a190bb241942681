"""The network that enlarges MR volumes, and its card."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np

from .. import schedules
from . import network
from .network import read_json
from .prior import read_arrays

_FOLDER = Path(__file__).parent / "weights"
WEIGHTS, CARD = "mri_sr_fp16.safetensors", "mri_sr.json"


def mri_sr(folder=None):
    """The shipped :class:`diffjax.volumes.Enlarger` of MR volumes: PartDiff, x2 and x4, in-plane and through-plane, about 0.27
    million values, 0.5 MB (float16). Origin and licences: ``.card``, and CREDITS-mri-sr.md beside the file.

    folder: of another one, with ``mri_sr.json`` and ``mri_sr_fp16.safetensors``, as ``experiments.mri_sr export`` writes it
    Raises ValueError, one line, for missing or damaged files, and weights of another network. Needs safetensors and flax.
    """
    from ..nets.local import LocalUNet
    from ..volumes import Enlarger

    folder = _FOLDER if folder is None else Path(folder)
    card = read_json(folder / CARD)
    leaves = read_arrays(folder / WEIGHTS)
    try:
        net = LocalUNet(width=int(card["width"]), multipliers=tuple(int(m) for m in card["multipliers"]))
        schedule = schedules.discrete(np.linspace(*(float(b) for b in card["betas"]), int(card["T"])))
        K = None if card["K"] is None else float(card["K"])
        cut = np.zeros((net.multiple, net.multiple, 1), np.float32)
        wanted = jax.eval_shape(net.init, jax.random.key(0), cut, np.float32(0), cut)["params"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / CARD} describes no network of ours ({error}): copy it again") from None
    shapes = {name: a.shape for name, a in network.flat(wanted).items()}
    if shapes != {name: a.shape for name, a in leaves.items()} or not all(np.isfinite(a).all() for a in leaves.values()):
        raise ValueError(f"{folder / WEIGHTS} does not hold the weights of its card: copy both again")
    params = network.nested(jax.device_put({name: np.asarray(a, np.float32) for name, a in leaves.items()}))
    return Enlarger({"params": params}, net, schedule, K, card)


def save_mri_sr(folder, params, card) -> None:
    """Write what :func:`mri_sr` reads: params of ``LocalUNet``, and a card with width, multipliers, betas, T and K."""
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = {name: np.ascontiguousarray(np.asarray(a, np.float32).astype(np.float16))
              for name, a in network.flat(params["params"]).items()}  # fmt: skip
    save_file(leaves, folder / WEIGHTS)
    (folder / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
