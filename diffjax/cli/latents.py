"""Priors of latents in programs: sides that the autoencoder divides, and a scale that fits the pictures."""

from __future__ import annotations

import math

import numpy as np

from .errors import UserError
from .images import pictures

MOST = 3.0  # root mean square of latents that a prior of unit variance may still know
LEAST = 0.1  # a picture of one colour has more: its latents have a mean


def multiple(prior, factor: int = 1) -> int:
    """What sides of pictures must be multiples of: of ``factor``, and of a prior of latents of what its autoencoder divides
    by."""
    return factor if prior.autoencoder is None else math.lcm(factor, prior.autoencoder.f)


def check_sides(prior, name, height, width) -> None:
    """UserError where the autoencoder does not divide the sides of a picture that is not resized."""
    f = multiple(prior)
    if height % f or width % f:
        raise UserError(f"{name} becomes {width}x{height}, and prior {prior.name} is one of latents {f} times smaller: "
                        f"crop it so that both sides are multiples of {f}")  # fmt: skip


def check_scale(prior, images) -> None:
    """UserError where the latents of these pictures (H, W, C) are far larger or smaller than those the prior learned, which
    had a deviation of about 1: another scale factor belongs to it."""
    if prior.autoencoder is None or not len(images):
        return
    import jax

    encode = jax.jit(lambda autoencoder, x: autoencoder.encode(x))
    squares = [np.mean(np.square(np.asarray(encode(prior.autoencoder, np.asarray(x))), dtype=np.float64)) for x in images[:4]]
    deviation = math.sqrt(np.mean(squares))
    if LEAST <= deviation <= MOST:
        return
    scale = float(np.mean(np.abs(np.asarray(prior.autoencoder.scale))))
    right = f"{scale / deviation:.3g}"
    how = f"give --prior-config scale={right}" if "condition" in prior.card else f"encode the data again, or use scale {right}"
    raise UserError(f"latents of these pictures have standard deviation {deviation:.3g} after the scale {scale:.4g}, where "
                    f"prior {pictures.one_line(prior.name)} wants about 1: {how}")  # fmt: skip
