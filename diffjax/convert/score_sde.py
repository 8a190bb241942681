"""Checkpoints of the score-SDE code: NCSN++, DDPM++ and its DDPM, from torch and from the older Flax.

    net, params = score_sde.convert(files.read("checkpoint_24.pth")["model"]...)

torch names arrays by the module's number in the order of construction (`all_modules.7.Conv_0.weight`).
"""

import numpy as np

from ..nets import NCSNpp
from . import strict
from .strict import Entry, module, norm


def table(net):
    entries = [Entry(("label",), ("label_emb.weight",), "plain")] * bool(net.classes)
    for n, part in enumerate(net.parts()):
        entries += _part(net, part, f"all_modules.{n}")
    return entries


def _nin(path, *names):
    return [Entry((*path, "kernel"), tuple(f"{n}.W" for n in names), "plain"),
            Entry((*path, "bias"), tuple(f"{n}.b" for n in names), "plain")]  # fmt: skip


def _part(net, part, name):
    at = part.name
    if part.kind == "fourier":
        return [Entry((at, "frequencies"), (f"{name}.W",), "plain")]
    if part.kind == "dense":
        return module([at], name, "dense")
    if part.kind == "norm":
        return norm([at], name)
    if part.kind == "conv":
        return module([at], name, "conv")
    if part.kind == "attention":
        return [*norm([at, "norm"], f"{name}.GroupNorm_0"),
                *_nin([at, "qkv"], *(f"{name}.NIN_{n}" for n in range(3))), *_nin([at, "proj"], f"{name}.NIN_3")]  # fmt: skip
    if part.kind == "combine":
        return module([at], f"{name}.Conv_0", "dense2")
    if part.kind == "res":
        skip = module([at, "skip"], f"{name}.Conv_2", "dense2") if net.resblock == "biggan" else _nin([at, "skip"], f"{name}.NIN_0")
        return [*norm([at, "norm_1"], f"{name}.GroupNorm_0"), *module([at, "conv_1"], f"{name}.Conv_0", "conv"),
                *module([at, "embedding"], f"{name}.Dense_0", "dense"), *norm([at, "norm_2"], f"{name}.GroupNorm_1"),
                *module([at, "conv_2"], f"{name}.Conv_1", "conv"), *skip]  # fmt: skip
    inner = f"{name}.{'Conv2d_0' if net.fir else 'Conv_0'}"
    if net.fir and part.way == "up":
        return module([at], inner, "conv")
    return module([at, "conv"], inner, "conv")
