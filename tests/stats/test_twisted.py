"""Twisted SMC: what MMPS gets wrong, how often each mode is chosen, comes right as particles are added."""

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj

SCHEDULE = dj.schedules.EDM(10.0)
SHAPE = (2, 1, 1)


def problem():
    """Two modes; what is measured tells them apart, but lies between them."""
    means = np.array([[-1.0, -0.4], [1.0, 0.4]]).reshape(2, *SHAPE)
    prior = dj.priors.mixture([0.5, 0.5], means, 0.02 * np.ones((2, *SHAPE)))
    m = dj.Measurement(jnp.full((1, 1), 0.1), dj.operators.from_function(lambda x: x[1], SHAPE), 0.1, value_range=(-9.0, 9.0))
    return prior, m, prior.condition(np.array([[0.0, 1.0]]), np.array([0.1]), 0.1)


def error(particles, n=2000):
    """(weight of the second mode among n samples, exact) and the samples."""
    prior, m, posterior = problem()
    table = dj.timetables.from_times(np.append(np.geomspace(10, 0.05, 25), 0.0))
    method = dj.methods.TwistedSMC(prior.denoiser(SCHEDULE), m, particles=particles, iterations=1)
    one = lambda key: dj.sample(key, method, table, SHAPE, kernel=dj.kernels.DDPM(SCHEDULE)).x
    x = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), n)))[:, :, 0, 0]
    return (x[:, 0] > 0).mean(), posterior.weights[1], x, posterior


def test_weights_of_modes_approach_the_exact_ones():
    one, exact, _, _ = error(1)
    many, _, x, posterior = error(32)
    noise = np.sqrt(exact * (1 - exact) / len(x))
    assert abs(one - exact) > 6 * noise  # MMPS alone is off: the test can fail
    assert abs(many - exact) < 3 * noise
    np.testing.assert_allclose(x.mean(0), posterior.moments()[0].reshape(-1), atol=0.08)


def test_a_gaussian_prior_leaves_all_particles_alike():
    """Its twist is exact, so what moves the weights is the coarseness of the walk alone."""
    prior = dj.priors.gaussian(np.zeros(SHAPE), variance=0.3 * np.ones(SHAPE))
    m = problem()[1]

    def effective(rows):
        table = dj.timetables.from_times(np.append(np.geomspace(10, 0.01, rows), 0.0))
        method = dj.methods.TwistedSMC(prior.denoiser(SCHEDULE), m, particles=16, iterations=1, threshold=0.0)
        one = lambda key: dj.sample(key, method, table, SHAPE, kernel=dj.kernels.DDPM(SCHEDULE)).info.rows["effective"]
        return float(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 100))[:, -1].mean())

    coarse, fine = effective(10), effective(160)
    assert fine > 14 > coarse


def test_two_stage_counts_and_restores():
    prior = dj.priors.gaussian(np.zeros(SHAPE), variance=0.3 * np.ones(SHAPE))
    m = problem()[1]
    posterior = prior.condition(np.array([[0.0, 1.0]]), np.array([0.1]), 0.1)
    run = lambda key: dj.methods.twisted.two_stage(key, prior.denoiser(SCHEDULE), m, SHAPE, particles=4, rows=(8, 6))
    result = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), 500))
    assert result.info.final["particles"].rows["effective"].shape == (500, 8)
    assert len(result.info.rows["finite"][0]) == 6
    mean, covariance = posterior.moments()
    z = (np.asarray(result.x)[:, 1, 0, 0] - mean.reshape(-1)[1]) / np.sqrt(covariance[1, 1])
    assert abs(z.mean()) < 0.2
    assert 0.8 < z.std() < 1.2
