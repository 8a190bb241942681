"""Inpainting."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ..base import is_concrete, pytree, safe_divide
from .base import Spectral


def check_mask(mask):
    """Raise ValueError for concrete values outside [0, 1]."""
    if isinstance(mask, (np.ndarray, jax.Array)) and is_concrete(mask) and mask.size:
        values = np.asarray(mask)  # within a trace, reducing a JAX array would be traced
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 1:
            raise ValueError(f"mask values span [{low:g}, {high:g}]: give 0 (hidden) to 1 (known), for example mask / 255")


@pytree
class Mask(Spectral):
    """A(x) = mask * x. mask: 1 = known, 0 = hidden, (H, W, C), (H, W, 1) or whatever broadcasts to x; fractions allowed.

    Diagonal: its spectrum is the image. Raises ValueError for concrete values outside [0, 1].
    """

    mask: Any

    def __post_init__(self):
        check_mask(self.mask)

    def weights(self, x):
        """The mask in the dtype of ``x``."""
        return self.mask.astype(x.dtype)

    @property
    def s(self):
        return self.mask

    def __call__(self, x):
        return self.weights(x) * x

    T = __call__

    def residual(self, x, y):
        m = self.weights(x)
        return (m > 0).astype(m.dtype) * (m * x - y)

    def Vt(self, x):
        return x

    def V(self, c):
        return c

    def Ut(self, y):
        return (self.mask > 0).astype(y.dtype) * y

    def U(self, c):
        return c

    def pinv(self, y):
        m = self.weights(y)
        return safe_divide((m > 0).astype(y.dtype) * y, m)

    def prox(self, z, rho, y):
        m = self.weights(z)
        return (m * y + rho * z) / (m**2 + rho)
