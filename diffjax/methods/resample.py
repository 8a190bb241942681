"""ReSample, hard data consistency for latent diffusion (Song et al., ICLR 2024, arXiv 2307.08123).

    z'  = kernel's move from z_t to s  -  scale alpha_t^2 grad_{z_t} |y - A decode(z0_hat)|
    z0* = argmin |y - A decode(z)|^2,  begun at z0_hat,  on every ``every``-th row
    z_s ~ N((v alpha_s z0* + sigma_s^2 z') / (v + sigma_s^2),  v sigma_s^2 / (v + sigma_s^2)),    v = strength std^2

std is the deviation of q(z_s | z_t, z_0): stochastic resampling puts z0* back on the level of s, near z'. On other rows
z_s = z'. By the level's time in thirds: at t > 2 T / 3 nothing is fitted; then in pixels, where the minimum next to
decode(z0_hat) is x - A^+ (A x - y), and encoded again; at t <= T / 3 in latents by ``iterations`` steps of Adam, and once more
after the last row.
A fit stops at the noise: where |y - A x|^2 is what noise of ``noise_std`` (at least ``tolerance``) has.

Paper and code: the paper has no gradient step (scale = 0), the code has, with scale 0.5, which we follow. The code walks five
more steps down from z' before it takes z0_hat, we take this row's, as the paper does. Its v divides by sigma_t^2, the paper's
by alpha_t^2: we follow the code, whose v is ``strength`` = 40 times the posterior variance. It fits pixels by up to 2000
steps of AdamW where we have the limit of such a fit, and takes AdamW for latents (500 steps, rate 0.005), where we leave the
weight decay out. It counts rows from the end, so that every 10th is the one whose number from the start ends in 9: so do we.
With an operator that is not ``Decoded``, encode and decode are the identity.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .. import process, timetables
from ..base import Measurement, expand, namespace, normal, pytree, safe_divide, safe_sqrt, static, whole
from ..kernels import DDIM
from ..method import NOT_NEGATIVE, Method
from .common import Setup, cast, each, norm, squares
from .dps import gradient_of
from .psld import in_pictures, of_the_picture

BETAS = (0.9, 0.999)


@pytree
class Plan:
    """Per row: what is fitted (0 nothing, 1 pixels, 2 latents), and the coefficients of resampling."""

    stage: Any
    to_fit: Any  # of z0*
    to_move: Any  # of z'
    std: Any


@pytree
class ReSample(Method):
    """denoise: the prior of latents, not clipped. measurement: y with ``operators.Decoded(A, autoencoder)``, A linear with
    A.pinv.

    scale:      of the gradient step
    strength:   of the resampling's variance (the paper's gamma)
    lr:         rate of the fit in latents
    tolerance:  least deviation of y that fits stop at
    every:      rows from one fit to the next; iterations: steps of the fit in latents
    Any kernel and table runs it. One network call a row; a row that fits latents decodes ``iterations`` times.
    Raises ValueError for an operator of pictures without pseudo-inverse.
    """

    measurement: Measurement = None
    scale: Any = 0.5
    strength: Any = 40.0
    lr: Any = 5e-3
    tolerance: Any = 1e-3
    every: int = static(default=10)
    iterations: int = static(default=500)

    paper = "Song et al. 2023b"
    link = "arxiv.org/abs/2307.08123"
    requires = ("pinv",)
    noise = "ignored"  # but where fits stop
    ranges = {name: NOT_NEGATIVE for name in ("scale", "strength", "lr", "tolerance")}

    def __post_init__(self):
        super().__post_init__()
        for name in ("every", "iterations"):
            whole(name, getattr(self, name))

    def requirements(self):
        return of_the_picture(self)

    def default_kernel(self):
        return DDIM()

    def plan(self, kernel, table) -> Plan:
        schedule = kernel.schedule
        T, xp = float(schedule.T), namespace(*jax.tree.leaves(table), schedule)
        stage = xp.where(table.t > 2 * T / 3, 0, xp.where(table.t > T / 3, 1, 2))
        due = (table.i % self.every == self.every - 1) & (table.s > 0) & (table.s < table.t)
        alpha_s, sigma_s = process.marginal(schedule, table.s)
        v = self.strength * process.posterior(schedule, table.t, table.s)[2] ** 2
        share = safe_divide(v, v + sigma_s**2)
        return Plan(xp.where(due, stage, 0), share * alpha_s, 1 - share, safe_sqrt(share) * sigma_s)

    def draw(self, kernel, key, x):
        key_move, key_fit = jax.random.split(key)
        return {"move": kernel.draw(key_move, x), "fit": normal(key_fit, x.shape, x.dtype)}

    def misfit(self, z):
        """|y - A decode(z)|^2"""
        return squares(self.measurement.A.residual(z, cast(self.measurement.y, z.dtype)))

    def noise_left(self, z):
        """|y - A decode(z)|^2 of a z whose residual is nothing but noise: over what is measured."""
        A, y = self.measurement.A, cast(self.measurement.y, z.dtype)
        std = each(
            lambda a: jnp.maximum(jnp.asarray(a, z.dtype), jnp.asarray(self.tolerance, z.dtype)), self.measurement.noise_std
        )
        moved = (
            tuple(a + s for a, s in zip(y, std, strict=True)) if isinstance(std, tuple) else jax.tree.map(lambda a: a + std, y)
        )
        return squares(jax.tree.map(jnp.subtract, A.residual(z, moved), A.residual(z, y)))

    def fit_pixels(self, z):
        decode, encode, A = in_pictures(self.measurement.A)
        x = decode(z)
        fitted = encode(x - A.pinv(A.residual(x, cast(self.measurement.y, z.dtype))))
        return jnp.where(self.misfit(z) > self.noise_left(z), fitted, z)

    def fit_latents(self, z):
        enough = self.noise_left(z)

        def turn(carry, n):
            z, mean, square = carry
            loss, gradient = jax.value_and_grad(self.misfit)(z)
            mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
            square = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
            size = safe_sqrt(square / (1 - BETAS[1] ** n)) + 1e-8
            step = expand(self.lr, z) * mean / (1 - BETAS[0] ** n) / size
            return (jnp.where(loss > enough, z - step, z), mean, square), None

        zeros = jnp.zeros_like(z)
        counts = jnp.arange(1, self.iterations + 1, dtype=z.dtype)
        return jax.lax.scan(jax.checkpoint(turn, prevent_cse=False), (z, zeros, zeros), counts)[0][0]

    def step(self, kernel, x, state, row, noise):
        objective = lambda z0: norm(self.measurement.A.residual(z0, cast(self.measurement.y, z0.dtype)))
        value, p, gradient = gradient_of(objective, self.denoise, x, row.t)
        moved, state = kernel.step(self.predict, x, state, row, noise["move"], first=p)
        moved = moved - expand(self.scale, x) * expand(p.alpha, x) ** 2 * gradient
        # a branch, as a fit costs as much as a hundred rows: few rows take it, and it reads no weights of the network
        fitted = jax.lax.switch(row.m.stage, [lambda z: z, self.fit_pixels, self.fit_latents], p.x0)
        m = row.m
        resampled = expand(m.to_fit, x) * fitted + expand(m.to_move, x) * moved + expand(m.std, x) * noise["fit"]
        return jnp.where(m.stage > 0, resampled, moved), state, {"loss": value}

    def finish(self, kernel, x, state):
        return self.fit_latents(x), {"misfit": self.misfit(x)}

    def products(self, kernel) -> int:
        return 1


def published(
    denoise,
    measurement,
    steps=None,
    *,
    table=None,
    scale=0.5,
    strength=40.0,
    lr=5e-3,
    tolerance=1e-3,
    iterations=500,
    every=10,
) -> Setup:
    """500 levels of DDIM with eta 0; iterations: 500 as released (its comment: 200 are enough for inpainting)."""
    if table is None:
        steps = 500 if steps is None else steps
        make = timetables.ldm if denoise.schedule.discrete else timetables.log_snr
        table = make(denoise.schedule, min(steps, denoise.schedule.T) if denoise.schedule.discrete else steps)
    method = ReSample(denoise, measurement, scale, strength, lr, tolerance, every, iterations)
    return Setup(method, DDIM(), table)
