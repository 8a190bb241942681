"""Twisted SMC (Wu et al., NeurIPS 2023: the twisted diffusion sampler), twisted by MMPS (Rozet et al. 2024).

K particles; p the prior's kernel, q the kernel from the prediction given y, L_t(x_t) = N(y; A m, noise_std^2 I + A V A^T):

    x_s ~ q(x_s | x_t, y),      w <- w p(x_s | x_t) L_s(x_s) / (q(x_s | x_t, y) L_t(x_t)),      w = L_T(x_T) at the start
    resample (systematically) where the effective number of particles is below ``threshold`` K

MMPS is right inside each mode of the posterior and wrong in how often it chooses it, since it takes p(x_0 | x_t) for one
Gaussian; the weights take that error out. Exact for the prior's discretised walk as K grows, whatever L is, as long as L_0 is
the likelihood. One call returns one of its particles: samples of different keys are independent.

Paper and code: the paper twists by N(y; A m, noise_std^2 + a scalar), whose weights degenerate in more than a few dimensions;
V makes the twist exact for Gaussian priors. L is without its log-determinant (no one can afford it; it cancels where modes
have like shapes, and at the end). Modes are decided at high noise, so particles are worth their calls there only:
:func:`two_stage` walks K of them down to ``split``, and one of them to the end by DPM-Solver++ 2M with MMPS.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import timetables
from ..base import Measurement, normal, pytree, replace, safe_divide, static, whole
from ..kernels import DDPM, DPMSolverPP2M
from ..operators.checks import by_part
from ..sample import Result, sample
from .common import Setup, cast, inner
from .mmps import MMPS


@pytree
class Weights:
    """log_w (K,): with everything that the last call told; pending (K,): what the last move added, without L_s;
    chosen: the particle drawn by log_w."""

    log_w: Any
    pending: Any
    chosen: Any


@pytree
class TwistedSMC(MMPS):
    """denoise, measurement, iterations: as for :class:`MMPS`, a linear operator with its adjoint and Gaussian noise.

    particles: K, the leading axis of the state; each costs one network call and ``iterations`` products per row
    threshold: resample below this share of effective particles
    Kernels with a Gaussian step: DDPM, DDIM with eta > 0. The result is one particle, drawn by the weights (info:
    "log_weights"); those of the last move take one more call, so they are left out, unless it ends at s = 0, where L_0 needs
    none. Row info: "effective" particles, "solve_residual" (largest). Raises ValueError for kernels without a transition.
    """

    measurement: Measurement = None
    iterations: int = static(default=10)
    threshold: Any = 0.5
    particles: int = static(default=5)

    paper = "Wu et al. 2023"
    link = "arxiv.org/abs/2306.17775"
    noise = "needed"
    instead_of_noise = "MMPS, or a small one"
    differentiable = False  # it draws indices
    ranges = {"threshold": (0, 1)}

    def __post_init__(self):
        super().__post_init__()
        whole("particles", self.particles)

    def default_kernel(self):
        return DDPM()

    def check(self, kernel, table):
        super().check(kernel, table)
        if kernel.still() or not hasattr(kernel, "transition"):
            raise ValueError(f"TwistedSMC weighs Gaussian steps: {type(kernel).__name__} has none, use DDPM or DDIM(eta=1)")

    def image_shape(self, shape):
        return shape[1:]

    def draw_start(self, kernel, key, shape, dtype):
        return normal(key, (self.particles, *shape), dtype)

    def init(self, kernel, x):
        zeros = jnp.zeros(len(x), x.dtype)
        return Weights(zeros, zeros, jnp.int32(0))

    def draw(self, kernel, key, x):
        key_move, key_comb, key_choice = jax.random.split(key, 3)
        return {
            "move": normal(key_move, x.shape, x.dtype),
            "comb": jax.random.uniform(key_comb, (), x.dtype),
            "gumbel": jax.random.gumbel(key_choice, (len(x),), x.dtype),
        }

    def likelihood(self, x):
        """log N(y; A x, noise_std^2 I) without constants: L at t = 0."""
        r = self.measurement.A.residual(x, cast(self.measurement.y, x.dtype))
        r = by_part(lambda std, r: safe_divide(r, jnp.asarray(std).astype(x.dtype)), self.measurement.noise_std, r)
        return -0.5 * inner(r, r)

    def step(self, kernel, x, state, row, noise):
        K = len(x)
        p, shift, log_L, left = jax.vmap(lambda x: self.twist(x, row.t))(x)
        log_w = state.pending + log_L
        share = jax.nn.softmax(log_w)
        effective = 1 / (share**2).sum()
        comb = (noise["comb"] + jnp.arange(K, dtype=x.dtype)) / K
        picked = jnp.clip(jnp.searchsorted(jnp.cumsum(share), comb), 0, K - 1).astype(jnp.int32)
        few = effective < jnp.asarray(self.threshold, x.dtype) * K
        take = jnp.where(few, picked, jnp.arange(K, dtype=jnp.int32))
        log_w = jnp.where(few, jnp.zeros_like(log_w), log_w)
        p, shift, log_L, x = jax.tree.map(lambda a: a[take] if jnp.ndim(a) else a, (p, shift, log_L, x))

        def move(p, shift, log_L, x, z):
            mean, std = kernel.transition(p, x, row)
            towards, _ = kernel.transition(p.with_x0(p.x0 + shift), x, row)
            noisy = jnp.where(row.s == 0, 0, 1).astype(x.dtype)  # as the kernels: the last step has no noise
            moved = towards + noisy * std * z
            # log p - log q of a normal z around ``towards``
            d = noisy * safe_divide(towards - mean, std * jnp.ones_like(x))
            added = -inner(d, z) - 0.5 * inner(d, d) - log_L
            stays = row.s == row.t
            last = jnp.where(row.s == 0, self.likelihood(moved) + added, 0)
            return jnp.where(stays, x, moved), jnp.where(stays, -log_L, added), last

        axes = jax.tree.map(lambda a: 0 if jnp.ndim(a) else None, p)
        moved, added, last = jax.vmap(move, in_axes=(axes, 0, 0, 0, 0))(p, shift, log_L, x, noise["move"])
        known = log_w + last
        state = Weights(known, log_w + added, jnp.argmax(known + noise["gumbel"]).astype(jnp.int32))
        return moved, state, {"effective": effective, "solve_residual": left.max()}

    def finish(self, kernel, x, state):
        return x[state.chosen], {"log_weights": jax.nn.log_softmax(state.log_w)}

    def calls(self, kernel) -> int:
        return self.particles

    def products(self, kernel) -> int:
        return self.particles * self.solves()


def for_calls(calls: int) -> dict:
    """The settings of :func:`two_stage` for a budget of network calls; they depend on nothing else.

    Rows and particles both grow with it, and the rows reach further: a start at ``top`` that takes the noise for white costs
    weights of modes once the rest is right. Below 40 calls there is one particle, and the walk is MMPS's but for its first
    row. ValueError for fewer than 2 calls.
    """
    calls = whole("calls", calls, 2)
    particles = max(1, round((calls / 100) ** 0.7 * 4))
    if particles == 1:
        return {"particles": 1, "rows": (1, calls - 1), "top": 80.0, "split": 80.0}
    second = round(16 * (calls / 100) ** 0.6)
    rows = ((calls - second) // particles, second)
    return {"particles": particles, "rows": rows, "top": 10 * (calls / 100) ** 0.5, "split": 0.2 * (100 / calls) ** 0.3}


def two_stage(key, denoise, measurement, shape, *, particles=4, rows=(21, 16), top=10.0, split=0.2, end=0.002,
              iterations=10, threshold=0.5, schedule=None, dtype=jnp.float32) -> Result:  # fmt: skip
    """One posterior sample of an image of ``shape``: K particles down from sigma / alpha = ``top`` to ``split`` by DDPM, then
    one of them to ``end`` and 0 by DPM-Solver++ 2M, all equal in log-SNR.

    rows: of the two stages; K rows[0] + rows[1] network calls, 100 by default (others: :func:`for_calls`), each with
    ``iterations`` Jacobian products (no more than y has entries)
    schedule: the denoiser's; to be given for a plain function
    Levels are in units of the data: ``top`` far above its diameter (there the start is white), ``split`` below the distance of
    modes. Returns the ``Result`` of the second stage; ``info.final`` holds the first stage's.
    """
    schedule = denoise.schedule if schedule is None else schedule
    levels = np.concatenate([np.geomspace(top, split, rows[0]), np.geomspace(split, end, rows[1] + 1)[1:]])
    times = np.append(schedule.time(-2 * np.log(levels)), 0.0)
    head, tail = timetables.from_times(times[: rows[0] + 1]), timetables.from_times(times[rows[0] :])
    key_head, key_tail = jax.random.split(key)
    many = TwistedSMC(denoise, measurement, iterations=iterations, threshold=threshold, particles=particles)
    # K draws of pure noise: near enough at ``top``, whatever ``sample`` would say of fewer calls' lower one
    start = normal(jax.random.fold_in(key_head, 0), (particles, *shape), dtype)
    start = start * (1.0 if schedule.variance_preserving else float(schedule.sigma(times[0])))
    first = sample(key_head, many, head, start.astype(dtype), kernel=DDPM(schedule))
    one = MMPS(denoise, measurement, iterations=iterations)
    second = sample(key_tail, one, tail, first.x, kernel=DPMSolverPP2M(schedule))
    info = type(second.info)(second.info.rows, {"particles": first.info})
    return Result(second.x, second.state, info, None)


def published(denoise, measurement, steps=None, *, table=None, particles=4, iterations=3, noise_floor=0.05) -> Setup:
    """The paper's image problems are of another kind. Ours, for trained networks: 4 particles of DDPM, 3 solver steps,
    25 levels equal in log-SNR. The likelihood needs noise: ``noise_floor`` where there is less."""
    table = timetables.log_snr(denoise.schedule, 25 if steps is None else steps) if table is None else table
    measurement = replace(measurement, noise_std=jnp.maximum(measurement.noise_std, noise_floor))
    return Setup(TwistedSMC(denoise, measurement, iterations, particles=particles), DDPM(), table)
