"""DDIM (Song et al. 2021, eq. 12), forwards and backwards, and DiffPIR's ``zeta`` form of it.

``eta`` multiplies the standard deviation, as in the paper; 1 is ancestral sampling with the small variance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import process
from ..base import expand, in_range, is_concrete, namespace, numbers, pytree, replace, safe_sqrt, short, static
from .base import GaussianKernel


@pytree
class Move:
    alpha_s: Any
    eps: Any
    std: Any


@pytree
class DDIM(GaussianKernel):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z

    eta:   std = eta sigma_s sqrt(1 - SNR_t / SNR_s), in [0, 1]
    zeta:  if given, std = sqrt(zeta) sigma_s (Zhu et al. 2023, eq. 14: a share zeta of fresh noise, in [0, 1]); replaces eta
    temperature: factor of the noise that is added, >= 0; the share of eps stays that of temperature 1 (latent diffusion's
                 samplers,
           "low temperature sampling"): below 1 the walk loses variance
    quiet: that std is 0 everywhere, so that no noise is drawn; found out by ``sample`` where eta or zeta are known
    A row with s > t runs the deterministic sampler upwards (inversion). Raises ValueError for eta,
    zeta or temperature out of range.
    """

    eta: Any = 0.0
    zeta: Any = None
    temperature: Any = 1.0
    quiet: bool = static(default=False)
    ascends = True

    def __post_init__(self):
        in_range("eta", self.eta, 0, 1)
        in_range("temperature", self.temperature, 0)
        if self.zeta is not None:
            in_range("zeta", self.zeta, 0, 1)
            if is_concrete(self.eta) and np.any(numbers(self.eta)):
                raise ValueError(f"zeta {short(self.zeta)} stands for eta, which is {short(self.eta)}: give one of them")

    def bind(self, schedule):
        return replace(super().bind(schedule), quiet=self.still())

    def still(self) -> bool:
        share = self.eta if self.zeta is None else self.zeta
        return is_concrete(share) and not np.any(np.asarray(share))

    def coefficients(self, table) -> Move:
        alpha_s, sigma_s = process.marginal(self.schedule, table.s)
        std = process.posterior(self.schedule, table.t, table.s)[2]
        std = self.eta * std if self.zeta is None else namespace(self.zeta).sqrt(self.zeta) * sigma_s
        return Move(alpha_s, safe_sqrt(sigma_s**2 - std**2), self.temperature * std)

    def transition(self, p, x, row):
        k = row.k.move
        return expand(k.alpha_s, x) * p.x0 + expand(k.eps, x) * p.eps, expand(k.std, x)
