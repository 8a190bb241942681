"""Noise in fast solvers: the stochastic DPM-Solver++ of second order, and EDM's churn around any one-step ODE solver.

Sources: Lu et al. 2022 (DPM-Solver++, appendix B), Xue et al. 2023 (SA-Solver, the dial), Karras et al. 2022, algorithm 2.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .. import process
from ..base import expand, in_range, namespace, pytree, replace, safe_divide, safe_sqrt
from .base import Kernel, Plan, check_kernel, stay_if_no_move
from .ode import Heun


@pytree
class Move2M:
    c_0: Any
    c_t: Any
    std: Any
    h: Any
    second: Any  # 0 on the last row


@pytree
class SDEDPMSolverPP2M(Kernel):
    """SDE-DPM-Solver++(2M): the exact step for an x0 that goes on as it has changed since the row before,

        x_s = c_t x + c_0 (x0 + h / (2 h_prev) (x0 - x0_prev)) + std z,     h = log(alpha_s / sigma_s) - log(alpha_t / sigma_t)

    with m = exp(-eta^2 h): c_t = sigma_s / sigma_t m, c_0 = alpha_s - c_t alpha_t, std = sigma_s sqrt(1 - m^2). First order
    after a jump, at the start, after alpha = 0 and on the last row, which has no noise.

    eta: the dial, >= 0. 1, as published: without its correction this is ancestral sampling; 0: DPM-Solver++(2M)
    """

    eta: Any = 1.0

    def __post_init__(self):
        in_range("eta", self.eta, 0)

    def still(self) -> bool:
        return False

    def coefficients(self, table) -> Move2M:
        alpha_t, sigma_t = process.marginal(self.schedule, table.t)
        alpha_s, sigma_s = process.marginal(self.schedule, table.s)
        r = process.snr_ratio(self.schedule, table.t, table.s)
        xp = namespace(r, self.eta)
        h = -0.5 * xp.log(xp.where(r > 0, r, 1.0))  # 0 where infinite: first order
        m = xp.where(r > 0, xp.exp(-(self.eta**2) * h), xp.where(self.eta == 0, 1.0, 0.0))
        c_t = safe_divide(sigma_s, sigma_t) * m
        last = table.s == 0
        std = sigma_s * safe_sqrt(1 - m**2)
        return Move2M(alpha_s - c_t * alpha_t, c_t, xp.where(last, 0.0, std), h, xp.where(last, 0.0, 1.0))

    def init(self, x):
        return jnp.zeros_like(x), jnp.zeros((), x.dtype)

    def step(self, predict, x, state, row, noise, first=None, edit=None):
        p = predict(x, row.t) if first is None else first
        k = row.k.move
        x0_prev, h_prev = state
        c = jnp.where(row.fresh, 0, 0.5 * k.second * safe_divide(k.h, h_prev))
        moved = expand(k.c_t, x) * x + expand(k.c_0, x) * (p.x0 + expand(c, x) * (p.x0 - x0_prev)) + expand(k.std, x) * noise
        x = stay_if_no_move(row, moved, x)
        return (x if edit is None else edit(x, row.s, 0)), (p.x0, k.h.astype(x.dtype))


@pytree
class Churning:
    kernel: Any
    t_hat: Any
    a: Any
    std: Any


@pytree
class Churn(Kernel):
    """EDM's stochastic sampler: first up by q(x_t_hat | x_t), then down from t_hat to s with ``kernel``,

        sigma / alpha at t_hat = (1 + gamma) sigma / alpha at t     where that lies in [low, high], else t_hat = t

    kernel: a one-step ODE solver, the paper's is Heun (else ValueError)
    gamma:  min(S_churn / N, sqrt(2) - 1) for N rows, >= 0. The paper's S_churn: 30 (CIFAR-10), 40 (ImageNet-64)
    low, high: S_tmin, S_tmax, in sigma / alpha
    noise:  S_noise; a little above 1 (1.003, 1.007) makes up for networks that remove too much
    It never climbs above the schedule's T, so that the network is told no time it has not seen. Methods that need the
    prediction at t itself (DPS, DDNM ...) are refused.
    """

    kernel: Any = Heun()
    gamma: Any = 2**0.5 - 1
    low: Any = 0.0
    high: Any = float("inf")
    noise: Any = 1.0

    def __post_init__(self):
        check_kernel(self.kernel)
        in_range("gamma", self.gamma, 0)
        who = type(self.kernel).__name__
        if not self.kernel.still():
            raise ValueError(f"{who} has noise of its own: churn is for ODE solvers, for example Churn(kernels.Heun())")
        if jax.tree.leaves(jax.eval_shape(self.kernel.init, jax.ShapeDtypeStruct((1,), jnp.float32))):
            raise ValueError(f"{who} goes by the rows before, which churn leaves: use Heun or Euler, or SDEDPMSolverPP2M")

    @property
    def calls(self) -> int:
        return self.kernel.calls

    @property
    def updates(self) -> int:
        return self.kernel.updates

    def still(self) -> bool:
        return False

    def bind(self, schedule):
        return replace(super().bind(schedule), kernel=self.kernel.bind(schedule if self.schedule is None else self.schedule))

    def coefficients(self, table) -> Churning:
        alpha, sigma = process.marginal(self.schedule, table.t)
        xp = namespace(alpha, sigma, self.gamma, self.low, self.high)
        level = safe_divide(sigma, alpha)
        climbs = (alpha > 0) & (level >= self.low) & (level <= self.high) & (table.s < table.t)
        up = self.schedule.time(-2 * xp.log(xp.where(climbs, (1 + self.gamma) * level, 1.0)))
        t_hat = xp.where(climbs, xp.clip(up, table.t, self.schedule.T), table.t)
        a, std = process.transition(self.schedule, t_hat, table.t)
        return Churning(self.kernel.coefficients(replace(table, t=t_hat)), t_hat, a, self.noise * std)

    def step(self, predict, x, state, row, noise, first=None, edit=None):
        if first is not None:
            raise ValueError(
                "Churn climbs before it predicts, this method predicts before it moves: use SDEDPMSolverPP2M or DDPM"
            )
        k = row.k.move
        churned = stay_if_no_move(row, expand(k.a, x) * x + expand(k.std, x) * noise, x)
        row = replace(row, t=k.t_hat.astype(row.t.dtype), k=Plan(k.kernel, row.k.jump))
        return self.kernel.step(predict, churned, state, row, (), edit=edit)
