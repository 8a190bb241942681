"""The forward process between any two times: composition, Bayes, digits, and the two ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import process, schedules

TABLE = schedules.discrete(schedules.linear_betas(1000))
FORMULAS = [
    TABLE,
    schedules.discrete(schedules.cosine_betas(200)),
    schedules.VP(),
    schedules.SubVP(),
    schedules.VE(),
    schedules.EDM(),
    schedules.RectifiedFlow(),
]
NAMES = ["linear", "cosine", "VP", "SubVP", "VE", "EDM", "RectifiedFlow"]


def times(schedule, *shares):
    """Times at these shares of the way, whole ones for a table."""
    t = np.array(shares) * schedule.T
    return np.round(t) if isinstance(schedule, schedules.Discrete) else t


@pytest.mark.parametrize("schedule", FORMULAS, ids=NAMES)
def test_transitions_compose(schedule):
    """q(x_t | x_r) = integral of q(x_t | x_s) q(x_s | x_r): means multiply, variances propagate."""
    r, s, t = times(schedule, 0.2, 0.5, 0.9)
    a_ts, b_ts = process.transition(schedule, t, s)
    a_sr, b_sr = process.transition(schedule, s, r)
    a_tr, b_tr = process.transition(schedule, t, r)
    np.testing.assert_allclose(a_ts * a_sr, a_tr, rtol=1e-12)
    np.testing.assert_allclose(a_ts**2 * b_sr**2 + b_ts**2, b_tr**2, rtol=1e-12)


@pytest.mark.parametrize("schedule", FORMULAS, ids=NAMES)
def test_marginal_is_the_transition_from_clean(schedule):
    t = times(schedule, 0.1, 0.4, 1.0)
    a, b = process.transition(schedule, t, np.zeros(3))
    np.testing.assert_allclose(a, schedule.alpha(t), rtol=1e-12)
    np.testing.assert_allclose(b, schedule.sigma(t), rtol=1e-12)


@pytest.mark.parametrize("schedule", FORMULAS, ids=NAMES)
def test_posterior_is_bayes(schedule):
    """Precisions add: q(x_s | x_t, x_0) from the prior N(alpha_s x_0, sigma_s^2) and the likelihood N(x_t; a x_s, b^2)."""
    s, t = times(schedule, 0.3, 0.8)
    a, b = process.transition(schedule, t, s)
    alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
    precision = 1 / sigma_s**2 + a**2 / b**2
    c_0, c_t, std = process.posterior(schedule, t, s)
    np.testing.assert_allclose(std**2, 1 / precision, rtol=1e-11)
    np.testing.assert_allclose(c_0, alpha_s / sigma_s**2 / precision, rtol=1e-11)
    np.testing.assert_allclose(c_t, a / b**2 / precision, rtol=1e-11)


def test_one_step_is_ddpm():
    """Ho et al. 2020, eqs. 6 and 7, from betas."""
    beta = schedules.linear_betas(1000)
    bar = np.cumprod(1 - beta)
    before = np.append(1, bar[:-1])
    t = np.arange(1, 1001)
    a, b = process.transition(TABLE, t, t - 1)
    c_0, c_t, std = process.posterior(TABLE, t, t - 1)
    np.testing.assert_allclose(a**2, 1 - beta, rtol=1e-12)
    np.testing.assert_allclose(b**2, beta, rtol=1e-10)
    np.testing.assert_allclose(std**2, beta * (1 - before) / (1 - bar), rtol=1e-10, atol=1e-30)
    np.testing.assert_allclose(c_0, beta * np.sqrt(before) / (1 - bar), rtol=1e-10)
    np.testing.assert_allclose(c_t, (1 - before) * np.sqrt(1 - beta) / (1 - bar), rtol=1e-10, atol=1e-30)


@pytest.mark.parametrize("schedule", FORMULAS, ids=NAMES)
def test_clean_end_and_standing_still(schedule):
    t = times(schedule, 0.2, 0.7)
    c_0, c_t, std = process.posterior(schedule, t, np.zeros(2))  # s = 0: x_s is x_0
    np.testing.assert_array_equal([c_0, c_t, std], [[1, 1], [0, 0], [0, 0]])
    c_0, c_t, std = process.posterior(schedule, t, t)  # s = t: x_s is x_t
    np.testing.assert_array_equal([c_0, c_t, std], [[0, 0], [1, 1], [0, 0]])
    a, b = process.transition(schedule, t, t)
    np.testing.assert_array_equal([a, b], [[1, 1], [0, 0]])


@pytest.mark.parametrize("schedule", FORMULAS[:2], ids=NAMES[:2])
def test_float32_keeps_its_digits(schedule):
    """Traced in float32, as when a schedule is swept: within 2e-3 of float64 over a whole table (1 - abar_t / abar_s by
    itself would be off by 1e-3 where beta is 1e-4, and 1 - abar much more where abar is near 1)."""
    t = np.arange(1, schedule.T + 1)
    exact = process.posterior(schedule, t, t - 1)
    got = jax.jit(lambda schedule, t: process.posterior(schedule, t, t - 1))(schedule, jnp.asarray(t, jnp.float32))
    for name, ours, right in zip(("c_0", "c_t", "std"), got, exact):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours[1:], right[1:], rtol=2e-4, err_msg=name)


@pytest.mark.parametrize("schedule", FORMULAS, ids=NAMES)
def test_gradients_are_finite_at_the_ends(schedule):
    s, t = times(schedule, 0.0, 0.5)

    def total(t, s):
        return sum(jnp.sum(c) for c in (*process.posterior(schedule, t, s), *process.transition(schedule, t, s)))

    gradient = jax.jit(jax.grad(total, (0, 1)))
    for pair in ((t, s), (t, t)):
        grads = gradient(*map(jnp.float32, pair))
        assert np.isfinite(grads).all(), (pair, grads)


def test_drift_and_diffusion_are_the_published_ones():
    """Song et al. 2021 (eqs. 30, 32, 28), Karras et al. 2022, Liu et al. 2022, down to t = 1e-5, where the official float32
    (1 - exp) is 1 % off: float64 on the host, float32 traced."""
    t = np.array([1e-5, 1e-3, 0.1, 0.5, 0.9])
    beta, integral = 0.1 + 19.9 * t, 0.1 * t + 0.5 * 19.9 * t**2
    ratio = 50 / 0.01
    published = {
        schedules.VP(): (-beta / 2, beta),
        schedules.SubVP(): (-beta / 2, -beta * np.expm1(-2 * integral)),
        schedules.VE(): (0 * t, 2 * (0.01 * ratio**t) ** 2 * np.log(ratio)),
        schedules.EDM(): (0 * t, 2 * t),
        schedules.RectifiedFlow(): (-1 / (1 - t), 2 * t / (1 - t)),
    }
    traced = jax.jit(lambda t: [process.sde(schedule, t) for schedule in published])(jnp.asarray(t, jnp.float32))
    for (schedule, expected), single in zip(published.items(), traced):
        for ours, theirs, right in zip(process.sde(schedule, t), single, expected):
            assert ours.dtype == np.float64 and theirs.dtype == jnp.float32
            np.testing.assert_allclose(ours, right, rtol=1e-12)
            np.testing.assert_allclose(theirs, right, rtol=1e-5)
    inside = jax.jit(lambda: jax.tree.map(jnp.asarray, process.sde(schedules.VP(), 0.5)))()  # known values within a trace
    np.testing.assert_allclose(inside, [-(0.1 + 9.95) / 2, 0.1 + 9.95], rtol=1e-6)


def test_drift_and_diffusion_at_the_ends():
    """t = 0 is the limit from above (VE jumps from sigma_min to clean there); at alpha = 0 both are infinite."""
    expected = {schedules.VP(): (-0.05, 0.1), schedules.SubVP(): (-0.05, 0), schedules.EDM(): (0, 0)}
    expected[schedules.VE()] = (0, 2 * 0.01**2 * np.log(5000))
    for schedule, values in expected.items():
        np.testing.assert_allclose(process.sde(schedule, 0.0), values, rtol=1e-12)
    harmonic = schedules.discrete(schedules.harmonic_betas(20))
    for schedule in (schedules.RectifiedFlow(), harmonic):
        np.testing.assert_array_equal(process.sde(schedule, float(schedule.T)), [-np.inf, np.inf])


@pytest.mark.parametrize("betas", [schedules.linear_betas(100), schedules.harmonic_betas(20)], ids=["linear", "harmonic"])
def test_drift_and_diffusion_of_a_table(betas):
    """Integrals over a stretch are exact: f's is log alpha, g^2's the variance it leaves. Variance-preserving: g^2 = -2 f. At
    a whole t the interval below it counts, which is where a walk goes."""
    schedule = schedules.discrete(betas)
    for low in (0.0, 1.0, 7.0, schedule.T - 2.0):
        t = low + (np.arange(4000) + 0.5) / 4000
        f, g2 = process.sde(schedule, t)
        np.testing.assert_allclose(g2, -2 * f, rtol=1e-9)
        a, std = process.transition(schedule, low + 1, low)
        np.testing.assert_allclose(f.mean(), np.log(a), rtol=1e-6)
        np.testing.assert_allclose((g2 * (schedule.alpha(low + 1) / schedule.alpha(t)) ** 2).mean(), std**2, rtol=1e-6)
    whole = np.arange(2.0, schedule.T - 1)
    np.testing.assert_allclose(process.sde(schedule, whole), process.sde(schedule, whole - 1e-9), rtol=1e-6)
    rate = -np.log1p(-betas[whole.astype(int) - 1])  # g^2 = -2 f of a variance-preserving step that keeps 1 - beta of alpha^2
    late = whole > 0.5 * schedule.T  # where sigma^2 changes little in one interval
    np.testing.assert_allclose(process.sde(schedule, whole)[1][late], rate[late], rtol=0.1)


def test_any_schedule_has_a_drift():
    @dj.base.pytree
    class Cosine(schedules.Schedule):
        T = 1.0
        alpha = staticmethod(lambda t: jnp.cos(0.5 * jnp.pi * t))
        sigma = staticmethod(lambda t: jnp.sin(0.5 * jnp.pi * t))

    t = np.array([0.2, 0.7])
    slope = 0.5 * np.pi * np.tan(0.5 * np.pi * t)
    np.testing.assert_allclose(process.sde(Cosine(), t), [-slope, 2 * slope], rtol=1e-12)


def test_q_sample_broadcasts_times_over_leading_axes():
    x_0, noise = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 1)).astype(np.float32)
    t = np.array([1, 500, 1000])
    x_t = process.q_sample(TABLE, jnp.asarray(x_0), t, jnp.asarray(noise))
    expected = [TABLE.alpha(float(k)) * a + TABLE.sigma(float(k)) * b for k, a, b in zip(t, x_0, noise)]
    np.testing.assert_allclose(x_t, expected, rtol=1e-5, atol=1e-6)
    assert x_t.dtype == jnp.float32


def test_entropy_and_kl_against_quadrature():
    m_1, v_1, m_2, v_2 = 0.3, 0.5, -0.4, 1.7
    z = np.linspace(-15, 15, 200_001)
    log_p = lambda m, v: -0.5 * ((z - m) ** 2 / v + np.log(2 * np.pi * v))
    p = np.exp(log_p(m_1, v_1))
    np.testing.assert_allclose(process.entropy(v_1), -np.trapezoid(p * log_p(m_1, v_1), z), rtol=1e-8)
    expected = np.trapezoid(p * (log_p(m_1, v_1) - log_p(m_2, v_2)), z)
    np.testing.assert_allclose(process.kl_gaussian(m_1, np.log(v_1), m_2, np.log(v_2)), expected, rtol=1e-8)
