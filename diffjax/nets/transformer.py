"""Transformer layers of latent diffusion: over the pixels of an image with cross-attention to tokens, and over tokens.

Sources: Vaswani et al. 2017, arXiv:1706.03762; Shazeer 2020, arXiv:2002.05202 (GEGLU); Rombach et al. 2022,
arXiv:2112.10752, appendix E.2.1 (the layers between the residual blocks).
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from .attention import attention
from .layers import GroupNorm, wide, zeros


def layer_norm(name):
    """Over the last axis, two passes as in `GroupNorm`."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


class MultiHead(nn.Module):
    """Tokens x (..., queries, C) attend to context (..., keys, any width), or to themselves; (..., queries, C) comes back.

    Queries, keys and values have no bias, the projection back has one. `size` is the width of a head: C / heads where it is
    None. mask (..., keys): True for the keys that count.
    """

    heads: int
    size: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x, context=None, mask=None):
        context = x if context is None else context
        width = x.shape[-1]
        if self.size is None and width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide {width} channels of an attention layer")
        size = self.size or width // self.heads

        def project(a, name):
            a = nn.Dense(self.heads * size, use_bias=False, dtype=self.dtype, name=name)(a)
            return a.reshape(*a.shape[:-1], self.heads, size)

        h = attention(project(x, "q"), project(context, "k"), project(context, "v"), mask)
        return nn.Dense(width, dtype=self.dtype, name="out")(h.reshape(*h.shape[:-2], self.heads * size))


class Feed(nn.Module):
    """Two dense layers with 4 C numbers between them: value * gelu(gate) where `gated`, else gelu; gelu is the exact one."""

    gated: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(4 * x.shape[-1] * (1 + self.gated), dtype=self.dtype, name="first")(x)
        if self.gated:
            h, gate = jnp.split(h, 2, axis=-1)
            h = h * jax.nn.gelu(gate, approximate=False)
        else:
            h = jax.nn.gelu(h, approximate=False)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="second")(h)


class Block(nn.Module):
    """x + attention(norm x), then + attention(norm x, context), then + feed(norm x), for tokens x (..., L, C)."""

    heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x, context=None, mask=None):
        x = x + MultiHead(self.heads, dtype=self.dtype, name="attention_1")(layer_norm("norm_1")(x)).astype(x.dtype)
        told = MultiHead(self.heads, dtype=self.dtype, name="attention_2")(layer_norm("norm_2")(x), context, mask)
        x = x + told.astype(x.dtype)
        return x + Feed(True, self.dtype, name="feed")(layer_norm("norm_3")(x)).astype(x.dtype)


class SpatialTransformer(nn.Module):
    """x + proj(blocks(proj(norm x))) over the pixels of x (..., H, W, C), told context (..., L, D).

    The pixels attend to each other and to the context. Without a context the second attention of a block is to the pixels
    again. The last projection starts at zero. `epsilon` is that of the group norm.
    """

    heads: int
    depth: int = 1
    groups: int = 32
    epsilon: float = 1e-6
    dtype: Any = None
    spatial: int = 2

    @nn.compact
    def __call__(self, x, context=None, mask=None):
        channels = x.shape[-1]
        h = GroupNorm(self.groups, self.epsilon, self.spatial, name="norm")(x)
        h = nn.Dense(channels, dtype=self.dtype, name="proj_in")(h)
        h = h.reshape(*x.shape[: -1 - self.spatial], math.prod(x.shape[-1 - self.spatial : -1]), channels)
        for n in range(self.depth):
            h = Block(self.heads, self.dtype, name=f"block_{n}")(h, context, mask)
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=zeros, name="proj_out")(h.reshape(x.shape))
        return x + h.astype(x.dtype)


class TokenLayer(nn.Module):
    """x + attention(norm x), then + feed(norm x), for tokens x (..., L, C): a layer of a text encoder."""

    heads: int
    size: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x, mask=None):
        told = MultiHead(self.heads, self.size, self.dtype, name="attention")(layer_norm("norm_1")(wide(x)), None, mask)
        x = x + told.astype(x.dtype)
        return x + Feed(False, self.dtype, name="feed")(layer_norm("norm_2")(x)).astype(x.dtype)
