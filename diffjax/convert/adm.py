"""Checkpoints of openai/guided-diffusion (UNet, SuperRes, classifier) and openai/improved-diffusion (UNet).

    state = files.read("256x256_diffusion_uncond.pt")
    net, params = adm.convert(state, head_channels=64)

Read from the state dict: widths, levels, blocks, attention, classes, resampling, scale-shift, output channels, pooling.
It does not show how channels are shared among heads, their order and the groups of the norms: `heads` or
`head_channels` must be given; `qkv_order="legacy"`, `groups=32` are the official defaults.

Sources: Dhariwal and Nichol 2021, arXiv:2105.05233; Nichol and Dhariwal 2021, arXiv:2102.09672.
"""

import difflib
import math

import jax
import jax.numpy as jnp
import numpy as np

from ..nets import Encoder, SuperRes, UNet
from . import strict
from .strict import Entry, module, norm
from .transformer import entries as transformer

# official constructor arguments -> our fields; None: says nothing about the parameters or the function
FLAGS = {
    "model_channels": "width", "channel_mult": "multipliers", "num_res_blocks": "blocks", "num_heads": "heads",
    "attention_resolutions": "attention", "num_head_channels": "head_channels", "num_heads_upsample": "heads_upsample",
    "use_new_attention_order": "qkv_order", "use_scale_shift_norm": "scale_shift", "num_classes": "classes",
    "resblock_updown": "resblock_updown", "conv_resample": "conv_resample", "out_channels": "out_channels",
    "dropout": "dropout", "pool": "pool", "image_size": None, "in_channels": None, "use_checkpoint": None,
    "use_fp16": None, "dims": None,
}  # fmt: skip


def from_flags(**flags):
    """Our fields from the arguments of the official constructors (`model_channels=128, num_head_channels=64, ...`)."""
    fields = {}
    for flag, value in flags.items():
        if flag not in FLAGS:
            near = difflib.get_close_matches(flag, FLAGS, n=1, cutoff=0.0)[0]
            raise ValueError(f"{flag}={value!r} is no argument of the ADM networks; nearest: {near}")
        if FLAGS[flag] and value not in (-1, None):  # -1: "not used"
            fields[FLAGS[flag]] = tuple(value) if isinstance(value, list | tuple) else value
    if "qkv_order" in fields:
        fields["qkv_order"] = "new" if fields["qkv_order"] else "legacy"
    return fields


# --- names ----------------------------------------------------------------------------------------------------------


def table(net):
    """Entries of every array the family can have; `strict.used` keeps those of this network."""
    entries = [*module(["time_0"], "time_embed.0", "dense"), *module(["time_1"], "time_embed.2", "dense")]
    entries += [Entry(("label",), ("label_emb.weight",), "plain")]
    encoder = isinstance(net, Encoder)
    paths = [("input_blocks.{}", net.down_path()), ("middle_block", [net.middle_path()])]
    paths += [] if encoder else [("output_blocks.{}", net.up_path())]
    for prefix, path in paths:
        for i, entry in enumerate(path):
            for j, part in enumerate(entry):
                entries += _part(part, f"{prefix.format(i)}.{j}")
    return entries + (_head(net.pool) if encoder else norm(["norm_out"], "out.0") + module(["conv_out"], "out.2", "conv"))


def _part(part, name):
    at = part.name
    if part.kind == "conv":
        return module([at], name, "conv")
    if part.kind in ("down", "up"):
        return module([at, "conv"], f"{name}.{'op' if part.kind == 'down' else 'conv'}", "conv")
    if part.kind == "transformer":
        return transformer(at, name, part.depth)
    if part.kind == "attention":
        return [
            *norm([at, "norm"], f"{name}.norm"),
            *module([at, "qkv"], f"{name}.qkv", "dense1"),
            *module([at, "proj"], f"{name}.proj_out", "dense1"),
        ]
    return [
        *norm([at, "norm_1"], f"{name}.in_layers.0"),
        *module([at, "conv_1"], f"{name}.in_layers.2", "conv"),
        *module([at, "embedding"], f"{name}.emb_layers.1", "dense"),
        *norm([at, "norm_2"], f"{name}.out_layers.0"),
        *module([at, "conv_2"], f"{name}.out_layers.3", "conv"),
        *module([at, "skip"], f"{name}.skip_connection", "dense2"),
    ]


def _head(pool):
    if pool == "attention":
        position = Entry(("pool", "position"), ("out.2.positional_embedding",), "matrix")
        return [
            *norm(["norm_out"], "out.0"),
            position,
            *module(["pool", "qkv"], "out.2.qkv_proj", "dense1"),
            *module(["pool", "proj"], "out.2.c_proj", "dense1"),
        ]
    if pool == "adaptive":
        return [*norm(["norm_out"], "out.0"), *module(["logits"], "out.3", "dense2")]
    dense = module(["dense_out"], "out.0", "dense")
    if pool == "spatial":
        return [*dense, *module(["logits"], "out.2", "dense")]
    return [*dense, *norm(["norm_out"], "out.1"), *module(["logits"], "out.3", "dense")]


# --- configuration --------------------------------------------------------------------------------------------------


def _entries(state, prefix):
    """{i: {j: names below}} of PREFIX.i.j.*"""
    found = {}
    for name in state:
        parts = name.split(".")
        if parts[0] == prefix and len(parts) > 3 and parts[1].isdigit():
            found.setdefault(int(parts[1]), {}).setdefault(parts[2], set()).add(".".join(parts[3:]))
    return found


def _resampling(down):
    """(entries of strided convolutions, numbers without any parameter: plain pooling)."""
    strided = [i for i, entry in down.items() if any(name.startswith("op.") for name in entry.get("0", ()))]
    return strided, [i for i in range(1, max(down, default=0)) if i not in down]


def _blocks_per_level(state, down, up):
    """Residual blocks per level, from where the path changes size: downs, gaps, ups, or the pattern of widths."""
    strided, gaps = _resampling(down)
    doubled = [
        i
        for i, entry in up.items()
        if any(j != "0" and any(n.startswith(("conv.", "in_layers.")) for n in names) for j, names in entry.items())
    ]
    last = max(down, default=0)
    if strided or gaps:
        return min(strided or gaps) - 1
    if up:
        return min(doubled, default=last)

    def fits(period):  # a level begins with a resampler: the width before it, no attention; its blocks look alike
        levels = [range(start, start + period) for start in range(0, last + 1, period)]
        return all(
            len({(_width(state, i), "1" in down[i]) for i in level[1:]}) == 1
            and "1" not in down[level[0]]
            and (level[0] == 0 or _width(state, level[0]) == _width(state, level[0] - 1))
            for level in levels
        )

    fitting = [period - 1 for period in range(2, last + 2) if (last + 1) % period == 0 and fits(period)]
    if len(fitting) != 1:
        raise ValueError(f"blocks per level cannot be read from this state dict (possible: {fitting}): give blocks=...")
    return fitting[0]


def _width(state, *entries):
    """Channels that these entries of the way down give (they are of one level)."""
    arrays = ("in_layers.2.weight", "in_layers.2.bias", "out_layers.0.weight", "out_layers.0.bias", "out_layers.3.weight",
              "out_layers.3.bias", "op.weight", "op.bias", "weight", "bias")  # fmt: skip
    return strict.vote(state, *((f"input_blocks.{i}.0.{name}", 0) for i in entries for name in arrays))


def _pool(state):
    if "out.2.positional_embedding" in state or "out.2.qkv_proj.weight" in state:
        return "attention"
    if "out.3.weight" in state or "out.3.bias" in state:
        spatial = strict.vote(state, ("out.0.weight", 0), ("out.0.bias", 0)) == 2048
        return "spatial_v2" if spatial else "adaptive"
    return "spatial"


def config_from_state(state, **hints):
    """(network class, its fields) that a state dict has; `hints` are fields that win over what is read.

    Every fact is read from several arrays where it can be: one that is renamed, missing or of another shape does not
    change the rest. Raises ValueError where the fields cannot be read, and if neither `heads` nor `head_channels` is
    given (the middle always has attention).
    """
    down, up = _entries(state, "input_blocks"), _entries(state, "output_blocks")
    linear = [(f"time_embed.{i}.{name}", 0) for i in (0, 2) for name in ("weight", "bias")]
    embedding = strict.vote(state, *linear, ("label_emb.weight", 1))
    if not down or not embedding:
        lacking = "input_blocks" if embedding else "time_embed"
        raise ValueError(f"this is no checkpoint of the ADM family: it has no {lacking}.*")
    width = embedding // 4
    blocks = hints.get("blocks") or _blocks_per_level(state, down, up)
    levels = max(1, math.ceil((max(down) + 1) / (blocks + 1)))
    level_blocks = [range(level * (blocks + 1) + 1, (level + 1) * (blocks + 1)) for level in range(levels)]
    widths = [_width(state, *entries) or width for entries in level_blocks]
    strided, gaps = _resampling(down)
    found = {"width": width, "blocks": blocks, "multipliers": tuple(multiplier(w, width) for w in widths)}
    found |= {"conv_resample": not gaps, "resblock_updown": levels > 1 and not strided and not gaps}
    attends = [any("1" in down.get(i, {}) for i in entries) for entries in level_blocks]
    found["attention"] = tuple(2**level for level, yes in enumerate(attends) if yes)
    told = [f"{part}.0.emb_layers.1." for part in (*(f"input_blocks.{i}" for i in level_blocks[-1]), "middle_block")]
    found["scale_shift"] = strict.vote(state, *((n + a, 0) for n in told for a in ("weight", "bias"))) == 2 * widths[-1]
    if "label_emb.weight" in state:
        found["classes"] = state["label_emb.weight"].shape[0]
    channels = strict.vote(state, ("input_blocks.0.0.weight", 1))
    if up:
        last, network = "out.2", UNet
    else:
        pool, network = hints.get("pool") or _pool(state), Encoder
        found["pool"] = pool
        last = {"attention": "out.2.c_proj", "spatial": "out.2"}.get(pool, "out.3")
    out = [state[f"{last}.{name}"].shape[0] for name in ("weight", "bias") if f"{last}.{name}" in state]
    if not out:
        raise ValueError(f"the state dict ends without {last}.weight and {last}.bias: it is cut short or of another family")
    likely = [channels, 2 * channels, channels // 2] if up and channels else []
    out = next((n for n in out if n in likely), out[0])
    if up and channels and (channels == 2 * out or channels == out == 6):
        network = SuperRes
    found |= {"out_channels": out} | hints
    if "heads" not in hints and "head_channels" not in hints:
        raise ValueError("a state dict does not show its number of heads: give heads=... or head_channels=...")
    return network, found


def multiplier(width, base):
    """m with int(m * base) = width; an int where it can be."""
    ratio = width / base
    if ratio.is_integer():
        return int(ratio)
    return ratio if int(ratio * base) == width else float(np.nextafter(ratio, np.inf))


# --- conversion -----------------------------------------------------------------------------------------------------


def inputs(net, state):
    """Shapes of an image and what goes with it, with the input channels (and the pooled size) that the state dict has."""
    channels = strict.vote(state, ("input_blocks.0.0.weight", 1)) or 3 * (1 + isinstance(net, SuperRes))
    size, extra = 2 ** (len(net.multipliers) - 1), ()
    if isinstance(net, Encoder) and net.pool == "attention" and "out.2.positional_embedding" in state:
        size *= math.isqrt(state["out.2.positional_embedding"].shape[1] - 1)
    if isinstance(net, SuperRes):
        channels //= 2
        extra = (jax.ShapeDtypeStruct((1, 1, channels), jnp.float32),)
    return strict.image_inputs(net, size * net.patch, channels, *extra)


def params_from_state(net, state, dtype=np.float32):
    """Parameters of `net` from an official state dict; a ValueError lists everything that does not fit."""
    return strict.to_params(state, table(net), strict.shapes(net, *inputs(net, state)), net, dtype)


def convert(state, network=None, dtype=np.float32, **hints):
    """(net, params) of an official state dict {name: array}; hints are fields of the network, see the module."""
    read, fields = config_from_state(state, **hints)
    net = (network or read)(**fields)
    return net, params_from_state(net, state, dtype)


def to_state(net, params):
    """The official state dict (numpy arrays, torch's layouts and names) of our parameters."""
    return strict.to_state(params, table(net))
