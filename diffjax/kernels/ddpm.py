"""Ancestral sampling (Ho et al. 2020, algorithm 2), between any two times.

Official code (improved- and guided-diffusion) adds no noise in the last step, and replaces the variance of the last
step, which would be 0, by the one of the step above it where a logarithm is needed: so do we.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from .. import process
from ..base import expand, in_range, namespace, nearest, pytree, safe_sqrt, static
from .base import GaussianKernel

VARIANCES = ("small", "large", "learned_range", "learned")


@pytree
class Move:
    c_0: Any
    c_t: Any
    small: Any  # log-variance of q(x_s | x_t, x_0), the last step's taken from the step above
    large: Any  # log-variance of q(x_t | x_s); for variance="large" the last step's as for small
    std: Any  # of the fixed variances, as transition() reports it
    noisy: Any


@pytree
class DDPM(GaussianKernel):
    """x_s = c_0 x0 + c_t x_t + std z,   (c_0, c_t) the mean of q(x_s | x_t, x0).

    variance: "small"  sigma_s^2 (1 - SNR_t / SNR_s), the posterior's
              "large"  sigma_t^2 (1 - SNR_t / SNR_s) = beta_t
              "learned_range"  exp(f log large + (1 - f) log small), f = (v + 1) / 2, v = prediction.mix
              "learned"  exp(prediction.mix)
    share:    for "small": of the larger variance, (1 - share) small + share large, in [0, 1] (latent diffusion's v_posterior)
    """

    variance: str = static(default="small")
    share: Any = 0.0

    def __post_init__(self):
        if self.variance not in VARIANCES:
            raise ValueError(f"unknown variance {self.variance!r}: {nearest(self.variance, VARIANCES)}")
        in_range("share", self.share, 0, 1)

    def coefficients(self, table) -> Move:
        c_0, c_t, std = process.posterior(self.schedule, table.t, table.s)
        _, std_large = process.transition(self.schedule, table.t, table.s)
        std_above = process.posterior(self.schedule, table.up, table.t)[2]
        if self.variance == "small":
            std = safe_sqrt((1 - self.share) * std**2 + self.share * std_large**2)
        xp = namespace(std, std_large, std_above)
        last = table.s == 0
        std_last = xp.where(std_above > 0, std_above, std_large)
        if self.variance == "large":
            std_large = xp.where(last, std_last, std_large)
        log = lambda s: 2 * xp.log(xp.where(s > 0, s, 1.0))
        fixed = {"small": std, "large": std_large}.get(self.variance)
        return Move(c_0, c_t, log(xp.where(last, std_last, std)), log(std_large), fixed, xp.where(last, 0.0, 1.0))

    def log_variance(self, p, x, row):
        """log-variance of p(x_s | x_t), broadcastable to ``x`` and finite on the last row too, as likelihoods want it.
        Raises ValueError if a learned variance is wanted and p.mix is None."""
        k = row.k.move
        if self.variance in ("small", "large"):
            return expand(getattr(k, self.variance), x)
        if p.mix is None:
            raise ValueError(
                f"variance={self.variance!r} needs the network's variance output: build the denoiser with "
                "learned_variance=True, or use variance='small'"
            )
        if self.variance == "learned":
            return p.mix
        f = 0.5 * (p.mix + 1)
        return f * expand(k.large, x) + (1 - f) * expand(k.small, x)

    def transition(self, p, x, row):
        """Mean and standard deviation of p(x_s | x_t). On the last row the deviation is the one that guidance
        uses; ``step`` adds no noise there. Raises ValueError if a learned variance is wanted and p.mix is None."""
        k = row.k.move
        mean = expand(k.c_0, x) * p.x0 + expand(k.c_t, x) * x
        fixed = self.variance in ("small", "large")
        return mean, expand(k.std, x) if fixed else jnp.exp(0.5 * self.log_variance(p, x, row))

    def fresh(self, row, x):
        return expand(row.k.move.noisy, x)
