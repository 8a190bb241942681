"""Antialiased interpolation as MATLAB's ``imresize`` and the papers' low-resolution images: separable, exact matrices.

Row i of the matrix weighs pixel j by  scale h(scale (u_i - j)),  u_i = (i + 1/2) / scale - 1/2  (without the two ``scale``
when enlarging), normalised to sum 1; pixels beyond the edge are mirrored, edge pixel included. Source: Keys 1981 (cubic,
a = -1/2), MATLAB's documentation. DPS's and DiffPIR's ``Resizer`` and DiffPIR's ``imresize_np`` are this in float32.

"fourier" is no such kernel but their limit: the lowest frequencies of the image mirrored at its edges (its cosine transform)
are kept as they are and the others cut off, as the smaller k-space of a coarser MR image does, ringing included. Enlarged, it
is filled up with zeros. Pixels are at the same places as those of the other kernels.
"""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
import numpy as np

from ..base import in_range, nearest, pytree, static
from .base import Spectral
from .checks import check_axes
from .downsample import check_factor
from .matrix import HIGHEST, Separable, decompose


def _cubic(t):
    t = np.abs(t)
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.where(t <= 1, near, np.where(t <= 2, far, 0.0))


def _lanczos(a):
    return lambda t: np.where(np.abs(t) < a, np.sinc(t) * np.sinc(t / a), 0.0)


KERNELS = {  # name: (h, its width)
    "cubic": (_cubic, 4),
    "linear": (lambda t: np.maximum(1 - np.abs(t), 0.0), 2),
    "box": (lambda t: ((t >= -0.5) & (t < 0.5)).astype(float), 1),
    "lanczos2": (_lanczos(2), 4),
    "lanczos3": (_lanczos(3), 6),
}


FOURIER = "fourier"


def _check_kernel(kernel):
    if kernel not in (*KERNELS, FOURIER):
        raise ValueError(f"kernel {kernel!r} is unknown: {nearest(kernel, (*KERNELS, FOURIER))}")


def _cosines(n):
    """(n, n) orthonormal: row k is cos(pi k (j + 1/2) / n)."""
    rows = np.cos(np.pi * np.arange(n)[:, None] * (np.arange(n) + 0.5) / n) * np.sqrt(2 / n)
    rows[0] /= np.sqrt(2)
    return rows


def _fourier_matrix(n, m):
    """(m, n): the first min(m, n) coefficients of n pixels as m pixels. Constants stay what they are."""
    kept = min(m, n)
    return np.sqrt(m / n) * _cosines(m)[:kept].T @ _cosines(n)[:kept]


@functools.lru_cache(maxsize=64)
def resize_matrix(n: int, scale: float, kernel: str = "cubic") -> np.ndarray:
    """(ceil(n scale), n) float64: what resizing does along one axis of n pixels. Read-only, kept for the next call."""
    _check_kernel(kernel)
    in_range("scale", scale, 1e-6, 1e6, remedy="give a number > 0, below 1 to shrink")
    m = math.ceil(n * scale - 1e-9)
    if kernel == FOURIER:
        M = _fourier_matrix(n, m)
        M.setflags(write=False)
        return M
    h, width = KERNELS[kernel]
    shrink = min(scale, 1.0)
    reach = width / shrink
    centre = (np.arange(m) + 0.5) / scale - 0.5
    j = np.floor(centre - reach / 2)[:, None].astype(int) + np.arange(math.ceil(reach) + 2)
    weights = h(shrink * (centre[:, None] - j))
    weights /= weights.sum(1, keepdims=True)
    mirrored = j % (2 * n)
    mirrored = np.minimum(mirrored, 2 * n - 1 - mirrored)
    M = np.zeros((m, n))
    np.add.at(M, (np.arange(m)[:, None], mirrored), weights)
    M.setflags(write=False)
    return M


@functools.lru_cache(maxsize=64)
def _decomposed(n, factor, kernel):
    return decompose(resize_matrix(n, 1 / factor, kernel))


def resize(x, scale: float, kernel: str = "cubic"):
    """(H, W, C) -> (ceil(H scale), ceil(W scale), C), as ``imresize(x, scale)``: enlarges above 1, antialiases below.

    kernel: "cubic", "linear", "box", "lanczos2", "lanczos3", "fourier". Raises ValueError for other names and for scale <= 0.
    """
    check_axes("resize", x)
    L, R = (jnp.asarray(resize_matrix(n, float(scale), kernel), x.dtype) for n in x.shape[-3:-1])
    return jnp.einsum("ih,...hwc,jw->...ijc", L, x, R, precision=HIGHEST)


@pytree
class Resize(Spectral):
    """Super-resolution from antialiased interpolation: (H, W, C) -> (H / factor, W / factor, C), MATLAB's bicubic by default.

    factor: 2, 3, 4, 8, ...; kernel: "cubic", "linear", "box", "lanczos2", "lanczos3", "fourier" (a crop of k-space)
    Separable: two small decompositions per image size, on the host. Spectrum (H, W, C). Raises ValueError for a factor
    below 1 or one that does not divide H and W, and for an unknown kernel.
    """

    factor: int = static(default=4)
    kernel: str = static(default="cubic")

    def __post_init__(self):
        check_factor(self)
        _check_kernel(self.kernel)

    def _at(self, H, W):
        f = self.factor
        if H % f or W % f:
            raise ValueError(f"factor {f} does not divide the image's {H}x{W}: crop it to {H // f * f}x{W // f * f}")
        return Separable(*(_decomposed(n, f, self.kernel) for n in (H, W)))

    def spread(self, level):
        return self.spread_by_channel(level)

    def singular(self, c):
        return self._at(*c.shape[-3:-1]).singular(c)

    def Vt(self, x):
        check_axes(self, x)
        return self._at(*x.shape[-3:-1]).Vt(x)

    def V(self, c):
        return self._at(*c.shape[-3:-1]).V(c)

    def Ut(self, y):
        check_axes(self, y)
        return self._at(*(n * self.factor for n in y.shape[-3:-1])).Ut(y)

    def U(self, c):
        return self._at(*c.shape[-3:-1]).U(c)

    def __call__(self, x):
        check_axes(self, x)
        self._at(*x.shape[-3:-1])
        return resize(x, 1 / self.factor, self.kernel)

    def T(self, y):
        check_axes(self, y)
        L, R = (jnp.asarray(resize_matrix(n * self.factor, 1 / self.factor, self.kernel), y.dtype) for n in y.shape[-3:-1])
        return jnp.einsum("ih,...ijc,jw->...hwc", L, y, R, precision=HIGHEST)
