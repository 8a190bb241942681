"""Priors that are told a measurement of the picture, as more channels beside the input of their network.

    srN      y = Resize(N) of the picture, in the size of the network's input: as it is where that is y's own size (a latent of
             an autoencoder with f = N), else resized by the same interpolation
    inpaint  the picture with a hole, in it -1, encoded where there is an autoencoder; then the mask, 1 known and -1 not; of
             latents a cell is known where all its pixels are
    inpaint-ldm  the same as the official code of latent diffusion has it: 1 in the hole, -1 elsewhere, and of a latent its
             upper left pixel decides, whatever a mask finer than that hides

What training draws and what restoring is given become a condition by the same function. Source: Rombach et al. 2022,
arXiv:2112.10752, sections 4.4 and 4.5 (conditioning by concatenation); Saharia et al. 2021, arXiv:2104.07636 (SR3).
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp

from ..base import Measurement
from ..operators import Downsample, Mask, Resize, latent_mask, resize

HOLES = ("inpaint", "inpaint-ldm")


def factor(told: str) -> int | None:
    """N of "srN", None for holes. Raises ValueError for other names."""
    found = re.fullmatch(r"sr([2-9]|[1-9]\d)", told)
    if not found and told not in HOLES:
        raise ValueError(f"condition {told!r} is unknown: use {', '.join(HOLES)}, or sr4 for pictures made 4 times smaller")
    return int(found[1]) if found else None


def channels(told: str, image: int, latent: int | None = None) -> int:
    """Of the condition, of pictures of ``image`` channels and latents of ``latent`` (None: there is no autoencoder)."""
    return image if factor(told) else (image if latent is None else latent) + 1


def draw(told: str, key, x) -> Measurement:
    """What a network of this kind learns from: a measurement of the clean picture x (H, W, C), without noise."""
    n = factor(told)
    A = Resize(n) if n else Mask(hole(key, x.shape[:2])[..., None].astype(x.dtype))
    y = A(x)
    return Measurement(y if n else jnp.where(A.mask > 0, y, 0), A)


def condition(told: str, measurement: Measurement, autoencoder, shape) -> jax.Array:
    """(h, w, channels) for a network whose input has ``shape`` (h, w, c). Raises ValueError where the measurement is of
    another kind than the network was trained for."""
    n, A, y = factor(told), measurement.A, jnp.asarray(measurement.y)
    task = ", --task sr4" if n == 4 else ""
    wanted = f"reduced {n} times (operators.Resize({n}){task})" if n else "with a mask (operators.Mask, --mask)"
    if n is None:
        if not isinstance(A, Mask):
            raise ValueError(f"this prior fills holes, and {type(A).__name__} is no mask: give a measurement {wanted}")
        mask = jnp.broadcast_to(jnp.asarray(A.mask, y.dtype), y.shape)
        seen, known = jnp.where(mask > 0, y, -1), (mask > 0).all(-1, keepdims=True)
        official = told == "inpaint-ldm"
        if autoencoder is not None:
            known = known[:: autoencoder.f, :: autoencoder.f] if official else latent_mask(mask, autoencoder.f) > 0
            seen = autoencoder.encode(seen)
        marked = ~known if official else known
        return jnp.concatenate([seen, jnp.where(marked, 1, -1).astype(seen.dtype)], -1)
    if not isinstance(A, (Resize, Downsample)) or A.factor != n:
        raise ValueError(f"this prior enlarges pictures {n} times, and {_named(A)} is another operator: give one {wanted}")
    return y if y.shape[:2] == tuple(shape[:2]) else resize(y, shape[0] / y.shape[0])


def _named(A) -> str:
    return f"{type(A).__name__}({A.factor})" if hasattr(A, "factor") else type(A).__name__


def hole(key, shape):
    """A mask (H, W) to learn from, 1 = known: one side hidden, all but a rectangle, up to three rectangles, or strokes."""
    k_kind, k_side, k_cut, k_boxes, k_count = jax.random.split(key, 5)
    row, column = jnp.arange(shape[0])[:, None] / shape[0], jnp.arange(shape[1])[None] / shape[1]
    at = jnp.stack([row + 0 * column, column + 0 * row, 1 - row + 0 * column, 1 - column + 0 * row])
    side = at[jax.random.randint(k_side, (), 0, 4)] < jax.random.uniform(k_cut, minval=0.3, maxval=0.7)
    middle, reach = jax.random.uniform(k_boxes, (2, 3, 2))
    reach = 0.08 + 0.22 * reach
    inside = lambda n: (abs(row - middle[n, 0]) < reach[n, 0]) & (abs(column - middle[n, 1]) < reach[n, 1])
    count = jax.random.randint(k_count, (), 1, 4)
    boxes = inside(0) | (inside(1) & (count > 1)) | (inside(2) & (count > 2))
    kind = jax.random.uniform(k_kind)
    some = jnp.where(kind < 0.7, boxes, strokes(jax.random.fold_in(key, 5), row, column))
    hidden = jnp.where(kind < 0.3, side, jnp.where(kind < 0.45, ~inside(0), some))
    return ~hidden


def strokes(key, row, column):
    """What LaMa's thick strokes hide (Suvorov et al. 2022; as ``masks.wide``, loops as arrays), at most half: up to
    5 chains of up to 5 pieces, each 10 to 210 long and 5 to 105 wide in 256ths of the picture. row, column: in [0, 1]."""
    keys = jax.random.split(key, 6)
    angle, length, width = (jax.random.uniform(k, (5, 5)) for k in keys[:3])
    move = (10 + 200 * length)[..., None] / 256 * jnp.stack([jnp.sin(2 * jnp.pi * angle), jnp.cos(2 * jnp.pi * angle)], -1)

    def piece(start, move):  # of every chain; joints stay inside
        end = jnp.clip(start + move, 0, 1)
        return end, (start, end)

    _, ends = jax.lax.scan(piece, jax.random.uniform(keys[3], (5, 2)), move.swapaxes(0, 1))
    (y, x), (y_end, x_end) = (jnp.moveaxis(a.swapaxes(0, 1), -1, 0)[..., None, None] for a in ends)
    down, across = y_end - y, x_end - x
    along = jnp.clip(((row - y) * down + (column - x) * across) / jnp.maximum(down**2 + across**2, 1e-12), 0, 1)
    near = (row - y - along * down) ** 2 + (column - x - along * across) ** 2 <= ((5 + 100 * width) / 512)[
        ..., None, None
    ] ** 2
    chains, pieces = jax.random.randint(keys[4], (), 1, 6), jax.random.randint(keys[5], (5, 1), 1, 6)
    near &= ((jnp.arange(5)[:, None] < chains) & (jnp.arange(5) < pieces))[..., None, None]
    hidden = jax.lax.associative_scan(jnp.logical_or, near.reshape(25, *near.shape[2:]))  # by the first 1, 2, ... pieces
    return hidden[(hidden.mean((1, 2)) <= 0.5).sum() - 1]
