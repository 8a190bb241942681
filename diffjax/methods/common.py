"""What gradient-guided methods share: y and residuals as pytrees (``operators.stack``), norms, conjugate gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..base import safe_divide, safe_sqrt
from ..operators import Operator


def cast(y, dtype):
    """The measurement (an array, or a tuple of them) in ``dtype``; a complex one stays complex, as precise."""
    both = jnp.complex128 if jnp.finfo(dtype).bits == 64 else jnp.complex64
    is_complex = lambda a: jnp.issubdtype(a.dtype, jnp.complexfloating)
    return jax.tree.map(lambda a: a.astype(both if is_complex(a) else dtype), jax.tree.map(jnp.asarray, y))


def inner(u, v):
    """<u, v> over all leaves, a real scalar."""
    return sum(jnp.vdot(a, b, precision="highest").real for a, b in zip(jax.tree.leaves(u), jax.tree.leaves(v), strict=True))


def norm(r):
    """|r|_2 over all leaves, with gradient 0 at r = 0 (torch's; ``jnp.linalg.norm`` gives NaN)."""
    return safe_sqrt(inner(r, r))


def axpy(c, u, v):
    """c u + v"""
    return jax.tree.map(lambda a, b: c * a + b, u, v)


def needs(method, A, *names):
    """Raise ValueError, naming the fallback, where the concrete operator ``A`` lacks one of the capabilities ``names``."""
    for name in names:
        if callable(A) and not (A.has(name) if isinstance(A, Operator) else hasattr(type(A), name)):
            instead = "operators.cg_prox(A, iterations)" if name == "prox" else "operators.from_function(f, shape)"
            raise ValueError(
                f"{method} needs A.{name}, which {type(A).__name__} lacks: use {instead}, or DPS, which needs only A"
            )


def conjugate_gradients(apply, b, iterations):
    """Solve apply(u)[0] = b, apply linear, symmetric and positive, from u = 0 by a fixed number of steps.

    ``apply(p)`` returns (K p, anything else that is linear in p); the same combination of that is summed along the way, so
    that it costs no further product. Returns (u, the sum, |r| / |b|) of the last step whose |r| is at most |b|, u = 0
    included: where K is not positive (a trained network's Jacobian), the steps may diverge, the answer does not.
    """
    like = jax.eval_shape(lambda p: apply(p)[1], b)
    zeros = lambda tree: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)

    def turn(carry, _):
        (u, extra, r, p, rr), kept = carry
        Kp, more = apply(p)
        step = safe_divide(rr, inner(p, Kp))
        u, extra, r = axpy(step, p, u), axpy(step, more, extra), axpy(-step, Kp, r)
        new = inner(r, r)
        p = axpy(safe_divide(new, rr), p, r)
        kept = jax.tree.map(lambda a, b: jnp.where(new <= bb, a, b), (u, extra, new), kept)  # False for NaN
        return ((u, extra, r, p, new), kept), None

    bb = inner(b, b)
    start = (zeros(b), zeros(like), b, b, bb), (zeros(b), zeros(like), bb)
    (_, (u, extra, rr)), _ = jax.lax.scan(turn, start, None, length=iterations)
    return u, extra, safe_sqrt(safe_divide(rr, bb))
