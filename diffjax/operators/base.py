"""The protocol of an operator, its spectral form, any function as one, and how operators combine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..base import pytree, safe_divide, safe_sqrt, static


class Operator:
    """A measurement ``A(x)`` of one image, with the capabilities it has:

    A(x)               -> y
    A.T(y)             adjoint
    A.pinv(y)          Moore-Penrose pseudo-inverse
    A.prox(z, rho, y)  argmin_x |y - A x|^2 + rho |x - z|^2 (no halves)
    A.svd              the operator as a ``Spectral`` one
    A missing one raises ValueError that names it; ``A.has("prox")`` asks. y is an array, complex for ``Fourier``, a tuple
    for ``stack``; where it is complex, adjoint and norms are those of its real and imaginary parts side by side.
    """

    def has(self, name: str) -> bool:
        """Whether the operator has the capability "T", "pinv", "prox" or "svd"."""
        return getattr(type(self), name) is not getattr(Operator, name)

    def __call__(self, x):
        raise NotImplementedError

    def residual(self, x, y):
        """A x - y. Masks weight it, so that hidden pixels of y are never looked at."""
        return jax.tree.map(jnp.subtract, self(x), y)

    def T(self, y):
        self._lacks("T (adjoint)", "operators.from_function(f, shape), which transposes f")

    def pinv(self, y):
        self._lacks("pinv", "a method that needs only A (DPS)")

    def prox(self, z, rho, y):
        self._lacks("prox", "operators.cg_prox(A, iterations), or a method that needs only A (DPS)")

    def prox_info(self, z, rho, y):
        """(prox, dict of what an iterative solve reports)."""
        return self.prox(z, rho, y), {}

    @property
    def svd(self) -> Spectral:
        self._lacks("svd", "DiffPIR or DPS, which do without")

    def _lacks(self, what, instead):
        raise ValueError(f"{type(self).__name__} has no {what}: use {instead}")

    def __matmul__(self, other) -> Operator:
        return other.then(self)

    def then(self, outer) -> Operator:
        """outer @ self"""
        return Compose(outer, self)


class Spectral(Operator):
    """An operator known by its singular value decomposition, A = U diag(s) V^T.

    A subclass gives
      s        singular values >= 0, broadcastable to the spectrum; 0 where nothing is measured
               (an operator whose s depends on the image's size gives ``singular(c)`` instead: always ask that)
      Vt(x)    image -> spectrum: a real array with as many entries as the image, an orthonormal change of basis
      V(c)     spectrum -> image, the inverse of Vt
      Ut(y)    measurement -> spectrum, 0 where s = 0
      U(c)     spectrum -> measurement
    and has all capabilities by it. Methods work on the spectrum entry by entry, whatever its shape.
    """

    s: Any

    @property
    def svd(self):
        return self

    def singular(self, c):
        """The singular values belonging to a spectrum ``c``, in its dtype, broadcastable to it."""
        return jnp.asarray(self.s).astype(c.dtype)

    def __call__(self, x):
        c = self.Vt(x)
        return self.U(self.singular(c) * c)

    def T(self, y):
        c = self.Ut(y)
        return self.V(self.singular(c) * c)

    def pinv(self, y):
        c = self.Ut(y)
        return self.V(safe_divide(c, self.singular(c)))

    def prox(self, z, rho, y):
        # the residual form: no cancellation in float32 where rho is small
        c = self.Vt(z)
        s = self.singular(c)
        return z + self.V(s * (self.Ut(y) - s * c) / (s**2 + jnp.asarray(rho).astype(c.dtype)))


@pytree
class Compose(Operator):
    """(A @ B)(x) = A(B(x)). Adjoint of both; no closed-form pinv or prox in general."""

    outer: Any
    inner: Any

    def __call__(self, x):
        return self.outer(self.inner(x))

    def residual(self, x, y):
        return self.outer.residual(self.inner(x), y)

    def has(self, name):
        return name == "T" and self.outer.has("T") and self.inner.has("T")

    def T(self, y):
        return self.inner.T(self.outer.T(y))


@pytree
class Stack(Operator):
    """Several measurements of one image: y is a tuple. Adjoint; prox by ``cg_prox``."""

    parts: tuple

    def __call__(self, x):
        return tuple(A(x) for A in self.parts)

    def residual(self, x, y):
        return tuple(A.residual(x, part) for A, part in zip(self.parts, y, strict=True))

    def has(self, name):
        return name == "T" and all(A.has("T") for A in self.parts)

    def T(self, y):
        return sum(A.T(part) for A, part in zip(self.parts, y, strict=True))


def stack(*operators) -> Stack:
    """One operator that measures all of them; its y is the tuple of theirs."""
    return Stack(tuple(operators))


@pytree
class CGProx(Operator):
    """``A`` with the proximal map by conjugate gradients; see :func:`cg_prox`."""

    A: Any
    iterations: int = static(default=10)

    def __call__(self, x):
        return self.A(x)

    def residual(self, x, y):
        return self.A.residual(x, y)

    def has(self, name):
        return name == "prox" or self.A.has(name)

    def T(self, y):
        return self.A.T(y)

    def pinv(self, y):
        return self.A.pinv(y)

    @property
    def svd(self):
        return self.A.svd

    def prox(self, z, rho, y):
        return self.prox_info(z, rho, y)[0]

    def prox_info(self, z, rho, y):
        rho = jnp.asarray(rho).astype(z.dtype)
        apply = lambda d: self.A.T(self.A(d)) + rho * d
        b = -self.A.T(self.A.residual(z, y))  # of the correction d = x - z
        inner = lambda u, v: jnp.vdot(u, v, precision="highest").real

        def turn(carry, _):
            d, r, p, rr = carry
            Ap = apply(p)
            step = safe_divide(rr, inner(p, Ap))
            d, r = d + step * p, r - step * Ap
            new = inner(r, r)
            return (d, r, r + safe_divide(new, rr) * p, new), None

        start = jnp.zeros_like(b), b, b, inner(b, b)
        (d, r, _, _), _ = jax.lax.scan(turn, start, None, length=self.iterations)
        size = jnp.sqrt(jnp.maximum(inner(b, b), jnp.finfo(z.dtype).tiny))
        return z + d, {"prox_residual": jnp.sqrt(inner(r, r)) / size}


def cg_prox(A, iterations: int = 10) -> CGProx:
    """``A``, linear and with an adjoint, with its proximal map by a fixed number of conjugate-gradient steps.

    What is left of the residual, relative to the start, is in the method's info as "prox_residual".
    """
    if not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations {iterations!r} is not a whole number >= 1")
    if not A.has("T"):
        raise ValueError(f"cg_prox needs A.T, which {type(A).__name__} lacks: use a method that needs only A (DPS)")
    return CGProx(A, iterations)


def first_axis(v, x, axis, inverse=False):
    """Q x along ``axis``, Q unitary, its first row v^H (v has norm 1 along ``axis``), the others whatever completes a basis;
    ``inverse``: Q^H x. By one Householder reflection, so that it costs as much as an inner product."""
    v0 = jax.lax.slice_in_dim(v, 0, 1, axis=axis)
    size = safe_sqrt(v0.real**2 + v0.imag**2)
    phase = jnp.where(size > 0, safe_divide(v0, size.astype(v0.dtype)), jnp.ones_like(v0))
    first = (jnp.arange(v.shape[axis]) == 0).astype(v.dtype)
    w = v + phase * first.reshape([-1 if n == axis % v.ndim else 1 for n in range(v.ndim)])
    share = (jnp.conj(w) * x).sum(axis, keepdims=True) / (1 + size).astype(v.dtype)  # 2 w^H x / |w|^2
    return -(phase if inverse else jnp.conj(phase)) * (x - w * share)


@pytree
class FromFunction(Operator):
    args: tuple
    f: Callable = static(default=None)
    shape: tuple = static(default=())
    linear: bool = static(default=True)

    def has(self, name: str) -> bool:
        return super().has(name) and (self.linear or name != "T")

    def __call__(self, x):
        return self.f(x, *self.args)

    def T(self, y):
        if not self.linear:
            raise ValueError("FromFunction has no T (adjoint), as f is not linear: use a method that needs only A (DPS)")
        x = jax.ShapeDtypeStruct(self.shape, jnp.finfo(jax.tree.leaves(y)[0].dtype).dtype)
        y = jax.tree.map(jnp.conj, y)  # a transpose does not conjugate, an adjoint does
        return jax.linear_transpose(lambda x: self.f(x, *self.args), x)(y)[0]


def from_function(f, shape, *args) -> FromFunction:
    """Any function ``f(x, *args)`` of one image of ``shape`` as an operator; its adjoint by transposition, if it is linear (as
    JAX sees it: no tanh, no clip). Others have no adjoint: DPS, CoPaint, RED-diff and DiffPIR's gradient steps do without.

    args: arrays it uses, kept as leaves. Raises ValueError if f does not accept ``shape``, or f(0) != 0 (checked on concrete
    args).
    """
    A = FromFunction(tuple(args), f, tuple(shape))
    try:
        zero = A(jnp.zeros(A.shape, jnp.float32))
    except TypeError as error:
        raise ValueError(f"f does not accept an image of shape {A.shape}: {error}") from error
    leaves = jax.tree.leaves(zero)
    if any(not isinstance(a, jax.core.Tracer) and bool(jnp.any(jnp.abs(a) > 1e-6)) for a in leaves):
        raise ValueError("f(0) is not 0: subtract the offset from f and from y")
    try:
        jax.eval_shape(A.T, zero)
    except NotImplementedError:  # what JAX raises for a function that it cannot transpose
        return FromFunction(A.args, f, A.shape, linear=False)
    return A
