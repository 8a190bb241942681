"""The probability-flow ODE by an adaptive solver, for one image: x at one time from x at another, latents and back.

    dx / dt = f x - g^2 score / 2        (Song et al. 2021, eq. 13)

is integrated in nu = asinh(alpha / sigma) (``kernels.runge_kutta``, eq. 1), which asks nothing of the schedule but alpha,
sigma and its inverse, or in t as published. The steps are ``adaptive``'s, by diffrax (``pip install diffjax[ode]``). A batch
by ``jax.vmap``: each image has its own steps. With fixed steps any kernel does the same by ``sample``.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import process
from .adaptive import Adaptive, check_reached, integrate, load_diffrax
from .base import expand, in_range, namespace, pytree, safe_divide, safe_sqrt, time_dtype
from .kernels.runge_kutta import arc, time_at, velocity
from .method import as_denoiser


@pytree
class Solution:
    """x: the state at the end; calls: network calls made; steps: steps tried; reached: whether the tolerance was, in
    ``max_steps``; round_trip: of :func:`encode`, root mean square of x minus x from there and back (else None)."""

    x: Any
    calls: Any
    steps: Any
    reached: Any
    round_trip: Any = None


def schedule_of(denoise):
    schedule = getattr(denoise, "schedule", None)
    if schedule is None:
        name = type(denoise).__name__
        raise ValueError(f"{name} has no schedule, whose flow it would be: pass denoisers.from_eps(f, params, schedule)")
    for what in ("alpha", "sigma", "time"):
        if not callable(getattr(schedule, what, None)):
            raise ValueError(f"{type(schedule).__name__} has no {what}(...), which the flow is made of: define it")
    return schedule


def lowest(schedule):
    """Where flows end by default, eps: t = 1 of a table, else log-SNR 12.4 (sigma / alpha = 0.002), and not below 1e-5 T."""
    if schedule.discrete:
        return 1.0
    return namespace(schedule).maximum(schedule.time(np.float64(12.4)), 1e-5 * float(schedule.T))


def check_times(schedule, **times):
    for name, t in times.items():
        least = np.finfo(np.float32).tiny
        in_range(f"the flow's {name}", t, least, float(schedule.T), remedy=f"give a time above 0 and up to T = {schedule.T:g}")


def check_derivative(schedule, how):
    if how.by == "t" and not callable(getattr(schedule, "smooth", None)):
        raise ValueError(f"{type(schedule).__name__} has no smooth(t), whose derivative the drift is: use Adaptive(by='nu')")


def flow_of(denoise, how: Adaptive, dtype):
    """(rhs(variable, state) of the flow; variable of a time; state of an x at a time, and back)"""
    schedule = schedule_of(denoise)
    scalar = lambda a: jnp.asarray(a, time_dtype(dtype))
    if how.by == "t":

        def rhs(t, x):
            f, g2 = process.sde(schedule, t)
            p = denoise(x, t)
            return expand(f, x) * x + expand(g2 / (2 * p.sigma), x) * p.eps

        return rhs, scalar, lambda x, t: x, lambda x, t: x

    def rhs(nu, y):
        t = time_at(schedule, nu)
        _, cos, sin, r = arc(*process.marginal(schedule, t))
        return velocity(denoise(expand(r, y) * y, t), expand(cos, y), expand(sin, y))

    level = lambda t: arc(*process.marginal(schedule, t))
    to_y = lambda x, t: x / expand(level(t)[3], x)
    to_x = lambda y, t: y * expand(level(t)[3], y)
    return rhs, lambda t: scalar(level(t)[0]), to_y, to_x


@functools.partial(jax.jit, inline=True)
def _solve(denoise, x, start, end, how):
    rhs, variable, to_state, to_x = flow_of(denoise, how, x.dtype)
    y, calls, steps, reached = integrate(rhs, variable(start), variable(end), to_state(x, start), how)
    return Solution(to_x(y, end), calls, steps, reached)


def solve(denoise, x, start, end, how: Adaptive | None = None) -> Solution:
    """x at time ``end`` from ``x`` at time ``start``, up or down.

    denoise:     a denoiser with a schedule
    x:           one image, any shape; a batch by ``jax.vmap``
    start, end:  times in (0, T]: the flow is truncated above the clean image
    Raises ValueError for times out of range, no schedule, no diffrax, and where the tolerance is not reached within
    ``max_steps`` or x is not finite (inside ``jit``: ``reached`` says so).
    """
    how = Adaptive() if how is None else how
    denoise, x = as_denoiser(denoise), jnp.asarray(x)
    check_times(schedule_of(denoise), start=start, end=end)
    check_derivative(denoise.schedule, how)
    load_diffrax()
    start, end = (jnp.asarray(t, time_dtype(x.dtype)) for t in (start, end))  # up and down are one program
    found = _solve(denoise, x, start, end, how)
    check_reached(how, found.reached, found.x)
    return found


def ends(denoise, how):
    """(eps, T)"""
    schedule = schedule_of(as_denoiser(denoise))
    eps = lowest(schedule) if how is None or how.eps is None else how.eps
    return eps, float(schedule.T)


def encode(denoise, x_0, how: Adaptive | None = None, *, round_trip: bool = True) -> Solution:
    """The latent of an image: x_T, whose distribution is nearly N(0, sigma_T^2), from ``x_0``, taken to be x at ``how.eps``.
    ``round_trip`` walks back as well, for as many calls again, and reports the error. Errors as :func:`solve`."""
    eps, T = ends(denoise, how)
    there = solve(denoise, x_0, eps, T, how)
    if not round_trip:
        return there
    back = solve(denoise, there.x, T, eps, how)
    error = jnp.sqrt(jnp.mean((back.x - x_0) ** 2))
    return Solution(there.x, there.calls + back.calls, there.steps + back.steps, there.reached & back.reached, error)


def decode(denoise, x_T, how: Adaptive | None = None) -> Solution:
    """The image of a latent: x at ``how.eps`` from x at T. ``denoise(x, eps).x0`` takes off what noise is left."""
    eps, T = ends(denoise, how)
    return solve(denoise, x_T, T, eps, how)


def slerp(a, b, share):
    """From ``a`` (share 0) to ``b`` (share 1) along the arc between them: halfway two latents keep a latent's norm, which
    their mean has not. Arrays of one shape; a straight line where they are parallel or opposite."""
    norm = lambda a: safe_sqrt((a**2).sum())
    u, v = safe_divide(a, norm(a)), safe_divide(b, norm(b))
    # by half the chord: exact for small angles too, where the arc cosine is not
    sin, cos = norm(u - v), norm(u + v)
    parallel = (sin < 1e-3) | (cos < 1e-3)
    angle = 2 * jnp.arctan2(jnp.where(parallel, 1.0, sin), jnp.where(parallel, 1.0, cos))
    share = jnp.asarray(share, a.dtype)
    weight = lambda w: jnp.where(parallel, w, jnp.sin(w * angle) / jnp.sin(angle))
    return weight(1 - share) * a + weight(share) * b
