"""Checkpoints of latent diffusion's first stages: CompVis' files, alone or within a latent diffusion model, and diffusers'
`AutoencoderKL` and `VQModel`.

    net, params = first_stage.convert(files.read("model.ckpt"))
    ae = first_stage.autoencoder(files.read("diffusion_pytorch_model.safetensors"), json.loads(config_text))

Fields are read from names and shapes; a configuration (CompVis' `params` with `ddconfig`, or diffusers' config.json) is
believed where it is given. The number of groups of the norms is in no array: 32 unless a configuration or `groups=` says
otherwise.
Sources: Rombach et al. 2022, arXiv:2112.10752; field names of diffusers 0.42.
"""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from .. import autoencoder as words
from ..nets import AutoencoderKL, AutoencoderVQ
from . import strict
from .adm import multiplier
from .ddpm_names import ATTENTION_2022
from .strict import Entry, module, norm

PREFIX = "first_stage_model."  # in a file of the whole latent diffusion model
LOSS = "loss."  # discriminator and perceptual network of the training, in files of a first stage alone
CODEBOOK = "quantize.embedding.weight"

DOWN = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}  # diffusers' block types -> attention
UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
# arguments whose other values are other networks, and what they are if they are left out
ONLY = {"act_fn": ("silu", "swish"), "norm_type": ("group",), "lookup_from_codebook": (False,)}
ONLY_OFFICIAL = {"attn_type": ("vanilla", "none"), "use_linear_attn": (False,), "resamp_with_conv": (True,),
                 "give_pre_end": (False,)}  # fmt: skip


def own(state):
    """The arrays of the first stage in a CompVis file or a diffusers folder, under names without a prefix; attentions that
    are 1x1 convolutions in diffusers' layout become products. What belongs to its training is dropped, which is said."""
    if any(name.startswith(PREFIX) for name in state):
        state = {name.removeprefix(PREFIX): a for name, a in state.items() if name.startswith(PREFIX)}
    dropped = [name for name in state if name.startswith(LOSS)]
    if dropped:
        warnings.warn(f"dropped {len(dropped)} arrays {LOSS}* of the first stage's training", stacklevel=3)
    return {_today(name): _product(name, a) for name, a in state.items() if not name.startswith(LOSS)}


def _today(name):
    for before, after in ATTENTION_2022.items() if ".attentions." in name else ():
        name = name.replace(before, after)
    return name


def _product(name, array):
    conv = ".attentions." in name and np.ndim(array) == 4 and np.shape(array)[2:] == (1, 1)
    return array.reshape(array.shape[:2]) if conv else array


def _style(state):
    """ "official" or "diffusers"; ValueError for a state dict that is no first stage's."""
    for name, style in (("down_blocks.", "diffusers"), ("down.", "official")):
        if any(key.startswith(f"encoder.{name}") for key in state):
            return style
    raise ValueError("this is no checkpoint of an autoencoder: it has neither encoder.down.* nor encoder.down_blocks.* "
                     f"(with or without {PREFIX})")  # fmt: skip


# --- fields ---------------------------------------------------------------------------------------------------------


def _check(config, only):
    for name, valid in only.items():
        if name in config and config[name] not in valid:
            raise ValueError(f"{name}={config[name]!r} is not supported: only {' or '.join(map(repr, valid))}")


def from_config(config):
    """(class, fields) of the network of a configuration: `params` of a CompVis one, or diffusers' config.json."""
    return _from_official(config) if "ddconfig" in config else _from_diffusers(config)


def _from_official(config):
    c = config["ddconfig"]
    _check(c, ONLY_OFFICIAL)
    codes = config.get("n_embed")
    if bool(c.get("double_z", True)) == bool(codes):
        raise ValueError(
            f"double_z={c.get('double_z', True)} does not go with n_embed={codes}: moments are for KL, codes for VQ"
        )
    levels, size = len(c["ch_mult"]), c["resolution"]
    none = c.get("attn_type") == "none"
    wanted = () if none else c["attn_resolutions"]
    smallest = size // 2 ** (levels - 1)
    fields = {
        "channels": c["out_ch"], "latent_channels": config["embed_dim"], "z_channels": c["z_channels"], "width": c["ch"],
        "multipliers": tuple(c["ch_mult"]), "blocks": c["num_res_blocks"], "middle": not none,
        "tanh": c.get("tanh_out", False),
        "attention": tuple(2**i for i in range(levels) if size // 2**i in wanted),
        "attention_up": tuple(2**i for i in range(levels) if smallest * 2 ** (levels - 1 - i) in wanted),
    }  # fmt: skip
    return (AutoencoderVQ, fields | {"codes": codes}) if codes else (AutoencoderKL, fields)


def _from_diffusers(config):
    _check(config, ONLY)
    quantised = "num_vq_embeddings" in config or config.get("_class_name") == "VQModel"
    c = {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"], "block_out_channels": [64],
         "layers_per_block": 1, "latent_channels": 3 if quantised else 4, "out_channels": 3, "norm_num_groups": 32,
         "mid_block_add_attention": True, "num_vq_embeddings": 256} | config  # fmt: skip
    for name, valid in (("down_block_types", DOWN), ("up_block_types", UP)):
        for kind in c[name]:
            if kind not in valid:
                raise ValueError(f"{name} has {kind}, which is not supported: only {', '.join(valid)}")
    widths = c["block_out_channels"]
    fields = {
        "channels": c["out_channels"], "width": widths[0], "multipliers": tuple(multiplier(w, widths[0]) for w in widths),
        "latent_channels": c["latent_channels"], "z_channels": c["latent_channels"],
        "blocks": c["layers_per_block"], "groups": c["norm_num_groups"], "middle": c["mid_block_add_attention"],
        "attention": tuple(2**i for i, kind in enumerate(c["down_block_types"]) if DOWN[kind]),
        "attention_up": tuple(2**i for i, kind in enumerate(reversed(c["up_block_types"])) if UP[kind]),
        "quant_conv": c.get("use_quant_conv", True), "post_quant_conv": c.get("use_post_quant_conv", True),
    }  # fmt: skip
    if not quantised:
        return AutoencoderKL, fields
    return AutoencoderVQ, fields | {"latent_channels": c.get("vq_embed_dim") or c["latent_channels"],
                                    "codes": c["num_vq_embeddings"]}  # fmt: skip


def config_from_state(state):
    """(class, fields) of the network, read from the names and shapes of what :func:`own` gives."""
    style = _style(state)
    down, res, attn = {"official": ("down", "block", "attn"), "diffusers": ("down_blocks", "resnets", "attentions")}[style]

    def count(pattern):
        found = [int(m[1]) for m in (re.match(pattern, name) for name in state) if m]
        return 1 + max(found, default=-1)

    levels, blocks = count(rf"encoder\.{down}\.(\d+)\."), count(rf"encoder\.{down}\.\d+\.{res}\.(\d+)\.") or 1
    numbers = {"encoder": range(levels), "decoder": range(levels)}
    if style == "diffusers":
        numbers["decoder"] = range(levels - 1, -1, -1)  # theirs of each level
    up = {"official": "up", "diffusers": "up_blocks"}[style]

    def width(level):
        halves = ((f"encoder.{down}.{level}", blocks), (f"decoder.{up}.{numbers['decoder'][level]}", blocks + 1))
        arrays = ("conv2.weight", "conv2.bias", "norm2.weight", "conv1.bias")
        return (
            strict.vote(state, *((f"{at}.{res}.{n}.{a}", 0) for at, number in halves for n in range(number) for a in arrays))
            or 1
        )

    def factors(half, way):
        found = [any(name.startswith(f"{half}.{way}.{n}.{attn}.") for name in state) for n in numbers[half]]
        return tuple(2**level for level, there in enumerate(found) if there)

    widths = [width(level) for level in range(levels)]
    has = lambda start: any(name.startswith(start) for name in state)
    quant, post = has("quant_conv."), has("post_quant_conv.")
    ends = [strict.vote(state, *where) for where in (
        [("quant_conv.weight", 0), ("quant_conv.bias", 0)], [("post_quant_conv.weight", 1)],
    )]  # fmt: skip
    quantised = has("quantize.") or (ends[0] is not None and ends[0] == ends[1])  # so that a missing codebook is named
    each = 1 if quantised else 2
    z = strict.vote(state, ("decoder.conv_in.weight", 1), ("post_quant_conv.weight", 0), ("post_quant_conv.bias", 0))
    z = z or (strict.vote(state, ("encoder.conv_out.bias", 0), ("encoder.conv_out.weight", 0)) or each) // each
    doubled = strict.vote(state, ("quant_conv.weight", 0), ("quant_conv.bias", 0))
    embedded = strict.vote(state, (CODEBOOK, 1), ("post_quant_conv.weight", 1)) or (doubled // each if doubled else z)
    out = [("decoder.conv_out.bias", 0), ("decoder.conv_out.weight", 0), ("encoder.conv_in.weight", 1)]
    fields = {
        "channels": strict.vote(state, *out) or 3, "latent_channels": embedded, "z_channels": z, "width": widths[0],
        "multipliers": tuple(multiplier(w, widths[0]) for w in widths), "blocks": blocks,
        "attention": factors("encoder", down), "attention_up": factors("decoder", up),
        "middle": has("encoder.mid.attn_1.") or has("encoder.mid_block.attentions."),
        "quant_conv": quant, "post_quant_conv": post,
    }  # fmt: skip
    if not quantised:
        return AutoencoderKL, fields
    return AutoencoderVQ, fields | {"codes": strict.vote(state, (CODEBOOK, 0)) or 1}


# --- names ----------------------------------------------------------------------------------------------------------

RES = {"official": ("norm1", "conv1", "norm2", "conv2", "nin_shortcut"),
       "diffusers": ("norm1", "conv1", "norm2", "conv2", "conv_shortcut")}  # fmt: skip
ATTENTION = {"official": ("norm", ("q", "k", "v"), "proj_out", "dense2"),
             "diffusers": ("group_norm", ("to_q", "to_k", "to_v"), "to_out.0", "dense")}  # fmt: skip


def table(net, style="official"):
    """Entries of every array the family can have, under CompVis' names or diffusers'; `strict.used` keeps this network's."""
    levels = len(net.multipliers)
    official = style == "official"
    entries = [*module(["to_latent"], "quant_conv", "dense2"), *module(["from_latent"], "post_quant_conv", "dense2"),
               Entry(("codebook",), (CODEBOOK,), "plain")]  # fmt: skip
    for half, way in (("encoder", "down"), ("decoder", "up")):
        entries += module([half, "conv_in"], f"{half}.conv_in", "conv")
        entries += norm([half, "norm_out"], f"{half}.{'norm_out' if official else 'conv_norm_out'}")
        entries += module([half, "conv_out"], f"{half}.conv_out", "conv")
        middle = f"{half}.{'mid' if official else 'mid_block'}"
        for n in (0, 1):
            entries += _res([half, f"middle_{n}"], f"{middle}.{f'block_{n + 1}' if official else f'resnets.{n}'}", style)
        entries += _attention([half, "middle_attention"], f"{middle}.{'attn_1' if official else 'attentions.0'}", style)
        for level in range(levels):
            number = level if official or way == "down" else levels - 1 - level
            at = f"{half}.{way}.{number}" if official else f"{half}.{way}_blocks.{number}"
            for n in range(net.blocks + 1):
                name = f"{way}_{level}_{n}"
                entries += _res([half, name], f"{at}.{'block' if official else 'resnets'}.{n}", style)
                entries += _attention([half, f"{name}_attention"], f"{at}.{'attn' if official else 'attentions'}.{n}", style)
            resampled = f"{at}.{way}sample" if official else f"{at}.{way}samplers.0"
            entries += module([half, f"{way}_{level}_resample", "conv"], f"{resampled}.conv", "conv")
    return entries


def _res(at, name, style):
    norm_1, conv_1, norm_2, conv_2, skip = (f"{name}.{part}" for part in RES[style])
    return [*norm([*at, "norm_1"], norm_1), *module([*at, "conv_1"], conv_1, "conv"), *norm([*at, "norm_2"], norm_2),
            *module([*at, "conv_2"], conv_2, "conv"), *module([*at, "skip"], skip, "dense2")]  # fmt: skip


def _attention(at, name, style):
    before, parts, after, layout = ATTENTION[style]
    joined = [f"{name}.{part}" for part in parts]
    return [*norm([*at, "norm"], f"{name}.{before}"), *module([*at, "qkv"], joined, layout),
            *module([*at, "proj"], f"{name}.{after}", layout)]  # fmt: skip


# --- conversion -----------------------------------------------------------------------------------------------------


def params_from_state(net, state, dtype=np.float32):
    """Parameters of `net` from a state dict as :func:`own` gives it. A ValueError lists everything that does not fit."""
    channels = strict.vote(state, ("encoder.conv_in.weight", 1)) or net.channels
    shapes = strict.shapes(net, jax.ShapeDtypeStruct((net.f, net.f, channels), jnp.float32))
    return strict.to_params(state, table(net, _style(state)), shapes, net, dtype)


def convert(state, config=None, dtype=np.float32, **hints):
    """(net, params) of a state dict {name: array}, with or without its configuration; hints are fields that win (`groups`)."""
    state = own(state)
    kind, fields = config_from_state(state) if config is None else from_config(config)
    net = kind(**fields | hints)
    return net, params_from_state(net, state, dtype)


def to_state(net, params, style="official"):
    """The state dict (numpy arrays, torch's layouts) of our parameters, under CompVis' names or those of diffusers."""
    return strict.to_state(params, table(net, style))


def latent_units(state, config=None):
    """(shift, scale) such that z = (raw - shift) * scale, as far as file and configuration say; else (0, None).

    CompVis: the array `scale_factor` of a whole model, else `scale_factor` of the configuration. diffusers: `scaling_factor`
    with `shift_factor`, or `latents_mean` and `latents_std`.
    """
    config = config or {}
    if "scale_factor" in state:
        return 0.0, float(np.asarray(state["scale_factor"]))
    if config.get("scale_factor") is not None:
        return 0.0, float(config["scale_factor"])
    scale = config.get("scaling_factor")
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        return np.asarray(config["latents_mean"], np.float32), (scale or 1.0) / np.asarray(config["latents_std"], np.float32)
    return config.get("shift_factor") or 0.0, scale


def autoencoder(state, config=None, dtype=np.float32, *, shift=None, scale=None, **hints):
    """The :class:`diffjax.autoencoder.Autoencoder` of a state dict; shift and scale are the file's unless given.

    Where a KL file says no scale, it is 1, with a warning: the diffusion model may have been trained with another
    (0.18215 in txt2img-1p4B). A VQ model's is 1.
    """
    net, params = convert(state, config, dtype, **hints)
    told_shift, told_scale = latent_units(state, config)
    scale = told_scale if scale is None else scale
    if scale is None:
        if isinstance(net, AutoencoderKL):
            warnings.warn("nothing says the scale factor of this autoencoder's latents: it is taken to be 1; give scale= "
                          "where the diffusion model wants another, such as 0.18215", stacklevel=2)  # fmt: skip
        scale = 1.0
    return words.from_network(net, params, shift=told_shift if shift is None else shift, scale=scale)
