"""Classifier guidance of the mean (Dhariwal & Nichol 2021, algorithm 1) around any kernel with a Gaussian step."""

from __future__ import annotations

from typing import Any

from ..base import expand, in_range, like, pytree, replace
from ..denoisers.guidance import as_gradient
from .base import GaussianKernel, check_kernel


@pytree
class Guided(GaussianKernel):
    """mean + scale std^2 grad_x log p(y | x_t), the gradient taken at x_t (as coded; the paper expands around the mean).

    Build it with :func:`guided`; its schedule is that of the kernel inside.
    """

    kernel: Any = None
    gradient: Any = None
    scale: Any = 1.0

    def bind(self, schedule):
        kernel = self.kernel.bind(schedule)
        return replace(self, kernel=kernel, schedule=kernel.schedule)

    def still(self) -> bool:
        return False

    def coefficients(self, table):
        return self.kernel.coefficients(table)

    def transition(self, p, x, row):
        mean, std = self.kernel.transition(p, x, row)
        return mean + expand(self.scale, x) * std**2 * like(x, self.gradient(x, row.t), "the guiding gradient"), std

    def fresh(self, row, x):
        return self.kernel.fresh(row, x)


def guided(kernel, gradient, scale=1.0) -> Guided:
    """``kernel`` with its mean guided by ``gradient(x, t)``.

    Raises ValueError for kernels without a Gaussian step, or whose deviation is known to be 0: there is nothing to scale the
    gradient by.
    """
    check_kernel(kernel)
    in_range("scale", scale)
    if kernel.still() or not hasattr(kernel, "transition"):
        lacks = (
            "no Gaussian transition to guide" if not hasattr(kernel, "transition") else "no noise, which scales the guidance"
        )
        raise ValueError(
            f"{type(kernel).__name__} has {lacks}: use DDPM or DDIM(eta=1), or guide the score with denoisers.classifier"
        )
    return Guided(kernel.schedule, kernel, as_gradient(gradient), scale)
