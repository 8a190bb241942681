"""Masks for the programs: those of ``diffjax.operators.masks`` as planes (H, W), and those of image files."""

from __future__ import annotations

import os

import numpy as np

from diffjax.operators.masks import ALIASES, MASKS, check, half, wide
from diffjax.operators.masks import make as _make
from experiments.errors import UserError, library_errors, unknown

__all__ = ["ALIASES", "MASKS", "from_png", "half", "make", "wide"]


def make(name: str, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """The mask `name` for an image of `shape` (H, W): float32 (H, W), 1 = known.

    Raises UserError for an unknown name (with the nearest valid ones), or if at this shape nothing is known
    or hidden.
    """
    if ALIASES.get(name, name) not in MASKS:
        raise unknown("mask", name, MASKS)
    with library_errors():
        return _make(name, shape, seed)


def from_png(path: str | os.PathLike, shape: tuple[int, int], invert: bool = False) -> np.ndarray:
    """A mask from an image file, float32 (H, W): white (128 of 255 or more) = known; `invert`: black = known.

    An RGB file is taken if its three channels are equal, an alpha channel if it is opaque. Raises UserError,
    one line, if the file is missing, not an image, truncated, of another size, coloured, partly transparent,
    or marks nothing as known or nothing to fill.
    """
    from experiments.images import decode

    grey = decode(path, kind="mask")
    if grey.shape[-1] in (2, 4):
        if np.any(grey[..., -1] != 255):
            raise UserError(f"mask {path} is partly transparent: save it as plain black and white, without alpha")
        grey = grey[..., :-1]
    if np.any(grey != grey[..., :1]):
        raise UserError(f"mask {path} has colours: save it as black and white (one channel), white = known")
    if grey.shape[:2] != tuple(shape):
        raise UserError(
            f"mask {path} is {grey.shape[1]}x{grey.shape[0]} but the images are {shape[1]}x{shape[0]}: "
            f"resize the mask to {shape[1]}x{shape[0]} (width x height, nearest neighbour)"
        )
    known = grey[..., 0] >= 128
    with library_errors():
        return check((~known if invert else known).astype(np.float32), str(path))
