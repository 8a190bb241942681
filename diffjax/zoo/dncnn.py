"""The DnCNN that ships: a denoiser of grey photographs of any size, for one noise level."""

from __future__ import annotations

from pathlib import Path

_FILE = Path(__file__).parent / "weights" / "dncnn_gray_sigma25_fp16.safetensors"
NOISE_STD = 50 / 255  # what the network was trained on, in the units of images in [-1, 1]


def _clean(params, x, _):
    from ..nets.dncnn import DnCNN

    return x - 2 * DnCNN().apply(params, 0.5 * x + 0.5)  # the network works on [0, 1]


def dncnn():
    """A denoiser of grey images (H, W, 1) in [-1, 1] with noise of standard deviation 50 / 255, on ``schedules.EDM()``
    (x = x_0 + t noise). It does not look at t: at t = 50 / 255 it is a good denoiser, elsewhere not.

    17 convolutions, 555,137 values, 1.1 MB (float16); origin and licence (MIT) in CREDITS-dncnn.md beside the file. Needs
    flax and ``safetensors``.
    """
    from .. import denoisers, schedules
    from ..convert import dncnn as converter
    from ..convert import files

    _, params = converter.convert(files.read(_FILE))
    return denoisers.from_x0(_clean, params, schedules.EDM())
