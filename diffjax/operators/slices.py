"""Thick slices of a volume."""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
import numpy as np

from ..base import in_range, nearest, pytree, static, whole
from .base import Spectral
from .checks import check_axes
from .downsample import HIGHEST, block_basis, check_factor
from .matrix import decompose


class AlongSlices(Spectral):
    """What is done along one axis of a volume (D, H, W, C) alone: ``axis`` is 0, 1 or 2, or counted from the end."""

    def __post_init__(self):
        check_factor(self)
        axis = self.axis + 4 if isinstance(self.axis, (int, np.integer)) and -4 <= self.axis < 0 else self.axis
        object.__setattr__(self, "axis", whole("axis", axis, 0, 2))

    @property
    def _at(self):
        return self.axis - 4

    def _check_slices(self, n):
        if n % self.factor:
            fits = n // self.factor * self.factor
            raise ValueError(f"factor {self.factor} does not divide the {n} slices of axis {self.axis}: keep {fits}")


@pytree
class SliceAverage(AlongSlices):
    """A(x) = mean of every ``factor`` neighbouring slices along ``axis`` (0, 1 or 2) of a volume (D, H, W, C): for axis 0
    (D / factor, H, W, C).

    A A^T = 1 / factor. Spectrum: the slices' axis is last and becomes (D / factor, factor), a cosine transform of which the
    first coefficient is measured; noise_std may differ from entry to entry of y. Raises ValueError for a factor below 1 or one
    that does not divide the axis, another axis, and what has no four axes.
    """

    factor: int = static(default=2)
    axis: int = static(default=0)

    def _blocks(self, x):
        """(rest, D / factor, factor)"""
        check_axes(self, x, "DHWC")
        x = jnp.moveaxis(x, self._at, -1)
        self._check_slices(x.shape[-1])
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


PROFILES = ("box", "gaussian")


@functools.lru_cache(maxsize=64)
def slice_matrix(n: int, factor: int, profile: str = "box", width: float = 1.0) -> np.ndarray:
    """(n / factor, n) float64: what thick slices weigh of n thin ones; rows sum to 1. Read-only, kept for the next call.

    Row i is the profile, centred on its block of ``factor`` thin slices, integrated over the extent of each thin slice; what
    lies beyond the first and the last is mirrored. ``width`` is in distances of thick slices: all of a box, the full width at
    half maximum of a Gaussian, which is cut off at three of its standard deviations.
    """
    if profile not in PROFILES:
        raise ValueError(f"slice profile {profile!r} is unknown: {nearest(str(profile), PROFILES)}")
    width = width * factor
    std = width / (2 * math.sqrt(2 * math.log(2)))
    reach = width / 2 if profile == "box" else 3 * std
    below = (lambda u: np.clip(u, -reach, reach)) if profile == "box" else (
        lambda u: np.vectorize(math.erf)(np.clip(u, -reach, reach) / (std * math.sqrt(2))))  # fmt: skip
    M, away = np.zeros((n // factor, n)), math.ceil(reach) + factor
    for i in range(n // factor):
        j = np.arange(i * factor - away, (i + 1) * factor + away)
        u = j - (i * factor + (factor - 1) / 2)
        mirrored = j % (2 * n)
        np.add.at(M[i], np.minimum(mirrored, 2 * n - 1 - mirrored), below(u + 0.5) - below(u - 0.5))
    M /= M.sum(1, keepdims=True)
    M.setflags(write=False)
    return M


@functools.lru_cache(maxsize=64)
def _decomposed(n, factor, profile, width):
    return decompose(slice_matrix(n, factor, profile, width))


@pytree
class ThickSlices(AlongSlices):
    """A(x) = every ``factor`` neighbouring slices of a volume (D, H, W, C) as one thick slice, weighed by a slice profile: for
    axis 0 (D / factor, H, W, C). A scanner's slices are no boxes, may overlap, or leave gaps.

    profile: "box" or "gaussian"; width: of the profile in distances of thick slices, 0.05 to 4: all of a box (0.75 leaves a
    gap of a quarter), the full width at half maximum of a Gaussian. A box of width 1 is ``SliceAverage``, which is quicker.
    What lies beyond the ends is mirrored. Spectrum: the slices' axis is last. Raises ValueError as ``SliceAverage`` does, and
    for other profiles and widths.
    """

    factor: int = static(default=2)
    axis: int = static(default=0)
    profile: str = static(default="box")
    width: float = static(default=1.0)

    def __post_init__(self):
        super().__post_init__()
        in_range("width", self.width, 0.05, 4)
        slice_matrix(self.factor, self.factor, self.profile, float(self.width))  # refuses profiles

    def _parts(self, n):
        self._check_slices(n)
        return _decomposed(n, self.factor, self.profile, float(self.width))

    def _times(self, M, x):
        return jnp.einsum("ij,...j->...i", jnp.asarray(M, x.dtype), x, precision=HIGHEST)

    def _last(self, x):
        check_axes(self, x, "DHWC")
        return jnp.moveaxis(x, self._at, -1)

    def singular(self, c):
        _, s, vt = self._parts(c.shape[-1])
        return jnp.asarray(np.pad(s, (0, len(vt) - len(s))), c.dtype)

    def Vt(self, x):
        x = self._last(x)
        return self._times(self._parts(x.shape[-1])[2], x)

    def V(self, c):
        return jnp.moveaxis(self._times(self._parts(c.shape[-1])[2].T, c), -1, self._at)

    def Ut(self, y):
        y = self._last(y)
        u, s, vt = self._parts(y.shape[-1] * self.factor)
        c = self._times(np.where(s > 0, u, 0).T, y)
        return jnp.pad(c, [(0, 0)] * (c.ndim - 1) + [(0, len(vt) - len(s))])

    def U(self, c):
        u, s, _ = self._parts(c.shape[-1])
        return jnp.moveaxis(self._times(u, c[..., : len(s)]), -1, self._at)

    def __call__(self, x):
        x = self._last(x)
        self._check_slices(x.shape[-1])
        M = slice_matrix(x.shape[-1], self.factor, self.profile, float(self.width))
        return jnp.moveaxis(self._times(M, x), -1, self._at)

    def T(self, y):
        y = self._last(y)
        M = slice_matrix(y.shape[-1] * self.factor, self.factor, self.profile, float(self.width))
        return jnp.moveaxis(self._times(M.T, y), -1, self._at)
