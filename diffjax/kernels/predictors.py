"""Predictors of the reverse SDE (Song et al., ICLR 2021, sections 3.3 and 4, appendix E), each a kernel of its own:

    dx = [f x - (1 + eta^2) / 2 g^2 score] dt + eta g dw,        run from t down to s

The marginals are those of q(x_t) for every eta: 1 is the reverse SDE, 0 the probability-flow ODE ("probability flow" in the
official code), between and beyond them a dial. A predictor is one small class: its ``update`` says what one step is.

The official ancestral predictor is ``kernels.DDPM``, with the small variance for VE and the large one for VP. Official code
and ours differ in three things. Its steps are 1 / N long on a grid whose distance is (1 - eps) / (N - 1): ours are as long as
the row. It adds noise in the last step too, and may return the mean instead ("denoise"): here the row that ends at t = 0 has
no noise, and a table that ends at eps is truncated there, noise and all. Its sub-VP takes Euler's step for reverse diffusion.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import process
from ..base import expand, in_range, is_concrete, namespace, pytree, replace, safe_divide, safe_sqrt, static
from .base import GaussianKernel


@pytree
class Move:
    c_0: Any
    c_t: Any
    std: Any
    noisy: Any


@pytree
class Predictor(GaussianKernel):
    """x_s = c_x x + c_score score + std z, with (c_x, c_score, std) = ``update(t, s)``: what a subclass gives.

    eta:   multiplies the standard deviation, >= 0
    quiet: that eta is known to be 0, so that no noise is drawn; found out by ``sample``
    The score is that of the corrected image, (alpha x0 - x) / sigma^2, so that methods which change x0 alone are heard.
    """

    eta: Any = 1.0
    quiet: bool = static(default=False)

    def __post_init__(self):
        in_range("eta", self.eta, 0)

    def bind(self, schedule):
        return replace(super().bind(schedule), quiet=self.still())

    def still(self) -> bool:
        return is_concrete(self.eta) and not np.any(np.asarray(self.eta))

    def update(self, t, s):
        """(c_x, c_score, std) of the steps from ``t`` to ``s``, arrays of one shape."""
        raise NotImplementedError

    def coefficients(self, table) -> Move:
        alpha, sigma = process.marginal(self.schedule, table.t)
        if is_concrete(alpha) and (alpha == 0).any():
            raise ValueError(
                f"{type(self).__name__} cannot step from t = {float(np.max(table.t)):g}, where alpha is 0 and the drift "
                "infinite: start lower, or use DDPM or SDEDPMSolverPP2M"
            )
        c_x, c_score, std = self.update(table.t, table.s)
        per_x = safe_divide(c_score, sigma**2)
        noisy = namespace(table.s).where(table.s == 0, 0.0, 1.0)
        return Move(per_x * alpha, c_x - per_x, std, noisy)

    def transition(self, p, x, row):
        k = row.k.move
        return expand(k.c_0, x) * p.x0 + expand(k.c_t, x) * x, expand(k.std, x)

    def fresh(self, row, x):
        return expand(row.k.move.noisy, x)


@pytree
class EulerMaruyama(Predictor):
    """x_s = x - h [f x - (1 + eta^2) / 2 g^2 score] + eta g sqrt(h) z,   h = t - s, f and g those of ``process.sde`` at t.

    The simplest, and the coarsest: it needs many rows, of equal length in t. Of a table's staircase (``process.sde``) it takes
    the step below t. Under VE it leaves the noise of sigma_min in. ValueError for a schedule without ``smooth``."""

    def update(self, t, s):
        if not hasattr(self.schedule, "smooth"):
            raise ValueError(
                f"EulerMaruyama needs the derivatives of {type(self.schedule).__name__}, which has no smooth(t): give it "
                "one, or use ReverseDiffusion, which needs none"
            )
        f, g2 = process.sde(self.schedule, t)
        h = t - s
        return 1 - f * h, 0.5 * (1 + self.eta**2) * g2 * h, self.eta * safe_sqrt(g2 * h)


@pytree
class ReverseDiffusion(Predictor):
    """x_s = (2 - a) x + (1 + eta^2) / 2 v score + eta sqrt(v) z,   where q(x_t | x_s) = N(a x_s, v).

    The forward step's own discretisation, turned round: as long as the row, exact in a and v."""

    def update(self, t, s):
        a, std = process.transition(self.schedule, t, s)
        return 2 - a, 0.5 * (1 + self.eta**2) * std**2, self.eta * std
