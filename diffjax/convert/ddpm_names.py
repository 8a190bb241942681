"""Older names of DDPM's arrays, brought to those of `UNet2DModel`.

  2022        diffusers before 0.12: attention `query`, `key`, `value`, `proj_attn` (google/ddpm-celebahq-256 still has them)
  port        `temb.dense.0`, `down.0.block.1`, `mid.attn_1`, `up.0.attn.1`: the PyTorch port that DDIM, SDEdit, DDRM use
  TensorFlow  `temb/dense0/W`, `down_0/block_1/norm1/gamma`: Ho et al.'s own variables, saved as .npz

In port and TensorFlow the levels of the way up are counted as those of the way down (0 = full size); in `UNet2DModel` from
the deepest. TensorFlow's arrays are (h, w, in, out) and (in, out).
"""

import re

import numpy as np

ATTENTION_2022 = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
LEAVES = {"W": "weight", "b": "bias", "gamma": "weight", "beta": "bias"}
# of the port: a pattern, what it becomes; {up} is the number of an up block
PORT = (
    (r"temb\.dense\.(\d)\.", lambda m: f"time_embedding.linear_{int(m[1]) + 1}."),
    (r"norm_out\.", "conv_norm_out."),
    (r"mid\.block_(\d)\.", lambda m: f"mid_block.resnets.{int(m[1]) - 1}."),
    (r"mid\.attn_1\.", "mid_block.attentions.0."),
    (r"down\.(\d+)\.", r"down_blocks.\1."),
    (r"(\w+_blocks\.\d+)\.block\.(\d+)\.", r"\1.resnets.\2."),
    (r"(\w+_blocks\.\d+)\.attn\.(\d+)\.", r"\1.attentions.\2."),
    (r"(\w+_blocks\.\d+)\.(down|up)sample\.", r"\1.\2samplers.0."),
)
WITHIN = {".temb_proj.": ".time_emb_proj.", ".nin_shortcut.": ".conv_shortcut."}
ATTENTION = {".norm.": ".group_norm.", ".q.": ".to_q.", ".k.": ".to_k.", ".v.": ".to_v.", ".proj_out.": ".to_out.0."}


def modern(state):
    """A state dict with the names and layouts of today's `UNet2DModel`; one that has them already is returned as it is."""
    if any("temb/dense" in name for name in state):
        state = _from_tensorflow(state)
    if any(name.startswith("temb.dense.") for name in state):
        state = _from_port(state)
    return {_replace(name, ATTENTION_2022) if ".attentions." in name else name: a for name, a in state.items()}


def _replace(name, table):
    for before, after in table.items():
        name = name.replace(before, after)
    return name


def _from_port(state):
    deepest = max((int(m[1]) for m in (re.match(r"up\.(\d+)\.", name) for name in state) if m), default=0)
    result = {}
    for old, array in state.items():
        name = re.sub(r"^up\.(\d+)\.", lambda m: f"up_blocks.{deepest - int(m[1])}.", old)
        for pattern, after in PORT:
            name = re.sub(f"^{pattern}", after, name)
        name = _replace(name, WITHIN)
        if ".attentions." in name:
            name = _replace(name, ATTENTION)
            array = array.reshape(array.shape[:2]) if array.ndim == 4 and array.shape[2:] == (1, 1) else array
        result[name] = array
    return result


def _from_tensorflow(state):
    result = {}
    for old, array in state.items():
        name = old.removesuffix("/ExponentialMovingAverage").removeprefix("model/")
        *path, leaf = name.split("/")
        name = ".".join([*path, LEAVES.get(leaf, leaf)])
        name = re.sub(r"^(down|up)_(\d+)\.(?:(block|attn)_(\d+)\.)?", _numbers, name.replace("temb.dense", "temb.dense."))
        if leaf == "W" and array.ndim in (2, 4):
            array = array.transpose((3, 2, 0, 1)) if array.ndim == 4 else array.T
            array = array[:, :, None, None] if ".nin_shortcut." in name and array.ndim == 2 else array
        result[name] = np.ascontiguousarray(array)
    return result


def _numbers(m):
    return f"{m[1]}.{m[2]}." + (f"{m[3]}.{m[4]}." if m[3] else "")
