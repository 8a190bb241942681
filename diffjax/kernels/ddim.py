"""DDIM (Song et al. 2021, eq. 12), forwards and backwards, and DiffPIR's ``zeta`` form of it.

``eta`` multiplies the standard deviation, as in the paper; 1 is ancestral sampling with the small variance.
"""

from __future__ import annotations

from typing import Any

from .. import process
from ..base import expand, namespace, pytree, safe_sqrt
from .base import Kernel, stay_if_no_move


@pytree
class Move:
    alpha_s: Any
    eps: Any
    std: Any


@pytree
class DDIM(Kernel):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z

    eta:   std = eta sigma_s sqrt(1 - SNR_t / SNR_s)
    zeta:  if given, std = sqrt(zeta) sigma_s (Zhu et al. 2023, eq. 14: a share zeta of fresh noise); replaces eta
    A row with s > t runs the deterministic sampler upwards (inversion).
    """

    eta: Any = 0.0
    zeta: Any = None
    ascends = True

    def coefficients(self, table) -> Move:
        alpha_s, sigma_s = process.marginal(self.schedule, table.s)
        std = process.posterior(self.schedule, table.t, table.s)[2]
        std = self.eta * std if self.zeta is None else namespace(self.zeta).sqrt(self.zeta) * sigma_s
        return Move(alpha_s, safe_sqrt(sigma_s**2 - std**2), std)

    def transition(self, p, x, row):
        """Mean and standard deviation of p(x_s | x_t)."""
        k = row.k.move
        return expand(k.alpha_s, x) * p.x0 + expand(k.eps, x) * p.eps, expand(k.std, x)

    def step(self, predict, x, state, row, noise, first=None, edit=None):
        p = predict(x, row.t) if first is None else first
        mean, std = self.transition(p, x, row)
        x = stay_if_no_move(row, mean + std * noise, x)
        return (x if edit is None else edit(x, row.s, 0)), state
