"""Inpainting."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ..base import is_concrete, pytree, safe_divide
from .base import Operator


@pytree
class Mask(Operator):
    """A(x) = mask * x. mask: 1 = known, 0 = hidden, (H, W, C), (H, W, 1) or whatever broadcasts to x; fractions allowed.

    Raises ValueError for concrete values outside [0, 1].
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

    def __call__(self, x):
        return self.weights(x) * x

    def residual(self, x, y):
        return self.weights(x) * (x - y)

    def T(self, y):
        return self.weights(y) * y

    def pinv(self, y):
        return safe_divide(y, self.weights(y))

    def prox(self, z, rho, y):
        m = self.weights(z)
        return (m * y + rho * z) / (m**2 + rho)
