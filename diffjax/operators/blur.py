"""Blur, and blur followed by subsampling: convolution with a point spread function.

    A(x)[i] = (k * x)[f i] = sum_j k[j] x[f i + c - j],    c = size // 2 of each axis,    f = factor

A convolution: the kernel is what a single bright pixel becomes. Codes that correlate (DPS, any ``conv2d``) give the same
numbers with the kernel turned by 180 degrees, ``kernel[::-1, ::-1]``, if its sizes are odd.

With wrapped borders all is known in closed form (Zhao et al. 2016, as in DPIR and DiffPIR). In the Fourier domain A takes,
for each frequency of y, one inner product with the f^2 phases of x, G = (G_1 .. G_{f^2}):

    s^2 = sum_a |G_a|^2        prox: z + G^H F(y - A z) / (s^2 + rho)

The residual form: the published one divides a difference that cancels by rho, and loses 3 digits more in float32.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..base import in_range, nearest, numbers, pytree, safe_divide, safe_sqrt, static
from .base import Spectral, first_axis
from .checks import check_axes
from .downsample import Downsample, blocks, check_factor, unblock

BORDERS = {"wrap": "wrap", "reflect": "reflect", "zero": "constant"}  # -> numpy's name
AXES = (-4, -3)  # of blocks and spectra (h, w, factor^2, C)


def _fft(x):
    return jnp.fft.fft2(x, axes=AXES, norm="ortho")


def _ifft(c):
    return jnp.fft.ifft2(c, axes=AXES, norm="ortho").real


def _negated(c):
    """c at minus the frequency."""
    return jnp.roll(jnp.flip(c, AXES), 1, AXES)


def pack(c):
    """The spectrum of a real array as a real one of the same norm (Hartley's: real minus imaginary part)."""
    return c.real - c.imag


def unpack(h):
    """The inverse of :func:`pack`."""
    other = _negated(h)
    return jax.lax.complex((h + other) / 2, (other - h) / 2)


@pytree
class Blur(Spectral):
    """(H, W, C) -> (H / factor, W / factor, C). kernel: (h, w), or (h, w, C) for one per channel, usually with sum 1
    (makers: ``gaussian_kernel``, ``uniform_kernel``, ``motion_kernel``); its centre is the entry (h // 2, w // 2).

    border: "wrap" (periodic), "reflect" (mirrored without repeating the edge pixel, as torch pads) or "zero"
    factor: keep every factor-th pixel, the upper left of each block, after blurring
    cutoff: singular values below cutoff times the largest are 0 to ``svd`` and ``pinv``; default: 10 roundings of the
            dtype. A blur kills detail, and undoing it alone divides by almost 0: official DDRM and DDNM use 0.03
    "wrap" has everything by FFT; spectrum (H / factor, W / factor, factor^2, C), noise_std one number or one per channel. The
    others have T, by transposition, and prox through ``cg_prox``. Raises ValueError for an unknown border, a factor that is
    not a divisor, a kernel of other rank, with values that are not finite, or with other channels than the image.
    """

    kernel: Any
    cutoff: Any = None
    border: str = static(default="wrap")
    factor: int = static(default=1)

    def __post_init__(self):
        if self.border not in BORDERS:
            raise ValueError(f"border {self.border!r} is unknown: {nearest(self.border, BORDERS)}")
        check_factor(self)
        largest = np.finfo(np.float64).max
        in_range("a kernel's entry", self.kernel, -largest, largest, remedy="give finite numbers")
        in_range("cutoff", self.cutoff, 0, 1, remedy="give a share of the largest singular value, 0 to 1 (DDRM, DDNM: 0.03)")
        if isinstance(self.kernel, (list, tuple)) and numbers(self.kernel) is not None:
            object.__setattr__(self, "kernel", np.asarray(self.kernel))
        if hasattr(self.kernel, "shape") and len(self.kernel.shape) not in (2, 3):
            raise ValueError(f"kernel has shape {tuple(self.kernel.shape)}: give (h, w), or (h, w, C) for one per channel")

    def _kernel(self, dtype):
        k = jnp.asarray(self.kernel).astype(dtype)
        return k if k.ndim == 3 else k[:, :, None]

    def _check(self, x):
        check_axes(self, x)
        k = jnp.shape(self.kernel)
        if len(k) == 3 and k[2] not in (1, x.shape[-1]):
            raise ValueError(f"kernel has {k[2]} channels, the image {x.shape[-1]}: give (h, w), or one kernel per channel")

    def spread(self, level):
        return self.spread_by_channel(level)

    def has(self, name):
        return name == "T" or self.border == "wrap"

    def _closed(self, what):
        if self.border != "wrap":
            instead = "operators.cg_prox(A, iterations)" if what == "prox" else 'border="wrap", DiffPIR with cg_prox, or DPS'
            raise ValueError(f'Blur(border="{self.border}") has no {what}: use {instead}')

    @property
    def svd(self):
        self._closed("svd")
        return self

    # --- the closed form, border = "wrap" ---

    def _transfer(self, h, w, dtype):
        """(G, s): (h, w, factor^2, C or 1) complex, (h, w, 1, C or 1), for a measurement of h x w."""
        k, f = self._kernel(dtype), self.factor
        H, W = h * f, w * f
        rows, columns = ((np.arange(n) - n // 2) % N for n, N in zip(k.shape, (H, W)))
        spread = jnp.zeros((H, W, k.shape[2]), dtype).at[rows[:, None], columns].add(k)  # wraps a kernel larger than x
        phase = lambda n: (f * np.arange(n)[:, None] - np.arange(f)) % (n * f)
        by_phase = spread[phase(h)[:, :, None, None], phase(w)]  # (h, f, w, f, C): entry f n - a of the kernel
        g = by_phase.transpose(0, 2, 1, 3, 4).reshape(h, w, f * f, -1)
        G = jnp.fft.fft2(g, axes=AXES)
        return G, safe_sqrt((G.real**2 + G.imag**2).sum(-2, keepdims=True))

    def _row(self, h, w, dtype):
        """The right singular vectors v = conj(G) / s, the first unit vector where s = 0."""
        G, s = self._transfer(h, w, dtype)
        one = (np.arange(G.shape[-2]) == 0)[:, None]
        return jnp.where(s > 0, safe_divide(jnp.conj(G), s.astype(G.dtype)), jnp.asarray(one, G.dtype))

    def _kept(self, s):
        cutoff = 10 * jnp.finfo(s.dtype).eps if self.cutoff is None else jnp.asarray(self.cutoff).astype(s.dtype)
        return jnp.where(s > cutoff * jax.lax.stop_gradient(s).max(), s, jnp.zeros_like(s))

    def singular(self, c):
        h, w, phases, _ = c.shape[-4:]
        s = self._kept(self._transfer(h, w, c.dtype)[1])
        return s * jnp.asarray((np.arange(phases) == 0)[:, None], s.dtype)

    def Vt(self, x):
        self._closed("svd")
        self._check(x)
        X = _fft(blocks(x, self.factor))
        return pack(first_axis(self._row(*X.shape[-4:-2], x.dtype), X, -2))

    def V(self, c):
        X = first_axis(self._row(*c.shape[-4:-2], c.dtype), unpack(c), -2, inverse=True)
        return unblock(_ifft(X), self.factor)

    def Ut(self, y):
        self._closed("svd")
        Y, _, s = self._measured(y)
        c, s = pack(Y), self._kept(s)
        c = jnp.where(s > 0, c, jnp.zeros_like(c))
        return jnp.pad(c, [(0, 0)] * (c.ndim - 2) + [(0, self.factor**2 - 1), (0, 0)])

    def U(self, c):
        return _ifft(unpack(c[..., :1, :]))[..., 0, :]

    def _measured(self, y):
        """(Fourier transform (h, w, 1, C), G, s) of a measurement."""
        self._check(y)
        return _fft(y[..., None, :]), *self._transfer(*y.shape[-3:-1], y.dtype)

    def _back(self, G, Y):
        """G^H Y, as an image."""
        return unblock(_ifft(jnp.conj(G) * Y), self.factor)

    # --- the capabilities ---

    def __call__(self, x):
        self._check(x)
        if self.border == "wrap":
            X = _fft(blocks(x, self.factor))
            G, _ = self._transfer(*X.shape[-4:-2], x.dtype)
            return _ifft((G * X).sum(-2, keepdims=True))[..., 0, :]
        # one pad, then a circular convolution whose wrapped part is cut off
        k = self._kernel(x.dtype)
        blocks(x, self.factor)  # checks the size
        before, after = [n - 1 - n // 2 for n in k.shape[:2]], [n // 2 for n in k.shape[:2]]
        pads = [(0, 0)] * (x.ndim - 3) + [(before[0], after[0]), (before[1], after[1]), (0, 0)]
        y = _convolve(jnp.pad(x, pads, mode=BORDERS[self.border]), k)
        return y[..., k.shape[0] - 1 :: self.factor, k.shape[1] - 1 :: self.factor, :]

    def T(self, y):
        if self.border == "wrap":
            Y, G, _ = self._measured(y)
            return self._back(G, Y)
        self._check(y)
        *batch, h, w, c = y.shape
        x = jax.ShapeDtypeStruct((*batch, h * self.factor, w * self.factor, c), y.dtype)
        return jax.linear_transpose(self, x)(y)[0]

    def pinv(self, y):
        self._closed("pinv")
        Y, G, s = self._measured(y)
        return self._back(G, safe_divide(Y, (self._kept(s) ** 2).astype(G.dtype)))

    def prox(self, z, rho, y):
        self._closed("prox")
        R, G, s = self._measured(self.residual(z, y))
        return z - self._back(G, R / (s**2 + self.spread(rho).astype(s.dtype)).astype(G.dtype))

    def then(self, outer):
        """``Downsample(f) @ Blur(k)`` is a blur by k and a box, then subsampled: closed form again."""
        if not isinstance(outer, Downsample) or self.border != "wrap":
            return super().then(outer)
        k, f, g = jnp.asarray(self.kernel), outer.factor, self.factor
        for axis in (0, 1):
            n = k.shape[axis]
            size = 2 * (n // 2 + g * (f - 1)) + 1  # so that the centre stays at size // 2
            shifts = [g * a for a in range(f)]
            pads = [[(d, size - n - d) if a == axis else (0, 0) for a in range(k.ndim)] for d in shifts]
            k = sum(jnp.pad(k, p) for p in pads) / f
        return Blur(k, self.cutoff, self.border, f * g)


def _convolve(x, k):
    """Circular convolution, the kernel's first entry at 0, sized for x."""
    H, W = x.shape[-3:-1]
    K = jnp.fft.fft2(k, s=(H, W), axes=(0, 1))
    return jnp.fft.ifft2(K * jnp.fft.fft2(x, axes=(-3, -2)), axes=(-3, -2)).real
