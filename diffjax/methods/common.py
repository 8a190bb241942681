"""What methods share: a paper's setting, y and residuals as pytrees (``operators.stack``), norms, a linear solver."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import timetables
from ..base import expand, safe_divide, safe_sqrt
from ..operators import Blur, Decoded, Downsample, Mask, Resize


class Setup(NamedTuple):
    """What a paper's ``published(denoise, measurement, steps=None, *, table=None, **settings)`` gives:
    ``dj.sample(key, setup.method, setup.table, shape, kernel=setup.kernel)``.

    steps: another number of levels than the paper's; table: another walk altogether; settings: hyper-parameters, which may be
    traced (None: the paper's, for the measurement's kind where it has several).
    """

    method: Any
    kernel: Any
    table: Any


KINDS = {Mask: "inpainting", Blur: "deblurring", Resize: "super-resolution", Downsample: "super-resolution"}


def kind(A):
    """ "inpainting", "deblurring" or "super-resolution": which of them the operator measures for, also of a decoded picture;
    None for others."""
    return KINDS.get(type(A.A if isinstance(A, Decoded) else A))


def by_kind(value, measurement, values: dict):
    """``value``, or where it is None that of the measurement's kind (the first for kinds that have none)."""
    return values.get(kind(measurement.A), next(iter(values.values()))) if value is None else value


def grid(schedule, steps=None):
    """The grid of guided-diffusion: ``steps`` of a table's times, respaced (default: all), or equal steps of a formula's
    (default: 1000)."""
    if schedule.discrete:
        return timetables.respaced(schedule, schedule.T if steps is None else steps)
    return timetables.uniform(schedule, 1000 if steps is None else steps)


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
