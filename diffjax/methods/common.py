"""What gradient-guided methods share: y and residuals as pytrees (``operators.stack``), norms, a linear solver."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..base import expand, safe_divide, safe_sqrt
from ..operators import Operator


def cast(y, dtype):
    """The measurement (an array, or a tuple of them) in ``dtype``; a complex one stays complex, as precise."""
    both = jnp.complex128 if jnp.finfo(dtype).bits == 64 else jnp.complex64
    is_complex = lambda a: jnp.issubdtype(a.dtype, jnp.complexfloating)
    return jax.tree.map(lambda a: a.astype(both if is_complex(a) else dtype), jax.tree.map(jnp.asarray, y))


def level(coefficient, x):
    """``base.expand``, but a scalar stays one: it may stand beside y or coefficients, whose rank need not be that of x."""
    return expand(coefficient, x) if jnp.ndim(coefficient) else jnp.asarray(coefficient).astype(x.dtype)


def each(f, level):
    """f of a level of noise, or, where it is a tuple, of its parts."""
    return tuple(map(f, level)) if isinstance(level, (tuple, list)) else f(level)


def inner(u, v):
    """<u, v> over all leaves, a real scalar."""
    return sum(jnp.vdot(a, b, precision="highest").real for a, b in zip(jax.tree.leaves(u), jax.tree.leaves(v), strict=True))


def squares(r):
    """|r|_2^2 over all leaves."""
    square = lambda a: a.real**2 + a.imag**2 if jnp.iscomplexobj(a) else a**2
    return sum(square(a).sum() for a in jax.tree.leaves(r))


def norm(r):
    """|r|_2 over all leaves, with gradient 0 at r = 0 (torch's; ``jnp.linalg.norm`` gives NaN)."""
    return safe_sqrt(inner(r, r))


def axpy(c, u, v):
    """c u + v"""
    return jax.tree.map(lambda a, b: c * a + b, u, v)


def pasted(measurement, x):
    """``x`` with what a ``Mask`` measured without noise put in: y / mask where mask > 0 and noise_std is 0."""
    y = measurement.y.astype(x.dtype)
    exact = ((measurement.A.weights(y) > 0) & (jnp.asarray(measurement.noise_std) == 0)).astype(x.dtype)
    return exact * measurement.A.pinv(y) + (1 - exact) * x


def needs(method, A, *names):
    """Raise ValueError, naming the fallback, where the concrete operator ``A`` lacks one of the capabilities ``names``."""
    instead = {
        "T": "operators.from_function(f, shape) if A is linear",
        "pinv": "MMPS, which needs A.T",
        "svd": "MMPS, which needs A.T",
        "prox": "operators.cg_prox(A, iterations) if A is linear",
    }
    for name in names:
        if callable(A) and not (A.has(name) if isinstance(A, Operator) else hasattr(type(A), name)):
            lacks = f"{method} needs A.{name}, which {type(A).__name__} lacks"
            raise ValueError(f"{lacks}: use {instead[name]}, or DPS, which needs only A")


def least_residual(apply, b, iterations):
    """Solve apply(u)[0] = b, apply linear, from u = 0 by a fixed number of steps: of all that b and its images under ``apply``
    span, the u with the least |b - apply(u)[0]| (generalised conjugate residuals: GMRES without its triangular solve).

    Nothing is asked of ``apply``: with a positive one it converges as conjugate gradients do, with any other the residual
    never grows; where it stands still, as <r, apply(r)[0]> = 0, the walk goes on along the newest image. ``apply(p)`` returns
    (K p, anything else that is linear in p); the same combination of that is summed along the way, so that it costs no further
    product. Returns (u, the sum, |r| / |b|). Memory: three arrays for each step.
    """
    like = jax.eval_shape(apply, b)
    zeros = lambda tree: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)
    history = lambda tree: jax.tree.map(lambda a: jnp.zeros((iterations, *a.shape), a.dtype), tree)
    less = lambda a, c, past: jax.tree.map(lambda a, past: a - jnp.tensordot(c, past, 1, precision="highest"), a, past)
    real = lambda c, tree: jax.tree.map(lambda a: c.astype(a.real.dtype) * a, tree)

    size_b = norm(b)
    eps = jnp.finfo(size_b.dtype).eps

    def turn(carry, j):
        u, extra, r, p, past = carry  # past: of each step (p, K p, the rest of it), the K p orthonormal
        new = p, *apply(p)
        size = norm(new[1])
        for _ in range(2):  # once leaves rounding errors that add up
            overlap = jax.vmap(inner, (0, None))(past[1], new[1])
            new = less(new, overlap, past)
        rest = norm(new[1])  # nothing but rounding errors: there is no further direction
        new = real(jnp.where(rest > 100 * eps * size, safe_divide(1.0, rest), 0.0), new)
        past = jax.tree.map(lambda past, a: past.at[j].set(a), past, new)
        step = inner(r, new[1])
        # r spans nothing new; what rounding leaves of a solved system does not either, and is no reason to go on
        stands = (jnp.abs(step) <= 100 * eps * norm(r)) & (norm(r) > jnp.sqrt(eps) * size_b)
        r = axpy(-step, new[1], r)
        p = jax.tree.map(lambda image, r: jnp.where(stands, image, r), new[1], r)
        return (axpy(step, new[0], u), axpy(step, new[2], extra), r, p, past), None

    start = zeros(b), zeros(like[1]), b, b, (history(b), history(like[0]), history(like[1]))
    (u, extra, r, _, _), _ = jax.lax.scan(turn, start, jnp.arange(iterations))
    return u, extra, safe_divide(norm(r), size_b)
