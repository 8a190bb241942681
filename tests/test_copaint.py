"""CoPaint beyond the recorded runs: its search, its knobs, and the optimisation of the start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import MASK, SCHEDULE, SHAPE, arguments, gaussian

import diffjax as dj

TABLE = dj.timetables.log_snr(SCHEDULE, 6)
KERNEL = dj.kernels.DDIM(SCHEDULE)


def method(network=gaussian, **kwargs):
    y = kwargs.pop("y", arguments()[1])
    denoise = dj.denoisers.from_x0(network, arguments()[0], SCHEDULE)
    return dj.methods.CoPaint(denoise, dj.Measurement(y, dj.operators.Mask(MASK)), **kwargs)


@functools.cache
def compiled(**static):
    return jax.jit(lambda y, lr: dj.sample(jax.random.key(0), method(y=y, lr=lr, **static), KERNEL, TABLE, SHAPE))


def run(y=None, lr=0.02, **static):
    return compiled(**static)(arguments()[1] if y is None else y, lr)


def test_a_step_never_raises_the_objective_and_the_cap_takes_none():
    """Far too large rates. After 40 reductions 1e6 is still 133: at low noise, where x0 follows x one to one, such a step ends
    at the bounds, farther from y = 0 than where it began, so the cap is reached and x must stay; at high noise x0 hardly
    moves and steps of this length lower the objective."""
    x_t = 0.5 * jax.random.normal(jax.random.key(1), SHAPE)
    m = method(lr=1e6, smart=False, reg=0.0, y=jnp.zeros(SHAPE))
    rows = jax.tree.map(jnp.float32, dj.replace(TABLE.rows(), m=m.plan(KERNEL, TABLE)))

    def one(row):
        x, _, reductions = m.optimise(x_t, row)
        return x, reductions, m._objective(x_t, x_t, row)[0], m._objective(x, x_t, row)[0]

    x, reductions, before, after = jax.tree.map(np.asarray, jax.jit(lambda: jax.lax.map(one, rows))())
    stuck = (reductions > m.max_reductions).all(1)
    assert 0 < stuck.sum() < len(TABLE) and (reductions.sum(1) > 0).all()
    np.testing.assert_array_equal(x[stuck], np.broadcast_to(x_t, x[stuck].shape))
    assert (after <= before * (1 + 1e-6)).all() and (after[~stuck] < 0.9 * before[~stuck]).all()


def test_the_search_rescues_rates_that_alone_diverge():
    known = MASK > 0
    distance = lambda **kwargs: np.abs(run(exact=False, **kwargs).x - arguments()[1])[known].max()
    assert distance(lr=3.0) < 0.1 < 0.2 < min(distance(lr=1e-9), distance(lr=3.0, adaptive=False))


def test_a_network_that_breaks_ends_the_search_instead_of_hanging():
    def broken(params, x, i):
        x0, mix = gaussian(params, x, i)
        return jnp.where(i < 50, jnp.nan, x0), mix

    result = run(network=broken, max_reductions=5)
    assert not result.info.finite[-1] and int(result.info.rows["reductions"].max()) <= 6


def test_known_pixels_are_exact_unless_asked_otherwise():
    y = np.clip(arguments()[1], -1, 1)
    np.testing.assert_array_equal(np.asarray(run().x)[MASK > 0], y[MASK > 0])
    assert np.abs(np.asarray(run(exact=False).x) - y)[MASK > 0].max() > 1e-4


def test_hidden_pixels_of_y_are_never_looked_at():
    y = arguments()[1]
    junk = jnp.where(MASK > 0, y, 0.7)
    np.testing.assert_array_equal(run().x, run(y=junk).x)


def test_candidates_keep_the_start_with_the_lowest_loss():
    key, candidates = jax.random.key(3), 4
    m = method(candidates=candidates)
    chosen = jax.jit(lambda key: dj.sample(key, m, KERNEL, TABLE, SHAPE))(key)
    noise = dj.draws(key, m, KERNEL, TABLE, SHAPE)
    assert noise.start.shape == (candidates, *SHAPE)
    one = jax.jit(jax.vmap(lambda x: dj.sample(key, method(), KERNEL, TABLE, x)))(noise.start)
    losses = np.asarray(one.info.rows["loss"])[:, 0]  # after optimising at the first level
    np.testing.assert_allclose(chosen.x, one.x[np.argmin(losses)], atol=1e-5)
    assert np.abs(chosen.x - one.x[np.argmax(losses)]).max() > 1e-2


@pytest.mark.parametrize(
    "name, rows, calls", [("copaint-fast", 99, 297), ("copaint", 249, 1245), ("copaint-tt", 489 + 24, 2565)]
)
def test_published_tables_have_the_papers_calls(name, rows, calls):
    vp = dj.schedules.discrete(dj.schedules.linear_betas(1000))
    settings, table = dj.methods.copaint.published(name, vp)
    iterations = settings.get("iterations", 2)
    assert len(table) == rows and rows * (1 + 2 * iterations) == calls  # with one trial per gradient step


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: method(iterations=0), "iterations 0"),
        (lambda: dj.methods.copaint.published("copaint-t", SCHEDULE), "did you mean"),
        (lambda: dj.sample(jax.random.key(0), method(), dj.kernels.DDPM(SCHEDULE), TABLE, SHAPE), "use kernels.DDIM"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_optimise_start_finds_the_exact_minimum():
    """Gaussian prior: G is affine, x0 = a + B x_T, so the minimum solves a linear system."""
    with jax.enable_x64(True):
        params, y = arguments(jnp.float64)
        denoise = dj.denoisers.from_x0(gaussian, params, SCHEDULE)
        measurement = dj.Measurement(y, dj.operators.Mask(MASK.astype(np.float64)))
        table, reg, n = dj.timetables.log_snr(SCHEDULE, 4), 0.05, int(np.prod(SHAPE))
        found = jax.jit(
            lambda: dj.methods.optimise_start(
                jax.random.key(0), denoise, measurement, table, jnp.zeros(SHAPE), reg=reg, iterations=600, lr=0.02
            )
        )()
        walk = lambda x: dj.sample(jax.random.key(0), denoise, KERNEL, table, x.reshape(SHAPE)).x.ravel()
        a, B = walk(jnp.zeros(n)), jax.jacfwd(walk)(jnp.zeros(n))
        m = MASK.ravel().astype(np.float64)
        exact = np.linalg.solve(B.T @ np.diag(m) @ B + reg * np.eye(n), B.T @ (m * (y.ravel() - a)))
        np.testing.assert_allclose(found.start.ravel(), exact, atol=1e-3)
        assert found.loss[-1] < found.loss[0]
