"""Inpainting."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ..base import is_concrete, pytree
from .base import Spectral


@pytree
class Mask(Spectral):
    """A(x) = mask * x. mask: 1 = known, 0 = hidden, (H, W, C), (H, W, 1) or whatever broadcasts to x; fractions allowed.

    Diagonal: its spectrum is the image. Raises ValueError for concrete values outside [0, 1].
    """

    mask: Any

    def __post_init__(self):
        if isinstance(self.mask, (np.ndarray, jax.Array)) and is_concrete(self.mask):
            values = np.asarray(self.mask)  # within a trace, reducing a JAX array would be traced
            low, high = float(values.min()), float(values.max())
            if low < 0 or high > 1:
                raise ValueError(f"mask values span [{low:g}, {high:g}]: give 0 (hidden) to 1 (known), for example mask / 255")

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
        return self.weights(x) * (x - y)

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
        return (m > 0) * y / (m + (m == 0))

    def prox(self, z, rho, y):
        m = self.weights(z)
        return (m * y + rho * z) / (m**2 + rho)
