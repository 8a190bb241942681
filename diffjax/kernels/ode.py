"""Deterministic solvers of the probability-flow ODE, in the coordinates x / alpha and sigma / alpha where it reads
du / drho = eps. Sources: Karras et al. 2022, algorithm 1 (Euler, Heun), Lu et al. 2022 (DPM-Solver++ 2M)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from .. import process
from ..base import expand, namespace, pytree, safe_divide, safe_sqrt
from .base import Kernel, stay_if_no_move


@pytree
class Move:
    alpha_s: Any
    sigma_s: Any
    slope: Any  # alpha_s (rho_s - rho_t)
    t_next: Any  # where Heun evaluates again: s, or t on the last row, whose correction is dropped
    half: Any  # weight of that correction


def _ode_move(schedule, table) -> Move:
    alpha_t, sigma_t = process.marginal(schedule, table.t)
    alpha_s, sigma_s = process.marginal(schedule, table.s)
    xp = namespace(alpha_s, alpha_t)
    slope = sigma_s - safe_divide(alpha_s * sigma_t, alpha_t)
    last = table.s == 0
    return Move(alpha_s, sigma_s, slope, xp.where(last, table.t, table.s), xp.where(last, 0.0, 0.5))


@pytree
class Euler(Kernel):
    """x_s = alpha_s (x / alpha_t + (rho_s - rho_t) eps), rho = sigma / alpha; algebraically DDIM with eta = 0."""

    ascends = True

    def coefficients(self, table) -> Move:
        return _ode_move(self.schedule, table)

    def step(self, predict, x, state, row, noise, first=None, edit=None):
        p = predict(x, row.t) if first is None else first
        k = row.k.move
        moved = expand(k.alpha_s, x) * p.x0 + expand(k.sigma_s, x) * p.eps  # the same, without dividing by a tiny alpha_t
        x = stay_if_no_move(row, moved, x)
        return (x if edit is None else edit(x, row.s, 0)), state

    def draw(self, key, x):
        return ()


@pytree
class Heun(Euler):
    """Euler, then x_s + (rho_s - rho_t) alpha_s / 2 (eps(x_s, s) - eps(x_t, t)): second order, two calls per row.
    The last row (s = 0) stays an Euler step, as published; its second call is spent and dropped."""

    calls = 2

    def step(self, predict, x, state, row, noise, first=None, edit=None):
        p = predict(x, row.t) if first is None else first
        k = row.k.move
        moved = expand(k.alpha_s, x) * p.x0 + expand(k.sigma_s, x) * p.eps
        moved = moved if edit is None else edit(moved, row.s, 0)
        last = k.half == 0
        q = predict(jnp.where(last, x, moved), k.t_next.astype(row.t.dtype))
        # p.eps may have been corrected by a method, q.eps is corrected by the same predict
        moved = moved + expand(k.half * k.slope, x) * jnp.where(last, 0, q.eps - p.eps)
        x = stay_if_no_move(row, moved, x)
        return (x if edit is None else edit(x, row.s, 1)), state


@pytree
class Move2M:
    alpha_s: Any
    sigma_ratio: Any
    decay: Any  # exp(-h) = sqrt(SNR_t / SNR_s)
    log_snr_t: Any
    h: Any
    second: Any


@pytree
class DPMSolverPP2M(Kernel):
    """DPM-Solver++(2M): x_s = sigma_s / sigma_t x - alpha_s (e^{-h} - 1) D, h = lambda_s - lambda_t,
    D = x0 + h / (2 h_prev) (x0 - x0_prev); first order on fresh rows (start, after a jump) and on the last one."""

    def coefficients(self, table) -> Move2M:
        alpha_t, sigma_t = process.marginal(self.schedule, table.t)
        alpha_s, sigma_s = process.marginal(self.schedule, table.s)
        xp = namespace(alpha_s, alpha_t)
        decay = safe_sqrt(process.snr_ratio(self.schedule, table.t, table.s))
        h = -xp.log(xp.where(decay > 0, decay, 1.0))  # 0 on the last row, where it is infinite and not used
        lam = xp.log(xp.where(alpha_t > 0, alpha_t, 1.0)) - xp.log(xp.where(sigma_t > 0, sigma_t, 1.0))
        fresh = xp.asarray(table.fresh)
        return Move2M(alpha_s, safe_divide(sigma_s, sigma_t), decay, lam, h, xp.where(fresh | (table.s == 0), 0.0, 1.0))

    def init(self, x):
        return jnp.zeros_like(x), jnp.zeros((), x.dtype)

    def draw(self, key, x):
        return ()

    def step(self, predict, x, state, row, noise, first=None, edit=None):
        p = predict(x, row.t) if first is None else first
        k = row.k.move
        x0_prev, lam_prev = state
        c = 0.5 * k.second * safe_divide(k.h, k.log_snr_t - lam_prev)
        D = p.x0 + expand(c, x) * (p.x0 - x0_prev)
        moved = expand(k.sigma_ratio, x) * x + expand(k.alpha_s * (1 - k.decay), x) * D
        x = stay_if_no_move(row, moved, x)
        return (x if edit is None else edit(x, row.s, 0)), (p.x0, k.log_snr_t.astype(x.dtype))
