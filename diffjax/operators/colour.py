"""Colour images from grey ones."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ..base import in_range, pytree, safe_divide, safe_sqrt
from .base import Spectral, first_axis
from .checks import check_axes


@pytree
class Grey(Spectral):
    """A(x) = sum over channels of weights times x, (H, W, C) -> (H, W, 1). Spectrum (H, W, C), of which the first is measured.

    weights: (C,), default the mean of three. DDRM and DDNM: (0.3333, 0.3334, 0.3333); luma: (0.299, 0.587, 0.114)
    Raises ValueError for an image with another number of channels.
    """

    weights: Any = (1 / 3, 1 / 3, 1 / 3)

    def __post_init__(self):
        in_range("a weight", self.weights)

    def _weights(self, dtype):
        w = jnp.asarray(self.weights).astype(dtype)
        if w.ndim != 1:
            raise ValueError(f"the weights of Grey have shape {w.shape}: give one weight per channel, (C,)")
        return w

    def _norm(self, w):
        return safe_sqrt((w**2).sum())

    def _direction(self, dtype):
        w = self._weights(dtype)
        return safe_divide(w, self._norm(w))[None, None]

    def spread(self, level):
        return jnp.asarray(level)

    def singular(self, c):
        return self._norm(self._weights(c.dtype)) * (jnp.arange(c.shape[-1]) == 0).astype(c.dtype)

    def Vt(self, x):
        check_axes(self, x)
        v = self._direction(x.dtype)
        if x.shape[-1] != v.shape[-1]:
            raise ValueError(f"x has {x.shape[-1]} channels, Grey {v.shape[-1]} weights: give one weight per channel")
        return first_axis(v, x, -1)

    def V(self, c):
        return first_axis(self._direction(c.dtype), c, -1, inverse=True)

    def Ut(self, y):
        check_axes(self, y)
        if y.shape[-1] != 1:
            raise ValueError(f"y has shape {y.shape}, what Grey gives has one channel: correct one")
        return jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(0, self._weights(y.dtype).shape[0] - 1)])

    def U(self, c):
        return c[..., :1]
