"""Masks with fractions, and noise_std per pixel and per channel, in every method and operator.

The prior is a Gaussian of independent pixels: there a method that treats pixels alike does to each what it does to all of them
at that pixel's noise level, and where nothing is noisy y / mask is the truth.
"""

from functools import cache

import jax
import numpy as np
import pytest
from test_capabilities import METHODS

import diffjax as dj

O, M = dj.operators, dj.methods
QUICK = {"xla_backend_optimization_level": 0}  # these programs take longer to compile than to run
SHAPE = (4, 4, 2)
SCHEDULE = dj.schedules.discrete(dj.schedules.linear_betas(100))
TABLE = dj.timetables.log_snr(SCHEDULE, 50)
MEAN, VARIANCE = 0.1, 0.3


def gaussian(x, i):
    alpha, sigma = (c.astype(x.dtype) for c in (SCHEDULE.alpha(i + 1), SCHEDULE.sigma(i + 1)))
    return MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)


PRIOR = dj.denoisers.from_x0(gaussian, None, SCHEDULE)
rng = np.random.default_rng(0)
X = np.where(rng.random(SHAPE) < 0.5, -0.8, 0.8).astype(np.float32)
SOFT = np.array([1, 0.5, 0.25, 0], np.float32)[:, None, None] * np.ones((4, 4, 1), np.float32)
KNOWN = np.broadcast_to(SOFT > 0, SHAPE)
LEVELS = 0.05, 0.3
MIXED = np.where(rng.random(SHAPE) < 0.5, *LEVELS).astype(np.float32)
NOISY = (SOFT * X + 0.2 * rng.standard_normal(SHAPE)).astype(np.float32)
ALIKE = ("repaint", "blended", "replacement", "ccdf", "ddrm", "ddnm+", "ddnm+ simplified", "pigdm", "diffpir", "dpir")
ALIKE += ("diffpir back projection",)
COUPLED = ("resampling", "mmps", "twisted", "diffpir gradient")  # one choice, solver or step size for all pixels
IGNORE = ("dps", "dps poisson", "mcg", "copaint", "red-diff")  # noise_std is not used
# what fits y but for a step size, a number of steps, or a weight of the prior, and how near it comes here
NEAR = {"dps": 0.2, "dps poisson": 0.2, "red-diff": 0.2, "diffpir gradient": 0.2, "diffpir back projection": 0.2}
NEAR |= {"diffpir": 0.02, "dpir": 0.02, "pigdm": 0.02, "mmps": 0.02, "twisted": 0.1}


BUILD = METHODS | {"mmps": (M.MMPS, dj.kernels.DDIM), "twisted": (lambda *a: M.TwistedSMC(*a, particles=2), dj.kernels.DDPM)}


@cache
def program(name):
    """(y, stds (n, *SHAPE)) -> results (n, *SHAPE) and states (n, rows, *SHAPE), one run for each, of the same draws. Those
    are an argument: what makes them takes longer to compile than the method."""
    build, kernel = BUILD[name]
    kernel = kernel(SCHEDULE)
    method = lambda y, std: build(PRIOR, dj.Measurement(y, O.Mask(SOFT), std, (-9.0, 9.0)))
    quiet = method(NOISY, 0.0 if name == "ddnm" else 1.0)
    like = jax.eval_shape(lambda k: dj.draws(k, quiet, TABLE, SHAPE, kernel=kernel), jax.random.key(0))
    draw = np.random.default_rng(1)
    noise = jax.tree.map(lambda a: draw.normal(size=a.shape).astype(np.float32), like)

    def run(noise, y, stds):
        def one(std):
            trace = lambda x, row, info: x
            r = dj.sample(None, method(y, std), TABLE, SHAPE, kernel=kernel, recorded=noise, remat="none", trace=trace)
            return r.x, r.trace

        return jax.vmap(one)(stds)

    compiled = jax.jit(run, compiler_options=QUICK)
    return lambda y, *stds: jax.device_get(
        compiled(noise, y, np.stack([np.broadcast_to(s, SHAPE) for s in stds]).astype(np.float32))
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_fraction_measures_that_share_of_the_image(name):
    std = 0.01 if name == "twisted" else 0.0
    x = program(name)(SOFT * X, std, std, std)[0][0]
    print(name, np.abs(x - X)[KNOWN].max())


@pytest.mark.parametrize("name", [*ALIKE, *COUPLED, *IGNORE])
def test_each_pixel_has_its_own_noise(name):
    low, high, mixed = program(name)(NOISY, *LEVELS, MIXED)[1]
    print(name, np.abs(low - high)[..., KNOWN].max(), np.abs(mixed - np.where(MIXED == LEVELS[0], low, high)).max())
