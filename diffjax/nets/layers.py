"""Layers shared by the networks: group norm, attention, residual block, resampling, sinusoidal embedding.

All take (..., H, W, C) with any leading axes, or one image (H, W, C): nothing is summed over a leading axis, so an
image alone gives what it gives in a batch. Norms, softmax and embeddings are computed in at least float32, whatever
`dtype` the convolutions and matrix products use; parameters are float32 unless converted to another type.

Sources: Dhariwal and Nichol 2021, arXiv:2105.05233 (ADM); Ho, Jain and Abbeel 2020, arXiv:2006.11239 (DDPM); Wu and
He 2018, arXiv:1803.08494 (group normalisation).
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .convolution import convolution

zeros = nn.initializers.zeros


def wide(x):
    """`x` as a float of at least 32 bits: the type norms, softmax and embeddings are computed in."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def sinusoid(t, width, *, sin_first=False, shift=0, period=10_000.0):
    """Sinusoidal embedding (..., width) of times `t` (...): cos and sin of t * period^(-j / (width//2 - shift)).

    An odd width ends with a zero. ADM: cos first, shift 0. DDPM: sin first, shift 1.
    """
    half = width // 2
    frequency = np.exp(-math.log(period) * np.arange(half) / (half - shift))
    angle = t[..., None] * jnp.asarray(frequency, t.dtype)
    parts = [jnp.sin(angle), jnp.cos(angle)] if sin_first else [jnp.cos(angle), jnp.sin(angle)]
    odd = [jnp.zeros((*t.shape, 1), t.dtype)] if width % 2 else []
    return jnp.concatenate(parts + odd, axis=-1)


def space_to_depth(x, patch):
    """(..., H, W, C) -> (..., H/patch, W/patch, patch * patch * C); channel order: row, column, channel."""
    if patch == 1:
        return x
    *lead, h, w, c = x.shape
    x = x.reshape(*lead, h // patch, patch, w // patch, patch, c)
    return jnp.swapaxes(x, -4, -3).reshape(*lead, h // patch, w // patch, patch * patch * c)


def depth_to_space(x, patch):
    """The inverse of `space_to_depth`."""
    if patch == 1:
        return x
    *lead, h, w, c = x.shape
    x = x.reshape(*lead, h, w, patch, patch, c // patch**2)
    return jnp.swapaxes(x, -4, -3).reshape(*lead, h * patch, w * patch, c // patch**2)


def average_pool(x):
    """Mean of 2 x 2 blocks; sides even."""
    *lead, h, w, c = x.shape
    return x.reshape(*lead, h // 2, 2, w // 2, 2, c).mean((-4, -2))


def nearest(x):
    """Every pixel becomes a 2 x 2 block."""
    *lead, h, w, c = x.shape
    x = jnp.broadcast_to(x[..., :, None, :, None, :], (*lead, h, 2, w, 2, c))
    return x.reshape(*lead, 2 * h, 2 * w, c)


def conv(features, size=3, *, stride=1, padding=None, dtype=None, zero=False, name=None):
    """Square convolution with torch's symmetric padding (unlike "SAME", which pads a strided one at the end only)."""
    pad = padding if padding is not None else ((size // 2, size // 2),) * 2
    init = {"kernel_init": zeros} if zero else {}
    how = {"padding": pad, "dtype": dtype, "name": name, "conv_general_dilated": convolution}
    return nn.Conv(features, (size, size), (stride, stride), **how, **init)


def check_groups(groups, channels):
    if channels % groups:
        valid = max(g for g in range(1, groups + 1) if channels % g == 0)
        raise ValueError(f"groups={groups} does not divide a layer of {channels} channels: use groups={valid}")


class GroupNorm(nn.Module):
    """Group normalisation of each image over H, W and the channels of a group; result in at least float32.

    Two passes (mean, then variance about the mean), both over contiguous memory: a channel's moments first, from
    them the group's. The usual one-pass E[x^2] - E[x]^2 loses the variance where the mean is large.
    """

    groups: int = 32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        check_groups(self.groups, channels)
        gain = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", zeros, (channels,))
        x = wide(x)
        grouped = (*x.shape[:-3], self.groups, channels // self.groups)

        mean = x.mean((-3, -2))
        group_mean = mean.reshape(grouped).mean(-1)
        centre = jnp.repeat(group_mean, channels // self.groups, axis=-1)[..., None, None, :]
        variance = jnp.square(x - centre).mean((-3, -2)).reshape(grouped).mean(-1)
        inverse = jax.lax.rsqrt(variance + jnp.asarray(self.epsilon, x.dtype))
        factor = jnp.repeat(inverse, channels // self.groups, axis=-1) * gain.astype(x.dtype)
        return (x - centre) * factor[..., None, None, :] + bias.astype(x.dtype)


class Attention(nn.Module):
    """x + proj(softmax(q k^T / sqrt(d)) v) over the pixels of an image, on the group norm of x.

    `order` is how the 3C channels of the joint projection are laid out: "legacy" = head, then q k v, then channel;
    "new" = q k v, then head, then channel. With one head both are the same.
    """

    heads: int = 1
    order: str = "legacy"
    groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = None
    norm: bool = True

    @nn.compact
    def __call__(self, x):
        *lead, height, width, channels = x.shape
        if channels % self.heads:
            raise ValueError(f"heads={self.heads} does not divide {channels} channels of an attention layer")
        h = GroupNorm(self.groups, self.epsilon, name="norm")(x) if self.norm else x
        h = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(h)
        h = attend(h.reshape(*lead, height * width, 3 * channels), self.heads, self.order)
        h = h.reshape(*lead, height, width, channels)
        return x + nn.Dense(channels, dtype=self.dtype, kernel_init=zeros, name="proj")(h).astype(x.dtype)


def attend(qkv, heads, order):
    """(..., tokens, 3C) -> (..., tokens, C): multi-head attention of joint queries, keys and values."""
    *lead, tokens, channels = qkv.shape
    size = channels // (3 * heads)
    if order == "legacy":
        q, k, v = jnp.moveaxis(qkv.reshape(*lead, tokens, heads, 3, size), -2, 0)
    else:
        q, k, v = jnp.moveaxis(qkv.reshape(*lead, tokens, 3, heads, size), -3, 0)
    scale = size**-0.25  # on both sides of the product, so that it stays small in half precision
    weight = wide(jnp.einsum("...qhd,...khd->...hqk", q * scale, k * scale))
    weight = jax.nn.softmax(weight, axis=-1).astype(v.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weight, v).reshape(*lead, tokens, channels // 3)


class ResBlock(nn.Module):
    """skip(x) + conv(silu(norm(conv(silu(norm(x)))))), told the time by the embedding `e` (..., E) (already activated).

    The embedding is added between the convolutions, or with `scale_shift` scales and shifts the second norm.
    `resample` ("down", "up" or None) acts on both branches before the first convolution. The last convolution starts
    at zero: a new block is the identity.
    """

    features: int
    scale_shift: bool = False
    resample: str | None = None
    dropout: float = 0.0
    groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, x, e):
        change = {"down": average_pool, "up": nearest, None: lambda h: h}[self.resample]
        h = jax.nn.silu(GroupNorm(self.groups, self.epsilon, name="norm_1")(x))
        h = conv(self.features, dtype=self.dtype, name="conv_1")(change(h))
        e = nn.Dense(self.features * (1 + self.scale_shift), name="embedding")(e)[..., None, None, :]
        norm = GroupNorm(self.groups, self.epsilon, name="norm_2")
        if self.scale_shift:
            scale, shift = jnp.split(e, 2, axis=-1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + e.astype(h.dtype))
        h = jax.nn.silu(h)
        if self.dropout:
            h = nn.Dropout(self.dropout, deterministic=False)(h)
        h = conv(self.features, dtype=self.dtype, zero=True, name="conv_2")(h)
        x = change(x)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="skip")(x)
        return x.astype(h.dtype) + h


class Down(nn.Module):
    """Halve the sides: a strided 3 x 3 convolution, or with `learned=False` the mean of 2 x 2 blocks."""

    learned: bool = True
    padding: tuple = ((1, 1), (1, 1))
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        if not self.learned:
            return average_pool(x)
        return conv(x.shape[-1], stride=2, padding=self.padding, dtype=self.dtype, name="conv")(x)


class Up(nn.Module):
    """Double the sides by repeating pixels, then a 3 x 3 convolution unless `learned=False`."""

    learned: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        x = nearest(x)
        return conv(x.shape[-1], dtype=self.dtype, name="conv")(x) if self.learned else x
