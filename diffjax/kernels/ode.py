"""Deterministic solvers of the probability-flow ODE.

In u = x / alpha and rho = sigma / alpha it reads du / drho = eps; in y = x / sigma and q = alpha / sigma it reads
dy / dq = x0, which stays bounded from alpha = 0 on. Sources: Karras et al. 2022, algorithm 1 (Euler, Heun), Lu et al. 2022
(DPM-Solver++ 2M).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import process
from ..base import expand, namespace, pytree, safe_divide, safe_sqrt
from .base import Kernel, stay_if_no_move

DEEP = -13.8  # log-SNR, sigma / alpha = 1000: cosine tables and rectified flow start below it, DDPM's tables and VP above


def _correction(alpha_t, sigma_t, alpha_s, sigma_s):
    """What a step from t to s adds per x0_s - x0_t: alpha_s (1 - e^-h) w of :class:`Heun`, without a division by alpha or by a
    sigma that may be 0."""
    ratio = safe_divide(safe_sqrt(alpha_t**2 + sigma_t**2), safe_sqrt(alpha_s**2 + sigma_s**2))
    return safe_divide(alpha_s * sigma_t - alpha_t * sigma_s, sigma_t + sigma_s * ratio)


@pytree
class Move:
    alpha_s: Any
    sigma_s: Any
    t_next: Any  # where Heun evaluates again: s, or t on the last row, whose correction is dropped
    correction: Any


@pytree
class Euler(Kernel):
    """x_s = alpha_s x0 + sigma_s eps: one step along du / drho = eps; algebraically DDIM with eta = 0."""

    ascends = True

    def coefficients(self, table) -> Move:
        alpha_t, sigma_t = process.marginal(self.schedule, table.t)
        alpha_s, sigma_s = process.marginal(self.schedule, table.s)
        xp = namespace(alpha_s, alpha_t)
        last = table.s == 0
        correction = xp.where(last, 0.0, _correction(alpha_t, sigma_t, alpha_s, sigma_s))
        return Move(alpha_s, sigma_s, xp.where(last, table.t, table.s), correction)

    def step(self, predict, x, state, row, noise, first=None, edit=None):
        p = predict(x, row.t) if first is None else first
        k = row.k.move
        moved = expand(k.alpha_s, x) * p.x0 + expand(k.sigma_s, x) * p.eps  # no division by a tiny alpha_t
        x = stay_if_no_move(row, moved, x)
        return (x if edit is None else edit(x, row.s, 0)), state

    def draw(self, key, x):
        return ()


@pytree
class Heun(Euler):
    """Second order, two calls per row, in its bounded exponential form:

        x_s = sigma_s / sigma_t x + alpha_s (1 - e^-h) ((1 - w) x0_t + w x0_s),   w = sigma_t / (sigma_t + sigma_s)

    with both sigmas of w over sqrt(alpha^2 + sigma^2). h is the step of log(alpha / sigma), x0_s the prediction where Euler's
    step ends. Karras et al.'s weight is w = e^h / 2: the same for small h, but unbounded. From sigma / alpha = 2e4, where the
    cosine table starts, it overshoots. This w takes x0 to be linear in alpha / sqrt(alpha^2 + sigma^2), as it is for unit
    Gaussian data, and at high noise for all data. So the order holds from alpha = 0 on.
    The last row (s = 0) stays an Euler step, as published; its second call is spent and dropped."""

    calls = 2
    updates = 2

    def step(self, predict, x, state, row, noise, first=None, edit=None):
        p = predict(x, row.t) if first is None else first
        k = row.k.move
        moved = expand(k.alpha_s, x) * p.x0 + expand(k.sigma_s, x) * p.eps
        moved = moved if edit is None else edit(moved, row.s, 0)
        last = row.s == 0
        q = predict(jnp.where(last, x, moved), k.t_next.astype(row.t.dtype))
        # p.x0 may have been corrected by a method, q.x0 is corrected by the same predict
        moved = moved + expand(k.correction, x) * jnp.where(last, 0, q.x0 - p.x0)
        x = stay_if_no_move(row, moved, x)
        return (x if edit is None else edit(x, row.s, 1)), state


@pytree
class Move2M:
    alpha_s: Any
    sigma_ratio: Any
    decay: Any  # exp(-h) = sqrt(SNR_t / SNR_s)
    log_ratio: Any  # log(alpha_t / sigma_t), minus infinity where alpha_t = 0
    h: Any
    second: Any  # 0 on the last row
    share: Any  # alpha_t / sqrt(alpha_t^2 + sigma_t^2)
    reach: Any  # w times the step of that share
    deep: Any  # 1: the schedule starts in noise that deep
    owed: Any  # what a first-order step leaves to the next row, per difference of that row's x0 and this one's


@pytree
class DPMSolverPP2M(Kernel):
    """DPM-Solver++(2M): x_s = sigma_s / sigma_t x - alpha_s (e^{-h} - 1) D, h = lambda_s - lambda_t,
    D = x0 + c (x0 - x0_prev), c = h / (2 h_prev); first order (c = 0) on fresh rows (start, after a jump), on the row after
    alpha = 0, and on the last one.

    deep: 1, or 0 for the published formula everywhere. It only matters for schedules that start deeper in noise than
          sigma / alpha = 1000 (cosine tables, rectified flow, ``harmonic_betas``), where the published walk loses its order:
          * A first row out of such noise is as long for 300 rows of ``timetables.log_snr`` as for 10: its first-order error
            would remain. The row after it adds the correction that :class:`Heun` makes, from the two x0 it knows, without
            another call.
          * Rows equal in t are far apart in lambda there, the first most, and a line in lambda extrapolates too little. c is
            raised to what :class:`Heun`'s line extrapolates, to 1/2 at most, which is c at equal steps of lambda.
    """

    deep: Any = 1.0

    def coefficients(self, table) -> Move2M:
        schedule = self.schedule
        alpha_t, sigma_t = process.marginal(schedule, table.t)
        alpha_s, sigma_s = process.marginal(schedule, table.s)
        xp = namespace(alpha_s, alpha_t)
        decay = safe_sqrt(process.snr_ratio(schedule, table.t, table.s))
        h = -xp.log(xp.where(decay > 0, decay, 1.0))  # 0 where infinite: the last row and from alpha = 0, both first order
        last = table.s == 0
        share = lambda a, s: a / safe_sqrt(a**2 + s**2)
        lam = _log_ratio(alpha_t, sigma_t)
        deep = self.deep * (2 * _log_ratio(schedule.alpha(float(schedule.T)), schedule.sigma(float(schedule.T))) < DEEP)
        correction = _correction(alpha_t, sigma_t, alpha_s, sigma_s)
        return Move2M(
            alpha_s,
            safe_divide(sigma_s, sigma_t),
            decay,
            lam,
            h,
            xp.where(last, 0.0, 1.0),
            share(alpha_t, sigma_t),
            safe_divide(correction, alpha_s * (1 - decay)) * (share(alpha_s, sigma_s) - share(alpha_t, sigma_t)),
            deep * xp.ones_like(h),
            deep * xp.where(last | (2 * lam > DEEP), 0.0, correction),
        )

    def init(self, x):
        zero = jnp.zeros((), x.dtype)
        return jnp.zeros_like(x), zero, zero, zero

    def draw(self, key, x):
        return ()

    def step(self, predict, x, state, row, noise, first=None, edit=None):
        p = predict(x, row.t) if first is None else first
        k = row.k.move
        x0_prev, log_ratio_prev, share_prev, owed = state
        h_prev = jnp.where(log_ratio_prev > -jnp.inf, k.log_ratio - log_ratio_prev, jnp.inf)
        c = 0.5 * safe_divide(k.h, h_prev)
        raised = jnp.maximum(c, jnp.minimum(safe_divide(k.reach, k.share - share_prev), 0.5))
        c = jnp.where(owed == 0, c + k.deep * (raised - c), c)
        c, owed = (jnp.where(row.fresh, 0, a) for a in (k.second * c, owed))
        change = p.x0 - x0_prev
        at_t = x + expand(owed, x) * change
        moved = expand(k.sigma_ratio, x) * at_t + expand(k.alpha_s * (1 - k.decay), x) * (p.x0 + expand(c, x) * change)
        x = stay_if_no_move(row, moved, x)
        state = p.x0, k.log_ratio.astype(x.dtype), k.share.astype(x.dtype), jnp.where(row.fresh, k.owed, 0).astype(x.dtype)
        return (x if edit is None else edit(x, row.s, 0)), state


def _log_ratio(alpha, sigma):
    """log(alpha / sigma), minus infinity at alpha = 0."""
    xp = namespace(alpha, sigma)
    log = lambda a: xp.log(xp.where(a > 0, a, 1.0))
    return xp.where(alpha > 0, log(alpha) - log(sigma), -np.inf)
