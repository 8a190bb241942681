"""The product with a second distribution (Sohl-Dickstein et al., ICML 2015, section 2.5): inpainting and denoising.

    p~(x_s | x_t) ~ p(x_s | x_t) r(x_s),      r(x) = N(y; m x, noise_std^2)

at every level, x_T's included. For Gaussian steps N(mu, std^2) the product is Gaussian again, in closed form: the paper's
small perturbation, mu + std^2 grad log r, to first order in std^2 / noise_std^2. Where y has no noise the known pixels are y
(the paper's delta).

As in the paper r is the same at every level, so that y, which is clean, is compared with noisy states. The known pixels agree
with y, while the network is shown pixels less noisy than its level says: the rest is no draw of the posterior (methods since
put a noisy y in). Official code inpaints the left half of an image, the right one known, and denoises from x_T = y: pass y as
the start for that.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ..base import Measurement, expand, pytree, safe_divide, safe_sqrt
from ..kernels import DDPM
from ..kernels.base import stay_if_no_move
from ..method import Method
from .common import Setup, grid


@pytree
class Nonequilibrium(Method):
    """denoise: the prior. measurement: y with a ``Mask``; of ones and with ``noise_std`` > 0: denoising.

    strength: power of r, 1 as published: as if y had noise_std / sqrt(strength)
    Moves by kernels whose step has noise: DDPM, DDIM with eta > 0, guided ones. Raises ValueError for others.
    """

    measurement: Measurement = None
    strength: Any = 1.0

    paper = "Sohl-Dickstein et al. 2015"
    link = "arxiv.org/abs/1503.03585"
    requires = ("mask",)

    def default_kernel(self):
        return DDPM()

    def check(self, kernel, table):
        if kernel.still():
            who = type(kernel).__name__
            raise ValueError(
                f"Nonequilibrium multiplies a step's Gaussian, and {who} adds no noise: use kernels.DDPM() or DDIM(eta=1.0)"
            )

    def product(self, mean, std):
        """(mean, std) of N(mean, std^2) r."""
        y, noise = (jnp.asarray(a).astype(mean.dtype) for a in (self.measurement.y, self.measurement.noise_std))
        m, own = self.measurement.A.weights(mean), noise**2
        precision = jnp.asarray(self.strength, mean.dtype) * std**2 * m
        gain = jnp.where((own == 0) & (m > 0), safe_divide(1.0, m), safe_divide(precision, precision * m + own))
        return mean + gain * (y - m * mean), std * safe_sqrt(1 - gain * m)

    def start(self, kernel, row, noise):
        """p(x_T) r(x_T) too."""
        top = super().start(kernel, row, jnp.ones_like(noise))
        mean, std = self.product(jnp.zeros_like(noise), top)
        return mean + std * noise

    def step(self, kernel, x, state, row, noise):
        mean, std = kernel.transition(self.predict(x, row.t), x, row)
        mean, std = self.product(mean, jnp.broadcast_to(std, x.shape))
        moved = mean + expand(kernel.fresh(row, x), x) * std * noise
        return stay_if_no_move(row, moved, x), state, {}


def published(denoise, measurement, steps=None, *, table=None, strength=1.0) -> Setup:
    """1000 levels of ancestral sampling."""
    table = grid(denoise.schedule, steps) if table is None else table
    return Setup(Nonequilibrium(denoise, measurement, strength), DDPM(), table)
