"""RePaint (Lugmayr et al., CVPR 2022): inpainting by resampling.

    known_t = alpha_t y + sigma_t e,      x_t <- m known_t + (1 - m) x_t,      then a reverse step of the whole image

and, by the timetable's jumps, back up and down again so that both parts come to agree.

Official code and paper differ in the order. The code (default here) merges the known pixels in before the network, at the
level of x_t, except on the very first call, which sees pure noise. Algorithm 1 merges after the move, at the level of
x_s. The law of the walk is the same but at its ends. The code never pastes y into its result, whose known pixels are the
network's x0; by default we do (``exact=False`` for the official behaviour). The paper has no noise model; with
``noise_std`` > 0 the known pixels' own noise is taken off sigma_t and nothing is pasted.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .. import timetables
from ..base import Measurement, expand, namespace, nearest, pytree, safe_sqrt, static
from ..kernels import DDPM
from ..method import Method
from .common import Setup

ORDERS = ("official", "paper")


@pytree
class Plan:
    """Mean factor and deviation of the known pixels where they are merged, and whether this row merges."""

    alpha: Any
    sigma: Any
    merge: Any


@pytree
class RePaint(Method):
    """denoise: the prior. measurement: y (H, W, C) with a ``Mask``, 1 = known; hidden pixels of y are not looked at.

    order: "official" (merge before the network) or "paper" (Algorithm 1: after the move)
    exact: known pixels of the result equal y
    Use with ``timetables.repaint``; any table and kernel runs. Raises ValueError for other operators and unknown orders.
    """

    measurement: Measurement = None
    order: str = static(default="official")
    exact: bool = static(default=True)

    paper = "Lugmayr et al. 2022"
    link = "arxiv.org/abs/2201.09865"
    requires = ("mask",)

    def __post_init__(self):
        super().__post_init__()
        if self.order not in ORDERS:
            raise ValueError(f"unknown order {self.order!r}: {nearest(self.order, ORDERS)}")

    def default_kernel(self):
        return DDPM()

    def plan(self, kernel, table) -> Plan:
        at = table.t if self.order == "official" else table.s
        alpha, sigma = kernel.schedule.alpha(at), kernel.schedule.sigma(at)
        noise_std = self.measurement.noise_std
        sigma = safe_sqrt(sigma**2 - (alpha * noise_std) ** 2)
        merge = namespace(table.i).where((table.i == 0) & (self.order == "official"), 0.0, 1.0)
        return Plan(alpha, sigma, merge)

    def draw(self, kernel, key, x):
        key_move, key_known = jax.random.split(key)
        return {"move": kernel.draw(key_move, x), "known": jax.random.normal(key_known, x.shape, x.dtype)}

    def merge(self, x, plan, noise):
        y = self.measurement.y.astype(x.dtype)
        m = self.measurement.A.weights(x) * expand(plan.merge, x)
        return m * (expand(plan.alpha, x) * y + expand(plan.sigma, x) * noise) + (1 - m) * x

    def step(self, kernel, x, state, row, noise):
        if self.order == "official":
            x = self.merge(x, row.m, noise["known"])
        x, state = kernel.step(self.predict, x, state, row, noise["move"])
        if self.order == "paper":
            x = self.merge(x, row.m, noise["known"])
        return x, state, {}

    def finish(self, kernel, x, state):
        if not self.exact:
            return x, {}
        noise_free = jnp.asarray(self.measurement.noise_std == 0)
        m = self.measurement.A.weights(x) * noise_free.astype(x.dtype)
        return m * self.measurement.y.astype(x.dtype) + (1 - m) * x, {}


def published(denoise, measurement, steps=None, *, table=None) -> Setup:
    """250 respaced levels, stretches of 10 walked 10 times: 2410 rows of DDPM, with the network's variance where it has one
    (``kernels.DDPM(variance="learned_range")``)."""
    table = timetables.repaint(denoise.schedule, 250 if steps is None else steps, 10, 10) if table is None else table
    return Setup(RePaint(denoise, measurement), DDPM(), table)
