"""Thick slices of a volume."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ..base import pytree, static
from .base import Spectral
from .downsample import HIGHEST, block_basis, check_factor


@pytree
class SliceAverage(Spectral):
    """A(x) = mean of every ``factor`` neighbouring slices along ``axis``: (D, H, W, C) -> (D / factor, H, W, C) for axis 0.

    A A^T = 1 / factor. Any rank. Spectrum: the slices' axis becomes (D / factor, factor), a cosine transform of which the
    first coefficient is measured. Raises ValueError for a factor below 1 or one that does not divide the axis.
    """

    factor: int = static(default=2)
    axis: int = static(default=0)

    def __post_init__(self):
        check_factor(self.factor)

    def _blocks(self, x):
        """(D / factor, factor, rest)"""
        x = jnp.moveaxis(x, self.axis, 0)
        if x.shape[0] % self.factor:
            fits = x.shape[0] // self.factor * self.factor
            raise ValueError(f"factor {self.factor} does not divide the {x.shape[0]} slices of axis {self.axis}: keep {fits}")
        return x.reshape(-1, self.factor, *x.shape[1:])

    def _unblock(self, b):
        return jnp.moveaxis(b.reshape(-1, *b.shape[2:]), 0, self.axis)

    def singular(self, c):
        first = (np.arange(self.factor) == 0) / np.sqrt(self.factor)
        return jnp.asarray(first, c.dtype).reshape(1, -1, *(1,) * (c.ndim - 2))

    def Vt(self, x):
        basis = jnp.asarray(block_basis(self.factor), x.dtype)
        return jnp.einsum("ki,di...->dk...", basis, self._blocks(x), precision=HIGHEST)

    def V(self, c):
        basis = jnp.asarray(block_basis(self.factor), c.dtype)
        return self._unblock(jnp.einsum("ki,dk...->di...", basis, c, precision=HIGHEST))

    def Ut(self, y):
        y = jnp.moveaxis(y, self.axis, 0)[:, None]
        return jnp.pad(y, [(0, 0), (0, self.factor - 1)] + [(0, 0)] * (y.ndim - 2))

    def U(self, c):
        return jnp.moveaxis(c[:, 0], 0, self.axis)

    def __call__(self, x):
        return jnp.moveaxis(self._blocks(x).mean(1), 0, self.axis)

    def pinv(self, y):
        return jnp.repeat(y, self.factor, self.axis)

    def T(self, y):
        return self.pinv(y) / self.factor

    def prox(self, z, rho, y):
        return z + self.T(y - self(z)) / (1 / self.factor + rho)
