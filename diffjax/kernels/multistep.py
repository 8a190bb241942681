"""Multistep solvers of the probability-flow ODE of order 2 to 4: one call a row.

Sources: Lu et al. 2022 (DPM-Solver++), Zhao et al. 2023 (UniPC, algorithms 5 to 8 for predictions of x0).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import process
from ..base import expand, namespace, pytree, safe_divide, safe_sqrt, static
from .base import Kernel, stay_if_no_move

GAUSS = np.polynomial.legendre.leggauss(8)


@pytree
class MoveMultistep:
    sigma_ratio: Any
    node: Any  # nu at t
    h: Any  # its step; 0 on the last row
    m0: Any  # sigma_s times the integrals of (nu - nu_t)^j d(alpha / sigma) from t to s; on the last row 0 but for m0
    m1: Any
    m2: Any
    m3: Any


@pytree
class UniPC(Kernel):
    """UniPC of order 2 or 3 with B_2(h) = e^h - 1, one call a row:

        x_s = sigma_s / sigma_t x_t + sigma_s int P dq,     q = alpha / sigma

    P is the polynomial through the x0 of this row and of the one or two before. The next row's x0 then corrects x_s: P takes
    it in, the order rises by one, and no further call is made for it. Where P is a line, its integral takes h / 2 for the
    mean of nu - nu_t, which is what B_2 comes to; with more points the published coefficients do not depend on B.
    First order on fresh rows (start, after a jump) and on the last one (s = 0), second on the row after a fresh one.

    deep: P is a polynomial of nu = log(q + sqrt(q^2 + deep^2)), q = alpha / sigma: the logarithm, as published, above this q,
          and q itself below. 0: the logarithm everywhere, as published; a walk that begins deep in noise (cosine tables,
          rectified flow), where x0 is smooth in q and not in its logarithm, then has order 2 at most on grids that are even
          in t.
    """

    order: int = static(default=3)
    deep: Any = 0.3

    every = True  # whether every row is corrected, or only the one that follows a fresh one

    def __post_init__(self):
        if self.order not in (2, 3):
            raise ValueError(f"order {self.order} of {type(self).__name__} is none of 2 and 3: choose order=3")

    def coefficients(self, table) -> MoveMultistep:
        schedule, d = self.schedule, self.deep
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.marginal(schedule, table.t), process.marginal(schedule, table.s)
        xp = namespace(alpha_t, alpha_s, d)
        last = (table.s == 0) | (table.t == 0)

        def node(alpha, sigma):
            q = alpha / xp.where(last, 1.0, sigma)
            return xp.log(xp.maximum(q + safe_sqrt(q**2 + d**2), 1e-12))

        nu_t = node(alpha_t, sigma_t)
        h = xp.where(last, 0.0, node(alpha_s, sigma_s) - nu_t)
        decay = safe_divide(sigma_s, sigma_t)
        at, weights = (0.5 * (GAUSS[0] + 1))[:, None], (0.5 * GAUSS[1])[:, None]
        nu = nu_t + at * h
        density = sigma_s * h * 0.5 * (xp.exp(nu) + d**2 * xp.exp(-nu))  # d q / d nu
        m1, m2, m3 = ((weights * density * (at * h) ** j).sum(0) for j in (1, 2, 3))
        return MoveMultistep(decay, nu_t, h, xp.where(table.s == 0, 1.0, alpha_s - alpha_t * decay), m1, m2, m3)

    def init(self, x):
        zero, zeros = jnp.zeros((), x.dtype), jnp.zeros_like(x)
        return (zeros, zeros, zeros), (zero, zero, zero, zero)

    def draw(self, key, x):
        return ()

    def step(self, predict, x, state, row, noise, first=None, edit=None):
        p = predict(x, row.t) if first is None else first
        k = row.k.move
        (x0_1, x0_2, owed), (nu_1, nu_2, known, weight) = state
        known, weight = (jnp.where(row.fresh, 0, a) for a in (known, weight))
        at_t = x + expand(weight, x) * p.x0 - jnp.where(row.fresh, 0, owed)
        # P = x0 + a (nu - nu_t) + b (nu - nu_t)^2 through x0, x0_1 and x0_2, as far as they are known
        h, m0, m1, m2, m3 = k.h, k.m0, k.m1, k.m2, k.m3
        e1, e2 = k.node - nu_1, k.node - nu_2
        both = (known > 1) & (self.order > 2)
        slope = expand(jnp.where(known > 0, safe_divide(1.0, e1), 0), x) * (p.x0 - x0_1)
        before = expand(safe_divide(1.0, e2 - e1), x) * (x0_1 - x0_2)
        b = expand(jnp.where(both, safe_divide(1.0, e2), 0), x) * (slope - before)
        a = slope + expand(e1, x) * b
        curve = expand(jnp.where(both, m1, m0 * h / 2), x) * a + expand(m2, x) * b
        moved = expand(k.sigma_ratio, x) * at_t + expand(m0, x) * p.x0 + curve
        # what the next x0 adds by taking part in P: weight * x0 - owed
        two, three = safe_divide(m2 + e1 * m1, h * (h + e1)), m3 + (e1 + e2) * m2 + e1 * e2 * m1
        three = safe_divide(three, h * (h + e1) * (h + e2))
        weight = jnp.where(both, three, jnp.where(known > 0, two, m0 / 2))
        weight = jnp.where((row.s == 0) | ((known > 0) & (not self.every)), 0, weight)
        ahead = p.x0 + expand(h, x) * (a + expand(h, x) * b)
        exact = jnp.where(both | (known == 0) | (weight == 0), 0, m1 - m0 * h / 2)
        owed = expand(weight, x) * ahead - expand(exact, x) * a
        x = stay_if_no_move(row, moved, x)
        scalars = k.node, nu_1, jnp.minimum(known + 1, 2), weight
        state = (p.x0, x0_1, owed), tuple(jnp.asarray(c).astype(x.dtype) for c in scalars)
        return (x if edit is None else edit(x, row.s, 0)), state


@pytree
class DPMSolverPP3M(UniPC):
    """DPM-Solver++(3M): :class:`UniPC`'s predictor of order 3. Only the row after a fresh one is corrected, since one step of
    first order would leave an error of order 2.

    Official code (and its copies in other libraries) halves the last term, phi_3 D_2 in place of 2 phi_3 D_2: with it the
    method has order 2 with a smaller constant. Here it is whole."""

    every = False
