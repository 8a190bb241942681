"""RePaint (Lugmayr et al., CVPR 2022): inpainting by resampling.

    known_t = alpha_t y + sigma_t e,      x_t <- m known_t + (1 - m) x_t,      then a reverse step of the whole image

(m = 1 where a pixel is known, else 0) and, by the timetable's jumps, back up and down again so that both parts come to agree.

Official code and paper differ in the order. The code (default here) merges the known pixels in before the network, at the
level of x_t, except on the very first call, which sees pure noise. Algorithm 1 merges after the move, at the level of
x_s. The law of the walk is the same but at its ends. The code never pastes y into its result, whose known pixels are the
network's x0; by default we do (``exact=False`` for the official behaviour). The paper has no noise model; where
``noise_std`` > 0 the known pixels' own noise is taken off sigma_t and nothing is pasted at the end (the last merge of the
paper's order, at t = 0, is of y as it is). Where our mask is a fraction f, y is f times the image: what is merged is y / f,
whose noise is noise_std / f. The code takes its y for the image itself and blends it in by the share f.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .. import timetables
from ..base import Measurement, expand, namespace, nearest, normal, pytree, safe_divide, safe_sqrt, static
from ..kernels import DDPM
from ..method import Method
from .common import Setup, pasted

ORDERS = ("official", "paper")


@pytree
class Plan:
    """alpha and sigma of the level where known pixels are merged, and whether this row merges."""

    alpha: Any
    sigma: Any
    merge: Any


@pytree
class RePaint(Method):
    """denoise: the prior. measurement: y (H, W, C) with a ``Mask``, 1 = known; hidden pixels of y are not looked at.

    order: "official" (merge before the network) or "paper" (Algorithm 1: after the move)
    exact: known pixels of the result equal y / mask (where ``noise_std`` is 0)
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
        merge = namespace(table.i).where((table.i == 0) & (self.order == "official"), 0.0, 1.0)
        return Plan(kernel.schedule.alpha(at), kernel.schedule.sigma(at), merge)

    def draw(self, kernel, key, x):
        key_move, key_known = jax.random.split(key)
        return {"move": kernel.draw(key_move, x), "known": normal(key_known, x.shape, x.dtype)}

    def merge(self, x, plan, noise):
        A, y = self.measurement.A, self.measurement.y.astype(x.dtype)
        alpha, sigma, mask = expand(plan.alpha, x), expand(plan.sigma, x), A.weights(y)
        own = alpha * safe_divide(jnp.asarray(self.measurement.noise_std).astype(x.dtype), mask)  # noise of y / mask
        known_t = alpha * A.pinv(y) + safe_sqrt((sigma - own) * (sigma + own)) * noise
        m = (mask > 0).astype(x.dtype) * expand(plan.merge, x)
        return m * known_t + (1 - m) * x

    def step(self, kernel, x, state, row, noise):
        if self.order == "official":
            x = self.merge(x, row.m, noise["known"])
        x, state = kernel.step(self.predict, x, state, row, noise["move"])
        if self.order == "paper":
            x = self.merge(x, row.m, noise["known"])
        return x, state, {}

    def finish(self, kernel, x, state):
        return pasted(self.measurement, x) if self.exact else x, {}


def published(denoise, measurement, steps=None, *, table=None) -> Setup:
    """250 respaced levels, stretches of 10 walked 10 times: 2410 rows of DDPM, with the network's variance where it has one
    (``kernels.DDPM(variance="learned_range")``)."""
    table = timetables.repaint(denoise.schedule, 250 if steps is None else steps, 10, 10) if table is None else table
    return Setup(RePaint(denoise, measurement), DDPM(), table)
