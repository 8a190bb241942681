"""Data for conditional super-resolution: small pictures made from large ones, and the condition that is made from them.

The public SR3 code works on 8-bit pictures by Pillow's antialiased bicubic interpolation: the small picture is rounded to
bytes, and the condition is that small picture enlarged, rounded again. So are these, to the byte. Data that must not be
rounded (scans, floats) is made small by an operator, ``operators.Resize`` or one's own, and enlarged by ``operators.resize``.

Sources: Saharia et al. 2021, arXiv:2104.07636; Li et al. 2021, arXiv:2104.14951 (SRDiff: what the enlarged picture lacks).
"""

from __future__ import annotations

import jax
import numpy as np

from .. import autoencoder
from ..base import whole
from .data import decode as decode_images


def _resized(image, height, width):
    """uint8 (H, W, C) -> (height, width, C), each channel by itself, as Pillow does it in a picture of several."""
    from PIL import Image

    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(f"an image is {image.dtype} of shape {image.shape}: uint8 (H, W, C) is needed")
    planes = [Image.fromarray(image[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(image.shape[-1])]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def square(image, size: int):
    """uint8 (H, W, C) -> (size, size, C): the shorter side to ``size``, then the centre, as the public code prepares data."""
    size, (height, width) = whole("size", size), np.shape(image)[:2]
    short = min(height, width)
    shape = int(size * height / short), int(size * width / short)  # the longer side is rounded down
    top, left = (round((side - size) / 2) for side in shape)
    return _resized(image, *shape)[top : top + size, left : left + size]


def shrunk(image, factor: int):
    """uint8 (H, W, C) -> (H / factor, W / factor, C). Raises ValueError where the factor does not divide the sides."""
    factor, (height, width) = whole("factor", factor), np.shape(image)[:2]
    if height % factor or width % factor:
        raise ValueError(f"factor {factor} does not divide {height}x{width}: crop to {height // factor * factor}x"
                         f"{width // factor * factor}, or choose another")  # fmt: skip
    return _resized(image, height // factor, width // factor)


def enlarged(image, factor: int):
    """uint8 (h, w, C) -> (h factor, w factor, C): the condition, before it is scaled to [-1, 1] (``data.scale``)."""
    factor, (height, width) = whole("factor", factor), np.shape(image)[:2]
    return _resized(image, height * factor, width * factor)


def examples(images, factor: int) -> dict:
    """{"x": images, "cond": the same made small and enlarged again}, both uint8 (N, H, W, C), for ``data.Stream``."""
    return {"x": images, "cond": np.stack([enlarged(shrunk(image, factor), factor) for image in images])}


def residual(features=None, scale=2.0, decode=decode_images):
    """-> (example, key) -> example, the ``decode=`` of ``step.example_loss`` for SRDiff: what is learned is
    scale (x - cond), clamped to [-1, 1] (``autoencoder.residual``), and the condition is what frozen features see in cond.

    features:  cond (H, W, C) -> (H, W, K); no gradient reaches what it closes over; None: the condition as it is
    scale:     SRDiff's 2
    decode:    what is done before, on the device; default: 8-bit images to [-1, 1]
    The published network sees the features of the small picture, enlarged by layers of its own.
    """

    def f(example, key=None):
        example = decode(example, key)
        cond = example["cond"]
        lacks = autoencoder.residual(cond, scale).encode(example["x"])
        return {"x": lacks, "cond": cond if features is None else jax.lax.stop_gradient(features(cond))}

    return f
