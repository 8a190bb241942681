"""Classifier guidance of the mean (Dhariwal & Nichol 2021, algorithm 1) around any kernel with a Gaussian step."""

from __future__ import annotations

from typing import Any

from ..base import expand, pytree
from ..denoisers.guidance import as_gradient
from .base import Kernel, stay_if_no_move


@pytree
class Guided(Kernel):
    """mean + scale std^2 grad_x log p(y | x_t), the gradient taken at x_t (as coded; the paper expands around the mean).

    schedule: the inner kernel's (kept for the protocol); build with :func:`guided`.
    """

    kernel: Any = None
    gradient: Any = None
    scale: Any = 1.0

    def coefficients(self, table):
        return self.kernel.coefficients(table)

    def transition(self, p, x, row):
        mean, std = self.kernel.transition(p, x, row)
        return mean + expand(self.scale, x) * std**2 * self.gradient(x, row.t), std

    def step(self, predict, x, state, row, noise, first=None, edit=None):
        p = predict(x, row.t) if first is None else first
        mean, std = self.transition(p, x, row)
        noisy = expand(row.k.move.noisy, x) if hasattr(row.k.move, "noisy") else 1
        x = stay_if_no_move(row, mean + noisy * std * noise, x)
        return (x if edit is None else edit(x, row.s, 0)), state


def guided(kernel, gradient, scale=1.0) -> Guided:
    """``kernel`` with its mean guided by ``gradient(x, t)``. Raises ValueError for kernels without a transition."""
    if not hasattr(kernel, "transition"):
        raise ValueError(
            f"{type(kernel).__name__} has no Gaussian transition to guide: use DDPM or DDIM, or guide the "
            "score with denoisers.classifier"
        )
    return Guided(kernel.schedule, kernel, as_gradient(gradient), scale)
