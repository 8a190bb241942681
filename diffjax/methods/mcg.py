"""MCG, manifold constrained gradients (Chung et al., NeurIPS 2022).

    x'      = kernel's move from x_t  -  scale grad_{x_t} |y - A x0_hat(x_t)|_2
    x_{t-1} = x' - A^+ (A x' - y_{t-1}),        y_s = alpha_s y + sigma_s A z

The gradient keeps the walk near the data's manifold, the projection makes every state agree with y noised to its level.

Official code and paper differ. The code noises y to the level of t, one above the state it is put in, so that its result
keeps noise of the lowest level in the known pixels; here y_s is of the state's own level and the result reproduces y. The
code's norm runs over the whole batch (hand it over as one array for that). The re-implementation in DPS's repository draws
noise of y's shape, not A z (the same for masks only), and its projection is none for masks and blurs, whose adjoint it takes
to be the identity. ``noise_std`` is not used: the paper has no noise model, and noise in y ends up in the result.
"""

from __future__ import annotations

from typing import Any

import jax

from ..base import Measurement, expand, normal, pytree
from ..kernels import DDPM
from ..method import NOT_NEGATIVE, Method
from .common import Setup, cast, grid, norm
from .dps import gradient_of


@pytree
class Plan:
    """Level that y is noised to."""

    alpha: Any
    sigma: Any


@pytree
class MCG(Method):
    """denoise: the prior, clipped in official runs. measurement: y with a linear operator that has A.pinv.

    scale: step size, 1 in the released code; 0 leaves the projection alone (the code's "vanilla")
    Any kernel runs it. Raises ValueError for an operator without pseudo-inverse.
    """

    measurement: Measurement = None
    scale: Any = 1.0

    paper = "Chung et al. 2022"
    link = "arxiv.org/abs/2206.00941"
    requires = ("pinv",)
    noise = "ignored"
    ranges = {"scale": NOT_NEGATIVE}

    def default_kernel(self):
        return DDPM()

    def plan(self, kernel, table) -> Plan:
        return Plan(kernel.schedule.alpha(table.s), kernel.schedule.sigma(table.s))

    def draw(self, kernel, key, x):
        key_move, key_known = jax.random.split(key)
        return {"move": kernel.draw(key_move, x), "known": normal(key_known, x.shape, x.dtype)}

    def noised(self, plan, noise):
        """y at the planned level."""
        alpha, sigma = plan.alpha, plan.sigma
        y = cast(self.measurement.y, noise.dtype)
        return jax.tree.map(lambda y, n: expand(alpha, y) * y + expand(sigma, y) * n, y, self.measurement.A(noise))

    def project(self, x, y_s):
        return x - self.measurement.A.pinv(self.measurement.A.residual(x, y_s))

    def step(self, kernel, x, state, row, noise):
        A = self.measurement.A
        loss = lambda x0: norm(A.residual(x0, cast(self.measurement.y, x0.dtype)))
        value, p, gradient = gradient_of(loss, self.denoise, x, row.t)
        moved, state = kernel.step(self.predict, x, state, row, noise["move"], first=p)
        moved = moved - expand(self.scale, x) * gradient
        return self.project(moved, self.noised(row.m, noise["known"])), state, {"loss": value}

    def products(self, kernel) -> int:
        return 1


def published(denoise, measurement, steps=None, *, table=None, scale=1.0) -> Setup:
    """1000 levels of ancestral sampling."""
    table = grid(denoise.schedule, steps) if table is None else table
    return Setup(MCG(denoise, measurement, scale), DDPM(), table)
