"""Checkpoints of CompVis/latent-diffusion: the file's parts, its UNet and what reads the condition.

    state = files.read("model.ckpt")
    parts = latent.split(state)                          # weights="ema" or "raw" to choose
    net, params = latent.convert(parts.unet)             # heads=8 or head_channels=32 where nobody published the network
    reader, reader_params = latent.conditioner(parts.conditioner)
    net, params = latent.join(net, params, reader, reader_params)

`parts.first_stage` holds the autoencoder's arrays, under their official names. The configuration is read off the names and
shapes; they do not show the heads of the attentions, which are taken from the published configurations (`PUBLISHED`) where
one fits and must be given otherwise. Source: Rombach et al. 2022, arXiv:2112.10752, and its code's configurations.
"""

from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ..nets import ClassEmbedder, Conditioned, LatentUNet, SpatialRescaler, TextTransformer
from . import adm, strict
from .strict import Entry, module, norm

UNET, AVERAGES, FIRST_STAGE, CONDITION = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model."
SCHEDULE = ("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
            "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
            "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights")  # fmt: skip

_TALL = {"channel_mult": (1, 2, 3, 4), "attention_resolutions": (8, 4, 2)}
_TALL_5 = {"channel_mult": (1, 2, 3, 5), "attention_resolutions": (8, 4, 2), "model_channels": 192}
_HEADS_32, _TOKENS = {"num_head_channels": 32}, {"use_spatial_transformer": True}
_CELEBAHQ = _TALL | _HEADS_32 | {"model_channels": 224}
# arguments of the official UNetModel (num_res_blocks is 2 in all); where they are not 3: channels in and out
PUBLISHED = {
    "celebahq": _CELEBAHQ, "ffhq": _CELEBAHQ, "lsun_bedrooms": _CELEBAHQ,
    "lsun_churches": {"in_channels": 4, "out_channels": 4, "model_channels": 192, "channel_mult": (1, 2, 2, 4, 4),
                      "attention_resolutions": (1, 2, 4, 8), "num_heads": 8, "use_scale_shift_norm": True,
                      "resblock_updown": True},
    "cin256": {"in_channels": 4, "out_channels": 4, "model_channels": 256, "channel_mult": (1, 2, 4),
               "attention_resolutions": (4, 2, 1), "context_dim": 512} | _HEADS_32 | _TOKENS,
    "cin256-v2": _TALL_5 | _TOKENS | {"num_heads": 1, "context_dim": 512},
    "text2img256": _TALL_5 | _TOKENS | _HEADS_32 | {"context_dim": 640},
    "txt2img-1p4B": {"in_channels": 4, "out_channels": 4, "model_channels": 320, "channel_mult": (1, 2, 4, 4),
                     "attention_resolutions": (4, 2, 1), "num_heads": 8, "context_dim": 1280, "legacy": False} | _TOKENS,
    "inpainting_big": _TALL | {"in_channels": 7, "model_channels": 256, "num_heads": 8, "resblock_updown": True},
    "bsr_sr": _HEADS_32 | {"in_channels": 6, "model_channels": 160, "channel_mult": (1, 2, 2, 4),
                           "attention_resolutions": (16, 8)},
    "semantic_synthesis256": {"in_channels": 6, "model_channels": 128, "channel_mult": (1, 4, 8), "num_heads": 8,
                              "attention_resolutions": (32, 16, 8)},
    "layout2img": _TALL | _HEADS_32 | _TOKENS | {"model_channels": 128, "context_dim": 512, "transformer_depth": 3},
}  # fmt: skip


# --- a whole file ---------------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """A Lightning file in parts: {official name: array} without the prefixes.

    weights           whether `unet` holds the averaged ("ema") or the trained ("raw") ones
    scale_factor      None where the file has none: 1, unless the configuration says otherwise (0.18215 for txt2img-1p4B)
    condition_is_first_stage
                      the condition is encoded by the first stage itself (inpainting); its second copy is left out
    logvar            (T,) where it was learned
    """

    unet: dict
    first_stage: dict
    conditioner: dict
    schedule: dict
    weights: str = "raw"
    scale_factor: float | None = None
    condition_is_first_stage: bool = False
    logvar: Any = None


def split(state, weights=None):
    """`Parts` of the state dict of a whole file, of a first stage alone or of a UNet alone.

    weights: "ema": the averaged ones, which the official scripts sample with; "raw": the trained ones; None: averaged where
    the file has them. Raises ValueError for averages that are asked for and not there, averages that do not match the trained
    arrays, and names that belong to no part.
    """
    if weights not in (None, "ema", "raw"):
        raise ValueError(f'weights={weights!r}: use "ema" (averaged), "raw" (trained) or None (averaged where there are any)')
    if not any(name.startswith((UNET, FIRST_STAGE)) for name in state):
        alone = [name for name in ("input_blocks.", "encoder.") if any(key.startswith(name) for key in state)]
        if not alone or weights == "ema":
            lacks = f"{AVERAGES}*: take weights='raw'" if alone else f"{UNET}* and {FIRST_STAGE}*"
            raise ValueError(f"this is no whole checkpoint of latent diffusion: it has no {lacks}")
        of = lambda part: dict(state) if part == alone[0] else {}
        return Parts(of("input_blocks."), of("encoder."), {}, {})
    below = {prefix: {} for prefix in (UNET, AVERAGES, FIRST_STAGE, CONDITION, "")}
    for name, array in state.items():
        prefix = next(prefix for prefix in below if name.startswith(prefix))
        below[prefix][name.removeprefix(prefix)] = array
    rest = below[""]
    unknown = [name for name in rest if name not in (*SCHEDULE, "scale_factor", "logvar")]
    if unknown:
        raise ValueError(f"these arrays belong to no part of a latent diffusion checkpoint: {strict.some(unknown)}")
    if weights == "ema" and not below[AVERAGES]:
        raise ValueError(f"this file has no averaged weights ({AVERAGES}*): take weights='raw'")
    averaged = bool(below[AVERAGES]) and weights != "raw"
    unet = _averages(below[UNET], below[AVERAGES]) if averaged else below[UNET]
    first, reader = below[FIRST_STAGE], below[CONDITION]
    again = bool(reader) and any(name.startswith("encoder.") for name in reader) and reader.keys() <= first.keys()
    if again:
        differ = [name for name, array in reader.items() if not np.array_equal(array, first[name])]
        if differ:
            raise ValueError(f"{CONDITION}* repeats the first stage with other numbers: {strict.some(differ)}")
    scale = number(rest["scale_factor"], "scale_factor") if "scale_factor" in rest else None
    schedule = {name: rest[name] for name in SCHEDULE if name in rest}
    kept, which = {} if again else reader, "ema" if averaged else "raw"
    return Parts(unet, first, kept, schedule, which, scale, again, rest.get("logvar"))


def number(array, name) -> float:
    """The one number of an array, 0-d or not. Raises ValueError for more."""
    if np.size(array) != 1:
        raise ValueError(f"{name} has shape {np.shape(array)}: one number is wanted")
    return float(np.ravel(array)[0])


def _averages(trained, averages):
    """The averaged arrays under the names of the trained ones: theirs are the same without the dots, which nothing undoes."""
    stored = {name: f"diffusion_model{name}".replace(".", "") for name in trained}
    missing = [name for name in stored.values() if name not in averages]
    left_over = [name for name in averages if name not in {*stored.values(), "decay", "num_updates"}]
    if missing or left_over or len(set(stored.values())) < len(stored):
        found = [f"{what}: {strict.some(names)}" for what, names in (("missing", missing), ("left over", left_over)) if names]
        raise ValueError(f"the averages {AVERAGES}* do not match {UNET}*: {'; '.join(found) or 'two names are alike'}")
    return {name: averages[stored[name]] for name in trained}


# --- the UNet -------------------------------------------------------------------------------------------------------


def from_flags(*, use_spatial_transformer=False, transformer_depth=1, context_dim=None, n_embed=None, legacy=True, **flags):
    """Our fields from the arguments of the official UNetModel; `in_channels` beyond `out_channels` are the condition's."""
    flags = {"in_channels": 3, "out_channels": 3, "num_res_blocks": 2} | flags
    fields = adm.from_flags(**flags)
    depths = [2**level for level in range(len(fields["multipliers"]))]
    # factors that the network never reaches say nothing (bsr_sr, semantic_synthesis256)
    fields["attention"] = tuple(factor for factor in depths if factor in fields.get("attention", ()))
    if use_spatial_transformer:
        fields |= {"depth": transformer_depth, "context": context_dim}
        fields.pop("heads_upsample", None)  # transformers of the way up have the heads of the way down
    concat = flags["in_channels"] - flags["out_channels"]
    return fields | ({"concat": concat} if concat > 0 else {}) | ({"ids": n_embed} if n_embed else {})


def config_from_state(state, **hints):
    """The fields of a `LatentUNet` that a UNet's state dict has; `hints` are fields that win over what is read.

    Raises ValueError where they cannot be read, and where neither `heads` nor `head_channels` is given and no published
    network has this configuration.
    """
    given = "heads" in hints or "head_channels" in hints
    _, found = adm.config_from_state(state, **(hints if given else hints | {"heads": 1}))
    channels = strict.vote(state, ("input_blocks.0.0.weight", 1)) or found["out_channels"]
    found["concat"] = max(channels - found["out_channels"], 0)
    found |= _transformers(state, hints) | hints
    if "id_predictor.1.weight" in state or "id_predictor.1.bias" in state:
        found["ids"] = strict.vote(state, ("id_predictor.1.weight", 0), ("id_predictor.1.bias", 0))
    if not given:
        name = published(LatentUNet(**found))
        if name is None:
            raise ValueError("a state dict does not show its number of heads, and no published network is like this one: "
                             "give heads=... or head_channels=...")  # fmt: skip
        found.pop("heads")
        fields = from_flags(**PUBLISHED[name])
        found |= {field: fields[field] for field in ("heads", "head_channels") if field in fields}
    return found


def published(net):
    """The name of the first published network that differs from `net` in nothing but its heads; None where there is none."""
    alike = lambda net: net.clone(heads=1, head_channels=None, attention=tuple(sorted(net.attention)))
    return next((name for name, flags in PUBLISHED.items() if alike(LatentUNet(**from_flags(**flags))) == alike(net)), None)


def _transformers(state, hints):
    """depth and context, read from all transformer blocks."""
    blocks = sorted({name.split(".attn")[0] for name in state if ".transformer_blocks." in name and ".attn" in name})
    if not blocks:
        return {}
    places = [block.split(".transformer_blocks.") for block in blocks]
    each = [1 + max(int(n) for place, n in places if place == this) for this in sorted({place for place, _ in places})]
    told = [f"{block}.attn2.{name}.weight" for block in blocks for name in ("to_k", "to_v")]
    own = [f"{block}.attn1.{name}.weight" for block in blocks for name in ("to_k", "to_v")]
    shape = lambda name: state[name].shape[1] if name in state and np.ndim(state[name]) == 2 else None
    context = strict.vote(state, *((name, 1) for name in told))
    if [shape(name) for name in told] == [shape(name) for name in own]:  # to the pixels again, or tokens just as wide
        if len({shape(name) for name in own}) == 1 and "context" not in hints:
            raise ValueError("this state dict does not show whether its transformers are told tokens: "
                             f"give context={context}, or context=None for pixels alone")  # fmt: skip
        context = None
    return {"depth": max(each, key=each.count), "context": context}


def table(net):
    """Entries of every array the family can have; `strict.used` keeps those of this network."""
    return adm.table(net) + norm(["norm_ids"], "id_predictor.0") + module(["ids_out"], "id_predictor.1", "dense2")


def inputs(net, state):
    """Shapes of an image, its time and a condition, with the channels that the state dict has."""
    channels = (strict.vote(state, ("input_blocks.0.0.weight", 1)) or net.out_channels + net.concat) - net.concat
    size = 2 ** (len(net.multipliers) - 1) * net.patch
    x = jax.ShapeDtypeStruct((size, size, max(channels, 1)), jnp.float32)
    return x, jax.ShapeDtypeStruct((), jnp.float32), net.blank(x)


def params_from_state(net, state, dtype=np.float32):
    """Parameters of `net` from a UNet's state dict; a ValueError lists everything that does not fit.

    A network of ids has the usual last layers too, which its official code never runs: they are left out.
    """
    if net.ids:
        state = {name: array for name, array in state.items() if not name.startswith(("out.0.", "out.2."))}
    return strict.to_params(state, table(net), strict.shapes(net, *inputs(net, state)), net, dtype)


def convert(state, weights=None, dtype=np.float32, **hints):
    """(net, params) of the UNet in the state dict of a whole file or of a UNet alone; hints are fields of `LatentUNet`."""
    if not any(name.startswith("input_blocks.") for name in state):
        parts = split(state, weights)
        if not parts.unet:
            raise ValueError(f"this is a first stage alone: it has no {UNET}*")
        state = parts.unet
    net = LatentUNet(**config_from_state(state, **hints))
    return net, params_from_state(net, state, dtype)


def to_state(net, params):
    """The UNet's official state dict (numpy arrays, torch's layouts and names) of our parameters."""
    return strict.to_state(params, table(net))


# --- what reads the condition ---------------------------------------------------------------------------------------


def conditioner(state, dtype=np.float32, **hints):
    """(module, params) of `Parts.conditioner`: a ClassEmbedder, a TextTransformer or a SpatialRescaler.

    hints: fields that no array shows: `stages`, `factor`, `method` of a rescaler (stages must be given); `heads`, `head_size`
    of a text encoder (official: 64 channels each). Raises ValueError for anything else, CLIP and arrays that do not fit.
    """
    if "embedding.weight" in state:
        classes, width = state["embedding.weight"].shape
        net, given = ClassEmbedder(**{"width": width, "classes": classes} | hints), jnp.zeros((), jnp.int32)
        entries = [Entry(("label",), ("embedding.weight",), "plain")]
    elif "transformer.token_emb.weight" in state:
        net = TextTransformer(**_text_fields(state) | hints)
        given, entries = jnp.zeros((1,), jnp.int32), text_table(net.layers)
        unused = "transformer.to_logits."  # words from the tokens again, for its own training
        state = {name: array for name, array in state.items() if not name.startswith(unused)}
    elif "channel_mapper.weight" in state:
        if "stages" not in hints:
            raise ValueError("a rescaler's arrays do not show how often it halves the image: give stages=...")
        channels, before = state["channel_mapper.weight"].shape[:2]
        read = {"channels": channels, "in_channels": before, "bias": "channel_mapper.bias" in state}
        net = SpatialRescaler(**read | hints)
        given, entries = jnp.zeros((64, 64, before)), module(["mapper"], "channel_mapper", "dense2")
    else:
        known = "class embedder (embedding.weight), text encoder (transformer.token_emb.weight) or rescaler (channel_mapper.*)"
        raise ValueError(f"this is no {known}: its arrays are {strict.some(list(state), 3) or 'none'}")
    return net, strict.to_params(state, entries, strict.shapes(net, given), net, dtype)


def _text_fields(state):
    vocabulary, width = state["transformer.token_emb.weight"].shape
    at = "transformer.attn_layers.layers."
    numbers = [name.removeprefix(at).split(".")[0] for name in state if name.startswith(at)]
    layers = (1 + max((int(n) for n in numbers if n.isdigit()), default=-1)) // 2
    inner = strict.vote(state, *((f"{at}{2 * n}.1.to_{part}.weight", 0) for n in range(layers) for part in "qkv")) or 512
    length = strict.vote(state, ("transformer.pos_emb.emb.weight", 0)) or 77
    return {"width": width, "layers": layers, "vocabulary": vocabulary, "length": length, "heads": max(inner // 64, 1)}


def text_table(layers):
    """Entries of a text encoder with so many pairs of attention and feed-forward layers."""
    entries = [
        Entry(("token",), ("transformer.token_emb.weight",), "plain"),
        Entry(("position",), ("transformer.pos_emb.emb.weight",), "plain"),
        *norm(["norm"], "transformer.norm"),
    ]
    for n in range(layers):
        at, first, second = f"layer_{n}", *(f"transformer.attn_layers.layers.{2 * n + i}" for i in (0, 1))
        entries += norm([at, "norm_1"], f"{first}.0") + norm([at, "norm_2"], f"{second}.0")
        for part in "qkv":
            entries += module([at, "attention", part], f"{first}.1.to_{part}", "dense", bias=False)
        entries += module([at, "attention", "out"], f"{first}.1.to_out", "dense")
        entries += module([at, "feed", "first"], f"{second}.1.net.0.0", "dense")
        entries += module([at, "feed", "second"], f"{second}.1.net.2", "dense")
    return entries


def join(net, params, reader, reader_params):
    """(net, params) of a network together with what reads its condition, see `nets.Conditioned`."""
    tree = {"net": params["params"], "reader": reader_params.get("params", {})}
    return Conditioned(net, reader), flax.core.freeze({"params": tree})
