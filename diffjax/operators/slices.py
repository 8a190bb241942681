"""Thick slices of a volume."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ..base import pytree, static, whole
from .base import Spectral
from .checks import check_axes
from .downsample import HIGHEST, block_basis, check_factor


@pytree
class SliceAverage(Spectral):
    """A(x) = mean of every ``factor`` neighbouring slices along ``axis`` (0, 1 or 2) of a volume (D, H, W, C): for axis 0
    (D / factor, H, W, C).

    A A^T = 1 / factor. Spectrum: the slices' axis is last and becomes (D / factor, factor), a cosine transform of which the
    first coefficient is measured; noise_std may differ from entry to entry of y. Raises ValueError for a factor below 1 or one
    that does not divide the axis, another axis, and what has no four axes.
    """

    factor: int = static(default=2)
    axis: int = static(default=0)

    def __post_init__(self):
        check_factor(self)
        axis = self.axis + 4 if isinstance(self.axis, (int, np.integer)) and -4 <= self.axis < 0 else self.axis
        object.__setattr__(self, "axis", whole("axis", axis, 0, 2))

    @property
    def _at(self):
        return self.axis - 4

    def _blocks(self, x):
        """(rest, D / factor, factor)"""
        check_axes(self, x, "DHWC")
        x = jnp.moveaxis(x, self._at, -1)
        if x.shape[-1] % self.factor:
            fits = x.shape[-1] // self.factor * self.factor
            raise ValueError(f"factor {self.factor} does not divide the {x.shape[-1]} slices of axis {self.axis}: keep {fits}")
        return x.reshape(*x.shape[:-1], -1, self.factor)

    def _unblock(self, b):
        return jnp.moveaxis(b.reshape(*b.shape[:-2], -1), -1, self._at)

    def singular(self, c):
        return jnp.asarray((np.arange(self.factor) == 0) / np.sqrt(self.factor), c.dtype)

    def spread(self, level):
        level = jnp.asarray(level)
        if not level.ndim:
            return level
        return jnp.moveaxis(level.reshape((1,) * (4 - level.ndim) + level.shape), self._at, -1)[..., None]

    def Vt(self, x):
        basis = jnp.asarray(block_basis(self.factor), x.dtype)
        return jnp.einsum("ki,...i->...k", basis, self._blocks(x), precision=HIGHEST)

    def V(self, c):
        basis = jnp.asarray(block_basis(self.factor), c.dtype)
        return self._unblock(jnp.einsum("ki,...k->...i", basis, c, precision=HIGHEST))

    def Ut(self, y):
        check_axes(self, y, "DHWC")
        c = jnp.moveaxis(y, self._at, -1)[..., None]
        return jnp.pad(c, [(0, 0)] * (c.ndim - 1) + [(0, self.factor - 1)])

    def U(self, c):
        return jnp.moveaxis(c[..., 0], -1, self._at)

    def __call__(self, x):
        return jnp.moveaxis(self._blocks(x).mean(-1), -1, self._at)

    def pinv(self, y):
        check_axes(self, y, "DHWC")
        return jnp.repeat(y, self.factor, self._at)

    def T(self, y):
        return self.pinv(y) / self.factor

    def prox(self, z, rho, y):
        return z - self.T(self.residual(z, y) / (1 / self.factor + rho))
