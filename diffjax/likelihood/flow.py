"""log p(x) of one image by the probability-flow ODE (Song et al. 2021, section 4.3; Chen et al. 2018, eq. 8).

With y = x / r, r = sqrt(alpha^2 + sigma^2) and dy / dnu = v(y, nu) (``kernels.ode_high``, eq. 1), for D pixels

    log p_eps(x) = log p_T(x_T) + D log(r_T / r_eps) + int_eps^T div v dnu

x is taken to be x at eps, the lowest time of the walk: what comes out is the density of alpha_eps x_0 + sigma_eps noise, not
of x_0. At T a model that draws its start from N(0, sigma_T^2) (from N(0, 1) where alpha^2 + sigma^2 = 1, as ``sample`` does)
has just that density: ``end="normal"``, which is what papers report. But data noised to T have not quite that distribution.
``end="matched"``, the default, asks the denoiser at T for the difference: with q = alpha_T / sigma_T, u = x_T / sigma_T, m = x0
there, and ' the derivative along u,

    log p_T - log N(0, sigma_T^2) =
        q (u.m - u.m' / 2 + u.m'' / 6 - (div_u m - (div_u m)') / 2) - q^2 |m - m'|^2 / 2 + O(q^4)                         (1)

which is up to 0.02 nats for VP and 0.05 for VE in 8 dimensions. ``mismatch`` is this number.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import process
from ..base import in_range, is_concrete, namespace, nearest, numbers, pytree, time_dtype, whole
from ..flow import Adaptive, check_reached, flow_of, integrate, load_diffrax, lowest, schedule_of
from ..kernels.ode_high import arc, time_at, velocity
from ..method import as_denoiser
from ..timetables import Timetable
from ..timetables.table import known

PROBES, ENDS = ("rademacher", "gaussian"), ("matched", "normal")
AT_ONCE = 64  # products with the Jacobian that are in memory at a time
STUDENT = (np.inf, 12.71, 4.31, 3.19, 2.78)  # of 95 % by degrees of freedom; beyond: 1.96 + 2.4 / n + 3 / n^2


@pytree
class LogProb:
    """nats:          log p(x)
    bits:           the same in bits per dimension of the quantised image, -log2 P / D <= bits; None without ``data_range``
    latent:         x_T, of x's shape
    error:          of nats: the truth is within it for 95 % of images. solver_error + 2 to 13 probe_errors (Student's factor)
    solver_error:   of the steps, of rounding and of (1): the fifteenth of the difference that halving every row makes, which
                    ``nats`` already contains (order 4); adaptive: the difference that ten times the tolerance makes
    probe_error:    standard error over the probes, infinite for one; 0 for the exact divergence
    mismatch:       what (1) adds to nats, 0 for ``end="normal"``
    calls:          network calls; products: products of its Jacobian with a vector
    reached:        whether an adaptive solver's tolerance was reached; finite: whether nats is
    """

    nats: Any
    bits: Any
    latent: Any
    error: Any
    solver_error: Any
    probe_error: Any
    mismatch: Any
    calls: Any
    products: Any
    reached: Any
    finite: Any


@pytree
class _Points:
    """Where a fixed-step walk looks: four to a row, from eps up to T. Arrays (4 rows + 1,)."""

    nu: Any
    t: Any
    cos: Any
    sin: Any
    r: Any


def dequantise(key, image, data_range=(-1.0, 1.0), levels: int = 256):
    """``image`` with uniform noise within each level: low + (high - low) (k + u) / levels, u in [0, 1), where it is
    low + (high - low) k / (levels - 1), like k / 127.5 - 1. Raises ValueError for known values that are no level."""
    low, high = check_range(data_range, levels)
    image = jnp.asarray(image)
    k = (image - low) / (high - low) * (levels - 1)
    values = numbers(image)
    if values is not None and values.size:
        at = (values.astype(np.float64) - low) / (high - low) * (levels - 1)
        wrong = ~((at > -0.02) & (at < levels - 0.98) & (np.abs(at - np.round(at)) < 0.02))
        if wrong.any():
            raise ValueError(
                f"{values[wrong].ravel()[0]:.6g} is none of {levels} levels from {low:g} to {high:g}: give the image's "
                "data_range and levels; what is not quantised needs no noise"
            )
    u = jax.random.uniform(key, k.shape, k.dtype)
    return low + (high - low) * (jnp.round(k) + u) / levels


def check_range(data_range, levels):
    whole("levels", levels, 2)
    if np.shape(data_range) != (2,) or not data_range[0] < data_range[1]:
        raise ValueError(f"data_range {data_range} is empty: give (low, high), for example (-1.0, 1.0)")
    return float(data_range[0]), float(data_range[1])


def bits_per_dimension(nats, size: int, data_range=(-1.0, 1.0), levels: int = 256):
    """-nats / (D ln 2) - log2((high - low) / levels), D = ``size``: of what :func:`dequantise` gives."""
    low, high = check_range(data_range, levels)
    return -nats / (size * math.log(2)) + math.log2(levels / (high - low))


def log_prob(
    denoise,
    walk,
    x,
    *,
    probes=None,
    key=None,
    kind: str = "rademacher",
    end: str = "matched",
    data_range=None,
    levels: int = 256,
) -> LogProb:
    """log p(x) of one image. Batches by ``jax.vmap``; differentiable by x, weights and schedule.

    denoise:     a denoiser with a schedule
    walk:        a plain descent from T, such as ``timetables.log_snr(schedule, 33)``: fixed steps of the classical Runge-Kutta
                 method, 12 calls a row. Rows that end at t = 0 are left out, the lowest time above is eps. Reverse mode keeps
                 one state per row. Or a ``flow.Adaptive``: diffrax's steps from ``flow.lowest`` to T, twice
    x:           one image, any shape; as it is at eps
    probes:      None: the exact divergence, D products per call, 64 at a time. A number n: Hutchinson's estimate, n products,
                 the same probes all the way. Or the probes themselves, (n, *x.shape)
    key, kind:   of the probes: "rademacher" (signs) or "gaussian"
    end:         "matched" or "normal", see the head of this file
    data_range:  (low, high) of the data, for ``bits``; x must lie within. x is what :func:`dequantise` gives: else the bits
                 are those of a density and bound nothing
    Raises ValueError for walks that jump or climb, schedules without what is needed, a range that does not match; a divergence
    that is not finite, a tolerance that is not reached (known values; within ``jit`` see ``finite``, ``reached``).
    """
    denoise, x = as_denoiser(denoise), jnp.asarray(x)
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
    schedule = schedule_of(denoise)
    for name, value, valid in (("kind", kind, PROBES), ("end", end, ENDS)):
        if value not in valid:
            raise ValueError(f"unknown {name} {value!r} of flow.log_prob: {nearest(value, valid)}")
    if data_range is not None:
        low, high = check_range(data_range, levels)
        remedy = f"give the data's own data_range, not ({low:g}, {high:g})"
        in_range("a pixel", x, low - 1e-6 * (high - low), high + 1e-6 * (high - low), remedy=remedy)
    vectors = None if probes is None else draw_probes(probes, key, kind, x)
    if isinstance(walk, Adaptive):
        load_diffrax()
        found = _adaptive(denoise, walk, x, vectors, end)
        check_reached(walk, found.reached, found.latent)
    else:
        points = jax.tree.map(jnp.asarray, points_of(schedule, walk))
        found = _fixed(denoise, points, x, vectors, end)
    if is_concrete(found.finite) and not np.all(found.finite):
        raise ValueError(f"log p is {float(found.nats)}: the denoiser or its divergence is not finite along the flow")
    bits = None if data_range is None else bits_per_dimension(found.nats, x.size, data_range, levels)
    return LogProb(**{**vars(found), "bits": bits})


def draw_probes(probes, key, kind, x):
    """(n, *x.shape), of a number n or as given."""
    if np.ndim(probes) > 0:
        if np.shape(probes)[1:] != x.shape:
            raise ValueError(f"probes of shape {np.shape(probes)} do not fit an image of {x.shape}: give (n, *shape)")
        return jnp.asarray(probes, x.dtype)
    n = whole("probes", probes)
    if key is None:
        raise ValueError(f"{n} probes without a key: pass key=jax.random.key(seed), or probes=None for the exact divergence")
    draw = jax.random.rademacher if kind == "rademacher" else jax.random.normal
    return draw(key, (n, *x.shape), x.dtype)


def points_of(schedule, table) -> _Points:
    if not isinstance(table, Timetable):
        raise ValueError(
            f"the walk is {type(table).__name__}, not a Timetable or flow.Adaptive: pass timetables.log_snr(schedule, 33)"
        )
    known("flow.log_prob", table.t, table.s)
    table.check(schedule)
    times = np.append(table.t, table.s[-1])
    times = times[times > 0] if times[-1] == 0 else times
    if table.jumps or len(times) < 2 or (np.diff(times) >= 0).any():
        raise ValueError(
            f"a flow goes straight down, but this walk of {len(table)} rows does not: use timetables.log_snr(schedule, 33)"
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
        flat = lambda i: jax.nn.one_hot(i, y.size, dtype=y.dtype).reshape(y.shape)
        entry = lambda i: product(flat(i)).reshape(-1)[i]
        return value, jax.lax.map(entry, jnp.arange(y.size), batch_size=min(AT_ONCE, y.size)).sum(keepdims=True)
    one = lambda v: (v * product(v)).sum()
    return value, jax.lax.map(one, vectors, batch_size=min(AT_ONCE, len(vectors)))


STAGES = np.array([0, 1, 1, 2]), np.array([0, 0.5, 0.5, 1]), np.array([1, 2, 2, 1]) / 6  # of the classical Runge-Kutta method


def _walk(denoise, points, x, vectors, every):
    """(x_T, integral of the divergence) with ``every`` points from one node to the next (2: fine, 4: coarse)."""
    where = np.arange(0, len(points.nu) - 1, every)[:, None] + STAGES[0] * (every // 2)
    at = jax.tree.map(lambda a: a[where], points)
    step = (points.nu[where[:, 3]] - points.nu[where[:, 0]]).astype(x.dtype)
    count = 1 if vectors is None else len(vectors)

    def stage(carry, inputs):
        y, h, k, moved, total = carry
        p, before, weight = inputs
        cos, sin, r = (a.astype(x.dtype) for a in (p.cos, p.sin, p.r))
        field = lambda y: velocity(denoise(r * y, p.t.astype(time_dtype(x.dtype))), cos, sin)
        k, div = divergence(field, y + before * h * k, vectors)
        return (y, h, k, moved + weight * h * k, total + weight * h * div), None

    def row(carry, inputs):
        y, total = carry
        p, h = inputs
        weights = (jnp.asarray(a, x.dtype) for a in STAGES[1:])
        return jax.lax.scan(stage, (y, h, jnp.zeros_like(y), y, total), (p, *weights))[0][-2:], None

    begin = (x / points.r[0].astype(x.dtype), jnp.zeros(count, x.dtype))
    (y, total), _ = jax.lax.scan(jax.checkpoint(row, prevent_cse=False), begin, (at, step))
    return y * points.r[-1].astype(x.dtype), total


@functools.partial(jax.jit, static_argnames=("end",), inline=True)
def _fixed(denoise, points, x, vectors, end):
    schedule = denoise.schedule
    last = points.t[-1]
    latent, fine = _walk(denoise, points, x, vectors, 2)
    other, coarse = _walk(denoise, points, x, vectors, 4)
    level = process.marginal(schedule, last)
    stretch = x.size * jnp.log(points.r[-1] / points.r[0]).astype(x.dtype)
    ends = [_normal(schedule, level, a, end) for a in (latent, other)]
    rough = (coarse + ends[1]).mean()
    each = fine + ends[0] + ((fine - coarse) + (ends[0] - ends[1])) / 15 + stretch
    change = jnp.abs((fine + ends[0]).mean() - rough) / 15
    rows = (len(points.nu) - 1) // 4
    rounding = jnp.finfo(x.dtype).eps * (x.size * jnp.abs(points.nu[0] - points.nu[-1]) + jnp.abs(ends[0]) + jnp.abs(stretch))
    return _result(denoise, each, latent, last, level, vectors, end, change + rounding, 12 * rows, True)


@functools.partial(jax.jit, static_argnames=("end",), inline=True)
def _adaptive(denoise, how, x, vectors, end):
    schedule = denoise.schedule
    eps, T = lowest(schedule), float(schedule.T)
    rhs, variable, to_state, to_x = flow_of(denoise, how, x.dtype)
    level, first = process.marginal(schedule, T), process.marginal(schedule, eps)
    r = lambda pair: arc(*pair)[3]
    stretch = x.size * jnp.log(r(level) / r(first)) if how.by == "nu" else 0.0

    def run(how):
        def both(s, state):
            value, div = divergence(functools.partial(rhs, s), state[0], vectors)
            return value, div

        count = 1 if vectors is None else len(vectors)
        begin = (to_state(x, eps), jnp.zeros(count, x.dtype))
        (y, total), calls, _, reached = integrate(both, variable(eps), variable(T), begin, how)
        latent = to_x(y, T)
        return latent, total + _normal(schedule, level, latent, end) + jnp.asarray(stretch, x.dtype), calls, reached

    latent, each, calls, reached = run(how)
    _, loose, more, too = run(Adaptive(10 * how.rtol, 10 * how.atol, how.max_steps, how.by, how.adjoint))
    change = jnp.abs(each.mean() - loose.mean())
    t = jnp.asarray(T, time_dtype(x.dtype))
    return _result(denoise, each, latent, t, level, vectors, end, change, calls + more, reached & too)


def _normal(schedule, level, x_T, end):
    """log of the density of the start at x_T."""
    std = 1.0 if schedule.variance_preserving and end == "normal" else level[1]
    std = jnp.asarray(std).astype(x_T.dtype)
    return -0.5 * ((x_T / std) ** 2).sum() - x_T.size * (jnp.log(std) + 0.5 * math.log(2 * math.pi))


def _result(denoise, each, latent, t, level, vectors, end, solver, calls, reached):
    count = len(each)
    missing, doubt = jnp.zeros_like(each), jnp.zeros((), each.dtype)
    if end == "matched":
        missing, doubt = _mismatch(denoise, latent, t.astype(time_dtype(latent.dtype)), level, vectors)
        calls = calls + 1
    each = each + missing
    nats = each.mean()
    spread = jnp.zeros_like(nats)
    if vectors is not None:
        spread = jnp.std(each, ddof=1) / math.sqrt(count) if count > 1 else jnp.full_like(nats, jnp.inf)
    free = count - 1
    factor = STUDENT[free] if free < len(STUDENT) else 1.96 + 2.4 / free + 3 / free**2
    chance = 0.0 if vectors is None else spread if count == 1 else factor * spread
    solver = solver + doubt
    products = calls * (latent.size if vectors is None else count)
    finite = jnp.isfinite(nats)
    return LogProb(nats, None, latent, solver + chance, solver, spread, missing.mean(), calls, products, reached, finite)


def _mismatch(denoise, x_T, t, level, vectors):
    """((n,) of (1) per probe, the size of its terms of order 3)."""
    alpha, sigma = (jnp.asarray(a).astype(x_T.dtype) for a in level)
    q, u = alpha / sigma, x_T / sigma
    mean = lambda u: denoise(sigma * u, t).x0

    def terms(u):
        m, div = divergence(mean, u, vectors)
        return m, div

    (m, div), (first, div_first) = jax.jvp(terms, (u,), (u,))
    second = jax.jvp(lambda v: jax.jvp(mean, (v,), (u,))[1], (u,), (u,))[1]
    third = q * (u * second).sum() / 6, q * div_first / 2, q**2 * (m * first).sum()
    start = q**2 * ((m - first) ** 2).sum() / 2
    value = q * ((u * m).sum() - (u * first).sum() / 2 - (div - div_first) / 2) + third[0] - start
    return value, sum(jnp.abs(a).mean() for a in third)
