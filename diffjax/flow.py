"""The probability-flow ODE by an adaptive solver, for one image: x at one time from x at another, latents and back.

    dx / dt = f x - g^2 score / 2        (Song et al. 2021, eq. 13)

is integrated in nu = asinh(alpha / sigma) (``kernels.ode_high``, eq. 1), which asks nothing of the schedule but alpha, sigma
and its inverse, or in t as published. The steps are diffrax's: Dormand and Prince's method of order 5 with the step control of
Hairer et al. 1993, II.4, as in scipy's RK45, which the official code calls. A batch by ``jax.vmap``: each image has its own
steps. Needs ``pip install diffjax[ode]``; with fixed steps any kernel does the same by ``sample``.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from . import process
from .base import expand, in_range, is_concrete, namespace, pytree, static, time_dtype, whole
from .kernels.ode_high import arc, time_at, velocity
from .method import as_denoiser

VARIABLES = ("nu", "t")


@pytree
class Adaptive:
    """How to solve.

    rtol, atol:  a step is taken where the root mean square over the state of error / (atol + rtol |x|) is at most 1. In nu the
                 state is x / sqrt(alpha^2 + sigma^2), in t it is x
    max_steps:   how many may be tried, static
    by:          "nu" or "t", static. In t the schedule's drift must be continuous, or steps are lost: formulas, not tables
    adjoint:     how gradients are taken, static: an object of ``diffrax``; None: ``RecursiveCheckpointAdjoint``, reverse mode
                 through the steps taken. ``BacksolveAdjoint()`` needs less memory, ``ForwardMode()`` serves ``jax.jvp``
    """

    rtol: Any = 1e-5
    atol: Any = 1e-5
    max_steps: int = static(default=1000)
    by: str = static(default="nu")
    adjoint: Any = static(default=None)

    def __post_init__(self):
        in_range("rtol", self.rtol, 0, 0.1)
        in_range("atol", self.atol, 1e-300, 1.0)
        whole("max_steps", self.max_steps)
        if self.by not in VARIABLES:
            raise ValueError(f"the variable {self.by!r} of the flow is none of 'nu' and 't': choose by='nu'")


@pytree
class Solution:
    """x: the state at the end; calls: network calls made; steps: steps tried; reached: whether the tolerance was, in
    ``max_steps``; round_trip: of :func:`encode`, root mean square of x minus x from there and back (else None)."""

    x: Any
    calls: Any
    steps: Any
    reached: Any
    round_trip: Any = None


def load_diffrax():
    try:
        import diffrax
    except ImportError:
        raise ValueError("the adaptive solver is diffrax's, which is not installed: pip install diffjax[ode]") from None
    return diffrax


ERROR = (-71 / 57600, 0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)  # Dormand & Prince 1980: order 5 minus 4


@functools.cache
def _runge_kutta():
    """(solver class, class of step control): diffrax's as scipy's RK45 has them. The estimate of the error is Dormand and
    Prince's, not Shampine's; a step that is taken may be followed by a shorter one, 0.9 error^(-1/5) of it, and one taken after
    a refusal by none that is longer."""
    diffrax = load_diffrax()

    class RK45(diffrax.Dopri5):
        tableau = dataclasses.replace(diffrax.Dopri5.tableau, b_error=np.array(ERROR))

    class StepControl(diffrax.PIDController):
        def init(self, *args):
            end, state = super().init(*args)
            return end, (state, jnp.asarray(False))

        def adapt_step_size(self, t0, t1, y0, y1, args, y_error, error_order, state):
            state, refused = state
            keep, start, end, jump, state, result = super().adapt_step_size(t0, t1, y0, y1, args, y_error, error_order, state)
            shorter = jnp.minimum(self.safety * state[0] ** (1 / error_order), 1)  # state[0]: 1 / error of a step that is kept
            longer = end - start > t1 - t0
            kept = jnp.where(longer & ~refused, end - start, (t1 - t0) * jnp.where(longer, 1, shorter))
            end = jnp.where(keep, start + jax.lax.stop_gradient(kept).astype(end.dtype), end)
            return keep, start, end, jump, (state, ~keep), result

    return RK45, StepControl


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


def sde(schedule, t):
    """``process.sde``; ValueError for a schedule that has no derivative."""
    if not callable(getattr(schedule, "smooth", None)):
        raise ValueError(f"{type(schedule).__name__} has no smooth(t), whose derivative the drift is: use Adaptive(by='nu')")
    return process.sde(schedule, t)


def first_step(rhs, start, end, y, how: Adaptive):
    """Hairer et al. 1993, II.4, as scipy has it: 1 % of the solution's own scale, then what the second derivative allows. (diffrax
    0.7 takes 0.01 for everything.) Two calls."""
    (y, unravel), way = ravel_pytree(y), jnp.where(end < start, -1, 1).astype(start.dtype)
    call = lambda t, y: ravel_pytree(rhs(t, unravel(y)))[0]
    norm = lambda a: jnp.sqrt(jnp.mean(jnp.abs(a / (how.atol + how.rtol * jnp.abs(y))) ** 2))
    f_0 = call(start, y)
    d_0, d_1 = norm(y), norm(f_0)
    tiny = (d_0 < 1e-5) | (d_1 < 1e-5)
    h_0 = jnp.minimum(jnp.where(tiny, 1e-6, 0.01 * d_0 / jnp.where(tiny, 1, d_1)), jnp.abs(end - start))
    h_0 = h_0.astype(start.dtype)
    d_2 = norm(call(start + way * h_0, y + (way * h_0).astype(y.dtype) * f_0) - f_0) / h_0
    most = jnp.maximum(d_1, d_2)
    h_1 = jnp.where(most <= 1e-15, jnp.maximum(1e-6, 1e-3 * h_0), (0.01 / jnp.maximum(most, 1e-15)) ** 0.2)
    h = jnp.minimum(jnp.minimum(100 * h_0, h_1), jnp.abs(end - start)).astype(start.dtype)
    return way * jax.lax.stop_gradient(h)


def integrate(rhs, start, end, y, how: Adaptive):
    """(y at ``end``, calls of rhs, steps tried, reached) of dy / dt = rhs(t, y); y any pytree of arrays of one dtype."""
    diffrax, (solver, control) = load_diffrax(), _runge_kutta()
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, _: rhs(t, y)),
        solver(),
        start,
        end,
        first_step(rhs, start, end, y, how),
        y,
        stepsize_controller=control(how.rtol, how.atol, safety=0.9, factormin=0.2, factormax=10.0),
        adjoint=how.adjoint or diffrax.RecursiveCheckpointAdjoint(),
        max_steps=how.max_steps,
        throw=False,
    )
    steps = solution.stats["num_steps"]  # six calls each; two choose the first step, one begins
    reached = solution.result == diffrax.RESULTS.successful
    return jax.tree.map(lambda a: a[-1], solution.ys), 6 * steps + 3, steps, reached


def flow_of(denoise, how: Adaptive, dtype):
    """(rhs(variable, state) of the flow; variable of a time; state of an x at a time, and back)"""
    schedule = schedule_of(denoise)
    scalar = lambda a: jnp.asarray(a, time_dtype(dtype))
    if how.by == "t":

        def rhs(t, x):
            f, g2 = sde(schedule, t)
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
    load_diffrax()
    found = _solve(denoise, x, start, end, how)
    check_reached(how, found.reached, found.x)
    return found


def check_reached(how, reached, x):
    if is_concrete(reached) and not np.all(reached):
        raise ValueError(
            f"the tolerance rtol {float(how.rtol):g}, atol {float(how.atol):g} was not reached in {how.max_steps} steps: "
            "raise max_steps, or loosen it (float32 reaches about 1e-6)"
        )
    if is_concrete(x) and not np.isfinite(x).all():
        raise ValueError("the flow's end is not finite: look for the first NaN of the denoiser along the way")


def encode(denoise, x_0, how: Adaptive | None = None, *, eps=None, round_trip: bool = True) -> Solution:
    """The latent of an image: x_T, whose distribution is nearly N(0, sigma_T^2), from ``x_0``, taken to be x at time ``eps``
    (default :func:`lowest`). ``round_trip`` walks back as well, for as many calls again, and reports the error."""
    schedule = schedule_of(as_denoiser(denoise))
    eps = lowest(schedule) if eps is None else eps
    there = solve(denoise, x_0, eps, float(schedule.T), how)
    if not round_trip:
        return there
    back = solve(denoise, there.x, float(schedule.T), eps, how)
    error = jnp.sqrt(jnp.mean((back.x - x_0) ** 2))
    return Solution(there.x, there.calls + back.calls, there.steps + back.steps, there.reached & back.reached, error)


def decode(denoise, x_T, how: Adaptive | None = None, *, eps=None) -> Solution:
    """The image of a latent: x at time ``eps`` (default :func:`lowest`) from x at T. ``denoise(x, eps).x0`` takes off what
    noise is left."""
    schedule = schedule_of(as_denoiser(denoise))
    return solve(denoise, x_T, float(schedule.T), lowest(schedule) if eps is None else eps, how)


def slerp(a, b, share):
    """From ``a`` (share 0) to ``b`` (share 1) along the arc between them: halfway two latents keep a latent's norm, which
    their mean has not. Arrays of one shape; a straight line where they are parallel or opposite."""
    u, v = a / jnp.linalg.norm(a.ravel()), b / jnp.linalg.norm(b.ravel())
    # twice the angle of half the chord: exact for small angles, where the arc cosine is not
    half_sin, half_cos = jnp.linalg.norm((u - v).ravel()), jnp.linalg.norm((u + v).ravel())
    parallel = (half_sin < 1e-3) | (half_cos < 1e-3)
    angle = jnp.where(parallel, 1.0, 2 * jnp.arctan2(half_sin, half_cos))
    share = jnp.asarray(share, a.dtype)
    weight = lambda w: jnp.where(parallel, w, jnp.sin(w * angle) / jnp.sin(angle))
    return weight(1 - share) * a + weight(share) * b
