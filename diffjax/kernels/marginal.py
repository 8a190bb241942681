"""The times and the noise of a walk whose move belongs to the method."""

from __future__ import annotations

from typing import Any

from .. import process
from ..base import expand, pytree
from .base import GaussianKernel


@pytree
class Move:
    alpha: Any  # of s
    sigma: Any


@pytree
class Marginal(GaussianKernel):
    """x_s = alpha_s x0 + sigma_s z: every row a fresh draw of q(x_s | x0).

    What DDRM and DDNM+ move by, after they have shaped x0 and z in spectral coordinates; they refuse other kernels.
    """

    def coefficients(self, table) -> Move:
        return Move(*process.marginal(self.schedule, table.s))

    def transition(self, p, x, row):
        """Mean and standard deviation of the step."""
        return expand(row.k.move.alpha, x) * p.x0, expand(row.k.move.sigma, x)
