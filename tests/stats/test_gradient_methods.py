"""DPS, MCG and RED-diff: heuristics without an exact limit, held to their formulas and to what they do promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_mmps import SCHEDULE, SHAPE, D, measure, operators, prior

import diffjax as dj


@pytest.mark.parametrize("loss", ["norm", "squared", "poisson"])
def test_dps_subtracts_the_gradient_taken_before_the_move(loss):
    with jax.enable_x64(True):
        p = prior()
        m = measure(p, operators()["function"], 0.1)
        denoise, t, s = p.denoiser(SCHEDULE), 300.0, 200.0
        x = jax.random.normal(jax.random.key(0), SHAPE, jnp.float64)
        table, kernel = dj.timetables.from_times([t, s]), dj.kernels.DDIM(SCHEDULE)
        got = dj.sample(jax.random.key(1), dj.methods.DPS(denoise, m, scale=0.7, loss=loss), table, x, kernel=kernel).x
        plain = dj.sample(jax.random.key(1), denoise, table, x, kernel=kernel).x
        x0, J = jax.jit(lambda x: (denoise(x, t).x0, jax.jacobian(lambda x: denoise(x, t).x0)(x)))(x)
        J, M = np.asarray(J).reshape(D, D), np.asarray(m.A.args[0])
        r = M @ np.asarray(x0).reshape(-1) - m.y
        weight = 1 / (2 * np.maximum((m.y + 9) / 18, 1 / 255)) if loss == "poisson" else np.ones(len(r))
        direction = J.T @ M.T @ (weight * r)
        direction = 2 * direction if loss == "squared" else direction / np.sqrt((weight * r**2).sum())
        np.testing.assert_allclose(got, plain - 0.7 * direction.reshape(SHAPE), rtol=0, atol=1e-10)


def test_dps_has_a_finite_gradient_where_the_residual_is_zero():
    denoise = prior().denoiser(SCHEDULE)
    x = jnp.ones(SHAPE)
    y = denoise(x, 10.0).x0
    m = dj.Measurement(y, dj.operators.Mask(jnp.ones(SHAPE)), value_range=(-9.0, 9.0))
    table = dj.timetables.from_times([10.0, 0.0])
    got = dj.sample(jax.random.key(0), dj.methods.DPS(denoise, m), table, x, kernel=dj.kernels.DDIM(SCHEDULE)).x
    assert np.isfinite(got).all()


@pytest.mark.parametrize("name", ["mask", "means"])
def test_mcg_reproduces_y_and_noises_it_to_the_level_of_the_state(name):
    with jax.enable_x64(True):
        p = prior()
        m = measure(p, operators()[name], 0.0)
        denoise, kernel = p.denoiser(SCHEDULE), dj.kernels.DDPM(SCHEDULE)
        table = dj.timetables.log_snr(SCHEDULE, 12)
        keys = jax.random.split(jax.random.key(0), 2000)
        walk = lambda key, table: dj.sample(key, dj.methods.MCG(denoise, m), table, SHAPE, kernel=kernel, dtype=jnp.float64).x
        x = jax.jit(walk)(keys[0], table)
        np.testing.assert_allclose(m.A.residual(x, m.y), 0, atol=1e-12)
        n = 8
        states = jax.jit(jax.vmap(lambda key: walk(key, table[:n])))(keys)
        r = np.asarray(jax.vmap(lambda x: m.A.residual(x, SCHEDULE.alpha(table.s[n - 1]) * m.y))(states))
        seen = np.abs(r).max(0) > 0
        scale = 1.0 if name == "mask" else 0.5  # noise of a mean of 4 pixels
        np.testing.assert_allclose(r[:, seen].std(), scale * SCHEDULE.sigma(table.s[n - 1]), rtol=0.03)


def test_red_diff_without_regulariser_fits_y_and_with_it_leans_to_the_prior():
    with jax.enable_x64(True):
        p = prior()
        m = measure(p, operators()["function"], 0.3)
        kernel, table = dj.kernels.Marginal(SCHEDULE), dj.timetables.uniform(SCHEDULE, 500)
        method = dj.methods.REDDiff(p.denoiser(SCHEDULE), m, guess=jnp.zeros(SHAPE), lr=0.02)
        weighted = lambda weight: dj.base.replace(method, weight=weight)
        walk = lambda m: dj.sample(jax.random.key(0), m, table, SHAPE, kernel=kernel, dtype=jnp.float64).x
        run = jax.jit(lambda weight: walk(weighted(weight)))
        residual = lambda x: float(np.sqrt((np.asarray(m.A(x) - m.y) ** 2).mean()))
        density = lambda x: float(p.log_density(x))
        fit, regular = run(0.0), run(2.0)
        assert 2 * residual(fit) < residual(regular) < 0.1 * residual(jnp.zeros(SHAPE))
        assert residual(fit) < 1e-3
        assert density(regular) > density(fit) + 1


def test_what_a_method_cannot_do_is_said_at_construction():
    denoise = prior().denoiser(SCHEDULE)
    y = np.zeros(SHAPE)
    only_forward = dj.Measurement(y, dj.operators.from_function(lambda x: x**2, SHAPE))
    function = dj.Measurement(np.zeros(6), operators()["function"])
    for method, m, what in (
        (dj.methods.MMPS, only_forward, "A.T"),
        (dj.methods.MCG, function, "A.pinv"),
        (dj.methods.PiGDM, function, "cg_prox"),
        (dj.methods.REDDiff, function, "A.pinv"),
    ):
        with pytest.raises(ValueError, match=what):
            method(denoise, m)
    with pytest.raises(ValueError, match="squared"):
        dj.methods.DPS(denoise, function, loss="square")
    with pytest.raises(ValueError, match="bayes"):
        dj.methods.PiGDM(denoise, dj.Measurement(y, dj.operators.Mask(jnp.ones(SHAPE))), weight="bayesian")
    with pytest.raises(ValueError, match="iterations 0"):
        dj.methods.MMPS(denoise, function, iterations=0)
    kernel, table = dj.kernels.DDIM(SCHEDULE), dj.timetables.log_snr(SCHEDULE, 4)
    with pytest.raises(ValueError, match="Marginal"):
        dj.sample(
            jax.random.key(0), dj.methods.REDDiff(denoise, function, guess=jnp.zeros(SHAPE)), table, SHAPE, kernel=kernel
        )
