"""The DnCNN that ships: a denoiser of grey photographs of any size, for one noise level."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from .. import denoisers, schedules
from .prior import read_arrays

_FILE = Path(__file__).parent / "weights" / "dncnn_gray_sigma25_fp16.safetensors"
NOISE_STD = 50 / 255  # what the network was trained on, in the units of images in [-1, 1]


def _clean(params, x, i):
    from ..nets.dncnn import DnCNN

    return x - 2 * DnCNN().apply(params, 0.5 * x + 0.5)  # the network works on [0, 1]


def dncnn():
    """A denoiser of grey images (H, W, 1) in [-1, 1] with noise of standard deviation 50 / 255, on ``schedules.EDM()``
    (x = x_0 + t noise). It does not look at t: at t = 50 / 255 it is a good denoiser, elsewhere not.

    17 convolutions, 555,137 values, 1.1 MB (float16); origin and licence (MIT) in CREDITS-dncnn.md beside the file. Needs
    ``safetensors``, and flax when it is called.
    """
    params = {}  # our own file: its layout is known, and a test compares it with the converter's result
    for name, a in read_arrays(_FILE).items():
        layer, kind = name.split(".")
        a = np.asarray(a, np.float32)
        params.setdefault(layer, {})["kernel" if kind == "weight" else "bias"] = a.transpose(2, 3, 1, 0) if a.ndim == 4 else a
    return denoisers.from_x0(_clean, {"params": jax.device_put(params)}, schedules.EDM())
