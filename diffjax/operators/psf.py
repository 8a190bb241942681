"""Point spread functions for ``Blur``: float64 numpy arrays (size, size) with sum 1, centred at size // 2, where ``Blur`` has
its centre. An even size leaves one row and one column more before the centre than behind it: a uniform kernel of even size
moves the image by half a pixel, the others do not."""

from __future__ import annotations

import itertools
import math

import numpy as np

from ..base import in_range, whole

POSITIVE = np.nextafter(0, 1), np.finfo(np.float64).max


def _offsets(size):
    size = whole("size", size)
    return np.arange(size) - size // 2


def gaussian_kernel(size: int, std: float) -> np.ndarray:
    """A sampled Gaussian of ``std`` pixels. Papers use 61 and 3.0 (DPS, DiffPIR), 5 and 10.0 (DDRM).

    DPS filters a delta with scipy instead, which truncates at 4 std and mirrors the tails: for size > 8 std the difference is
    1e-4 of the maximum.
    """
    return anisotropic_kernel(size, std, std)


def anisotropic_kernel(size: int, std_rows: float, std_columns: float, angle: float = 0.0) -> np.ndarray:
    """A Gaussian with two standard deviations in pixels, along rows (down) and columns (right), turned by ``angle`` radians
    from down towards right. DDRM's is (9, 1.0, 20.0), cut off where it is still high. ValueError for a std that is not > 0."""
    for std in (std_rows, std_columns):
        in_range("std", std, *POSITIVE, remedy="give a number of pixels > 0")
    i, j = np.meshgrid(_offsets(size), _offsets(size), indexing="ij")
    down, right = math.cos(angle) * i + math.sin(angle) * j, math.cos(angle) * j - math.sin(angle) * i
    k = np.exp(-0.5 * ((down / std_rows) ** 2 + (right / std_columns) ** 2))
    return k / k.sum()


def uniform_kernel(size: int) -> np.ndarray:
    """size x size equal entries. DDRM and DDNM use 9."""
    n = len(_offsets(size))
    return np.full((n, n), 1 / n**2)


def _motion_path(diagonal, intensity, rng):
    """The points of a random motion, complex, centre of mass at 0."""
    length = 0.75 * diagonal * (rng.uniform() + rng.uniform(0, intensity**2))
    steps = []
    while sum(steps) < length:
        step = rng.beta(1, 30) * (1.1 - intensity) * diagonal
        if step < length:
            steps.append(step)
    widest, turn = rng.uniform(0, intensity * math.pi), rng.beta(2, 20)
    angles = [rng.uniform(-widest, widest)]
    while len(angles) < len(steps):
        angle = rng.triangular(0, intensity * widest, widest + 0.1)
        angles.append(angle * np.sign(angles[-1]) * (-1 if rng.uniform() < turn else 1))
    path = np.cumsum(np.array(steps) * np.exp(1j * np.array(angles[: len(steps)])))
    return (path - path.mean()) * np.exp(1j * rng.uniform(0, math.pi))


def motion_kernel(size: int, intensity: float = 0.5, seed=0) -> np.ndarray:
    """A random camera motion (the generator of L. Borodenko's motionblur, which DPS and DiffPIR use with size 61).

    A path of random steps (Beta(1, 30)) whose direction keeps its sign but for rare turns (Beta(2, 20)), drawn as an
    antialiased line, softened by a Gaussian of 1 % of the diagonal (whole pixels).
    intensity: 0 = straight, 1 = strongly curved; seed: a whole number, or a numpy generator
    The paths are the original's, draw by draw, given a ``RandomState``; the line is drawn without Pillow's rounding, and for
    an even size half a pixel further down and right, so that its middle is the kernel's centre.
    Raises ValueError for an intensity outside [0, 1].
    """
    in_range("intensity", intensity, 0, 1, remedy="choose 0 (straight) to 1 (curved)")
    rng = np.random.default_rng(seed) if isinstance(seed, (int, np.integer)) else seed
    n = 2 * len(_offsets(size))  # drawn at twice the size
    diagonal = n * math.sqrt(2)
    path = _motion_path(diagonal, intensity, rng) + (1 + 1j) * (2 * (size // 2) + 1)  # the middle of pixel size // 2
    right, down = np.meshgrid(np.arange(n) + 0.5, np.arange(n) + 0.5)
    pixels = right + 1j * down
    distance = np.abs(pixels - path[0])
    for a, b in itertools.pairwise(path):
        along = b - a
        share = np.clip(((pixels - a) * np.conj(along)).real / max(abs(along) ** 2, 1e-12), 0, 1)
        distance = np.minimum(distance, np.abs(pixels - a - share * along))
    line = np.clip(0.5 + max(1.0, diagonal / 150) / 2 - distance, 0, 1)
    std = max(int(0.01 * diagonal), 0.5)
    reach = np.arange(n)[:, None] - np.arange(n)
    soften = np.exp(-0.5 * (reach / std) ** 2)
    line = soften @ line @ soften
    k = line.reshape(size, 2, size, 2).sum((1, 3))
    return k / k.sum()
