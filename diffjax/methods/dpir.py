"""DPIR (Zhang et al., TPAMI 2021): plug-and-play restoration by a denoiser at falling noise levels. Any denoiser.

    x <- argmin_x |y - A x|^2 + rho_k |x - z|^2,   rho_k = lam noise_std^2 / r_k^2,   r_k = sigma_k / alpha_k
    z <- the clean image of alpha_k x at level k

Half-quadratic splitting; deterministic, so there is nothing to sample: an estimate, whose spread means nothing. A row of the
table is one pass at the level of its t: ``timetables.dpir(schedule, noise_std)`` are the paper's 8 levels, log-even from 49
grey levels down to the data's noise. A denoiser that knows one level only (DnCNN) takes a table that stays at it:
``timetables.from_rows([(t, t, t)] * 8)`` on ``schedules.EDM()``, whose t is the noise level.

The paper sets alpha_k x aside: its denoisers take x with additive noise (``EDM``); ours may come from any schedule. It starts
from y (deblurring), from an interpolated y (super-resolution, mosaics) or from a filled-in y; we from ``guess``, by default
grey, which the first data step makes A's regularised inverse of y. The code has lambda / 3 with lambda = 1 in one place and
0.23 in another; 0.23 is the paper's.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from .. import timetables
from ..base import Measurement, host, pytree, safe_divide
from ..kernels import Marginal
from ..method import NOT_NEGATIVE, Method
from .common import Setup, cast, each


@pytree
class DPIR(Method):
    """denoise: (x, t) -> Prediction. measurement: y with an operator that has ``prox``.

    lam:         weight of the prior
    noise_floor: least noise_std that rho is computed with (noiseless data)
    guess:       image to start from, a start array passed to ``sample`` is one too; default grey (0)
    Run it with ``kernels.Marginal(schedule)``, which lends its schedule. Raises ValueError for another kernel, or an operator
    without ``prox``.
    """

    measurement: Measurement = None
    lam: Any = 0.23
    noise_floor: Any = 0.002
    guess: Any = None

    paper = "Zhang et al. 2021"
    link = "arxiv.org/abs/2008.13751"
    requires = ("prox",)
    moves = (Marginal,)
    gives = "estimate"
    ranges = {"lam": NOT_NEGATIVE, "noise_floor": NOT_NEGATIVE}

    def starts_anywhere(self):
        return True

    def plan(self, kernel, table):
        """(alpha, sigma / alpha) at t"""
        alpha, sigma = kernel.schedule.alpha(table.t), kernel.schedule.sigma(table.t)
        return host(alpha), safe_divide(sigma, alpha)

    def start(self, kernel, row, noise):
        return jnp.zeros_like(noise) if self.guess is None else self.guess.astype(noise.dtype)

    def init(self, kernel, x):
        return ()

    def draw(self, kernel, key, x):
        return ()

    def step(self, kernel, x, state, row, noise):
        typed = lambda a: jnp.asarray(a).astype(x.dtype)
        alpha, ratio = (typed(a) for a in row.m)
        share = lambda std: jnp.maximum(typed(std), typed(self.noise_floor)) / jnp.maximum(ratio, typed(1e-10))
        rho = each(lambda std: jnp.maximum(typed(self.lam) * share(std) ** 2, typed(1e-12)), self.measurement.noise_std)
        x, info = self.measurement.A.prox_info(x, rho, cast(self.measurement.y, x.dtype))
        return self.denoise(alpha * x, row.t).x0, state, info


def published(denoise, measurement, steps=None, *, table=None, lam=0.23) -> Setup:
    """8 levels, the lowest that of the measurement's noise."""
    if table is None:
        table = timetables.dpir(denoise.schedule, measurement.noise_std, 8 if steps is None else steps)
    return Setup(DPIR(denoise, measurement, lam), Marginal(), table)
