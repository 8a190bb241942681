"""Layers shared by the networks: group norm, attention, residual block, resampling, sinusoidal embedding.

All take (..., H, W, C) with any leading axes, or one image (H, W, C): nothing is summed over a leading axis, so an
image alone gives what it gives in a batch. With `spatial=1` or 3 images are signals (..., L, C) or volumes (..., D, H, W, C).
Norms, softmax and embeddings are computed in at least float32, whatever
`dtype` the convolutions and matrix products use; parameters are float32 unless converted to another type.

Sources: Dhariwal and Nichol 2021, arXiv:2105.05233 (ADM); Ho, Jain and Abbeel 2020, arXiv:2006.11239 (DDPM); Wu and
He 2018, arXiv:1803.08494 (group normalisation).
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .attention import attend
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


def _split(x, size, spatial):
    """(..., H, W, C) -> (..., H/size, size, W/size, size, C). One axis after the other: JAX reshapes arrays that are sharded
    over a mesh's explicit axes only so."""
    for axis in range(-1 - spatial, -1):
        at = x.ndim + axis
        x = x.reshape(*x.shape[:at], x.shape[at] // size, size, *x.shape[at + 1 :])
    return x


def _merge(x, spatial):
    """The inverse of `_split`."""
    for axis in range(-2, -2 - spatial, -1):
        at = x.ndim + axis
        x = x.reshape(*x.shape[: at - 1], x.shape[at - 1] * x.shape[at], *x.shape[at + 1 :])
    return x


def space_to_depth(x, patch, spatial=2):
    """(..., H, W, C) -> (..., H/patch, W/patch, patch * patch * C); channel order: row, column, channel."""
    if patch == 1:
        return x
    x = _split(x, patch, spatial)
    first = x.ndim - 2 * spatial - 1
    x = jnp.transpose(x, (*range(first), *range(first, x.ndim - 1, 2), *range(first + 1, x.ndim - 1, 2), x.ndim - 1))
    return x.reshape(*x.shape[: first + spatial], patch**spatial * x.shape[-1])


def depth_to_space(x, patch, spatial=2):
    """The inverse of `space_to_depth`."""
    if patch == 1:
        return x
    first = x.ndim - 1 - spatial
    x = x.reshape(*x.shape[:-1], *(patch,) * spatial, x.shape[-1] // patch**spatial)
    pairs = (axis for n in range(first, first + spatial) for axis in (n, n + spatial))
    return _merge(jnp.transpose(x, (*range(first), *pairs, x.ndim - 1)), spatial)


def average_pool(x, spatial=2):
    """Mean of blocks of 2 along each axis of the image; sides even."""
    return _split(x, 2, spatial).mean(tuple(range(-2 * spatial, -1, 2)))


def nearest(x, spatial=2):
    """Every pixel becomes a block of 2 along each axis of the image."""
    x = jnp.expand_dims(x, tuple(range(-2 * spatial, -1, 2)))
    shape = list(x.shape)
    shape[-2 * spatial : -1 : 2] = [2] * spatial
    return _merge(jnp.broadcast_to(x, shape), spatial)


def conv(features, size=3, *, stride=1, padding=None, dtype=None, zero=False, name=None, spatial=2):
    """Square convolution with torch's symmetric padding (unlike "SAME", which pads a strided one at the end only)."""
    pad = padding if padding is not None else ((size // 2, size // 2),) * spatial
    init = {"kernel_init": zeros} if zero else {}
    how = {"padding": pad, "dtype": dtype, "name": name, "conv_general_dilated": convolution}
    return nn.Conv(features, (size,) * spatial, (stride,) * spatial, **how, **init)


def over_image(a, spatial):
    """(..., C) -> (..., 1, 1, C): the same number for all pixels of an image."""
    return jnp.expand_dims(a, axes(spatial))


def axes(spatial):
    """The axes of an image's pixels: (-3, -2) for 2."""
    return tuple(range(-1 - spatial, -1))


def check_groups(groups, channels):
    if channels % groups:
        valid = max(g for g in range(1, groups + 1) if channels % g == 0)
        raise ValueError(f"groups={groups} does not divide a layer of {channels} channels: use groups={valid}")


def _each(a, channels):
    """(..., groups) -> (..., channels): a group's number for each of its channels.

    By a product with zeros and ones: a repetition would be computed again at every pixel, and XLA's CPU compiler would not
    vectorise what is done there.
    """
    groups = a.shape[-1]
    if groups == channels:
        return a
    belongs = jnp.arange(channels) // (channels // groups) == jnp.arange(groups)[:, None]
    return jnp.matmul(a, belongs.astype(a.dtype), precision="highest")


class GroupNorm(nn.Module):
    """Group normalisation of each image over its pixels and the channels of a group; result in at least float32.

    Two passes (mean, then variance about the mean), both over contiguous memory: a channel's moments first, from
    them the group's. The usual one-pass E[x^2] - E[x]^2 loses the variance where the mean is large.
    """

    groups: int = 32
    epsilon: float = 1e-5
    spatial: int = 2

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        check_groups(self.groups, channels)
        gain = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", zeros, (channels,))
        x, pixels = wide(x), axes(self.spatial)
        grouped = (*x.shape[: -1 - self.spatial], self.groups, channels // self.groups)
        each = functools.partial(_each, channels=channels)

        centre = over_image(each(x.mean(pixels).reshape(grouped).mean(-1)), self.spatial)
        variance = jnp.square(x - centre).mean(pixels).reshape(grouped).mean(-1)
        inverse = jax.lax.rsqrt(variance + jnp.asarray(self.epsilon, x.dtype))
        factor = over_image(each(inverse) * gain.astype(x.dtype), self.spatial)
        return (x - centre) * factor + bias.astype(x.dtype)


class Attention(nn.Module):
    """x + proj(softmax(q k^T / sqrt(d)) v) over the pixels of an image, on the group norm of x.

    `order` is how the 3C channels of the joint projection are laid out: "legacy" = head, then q k v, then channel;
    "new" = q k v, then head, then channel. With one head both are the same. `rescale` divides the sum by sqrt(2);
    `bias` is that of the joint projection.
    """

    heads: int = 1
    order: str = "legacy"
    groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = None
    norm: bool = True
    spatial: int = 2
    rescale: bool = False
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        if channels % self.heads:
            raise ValueError(f"heads={self.heads} does not divide {channels} channels of an attention layer")
        h = GroupNorm(self.groups, self.epsilon, self.spatial, name="norm")(x) if self.norm else x
        h = nn.Dense(3 * channels, use_bias=self.bias, dtype=self.dtype, name="qkv")(h)
        tokens = (*x.shape[: -1 - self.spatial], math.prod(x.shape[-1 - self.spatial : -1]), 3 * channels)
        h = attend(h.reshape(tokens), self.heads, self.order).reshape(x.shape)
        x = x + nn.Dense(channels, dtype=self.dtype, kernel_init=zeros, name="proj")(h).astype(x.dtype)
        return x * math.sqrt(0.5) if self.rescale else x


class ResBlock(nn.Module):
    """skip(x) + conv(silu(norm(conv(silu(norm(x)))))), told the time by the embedding `e` (..., E) (already activated).

    `rescale` divides the sum by sqrt(2). The embedding is added between the convolutions, or with `scale_shift` scales and
    shifts the second norm; None: there is no time.
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
    spatial: int = 2
    rescale: bool = False

    @nn.compact
    def __call__(self, x, e=None):
        spatial = self.spatial
        change = {"down": average_pool, "up": nearest, None: lambda h, spatial: h}[self.resample]
        h = jax.nn.silu(GroupNorm(self.groups, self.epsilon, spatial, name="norm_1")(x))
        h = conv(self.features, dtype=self.dtype, name="conv_1", spatial=spatial)(change(h, spatial))
        if e is not None:
            e = over_image(nn.Dense(self.features * (1 + self.scale_shift), name="embedding")(e), spatial)
        norm = GroupNorm(self.groups, self.epsilon, spatial, name="norm_2")
        if e is None:
            h = norm(h)
        elif self.scale_shift:
            scale, shift = jnp.split(e, 2, axis=-1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + e.astype(h.dtype))
        h = jax.nn.silu(h)
        if self.dropout:
            h = nn.Dropout(self.dropout, deterministic=False)(h)
        h = conv(self.features, dtype=self.dtype, zero=True, name="conv_2", spatial=spatial)(h)
        x = change(x, spatial)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="skip")(x)
        h = x.astype(h.dtype) + h
        return h * math.sqrt(0.5) if self.rescale else h


class Down(nn.Module):
    """Halve the sides: a strided 3 x 3 convolution, or with `learned=False` the mean of 2 x 2 blocks. features: as x has."""

    learned: bool = True
    padding: tuple | None = None
    dtype: Any = None
    spatial: int = 2
    features: int | None = None

    @nn.compact
    def __call__(self, x):
        if not self.learned:
            return average_pool(x, self.spatial)
        how = {"padding": self.padding, "dtype": self.dtype, "spatial": self.spatial}
        return conv(self.features or x.shape[-1], stride=2, name="conv", **how)(x)


class Up(nn.Module):
    """Double the sides by repeating pixels, then a 3 x 3 convolution unless `learned=False`. features: as x has."""

    learned: bool = True
    dtype: Any = None
    spatial: int = 2
    features: int | None = None

    @nn.compact
    def __call__(self, x):
        x, features = nearest(x, self.spatial), self.features or x.shape[-1]
        return conv(features, dtype=self.dtype, name="conv", spatial=self.spatial)(x) if self.learned else x
