"""Operators given as matrices: any dense one, and separable ones (a matrix for the rows, one for the columns)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from ..base import host, namespace, pytree, static
from .base import Spectral
from .checks import check_axes

HIGHEST = jax.lax.Precision.HIGHEST  # a TPU's default rounds to bfloat16


def decompose(M, rcond=1e-12):
    """(U, s, Vt) of an (m, n) matrix: (m, r), (r,), (n, n) with r = min(m, n); singular values below rcond times the largest
    are 0. In float64 on the host where the matrix is known."""
    M = host(M)
    xp = namespace(M)
    m, n = M.shape
    U, s, Vt = xp.linalg.svd(M, full_matrices=True)
    return U[:, : min(m, n)], xp.where(s > rcond * s[0], s, 0.0), Vt


def _pad(a, shape):
    return jnp.pad(a, [(0, n - m) for m, n in zip(a.shape, shape)])


@pytree
class Matrix(Spectral):
    """A(x) = M x over the row-major entries of one image; built by :func:`matrix`. Spectrum (d,)."""

    u: Any  # (m, r)
    singular_values: Any  # (r,)
    vt: Any  # (d, d)
    shape: tuple = static(default=())

    @property
    def s(self):
        xp = namespace(self.singular_values)
        missing = self.vt.shape[0] - self.singular_values.shape[0]
        return xp.concatenate([self.singular_values, xp.zeros(missing, self.singular_values.dtype)])

    def _times(self, M, x):
        return jnp.matmul(jnp.asarray(M).astype(x.dtype), x, precision=HIGHEST)

    def Vt(self, x):
        if x.shape != self.shape:
            raise ValueError(f"x has shape {x.shape}, the matrix acts on {self.shape}: give one image, batches by jax.vmap")
        return self._times(self.vt, x.reshape(-1))

    def V(self, c):
        return self._times(self.vt.T, c).reshape(self.shape)

    def Ut(self, y):
        if y.shape != self.u.shape[:1]:
            raise ValueError(
                f"y has shape {y.shape}, the matrix gives {self.u.shape[:1]}: give one measurement, batches by jax.vmap"
            )
        kept = jnp.asarray(self.singular_values) > 0
        c = self._times(self.u.T, y)
        return _pad(jnp.where(kept, c, jnp.zeros_like(c)), self.vt.shape[:1])

    def U(self, c):
        return self._times(self.u, c[: self.singular_values.shape[0]])


def matrix(M, shape, rcond: float = 1e-12) -> Matrix:
    """The operator of an (m, d) matrix on images of ``shape`` with d entries in row-major order (channels last); y is (m,).

    rcond: singular values below rcond times the largest are 0 (official DDRM: 1e-3, absolute). The decomposition is computed
    once, in float64 on the host where M is known. Raises ValueError when d is not the size of ``shape``.
    """
    if len(M.shape) != 2 or M.shape[1] != math.prod(shape):
        raise ValueError(f"M has shape {tuple(M.shape)}: give (m, {math.prod(shape)}) for images of shape {tuple(shape)}")
    return Matrix(*decompose(M, rcond), tuple(shape))


@pytree
class Separable(Spectral):
    """A(x) = L x R^T for every channel, (H, W, C) -> (h, w, C); built by :func:`separable`. Spectrum (H, W, C)."""

    left: tuple  # decompose(L), L (h, H)
    right: tuple  # decompose(R), R (w, W)

    @property
    def s(self):
        values = []
        for _, s, vt in (self.left, self.right):
            xp = namespace(s)
            values.append(xp.concatenate([s, xp.zeros(vt.shape[0] - s.shape[0], s.dtype)]))
        return values[0][:, None, None] * values[1][:, None]

    def _both(self, L, R, x):
        L, R = (jnp.asarray(M).astype(x.dtype) for M in (L, R))
        return jnp.einsum("ih,...hwc,jw->...ijc", L, x, R, precision=HIGHEST)

    def Vt(self, x):
        self._check(x, "x", *(vt for _, _, vt in (self.left, self.right)))
        return self._both(self.left[2], self.right[2], x)

    def V(self, c):
        return self._both(self.left[2].T, self.right[2].T, c)

    def Ut(self, y):
        self._check(y, "y", *(u for u, _, _ in (self.left, self.right)))
        kept = jnp.asarray(self.left[1])[:, None, None] * jnp.asarray(self.right[1])[:, None] > 0
        c = self._both(self.left[0].T, self.right[0].T, y)
        full = *y.shape[:-3], self.left[2].shape[0], self.right[2].shape[0], y.shape[-1]
        return _pad(jnp.where(kept, c, jnp.zeros_like(c)), full)

    def U(self, c):
        return self._both(self.left[0], self.right[0], c[..., : self.left[1].shape[0], : self.right[1].shape[0], :])

    def spread(self, level):
        return self.spread_by_channel(level)

    def _check(self, x, name, rows, columns):
        check_axes(self, x)
        if x.shape[-3:-1] != (rows.shape[0], columns.shape[0]):
            raise ValueError(
                f"{name} has shape {x.shape}, the matrices act on {rows.shape[0]}x{columns.shape[0]} pixels of it"
            )


def separable(L, R, rcond: float = 1e-12) -> Separable:
    """The operator x -> L x R^T of an (h, H) and a (w, W) matrix, for each channel of (H, W, C); by two small decompositions.

    rcond: singular values of L and R below rcond times their largest are 0 (official DDRM: 0.03, absolute).
    Raises ValueError when L or R is not a matrix.
    """
    for name, M in (("L", L), ("R", R)):
        if len(M.shape) != 2:
            raise ValueError(f"{name} has shape {tuple(M.shape)}: give a matrix")
    return Separable(decompose(L, rcond), decompose(R, rcond))
