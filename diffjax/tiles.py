"""Large pictures through a function of small ones: overlapping tiles, weighed and summed.

    out = sum_k put(w_k f(tile_k)) / sum_k put(w_k)

The weight of a pixel is its distance to the border of its tile, as a share of the side, clipped to ``low`` and ``high``, so
that tiles fade into each other. With ``ties`` a tile's whole weight is its distance to the border of the grid of tiles as
well. As latent diffusion does for super-resolution (Rombach et al. 2022; 128 pixels, stride 64). The released code leaves out
what is left over where the strides do not reach the edge; here the last tile of a row or column ends at the edge, whatever
its overlap.

Shapes are static: tiles are cut, mapped over and put back by ``lax`` within one program, for any function that has them so.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from .base import in_range, short, whole


def _border(height: int, width: int) -> np.ndarray:
    """(height, width): distance to the border as a share of the side, 0 at it; 1/2 where a side is one entry long."""
    side = lambda n: np.minimum(np.arange(n), np.arange(n)[::-1]) / (n - 1) if n > 1 else np.full(1, 0.5)
    return np.minimum(side(height)[:, None], side(width)[None])


def _starts(length: int, size: int, stride: int) -> np.ndarray:
    """Where tiles begin: multiples of the stride, and one that ends at the edge."""
    starts = np.arange(0, length - size + 1, stride)
    return starts if starts[-1] == length - size else np.append(starts, length - size)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a picture of ``shape`` (height, width) is cut into tiles; a constant of the program.

    size, stride: (rows, columns) of a tile, and between the beginnings of neighbours; numbers for squares
    low, high:    what the distance to the border is clipped to, 0 < low <= high <= 1/2
    ties:         weigh tiles by their place in the grid of tiles too
    Raises ValueError for a tile larger than the picture, a stride longer than a tile (pixels would be left out), and numbers
    out of range.
    """

    shape: tuple
    size: tuple
    stride: tuple
    low: float = 0.01
    high: float = 0.5
    ties: bool = False

    def __post_init__(self):
        for name in ("shape", "size", "stride"):
            value = getattr(self, name)
            pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
            if len(pair) != 2:
                raise ValueError(f"{name} {short(value)} is no pair: give (rows, columns)")
            object.__setattr__(self, name, tuple(whole(f"{name} of the tiling", n) for n in pair))
        for side, of, step in zip(self.size, self.shape, self.stride):
            if side > of:
                raise ValueError(
                    f"tiles of {self.size} are larger than the picture, {self.shape}: take smaller ones, or pad it"
                )
            if step > side:
                raise ValueError(
                    f"stride {self.stride} leaves pixels out between tiles of {self.size}: take at most their size"
                )
        in_range("high", self.high, 1e-12, 0.5)
        in_range("low", self.low, 1e-12, self.high)

    @property
    def starts(self) -> np.ndarray:
        """(tiles, 2): the first row and column of each tile, row by row."""
        rows, columns = (_starts(*sides) for sides in zip(self.shape, self.size, self.stride))
        return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.starts)

    def weights(self, height: int, width: int) -> np.ndarray:
        """(tiles, height, width) of what f gives of a tile, float64."""
        inside = np.clip(_border(height, width), self.low, self.high)
        grid = [len(_starts(*sides)) for sides in zip(self.shape, self.size, self.stride)]
        of_tile = np.clip(_border(*grid), self.low, self.high) if self.ties else np.ones(grid)
        return of_tile.reshape(-1, 1, 1) * inside

    def cut(self, x):
        """(tiles, rows, columns, C) of a picture (H, W, C). ValueError for another shape."""
        x = jnp.asarray(x)
        if x.ndim != 3 or x.shape[:2] != self.shape:
            raise ValueError(f"the picture has shape {x.shape}, the tiling is of {self.shape}: give (H, W, C) of one picture")
        one = lambda start: jax.lax.dynamic_slice(x, (start[0], start[1], 0), (*self.size, x.shape[2]))
        return jax.vmap(one)(jnp.asarray(self.starts))

    def stitch(self, parts):
        """The picture of ``parts`` (tiles, h, w, C): what became of each tile. h and w may be other sizes than the tiles',
        whole multiples or divisors by which the beginnings of all tiles come out whole; the picture is larger or smaller by
        as much."""
        n, height, width, channels = parts.shape
        if n != len(self):
            raise ValueError(f"{n} parts for {len(self)} tiles: give what became of each")
        places, shape = [], []
        for axis, side in enumerate((height, width)):
            scaled = np.append(self.starts[:, axis], self.shape[axis]) * side
            if (scaled % self.size[axis]).any():
                raise ValueError(
                    f"tiles of {self.size} became {height} x {width}: their places do not come out whole, take sizes and "
                    "strides that are multiples of the factor"
                )
            scaled = scaled // self.size[axis]
            places.append(scaled[:-1])
            shape.append(int(scaled[-1]))
        weights = self.weights(height, width)[..., None]
        total = np.zeros((*shape, 1))
        for w, i, j in zip(weights, *places):
            total[i : i + height, j : j + width] += w

        def put(out, tile):
            part, w, i, j = tile
            here = jax.lax.dynamic_slice(out, (i, j, 0), part.shape)
            return jax.lax.dynamic_update_slice(out, here + w * part, (i, j, 0)), None

        start = jnp.zeros((*shape, channels), parts.dtype)
        tiles = parts, jnp.asarray(weights, parts.dtype), *(jnp.asarray(place, jnp.int32) for place in places)
        return jax.lax.scan(put, start, tiles)[0] / jnp.asarray(total, parts.dtype)


def tiled(f, x, size, stride, *, at_once: int = 1, low: float = 0.01, high: float = 0.5, ties: bool = False):
    """f of a picture x (H, W, C) by tiles: ``f(tile)``, (rows, columns, C) -> (h, w, C'), on each, put together with weights.

    at_once: tiles that f is mapped over together (memory for speed)
    The others as for :class:`Tiling`, whose ``cut`` and ``stitch`` serve functions that want more than a tile (a key, a second
    picture): ``tiling.stitch(jax.vmap(f)(tiling.cut(x), keys))``. Raises ValueError for what they refuse.
    """
    tiling = Tiling(tuple(jnp.shape(x)[:2]), size, stride, low, high, ties)
    batch = min(whole("at_once", at_once), len(tiling))
    return tiling.stitch(jax.lax.map(f, tiling.cut(x), batch_size=batch if batch > 1 else None))
