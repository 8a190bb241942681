"""Super-resolution by block means."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np

from ..base import pytree, static
from .base import Spectral


@functools.cache
def block_basis(n: int) -> np.ndarray:
    """(n, n) orthonormal rows (a cosine transform), the first constant."""
    k, i = np.arange(n)[:, None], np.arange(n)
    basis = np.sqrt(2 / n) * np.cos(np.pi * k * (2 * i + 1) / (2 * n))
    basis[0] /= np.sqrt(2)
    return basis


@pytree
class Downsample(Spectral):
    """A(x) = mean of every factor x factor block, (H, W, C) -> (H / factor, W / factor, C).

    A A^T = 1 / factor^2. Spectrum (h, w, factor^2, C): a cosine transform of each block, whose first coefficient is
    measured. Raises ValueError for a factor below 1, or one that does not divide H and W.
    """

    factor: int = static(default=2)

    def __post_init__(self):
        if not isinstance(self.factor, int) or self.factor < 1:
            raise ValueError(f"factor {self.factor!r} is not a whole number >= 1")

    def _blocks(self, x):
        """(h, w, factor^2, C)"""
        h, w, c = x.shape
        f = self.factor
        if h % f or w % f:
            raise ValueError(f"factor {f} does not divide the image's {h}x{w}: crop it to {h // f * f}x{w // f * f}")
        return x.reshape(h // f, f, w // f, f, c).transpose(0, 2, 1, 3, 4).reshape(h // f, w // f, f * f, c)

    @property
    def s(self):
        return (np.arange(self.factor**2) == 0)[:, None] / self.factor

    def Vt(self, x):
        return jnp.einsum("ki,hwic->hwkc", jnp.asarray(block_basis(self.factor**2), x.dtype), self._blocks(x))

    def V(self, c):
        h, w, _, channels = c.shape
        f = self.factor
        blocks = jnp.einsum("ki,hwkc->hwic", jnp.asarray(block_basis(f * f), c.dtype), c)
        return blocks.reshape(h, w, f, f, channels).transpose(0, 2, 1, 3, 4).reshape(h * f, w * f, channels)

    def Ut(self, y):
        return jnp.pad(y[:, :, None], ((0, 0), (0, 0), (0, self.factor**2 - 1), (0, 0)))

    def U(self, c):
        return c[:, :, 0]

    def __call__(self, x):
        return self._blocks(x).mean(2)

    def pinv(self, y):
        return jnp.repeat(jnp.repeat(y, self.factor, 0), self.factor, 1)

    def T(self, y):
        return self.pinv(y) / self.factor**2

    def prox(self, z, rho, y):
        return z + self.T(y - self(z)) / (1 / self.factor**2 + rho)
