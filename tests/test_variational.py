"""The variational bound: its decoder, which kernels and tables it takes, its estimate from a part of the rows. Recorded runs
are in ``golden/test_ddpm.py``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gd_closed_form import quick_jit

import diffjax as dj
from diffjax.likelihood import variational

SCHEDULE = dj.schedules.discrete(dj.schedules.linear_betas(40))
X_0 = jnp.asarray(np.arange(12).reshape(2, 2, 3) * 20 / 127.5 - 1, jnp.float32)
DENOISE = dj.denoisers.from_x0(lambda x, i: 0.5 * x, None, SCHEDULE)
TABLE = dj.timetables.respaced(SCHEDULE, 4)
KERNEL = dj.kernels.DDPM()


def test_the_denoisers_schedule_is_enough():
    bound = lambda kernel: variational.bound(jax.random.key(0), DENOISE, kernel, TABLE, X_0).total
    np.testing.assert_array_equal(*quick_jit(lambda: (bound(dj.kernels.DDPM()), bound(dj.kernels.DDPM(SCHEDULE))))())


def log_masses(log_std, offsets):
    """Of bins around 0 under N(-offset std, std^2), by quadrature of the density divided by its value at the bin's middle."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    std = np.exp(log_std)[:, None]
    h, z = 1 / (255 * std), np.asarray(offsets)
    u = h[..., None] * nodes
    top = np.max(-z[..., None] * u - u**2 / 2, -1)
    inside = np.log((weights * np.exp(-z[..., None] * u - u**2 / 2 - top[..., None])).sum(-1)) + top
    return np.log(h) + inside - z**2 / 2 - np.log(2 * np.pi) / 2


def test_a_bin_has_the_gaussians_mass_from_broad_to_narrow_and_into_the_tail():
    x = np.float64(100 / 127.5 - 1)
    log_std = np.linspace(-6.5, 1.5, 33)
    z = np.array([0.0, 0.3, -1.0, 3.0, -6.0, 20.0])
    expected = log_masses(log_std, z)
    mean = x - z * np.exp(log_std)[:, None]
    with jax.enable_x64(True):
        got = np.asarray(quick_jit(variational.discretised_log_likelihood)(np.full(mean.shape, x), mean, log_std[:, None]))
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)
    single = [np.float32(a) for a in (np.full(mean.shape, 0.0), -z * np.exp(log_std)[:, None], log_std[:, None])]
    np.testing.assert_allclose(quick_jit(variational.discretised_log_likelihood)(*single), expected, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("log_std", [-7.0, -3.0, 0.5])
def test_the_256_values_share_one(log_std):
    """With their open ends; the gradient of what is constant is 0."""
    x = jnp.asarray(np.arange(256) / 127.5 - 1, jnp.float32)
    total = lambda mean, s: jax.nn.logsumexp(variational.discretised_log_likelihood(x, mean, jnp.full(x.shape, s)))
    value, gradient = quick_jit(jax.value_and_grad(total, (0, 1)))(jnp.float32(0.3), jnp.float32(log_std))
    assert abs(float(value)) < 2e-4 and max(map(abs, map(float, gradient))) < 2e-2
    tanh = jax.nn.logsumexp(variational.discretised_log_likelihood(x, 0.3, jnp.full(x.shape, log_std), "tanh"))
    assert abs(float(tanh)) < 2e-4


def test_far_from_the_mean_the_default_has_no_floor_and_the_official_one_has():
    far = [jnp.float32(a) for a in (0.5 / 127.5, -0.9, -3.0)]
    assert variational.discretised_log_likelihood(*far) < -100
    np.testing.assert_allclose(variational.discretised_log_likelihood(*far, "tanh"), np.log(1e-12), rtol=1e-6)


def test_a_part_of_the_rows_is_unbiased_and_knows_its_error():
    """Standardised errors of 400 estimates around the mean of 400 whole bounds: mean 0, and of size 1."""
    table = dj.timetables.respaced(SCHEDULE, 10)
    keys = jax.random.split(jax.random.key(3), 400)
    whole = quick_jit(jax.vmap(lambda k: variational.bound(k, DENOISE, dj.kernels.DDPM(), table, X_0).total))(keys)
    part = lambda k: variational.estimate(k, DENOISE, dj.kernels.DDPM(), table, X_0, 12, decoder_draws=12)
    found = quick_jit(jax.vmap(part))(jax.random.split(jax.random.key(4), 400))
    np.testing.assert_allclose(found.total, found.prior + found.decoder + found.steps, rtol=1e-5)
    error = np.hypot(found.total.std() / 20, whole.std() / 20)
    assert abs(found.total.mean() - whole.mean()) < 4 * error
    assert 0.8 < np.sqrt((found.standard_error**2).mean()) / found.total.std() < 1.25


def bound(kernel=KERNEL, table=TABLE, x_0=X_0, **how):
    return variational.bound(jax.random.key(0), DENOISE, kernel, table, x_0, **how)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: bound(dj.kernels.DDIM(SCHEDULE)), "DDIM says no log-variance, .*DDPM"),
        (lambda: bound(dj.kernels.Heun()), "Heun says no log-variance"),
        (lambda: variational.rows(dj.kernels.Marginal(SCHEDULE), TABLE), "Marginal says no log-variance"),
        (lambda: variational.rows(dj.kernels.DDPM(), TABLE), r"DDPM has no schedule: pass kernels.DDPM\(schedule\)"),
        (lambda: variational.row_at(dj.kernels.DDPM(dj.schedules.VP()), 1), "whole times, but VP is a formula"),
        (lambda: bound(table=TABLE[:2]), "a plain descent to 0"),
        (lambda: bound(x_0=X_0 + 0.004), r"x_0 has the value -0\.996, which is no 8-bit one"),
        (lambda: bound(x_0=jnp.arange(12.0).reshape(2, 2, 3) / 255), r"the value 0, .*in \[0, 1\], take 2 x - 1"),
        (lambda: bound(x_0=20 * jnp.arange(12.0).reshape(2, 2, 3)), r"x_0 spans \[0, 220\].*divide an 8-bit image by 127\.5"),
        (lambda: bound(decoder="discretized"), "unknown decoder 'discretized': did you mean 'discretised'"),
        (lambda: bound(cdf="tan"), "unknown cdf 'tan': did you mean 'tanh'"),
        (lambda: variational.estimate(None, DENOISE, dj.kernels.DDPM(), TABLE, X_0, 1), "steps 1 is out of range"),
    ],
)
def test_errors_name_value_and_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_its_table_is_the_schedules_and_it_compiles_once():
    schedule = dj.schedules.discrete(dj.schedules.linear_betas(1000))
    denoise = dj.denoisers.from_x0(lambda params, x, i: params * x, jnp.float32(0.5), schedule)
    x_0 = jnp.zeros((4, 4, 1)) + 1 / 255
    other = dj.timetables.respaced(dj.schedules.discrete(dj.schedules.linear_betas(4000)), 20)
    for table, said in ((other, "schedule"), (20, "for 20 steps timetables.log_snr")):
        with pytest.raises(ValueError, match=said):
            variational.bound(jax.random.key(0), denoise, dj.kernels.DDPM(), table, x_0)
    before = variational._bound._cache_size()
    for seed, steps in ((0, 20), (1, 20)):
        table = dj.timetables.respaced(schedule, steps)
        variational.bound(jax.random.key(seed), denoise, dj.kernels.DDPM(), table, (2 * seed + 1) * x_0)
    assert variational._bound._cache_size() == before + 1
