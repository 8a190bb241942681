"""Checkpoints of diffusers' `UNet2DModel`, among them the converted originals of DDPM (google/ddpm-celebahq-256 ...), and
of DDPM under its older names (`ddpm_names.py`).

    net, params = ddpm.convert(files.read("diffusion_pytorch_model.safetensors"), json.loads(config_text))

Without the configuration file, what the names and shapes show is read from them, and the rest has DDPM's values.
Source: Ho, Jain and Abbeel 2020, arXiv:2006.11239; field names of diffusers 0.42.
"""

import numpy as np

from ..nets import DDPMUNet
from ..wording import printable
from . import strict
from .adm import multiplier
from .ddpm_names import modern
from .strict import Entry, module, norm

# their block type -> attention, how it resamples
DOWN = {"DownBlock2D": (False, "conv"), "AttnDownBlock2D": (True, "conv"), "ResnetDownsampleBlock2D": (False, "res")}
UP = {"UpBlock2D": (False, "conv"), "AttnUpBlock2D": (True, "conv"), "ResnetUpsampleBlock2D": (False, "res")}

# arguments whose other values are other networks
ONLY = {"time_embedding_type": ("positional",), "act_fn": ("silu", "swish"), "mid_block_scale_factor": (1,),
        "class_embed_type": (None,), "resnet_time_scale_shift": ("default", "scale_shift"), "downsample_padding": (0, 1),
        "mid_block_type": ("UNetMidBlock2D",), "time_embedding_dim": (None,), "attn_norm_num_groups": (None,),
        "downsample_type": ("conv", "resnet"), "upsample_type": ("conv", "resnet")}  # fmt: skip

# of `UNet2DModel`, for configuration files that leave something out
DEFAULTS = {"down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3], "block_out_channels": [224, 448, 672, 896],
            "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"], "layers_per_block": 2, "attention_head_dim": 8,
            "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1, "norm_num_groups": 32, "norm_eps": 1e-5,
            "out_channels": 3, "dropout": 0.0, "center_input_sample": False, "add_attention": True,
            "resnet_time_scale_shift": "default", "num_class_embeds": None, "downsample_type": "conv",
            "upsample_type": "conv"}  # fmt: skip
# what else it knows: of the size of its images, and arguments whose only other value is refused above
BESIDES = ("sample_size", "in_channels", "num_train_timesteps", "mid_block_scale_factor", "dropout")
WHOLE = {
    "in_channels": 1024,
    "out_channels": 1024,
    "layers_per_block": 100,
    "attention_head_dim": 2**16,
    "norm_num_groups": 2**16,
    "num_class_embeds": 10**6,
}  # and the largest that is believed


def from_config(config):
    """Our fields from the arguments of `UNet2DModel` (its config.json); ValueError for what we have not."""
    for name, valid in ONLY.items():
        if name in config and not any(config[name] == v for v in valid):
            raise ValueError(f"{name}={printable(config[name], 60)!r} is not supported: only {' or '.join(map(repr, valid))}")
    for name, value in config.items():
        known = name.startswith("_") or name in (*ONLY, *DEFAULTS, *BESIDES)
        if not known and value is not None and value is not False:
            raise ValueError(f"{printable(name, 40)}={printable(value, 40)!r} is no setting of a UNet2DModel that is known "
                             "here: it may mean another network; leave it out if it does not")  # fmt: skip
    c = DEFAULTS | config
    for name, valid in (("down_block_types", DOWN), ("up_block_types", UP)):
        for kind in c[name] if isinstance(c[name], list | tuple) else ():
            if kind not in list(valid):
                raise ValueError(f"{name} has {printable(kind, 60)}, which is not supported: only {', '.join(valid)}")
    _check_numbers(c)
    down = [_level(DOWN[kind], c["downsample_type"]) for kind in c["down_block_types"]]
    up = [_level(UP[kind], c["upsample_type"]) for kind in reversed(c["up_block_types"])]
    scale_shift = c["resnet_time_scale_shift"] == "scale_shift"
    widths = c["block_out_channels"]
    return {
        "out_channels": c["out_channels"], "width": widths[0], "multipliers": _multipliers(widths),
        "blocks": c["layers_per_block"], "head_channels": c["attention_head_dim"], "scale_shift": scale_shift,
        "attention_down": tuple(a for a, _ in down), "resample_down": tuple(r for _, r in down[:-1]),
        "attention_up": tuple(a for a, _ in up), "resample_up": tuple(r for _, r in up[1:]),
        "attention_middle": (("bare" if scale_shift else "normed") if c["add_attention"] else None),
        "centre": c["center_input_sample"], "epsilon": c["norm_eps"], "groups": c["norm_num_groups"],
        "sin_first": not c["flip_sin_to_cos"], "frequency_shift": c["freq_shift"], "dropout": c["dropout"],
        "classes": c["num_class_embeds"], "down_padding": (((c["downsample_padding"], 1),) * 2),
    }  # fmt: skip


def _check_numbers(c):
    for name, most in WHOLE.items():
        value = c.get(name)
        if value is not None and (type(value) is not int or not 1 <= value <= most):
            raise ValueError(f"{name}={printable(value, 40)} is out of range: it is a whole number from 1 to {most}")
    for name in ("freq_shift", "norm_eps", "dropout"):
        if isinstance(c[name], bool) or not isinstance(c[name], int | float) or not 0 <= c[name] < 1e3:
            raise ValueError(f"{name}={printable(c[name], 40)} is out of range: it is a small number >= 0")
    widths, lists = c["block_out_channels"], [c[n] for n in ("block_out_channels", "down_block_types", "up_block_types")]
    if not all(isinstance(given, list | tuple) for given in lists) or len({len(given) for given in lists}) != 1:
        raise ValueError("block_out_channels, down_block_types and up_block_types are not lists of one length")
    if not 1 <= len(widths) <= strict.MOST_LEVELS or not all(type(w) is int and 0 < w <= strict.MOST_WIDTH for w in widths):
        raise ValueError(f"block_out_channels={printable(widths, 60)}: wanted 1 to {strict.MOST_LEVELS} whole numbers up to "
                         f"{strict.MOST_WIDTH}")  # fmt: skip


def _level(kind, resample):  # only a level with attention heeds the choice
    attends, how = kind
    return attends, "res" if attends and resample == "resnet" else how


def _multipliers(widths):
    return tuple(multiplier(w, widths[0]) for w in widths)


def config_from_state(state, **hints):
    """Our fields from names and shapes, for a checkpoint without its config.json; DDPM's constants for the rest.

    `hints` are fields that win; give `heads` or `head_channels`, `epsilon`, `sin_first`, `groups` ... where they differ.
    """
    state = modern(state)
    for lacking in ("conv_in.", "down_blocks.0.resnets.", "time_embedding."):
        if not any(name.startswith(lacking) for name in state):
            raise ValueError(f"this is no checkpoint of a UNet2DModel: it has no {lacking}*")

    def number(prefix):
        rest = [name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)]
        return 1 + max((strict.number(n, state) for n in rest if n.isdecimal()), default=-1)

    def has(prefix):
        return any(name.startswith(prefix) for name in state)

    def length(prefix, *names):  # several arrays are asked, so that one wrong array is named and not believed
        return strict.vote(state, *((f"{prefix}{name}", 0) for name in names))

    levels, blocks = number("down_blocks."), number("down_blocks.0.resnets.")
    arrays = ("conv2.weight", "conv2.bias", "norm2.weight", "conv1.bias")
    each = [f"resnets.{i}.{name}" for i in range(blocks) for name in arrays]
    widths = [length(f"down_blocks.{level}.", *each) or 1 for level in range(levels)]
    up = [levels - 1 - level for level in range(levels)]  # their number of the block of each level
    told = length("down_blocks.0.", *(f"resnets.{i}.time_emb_proj.{n}" for i in range(blocks) for n in ("weight", "bias")))
    how = {True: "res", False: "conv"}
    out = [state[f"conv_out.{n}"].shape[0] for n in ("weight", "bias") if f"conv_out.{n}" in state] or [3]
    channels = strict.vote(state, ("conv_in.weight", 1)) or 3
    found = {
        "out_channels": next((n for n in out if n in (channels, 2 * channels)), out[-1]), "width": widths[0],
        "multipliers": _multipliers(widths), "blocks": blocks, "scale_shift": told == 2 * widths[0],
        "attention_down": tuple(has(f"down_blocks.{i}.attentions.") for i in range(levels)),
        "attention_up": tuple(has(f"up_blocks.{i}.attentions.") for i in up),
        "resample_down": tuple(how[has(f"down_blocks.{i}.downsamplers.0.conv1")] for i in range(levels - 1)),
        "resample_up": tuple(how[has(f"up_blocks.{i}.upsamplers.0.conv1")] for i in up[1:]),
        "attention_middle": ("normed" if has("mid_block.attentions.0.group_norm") else "bare")
                            if has("mid_block.attentions.0") else None,
    }  # fmt: skip
    if "class_embedding.weight" in state:
        found["classes"] = state["class_embedding.weight"].shape[0]
    return found | hints


# --- names ----------------------------------------------------------------------------------------------------------


def table(net):
    """Entries of every array the family can have; `strict.used` keeps those of this network."""
    levels = len(net.multipliers)
    entries = [
        *module(["time_0"], "time_embedding.linear_1", "dense"),
        *module(["conv_in"], "conv_in", "conv"),
        *module(["time_1"], "time_embedding.linear_2", "dense"),
        *norm(["norm_out"], "conv_norm_out"),
        *module(["conv_out"], "conv_out", "conv"),
        Entry(("label",), ("class_embedding.weight",), "plain"),
        *_res("middle_0", "mid_block.resnets.0"),
        *_res("middle_1", "mid_block.resnets.1"),
        *_attention("middle_attention", "mid_block.attentions.0"),
    ]
    for way in ("down", "up"):
        for level in range(levels):
            theirs = f"{way}_blocks.{level if way == 'down' else levels - 1 - level}"
            for block in range(net.blocks + 1):
                entries += _res(f"{way}_{level}_{block}", f"{theirs}.resnets.{block}")
                entries += _attention(f"{way}_{level}_{block}_attention", f"{theirs}.attentions.{block}")
            at, name = f"{way}_{level}_resample", f"{theirs}.{way}samplers.0"
            entries += [*module([at, "conv"], f"{name}.conv", "conv"), *_res(at, name)]
    return entries


def _res(at, name):
    return [
        *norm([at, "norm_1"], f"{name}.norm1"),
        *module([at, "conv_1"], f"{name}.conv1", "conv"),
        *module([at, "embedding"], f"{name}.time_emb_proj", "dense"),
        *norm([at, "norm_2"], f"{name}.norm2"),
        *module([at, "conv_2"], f"{name}.conv2", "conv"),
        *module([at, "skip"], f"{name}.conv_shortcut", "dense2"),
    ]


def _attention(at, name):
    joined = [f"{name}.to_{part}" for part in "qkv"]
    return [
        *norm([at, "norm"], f"{name}.group_norm"),
        *module([at, "qkv"], joined, "dense"),
        *module([at, "proj"], f"{name}.to_out.0", "dense"),
    ]


# --- conversion -----------------------------------------------------------------------------------------------------


def params_from_state(net, state, dtype=np.float32, channels=None):
    """Parameters of `net` from a state dict, for images of so many channels (default: as many as the state dict takes).

    A ValueError lists everything that does not fit.
    """
    state = modern(state)
    strict.check_size(net, state)
    channels = channels or strict.vote(state, ("conv_in.weight", 1)) or 3
    shapes = strict.shapes(net, *strict.image_inputs(net, 2 ** (len(net.multipliers) - 1), channels))
    return strict.to_params(state, table(net), shapes, net, dtype)


def convert(state, config=None, dtype=np.float32, **hints):
    """(net, params) of a state dict {name: array} and, if there is one, its config.json as a dict; hints are fields."""
    fields = config_from_state(state, **hints) if config is None else from_config(config) | hints
    net = DDPMUNet(**fields)
    return net, params_from_state(net, state, dtype, (config or {}).get("in_channels"))


def to_state(net, params):
    """The state dict (numpy arrays, torch's layouts, today's names) of our parameters."""
    return strict.to_state(params, table(net))
