"""Settings by the names that the parent codes give them: guided-diffusion, improved-diffusion, diffusers, SR3."""

from __future__ import annotations

from collections.abc import Mapping

from ..wording import printable
from .schedulers import BETAS, LOSSES, whole

# theirs: ours, with the same meaning
SAME = {
    "image_size": "size", "sample_size": "size", "resolution": "size", "num_heads": "heads", "num_head_channels":
    "head_channels", "diffusion_steps": "T", "num_train_timesteps": "T", "num_timesteps": "T", "timesteps": "T",
    "num_channels": "width", "model_channels": "width", "num_res_blocks": "blocks", "layers_per_block": "blocks",
    "num_heads_upsample": "heads_upsample", "use_scale_shift_norm": "scale_shift", "num_classes": "classes",
    "num_class_embeds": "classes", "norm_num_groups": "groups", "attention_head_dim": "head_channels", "norm_eps":
    "epsilon", "freq_shift": "frequency_shift", "beta_start": "beta_min", "beta_end": "beta_max", "inner_channel": "width",
    "norm_groups": "groups", "res_blocks": "blocks", "n_timestep": "T", "linear_start": "beta_min", "linear_end": "beta_max",
}  # fmt: skip
# what changes neither the network nor its process, or is read off the weights
BESIDES = ("use_fp16", "use_checkpoint", "in_channels", "learn_sigma", "class_cond", "timestep_respacing", "use_ddim", "dims",
           "use_kl", "rescale_learned_sigmas", "sigma_small", "num_samples", "batch_size", "model_path", "clip_denoised",
           "dropout", "in_channel", "out_channel", "channel_multiplier", "channel_mults", "attn_res")  # fmt: skip
KNOWN = (*SAME, "noise_schedule", "beta_schedule", "use_new_attention_order", "predict_xstart", "prediction_type",
         "rescale_timesteps", "channel_mult", "attention_resolutions")  # fmt: skip


def ours(given: Mapping) -> dict:
    """The settings by our names. Raises ValueError where one is said twice, or cannot be translated."""
    found = {k: v for k, v in given.items() if k not in KNOWN and k not in BESIDES}

    def put(name, value, theirs):
        if name in found and found[name] != value:
            raise ValueError(f"{theirs}={printable(value, 40)} and {name}={printable(found[name], 40)} are the same "
                             "setting: give one")  # fmt: skip
        found[name] = value

    for theirs, value in given.items():
        if theirs in SAME and value not in (-1, None):  # -1: "not used"
            put(SAME[theirs], value, theirs)
        elif theirs in ("noise_schedule", "beta_schedule"):
            put("schedule", BETAS.get(str(value), value), theirs)
        elif theirs == "use_new_attention_order":
            put("qkv_order", "new" if value else "legacy", theirs)
        elif theirs == "predict_xstart" and value:
            put("loss", "x0", theirs)
        elif theirs == "prediction_type":
            put("loss", LOSSES.get(str(value), value), theirs)
        elif theirs == "channel_mult" and value:
            put("multipliers", _numbers(theirs, value), theirs)
    if given.get("rescale_timesteps"):
        put("time_scale", 1000 / whole("T", found.get("T", 1000)), "rescale_timesteps")
    if sides := given.get("attention_resolutions"):
        if "size" not in found:
            raise ValueError(f"attention_resolutions={printable(sides, 40)} are sides in pixels: give image_size too")
        size = whole("size", found["size"])
        put("attention", tuple(sorted(int(size // side) for side in _numbers("attention_resolutions", sides))),
            "attention_resolutions")  # fmt: skip
    return found


def _numbers(name, value) -> tuple:
    """ "1,2,4", [1, 2, 4] or 16 as a tuple of positive numbers."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    try:
        found = tuple(float(part) for part in parts)
    except (TypeError, ValueError, OverflowError):
        found = ()
    if not found or not all(0 < n < 1e6 for n in found):
        raise ValueError(f"{name}={printable(value, 40)}: give numbers like 1,2,4")
    return tuple(int(n) if n.is_integer() else n for n in found)
