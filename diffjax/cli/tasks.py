"""What is measured of an image, by name, for the programs that compare methods: operators of ``diffjax`` at a given size.

The papers' kernels belong to 256x256 images. Scaled to 32x32 their Gaussian (61x61, standard deviation 3) would be 0.4
pixels, hardly a blur, and unscaled it would leave next to nothing. Here it is 1.5 pixels at 32x32: it halves the contrast of
the finest pattern that an image reduced by 4 can still show, so that deblurring and super-resolution x4 miss about the same.
It grows with the image and is the paper's from 64x64 on. The motion blur is the papers' generator, drawn anew for each image,
in a square of 13 (64x64: 25) pixels. Borders are periodic, so that every method has its closed form, unless told otherwise.
Without noise a blur in float32 can all but be inverted: there a method that fits y to the last digit needs no prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..base import replace
from ..operators import Blur, Downsample, Mask, Resize, cg_prox, gaussian_kernel, masks, motion_kernel
from .errors import UserError, library_errors, unknown

CUTOFF = 0.03  # of singular values, for svd and pinv: DDRM's and DDNM's
NOISY = 0.1  # the papers' 0.05 on [0, 1]


class Task(NamedTuple):
    """operator((H, W), seed) -> Operator, one for each image; about: one line; drawn: whether it depends on the seed."""

    operator: Callable
    about: str
    drawn: bool = False


def deblur(shape, seed=0):
    std = _scaled(shape)
    return Blur(gaussian_kernel(2 * math.ceil(4 * std) + 1, std), CUTOFF)


def motion(shape, seed=0):
    return Blur(motion_kernel(2 * math.ceil(4 * _scaled(shape)) + 1, 0.5, seed), CUTOFF)


def _scaled(shape):
    """The Gaussian's standard deviation in pixels."""
    return min(3.0, 1.5 * min(shape) / 32)


def sr4(shape, seed=0):
    return Resize(4)


def sr4_mean(shape, seed=0):
    return Downsample(4)


def denoise(shape, seed=0):
    return Mask(np.ones((*shape, 1), np.float32))


def masked(name):
    """The named mask as a task."""

    def operator(shape, seed=0):
        return Mask(masks.make(name, shape, seed)[..., None])

    return Task(operator, masks.MASKS[name][1], "by seed" in masks.MASKS[name][1])


TASKS = {
    "deblur": Task(deblur, "Gaussian blur, 1.5 pixels at 32x32"),
    "motion": Task(motion, "motion blur, a path of its own for each image, by seed", drawn=True),
    "sr4": Task(sr4, "super-resolution x4 from MATLAB's bicubic"),
    "sr4-mean": Task(sr4_mean, "super-resolution x4 from means of 4x4 blocks"),
    "denoise": Task(denoise, "the image itself, with noise"),
    **{name: masked(name) for name in masks.MASKS},
}


def operator(name: str, shape, seed: int = 0):
    """The operator of task ``name`` for images of ``shape`` (H, W). UserError for an unknown name."""
    name = masks.ALIASES.get(name, name)
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name].operator(tuple(shape), seed)


def noise(shape, noise_std: float, seed: int, number: int) -> np.ndarray:
    """Gaussian noise of image ``number``: it depends on nothing else."""
    rng = np.random.default_rng([seed, number, 0x6E])
    return np.float32(noise_std) * rng.standard_normal(shape).astype(np.float32)


def bordered(A, border: str | None, std: float | None = None):
    """``A`` as it treats the border of a picture: "wrap" (or None) as it is, else a blur with a proximal map by conjugate
    gradients. std: of the Gaussian, in pixels, in place of the task's. UserError where ``A`` is no blur."""
    if std is not None:
        if not isinstance(A, Blur):
            raise UserError(f"--blur {std:g} is about blurs: leave it out for this task")
        A = replace(A, kernel=gaussian_kernel(2 * math.ceil(4 * std) + 1, std))
    if border in (None, "wrap"):
        return A
    if not isinstance(A, Blur):
        raise UserError(f"--border {border} is about blurs: leave it out for this task")
    return cg_prox(replace(A, border=border), 20)


def operators(name: str, shape, count: int, seed: int = 0, border=None, std=None) -> list:
    """Those of ``count`` images of ``shape`` (H, W): masks and motions differ from image to image, by seed + number."""
    with library_errors(f"task {name}: "):
        return [bordered(operator(name, shape, seed + n), border, std) for n in range(count)]


def measure(name: str, truth, noise_std: float = 0.0, seed: int = 0, border: str | None = None):
    """(ys (N, ...), operators: a list of N) of images ``truth`` (N, H, W, C) in [-1, 1]; what a mask hides is 0 in y.

    noise_std: in the units of the images (0.05 on [0, 1] is 0.1); the noise of an image, its mask and its motion depend on
    ``seed`` and its number only.
    """
    found = operators(name, truth.shape[1:3], len(truth), seed, border)
    with library_errors(f"task {name}: "):
        ys = [np.asarray(A(np.asarray(x, np.float32))) for A, x in zip(found, truth)]
    ys = [y + noise(y.shape, noise_std, seed, n) for n, y in enumerate(ys)]
    return np.stack([hide(A, y) for A, y in zip(found, ys)]).astype(np.float32), found


def hide(A, y):
    """y, with 0 where a mask ``A`` hides it."""
    mask = getattr(A, "mask", None)
    return y if mask is None else np.where(mask > 0, y, 0)


def misfit(A, x, y, noise_std: float) -> float:
    """|A x - y| / (noise_std sqrt m), m the number of measured values: 1 for the truth. Without noise: |A x - y| / sqrt m."""
    r = np.asarray(A.residual(np.asarray(x), y))
    mask = getattr(A, "mask", None)
    m = r.size if mask is None else np.broadcast_to(mask > 0, r.shape).sum()
    return float(np.sqrt((r.astype(np.float64) ** 2).sum() / m) / (noise_std or 1.0))
