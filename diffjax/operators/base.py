"""The protocol of an operator, its spectral form, any function as one, and how operators combine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..base import is_concrete, pytree, safe_divide, safe_sqrt, static, whole
from .checks import by_part, check_same, first_line, least


class Operator:
    """A measurement ``A(x)`` of one image, with the capabilities it has:

    A(x)               -> y
    A.T(y)             adjoint
    A.pinv(y)          Moore-Penrose pseudo-inverse
    A.prox(z, rho, y)  argmin_x |y - A x|^2 + rho |x - z|^2 (no halves)
    A.svd              the operator as a ``Spectral`` one
    A missing one raises ValueError that names it; ``A.has("prox")`` asks. y is an array, complex for ``Fourier``, a tuple
    for ``stack``; where it is complex, adjoint and norms are those of its real and imaginary parts side by side.

    An image is (H, W, C), in floats. Those of a batch are handled by ``jax.vmap``; the operators of one image also take
    arrays with more axes in front, and do the same to each image. A wrong shape is a ValueError that says what is taken.
    rho is a number, or an array that broadcasts to y and weighs its entries: argmin_x sum (y - A x)^2 / rho + |x - z|^2
    (where y is a tuple, rho may be one of such arrays).
    """

    def has(self, name: str) -> bool:
        """Whether the operator has the capability "T", "pinv", "prox" or "svd"."""
        return getattr(type(self), name) is not getattr(Operator, name)

    def __call__(self, x):
        raise NotImplementedError

    def residual(self, x, y):
        """A x - y. Masks weight it, so that hidden pixels of y are never looked at."""

        def less(measured, y):
            check_same(self, measured, y)
            return measured - y

        return jax.tree.map(less, self(x), y)

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
      spread(level)  a level of each entry of y (noise_std, rho) as one of each entry of the spectrum; by default it takes one
               number only, since the spectrum's entries mix those of y, whose noise would not stay independent
    and has all capabilities by it. Methods work on the spectrum entry by entry, whatever its shape.
    """

    s: Any

    @property
    def svd(self):
        return self

    def singular(self, c):
        """The singular values belonging to a spectrum ``c``, in its dtype, broadcastable to it."""
        return jnp.asarray(self.s).astype(c.dtype)

    def spread(self, level):
        level = jnp.asarray(level)
        if level.size != 1:
            self._mixes(level, "one noise level")
        return level.reshape(())

    def spread_by_channel(self, level):
        """The ``spread`` of operators that treat each channel by itself, in a spectrum whose last axis are the channels."""
        level = jnp.asarray(level)
        if level.ndim and level.size != level.shape[-1]:
            self._mixes(level, "one noise level, or one per channel")
        return level.reshape(level.shape[-1:])

    def _mixes(self, level, takes):
        raise ValueError(
            f"{type(self).__name__} mixes the entries of y, so it takes {takes}, not an array of shape {level.shape}: "
            "use MMPS, or operators.cg_prox(A, iterations) with a method that needs A.prox only (DiffPIR, PiGDM)"
        )

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
        return z + self.V(s * (self.Ut(y) - s * c) / (s**2 + self.spread(rho).astype(c.dtype)))


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
        low = least(rho).astype(z.dtype)
        share = lambda rho, r: r * (low / jnp.asarray(rho).astype(z.dtype))  # weights of at most 1, 1 for one number
        weigh = lambda r: by_part(share, rho, r) if jnp.ndim(jax.tree.leaves(rho)[0]) or isinstance(rho, tuple) else r
        apply = lambda d: self.A.T(weigh(self.A(d))) + low * d
        b = -self.A.T(weigh(self.A.residual(z, y)))  # of the correction d = x - z
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

    What is left of the residual, relative to the start, is in the method's info as "prox_residual". One system for all of
    the array that it is given.
    """
    iterations = whole("iterations", iterations)
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
        if jnp.shape(x) != self.shape:
            took = f"f takes images of shape {self.shape}, not {jnp.shape(x)}"
            raise ValueError(f"{took}: give one image, batches by jax.vmap")
        return self.f(x, *self.args)

    def T(self, y):
        if not self.linear:
            raise ValueError("FromFunction has no T (adjoint), as f is not linear: use a method that needs only A (DPS)")
        x = jax.ShapeDtypeStruct(self.shape, jnp.finfo(jax.tree.leaves(y)[0].dtype).dtype)
        y = jax.tree.map(jnp.conj, y)  # a transpose does not conjugate, an adjoint does
        return jax.linear_transpose(lambda x: self.f(x, *self.args), x)(y)[0]


def _transposes(A, x) -> bool:
    """Whether JAX finds the transpose of f, for which it must be linear, or linear but for an offset."""
    try:
        jax.eval_shape(A.T, jax.eval_shape(A, x))
    except (NotImplementedError, AssertionError, RuntimeError, TypeError, ValueError):  # f ran: this is about its transpose
        return False
    return True


def _stand_in(a):
    """Known numbers for a traced argument of f."""
    if not isinstance(a, jax.core.Tracer):
        return a
    random = np.random.default_rng(a.size).uniform(0.5, 1.5, a.shape)
    return jnp.asarray(random if jnp.issubdtype(a.dtype, jnp.inexact) else np.zeros(a.shape)).astype(a.dtype)


def _homogeneous(A, x) -> bool:
    """Whether f(0) = 0 and f(2.5 x) = 2.5 f(x), for numbers in place of traced arguments; True where f uses other traced
    arrays than its arguments."""
    x = np.random.default_rng(0).uniform(-1, 1, x.shape).astype(x.dtype)
    with jax.ensure_compile_time_eval():
        f = lambda x: A.f(jnp.asarray(x), *jax.tree.map(_stand_in, A.args))
        parts = zip(*(jax.tree.leaves(f(c * x)) for c in (0, 1, 2.5)))
    for zero, once, more in parts:
        if is_concrete(zero, once, more):
            zero, once, more = (np.asarray(a).astype(complex) for a in (zero, once, more))
            size = np.abs(more).max(initial=0)
            nothing = np.abs(zero).max(initial=0) <= 1e-6 * max(size, 1)
            if not (nothing and np.abs(more - 2.5 * once).max(initial=0) <= 0.02 * size):  # f may round to bfloat16
                return False
    return True


def from_function(f, shape, *args) -> FromFunction:
    """Any function ``f(x, *args)`` of one image of ``shape`` as an operator. If it is linear it has its adjoint, by
    transposition. Any other (tanh, clip, an offset f(0), a decoder) has none: DPS, CoPaint, RED-diff with ``first`` and
    DiffPIR's gradient steps do without.

    args: arrays it uses, kept as leaves. Raises ValueError if f does not accept ``shape``.
    """
    A = FromFunction(tuple(args), f, tuple(shape))
    x = jax.ShapeDtypeStruct(A.shape, jnp.float32)
    try:
        jax.eval_shape(A, x)
    except (TypeError, ValueError) as error:
        raise ValueError(f"f does not accept an image of shape {A.shape}: {first_line(error)}") from error
    if _transposes(A, x) and _homogeneous(A, x):
        return A
    return FromFunction(A.args, f, A.shape, linear=False)
