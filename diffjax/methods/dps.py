"""DPS, diffusion posterior sampling (Chung et al., ICLR 2023).

    x_{t-1} = kernel's move from x_t  -  scale grad_{x_t} |y - A(x0_hat(x_t))|_2

One network call per step: the gradient goes through the network (and through the clamp of x0, where the denoiser is
clipped) and is taken before the move, subtracted after it, in the last step too.

Official code and paper differ. Algorithm 1 has the square of the norm with step zeta' / |y - A x0_hat|: since
grad |r|^2 / |r| = 2 grad |r|, the code's scale is 2 zeta'; ``loss="norm"`` with the code's scale is the default,
``loss="squared"`` is the gradient of the square with one constant scale, as in the derivation. For Poisson noise the paper
weighs residuals by 1 / (2 y), y in photons; the code multiplies the plain norm by the mean of 1 / |y| in [-1, 1] units,
where a grey pixel can dominate: ``loss="poisson"`` is the paper's weighting, of the norm. The code's norm runs over the
whole batch (ours: one image; hand the batch over as one array for theirs), and its ``noise_std`` is never used: neither
is it here. A heuristic, not a posterior sampler: its spread depends on ``scale`` and means little.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..base import Measurement, expand, nearest, pytree, static
from ..kernels import DDPM
from ..method import NOT_NEGATIVE, Method
from .common import Setup, by_kind, cast, grid, inner, norm

LOSSES = ("norm", "squared", "poisson")
SCALES = {"deblurring": 0.3, "super-resolution": 0.3, "inpainting": 0.5, "phase retrieval": 1.0}  # as released


def gradient_of(loss, denoise, x, t):
    """(loss of x0_hat, Prediction, gradient in x) with one network call."""

    def through_network(x):
        p = denoise(x, t)
        return loss(p.x0), p

    (value, p), gradient = jax.value_and_grad(through_network, has_aux=True)(x)
    return value, p, gradient


@pytree
class DPS(Method):
    """denoise: the prior; official runs clip it (``denoisers.clipped``), priors not confined to [-1, 1] must not.
    measurement: y with any differentiable operator, linear or not.

    scale: step size; ``SCALES`` has the released ones per task
    loss:  "norm", "squared" or "poisson" (y's brightness in its ``value_range`` as the variance, at least ``darkest``)
    Any kernel runs it. Raises ValueError for an unknown loss.
    """

    measurement: Measurement = None
    scale: Any = 0.3
    darkest: Any = 1 / 255
    loss: str = static(default="norm")

    paper = "Chung et al. 2023"
    link = "arxiv.org/abs/2209.14687"
    noise = "ignored"
    ranges = {"scale": NOT_NEGATIVE}

    def __post_init__(self):
        super().__post_init__()
        if self.loss not in LOSSES:
            raise ValueError(f"unknown loss {self.loss!r}: {nearest(self.loss, LOSSES)}")

    def default_kernel(self):
        return DDPM()

    def objective(self, x0):
        """The scalar whose gradient is followed, of a clean image."""
        y = cast(self.measurement.y, x0.dtype)
        r = self.measurement.A.residual(x0, y)
        if self.loss == "squared":
            return inner(r, r)
        if self.loss == "poisson":
            low, high = self.measurement.value_range
            std = lambda y: jnp.sqrt(2 * jnp.maximum((y - low) / (high - low), jnp.asarray(self.darkest, y.dtype)))
            r = jax.tree.map(lambda r, y: r / std(y), r, y)
        return norm(r)

    def step(self, kernel, x, state, row, noise):
        value, p, gradient = gradient_of(self.objective, self.denoise, x, row.t)
        moved, state = kernel.step(self.predict, x, state, row, noise, first=p)
        return moved - expand(self.scale, x) * gradient, state, {"loss": value}

    def products(self, kernel) -> int:
        return 1


def published(denoise, measurement, steps=None, *, table=None, scale=None) -> Setup:
    """1000 levels of ancestral sampling; scale: that of :data:`SCALES` for the measurement's kind."""
    table = grid(denoise.schedule, steps) if table is None else table
    return Setup(DPS(denoise, measurement, by_kind(scale, measurement, SCALES)), DDPM(), table)
