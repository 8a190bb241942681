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
POOL = np.kron(np.kron(np.eye(2), np.ones((1, 2)) / 2), np.kron(np.eye(2), np.ones((1, 2)) / 2))  # 2 x 2 block means, (4, 16)
Y = np.random.default_rng(0).normal(0, 0.5, 4)


def law(method, kernel, table):
    """(mean, covariance) of the result, exactly."""
    with jax.enable_x64(True):
        draws = lambda key: dj.draws(key, method, table, SHAPE, jnp.float64, kernel=kernel)
        zero = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(draws, jax.random.key(0)))
        run = lambda noise: dj.sample(None, method, table, SHAPE, kernel=kernel, recorded=noise, dtype=jnp.float64).x.reshape(
            D
        )

        def mean_and_jacobian(z):
            mean, pull = jax.vjp(run, z)
            return mean, jax.vmap(pull)(jnp.eye(D))[0]

        mean, jacobian = jax.jit(mean_and_jacobian, compiler_options=QUICK)(zero)
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


def diffpir_law(
    table, lam, noise_std, zeta, data="prox", splitting="hqs", gamma=0.1, mutant=None, mean=MEAN, covariance=COVARIANCE
):
    """(mean, covariance) by the paper: x, the dual w of ADMM and its minimiser v are affine functions of all draws, kept as
    matrices over (1, x_T, row 1's z, ...)."""
    alphas, sigmas = (f(np.append(table.t, table.s[-1])) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
    fresh = D * len(table) if zeta > 0 else 0
    x, one = np.zeros((D, 1 + D + fresh)), np.zeros(1 + D + fresh)
    one[0], x[:, 1 : 1 + D] = 1, np.eye(D)
    w = np.zeros_like(x)
    for k, (a, sigma, a_s, sigma_s) in enumerate(zip(alphas, sigmas, alphas[1:], sigmas[1:])):
        gain = a * covariance @ np.linalg.inv(a**2 * covariance + sigma**2 * np.eye(D))
        x0 = gain @ x + np.outer(mean - a * gain @ mean, one)
        rho = lam * noise_std**2 / (sigma**2 if mutant == "no alpha" else sigma**2 / a**2)
        rho = rho / 4 if mutant == "mixed units" else rho
        z = x0 + w / rho
        if data == "prox":
            v = np.linalg.solve(POOL.T @ POOL + rho * np.eye(D), POOL.T @ np.outer(Y, one) + rho * z)
        elif data == "gradient":
            v = z - POOL.T @ (POOL @ z - np.outer(Y, one)) / (rho + 1)
        else:
            v = z - gamma * 4 * POOL.T @ (POOL @ z - np.outer(Y, one)) / (1 + rho)
        w = w + rho * (x0 - v) if splitting == "admm" else w
        moved = v - w / rho
        share = zeta**2 if mutant == "zeta is a deviation" else zeta
        x = a_s * moved + sigma_s * np.sqrt(1 - share) * (x - a * moved) / sigma
        if zeta > 0:
            x[:, 1 + D * (k + 1) : 1 + D * (k + 2)] += sigma_s * np.sqrt(share) * np.eye(D)
    x = v if splitting == "admm" else x
    return x[:, 0], x[:, 1:] @ x[:, 1:].T


def times(n):
    return dj.timetables.diffpir(SCHEDULE, n)


@functools.cache
def library(data="prox", splitting="hqs"):
    method = dj.methods.DiffPIR(prior(), measured(0.1), lam=1.75, prior_std=np.inf, data=data, splitting=splitting)
    return law(method, dj.kernels.DDIM(SCHEDULE, zeta=0.3), times(20))


@pytest.mark.parametrize(
    "data, splitting", [("prox", "hqs"), ("prox", "admm"), ("gradient", "hqs"), ("back_projection", "hqs")]
)
def test_the_law_is_the_paper_s(data, splitting):
    expected = diffpir_law(times(20), 1.75, 0.1, 0.3, data, splitting)
    for got, want in zip(library(data, splitting), expected):
        np.testing.assert_allclose(got, want, atol=1e-9 * np.abs(want).max())


@pytest.mark.parametrize("mutant", ["no alpha", "mixed units", "zeta is a deviation"])
def test_teeth_the_law_sees_mutants(mutant):
    mean, covariance = diffpir_law(times(20), 1.75, 0.1, 0.3, mutant=mutant)
    error = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(library(), (mean, covariance))]
    assert max(error) > 1e-2


@pytest.mark.parametrize("t", [1.0, 300.0, 999.0])
def test_prior_std_makes_the_data_step_exact(t):
    """Where pixels are independent, lam = 1 and their prior_std give E[x0 | x_t, y] at every level."""
    std, noise_std = 0.7, 0.1
    method = dj.methods.DiffPIR(prior(covariance=std**2 * np.eye(D)), measured(noise_std), lam=1.0, prior_std=std)
    x = np.random.default_rng(1).normal(size=D)
    with jax.enable_x64(True):
        x0 = method.predict(jnp.asarray(x.reshape(SHAPE)), t).x0
    a, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    mean, covariance = posterior(a * np.eye(D), x, sigma, covariance=std**2 * np.eye(D))
    exact, _ = posterior(POOL, Y, noise_std, mean, covariance)
    np.testing.assert_allclose(np.asarray(x0).reshape(D), exact, atol=1e-6)


# --- against the posterior ----------------------------------------------------------------------------------------------


def distance(found, exact):
    """(error of the mean in posterior deviations, rms over directions; geometric mean ratio of variances)"""
    e, V = np.linalg.eigh(exact[1])
    z = (found[0] - exact[0]) @ V / np.sqrt(e)
    ratio = np.einsum("ij,jk,ki->i", V.T, found[1], V) / e
    return np.sqrt((z**2).mean()), np.exp(np.log(ratio).mean())


def test_near_exact_for_a_flat_prior():
    """rho is Bayes' (lam = 1) where the prior is much wider than the data's noise and its pixels are independent: without
    fresh noise and in many steps the error of means and variances falls with noise_std."""
    table, wide = dj.timetables.log_snr(SCHEDULE, 1000), np.eye(D)
    errors = []
    for noise_std in (0.5, 0.15, 0.05):
        found = diffpir_law(table, 1.0, noise_std, 0.0, mean=np.zeros(D), covariance=wide)
        mean, ratio = distance(found, posterior(POOL, Y, noise_std, np.zeros(D), wide))
        errors.append((mean, abs(np.log(ratio))))
    errors = np.array(errors)
    assert (errors[1:] < 0.6 * errors[:-1]).all() and (errors[-1] < [0.002, 0.02]).all(), errors


def test_the_stated_bias():
    """On a correlated prior the spread is zeta's and lam's, and more steps do not mend it: fresh noise narrows it below the
    posterior's, a larger lam widens it."""
    exact = posterior(POOL, Y, 0.1)
    ratio = lambda zeta, lam, n: distance(diffpir_law(times(n), lam, 0.1, zeta), exact)[1]
    by_zeta = [ratio(zeta, 1.0, 100) for zeta in (0.0, 0.3, 1.0)]
    assert by_zeta[0] > by_zeta[1] + 0.05 > by_zeta[2] + 0.3, by_zeta
    assert ratio(1.0, 1.0, 300) < 0.6
    by_lam = [ratio(0.3, lam, 100) for lam in (0.25, 1.0, 3.5)]
    assert by_lam[0] + 0.1 < by_lam[1] < by_lam[2] - 0.1, by_lam


# --- replacement --------------------------------------------------------------------------------------------------------


def test_replacement_is_exact_where_measured_and_hidden_parts_are_independent():
    """Independent pixels, no noise: block means equal y's, and the rest has the prior's law, as steps grow."""
    mean, variance = np.zeros(D), 0.3
    method = dj.methods.Replacement(prior(mean, variance * np.eye(D)), measured(0.0))
    errors = []
    for rows in (10, 40):
        found, covariance = law(method, dj.kernels.DDIM(SCHEDULE), dj.timetables.log_snr(SCHEDULE, rows))
        np.testing.assert_allclose(POOL @ found, Y, atol=1e-9)
        hidden = np.eye(D) - 4 * POOL.T @ POOL
        errors.append(np.abs(covariance - variance * hidden).max() / variance)
    assert errors[1] < 0.5 * errors[0] and errors[1] < 0.1, errors


def test_replacement_on_a_correlated_prior_is_biased_as_stated():
    """The hidden part agrees with the measurement less than the posterior does."""
    method = dj.methods.Replacement(prior(), measured(0.0))
    found = law(method, dj.kernels.DDIM(SCHEDULE), dj.timetables.log_snr(SCHEDULE, 40))
    exact = posterior(POOL, Y, 0.0)
    hidden = np.linalg.svd(POOL)[2][4:]
    pulled = [np.linalg.norm(hidden @ (mean - MEAN)) for mean in (found[0], exact[0])]  # by the measurement
    assert 0 < pulled[0] < 0.8 * pulled[1], pulled


def test_noise_of_y_is_taken_off_the_replacement():
    """At a level noisier than y, y_t has the law of A x_t given y: mean alpha y, covariance sigma^2 A A^T less y's."""
    method = dj.methods.Replacement(prior(), measured(0.1))
    alpha, sigma = 0.6, 0.8
    with jax.enable_x64(True):
        f = lambda z: method.noisy_measurement(z, alpha, sigma, z).reshape(4)
        z = jnp.zeros(SHAPE)
        np.testing.assert_allclose(f(z), alpha * Y, atol=1e-12)
        j = np.asarray(jax.jacrev(f)(z)).reshape(4, D)
    np.testing.assert_allclose(j @ j.T, (sigma**2 / 4 - (alpha * 0.1) ** 2) * np.eye(4), atol=1e-12)
