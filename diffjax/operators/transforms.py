"""Masked orthonormal transforms: Walsh-Hadamard compressed sensing and Fourier (MRI) undersampling."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..base import in_range, pytree, safe_divide, safe_sqrt
from .base import Spectral
from .checks import check_axes, check_same, check_weights
from .mask import check_mask
from .matrix import HIGHEST

AXES = (-3, -2)


@functools.cache
def _hadamard(n):
    """(n, n), orthonormal and symmetric, in natural (Sylvester's) order."""
    if n < 1 or n & (n - 1):
        raise ValueError(f"{n} is not a power of two: Hadamard needs images whose sides are; crop or pad them")
    H = np.ones((1, 1))
    while len(H) < n:
        H = np.block([[H, H], [H, -H]]) / np.sqrt(2)
    return H


def random_mask(shape, fraction: float, seed=0, first: bool = True) -> np.ndarray:
    """A 0/1 float32 mask (H, W, 1) of round(fraction H W) random entries; ``first``: entry [0, 0], the mean of the image in
    both transforms, is among them. Raises ValueError for a fraction outside (0, 1]."""
    in_range("fraction", fraction, np.nextafter(0, 1), 1, remedy="choose one in (0, 1]")
    H, W = shape[:2]
    order = np.random.default_rng(seed).permutation(H * W)
    if first:
        order = np.concatenate([[0], order[order != 0]])
    mask = np.zeros(H * W, np.float32)
    mask[order[: max(1, round(fraction * H * W))]] = 1
    return mask.reshape(H, W, 1)


@pytree
class Hadamard(Spectral):
    """Compressed sensing: A(x) = mask * (H_h x H_w), the Walsh-Hadamard transform of each channel, orthonormal, natural order.

    mask: 1 = measured, (H, W, 1) or whatever broadcasts to x; y has the shape of x, and is not looked at where the mask is 0
    (``random_mask`` makes one). Entry [0, 0] is the mean times sqrt(H W): pass ``value_range`` to ``Measurement``.
    noise_std may differ from entry to entry of y.
    Raises ValueError for masks outside [0, 1], or that do not fit the image, and sides that are not powers of two.
    """

    mask: Any

    def __post_init__(self):
        check_mask(self)

    @property
    def s(self):
        return self.mask

    def singular(self, c):
        check_weights(self, self.mask, c)
        return jnp.asarray(self.mask).astype(c.dtype)

    def spread(self, level):
        return jnp.asarray(level)

    def Vt(self, x):
        check_axes(self, x)
        L, R = (jnp.asarray(_hadamard(n), x.dtype) for n in x.shape[-3:-1])
        return jnp.einsum("ih,...hwc,jw->...ijc", L, x, R, precision=HIGHEST)

    V = Vt

    def Ut(self, y):
        check_axes(self, y)
        return (self.singular(y) > 0).astype(y.dtype) * y

    U = Ut

    def residual(self, x, y):
        m = self.singular(x)
        check_same(self, x, y)
        return (m > 0).astype(x.dtype) * (m * self.Vt(x) - y)


@pytree
class Fourier(Spectral):
    """Undersampled Fourier measurements (one-coil MRI): A(x) = mask * FFT(x), orthonormal, of each channel of a real image.

    mask: 1 = measured, (H, W, 1), (1, W, 1) for whole columns, or whatever broadcasts to x; frequency 0 at [0, 0], so a
    mask drawn with its centre in the middle goes through ``np.fft.ifftshift(mask, (0, 1))`` first
    y: complex, the shape of x, not looked at where the mask is 0; ``noise_std`` is that of the real and of the imaginary part
    Spectrum (H, W, C): Hartley's, real. A frequency and its negative see the same real numbers, so that
    s^2 = (mask(k)^2 + mask(-k)^2) / 2, and noise_std is one number, or one per channel.
    Raises ValueError for masks outside [0, 1], or that do not fit the image.
    """

    mask: Any

    def __post_init__(self):
        check_mask(self)

    def _mask(self, x):
        """The mask in the dtype of an image or measurement that it fits, with axes for rows, columns and channels."""
        check_axes(self, x)
        check_weights(self, self.mask, x)
        m = jnp.asarray(self.mask).astype(x.dtype)
        return m.reshape((1,) * (3 - m.ndim) + m.shape)

    def _fft(self, x):
        return jnp.fft.fft2(x, axes=AXES, norm="ortho")

    def spread(self, level):
        return self.spread_by_channel(level)

    def singular(self, c):
        m = self._mask(c)
        return safe_sqrt((m**2 + jnp.roll(jnp.flip(m, AXES), 1, AXES) ** 2) / 2)

    def Vt(self, x):
        check_axes(self, x)
        c = self._fft(x)
        return c.real - c.imag

    V = Vt

    def Ut(self, y):
        c = self.Vt(self.T(y))
        return safe_divide(c, jnp.broadcast_to(self.singular(c), c.shape))

    def U(self, c):
        return self(self.V(safe_divide(c, jnp.broadcast_to(self.singular(c), c.shape))))

    def __call__(self, x):
        m = self._mask(x)
        c = self._fft(x)
        return m.astype(c.dtype) * c

    def T(self, y):
        return jnp.fft.ifft2(self._mask(y) * y, axes=AXES, norm="ortho").real

    def residual(self, x, y):
        m = self._mask(x)
        check_same(self, x, y)
        return (m > 0).astype(y.dtype) * (self(x) - y)

    def prox(self, z, rho, y):
        c = self.Vt(self.T(-self.residual(z, y)))
        return z + self.V(c / (self.singular(c) ** 2 + self.spread(rho).astype(c.dtype)))
