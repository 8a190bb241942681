"""The protocol of an operator, and any function as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..base import pytree, static


class Operator:
    """A linear measurement ``A(x)`` of one image, with the capabilities it has:

    A(x)               -> y
    A.T(y)             adjoint
    A.pinv(y)          Moore-Penrose pseudo-inverse
    A.prox(z, rho, y)  argmin_x |y - A x|^2 + rho |x - z|^2 (no halves)
    A missing one raises ValueError that names it.
    """

    def __call__(self, x):
        raise NotImplementedError

    def residual(self, x, y):
        """A x - y. Masks weight it, so that hidden pixels of y are never looked at."""
        return self(x) - y

    def T(self, y):
        self._lacks("T (adjoint)", "operators.from_function(f, shape), which transposes f")

    def pinv(self, y):
        self._lacks("pinv", "a method that needs only A and A.T (DPS)")

    def prox(self, z, rho, y):
        self._lacks("prox", "a method that needs only A and A.T (DPS)")

    def _lacks(self, what, instead):
        raise ValueError(f"{type(self).__name__} has no {what}: use {instead}")

    def __matmul__(self, other) -> Compose:
        return Compose(self, other)


@pytree
class Compose(Operator):
    """(A @ B)(x) = A(B(x)). Adjoint of both; no closed-form pinv or prox in general."""

    outer: Any
    inner: Any

    def __call__(self, x):
        return self.outer(self.inner(x))

    def T(self, y):
        return self.inner.T(self.outer.T(y))


@pytree
class FromFunction(Operator):
    args: tuple
    f: Callable = static(default=None)
    shape: tuple = static(default=())

    def __call__(self, x):
        return self.f(x, *self.args)

    def T(self, y):
        x = jax.ShapeDtypeStruct(self.shape, y.dtype)
        return jax.linear_transpose(lambda x: self.f(x, *self.args), x)(y)[0]


def from_function(f, shape, *args) -> FromFunction:
    """Any linear function ``f(x, *args)`` of one image of ``shape`` as an operator; its adjoint by transposition.

    args: arrays it uses, kept as leaves. Raises ValueError if f does not accept ``shape``, or is not linear (f(0) != 0,
    checked on concrete args).
    """
    A = FromFunction(tuple(args), f, tuple(shape))
    try:
        zero = A(jnp.zeros(A.shape, jnp.float32))
    except TypeError as error:
        raise ValueError(f"f does not accept an image of shape {A.shape}: {error}") from error
    if not isinstance(zero, jax.core.Tracer) and bool(jnp.any(jnp.abs(zero) > 1e-6)):
        raise ValueError("f(0) is not 0: from_function takes linear functions; subtract the offset from f and from y")
    return A
