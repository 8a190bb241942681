"""Resampling: inpainting by a particle filter over Blended walks (Trippe et al. 2023's replacement with resampling, in the
form of CoPaint's code, algorithm "resample").

n particles take Blended's step (known pixels merged at t, one step down); those whose known pixels come closer to the noisy
reference at s replace the others:

    e_i = |m (y_s - x_i)|^2,   P = softmax(100 / (e / mean e)),   each particle floor(n P_i) times,
    the rest drawn without replacement with weights n P_i - floor(n P_i);       at the end, the best against y itself

The code as released never assigns the step's result to x: its hole keeps the initial noise. We run what it intends. It draws
its references once and shares them over the particles and the batch; here each level has a fresh one, shared over particles
only. Its final selection draws; ours takes the best. Weights are the code's heuristic, not Trippe et al.'s likelihood ratios:
the filter is not exact in the limit of many particles (twisted SMC is).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..base import normal, pytree, replace, static, whole
from ..kernels import DDIM
from ..method import NOT_NEGATIVE
from .blended import Blended
from .common import Setup, grid


def choose(weights, gumbel):
    """(n,) indices, as many as ``gumbel`` is long, by the rule above; ``gumbel`` unit Gumbel noise for the rest's draws."""
    n = len(gumbel)
    whole = jnp.floor(n * weights)
    copies, rest = whole.astype(jnp.int32), n * weights - whole
    up_to = jnp.cumsum(copies, dtype=jnp.int32)
    order = jnp.argsort(-(jnp.log(jnp.maximum(rest, jnp.finfo(rest.dtype).tiny)) + gumbel)).astype(jnp.int32)
    place = jnp.arange(n, dtype=jnp.int32)
    repeated = jnp.minimum(jnp.searchsorted(up_to, place, side="right").astype(jnp.int32), len(weights) - 1)
    return jnp.where(place < up_to[-1], repeated, order[jnp.maximum(place - up_to[-1], 0)])


@pytree
class Resampling(Blended):
    """denoise: the prior, not clipped. measurement: y (H, W, C) with a ``Mask``.

    particles: walks of the filter, the leading axis of the state; each costs the kernel's calls in every row
    keep:      results returned: 1 gives one image, more a leading axis of the best
    scale:     100 in the rule above: how much a smaller error counts
    The published kernel is ``DDIM`` with eta 0; a kernel's own noise drowns the errors that the choice looks at.
    A start array passed to ``sample`` has the leading axis of particles. Samples of one call are not independent: run it per
    image and sample (``vmap``) and keep 1.
    """

    scale: Any = 100.0
    particles: int = static(default=10)
    keep: int = static(default=1)

    paper = "Trippe et al. 2023"
    link = "arxiv.org/abs/2206.04119"
    differentiable = False  # it draws indices
    ranges = {"scale": NOT_NEGATIVE}

    def __post_init__(self):
        super().__post_init__()
        whole("particles", self.particles)
        whole("keep", self.keep, 1, self.particles)

    def plan(self, kernel, table):
        """The merge's coefficients at t and at s."""
        return super().plan(kernel, table), super().plan(kernel, replace(table, t=table.s))

    def image_shape(self, shape):
        return shape[1:]

    def draw_start(self, kernel, key, shape, dtype):
        return normal(key, (self.particles, *shape), dtype)

    def init(self, kernel, x):
        return jax.vmap(kernel.init)(x), jnp.zeros_like(x[0])  # the kernel's, the noise of the reference at this level

    def draw(self, kernel, key, x):
        keys = jax.random.split(key, 4)
        one = lambda key: normal(key, x.shape[1:], x.dtype)
        move = jax.vmap(lambda key: kernel.draw(key, x[0]))(jax.random.split(keys[0], len(x)))
        gumbel = jax.random.gumbel(keys[3], (len(x),), x.dtype)
        return {"move": move, "first": one(keys[1]), "known": one(keys[2]), "gumbel": gumbel}

    def weights(self, x, reference):
        """(n,) the particles' shares by how close their known pixels are to ``reference``."""
        m = self.measurement.A.weights(x)
        error = ((m * (reference - x)) ** 2).reshape(len(x), -1).sum(1)
        tiny = jnp.asarray(jnp.finfo(x.dtype).tiny ** 0.5, x.dtype)
        return jax.nn.softmax(jnp.asarray(self.scale, x.dtype) * error.mean() / jnp.maximum(error, tiny))

    def choose(self, weights, gumbel):
        return choose(weights, gumbel)

    def keep_chosen(self, before, after, chosen):
        """The chosen particles; ``before``: as merged at t, ``after``: moved to s."""
        return after[chosen]

    def step(self, kernel, x, state, row, noise):
        inner, e = state
        at_t, at_s = row.m
        x = self.merge(x, at_t, jnp.where(row.i == 0, noise["first"], e))
        move = lambda x, inner, z: kernel.step(self.predict, x, inner, row, z)
        moved, inner = jax.vmap(move)(x, inner, noise["move"])
        weights = self.weights(moved, self.merge(jnp.zeros_like(moved), at_s, noise["known"]))
        chosen = self.choose(weights, noise["gumbel"])
        inner = jax.tree.map(lambda a: a[chosen], inner)
        return self.keep_chosen(x, moved, chosen), (inner, noise["known"]), {"effective": 1 / (weights**2).sum()}

    def finish(self, kernel, x, state):
        best = jnp.argsort(-self.weights(x, self.measurement.A.pinv(self.measurement.y.astype(x.dtype))))[: self.keep]
        x, info = super().finish(kernel, x[best], state)
        return (x[0] if self.keep == 1 else x), info

    def calls(self, kernel) -> int:
        return kernel.calls * self.particles


def published(denoise, measurement, steps=None, *, table=None, scale=100.0, particles=10) -> Setup:
    """As in CoPaint's tables: 10 particles, 250 respaced levels, DDIM with eta 0."""
    table = grid(denoise.schedule, 250 if steps is None else steps) if table is None else table
    return Setup(Resampling(denoise, measurement, scale=scale, particles=particles), DDIM(), table)
