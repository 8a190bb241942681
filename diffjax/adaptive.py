"""An adaptive solver of ordinary differential equations: diffrax's, with the step control of scipy's RK45.

Dormand and Prince's method of order 5, steps chosen as in Hairer et al. 1993, II.4. Needs ``pip install diffjax[ode]``.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .base import in_range, is_concrete, pytree, static, whole

VARIABLES = ("nu", "t")


@pytree
class Adaptive:
    """How to solve.

    rtol, atol:  a step is taken where the root mean square over the state of error / (atol + rtol |x|) is at most 1. In nu the
                 state is x / sqrt(alpha^2 + sigma^2), in t it is x
    max_steps:   how many may be tried, static
    by:          "nu" or "t", static. In t the schedule's drift must be continuous, or steps are lost: formulas, not tables
    eps:         the flow's lower end, where an image is taken to be; None: ``flow.lowest``
    compare:     whether ``likelihood.flow.log_prob`` solves at ten times the tolerance as well, for its error; static
    adjoint:     how gradients are taken, static: an object of ``diffrax``; None: ``RecursiveCheckpointAdjoint``, reverse mode
                 through the steps taken. ``BacksolveAdjoint()`` needs less memory, ``ForwardMode()`` serves ``jax.jvp``
    """

    rtol: Any = 1e-5
    atol: Any = 1e-5
    eps: Any = None
    max_steps: int = static(default=1000)
    by: str = static(default="nu")
    compare: bool = static(default=True)
    adjoint: Any = static(default=None)

    def __post_init__(self):
        in_range("rtol", self.rtol, 0, 0.1)
        in_range("atol", self.atol, 1e-300, 1.0)
        whole("max_steps", self.max_steps)
        if self.by not in VARIABLES:
            raise ValueError(f"the variable {self.by!r} of the flow is none of 'nu' and 't': choose by='nu'")


def load_diffrax():
    try:
        import diffrax
    except ImportError:
        raise ValueError("the adaptive solver is diffrax's, which is not installed: pip install diffjax[ode]") from None
    return diffrax


ERROR = (-71 / 57600, 0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)  # Dormand & Prince 1980: order 5 minus 4


@functools.cache
def _runge_kutta():
    """(class of solver, class of step control): diffrax's, as scipy's RK45 has them. The estimate of the error is Dormand and
    Prince's, not Shampine's; a step that is taken may be followed by a shorter one, 0.9 error^(-1/5) of it; one that is taken
    after a refusal is followed by none that is longer."""
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


def first_step(rhs, start, end, y, how: Adaptive):
    """Hairer et al. 1993, II.4, as scipy has it: 1 % of the solution's own scale, then what the second derivative allows, for
    two calls. (diffrax 0.7 begins everything with 0.01.)"""
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


def check_reached(how, reached, x):
    if is_concrete(reached) and not np.all(reached):
        raise ValueError(
            f"the tolerance rtol {float(how.rtol):g}, atol {float(how.atol):g} was not reached in {how.max_steps} steps: "
            "raise max_steps, or loosen it (float32 reaches about 1e-6)"
        )
    if is_concrete(x) and not np.isfinite(x).all():
        raise ValueError("the flow's end is not finite: look for the first NaN of the denoiser along the way")
