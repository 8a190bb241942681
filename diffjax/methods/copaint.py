"""CoPaint (Zhang et al., ICML 2023): coherent inpainting by optimising x_t before each step.

    minimise  |A(x0_hat(x)) - y|^2 + reg |x - x_t|^2   over x, a few gradient steps from x = x_t,  then one DDIM step from x

x0_hat is the one-step estimate, clamped to ``bounds`` with the gradient through the clamp, or ``estimate_steps``
deterministic DDIM steps down. Rate and weight grow with the level of the walk; a step that does not lower the objective
is shortened by 0.8. CoPaint-Fast, CoPaint and CoPaint-TT differ in their numbers and timetable only: :func:`published`.

Official code and paper differ: the code penalises the distance to the drawn x_t at every level (the paper's prior on
x_T is |x_T|^2); its step search has no cap and loops for ever on NaN, and in float32 shortens steps that differ from the
old objective by rounding (ours is capped and has ``tolerance``); one search serves its whole batch (ours: each image;
hand the batch over as one array for theirs); it optimises once more before time travel, a row (s, s, r) here; it never
pastes y (``exact=False``).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import timetables
from ..base import Measurement, Prediction, clip, expand, is_concrete, namespace, nearest, normal, pytree, static, whole
from ..kernels import DDIM
from ..method import NOT_NEGATIVE, Method
from ..operators import Mask
from .common import Setup, cast, pasted, squares

SHRINK = 0.8


@pytree
class Plan:
    """Per row: learning rate, weight of |x - x_t|^2, and the walk of the multi-step estimate (None: one step)."""

    lr: Any
    reg: Any
    down: Any


@pytree
class Down:
    """estimate_steps moves: from time t to a level (alpha, sigma); ``stays`` fills up where fewer are made."""

    t: Any
    alpha: Any
    sigma: Any
    stays: Any


@pytree
class CoPaint(Method):
    """denoise: the prior, not clipped. measurement: y with any operator; ``Mask`` looks at known pixels only.

    iterations:      gradient steps before each move (G)
    lr, lr_decay:    rate lr lr_decay^level, times alpha_t / alpha_1 if ``smart``
    reg, reg_decay:  weight reg reg_decay^level
    adaptive:        shorten a step until the objective does not grow, at most ``max_reductions`` times (then: no step)
    tolerance:       relative growth that counts as none; default a few roundings of the dtype
    estimate_steps:  1, or the number of DDIM steps of the multi-step estimate (M)
    candidates:      starts that are tried, the one with the lowest data loss after optimising is kept (``filter_xT``)
    keep:            starts that are kept (more than one only to replay a recorded batch)
    exact:           known pixels of the result equal y / mask (where ``noise_std`` is 0)
    bounds:          what x0 and the result are clamped to; widen them for a prior that is not confined to [-1, 1]
    Forward calls of the network per row: 1 + iterations (1 + trials), counted in ``info["calls"]`` (candidates, tried before
    the first row, are not); backward: iterations. Run it with ``kernels.DDIM``.
    """

    measurement: Measurement = None
    lr: Any = 0.02
    lr_decay: Any = 1.012
    reg: Any = 1e-4
    reg_decay: Any = 1.01
    tolerance: Any = None
    bounds: Any = (-1.0, 1.0)
    iterations: int = static(default=2)
    smart: bool = static(default=True)
    adaptive: bool = static(default=True)
    max_reductions: int = static(default=40)
    estimate_steps: int = static(default=1)
    candidates: int = static(default=1)
    keep: int = static(default=1)
    exact: bool = static(default=True)

    paper = "Zhang et al. 2023"
    link = "arxiv.org/abs/2304.03322"
    moves = (DDIM,)
    noise = "ignored"
    ranges = {name: NOT_NEGATIVE for name in ("lr", "lr_decay", "reg", "reg_decay", "tolerance")}

    def __post_init__(self):
        super().__post_init__()
        for name in ("iterations", "max_reductions", "estimate_steps", "candidates"):
            whole(name, getattr(self, name))
        whole("keep", self.keep, 1, self.candidates)

    # --- before the loop ---

    def plan(self, kernel, table) -> Plan:
        schedule = kernel.schedule
        xp = namespace(schedule, table, self.lr, self.lr_decay, self.reg, self.reg_decay)
        lr, reg = self.lr * self.lr_decay**table.level, self.reg * self.reg_decay**table.level
        if self.smart:
            first = schedule.alpha(1.0) if schedule.discrete else 1.0
            lr = lr * schedule.alpha(table.t) / first
        return Plan(lr, reg * xp.ones_like(lr), self._down(schedule, table))

    def _down(self, schedule, table):
        """The official list of times: t, then multiples of (index of t) // M on the walk's grid, then its lowest time
        (even where that repeats it)."""
        if self.estimate_steps == 1:
            return None
        if not is_concrete(table):
            raise ValueError(
                "estimate_steps looks up times in the walk's grid, which must be known: build the table outside jit"
            )
        grid = np.unique(np.concatenate([table.t, table.s, table.r]))
        rows = []
        for t in np.searchsorted(grid, table.t):
            stride = int(t) // self.estimate_steps
            down = [k * stride for k in range(self.estimate_steps - 1, -1, -1)]
            down = ([int(t)] if down[0] != t else []) + down + ([0] if down[-1] != 0 else [])
            rows.append([grid[n] for n in down] + [-1.0] * (self.estimate_steps + 1 - len(down)))
        rows = np.array(rows)
        t, s, stays = np.maximum(rows[:, :-1], 0), np.maximum(rows[:, 1:], 0), rows[:, 1:] < 0
        return Down(t, schedule.alpha(s), schedule.sigma(s), stays)

    def draw_start(self, kernel, key, shape, dtype):
        return normal(key, (self.candidates, *shape) if self.candidates > 1 else shape, dtype)

    def start(self, kernel, row, noise):
        if self.candidates == 1:
            return super().start(kernel, row, noise)
        starts = super().start(kernel, row, noise)

        def loss(x):
            x, _, _ = self.optimise(x, row)
            return self._objective(x, x, row)[1]

        best = starts[jnp.argsort(jax.lax.map(loss, starts))[: self.keep]]
        return best[0] if self.keep == 1 else best.reshape(-1, *best.shape[2:])

    # --- one row ---

    def predict(self, x, t) -> Prediction:
        """x0 clamped, eps the network's own."""
        p = self.denoise(x, t)
        return p.with_x0(clip(p.x0, *self.bounds), keep_eps=True)

    def estimate(self, x, row):
        """x0_hat at the row's time."""
        if self.estimate_steps == 1:
            return self.predict(x, row.t).x0

        def down(x, move):
            p = self.predict(x, move.t.astype(row.t.dtype))
            moved = expand(move.alpha, x) * p.x0 + expand(move.sigma, x) * p.eps
            return jnp.where(move.stays, x, moved), None

        x, _ = jax.lax.scan(jax.checkpoint(down, prevent_cse=False), x, row.m.down)
        return clip(x, *self.bounds)

    def misfit(self, x0):
        """|A x0 - y|^2"""
        return squares(self.measurement.A.residual(x0, cast(self.measurement.y, x0.dtype)))

    def _objective(self, x, x_t, row):
        data = self.misfit(self.estimate(x, row))
        return data + row.m.reg.astype(x.dtype) * ((x_t - x) ** 2).sum(), data

    def _search(self, x, x_t, row, loss, gradient, lr):
        """The largest lr 0.8^n that does not raise the objective, and n. On values only: no gradient flows through it."""
        frozen, x, x_t, loss, gradient, lr, row = jax.lax.stop_gradient((self, x, x_t, loss, gradient, lr, row))
        slack = (8 * jnp.finfo(x.dtype).eps if self.tolerance is None else self.tolerance) * jnp.abs(loss)

        def unfinished(state):
            reductions, _, accepted = state
            return ~accepted & (reductions <= self.max_reductions)

        def trial(state):
            reductions, lr, _ = state
            accepted = frozen._objective(x - lr * gradient, x_t, row)[0] <= loss + slack
            return jnp.where(accepted, reductions, reductions + 1), jnp.where(accepted, lr, SHRINK * lr), accepted

        reductions, lr, accepted = jax.lax.while_loop(unfinished, trial, (jnp.int32(0), lr, jnp.array(False)))
        return jnp.where(accepted, lr, 0.0).astype(x.dtype), reductions

    def optimise(self, x_t, row):
        """-> (x, rate after each iteration's reductions, number of reductions per iteration)"""

        def iteration(carry, _):
            x, lr = carry
            (loss, _), gradient = jax.value_and_grad(self._objective, has_aux=True)(x, x_t, row)
            reductions = jnp.int32(0)
            step = lr
            if self.adaptive:
                step, reductions = self._search(x, x_t, row, loss, gradient, lr)
                lr = jnp.where(step > 0, step, lr)
            return (x - step * gradient, lr), reductions

        (x, lr), reductions = jax.lax.scan(iteration, (x_t, row.m.lr.astype(x_t.dtype)), None, length=self.iterations)
        return x, lr, reductions

    def step(self, kernel, x, state, row, noise):
        x, lr, reductions = self.optimise(x, row)
        p = self.predict(x, row.t)
        data = self.misfit(p.x0)
        x, state = kernel.step(self.predict, x, state, row, noise, first=p)
        trials = self.iterations + reductions.sum() if self.adaptive else 0
        calls = 1 + self.estimate_steps * (self.iterations + trials)
        return x, state, {"calls": jnp.int32(calls), "reductions": reductions, "lr": lr, "loss": data}

    def finish(self, kernel, x, state):
        x = clip(x, *self.bounds)
        if not self.exact or not isinstance(self.measurement.A, Mask):
            return x, {}
        return pasted(self.measurement, x), {}

    def calls(self, kernel) -> int:
        trials = 1 + self.max_reductions if self.adaptive else 0
        return 1 + self.estimate_steps * self.iterations * (1 + trials)

    def least_calls(self, kernel) -> int:
        return 1 + self.estimate_steps * self.iterations * (2 if self.adaptive else 1)

    def products(self, kernel) -> int:
        return self.estimate_steps * self.iterations


VARIANTS = {  # hyper-parameters that differ from the class's defaults, as run in the paper
    "copaint-fast": dict(iterations=1, lr_decay=1.03),
    "copaint": dict(),
    "copaint-tt": dict(),
    "copaint-fast-imagenet": dict(iterations=1, lr=0.025, lr_decay=1.03, reg=0.01, reg_decay=1.0),
    "copaint-imagenet": dict(reg=0.01, reg_decay=1.0),
    "copaint-tt-imagenet": dict(reg=0.01, reg_decay=1.0),
}


def published(denoise, measurement, steps=None, *, table=None, variant="copaint", **settings) -> Setup:
    """As run in the paper: 250 respaced levels, DDIM with eta 0, the result taken at t = 1.

    variant: "copaint-fast": 100 of those levels; "copaint-tt": with travel over 10 steps, once; "-imagenet" for that data
    steps:   another number of levels (of the 250 for "copaint-fast", then with the top one)
    settings: fields of :class:`CoPaint` in place of the paper's
    Raises ValueError for another variant, or steps out of range.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown CoPaint {variant!r}: {nearest(variant, VARIANTS)}")
    method = CoPaint(denoise, measurement, **(VARIANTS[variant] | settings))
    return Setup(method, DDIM(), walk(variant, denoise.schedule, steps) if table is None else table)


def walk(variant, schedule, steps=None):
    """The timetable of a variant; see :func:`published`."""
    fast, most = "fast" in variant, 250 if "fast" in variant else schedule.T
    steps = whole(f"steps of {variant}", (100 if fast else 250) if steps is None else steps, 2, most)
    levels = timetables.space(schedule.T, 250 if fast else steps) + 1
    if fast:
        kept = timetables.space_rounded(250, steps)
        if steps != 100:  # the official rule stops short of the top, where few steps would begin with a part of the image
            kept[-1] = 249
        levels = levels[kept]
    grid = timetables.from_times(levels[::-1], schedule)
    return timetables.travel(grid, 10, 2, before_jump=True, shorten=True) if "tt" in variant else grid
