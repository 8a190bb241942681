"""RePaint on Gaussian priors: the exact law of its walk, and that resampling brings it closer to the exact posterior.

For a Gaussian prior every operation of RePaint is affine, so the law of its result follows from a recursion of mean and
covariance, written here from the paper's formulas one time step at a time. Against the posterior, the errors are the
oracle's scores.
"""

import functools
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from optimised import samplers

import diffjax as dj
from diffjax.base import expand, pytree, replace
from experiments import repaint_on_mixtures
from experiments.repaint_on_mixtures import hidden_error, restore

QUICK = {"xla_backend_optimization_level": 1}  # these programs take longer to compile than to run

# --- the exact law, 4 x 4 pixels ---------------------------------------------------------------------------------------

SHAPE, D, T = (4, 4, 1), 16, 25
PLACE = np.stack(np.divmod(np.arange(D), 4), 1)
COVARIANCE = 0.3 * np.exp(-0.25 * ((PLACE[:, None] - PLACE[None]) ** 2).sum(-1)) + 0.05 * np.eye(D)
MEAN = 0.3 * np.cos(np.arange(D))
KNOWN = (PLACE[:, 1] < 2).astype(float)
Y = np.random.default_rng(0).normal(0, 0.5, D)
BETAS = np.linspace(0.01, 0.45, T)
BAR = np.append(1.0, np.cumprod(1 - BETAS))


def repaint_law(walk, order, noise_std=0.0):
    """Mean and covariance of RePaint's result along official indices ``walk`` (n - 1 ... -1), nothing pasted at the end."""
    m, C = np.zeros(D), np.eye(D)

    def merge(m, C, bar):
        keep = 1 - KNOWN
        return KNOWN * np.sqrt(bar) * Y + keep * m, keep[:, None] * C * keep + np.diag(
            KNOWN * np.maximum(1 - bar - bar * noise_std**2, 0)
        )

    for n, (i, j) in enumerate(pairwise(walk)):
        if j > i:  # x_{j} = sqrt(1 - beta_j) x_{j-1} + sqrt(beta_j) e
            m, C = np.sqrt(1 - BETAS[j]) * m, (1 - BETAS[j]) * C + BETAS[j] * np.eye(D)
            continue
        beta, bar, below = BETAS[i], BAR[i + 1], BAR[i]
        if order == "official" and n > 0:
            m, C = merge(m, C, bar)
        gain = np.sqrt(bar) * COVARIANCE @ np.linalg.inv(bar * COVARIANCE + (1 - bar) * np.eye(D))
        c_0, c_t = np.sqrt(below) * beta / (1 - bar), np.sqrt(1 - beta) * (1 - below) / (1 - bar)
        move = c_0 * gain + c_t * np.eye(D)
        m = c_0 * (MEAN - np.sqrt(bar) * gain @ MEAN) + move @ m
        C = move @ C @ move.T + (j >= 0) * beta * (1 - below) / (1 - bar) * np.eye(D)
        if order == "paper":
            m, C = merge(m, C, below)
    return m, C


def deviation(order="official", make=dj.methods.RePaint, kinds=(0,), n=4096, noise_std=0.0):
    """Largest deviation of the pixels' means and second moments from the law, in standard errors, per kind of mutant."""
    schedule = dj.schedules.discrete(BETAS)
    prior = dj.priors.gaussian(MEAN.reshape(SHAPE), covariance=COVARIANCE)
    mask = dj.operators.Mask(KNOWN.reshape(SHAPE))
    measurement = dj.Measurement(Y.reshape(SHAPE).astype(np.float32), mask, noise_std, value_range=(-2.0, 2.0))
    paint = make(prior.denoiser(schedule), measurement, order=order, exact=False)
    table = dj.timetables.repaint(schedule, steps=T, jump=5, times=3)

    def one(key, kind):
        method = replace(paint, kind=kind) if isinstance(paint, Mutant) else paint
        return dj.sample(key, method, table, SHAPE, kernel=dj.kernels.DDPM(schedule)).x

    keys = jax.random.split(jax.random.key(5), n)
    xs = jax.jit(lambda kind: jax.vmap(one, in_axes=(0, None))(keys, kind), compiler_options=QUICK)
    mean, covariance = repaint_law(dj.timetables.jump_walk(T, jump=5, times=3), order, noise_std)
    free = slice(None) if order == "official" else KNOWN == 0  # the paper's order pastes y at t = 0
    whiten = np.linalg.inv(np.linalg.cholesky(covariance[free][:, free])).T
    out = []
    for kind in kinds:
        z = (np.asarray(xs(kind), np.float64).reshape(n, D) - mean)[:, free] @ whiten
        second = (z.T @ z / n - np.eye(z.shape[1])) / np.sqrt((1 + np.eye(z.shape[1])) / n)
        out.append(max(np.abs(z.mean(0)).max() * np.sqrt(n), np.abs(second).max()))
    return np.array(out)


@pytest.mark.parametrize("order, noise_std", [("official", 0.0), ("paper", 0.0), ("official", 0.08)])
def test_the_law_of_the_walk(order, noise_std):
    assert deviation(order, noise_std=noise_std) < 5  # 152 normal deviates: 1e-4 by chance


MUTANTS = ("none", "known pixels with the noise of the level below", "sigma^2 for sigma", "silent climbs", "unscaled climbs")


@pytree
class Mutant(dj.methods.RePaint):
    """RePaint with the deliberate mistake MUTANTS[kind]; a leaf, so that one program serves all."""

    kind: Any = 0

    def plan(self, kernel, table):
        plan = super().plan(kernel, table)
        sigma = jnp.where(self.kind == 1, kernel.schedule.sigma(table.s), plan.sigma)
        return replace(plan, sigma=jnp.where(self.kind == 2, plan.sigma**2, sigma))

    def jump(self, kernel, x, state, row, noise):
        a, std = (expand(c, x) for c in row.k.jump)
        a, std = jnp.where(self.kind == 4, jnp.ones_like(a), a), jnp.where(self.kind == 3, jnp.zeros_like(std), std)
        return a * x + std * noise, state


def test_teeth_the_law_sees_mutants():
    found = deviation(make=Mutant, kinds=range(5))
    assert found[0] < 5
    assert (found[1:] > 10).all(), dict(zip(MUTANTS, found))


# --- against the posterior ---------------------------------------------------------------------------------------------

N = 512
TIMES = (1, 3, 10)


@functools.lru_cache
def scores(name, times, method=dj.methods.RePaint):
    """(mean_err, sw2, error of the hidden pixels' mean) after ``times`` walks through every stretch; smaller is better."""
    problem = oracle.load(name)
    with samplers(repaint_on_mixtures):
        x, _ = restore(problem, times, levels=30, samples=N, method=method)
    s = oracle.score(problem, x)
    return np.array([s["mean_err"], s["sw2"], hidden_error(problem, x)])


def margins(name):
    """4 standard errors of a difference of two scores. mean_err and sw2: the oracle's, from repeats of exact draws. The rms of
    h means over N draws of unit variance moves by 1 / sqrt(h) per unit of their norm: standard deviation <= 1 / sqrt(N h)."""
    problem = oracle.load(name)
    sd = oracle.scores._scorer(problem, N).null_sd
    hidden = (problem.A.sum(0) == 0).sum()
    return 4 * np.sqrt(2) * np.array([sd["mean_err"], sd["sw2"], 1 / np.sqrt(N * hidden)])


def comes_closer(found, name):
    """Whether every score falls from each row of ``found`` to the next by more than chance would have it."""
    found = np.array(found)
    return bool((found[:-1] - found[1:] > margins(name)).all())


@pytest.mark.parametrize("name, runs", [("g-box-05", TIMES), ("g-rand10-05", TIMES[:2])])
def test_more_resampling_comes_closer_to_the_posterior(name, runs):
    found = [scores(name, times) for times in runs]
    assert comes_closer(found, name), found


def inverted(denoise, measurement):
    """A mask with known and hidden pixels exchanged."""
    return dj.methods.RePaint(denoise, replace(measurement, A=dj.operators.Mask(1 - measurement.A.mask)))


def test_teeth_an_inverted_mask_does_not_come_closer():
    name = "g-rand10-05"
    found = [scores(name, times, inverted) for times in TIMES[:2]]
    assert not comes_closer(found, name)
