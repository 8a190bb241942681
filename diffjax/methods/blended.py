"""Blended diffusion (Avrahami et al., CVPR 2022, algorithm 2 without its text guidance): inpainting by blending.

    x_t <- m (alpha_t y + sigma_t e) + (1 - m) x_t,  fresh e at every call;   then one step from x_t with x0 clamped

What CoPaint's tables call "Blended": RePaint without its climbs, by DDIM, the clamped x0 going with the network's own eps.
Paper and code (CoPaint's) differ: the paper blends after the step, at the level of x_s, the code before every call of the
network, the first one included, as here. The code draws its noisy references once, one for the whole batch from its first
image, ends at t = 1 and never pastes y; here every image has its own fresh noise and known pixels equal y at the end
(``exact=False``: not).
"""

from __future__ import annotations

from typing import Any

from ..base import Prediction, clip, namespace, pytree, replace
from ..kernels import DDIM
from .common import Setup, grid
from .repaint import RePaint


@pytree
class Blended(RePaint):
    """denoise: the prior, not clipped. measurement: y (H, W, C) with a ``Mask``; noise in y is taken off e's deviation.

    bounds: what x0 and the result are clamped to; widen them for a prior that is not confined to [-1, 1]
    Any table and kernel; the published one is ``kernels.DDIM`` with eta 0. Raises ValueError for other operators.
    """

    bounds: Any = (-1.0, 1.0)

    paper = "Avrahami et al. 2022"
    link = "arxiv.org/abs/2111.14818"

    def default_kernel(self):
        return DDIM()

    def plan(self, kernel, table):
        plan = super().plan(kernel, table)
        return replace(plan, merge=namespace(plan.merge).ones_like(plan.merge))

    def predict(self, x, t) -> Prediction:
        """x0 clamped, eps the network's own."""
        p = self.denoise(x, t)
        return p.with_x0(clip(p.x0, *self.bounds), keep_eps=True)

    def finish(self, kernel, x, state):
        return super().finish(kernel, clip(x, *self.bounds), state)


def published(denoise, measurement, steps=None, *, table=None) -> Setup:
    """As in CoPaint's tables: 250 respaced levels, DDIM with eta 0."""
    table = grid(denoise.schedule, 250 if steps is None else steps) if table is None else table
    return Setup(Blended(denoise, measurement), DDIM(), table)
