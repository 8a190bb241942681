"""A denoiser of images as a denoiser of volumes: every cut along an axis by itself, in one call.

    x0(volume) = stack of x0(cut, t | condition of that cut);   with several axes, the mean of what they give

The state, the noise and the measurement are those of the volume as one object, so that an operator of volumes (thick slices)
ties the cuts together at every step, which images restored one by one do not know of. Averaging over axes is the product of
experts of the axes' priors, up to its strength. Source of the idea: Chung et al. 2023, arXiv:2211.10655 (DiffusionMBIR);
Lee et al. 2023, arXiv:2303.08440 (two perpendicular priors).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..base import Prediction, pytree, static, whole
from .conditions import with_cond


@pytree
class Slicewise:
    """``denoise`` of volumes (D, H, W, C) from ``inner``, of images.

    inner:    a denoiser of one image, whose condition (if ``cond`` is given) is an image
    cond:     (D, H, W, C'), the condition as a volume; None: the inner one's own condition is every cut's
    orders:   for each stack of cuts the axes that count the cuts, their rows and their columns: (0, 1, 2) are the slices of
              axis 0 as they lie; what several stacks give is averaged
    at_once:  cuts in one call of the network (memory for speed); None: all
    Raises ValueError for orders that are none.
    """

    inner: Any
    cond: Any = None
    orders: tuple = static(default=((0, 1, 2),))
    at_once: int | None = static(default=None)

    def __post_init__(self):
        orders = tuple(tuple(int(a) for a in order) for order in self.orders)
        if not orders or any(sorted(order) != [0, 1, 2] for order in orders):
            raise ValueError(f"orders {self.orders}: give permutations of (0, 1, 2), for example ((0, 1, 2),)")
        object.__setattr__(self, "orders", orders)
        if self.at_once is not None:
            object.__setattr__(self, "at_once", whole("at_once", self.at_once))

    @property
    def schedule(self):
        return self.inner.schedule

    def __call__(self, x, t) -> Prediction:
        if x.ndim != 4:
            raise ValueError(f"the volume has shape {x.shape}: give (D, H, W, C)")
        found = [self._stack(order, x, t) for order in self.orders]
        x0, eps = (sum(parts) / len(found) for parts in zip(*found))
        return Prediction(x0, eps, None, x, self.schedule.alpha(t), self.schedule.sigma(t))

    def _stack(self, order, x, t):
        cuts = lambda a: jnp.transpose(a, (*order, 3))
        back = lambda a: jnp.transpose(a, (*(order.index(axis) for axis in range(3)), 3))

        def one(given):
            x, cond = given
            p = (self.inner if cond is None else with_cond(self.inner, cond))(x, t)
            return p.x0, p.eps

        given = cuts(x), None if self.cond is None else cuts(self.cond)
        if self.at_once is None or self.at_once >= x.shape[order[0]]:
            return jax.tree.map(back, jax.vmap(one)(given))
        return jax.tree.map(back, jax.lax.map(one, given, batch_size=self.at_once))
