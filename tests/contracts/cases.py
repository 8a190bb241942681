"""The contract table: one entry per kernel and per method buys every test of test_contracts.py.

A new method is one line here, or ``case_of`` its entry in the registry.
Each case is a small program on a 4x4x1 image with a Gaussian prior and 8 rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj

SHAPE = (4, 4, 1)
ROWS = 8
SCHEDULE = dj.schedules.discrete(dj.schedules.linear_betas(100))
MASK = np.ones(SHAPE, np.float32)
MASK[1:3, 2:] = 0


@dataclass(frozen=True)
class Case:
    name: str
    kernel: Callable  # schedule -> kernel
    method: Callable | None = None  # (denoise, y) -> method; None: the bare denoiser
    table: Callable = lambda s: dj.timetables.log_snr(s, ROWS)
    calls: int | None = 1  # declared network calls per row; None: a bound, counted in info["calls"]
    stochastic: bool = True  # whether rows draw noise
    starts: bool = True  # whether the start is drawn


def with_mask(make, noise_std=0.0, **kwargs):
    return lambda denoise, y: make(denoise, dj.Measurement(y, dj.operators.Mask(jnp.asarray(MASK)), noise_std), **kwargs)


def jumping(s):
    return dj.timetables.repaint(s, jump=1, times=2, grid=dj.timetables.log_snr(s, 5))


def travelling(s):
    return dj.timetables.travel(dj.timetables.log_snr(s, 4), length=2, times=2, before_jump=True)


def case_of(entry):
    """A case for a registered method as its paper runs it, on a mask."""
    noise_std = 0.1 if entry.method.noise == "needed" else 0.0
    make = lambda denoise, m: entry.published(denoise, m, ROWS, table=None).method
    setup = entry.published(
        dj.denoisers.from_x0(gaussian, arguments()[0], SCHEDULE),
        dj.Measurement(MASK, dj.operators.Mask(MASK), noise_std),
        ROWS,
    )
    kernel = setup.kernel.bind(SCHEDULE)
    counted = setup.method.least_calls(kernel) != setup.method.calls(kernel)
    return Case(
        entry.name,
        lambda s: kernel,
        with_mask(make, noise_std),
        calls=None if counted else setup.method.calls(kernel),
        stochastic=not kernel.still(),
    )


K, M = dj.kernels, dj.methods
CASES = [
    Case("ddpm-small", K.DDPM),
    Case("ddpm-large", lambda s: K.DDPM(s, variance="large")),
    Case("ddpm-learned-range", lambda s: K.DDPM(s, variance="learned_range")),
    Case("ddpm-learned", lambda s: K.DDPM(s, variance="learned")),
    Case("ddpm-guided", lambda s: K.guided(K.DDPM(s), lambda x, t: 0.3 - x, 0.5)),
    Case("ddim", K.DDIM, stochastic=False),
    Case("ddim-eta", lambda s: K.DDIM(s, eta=0.5)),
    Case("ddim-zeta", lambda s: K.DDIM(s, zeta=0.3)),
    Case("marginal", K.Marginal),
    Case("euler", K.Euler, stochastic=False),
    Case("heun", K.Heun, calls=2, stochastic=False),
    Case("dpmsolver++2m", K.DPMSolverPP2M, stochastic=False),
    Case("unipc-jumps", K.UniPC, table=jumping),
    Case("rk4", K.RK4, calls=4, stochastic=False),
    Case("sde-2m-langevin", lambda s: K.PredictorCorrector(s, K.SDEDPMSolverPP2M(), K.Langevin()), calls=2),
    Case("ddpm-jumps", K.DDPM, table=jumping),
    Case("dpmsolver++2m-jumps", K.DPMSolverPP2M, table=jumping),
    Case("repaint", K.DDPM, with_mask(M.RePaint), jumping),
    Case("repaint-paper", K.DDPM, with_mask(M.RePaint, order="paper"), jumping),
    Case("repaint-heun", K.Heun, with_mask(M.RePaint), jumping, calls=2),
    Case("copaint", K.DDIM, with_mask(M.CoPaint, lr=0.5), calls=None, stochastic=False),
    Case(
        "copaint-travel", lambda s: K.DDIM(s, eta=0.3), with_mask(M.CoPaint, iterations=1, adaptive=False), travelling, calls=2
    ),
    Case("dps", K.DDPM, with_mask(M.DPS)),
    Case("dps-squared-heun", K.Heun, with_mask(M.DPS, loss="squared"), calls=2, stochastic=False),
    Case("dps-poisson", K.DDIM, with_mask(M.DPS, loss="poisson"), stochastic=False),
    Case("mcg", K.DDPM, with_mask(M.MCG)),
    Case(
        "plms", lambda s: K.PLMS(s), table=lambda s: dj.timetables.plms(dj.timetables.uniform(s, ROWS - 1)), stochastic=False
    ),
    Case("prk", lambda s: K.PRK(s), calls=4, stochastic=False),
    Case("psld", lambda s: K.DDIM(s, eta=0.5), with_mask(M.PSLD)),
    Case("resample", K.DDIM, with_mask(M.ReSample, every=2, iterations=3, lr=0.05)),
    Case("pigdm", lambda s: K.DDIM(s, eta=0.5), with_mask(M.PiGDM)),
    Case("pigdm-bayes-2m", K.DPMSolverPP2M, with_mask(M.PiGDM, weight="bayes"), stochastic=False),
    Case("mmps-2m", K.DPMSolverPP2M, with_mask(M.MMPS, noise_std=0.1), stochastic=False),
    Case("mmps-heun", K.Heun, with_mask(M.MMPS, noise_std=0.1, iterations=3), calls=2, stochastic=False),
    Case("ddrm", K.Marginal, with_mask(M.DDRM, noise_std=0.2)),
    Case("ddnm", K.Heun, with_mask(M.DDNM, keep_eps=False), jumping, calls=2),
    Case("ddnm+simplified", K.Marginal, with_mask(M.DDNMPlus, noise_std=0.2, form="simplified", travel="x"), jumping),
    Case("red-diff", K.Marginal, with_mask(M.REDDiff)),
    Case("diffpir", lambda s: K.DDIM(s, zeta=0.3), with_mask(M.DiffPIR)),
    Case("diffpir-gradient-2m", K.DPMSolverPP2M, with_mask(M.DiffPIR, data="gradient"), stochastic=False),
    Case("diffpir-admm-heun", K.Heun, with_mask(M.DiffPIR, splitting="admm"), calls=2, stochastic=False),
    Case("blended", lambda s: K.DDIM(s, eta=0.5), with_mask(M.Blended)),
    Case("replacement-heun", K.Heun, with_mask(M.Replacement, strength=0.8), calls=2),
    Case("twisted", K.DDPM, with_mask(M.TwistedSMC, noise_std=0.1, particles=2, iterations=4), calls=2),
    Case("resampling", K.DDPM, with_mask(M.Resampling, particles=2), calls=2),
    Case("ccdf", K.DDPM, with_mask(M.CCDF), lambda s: dj.timetables.start_at(dj.timetables.log_snr(s, ROWS), 60.0)),
    Case("late-start", K.DDPM, M.LateStart, lambda s: dj.timetables.start_at(dj.timetables.log_snr(s, ROWS), 20.0)),
    Case(
        "partdiff",
        lambda s: K.DDIM(s, eta=0.5),
        lambda denoise, y: M.PartDiff(denoise, y, 60.0, target="drift"),
        lambda s: dj.timetables.start_at(dj.timetables.log_snr(s, ROWS), 60.0),
    ),
    Case("nonequilibrium", K.DDPM, with_mask(M.Nonequilibrium, noise_std=0.1)),
    Case("dpir", K.Marginal, with_mask(M.DPIR), stochastic=False, starts=False),
]


def gaussian(params, x, i):
    """Exact posterior mean of a diagonal Gaussian prior, and a variance output; ``params`` = (mean, variance)."""
    mean, var = params
    alpha, sigma = (c.astype(x.dtype) for c in (SCHEDULE.alpha(i + 1), SCHEDULE.sigma(i + 1)))
    gain = alpha * var / (alpha**2 * var + sigma**2)
    return mean + gain * (x - alpha * mean), -0.3 + 0.2 * jnp.tanh(x)


def arguments(dtype=jnp.float32, seed=0):
    """(params, y): what a user would differentiate by."""
    rng = np.random.default_rng(seed)
    mean, var = 0.3 * rng.standard_normal(SHAPE), 0.1 + 0.2 * rng.random(SHAPE)
    y = np.clip(0.5 * rng.standard_normal(SHAPE), -1, 1)
    return (jnp.asarray(mean, dtype), jnp.asarray(var, dtype)), jnp.asarray(y, dtype)


def build(case, params, y, network=gaussian):
    denoise = dj.denoisers.from_x0(network, params, SCHEDULE)
    return denoise if case.method is None else case.method(denoise, y)


def program(case, network=gaussian, remat="row", table=None):
    """(key, params, y) -> Result"""
    table = case.table(SCHEDULE) if table is None else table
    kernel = case.kernel(SCHEDULE)

    def run(key, params, y):
        return dj.sample(key, build(case, params, y, network), table, SHAPE, kernel=kernel, remat=remat, dtype=y.dtype)

    return run


def jitted(case):
    """The case's program, compiled once under strict promotion. It counts its traces and, after ``effects_barrier``, the calls
    of its network."""
    traces, calls = [], []

    def counting(params, x, i):
        jax.debug.callback(lambda _: calls.append(1), x.ravel()[0])  # of x: particles of one image are counted each
        return gaussian(params, x, i)

    def counted(key, params, y):
        traces.append(1)
        with jax.numpy_dtype_promotion("strict"):
            return program(case, counting)(key, params, y)

    run = jax.jit(counted)
    run.traces, run.calls = traces, calls
    return run
