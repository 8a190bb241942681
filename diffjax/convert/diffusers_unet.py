"""diffusers' UNets of latent diffusion: `UNet2DConditionModel`, and `UNet2DModel` with a concatenated condition.

    state, config = diffusers_unet.read("ldm-text2im-large-256")     # the folder, its sub-folder unet, or the like
    net, params = diffusers_unet.convert(state, config)

The configuration is that of config.json. What its arguments can say and these networks cannot do is refused in one line.
Sources: Rombach et al. 2022, arXiv:2112.10752; field names of diffusers 0.42.
"""

import difflib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ..nets import ConditionUNet, DDPMUNet
from . import ddpm, files, strict
from .ddpm_names import modern
from .transformer import entries as transformer

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin")
# block types with cross-attention -> those of `UNet2DModel` at the same place
BLOCKS = {"DownBlock2D": "DownBlock2D", "CrossAttnDownBlock2D": "AttnDownBlock2D", "UpBlock2D": "UpBlock2D",
          "CrossAttnUpBlock2D": "AttnUpBlock2D"}  # fmt: skip
# arguments whose other values are other networks
ONLY = {"mid_block_type": ("UNetMidBlock2DCrossAttn",), "only_cross_attention": (False,), "dual_cross_attention": (False,),
        "mid_block_only_cross_attention": (None, False), "encoder_hid_dim": (None,), "encoder_hid_dim_type": (None,),
        "num_attention_heads": (None,), "class_embed_type": (None,), "addition_embed_type": (None,),
        "resnet_skip_time_act": (False,), "resnet_out_scale_factor": (1,), "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,), "time_cond_proj_dim": (None,), "conv_in_kernel": (3,), "conv_out_kernel": (3,),
        "attention_type": ("default",), "class_embeddings_concat": (False,), "cross_attention_norm": (None,),
        "reverse_transformer_layers_per_block": (None,), "mid_block_scale_factor": (1,)}  # fmt: skip
# of `UNet2DConditionModel`, for configuration files that leave something out
DEFAULTS = {"down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"], "in_channels": 4, "out_channels": 4,
            "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3], "block_out_channels": [320, 640, 1280, 1280],
            "mid_block_type": "UNetMidBlock2DCrossAttn", "layers_per_block": 2, "attention_head_dim": 8,
            "cross_attention_dim": 1280, "transformer_layers_per_block": 1, "use_linear_projection": False,
            "downsample_padding": 1, "norm_num_groups": 32, "norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0,
            "center_input_sample": False, "dropout": 0.0, "num_class_embeds": None, "resnet_time_scale_shift": "default",
            "act_fn": "silu", "time_embedding_type": "positional", "time_embedding_dim": None}  # fmt: skip
# arguments that say nothing of the network where the ones above have the values they may have
SILENT = ("sample_size", "upcast_attention", "addition_time_embed_dim", "projection_class_embeddings_input_dim",
          "addition_embed_type_num_heads")  # fmt: skip


def read(folder):
    """(state dict, config) of a folder with config.json and weights, or of its sub-folder `unet`.

    Raises ValueError, one line, where a file is missing or damaged.
    """
    folder = Path(folder)
    place = folder / "unet" if (folder / "unet").is_dir() else folder
    file = place / "config.json"
    if not file.is_file():
        raise ValueError(f"{place} has no config.json: give the folder of a diffusers model or its sub-folder unet")
    try:
        config = json.loads(file.read_bytes()[: 1 << 20])
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(f"{file} is no JSON: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}, not the arguments of a network")
    weights = next((place / name for name in WEIGHTS if (place / name).is_file()), None)
    if weights is None:
        raise ValueError(f"{place} has no weights: one of {', '.join(WEIGHTS)} is needed")
    return files.read(weights), config


def from_config(config):
    """Our fields of a `ConditionUNet` from the arguments of `UNet2DConditionModel`; ValueError for what we have not.

    `attention_head_dim` is the number of heads there, a misnomer that its files keep; it may be one for each level.
    """
    for name, value in config.items():
        if name not in (*DEFAULTS, *ONLY, *SILENT) and not name.startswith("_") and value is not None:
            near = difflib.get_close_matches(name, [*DEFAULTS, *ONLY], n=1, cutoff=0.0)[0]
            raise ValueError(f"{name}={value!r} is no argument of UNet2DConditionModel that we know; nearest: {near}")
        if name in ONLY and value not in ONLY[name]:
            raise ValueError(f"{name}={value!r} is not supported: only {' or '.join(map(repr, ONLY[name]))}")
    c = DEFAULTS | {name: value for name, value in config.items() if name in DEFAULTS}
    for name in ("down_block_types", "up_block_types"):
        for kind in c[name]:
            if kind not in BLOCKS:
                raise ValueError(f"{name} has {kind}, which is not supported: only {', '.join(BLOCKS)}")
    plain = {name: c[name] for name in ddpm.DEFAULTS if name in c}
    for name in ("down_block_types", "up_block_types"):
        plain[name] = [BLOCKS[kind] for kind in c[name]]
    plain |= {"attention_head_dim": None, "layers_per_block": _one(c, "layers_per_block")}
    fields = ddpm.from_config(plain | {name: c[name] for name in ("act_fn", "time_embedding_type", "time_embedding_dim")})
    levels = lambda value: tuple(value) if isinstance(value, list | tuple) else value
    depth = levels(c["transformer_layers_per_block"])
    if isinstance(depth, tuple) and any(isinstance(n, list | tuple) for n in depth):
        raise ValueError(f"transformer_layers_per_block={list(depth)} is not supported: only one number for each level")
    return fields | {
        "heads": levels(c["attention_head_dim"]), "depth": depth, "context": _one(c, "cross_attention_dim"),
        "concat": max(c["in_channels"] - c["out_channels"], 0), "attention_middle": "normed",
    }  # fmt: skip


def _one(config, name):
    """An argument that may be a list, one for each level, of which they are all the same here."""
    value = config[name]
    if not isinstance(value, list | tuple):
        return value
    if len(set(map(str, value))) != 1:
        raise ValueError(f"{name}={list(value)} is not supported: only the same number for all levels")
    return value[0]


def table(net, linear=False):
    """Entries of every array the family can have; `strict.used` keeps those of this network."""
    levels = len(net.multipliers)
    most = max(net.depth) if isinstance(net.depth, tuple) else net.depth
    found = ddpm.table(net) + transformer("middle_transformer", "mid_block.attentions.0", most, linear)
    for way in ("down", "up"):
        for level in range(levels):
            theirs = f"{way}_blocks.{level if way == 'down' else levels - 1 - level}"
            for block in range(net.blocks + 1):
                found += transformer(f"{way}_{level}_{block}_transformer", f"{theirs}.attentions.{block}", most, linear)
    return found


def network(config):
    """The network that a config.json describes: a `ConditionUNet`, or a `DDPMUNet` without any condition but a label."""
    name = config.get("_class_name", "UNet2DConditionModel" if "cross_attention_dim" in config else "UNet2DModel")
    if name == "UNet2DConditionModel":
        return ConditionUNet(**from_config(config))
    if name != "UNet2DModel":
        raise ValueError(f"{name} is not supported: only UNet2DModel and UNet2DConditionModel")
    fields = ddpm.from_config(config)
    concat = (config.get("in_channels") or 3) - fields["out_channels"]
    return ConditionUNet(**fields, concat=concat) if concat > 0 else DDPMUNet(**fields)


def params_from_state(net, state, config, dtype=np.float32):
    """Parameters of `network(config)` from a state dict; a ValueError lists everything that does not fit."""
    if not isinstance(net, ConditionUNet):
        return ddpm.params_from_state(net, state, dtype, config.get("in_channels"))
    channels = config.get("in_channels") or strict.vote(state, ("conv_in.weight", 1)) or net.out_channels + net.concat
    size = 2 ** (len(net.multipliers) - 1)
    x = jax.ShapeDtypeStruct((size, size, max(channels - net.concat, 1)), jnp.float32)
    shapes = strict.shapes(net, x, jax.ShapeDtypeStruct((), jnp.float32), net.blank(x))
    linear = bool(config.get("use_linear_projection"))
    return strict.to_params(modern(state), table(net, linear), shapes, net, dtype)


def convert(state, config, dtype=np.float32):
    """(net, params) of a state dict {name: array} and its config.json as a dict."""
    net = network(config)
    return net, params_from_state(net, state, config, dtype)


def to_state(net, params, linear=False):
    """The state dict (numpy arrays, torch's layouts, today's names) of our parameters; linear: `use_linear_projection`."""
    return strict.to_state(params, table(net, linear) if isinstance(net, ConditionUNet) else ddpm.table(net))
