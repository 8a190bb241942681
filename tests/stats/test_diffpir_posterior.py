"""DiffPIR and replacement on Gaussian priors: the exact law of the result, and what is biased about it.

With a Gaussian prior and a linear operator every step is affine in the draws, so the law of the result is Gaussian: its mean
is the result at zero noise, and its covariance J J^T, J the derivative by all draws. Nothing is sampled. The laws expected
are recursions of mean and covariance written here from the papers' formulas.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj

QUICK = {"xla_backend_optimization_level": 1}  # these programs take longer to compile than to run
SHAPE, D = (4, 4, 1), 16
PLACE = np.stack(np.divmod(np.arange(D), 4), 1)
COVARIANCE = 0.3 * np.exp(-0.25 * ((PLACE[:, None] - PLACE[None]) ** 2).sum(-1)) + 0.05 * np.eye(D)
MEAN = 0.3 * np.cos(np.arange(D))
SCHEDULE = dj.schedules.discrete(dj.schedules.linear_betas(1000))
BAR = np.append(1.0, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
POOL = np.kron(np.kron(np.eye(2), np.ones((1, 2)) / 2), np.kron(np.eye(2), np.ones((1, 2)) / 2))  # 2 x 2 block means, (4, 16)
Y = np.random.default_rng(0).normal(0, 0.5, 4)


def law(method, kernel, table):
    """(mean, covariance) of the result, exactly."""
    with jax.enable_x64(True):
        noise = dj.draws(jax.random.key(0), method, kernel, table, SHAPE, jnp.float64)
        zero = jax.tree.map(jnp.zeros_like, noise)
        run = lambda noise: dj.sample(None, method, kernel, table, SHAPE, recorded=noise, dtype=jnp.float64).x.reshape(D)
        mean, jacobian = jax.jit(lambda z: (run(z), jax.jacrev(run)(z)), compiler_options=QUICK)(zero)
        parts = [np.asarray(j).reshape(D, -1) for j in jax.tree.leaves(jacobian)]
        return np.asarray(mean), sum(j @ j.T for j in parts)


def prior(mean=MEAN, covariance=COVARIANCE):
    return dj.priors.gaussian(np.reshape(mean, SHAPE), covariance=covariance).denoiser(SCHEDULE)


def measured(noise_std, y=Y):
    return dj.Measurement(y.reshape(2, 2, 1), dj.operators.Downsample(2), noise_std, value_range=(-4.0, 4.0))


def posterior(A, y, noise_std, mean=MEAN, covariance=COVARIANCE):
    gain = covariance @ A.T @ np.linalg.inv(A @ covariance @ A.T + noise_std**2 * np.eye(len(A)))
    return mean + gain @ (y - A @ mean), covariance - gain @ A @ covariance


# --- the law of the walk ------------------------------------------------------------------------------------------------


def diffpir_law(times, lam, noise_std, zeta, data="prox", splitting="hqs", gamma=0.1, mutant=None):
    """By the paper: x, and for ADMM the dual w and the minimiser v, as affine functions of (1, all draws)."""
    one, rows = D * len(times), len(times) - 1
    x = np.zeros((D, 1 + one))
    x[:, 1 : 1 + D] = np.eye(D)  # x_T
    constant = np.zeros(1 + one)
    constant[0] = 1
    w, v = np.zeros_like(x), None
    for k, (t, s) in enumerate(zip(times[:-1], times[1:])):
        a, sigma, a_s, sigma_s = np.sqrt(BAR[t]), np.sqrt(1 - BAR[t]), np.sqrt(BAR[s]), np.sqrt(1 - BAR[s])
        gain = a * COVARIANCE @ np.linalg.inv(a**2 * COVARIANCE + sigma**2 * np.eye(D))
        x0 = gain @ x + np.outer(MEAN - a * gain @ MEAN, constant)
        rho = lam * noise_std**2 / (sigma**2 if mutant == "no alpha" else sigma**2 / a**2)
        rho = rho / 4 if mutant == "mixed units" else rho
        z = x0 + w / rho if splitting == "admm" else x0
        residual = POOL @ z - np.outer(Y, constant)
        if data == "prox":
            v = np.linalg.solve(POOL.T @ POOL + rho * np.eye(D), POOL.T @ np.outer(Y, constant) + rho * z)
        elif data == "gradient":
            v = z - POOL.T @ residual / (rho + 1)
        else:
            v = z - gamma * 4 * POOL.T @ residual / (1 + rho)
        moved = v
        if splitting == "admm":
            w = w + rho * (x0 - v)
            moved = v - w / rho
        eps = (x - a * moved) / sigma
        fresh = np.zeros_like(x)
        fresh[:, 1 + D * (k + 1) : 1 + D * (k + 2)] = np.eye(D)
        share = zeta**2 if mutant == "zeta is a deviation" else zeta
        x = a_s * moved + sigma_s * (np.sqrt(1 - share) * eps + np.sqrt(share) * fresh)
    assert rows == k + 1
    x = v if splitting == "admm" else x
    return x[:, 0], x[:, 1:] @ x[:, 1:].T


def times(n):
    return dj.timetables.diffpir(SCHEDULE, n)


def as_list(table):
    return np.append(table.t, 0).astype(int)


@functools.cache
def library(data="prox", splitting="hqs"):
    method = dj.methods.DiffPIR(prior(), measured(0.1), lam=1.75, data=data, splitting=splitting)
    return law(method, dj.kernels.DDIM(SCHEDULE, zeta=0.3), times(20))


@pytest.mark.parametrize(
    "data, splitting", [("prox", "hqs"), ("prox", "admm"), ("gradient", "hqs"), ("back_projection", "hqs")]
)
def test_the_law_is_the_paper_s(data, splitting):
    expected = diffpir_law(as_list(times(20)), 1.75, 0.1, 0.3, data, splitting)
    for got, want in zip(library(data, splitting), expected):
        np.testing.assert_allclose(got, want, atol=1e-9 * np.abs(want).max())


@pytest.mark.parametrize("mutant", ["no alpha", "mixed units", "zeta is a deviation"])
def test_teeth_the_law_sees_mutants(mutant):
    mean, covariance = diffpir_law(as_list(times(20)), 1.75, 0.1, 0.3, mutant=mutant)
    error = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(library(), (mean, covariance))]
    assert max(error) > 1e-2


# --- against the posterior ----------------------------------------------------------------------------------------------


def distance(found, exact):
    """(error of the mean in posterior deviations, rms over directions; geometric mean ratio of variances)"""
    e, V = np.linalg.eigh(exact[1])
    z = (found[0] - exact[0]) @ V / np.sqrt(e)
    ratio = np.einsum("ij,jk,ki->i", V.T, found[1], V) / e
    return np.sqrt((z**2).mean()), np.exp(np.log(ratio).mean())


def test_exact_for_a_flat_prior():
    """rho is Bayes' (lam = 1) where the prior is much wider than the data's noise and its pixels are independent: then, without
    fresh noise, the error of mean and variances vanishes with noise_std^2, as steps grow."""
    errors = []
    for noise_std in (0.5, 0.15, 0.05):
        wide = np.eye(D)
        method = dj.methods.DiffPIR(prior(np.zeros(D), wide), measured(noise_std), lam=1.0)
        found = law(method, dj.kernels.DDIM(SCHEDULE), dj.timetables.log_snr(SCHEDULE, 400))
        mean, ratio = distance(found, posterior(POOL, Y, noise_std, np.zeros(D), wide))
        errors.append((mean, abs(np.log(ratio))))
    errors = np.array(errors)
    print(errors)
    assert (errors[1:] < 0.35 * errors[:-1]).all() and (errors[-1] < 0.02).all()


def test_the_stated_bias():
    """On a correlated prior more steps do not help, and the spread is zeta's."""
    exact = posterior(POOL, Y, 0.1)
    found = {}
    for zeta in (0.0, 0.3, 1.0):
        method = dj.methods.DiffPIR(prior(), measured(0.1))
        for n in (20, 100):
            found[zeta, n] = distance(law(method, dj.kernels.DDIM(SCHEDULE, zeta=zeta), times(n)), exact)
    print(found)
