"""Super-resolution by block means."""

from __future__ import annotations

import jax.numpy as jnp

from ..base import pytree, static
from .base import Operator


@pytree
class Downsample(Operator):
    """A(x) = mean of every factor x factor block, (H, W, C) -> (H / factor, W / factor, C).

    A A^T = 1 / factor^2. Raises ValueError for a factor below 1, or one that does not divide H and W.
    """

    factor: int = static(default=2)

    def __post_init__(self):
        if not isinstance(self.factor, int) or self.factor < 1:
            raise ValueError(f"factor {self.factor!r} is not a whole number >= 1")

    def __call__(self, x):
        h, w, c = x.shape
        f = self.factor
        if h % f or w % f:
            raise ValueError(f"factor {f} does not divide the image's {h}x{w}: crop it to {h // f * f}x{w // f * f}")
        return x.reshape(h // f, f, w // f, f, c).mean((1, 3))

    def pinv(self, y):
        return jnp.repeat(jnp.repeat(y, self.factor, 0), self.factor, 1)

    def T(self, y):
        return self.pinv(y) / self.factor**2

    def prox(self, z, rho, y):
        return z + self.T(y - self(z)) / (1 / self.factor**2 + rho)
