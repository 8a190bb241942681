"""The protocol of a kernel."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..base import is_concrete, pytree
from ..process import transition


@pytree
class Plan:
    """Coefficients of all rows: ``move`` (the kernel's own) and ``jump`` = (a, std) of q(x_r | x_s)."""

    move: Any
    jump: Any


@pytree
class Kernel:
    """How to move, given predictions.

    plan(table)   coefficients per row, once, before the scan: numpy float64 where schedule and table are concrete
    init(x)       the carried state
    draw(key, x)  unit noise of one row
    step(predict, x, state, row, noise, first=None, edit=None) -> (x, state)
                  predict(x, t) -> Prediction; ``first`` hands over the prediction at row.t when it is already paid
                  for; ``edit(x, t, j)`` is applied after inner update j
    transition(p, x, row) -> (mean, std)   only kernels whose step is Gaussian
    calls         network calls per row
    schedule      None: the denoiser's, which ``sample`` fills in
    """

    schedule: Any = None
    calls = 1
    ascends = False

    def plan(self, table) -> Plan:
        if is_concrete(table) and not self.ascends and (table.s > table.t).any():
            raise ValueError(
                f"{type(self).__name__} cannot move up in time (a row has s > t): use DDIM(schedule), or jumps (r > s)"
            )
        return Plan(self.coefficients(table), transition(self.schedule, table.r, table.s))

    def coefficients(self, table):
        raise NotImplementedError

    def init(self, x):
        return ()

    def draw(self, key, x):
        return jax.random.normal(key, x.shape, x.dtype)


def stay_if_no_move(row, moved, x):
    """x itself where s = t: a clamped x0 with the raw eps would not give it back."""
    return jnp.where(row.s == row.t, x, moved)
