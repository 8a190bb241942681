"""The protocol of a kernel, and the one body of those whose step is Gaussian."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..base import is_concrete, normal, pytree, replace, short
from ..process import transition


@pytree
class Plan:
    """Coefficients of all rows: ``move`` (the kernel's own) and ``jump`` = (a, std) of q(x_r | x_s)."""

    move: Any
    jump: Any


@pytree
class Kernel:
    """How to move, given predictions.

    schedule      None: the denoiser's, which ``sample`` fills in
    plan(table)   coefficients per row, once, before the scan: numpy float64 where schedule and table are concrete
    init(x)       the carried state
    draw(key, x)  unit noise of one row, () where none is used
    step(predict, x, state, row, noise, first=None, edit=None) -> (x, state)
                  predict(x, t) -> Prediction; ``first`` hands over the prediction at row.t when it is already paid
                  for; ``edit(x, t, j)`` is applied after inner update j
    transition(p, x, row) -> (mean, std)   only kernels whose step is Gaussian
    calls         network calls per row
    updates       inner updates per row: how often ``edit`` is called
    ascends       whether it can move up in time
    """

    schedule: Any = None
    calls = 1
    updates = 1
    ascends = False

    def bind(self, schedule) -> Kernel:
        """This kernel with its schedule: its own, or ``schedule``. ValueError where there is none, or two that differ."""
        name = type(self).__name__
        if self.schedule is not None and not hasattr(self.schedule, "alpha"):
            given = short(self.schedule)
            raise ValueError(f"the schedule of {name} is {given}: name the hyper-parameters, kernels.DDIM(eta=0.5)")
        if self.schedule is None and schedule is None:
            raise ValueError(f"neither the denoiser nor {name} has a schedule: pass kernels.{name}(schedule)")
        if self.schedule is not None and schedule is not None and not same(self.schedule, schedule):
            raise ValueError(
                f"{name} has another schedule than the denoiser: leave it out, kernels.{name}(), and build the table from the "
                "denoiser's"
            )
        return self if self.schedule is not None else replace(self, schedule=schedule)

    def still(self) -> bool:
        """True where it is known that a step adds no noise."""
        return not hasattr(self, "transition")

    def plan(self, table) -> Plan:
        if is_concrete(table) and not self.ascends and (table.s > table.t).any():
            raise ValueError(f"{type(self).__name__} cannot move up in time (a row has s > t): use DDIM(), or jumps (r > s)")
        return Plan(self.coefficients(table), transition(self.schedule, table.r, table.s))

    def coefficients(self, table):
        raise NotImplementedError

    def init(self, x):
        return ()

    def draw(self, key, x):
        return normal(key, x.shape, x.dtype)


@pytree
class GaussianKernel(Kernel):
    """x_s = mean + fresh std z, (mean, std) = ``transition(p, x, row)``: what a subclass gives, beside ``coefficients``.

    ``fresh(row, x)`` is the share of the deviation that is drawn, 0 where official code leaves the last step's noise out.
    """

    quiet = False  # known to add no noise: then none is drawn

    def transition(self, p, x, row):
        """Mean and standard deviation of p(x_s | x_t)."""
        raise NotImplementedError

    def fresh(self, row, x):
        return 1

    def draw(self, key, x):
        return () if self.quiet else super().draw(key, x)

    def step(self, predict, x, state, row, noise, first=None, edit=None):
        p = predict(x, row.t) if first is None else first
        mean, std = self.transition(p, x, row)
        moved = mean if self.quiet else mean + self.fresh(row, x) * std * noise
        x = stay_if_no_move(row, moved, x)
        return (x if edit is None else edit(x, row.s, 0)), state


def stay_if_no_move(row, moved, x):
    """x itself where s = t: a clamped x0 with the raw eps would not give it back."""
    return jnp.where(row.s == row.t, x, moved)


def same(a, b) -> bool:
    """Whether two schedules are one, as far as their values are known; float32 and float64 copies are."""
    if a is b:
        return True
    (ours, structure), (others, other_structure) = jax.tree.flatten(a), jax.tree.flatten(b)
    if structure != other_structure:
        return False
    if not is_concrete(ours, others):
        return all(jnp.shape(u) == jnp.shape(v) for u, v in zip(ours, others))
    return all(np.shape(u) == np.shape(v) and np.allclose(u, v, rtol=1e-4, atol=1e-6) for u, v in zip(ours, others))


def check_kernel(kernel):
    """Raise ValueError for what is no kernel."""
    if isinstance(kernel, type) and issubclass(kernel, Kernel):
        raise ValueError(f"kernel is the class {kernel.__name__}: write kernels.{kernel.__name__}()")
    if not isinstance(kernel, Kernel):
        raise ValueError(f"kernel is {type(kernel).__name__}, not a kernel: pass kernels.DDIM() or another of diffjax.kernels")
