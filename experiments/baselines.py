"""Restorations without a learned prior, to compare with."""

from __future__ import annotations

import numpy as np


def biharmonic(y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Biharmonic inpainting (scikit-image): the smoothest surface through the known pixels. float32 (H, W, C)
    in [-1, 1].

    y: (H, W, C) in [-1, 1]; its hidden pixels are not looked at. mask: (H, W), 1 = known (scikit-image's is
    the opposite). Known pixels come back exactly; each channel is filled by itself. Raises ValueError for
    another shape of mask.
    """
    from skimage.restoration import inpaint_biharmonic

    y, mask = np.asarray(y, np.float32), np.asarray(mask)
    if y.ndim != 3 or mask.shape != y.shape[:2]:
        raise ValueError(f"biharmonic needs an image (H, W, C) and a mask (H, W): got {y.shape} and {mask.shape}")
    hidden = mask < 0.5
    filled = inpaint_biharmonic(np.where(hidden[..., None], 0.0, y).astype(np.float64), hidden, channel_axis=-1)
    return np.where(hidden[..., None], np.clip(filled, -1, 1), y).astype(np.float32)
