"""Clamping the predicted clean image, with the gradient through the clamp."""

from __future__ import annotations

from typing import Any

from ..base import Prediction, clip, in_order, pytree, static


@pytree
class Clipped:
    denoise: Any
    low: Any = -1.0
    high: Any = 1.0
    keep_eps: bool = static(default=False)

    @property
    def schedule(self):
        return self.denoise.schedule

    def __call__(self, x, t) -> Prediction:
        p = self.denoise(x, t)
        return p.with_x0(clip(p.x0, self.low, self.high), self.keep_eps)


def clipped(denoise, low=-1.0, high=1.0, keep_eps=False) -> Clipped:
    """``denoise`` with x0 clamped to [low, high]. eps is recomputed from it (guided-diffusion, DPS), or left as the
    network said it with ``keep_eps`` (CoPaint, Blended, DDNM). Not for unbounded priors: it biases them."""
    in_order("bounds", low, high)
    return Clipped(denoise, low, high, keep_eps)
