"""Phase retrieval: the image from the modulus of its Fourier transform."""

from __future__ import annotations

import jax.numpy as jnp

from ..base import in_range, pytree, safe_sqrt, static
from .base import Operator
from .checks import check_axes


@pytree
class PhaseRetrieval(Operator):
    """A(x) = |FFT(x, padded with zeros)|, orthonormal, of each channel, frequency 0 in the middle. Not linear: only A(x).

    oversample: each side gets int(oversample / 8 H) rows and int(oversample / 8 W) columns of padding (DPS: 2.0, which makes
    256 pixels 384; its code takes 256 for every image). y: (H + 2 pad, W + 2 pad, C), >= 0. Differentiable where the modulus
    is 0, too. x turned by 180 degrees or negated gives the same y: several starts are needed.
    Raises ValueError for an oversample < 0.
    """

    oversample: float = static(default=2.0)

    def __post_init__(self):
        in_range("oversample", self.oversample, 0, 1e6, remedy="give a number >= 0 (DPS: 2.0)")

    def __call__(self, x):
        check_axes(self, x)
        pads = [(n, n) for n in (int(self.oversample / 8 * n) for n in x.shape[-3:-1])]
        c = jnp.fft.fft2(jnp.pad(x, [(0, 0)] * (x.ndim - 3) + pads + [(0, 0)]), axes=(-3, -2), norm="ortho")
        return jnp.fft.fftshift(safe_sqrt(c.real**2 + c.imag**2), axes=(-3, -2))
