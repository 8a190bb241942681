"""Kernels on Gaussian priors, where every one is an affine map: the law of the samples is known, from textbook recursions in
numpy (betas and alpha-bars for DDPM and DDIM; the ratio rho = sigma / alpha for the solvers), as is the limit, the prior."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.base import pytree, replace

MEAN = np.array([0.3, -0.5, 0.0, 0.8])
VARIANCE = np.array([0.01, 0.1, 0.4, 2.0])  # 1 would hide errors: a unit Gaussian stays one under every alpha
SHAPE = (4, 1, 1)
PRIOR = dj.priors.gaussian(MEAN.reshape(SHAPE), VARIANCE.reshape(SHAPE))
BETAS = np.linspace(0.002, 0.4, 50)
TABLE_SCHEDULE = dj.schedules.discrete(BETAS)
BAR = np.append(1.0, np.cumprod(1 - BETAS))  # BAR[t], t = 0 clean

QUICK = {"xla_backend_optimization_level": 1}  # these programs take longer to compile than to run


def law(kernel, table, start_variance=1.0):
    """Exact mean and variance per pixel of a sampler whose map is affine and acts on each pixel alone: one reverse pass gives
    the slope of every pixel in every draw."""
    denoise = PRIOR.denoiser(kernel.schedule)
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda: dj.draws(jax.random.key(0), denoise, table, SHAPE, jnp.float64, kernel=kernel))
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        run = lambda d: dj.sample(None, denoise, table, SHAPE, kernel=kernel, recorded=d, dtype=jnp.float64).x
        slopes, mean = jax.jit(jax.grad(lambda d: (run(d).sum(), run(d)), has_aux=True), compiler_options=QUICK)(zero)
        variance = slopes.start**2 * start_variance
        for rows in jax.tree.leaves(slopes.rows):
            variance += (rows**2).sum(0)
        return np.asarray(mean).reshape(-1), np.asarray(variance).reshape(-1)


def table_recursion(times, eta=0.0, zeta=None):
    """DDIM's update (Song et al. 2021, eqs. 12 and 16) through whole ``times`` of the table; eta = 1 is DDPM; with zeta
    DiffPIR's (Zhu et al. 2023, eq. 14): variance zeta (1 - abar_s) of the noise at s is fresh."""
    m, v = np.zeros(4), np.ones(4)
    for t, s in pairwise(times):
        a, b = BAR[t], BAR[s]
        gain = np.sqrt(a) * VARIANCE / (a * VARIANCE + 1 - a)  # x0 = MEAN + gain (x - sqrt(a) MEAN)
        std = eta * np.sqrt((1 - b) / (1 - a)) * np.sqrt(1 - a / b) if zeta is None else np.sqrt(zeta * (1 - b))
        back = np.sqrt(1 - b - std**2) / np.sqrt(1 - a)
        slope = np.sqrt(b) * gain + back * (1 - np.sqrt(a) * gain)
        m = (np.sqrt(b) - back * np.sqrt(a)) * (MEAN - gain * np.sqrt(a) * MEAN) + slope * m
        v = slope**2 * v + std**2
    return m, v


def ddpm_recursion():
    """Ho et al. 2020, eq. 7, one step of the table at a time, no noise in the last."""
    m, v = np.zeros(4), np.ones(4)
    for t in range(50, 0, -1):
        beta, a, b = BETAS[t - 1], BAR[t], BAR[t - 1]
        gain = np.sqrt(a) * VARIANCE / (a * VARIANCE + 1 - a)
        c_0, c_t = np.sqrt(b) * beta / (1 - a), np.sqrt(1 - beta) * (1 - b) / (1 - a)
        m = c_0 * (MEAN + gain * (m - np.sqrt(a) * MEAN)) + c_t * m
        v = (c_0 * gain + c_t) ** 2 * v + beta * (1 - b) / (1 - a) * (t > 1)
    return m, v


SUBSET = [50, 41, 30, 22, 15, 9, 4, 1, 0]


@pytest.mark.parametrize(
    ("kernel", "times", "expected"),
    [
        (dj.kernels.DDPM(TABLE_SCHEDULE), range(50, -1, -1), ddpm_recursion()),
        (dj.kernels.DDPM(TABLE_SCHEDULE), SUBSET, table_recursion(SUBSET, 1.0)),
        (dj.kernels.DDIM(TABLE_SCHEDULE), SUBSET, table_recursion(SUBSET, 0.0)),
        (dj.kernels.DDIM(TABLE_SCHEDULE, eta=0.7), SUBSET, table_recursion(SUBSET, 0.7)),
        (dj.kernels.DDIM(TABLE_SCHEDULE, zeta=0.3), SUBSET, table_recursion(SUBSET, zeta=0.3)),
        (dj.kernels.Euler(TABLE_SCHEDULE), SUBSET, table_recursion(SUBSET, 0.0)),
    ],
    ids=["ddpm", "ddpm-subset", "ddim", "ddim-eta", "ddim-zeta", "euler"],
)
def test_mean_and_variance_are_those_of_the_papers_recursion(kernel, times, expected):
    mean, variance = law(kernel, dj.timetables.from_times(list(times)))
    np.testing.assert_allclose(mean, expected[0], atol=1e-11)
    np.testing.assert_allclose(variance, expected[1], rtol=1e-10)


def heun_slope(rho):
    """On u = x / alpha, x0 - MEAN = g (u - MEAN), g = VARIANCE / (VARIANCE + rho^2): from rho = r to q the exponential form
    u <- e^-h u + (1 - e^-h) ((1 - w) x0_t + w x0_s), e^-h = q / r, w = n(r) / (n(r) + n(q)), n = rho / sqrt(1 + rho^2)."""
    g = lambda r: VARIANCE / (VARIANCE + r**2)
    n = lambda r: r / np.sqrt(1 + r**2)
    u = np.ones(4)
    for r, q in pairwise(rho):
        euler = q / r * u + (1 - q / r) * g(r) * u
        w = n(r) / (n(r) + n(q))
        u = euler if q == 0 else q / r * u + (1 - q / r) * ((1 - w) * g(r) * u + w * g(q) * euler)
    return u


def two_m_slope(rho):
    """Lu et al. 2022, algorithm 2, on u: x0 - MEAN = g (u - MEAN), g = VARIANCE / (VARIANCE + rho^2)."""
    u, old, h_old = np.ones(4), None, None
    for r, q in pairwise(rho):
        d = VARIANCE / (VARIANCE + r**2) * u
        h = np.log(r / q) if q > 0 else np.inf
        D = d if old is None or q == 0 else d + h / (2 * h_old) * (d - old)
        u = q / r * u + (1 - q / r) * D
        old, h_old = d, h
    return u


@pytest.mark.parametrize(
    ("kernel", "slope"),
    [
        (dj.kernels.Heun(TABLE_SCHEDULE), heun_slope),
        (dj.kernels.DPMSolverPP2M(TABLE_SCHEDULE), two_m_slope),
    ],
    ids=["heun", "2m"],
)
def test_solvers_have_the_slope_of_their_recursion(kernel, slope):
    table = dj.timetables.from_times(SUBSET)
    rho = np.sqrt(1 / BAR[SUBSET] - 1)
    expected = slope(rho) / np.sqrt(BAR[50])  # the start is N(0, 1) in x, so 1 / alpha_T in u; alpha = 1 at the end
    mean, variance = law(kernel, table)
    np.testing.assert_allclose(variance, expected**2, rtol=1e-10)
    np.testing.assert_allclose(mean, MEAN - expected * np.sqrt(BAR[50]) * MEAN, atol=1e-11)


def errors_of(kernel, steps, schedule):
    """Relative error of the standard deviation at log-SNR 6 for exact starts at log-SNR -8, per number of steps."""
    out = []
    for n in steps:
        times = schedule.time(np.linspace(-8.0, 6.0, n + 1))
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)
        exact = alpha**2 * VARIANCE[:, None] + sigma**2
        _, variance = law(kernel, dj.timetables.from_times(times), exact[:, 0].reshape(SHAPE))
        out.append(np.abs(np.sqrt(variance / exact[:, -1]) - 1))
    return np.array(out)


VP = dj.schedules.VP()


@pytest.mark.parametrize(
    ("kernel", "order"),
    [
        (dj.kernels.DDIM(VP), 1),
        (dj.kernels.DDPM(VP), 1),
        (dj.kernels.Heun(VP), 2),
        (dj.kernels.DPMSolverPP2M(VP), 2),
    ],
    ids=["ddim", "ddpm", "heun", "2m"],
)
def test_measured_order_of_convergence_to_the_prior(kernel, order):
    """Halving the steps divides the error by 2^order (the largest of the four pixels': single ones cross zero)."""
    coarse, fine = errors_of(kernel, (128, 256), VP).max(1)
    assert abs(np.log2(coarse / fine) - order) < 0.15 * order, (coarse, fine)
    assert fine < (0.05 if order == 1 else 0.005), fine


def test_the_house_grid_reaches_the_prior():
    """DPM-Solver++ on log_snr with 100 steps, from unit noise to t = 0: mean and deviation of the prior within 1 %."""
    mean, variance = law(dj.kernels.DPMSolverPP2M(VP), dj.timetables.log_snr(VP, 100))
    assert (np.abs(mean - MEAN) < 0.01 * np.sqrt(VARIANCE)).all(), mean
    assert (np.abs(np.sqrt(variance / VARIANCE) - 1) < 0.01).all(), variance


def deviates(x, expected):
    """Largest deviation of the samples' means and variances from the law, in standard errors."""
    mean, variance = expected
    n = len(x)
    z_mean = (x.mean(0) - mean) / np.sqrt(variance / n)
    z_variance = (x.var(0) / variance - 1) / np.sqrt(2 / n)
    return max(np.abs(z_mean).max(), np.abs(z_variance).max())


def samples(make, etas, n=8192):
    """(n, 4) per eta, in one program."""
    table, denoise = dj.timetables.from_times(SUBSET), PRIOR.denoiser(TABLE_SCHEDULE)
    keys = jax.random.split(jax.random.key(11), n)
    many = jax.jit(
        lambda eta: jax.vmap(lambda k: dj.sample(k, denoise, table, SHAPE, kernel=make(eta)).x)(keys), compiler_options=QUICK
    )
    return [np.asarray(many(eta), np.float64).reshape(n, 4) for eta in etas]


def test_samples_from_keys_have_the_law():
    etas = (0.0, 0.7, 1.0)
    for eta, x in zip(etas, samples(lambda eta: dj.kernels.DDIM(TABLE_SCHEDULE, eta=eta), etas)):
        assert deviates(x, table_recursion(SUBSET, eta)) < 5, eta  # 8 normal deviates


@pytree
class MissingSqrt(dj.kernels.DDPM):
    def coefficients(self, table):
        move = super().coefficients(table)
        return replace(move, std=move.std**2)


def test_teeth_a_missing_sqrt_is_seen():
    expected = table_recursion(SUBSET, 1.0)
    (right,), (wrong,) = (samples(lambda eta, K=K: K(TABLE_SCHEDULE), [1.0]) for K in (dj.kernels.DDPM, MissingSqrt))
    assert deviates(right, expected) < 5
    assert deviates(wrong, expected) > 10
