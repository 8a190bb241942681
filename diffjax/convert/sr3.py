"""Checkpoints of the public SR3 code (`I640000_E37_gen.pth` and the like) and of the DDPM in the same repository.

    parts = sr3.split(files.read("I640000_E37_gen.pth"))
    net, params = sr3.convert(parts.network)              # groups=... where nobody published the network
    schedule = schedules.discrete(parts.betas)            # what it was saved with; any other may be used when sampling

A file is a flat dict: the network under `denoise_fn.` and the buffers of a schedule. There are no averages in it. Read from
the names and shapes: widths, levels, blocks, attention, channels, what the network is told. Groups of the norms are not to be
seen: they are those of the published configuration that fits, or must be given. `dropout` does not matter for sampling.

Source: Saharia et al. 2021, arXiv:2104.07636; names of Janspiry/Image-Super-Resolution-via-Iterative-Refinement.
"""

from typing import Any, NamedTuple

import numpy as np

from ..nets import SR3UNet
from . import strict
from .latent import SCHEDULE
from .strict import module, norm

NETWORK = "denoise_fn."
FREQUENCIES = "time_mlp.0.inv_freq"  # a buffer of the "index" variant
MLP = {"level": "noise_level_mlp", "index": "time_mlp"}
TOLD = {"level": "noise_func.noise_func.0", "index": "mlp.1"}  # of a block
# side of the training images, and what no array shows
_SMALL = {"width": 64, "multipliers": (1, 2, 4, 8, 8), "blocks": 2, "attention": (8,)}
PUBLISHED = {
    "16 to 128": (_SMALL, {"groups": 32}, 128),
    "64 to 512": ({"width": 64, "multipliers": (1, 2, 4, 8, 16), "blocks": 1, "attention": ()}, {"groups": 16}, 512),
}


class Parts(NamedTuple):
    """network: {name: array} without the prefix; betas (T,) of the schedule in the file, or None; told: "level" or "index"."""

    network: dict
    betas: Any = None
    told: str = "level"


def split(state) -> Parts:
    """The parts of a whole file, or of the network alone. Raises ValueError for names that belong to neither."""
    whole = any(name.startswith(NETWORK) for name in state)
    inside = {name.removeprefix(NETWORK): a for name, a in state.items() if name.startswith(NETWORK)} if whole else dict(state)
    unknown = [name for name in state if not name.startswith(NETWORK) and name not in SCHEDULE] if whole else []
    if unknown:
        raise ValueError(f"these arrays belong to no part of an SR3 checkpoint: {strict.some(unknown)}")
    if "downs.0.weight" not in inside and "downs.0.bias" not in inside:
        raise ValueError("this is no checkpoint of the SR3 code: it has no downs.0")
    betas = state.get("betas") if whole else None
    return Parts(inside, None if betas is None else np.asarray(betas, np.float64), _told(inside) or "level")


# --- configuration --------------------------------------------------------------------------------------------------


def from_config(*, in_channel=6, out_channel=3, inner_channel=32, norm_groups=32, channel_mults=(1, 2, 4, 8, 8), attn_res=(8,),
                res_blocks=3, dropout=0.0, image_size=128, with_noise_level_emb=True, told="level"):  # fmt: skip
    """Our fields from the arguments of the official UNet. The channels beyond ``out_channel`` are the condition's.

    attn_res: sides in pixels, counted from ``image_size``, the side of the training images; 8 alone is understood as (8,).
    told: "level" for `sr3_modules`, "index" for `ddpm_modules` of that code.
    Raises ValueError for fewer channels in than out, and for sides that the network never reaches.
    """
    sides = (attn_res,) if isinstance(attn_res, int) else tuple(attn_res)
    reached = [image_size // 2**level for level in range(len(channel_mults))]
    if in_channel < out_channel:
        raise ValueError(f"in_channel={in_channel} is less than out_channel={out_channel}: the image itself has those")
    return {
        "out_channels": out_channel, "width": inner_channel, "multipliers": tuple(channel_mults), "blocks": res_blocks,
        "attention": tuple(2**level for level, side in enumerate(reached) if side in sides), "groups": norm_groups,
        "dropout": dropout, "condition": in_channel - out_channel, "told": told if with_noise_level_emb else None,
    }  # fmt: skip


def _told(state):
    return next((told for told, name in MLP.items() if any(key.startswith(f"{name}.") for key in state)), None)


def _entries(state, way):
    """[{name below: shape}] of `downs` or `ups`, by number."""
    below = {}
    for name, array in state.items():
        top, *rest = name.split(".")
        if top == way and len(rest) > 1 and rest[0].isdecimal():
            below.setdefault(strict.number(rest[0], state), {})[".".join(rest[1:])] = array.shape
    return [below.get(n, {}) for n in range(max(below, default=-1) + 1)]


def config_from_state(state, **hints):
    """The fields of an `SR3UNet` that a network's state dict shows; ``hints`` are fields that win over what is read.

    Raises ValueError where they cannot be read, and where ``groups`` is neither given nor that of a published network.
    """
    entries = _entries(state, "downs")[1:]
    change = [n for n, names in enumerate(entries) if "conv.weight" in names or "conv.bias" in names]
    blocks = change[0] if change else len(entries)
    levels = len(change) + 1
    if not blocks or len(entries) != levels * blocks + len(change):
        raise ValueError(f"{len(entries)} entries of downs.*, {len(change)} of which halve the sides, are no such network: "
                         "the state dict is cut short or of another family")  # fmt: skip
    starts = [level * (blocks + 1) for level in range(levels)]
    width = strict.vote(state, ("downs.0.weight", 0), ("downs.0.bias", 0))
    of = lambda n, *where: strict.vote(state, *((f"downs.{n + 1}.res_block.{name}", 0) for name in where))
    widths = [of(n, "block2.block.3.bias", "block2.block.0.bias", "block1.block.3.bias") or width for n in starts]
    out = strict.vote(state, ("final_conv.block.3.bias", 0), ("final_conv.block.3.weight", 0)) or 3
    channels = strict.vote(state, ("downs.0.weight", 1)) or out
    found = {
        "out_channels": out,
        "width": width,
        "multipliers": tuple(w // width if w % width == 0 else w / width for w in widths),
        "blocks": blocks,
        "attention": tuple(2**k for k, n in enumerate(starts) if any(name.startswith("attn.") for name in entries[n])),
        "condition": max(channels - out, 0),
        "told": _told(state),
    } | hints
    if "groups" not in found:
        name = published(found)
        if name is None:
            raise ValueError("a state dict does not show the groups of its norms, and no published network is like this one: "
                             "give groups=... (norm_groups of its configuration, 32 where it has none)")  # fmt: skip
        found |= PUBLISHED[name][1]
    return found


def published(fields):
    """The name of the published network with these fields; None where there is none."""
    return next((name for name, (own, *_) in PUBLISHED.items() if all(fields[k] == v for k, v in own.items())), None)


# --- names ----------------------------------------------------------------------------------------------------------


def table(net):
    """Entries of every array that a network with DDPM's blocks can have. Raises ValueError for the paper's blocks."""
    if net.resblock_updown or not net.conv_resample or net.patch > 1 or net.told is None:
        raise ValueError(f"the public code has no such network: {strict.describe(net)}")
    entries = [*module(["conv_in"], "downs.0", "conv"), *norm(["norm_out"], "final_conv.block.0")]
    entries += module(["conv_out"], "final_conv.block.3", "conv")
    entries += module(["time_0"], f"{MLP[net.told]}.1", "dense") + module(["time_1"], f"{MLP[net.told]}.3", "dense")
    ups = [[part for part in entry if part.kind != "up"] for entry in net.up_path()]
    flat = []  # an upsampling layer is an entry of its own
    for entry, parts in zip(net.up_path(), ups):
        flat += [parts] + [[part] for part in entry if part.kind == "up"]
    first, attention, last = net.middle_path()
    for way, paths in (("downs", net.down_path()), ("mid", [[first, attention], [last]]), ("ups", flat)):
        for n, path in enumerate(paths):
            entries += [entry for part in path for entry in _part(net, part, f"{way}.{n}")]
    return entries


def _part(net, part, name):
    at = part.name
    if part.kind == "conv":
        return []
    if part.kind in ("down", "up"):
        return module([at, "conv"], f"{name}.conv", "conv")
    if part.kind == "attention":
        own = norm([at, "norm"], f"{name}.attn.norm") + module([at, "qkv"], f"{name}.attn.qkv", "dense2", bias=False)
        return own + module([at, "proj"], f"{name}.attn.out", "dense2")
    block = f"{name}.res_block"
    return [
        *norm([at, "norm_1"], f"{block}.block1.block.0"),
        *module([at, "conv_1"], f"{block}.block1.block.3", "conv"),
        *module([at, "embedding"], f"{block}.{TOLD[net.told]}", "dense"),
        *norm([at, "norm_2"], f"{block}.block2.block.0"),
        *module([at, "conv_2"], f"{block}.block2.block.3", "conv"),
        *module([at, "skip"], f"{block}.res_conv", "dense2"),
    ]


# --- conversion -----------------------------------------------------------------------------------------------------


def frequencies(net):
    """The buffer of the "index" variant: what its embedding multiplies the index by."""
    return (1e-4 ** (np.arange(0, net.width, 2) / net.width)).astype(np.float32)


def params_from_state(net, state, dtype=np.float32):
    """Parameters of `net` from the state dict of the network; a ValueError lists everything that does not fit."""
    strict.check_size(net, state)
    if net.told == "index" and FREQUENCIES in state:
        found = np.asarray(state[FREQUENCIES], np.float64)
        if found.shape != frequencies(net).shape or not np.allclose(found, frequencies(net), rtol=1e-3):
            raise ValueError(f"{FREQUENCIES} of shape {found.shape} are not the frequencies of {strict.describe(net)}")
        state = {name: a for name, a in state.items() if name != FREQUENCIES}
    channels = (strict.vote(state, ("downs.0.weight", 1)) or net.out_channels + net.condition) - net.condition
    size = 2 ** (len(net.multipliers) - 1)
    x, t, *_ = strict.image_inputs(net, size, max(channels, 1))
    return strict.to_params(state, table(net), strict.shapes(net, x, t, net.blank(x)), net, dtype)


def convert(state, dtype=np.float32, **hints):
    """(net, params) of a whole file's state dict or of the network alone; hints are fields of `SR3UNet`, which win."""
    state = split(state).network
    net = SR3UNet(**config_from_state(state, **hints))
    return net, params_from_state(net, state, dtype)


def to_state(net, params):
    """The network's official state dict (numpy arrays, torch's layouts and names) of our parameters."""
    state = strict.to_state(params, table(net))
    return state | ({FREQUENCIES: frequencies(net)} if net.told == "index" else {})
