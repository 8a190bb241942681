"""Inpainting."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from ..base import in_range, numbers, pytree, safe_divide
from .base import Spectral
from .checks import check_same, check_weights


def check_mask(A):
    """Make lists an array; ValueError for known values outside [0, 1]."""
    in_range("mask", A.mask, 0, 1, remedy="give 0 (hidden) to 1 (known), for example mask / 255")
    if isinstance(A.mask, (list, tuple)) and numbers(A.mask) is not None:
        object.__setattr__(A, "mask", np.asarray(A.mask))


@pytree
class Mask(Spectral):
    """A(x) = mask * x. mask: 1 = known, 0 = hidden, (H, W, C), (H, W, 1) or whatever broadcasts to x and not beyond it; (H, W)
    is refused where x has channels. Fractions are allowed: y is the mask times the image there.

    Diagonal: its spectrum is the image, and noise_std may differ from pixel to pixel. Raises ValueError for known values
    outside [0, 1], and for an image that the mask does not fit.
    """

    mask: Any

    def __post_init__(self):
        check_mask(self)

    def weights(self, x):
        """The mask in the dtype of ``x``."""
        check_weights(self, self.mask, x)
        return jnp.asarray(self.mask).astype(x.dtype)

    def _known(self, x):
        return (self.weights(x) > 0).astype(x.dtype)

    @property
    def s(self):
        return self.mask

    def singular(self, c):
        return self.weights(c)

    def spread(self, level):
        return jnp.asarray(level)

    def __call__(self, x):
        return self.weights(x) * x

    T = __call__

    def residual(self, x, y):
        m = self.weights(x)
        check_same(self, m * x, y)
        return (m > 0).astype(m.dtype) * (m * x - y)

    def Vt(self, x):
        return x

    def V(self, c):
        return c

    def Ut(self, y):
        return self._known(y) * y

    def U(self, c):
        return c

    def pinv(self, y):
        return safe_divide(self._known(y) * y, self.weights(y))

    def prox(self, z, rho, y):
        m = self.weights(z)
        check_same(self, z, y)
        return (m * y + rho * z) / (m**2 + rho)
