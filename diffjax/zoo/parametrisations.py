"""Networks of other processes as networks that our denoisers know: thin wrappers with the ``apply`` of a network.

Sources: Karras et al. 2022, table 1 (preconditioning) and equation 213 (scores of images in [0, 1]).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from ..base import expand


@dataclass(frozen=True)
class Preconditioned:
    """``net`` in Karras et al.'s preconditioning as one that predicts x0 of x = x0 + sigma eps and is told sigma.

    data: the standard deviation of the images; sign: -1 where the network predicts the opposite (diffusers' v_prediction)
    """

    net: Any
    data: float = 0.5
    sign: int = 1

    def apply(self, params, x, sigma, *told):
        s = expand(jnp.asarray(sigma, x.dtype), x)
        norm = jnp.sqrt(s**2 + self.data**2)
        out = self.net.apply(params, x / norm, jnp.log(jnp.maximum(sigma, 1e-20)) / 4, *told)
        return (self.data / norm) ** 2 * x + self.sign * s * self.data / norm * out


@dataclass(frozen=True)
class UnitRange:
    """``net``, whose score is of images in [0, 1], as the score of the same images in [-1, 1]."""

    net: Any

    def apply(self, params, x, i, *told):
        return self.net.apply(params, (x + 1) / 2, i, *told) / 2
