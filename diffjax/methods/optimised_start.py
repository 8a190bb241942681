"""Optimising the start x_T through the whole deterministic sampler G.

    minimise  |A(G(x_T)) - y|^2 + reg |x_T|^2

The prototype that CoPaint's paper (Zhang et al. 2023, section 3) sets out from and finds too costly; D-Flow (Ben-Hamu et
al. 2024, reg = 0, few flow steps) and DMPlug (Wang et al. 2024, three DDIM steps, Adam) are the same program with other
numbers. The gradient is exact and its memory bounded by ``remat``. A maximum-a-posteriori estimate, not a posterior
sample: its spread means nothing.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from .. import timetables
from ..base import is_concrete, pytree, replace, whole
from ..kernels import DDIM
from ..method import Method, as_method
from ..sample import begin, bind, plan, run
from .common import Setup, cast, squares


@pytree
class Optimised:
    """x: G(start); start: the optimised x_T; loss: (iterations,) the objective before each step."""

    x: Any
    start: Any
    loss: Any


def optimise_start(
    key,
    denoise,
    measurement,
    table,
    shape_or_start,
    *,
    iterations=100,
    lr=0.05,
    reg=1e-4,
    betas=(0.9, 0.999),
    kernel=None,
    remat="sqrt",
) -> Optimised:
    """Adam on the start of one image's deterministic sampler.

    table:     few rows keep it affordable; one iteration costs about three walks (four with ``remat``)
    shape_or_start: a shape, to draw x_T from ``key``, or the array to begin from
    kernel:    a deterministic one; default DDIM with eta 0
    reg:       weight of |x_T|^2; the prior N(0, I) with noise_std s would make it s^2
    Raises ValueError for fewer than one iteration, a kernel that draws noise, and what ``sample`` refuses.
    """
    whole("iterations", iterations)
    kernel = bind(as_method(denoise), kernel)
    if is_concrete(kernel) and not kernel.still():
        raise ValueError(f"{type(kernel).__name__} draws noise, which no start can make up for: use DDIM() or Heun()")
    walk = plan(denoise, table, shape_or_start, kernel=kernel)
    start = begin(key, walk).x
    return _optimise(replace(walk, x=start), measurement, start, lr, reg, betas, iterations, remat)


@functools.partial(jax.jit, static_argnames=("iterations", "remat"), inline=True)
def _optimise(walk, measurement, start, lr, reg, betas, iterations, remat) -> Optimised:
    y = cast(measurement.y, start.dtype)
    unused = jax.random.key(0)  # the kernel is deterministic

    def through(start):
        return run(unused, replace(walk, x=start), remat=remat).x

    def objective(start):
        return squares(measurement.A.residual(through(start), y)) + reg * (start**2).sum()

    def iteration(carry, n):
        start, mean, square = carry
        loss, gradient = jax.value_and_grad(objective)(start)
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        step = mean / (1 - betas[0] ** n) / (jnp.sqrt(square / (1 - betas[1] ** n)) + 1e-8)
        return (start - lr * step, mean, square), loss

    zeros = jnp.zeros_like(start)
    counts = jnp.arange(1, iterations + 1, dtype=start.dtype)
    (start, _, _), loss = jax.lax.scan(iteration, (start, zeros, zeros), counts)
    return Optimised(through(start), start, loss)


@pytree
class Walk(Method):
    """The sampler that is optimised through: the bare denoiser, by DDIM."""

    paper = "Ben-Hamu et al. 2024"
    link = "arxiv.org/abs/2402.14017"
    noise = "ignored"
    gives = "estimate"


def published(denoise, measurement, steps=None, *, table=None, lr=0.05, reg=1e-4) -> Setup:
    """The walk of :func:`restored`, which is what runs: 5 levels (``lr`` and ``reg`` are of its optimiser)."""
    table = timetables.log_snr(denoise.schedule, 5 if steps is None else steps) if table is None else table
    return Setup(Walk(denoise), DDIM(), table)


def restored(key, denoise, measurement, steps, shape, lr=0.05, reg=1e-4, iterations=30):
    """(x, network calls) of 30 steps of Adam through a walk of ``steps`` levels; the papers' problems are of another kind."""
    table = published(denoise, measurement, steps).table
    found = optimise_start(key, denoise, measurement, table, shape, iterations=iterations, lr=lr, reg=reg)
    return found.x, len(table) * (iterations + 1)
