"""The probability-flow ODE in a variable that is smooth from pure noise on, and the classical Runge-Kutta method for it.

With r = sqrt(alpha^2 + sigma^2) and nu = asinh(alpha / sigma), y = x / r follows

    dy / dnu = -sin (cos eps - sin x0),     cos = alpha / r,  sin = sigma / r                                       (1)

nu is log(alpha / sigma) + log 2 where there is little noise and alpha / sigma where there is much: all is bounded, from
alpha = 0 on, and nothing but alpha, sigma and their inverse is asked of the schedule.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import process
from ..base import expand, namespace, pytree, safe_divide, safe_sqrt
from .base import Kernel, stay_if_no_move


def arc(alpha, sigma):
    """(nu, cos, sin, r) of a noise level; nu = asinh(alpha / sigma), infinite at sigma = 0."""
    xp = namespace(alpha, sigma)
    r = safe_sqrt(alpha**2 + sigma**2)
    clean = sigma == 0
    nu = xp.where(clean, np.inf, xp.arcsinh(alpha / xp.where(clean, 1.0, sigma)))
    return nu, safe_divide(alpha, r), safe_divide(sigma, r), r


def time_at(schedule, nu):
    """The time of ``schedule`` with asinh(alpha / sigma) = nu, which is finite."""
    xp = namespace(nu, schedule)
    positive = nu > 0
    log_snr = xp.where(positive, 2 * xp.log(xp.sinh(xp.where(positive, nu, 1.0))), -np.inf)
    return xp.where(positive, schedule.time(log_snr), xp.asarray(float(schedule.T), xp.asarray(nu).dtype))


def velocity(p, cos, sin):
    """Right-hand side of (1) at the prediction ``p``."""
    return -sin * (cos * p.eps - sin * p.x0)


@pytree
class MoveRK4:
    alpha_s: Any
    sigma_s: Any
    r_t: Any
    r_mid: Any
    r_s: Any
    angles: Any  # (cos, sin) at t, in the middle and at s
    t_mid: Any
    t_next: Any  # t on the last row, whose later calls are dropped
    step: Any  # of nu


@pytree
class RK4(Kernel):
    """The classical Runge-Kutta method of order 4 on (1): four calls a row, at t, twice where nu is in the middle, and at s.

    The last row (s = 0) is a step of Euler's, x = x0; its other calls are spent and dropped. It can go up in time.
    ``edit`` is applied at s only."""

    calls = 4
    ascends = True

    def coefficients(self, table) -> MoveRK4:
        schedule = self.schedule
        xp = namespace(schedule, table.t, table.s)
        clean = (table.s == 0) | (table.t == 0)
        t, s = xp.where(clean, float(schedule.T), table.t), xp.where(clean, float(schedule.T), table.s)
        nu_t, cos_t, sin_t, r_t = arc(*process.marginal(schedule, t))
        nu_s, cos_s, sin_s, r_s = arc(*process.marginal(schedule, s))
        t_mid = xp.where(clean, table.t, time_at(schedule, 0.5 * (nu_t + nu_s)))
        _, cos_mid, sin_mid, r_mid = arc(*process.marginal(schedule, t_mid))
        angles = ((cos_t, sin_t), (cos_mid, sin_mid), (cos_s, sin_s))
        marginal_s = process.marginal(schedule, table.s)
        return MoveRK4(*marginal_s, r_t, r_mid, r_s, angles, t_mid, xp.where(clean, table.t, table.s), nu_s - nu_t)

    def draw(self, key, x):
        return ()

    def step(self, predict, x, state, row, noise, first=None, edit=None):
        p = predict(x, row.t) if first is None else first
        k = row.k.move
        last = (row.s == 0) | (row.t == 0)
        r_t, r_mid, r_s, h = (expand(c, x) for c in (k.r_t, k.r_mid, k.r_s, k.step))
        at_t, at_mid, at_s = (tuple(expand(c, x) for c in pair) for pair in k.angles)
        t_mid, t_next = k.t_mid.astype(row.t.dtype), k.t_next.astype(row.t.dtype)
        stage = lambda y, r, t, angles: velocity(predict(jnp.where(last, x, r * y), t), *angles)
        y = x / r_t
        k1 = velocity(p, *at_t)
        k2 = stage(y + h / 2 * k1, r_mid, t_mid, at_mid)
        k3 = stage(y + h / 2 * k2, r_mid, t_mid, at_mid)
        k4 = stage(y + h * k3, r_s, t_next, at_s)
        moved = r_s * (y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
        moved = jnp.where(last, expand(k.alpha_s, x) * p.x0 + expand(k.sigma_s, x) * p.eps, moved)
        x = stay_if_no_move(row, moved, x)
        return (x if edit is None else edit(x, row.s, 0)), state
