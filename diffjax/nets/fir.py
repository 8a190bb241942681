"""Halving and doubling the sides of an image through a small smoothing filter, zeros beyond the border (edges darken).

    down: filter, then every second pixel           up: zeros between the pixels, then the filter times 2 per axis

The filter is the outer product of `taps` (such as 1, 3, 3, 1) with itself, of sum 1, applied as a convolution (turned). Each
axis is multiplied by a banded matrix: on CPUs a depthwise convolution has a gradient fifty times slower, and sums of shifted
slices take minutes to compile in a deep network. Arrays are (..., H, W, C).

Sources: Zhang 2019, arXiv:1904.11486 (blur before subsampling); Karras et al. 2020, arXiv:1912.04958 (StyleGAN2, whose
padding this is); Song et al. 2021, arXiv:2011.13456, appendix H (in NCSN++).
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from .convolution import convolution
from .layers import zeros


@functools.lru_cache(maxsize=256)
def _band(n, taps, low, high, stride, spread, gain):
    """The matrix (rows, n) of one axis: `spread` - 1 zeros after each of n numbers, `low` and `high` zeros around them, the
    filter of sum `gain`, every `stride`-th result."""
    turned = gain * np.asarray(taps, np.float64)[::-1] / sum(taps)
    rows = (n * spread + low + high - len(taps)) // stride + 1
    matrix = np.zeros((rows, n))
    for a, weight in enumerate(turned):
        at = stride * np.arange(rows) + a - low  # of the numbers with their zeros
        hit = (at % spread == 0) & (at >= 0) & (at < n * spread)
        matrix[np.flatnonzero(hit), at[hit] // spread] += weight
    return matrix


def smooth(x, taps, low, high, stride=1, spread=1):
    """Both axes of x: `spread` - 1 zeros after each pixel, so many zeros around, the filter, every `stride`-th result."""
    rows, columns = (jnp.asarray(_band(n, tuple(taps), low, high, stride, spread, spread), x.dtype) for n in x.shape[-3:-1])
    return jnp.einsum("ow,...hwc->...hoc", columns, jnp.einsum("oh,...hwc->...owc", rows, x))


def down(x, taps):
    """(..., H, W, C) -> (..., H/2, W/2, C)"""
    excess = len(taps) - 2
    return smooth(x, taps, (excess + 1) // 2, excess // 2, stride=2)


def up(x, taps):
    """(..., H, W, C) -> (..., 2H, 2W, C)"""
    excess = len(taps) - 2
    return smooth(x, taps, (excess + 1) // 2 + 1, excess // 2, spread=2)


class ConvDown(nn.Module):
    """The filter, then a 3 x 3 convolution of stride 2: (..., H, W, C) -> (..., H/2, W/2, features)."""

    features: int
    taps: tuple

    @nn.compact
    def __call__(self, x):
        excess = len(self.taps)  # taps - 2, and 2 for the convolution
        x = smooth(x, self.taps, (excess + 1) // 2, excess // 2)
        how = {"padding": ((0, 0), (0, 0)), "conv_general_dilated": convolution, "name": "conv"}
        return nn.Conv(self.features, (3, 3), (2, 2), **how)(x)


class ConvUp(nn.Module):
    """A transposed 3 x 3 convolution of stride 2, the filter times 4, the bias: (..., H, W, C) -> (..., 2H, 2W, features)."""

    features: int
    taps: tuple

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.features)).astype(x.dtype)
        bias = self.param("bias", zeros, (self.features,)).astype(x.dtype)
        x = smooth(x, (1,), 0, 0, spread=2)  # zeros between the pixels, times 4
        flat = x.reshape(-1, *x.shape[-3:])
        y = convolution(flat, kernel, (1, 1), ((2, 1), (2, 1)))
        excess = len(self.taps) - 4
        y = smooth(y, self.taps, (excess + 1) // 2 + 1, excess // 2 + 1)
        return y.reshape(*x.shape[:-3], *y.shape[1:]) + bias


def resampler(way, taps):
    """x -> x halved ("down") or doubled ("up") with these taps."""
    return functools.partial({"down": down, "up": up}[way], taps=taps)
