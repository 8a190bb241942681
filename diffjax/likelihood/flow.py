"""log p(x) of one image by the probability-flow ODE (Song et al. 2021, section 4.3; Chen et al. 2018, eq. 8).

With y = x / r, r = sqrt(alpha^2 + sigma^2) and dy / dnu = v(y, nu) (``kernels.runge_kutta``, eq. 1), for D pixels

    log p_eps(x) = log p_T(x_T) + D log(r_T / r_eps) + int_eps^T div v dnu

x is taken to be x at eps, the lowest time of the walk: what comes out is the density of alpha_eps x_0 + sigma_eps noise, not
of x_0. At T a model that draws its start from N(0, sigma_T^2) (from N(0, 1) where alpha^2 + sigma^2 = 1, as ``sample`` does)
has just that density: ``end="normal"``, which is what papers report. But data noised to T have not quite that distribution.
``end="matched"``, the default, asks the denoiser at T for the difference: with q = alpha_T / sigma_T, u = x_T / sigma_T,
m = x0 there, and ' the derivative along u,

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

from ..adaptive import Adaptive, check_reached, load_diffrax
from ..base import in_range, is_concrete, nearest, pytree, time_dtype, whole
from ..flow import check_derivative, check_times, lowest, schedule_of
from ..method import as_denoiser
from .bits import bits_per_dimension, check_range, dequantise
from .flow_walks import adaptive, fixed, mismatch, points_of

__all__ = ["LogProb", "bits_per_dimension", "dequantise", "log_prob"]
PROBES, ENDS = ("rademacher", "gaussian"), ("matched", "normal")
STUDENT = (np.inf, 12.71, 4.31, 3.19, 2.78)  # of 95 % by degrees of freedom; beyond: 1.96 + 2.4 / n + 3 / n^2


@pytree
class LogProb:
    """nats:          log p(x)
    bits:           the same in bits per dimension of the quantised image, -log2 P / D <= bits; None without ``data_range``
    latent:         x_T, of x's shape
    error:          of nats: the truth is within it for 95 % of images. solver_error + 2 to 13 probe_errors (Student's factor)
    solver_error:   of the steps, of rounding and of (1). Of fixed steps: the differences that halving every row makes to
                    the integral and to the density at T. A fifteenth of them is in nats, which is what order 4 leaves;
                    the whole covers coarse walks too. Adaptive: the difference that ten times the tolerance makes
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
    walk:        a plain descent from T, such as ``timetables.log_snr(schedule, 65)``: fixed steps of the classical Runge-Kutta
                 method, 12 calls a row. Rows that end at t = 0 are left out, the lowest time above is eps. Reverse mode keeps
                 six states per row. Or a ``flow.Adaptive``: diffrax's steps from ``flow.lowest`` to T, twice
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
        check_derivative(schedule, walk)
        check_times(schedule, eps=lowest(schedule) if walk.eps is None else walk.eps)
        found = _log_prob(denoise, walk, x, vectors, end)
        check_reached(walk, found.reached, found.latent)
    else:
        points = jax.tree.map(jnp.asarray, points_of(schedule, walk))
        found = _log_prob(denoise, points, x, vectors, end)
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


@functools.partial(jax.jit, static_argnames=("end",), inline=True)
def _log_prob(denoise, walk, x, vectors, end) -> LogProb:
    integral = adaptive if isinstance(walk, Adaptive) else fixed
    each, latent, T, solver, calls, reached = integral(denoise, walk, x, vectors, end)
    missing = jnp.zeros_like(each)
    if end == "matched":
        missing, doubt = mismatch(denoise, latent, T.astype(time_dtype(x.dtype)), vectors)
        solver, calls, each = solver + doubt, calls + 1, each + missing
    nats, n = each.mean(), len(each)
    spread = chance = jnp.zeros_like(nats)
    if vectors is not None:
        spread = jnp.std(each, ddof=1) / math.sqrt(n) if n > 1 else jnp.full_like(nats, jnp.inf)
        free = n - 1
        factor = STUDENT[free] if 0 < free < len(STUDENT) else 1.96 + 2.4 / max(free, 1) + 3 / max(free, 1) ** 2
        chance = factor * spread
    products = calls * (x.size if vectors is None else n)
    finite = jnp.isfinite(nats)
    return LogProb(nats, None, latent, solver + chance, solver, spread, missing.mean(), calls, products, reached, finite)
