"""What the official code trains first stages with: the patch discriminator and LPIPS on VGG16 (taming-transformers' names)."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from ..nets.discriminator import PatchDiscriminator
from ..nets.vgg import DEPTHS, SCALE, SHIFT, VGGDistance
from . import strict
from .strict import Entry, module

COUNTERS = ("num_batches_tracked", "initialized")  # of norms; nothing is computed with them


def within(state, prefix):
    """The arrays under a prefix such as "loss.discriminator.", without it; all of them where none has it."""
    found = {name.removeprefix(prefix): a for name, a in state.items() if name.startswith(prefix)}
    return found or dict(state)


# --- discriminator --------------------------------------------------------------------------------------------------


def _discriminator_table(net):
    batch = net.norm == "batch"
    entries, at = [*module(["conv_0"], "main.0", "conv")], 2
    for n in range(1, net.layers + 1):
        entries += module([f"conv_{n}"], f"main.{at}", "conv")
        for ours, theirs in (("scale", "weight"), ("bias", "bias")) if batch else (("loc", "loc"), ("scale", "scale")):
            entries.append(Entry((f"norm_{n}", ours), (f"main.{at + 1}.{theirs}",), "plain"))
        at += 3
    return [*entries, *module([f"conv_{net.layers + 1}"], f"main.{at}", "conv")]


def _stats_names(net):
    return [(f"norm_{n}", f"main.{3 * n}") for n in range(1, net.layers + 1)] if net.norm == "batch" else []


def discriminator(state, dtype=np.float32):
    """(net, variables) of an `NLayerDiscriminator`'s state dict: {"params": ...} and, with batch norm, {"stats": ...}.

    Names may begin with ``loss.discriminator.`` or ``discriminator.``. A ValueError lists everything that does not fit.
    """
    for prefix in ("loss.discriminator.", "discriminator."):
        state = within(state, prefix)
    state = {name: a for name, a in state.items() if not name.endswith(COUNTERS)}
    state = {name: a.reshape(-1) if name.endswith((".loc", ".scale")) else a for name, a in state.items()}
    numbers = [int(m[1]) for m in (re.match(r"main\.(\d+)\.", name) for name in state) if m]
    if not numbers:
        raise ValueError("this is no checkpoint of a patch discriminator: it has no main.*")
    width = strict.vote(state, ("main.0.weight", 0), ("main.0.bias", 0), ("main.2.weight", 1)) or 64
    norm = "act" if any(name.endswith(".loc") for name in state) else "batch"
    net = PatchDiscriminator(width, max(1, (max(numbers) - 2) // 3), norm)
    channels, side = strict.vote(state, ("main.0.weight", 1)) or 3, 2 ** (net.layers + 3)
    shapes = strict.shapes(net, jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32))
    stats = {(ours, kind): f"{theirs}.running_{kind}" for ours, theirs in _stats_names(net) for kind in ("mean", "var")}
    table = strict.used(_discriminator_table(net), shapes)
    wanted = strict.expected(table, shapes) | {name: shapes[ours, "scale"] for (ours, _), name in stats.items()}
    strict.check(state, wanted, net)
    params = strict.to_params({n: a for n, a in state.items() if n not in stats.values()}, table, shapes, net, dtype)
    if not stats:
        return net, dict(params)
    running = {}
    for (ours, kind), name in stats.items():
        running.setdefault(ours, {})[kind] = jnp.asarray(state[name], dtype)
    return net, {**params, "stats": running}


def discriminator_to_state(net, variables):
    """The way back, without the counters."""
    state = strict.to_state({"params": variables["params"]}, _discriminator_table(net))
    state = {name: a.reshape(1, -1, 1, 1) if name.endswith((".loc", ".scale")) else a for name, a in state.items()}
    for ours, theirs in _stats_names(net):
        state |= {f"{theirs}.running_{kind}": np.asarray(variables["stats"][ours][kind]) for kind in ("mean", "var")}
    return state


# --- LPIPS ----------------------------------------------------------------------------------------------------------


def _vgg_names():
    """(part, number, index in torchvision's list of layers) of each convolution."""
    index = 0
    for part, depth in enumerate(DEPTHS):
        index += bool(part)  # a pooling
        for n in range(depth):
            yield part, n, index
            index += 2  # and its ReLU


def _vgg_table():
    entries = []
    for part, n, index in _vgg_names():
        entries += module([f"conv_{part}_{n}"], f"net.slice{part + 1}.{index}", "conv")
    return entries + [Entry((f"head_{part}",), (f"lin{part}.model.1.weight",), "plain") for part in range(len(DEPTHS))]


def vgg_lpips(state, dtype=np.float32):
    """(net, params) of LPIPS on VGG16: taming's state dict, whose names may begin with ``loss.perceptual_loss.`` or
    ``perceptual_loss.``; or the heads (``lin0.model.1.weight`` ...) and torchvision's ``features.0.weight`` ... in one dict.

    A ValueError lists everything that does not fit.
    """
    for prefix in ("loss.perceptual_loss.", "perceptual_loss."):
        state = within(state, prefix)
    places = {f"features.{index}.": f"net.slice{part + 1}.{index}." for part, _, index in _vgg_names()}
    renamed = {}
    for name, array in state.items():
        stem, _, leaf = name.rpartition(".")
        if name.startswith("classifier."):
            continue  # torchvision's last layers, which no distance uses
        if name in ("scaling_layer.shift", "scaling_layer.scale"):
            wanted = SHIFT if name.endswith("shift") else SCALE
            if not np.allclose(np.ravel(array), wanted, atol=1e-3):
                raise ValueError(f"{name} is {np.ravel(array).tolist()}: LPIPS has {list(wanted)}")
            continue
        array = array.reshape(-1) if re.fullmatch(r"lin\d\.model\.1", stem) else array
        renamed[places.get(f"{stem}.", f"{stem}.") + leaf] = array
    table = _vgg_table()
    widths = tuple(
        strict.vote(renamed, *((f"net.slice{part + 1}.{index}.{leaf}", 0) for p, _, index in _vgg_names() if p == part
                               for leaf in ("weight", "bias")), (f"lin{part}.model.1.weight", 0)) or 64
        for part in range(len(DEPTHS))
    )  # fmt: skip
    net = VGGDistance(widths)
    image = jax.ShapeDtypeStruct((32, 32, 3), jnp.float32)
    return net, strict.to_params(renamed, table, strict.shapes(net, image, image), net, dtype)
