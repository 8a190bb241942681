"""The two ways to integrate state and divergence from eps to T (``likelihood.flow``), and what is known of the end."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import process
from ..adaptive import integrate
from ..base import namespace, pytree, replace, time_dtype
from ..flow import ends, flow_of
from ..kernels.runge_kutta import arc, time_at, velocity
from ..timetables import Timetable
from ..timetables.table import known

AT_ONCE = 64  # products with the Jacobian that are in memory at a time


@pytree
class _Points:
    """Where a fixed-step walk looks: four to a row, from eps up to T. Arrays (4 rows + 1,)."""

    nu: Any
    t: Any
    cos: Any
    sin: Any
    r: Any


def points_of(schedule, table) -> _Points:
    if not isinstance(table, Timetable):
        raise ValueError(
            f"the walk is {type(table).__name__}, not a Timetable or flow.Adaptive: pass timetables.log_snr(schedule, 65)"
        )
    known("flow.log_prob", table.t, table.s)
    table.check(schedule)
    times = np.append(table.t, table.s[-1])
    times = times[times > 0] if times[-1] == 0 else times
    if table.jumps or len(times) < 2 or (np.diff(times) >= 0).any():
        raise ValueError(
            f"a flow goes straight down, but this walk of {len(table)} rows does not: use timetables.log_snr(schedule, 65)"
        )
    times = times[::-1]
    nodes = arc(*process.marginal(schedule, times))[0]
    xp = namespace(nodes)
    share = np.arange(4) / 4
    between = (nodes[:-1, None] + (nodes[1:] - nodes[:-1])[:, None] * share).reshape(-1)
    nu = xp.append(between, nodes[-1])
    t = time_at(schedule, nu)
    t = xp.where(np.arange(len(nu)) % 4 == 0, np.repeat(times, 4)[: len(nu)], t)  # exactly
    _, cos, sin, r = arc(*process.marginal(schedule, t))
    return _Points(nu, t, cos, sin, r)


def divergence(function, y, vectors):
    """(value, div estimates) of ``function`` at ``y``: (n,) of the probes ``vectors``, (1,) exact where they are None."""
    value, product = jax.linearize(function, y)
    if vectors is None:
        entry = lambda i: product(jax.nn.one_hot(i, y.size, dtype=y.dtype).reshape(y.shape)).reshape(-1)[i]
        return value, _each(entry, jnp.arange(y.size)).sum(keepdims=True)
    return value, _each(lambda v: (v * product(v)).sum(), vectors)


def _each(f, xs):
    return jax.vmap(f)(xs) if len(xs) <= AT_ONCE else jax.lax.map(f, xs, batch_size=AT_ONCE)


STAGES = np.array([0, 1, 1, 2]), np.array([0, 0.5, 0.5, 1]), np.array([1, 2, 2, 1]) / 6  # of the classical Runge-Kutta method


def _walk(denoise, points, x, vectors):
    """(x_T, integral of the divergence), each of two: by every row, and by every row halved. One loop for both, so that the
    denoiser stands in the program once."""
    coarse = np.arange(0, len(points.nu) - 1, 4)
    fine = np.arange(0, len(points.nu) - 1, 2)
    starts, strides = np.append(coarse, fine), np.repeat([4, 2], [len(coarse), len(fine)])
    where = starts[:, None] + STAGES[0] * (strides // 2)[:, None]
    at = jax.tree.map(lambda a: a[where], points)
    step = (points.nu[where[:, 3]] - points.nu[where[:, 0]]).astype(x.dtype)
    which = (strides == 2).astype(np.int32)
    count = 1 if vectors is None else len(vectors)

    def stage(carry, inputs):
        y, h, k, moved, total = carry
        p, before, weight = inputs
        cos, sin, r = (a.astype(x.dtype) for a in (p.cos, p.sin, p.r))
        field = lambda y: velocity(denoise(r * y, p.t.astype(time_dtype(x.dtype))), cos, sin)
        k, div = divergence(field, y + before * h * k, vectors)
        return (y, h, k, moved + weight * h * k, total + weight * h * div), None

    def row(both, inputs):
        p, h, which = inputs
        y, total = jax.tree.map(lambda a: a[which], both)
        weights = (jnp.asarray(a, x.dtype) for a in STAGES[1:])
        moved = jax.lax.scan(stage, (y, h, jnp.zeros_like(y), y, total), (p, *weights))[0][-2:]
        return jax.tree.map(lambda a, new: a.at[which].set(new), both, moved), None

    y = x / points.r[0].astype(x.dtype)
    begin = (jnp.stack([y, y]), jnp.zeros((2, count), x.dtype))
    (y, total), _ = jax.lax.scan(jax.checkpoint(row, prevent_cse=False), begin, (at, step, which))
    return y * points.r[-1].astype(x.dtype), total


def fixed(denoise, points, x, vectors, end):
    """(log p without (1), per probe; x_T; T; the error of the steps; calls; True)"""
    last = points.t[-1]
    level = process.marginal(denoise.schedule, last)
    (other, latent), (coarse, fine) = _walk(denoise, points, x, vectors)
    normal, rough = (_normal(denoise.schedule, level, a, end) for a in (latent, other))
    stretch = x.size * jnp.log(points.r[-1] / points.r[0]).astype(x.dtype)
    change = fine + normal - (coarse + rough)
    apart = jnp.abs((fine - coarse).mean()) + jnp.abs(normal - rough)  # of either sign: in their sum they may cancel
    reach = x.size * jnp.abs(points.nu[0] - points.nu[-1]) + jnp.abs(normal) + jnp.abs(stretch)
    error = apart + jnp.finfo(x.dtype).eps * reach.astype(x.dtype)
    rows = (len(points.nu) - 1) // 4
    return fine + normal + change / 15 + stretch, latent, last, error, jnp.asarray(12 * rows), jnp.asarray(True)


def adaptive(denoise, how, x, vectors, end):
    """As :func:`fixed`, by diffrax; the last: whether the tolerance was reached."""
    eps, T = ends(denoise, how)
    rhs, variable, to_state, to_x = flow_of(denoise, how, x.dtype)
    level, first = process.marginal(denoise.schedule, T), process.marginal(denoise.schedule, eps)
    stretch = x.size * jnp.log(arc(*level)[3] / arc(*first)[3]) if how.by == "nu" else 0.0

    def run(factor):
        both = lambda s, state: divergence(functools.partial(rhs, s), state[0], vectors)
        begin = (to_state(x, eps), jnp.zeros(1 if vectors is None else len(vectors), x.dtype))
        control = replace(how, rtol=factor * how.rtol, atol=factor * how.atol)
        (y, total), calls, _, reached = integrate(both, variable(eps), variable(T), begin, control)
        latent = to_x(y, T)
        each = total + _normal(denoise.schedule, level, latent, end) + jnp.asarray(stretch, x.dtype)
        return each, latent, calls, reached

    factors = jnp.asarray([1.0, 10.0] if how.compare else [1.0], x.dtype)
    each, latent, calls, reached = jax.lax.map(run, factors)  # one program for both
    error = jnp.abs(each[0].mean() - each[-1].mean()) if how.compare else jnp.asarray(jnp.inf, x.dtype)
    return each[0], latent[0], jnp.asarray(T, time_dtype(x.dtype)), error, calls.sum(), reached.all()


def _normal(schedule, level, x_T, end):
    """log of the density of the start at x_T."""
    std = 1.0 if schedule.variance_preserving and end == "normal" else level[1]
    std = jnp.asarray(std).astype(x_T.dtype)
    return -0.5 * ((x_T / std) ** 2).sum() - x_T.size * (jnp.log(std) + 0.5 * math.log(2 * math.pi))


def mismatch(denoise, x_T, t, vectors):
    """((n,) of (1) per probe, the size of its terms of order 3)."""
    alpha, sigma = (jnp.asarray(a).astype(x_T.dtype) for a in process.marginal(denoise.schedule, t))
    q, u = alpha / sigma, x_T / sigma
    mean = lambda u: denoise(sigma * u, t).x0
    derivative = lambda u: jax.jvp(mean, (u,), (x_T / sigma,))[1]
    all_three = lambda u: (*divergence(mean, u, vectors), derivative(u))
    (m, div, _), (first, div_first, second) = jax.jvp(all_three, (u,), (u,))
    third = q * (u * second).sum() / 6, q * div_first / 2, q**2 * (m * first).sum()
    start = q**2 * ((m - first) ** 2).sum() / 2
    value = q * ((u * m).sum() - (u * first).sum() / 2 - (div - div_first) / 2) + third[0] - start
    return value, sum(jnp.abs(a).mean() for a in third)
