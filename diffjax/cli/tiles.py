"""A prior of small images for a larger one, by overlapping tiles.

Not tiles that are restored one by one: at every step the network sees all tiles of one image, and what it says of them is
averaged where they overlap, with weights that fall to the tiles' borders (MultiDiffusion, Bar-Tal et al., ICML 2023, with a
window). So there is one image, one measurement with its whole operator, any method, and no seam to be hidden afterwards.
What is averaged is the network's output, in which clean image, noise and velocity are linear. What spans more than a tile
is not known to the prior: right for blurs, small images, noise and small holes, not for inventing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..base import replace
from .errors import UserError

AT_A_TIME = 16  # tiles in one call of the network


def starts(length: int, size: int, overlap: int) -> np.ndarray:
    """Where tiles of ``size`` begin that cover ``length``, each over its neighbour by ``overlap`` pixels or more."""
    count = max(math.ceil((length - size) / (size - overlap)) + 1, 1)
    return np.rint(np.linspace(0, length - size, count)).astype(int)


def window(size: int, overlap: int) -> np.ndarray:
    """(size,) weights, 1 inside, falling linearly over ``overlap`` pixels at either end, never 0."""
    i = np.arange(size)
    return np.minimum(np.minimum(i + 1, size - i) / (overlap + 1), 1.0)


@dataclass(frozen=True)
class Tiled:
    """``net`` of images (size, size, C), applied to (H, W, C). What is told beside them, (H, W, ...) as well, is cut alike."""

    net: Any
    size: int
    overlap: int

    def apply(self, params, x, *told):
        height, width = x.shape[:2]
        rows, columns = (starts(n, self.size, self.overlap) for n in (height, width))
        corner = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
        at = np.arange(self.size)
        i, j = corner[:, 0, None, None] + at[:, None], corner[:, 1, None, None] + at  # (tiles, size, 1), (tiles, 1, size)
        beside = [n for n, a in enumerate(told) if getattr(a, "ndim", 0) == 3 and a.shape[:2] == (height, width)]

        def one(cut):
            here = dict(zip(beside, cut[1:]))
            return self.net.apply(params, cut[0], *(here.get(n, a) for n, a in enumerate(told)))

        cut = [a[i, j] for a in (x, *(told[n] for n in beside))]
        out = jax.lax.map(one, cut, batch_size=min(AT_A_TIME, len(corner)))
        w = window(self.size, self.overlap)
        w = w[:, None] * w
        total = np.zeros((height, width))
        np.add.at(total, (i, j), w)
        share = jnp.asarray(w / total[i, j], out.dtype)[..., None]  # sums to 1 at every pixel
        return jnp.zeros((height, width, out.shape[-1]), out.dtype).at[i, j].add(share * out)


def widen(prior, shape):
    """The prior for images of ``shape`` (H, W, C), none of which is smaller than its own. Latents are tiled themselves, and
    decoded as a whole."""
    if prior.autoencoder is not None:
        shape = prior.autoencoder.latent_shape(shape)
    if tuple(shape) == tuple(prior.shape):
        return prior
    size = prior.shape[0]
    return replace(prior, net=Tiled(prior.net, size, size // 4), shape=tuple(shape))


def about(name, shape, size) -> str:
    down, across = (len(starts(n, size, size // 4)) for n in shape[:2])
    return f"{name}: restored at {shape[1]}x{shape[0]} in {across}x{down} overlapping tiles of {size}x{size}"


def check_holes(mask, size, name):
    """UserError where a hole is so large that a tile would have to invent it."""
    side = size // 2
    sums = np.pad((mask < 0.5).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    filled = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    if (filled == side * side).any():
        raise UserError(f"a hole of {name} holds a square of {side}x{side}, half a tile: the prior of {size}x{size} sees too "
                        "little around it, leave out --tiles")  # fmt: skip
