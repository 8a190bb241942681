"""Exact priors against an independent implementation (tests/oracle, numpy, float64) and against what needs no oracle:
quadrature, finite differences, sample moments, Bayes' rule."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import diffjax as dj
from diffjax import priors
from diffjax.base import replace

PROBLEMS = [
    "g-box-01",
    "g-sr4-20",
    "m5-half-05",
    "m5-d-sr4-05",
    "m5-blur-05",
    "mcg8-m1-01",
    "mcg8-m2-05",
    "mcg80-m2-10",
    "mcg80-m4-05",
]
LEVELS = [(1.0, 0.0), (0.9, 0.43), (0.1, 0.995), (1.0, 30.0)]


def bridge(mixture, shape):
    """An oracle mixture as one of ours."""
    means = mixture.mu.reshape(-1, *shape)
    return priors.mixture(mixture.w, means, bases=mixture.Q, eigenvalues=mixture.lam, group=mixture.group)


def pruned(prior):
    """The oracle drops posterior components of weight below 1e-10."""
    return replace(prior, weights=np.where(prior.weights < 1e-10, 0.0, prior.weights))


def close(got, expected, tolerance=1e-10):
    got, expected = np.asarray(got), np.asarray(expected)
    error = np.abs(got.reshape(expected.shape) - expected).max() / max(np.abs(expected).max(), 1.0)
    assert error <= tolerance, error


@pytest.mark.parametrize("name", PROBLEMS)
def test_prior_and_posterior_equal_the_oracle(name):
    problem = oracle.load(name)
    shape = (*problem.shape, 1)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        prior = bridge(problem.prior, shape)
        posterior = prior.condition(problem.A, problem.y, problem.sigma_y)
        close(posterior.weights, problem.posterior.w)
        posterior = pruned(posterior)
        mean, covariance = posterior.moments()
        close(mean, problem.posterior.moments()[0])
        close(covariance, problem.posterior.moments()[1])
        close(posterior.means, problem.posterior.mu)

        def everything(p, x, a, s):
            return p.log_density(x, a, s), p.responsibilities(x, a, s), p.denoise(x, a, s)[0], p.score(x, a, s)

        functions = jax.jit(jax.vmap(everything, in_axes=(None, 0, None, None)))
        for ours, theirs in ((prior, problem.prior), (posterior, problem.posterior)):
            for alpha, sigma in LEVELS:
                x = alpha * theirs.sample(4, rng) + sigma * rng.standard_normal((4, problem.d))
                density, share, x0, score = functions(ours, jnp.asarray(x.reshape(4, *shape)), alpha, sigma)
                expected = theirs.log_density(x, alpha, sigma)
                close(density, expected)
                close(share, theirs.responsibilities(x, alpha, sigma))
                if sigma > 0:
                    close(x0, theirs.denoise(x, alpha, sigma))
                    close(score, theirs.score(x, alpha, sigma))
                else:
                    close(x0, x)


def small():
    """Three components over 3x2x1 images, each with its own covariance, and the matrices they were made from."""
    rng = np.random.default_rng(1)
    covariances = []
    for scale in (0.2, 0.3, 0.1):
        root = scale * rng.standard_normal((6, 6))
        covariances.append(root @ root.T + 0.01 * np.eye(6))
    means = rng.standard_normal((3, 3, 2, 1))
    return priors.mixture([2.0, 1.0, 1.0], means, covariances=np.array(covariances)), means, np.array(covariances)


def normal(x, mean, variance):
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


@pytest.mark.parametrize("sigma", [0.05, 0.7, 20.0])
def test_one_pixel_against_quadrature(sigma):
    """E[x0 | x_t], E[eps | x_t], the density and the posterior weights of one pixel by the trapezoidal rule."""
    w, mu, var, alpha, x_t = np.array([0.3, 0.6, 0.1]), np.array([-0.8, 0.2, 1.1]), np.array([0.04, 0.01, 0.25]), 0.8, 0.35
    x0 = np.linspace(-8, 9, 400_001)
    parts = w[:, None] * normal(x0, mu[:, None], var[:, None]) * normal(x_t, alpha * x0, sigma**2)
    joint = parts.sum(0)
    evidence = np.trapezoid(joint, x0)
    with jax.enable_x64(True):
        prior = priors.mixture(w, mu.reshape(3, 1, 1, 1), var.reshape(3, 1, 1, 1))
        x = jnp.full((1, 1, 1), x_t)
        clean, eps = prior.denoise(x, alpha, sigma)
        close(clean, np.trapezoid(x0 * joint, x0) / evidence)
        close(eps, np.trapezoid((x_t - alpha * x0) / sigma * joint, x0) / evidence)
        close(prior.log_density(x, alpha, sigma), np.log(evidence))
        close(prior.responsibilities(x, alpha, sigma), np.trapezoid(parts, x0, axis=1) / evidence)
        posterior = prior.condition(np.array([[alpha]]), np.array([x_t]), sigma)  # noising is a measurement
        close(posterior.weights, np.trapezoid(parts, x0, axis=1) / evidence)
        mean = np.trapezoid(x0 * joint, x0) / evidence
        close(posterior.moments()[0], mean)
        close(posterior.moments()[1], np.trapezoid((x0 - mean) ** 2 * joint, x0) / evidence)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.6, 0.8)])
def test_score_is_the_gradient_of_the_log_density(alpha, sigma):
    prior, _, _ = small()
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), prior.shape, jnp.float64)
        h, score = 1e-6, prior.score(x, alpha, sigma)
        steps = h * jnp.eye(6).reshape(6, *prior.shape)
        density = jax.jit(jax.vmap(lambda x: prior.log_density(x, alpha, sigma)))
        slope = (density(x + steps) - density(x - steps)) / (2 * h)
        close(score, slope.reshape(prior.shape), 1e-7)


def test_denoiser_is_consistent_and_differentiable():
    """x = alpha x0 + sigma eps, eps = -sigma score (Tweedie), finite gradients at t = 0 and t = T, batches by vmap."""
    prior, _, _ = small()
    schedule = dj.schedules.discrete(dj.schedules.linear_betas(100))
    denoise = prior.denoiser(schedule)

    @jax.jit
    def everything(x, t):
        p = denoise(x, t)
        return p, prior.score(x, p.alpha, p.sigma), jax.grad(lambda x, t: denoise(x, t).x0.sum(), (0, 1))(x, t)

    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(1), prior.shape, jnp.float64)
        for t in (0.0, 1.0, 37.5, 100.0):
            p, score, gradients = everything(x, t)
            close(p.alpha * p.x0 + p.sigma * p.eps, x, 1e-12)
            close(-p.sigma * score, p.eps, 1e-12)
            assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradients))
        close(denoise(x, 0.0).x0, x, 1e-14)
        batch = jax.random.normal(jax.random.key(2), (3, *prior.shape), jnp.float64)
        many = jax.jit(jax.vmap(denoise))(batch, jnp.array([1.0, 50.0, 99.0]))
        close(many.x0[1], denoise(batch[1], 50.0).x0, 1e-13)


def test_float32_answers_in_float32():
    prior, _, _ = small()
    with jax.numpy_dtype_promotion("strict"):
        x = jax.random.normal(jax.random.key(1), prior.shape, jnp.float32)
        x0, eps = prior.denoise(x, 0.8, 0.6)
        assert x0.dtype == eps.dtype == prior.score(x, 0.8, 0.6).dtype == prior.sample(jax.random.key(0)).dtype == jnp.float32
        assert prior.log_density(x).dtype == prior.responsibilities(x).dtype == jnp.float32
    with jax.enable_x64(True):
        close(x0, prior.denoise(jnp.asarray(np.asarray(x), jnp.float64), 0.8, 0.6)[0], 1e-5)


def test_the_same_prior_in_three_ways():
    variances = np.random.default_rng(3).uniform(0.1, 1, (2, 2, 2, 1))
    means = np.random.default_rng(4).standard_normal((2, 2, 2, 1))
    flat = variances.reshape(2, 4)
    swap = np.eye(4)[::-1]  # another eigenbasis of the same covariances
    ways = [
        priors.mixture([0.3, 0.7], means, variances),
        priors.mixture([3, 7], means, covariances=np.array([np.diag(v) for v in flat])),
        priors.mixture([3, 7], means, bases=swap, eigenvalues=flat[:, ::-1]),
        priors.mixture([3, 7], means, bases=np.stack([swap, np.eye(4)]), eigenvalues=np.stack([flat[0, ::-1], flat[1]])),
    ]
    flat_means = means.reshape(2, 4)
    mean = flat_means.T @ [0.3, 0.7]
    off = flat_means - mean
    covariance = (
        0.3 * np.diag(flat[0]) + 0.7 * np.diag(flat[1]) + 0.3 * np.outer(off[0], off[0]) + 0.7 * np.outer(off[1], off[1])
    )
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(5).standard_normal((2, 2, 1)))
        for prior in ways:
            close(prior.means, means, 1e-12)
            close(prior.moments()[0], mean, 1e-12)
            close(prior.moments()[1], covariance, 1e-12)
            close(jax.jit(prior.denoise)(x, 0.7, 0.5)[0], ways[0].denoise(x, 0.7, 0.5)[0], 1e-12)
            posterior = prior.condition(np.ones((1, 4)), np.array([0.4]), 0.3)
            close(posterior.moments()[1], ways[0].condition(np.ones((1, 4)), np.array([0.4]), 0.3).moments()[1], 1e-12)
    one = priors.gaussian(means[0], covariance=np.diag(flat[0]))
    close(one.moments()[1], np.diag(flat[0]), 1e-12)
    assert priors.gaussian(means[0], 0.25).moments()[1][0, 0] == 0.25


def test_posterior_obeys_bayes_rule():
    """log p(x | y) - log p(x) - log p(y | x) is the same number, -log p(y), for every x."""
    prior, _, _ = small()
    rng = np.random.default_rng(6)
    A, y, noise_std = rng.standard_normal((4, 6)), rng.standard_normal(4), 0.4
    posterior = prior.condition(A, y, noise_std)
    with jax.enable_x64(True):
        xs = jnp.asarray(rng.standard_normal((8, *prior.shape)))
        like = -0.5 * ((xs.reshape(8, 6) @ A.T - y) ** 2).sum(1) / noise_std**2
        constant = jax.vmap(posterior.log_density)(xs) - jax.vmap(prior.log_density)(xs) - like
        assert np.ptp(constant) < 1e-10 * np.abs(constant).max()


def test_samples_of_prior_and_posterior_have_its_moments():
    """40,000 draws: 5 standard errors in whitened coordinates, and for each second moment (fourth moments from the draws)."""
    prior, means, covariances = small()
    weights = np.array([0.5, 0.25, 0.25])
    flat = means.reshape(3, 6)
    m = weights @ flat
    S = sum(w * (C + np.outer(f - m, f - m)) for w, C, f in zip(weights, covariances, flat))
    close(prior.moments()[1], S, 1e-12)
    posterior = prior.condition(dj.operators.Mask(np.array([[1.0], [0.0], [0.0]])[:, :, None]), np.full(prior.shape, 0.1), 0.2)
    n = 40_000
    for p in (prior, posterior):
        mean, covariance = p.moments()
        x = np.asarray(jax.jit(jax.vmap(p.sample))(jax.random.split(jax.random.key(7), n)), np.float64).reshape(n, 6)
        z = (x - mean.reshape(6)) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
        assert np.abs(z.mean(0)).max() < 5 / np.sqrt(n)
        second = z[:, :, None] * z[:, None, :]
        assert (np.abs(second.mean(0) - np.eye(6)) < 5 * second.std(0) / np.sqrt(n)).all()


def test_operators_become_matrices():
    prior, _, _ = small()
    mask = np.array([1.0, 0, 1, 1, 0, 1]).reshape(3, 2, 1)
    y = np.random.default_rng(8).standard_normal((3, 2, 1))
    by_operator = prior.condition(dj.operators.Mask(mask), y, 0.1)
    keep = mask.reshape(-1) == 1
    by_rows = prior.condition(np.eye(6)[keep], y.reshape(-1)[keep], 0.1)  # hidden entries of y are not looked at
    close(by_operator.moments()[0], by_rows.moments()[0], 1e-12)
    close(by_operator.moments()[1], by_rows.moments()[1], 1e-12)
    close(by_operator.weights, by_rows.weights, 1e-12)


def test_noise_free_measurements():
    """noise_std = 0 pins what y determines, is the limit of small noise, and its denoiser keeps the pinned pixels always."""
    prior, _, _ = small()
    mask = np.array([1.0, 0, 1, 1, 0, 1]).reshape(3, 2, 1)
    y = mask * np.asarray(prior.sample(jax.random.key(3)))
    exact, near = (prior.condition(dj.operators.Mask(mask), y, s) for s in (0.0, 1e-5))
    assert (exact.eigenvalues == 0).sum(1).tolist() == [4, 4, 4]
    close(exact.moments()[0], near.moments()[0], 1e-7)
    close(exact.moments()[1], near.moments()[1], 1e-7)
    close(exact.weights, near.weights, 1e-7)
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(4), prior.shape, jnp.float64)
        for sigma in (0.0, 0.5):
            x0, _ = exact.denoise(mask * y + (1 - mask) * x if sigma == 0 else x, 1.0, sigma)
            close(mask * x0, mask * y, 1e-10)


def test_conditioning_takes_traced_values():
    """Over a batch of measurements with the factors on the host, and with everything traced."""
    prior, _, _ = small()
    A = np.random.default_rng(9).standard_normal((2, 6))
    ys = np.random.default_rng(10).standard_normal((3, 2))
    with jax.enable_x64(True):
        means = jax.jit(jax.vmap(lambda y: prior.condition(A, y, 0.3).moments()[0]))(jnp.asarray(ys))
        expected = [prior.condition(A, y, 0.3).moments()[0] for y in ys]
        close(means, np.array(expected), 1e-12)
        traced = jax.jit(lambda p, A, y, s: p.condition(A, y, s).moments())(prior, jnp.asarray(A), jnp.asarray(ys[0]), 0.3)
        close(traced[0], expected[0], 1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: priors.gaussian(np.zeros(4)), "exactly one of"),
        (lambda: priors.gaussian(np.zeros(4), -1.0), "a variance is -1"),
        (lambda: priors.gaussian(np.zeros(4), np.ones(3)), "do not fit"),
        (lambda: priors.gaussian(np.zeros(2), covariance=np.array([[1.0, 2], [2, 1]])), "eigenvalue -1"),
        (lambda: priors.gaussian(np.zeros(2), covariance=np.array([[1.0, 2], [0, 1]])), "not symmetric"),
        (lambda: priors.gaussian(np.zeros(2), basis=np.ones((2, 2)), eigenvalues=np.ones(2)), "not orthonormal"),
        (lambda: priors.mixture([1.0, -1.0], np.zeros((2, 4)), 1.0), "do not normalise"),
        (lambda: priors.mixture([1.0], np.zeros((2, 4)), 1.0), "do not fit"),
        (lambda: priors.mixture([1, 1], np.zeros((2, 2)), bases=np.eye(2), eigenvalues=1.0, group=[0]), "group"),
        (lambda: small()[0].denoise(jnp.zeros((2, 3, 2, 1)), 1.0, 1.0), "give one image"),
        (lambda: small()[0].condition(np.eye(5), np.zeros(5), 0.1), "does not take 6 pixels"),
        (lambda: small()[0].condition(np.eye(6), np.zeros(6), -0.1), "noise_std -0.1"),
        (lambda: small()[0].condition("mask", np.zeros(6), 0.1), "give a matrix"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
