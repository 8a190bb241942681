"""Super-resolution by block means."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ..base import pytree, static, whole
from .base import Spectral
from .checks import check_axes

HIGHEST = jax.lax.Precision.HIGHEST  # a TPU's default rounds to bfloat16


@functools.cache
def block_basis(n: int) -> np.ndarray:
    """(n, n) orthonormal rows (a cosine transform), the first constant."""
    k, i = np.arange(n)[:, None], np.arange(n)
    basis = np.sqrt(2 / n) * np.cos(np.pi * k * (2 * i + 1) / (2 * n))
    basis[0] /= np.sqrt(2)
    return basis


def blocks(x, factor):
    """(H, W, C) -> (h, w, factor^2, C), the pixels of every factor x factor block; ValueError if factor does not divide."""
    *batch, H, W, c = x.shape
    if H % factor or W % factor:
        fits = f"{H // factor * factor}x{W // factor * factor}"
        raise ValueError(f"factor {factor} does not divide the image's {H}x{W}: crop it to {fits}")
    h, w = H // factor, W // factor
    return x.reshape(*batch, h, factor, w, factor, c).swapaxes(-4, -3).reshape(*batch, h, w, factor**2, c)


def unblock(b, factor):
    """The inverse of :func:`blocks`."""
    *batch, h, w, _, c = b.shape
    return b.reshape(*batch, h, w, factor, factor, c).swapaxes(-4, -3).reshape(*batch, h * factor, w * factor, c)


def check_factor(A):
    object.__setattr__(A, "factor", whole("factor", A.factor))


@pytree
class Downsample(Spectral):
    """A(x) = mean of every factor x factor block, (H, W, C) -> (H / factor, W / factor, C).

    A A^T = 1 / factor^2. Spectrum (h, w, factor^2, C): a cosine transform of each block, whose first coefficient is
    measured; noise_std may differ from pixel to pixel of y. Raises ValueError for a factor below 1, or one that does not
    divide H and W.
    """

    factor: int = static(default=2)

    def __post_init__(self):
        check_factor(self)

    @property
    def s(self):
        return (np.arange(self.factor**2) == 0)[:, None] / self.factor

    def spread(self, level):
        level = jnp.asarray(level)
        return level[..., None, :] if level.ndim else level

    def Vt(self, x):
        check_axes(self, x)
        basis = jnp.asarray(block_basis(self.factor**2), x.dtype)
        return jnp.einsum("ki,...hwic->...hwkc", basis, blocks(x, self.factor), precision=HIGHEST)

    def V(self, c):
        basis = jnp.asarray(block_basis(self.factor**2), c.dtype)
        return unblock(jnp.einsum("ki,...hwkc->...hwic", basis, c, precision=HIGHEST), self.factor)

    def Ut(self, y):
        check_axes(self, y)
        return jnp.pad(y[..., None, :], [(0, 0)] * (y.ndim - 1) + [(0, self.factor**2 - 1), (0, 0)])

    def U(self, c):
        return c[..., 0, :]

    def __call__(self, x):
        check_axes(self, x)
        return blocks(x, self.factor).mean(-2)

    def pinv(self, y):
        check_axes(self, y)
        return jnp.repeat(jnp.repeat(y, self.factor, -3), self.factor, -2)

    def T(self, y):
        return self.pinv(y) / self.factor**2

    def prox(self, z, rho, y):
        return z - self.T(self.residual(z, y) / (1 / self.factor**2 + rho))
