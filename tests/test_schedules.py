"""Every schedule: identities, the inverse, exactness on the table, host and traced evaluation, clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import schedules

LINEAR, COSINE = (schedules.discrete(betas) for betas in (schedules.linear_betas(1000), schedules.cosine_betas(100)))
ALL = {
    "linear": LINEAR,
    "cosine": COSINE,
    "scaled_linear": schedules.discrete(schedules.scaled_linear_betas(1000)),
    "sr3": schedules.discrete(schedules.sr3_betas(2000)),
    "nonequilibrium": schedules.discrete(schedules.nonequilibrium_betas(40)),
    "VP": schedules.VP(),
    "SubVP": schedules.SubVP(),
    "VE": schedules.VE(),
    "EDM": schedules.EDM(),
    "RectifiedFlow": schedules.RectifiedFlow(),
}
every = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
FEWER = {name: schedule for name, schedule in ALL.items() if name not in ("scaled_linear", "sr3", "cosine")}  # compiles less
each_kind = pytest.mark.parametrize("schedule", FEWER.values(), ids=FEWER)


def inside(schedule, n=41):
    """Times strictly inside (0, T), half of them fractional for a table."""
    return np.linspace(0, schedule.T, n + 2)[1:-1]


@every
def test_variance_preserving_means_what_it_says(schedule):
    t = inside(schedule)
    total = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
    if schedule.variance_preserving:
        np.testing.assert_allclose(total, 1, rtol=1e-12)
    else:
        assert np.abs(total - 1).max() > 0.1


@every
def test_log_snr_is_the_ratio_and_falls(schedule):
    t = inside(schedule)
    lam = schedule.log_snr(t)
    np.testing.assert_allclose(np.exp(lam), (schedule.alpha(t) / schedule.sigma(t)) ** 2, rtol=1e-10)
    assert (np.diff(lam) < 0).all()


@every
def test_time_inverts_log_snr(schedule):
    t = np.append(inside(schedule), 0.3 * np.minimum(schedule.T, 1))  # the last one lies below entry 1 of a table
    np.testing.assert_allclose(schedule.time(schedule.log_snr(t)), t, rtol=1e-8)


@each_kind
def test_traced_time_inverts_log_snr(schedule):
    t = inside(schedule)
    got = jax.jit(lambda schedule, t: schedule.time(schedule.log_snr(t)))(schedule, jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(got, t, rtol=2e-3, atol=1e-5 * schedule.T)


@every
def test_clean_end(schedule):
    zero = np.float64(0)
    assert schedule.alpha(zero) == 1 and schedule.sigma(zero) == 0
    assert schedule.log_snr(zero) == np.inf
    assert schedule.time(np.float64(np.inf)) == 0


@pytest.mark.parametrize("betas", [schedules.linear_betas(250), schedules.cosine_betas(50)], ids=["linear", "cosine"])
def test_tables_are_exact_at_whole_times(betas):
    schedule = schedules.discrete(betas)
    bar = np.cumprod(1 - betas)
    t = np.arange(1, len(betas) + 1)
    np.testing.assert_array_equal(schedule.alpha(t), np.sqrt(bar))
    np.testing.assert_array_equal(schedule.sigma(t), np.sqrt(1 - bar))
    traced = jax.jit(lambda s, t: (s.alpha(t), s.sigma(t)))(schedule, jnp.asarray(t, jnp.float32))
    np.testing.assert_array_equal(traced, np.stack([np.sqrt(bar), np.sqrt(1 - bar)]).astype(np.float32))


def test_between_entries_log_snr_is_linear():
    for t in (1.5, 37.25, 99.5):
        low = np.floor(t)
        ends = LINEAR.log_snr(np.array([low, low + 1]))
        np.testing.assert_allclose(LINEAR.log_snr(t), ends[0] + (t - low) * (ends[1] - ends[0]), rtol=1e-10)
    below = np.array([0.0, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(LINEAR.sigma(below), below * LINEAR.sigma(1.0), rtol=1e-12)


@every
def test_numpy_in_float64_numpy_out(schedule):
    for t in (
        inside(schedule, 5),
        np.float64(0.4 * schedule.T),
        0.4 * float(schedule.T),
        inside(schedule, 5).astype(np.float32),
    ):
        for name in ("alpha", "sigma", "log_snr"):
            got = getattr(schedule, name)(t)
            assert not isinstance(got, jax.Array) and np.asarray(got).dtype == np.float64, (name, type(t))


@each_kind
def test_traced_under_strict_promotion(schedule):
    """jit, vmap and grad over times and over the schedule's own leaves, float32 in and float32 out, equal to the host."""
    t = inside(schedule, 5)

    with jax.numpy_dtype_promotion("strict"):
        t32 = jnp.asarray(t, jnp.float32)
        for name in ("alpha", "sigma", "log_snr", "network_time"):
            f = jax.jit(lambda schedule, t, name=name: getattr(schedule, name)(t))
            got = f(schedule, t32)
            assert got.dtype == jnp.float32, name
            np.testing.assert_allclose(got, getattr(schedule, name)(t), rtol=2e-4, atol=2e-4, err_msg=name)
            np.testing.assert_array_equal(jax.vmap(f, (None, 0))(schedule, t32), got, err_msg=name)
        slope = jax.vmap(jax.grad(schedule.log_snr))(t32)
        assert slope.dtype == jnp.float32
    h = 1e-4 * schedule.T
    central = (schedule.log_snr(t + h) - schedule.log_snr(t - h)) / (2 * h)
    kink = np.isclose(t, np.round(t)) & isinstance(schedule, schedules.Discrete)  # a table's slope jumps at whole t
    np.testing.assert_allclose(np.asarray(slope)[~kink], central[~kink], rtol=1e-2)
    grads = jax.grad(lambda s: jnp.sum(s.alpha(t32) + s.sigma(t32)))(jax.tree.map(jnp.float32, schedule))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert not jax.tree.leaves(grads) or max(np.abs(g).max() for g in jax.tree.leaves(grads)) > 0


def test_float64_is_safe():
    with jax.enable_x64(True):
        t = jnp.linspace(0.0, LINEAR.T, 97)
        for name in ("alpha", "sigma"):
            got = jax.jit(lambda s, t, name=name: getattr(s, name)(t))(LINEAR, t)
            assert got.dtype == jnp.float64
            np.testing.assert_allclose(got, getattr(LINEAR, name)(np.asarray(t)), rtol=1e-12)


def test_formulas_at_known_points():
    t = np.array([0.25, 1.0])
    np.testing.assert_allclose(schedules.VP().alpha(t), np.exp(-0.25 * t**2 * 19.9 - 0.05 * t), rtol=1e-14)
    np.testing.assert_allclose(schedules.SubVP().sigma(t), 1 - np.exp(-0.5 * t**2 * 19.9 - 0.1 * t), rtol=1e-12)
    np.testing.assert_allclose(schedules.VE().sigma(t), [0.01 * 5000**0.25, 50], rtol=1e-12)
    small = jax.jit(schedules.VP().sigma)(jnp.float32(1e-5))  # without expm1 it would be 0.6 % off
    np.testing.assert_allclose(small, np.sqrt(0.1e-5 + 0.5 * 19.9e-10), rtol=1e-5)
    np.testing.assert_allclose(schedules.RectifiedFlow().log_snr(np.float64(0.75)), 2 * np.log(1 / 3), rtol=1e-14)
    assert schedules.EDM(T=10.0).T == 10.0


def test_published_betas():
    np.testing.assert_allclose(schedules.linear_betas(250)[[0, -1]], [4e-4, 0.08], rtol=1e-14)
    np.testing.assert_allclose(schedules.scaled_linear_betas(1000)[[0, -1]], [0.0015, 0.0195], rtol=1e-14)
    assert schedules.cosine_betas(1000)[-1] == 0.999
    np.testing.assert_allclose(schedules.warmup_betas(40, 0.1)[[0, 3, 4, 39]], [1e-4, 0.02, 0.02, 0.02], rtol=1e-14)
    np.testing.assert_allclose(schedules.harmonic_betas(4), [1 / 4, 1 / 3, 1 / 2, 1], rtol=1e-14)
    np.testing.assert_allclose(schedules.nonequilibrium_betas(30)[-1], 0.5, atol=1e-4)
    np.testing.assert_allclose(schedules.sr3_betas()[[0, -1]], [1e-6, 0.01], rtol=1e-14)
    assert schedules.EDM().T == 80
    # Sohl-Dickstein's code: min_t = 1e-6 everywhere, step1_beta = 1e-3 more at the first step, the rest of the way to 1 / T
    first, second = (1e-6 + extra + 1 / T * (1 - 1e-6 - extra - 1e-5) for T, extra in ((30, 1e-3), (1e9, 0)))
    np.testing.assert_allclose(schedules.nonequilibrium_betas(30)[0], first, rtol=1e-9)
    np.testing.assert_allclose(schedules.nonequilibrium_betas(10**6)[1], second + 1e-6, rtol=1e-3)


def test_a_table_that_ends_in_noise():
    """alpha / sigma is linear in the last interval; time is the inverse there too; traced as on the host; no warnings."""
    schedule = schedules.discrete(schedules.harmonic_betas(40))
    t = np.array([0.3, 1.0, 38.0, 38.5, 39.0, 39.25, 39.9, 40.0])
    with np.errstate(all="raise"):
        lam = schedule.log_snr(t)
        np.testing.assert_allclose(schedule.time(lam), t, rtol=1e-12)
        last = np.exp(0.5 * schedule.log_snr(np.array([39.0, 39.25, 39.9, 40.0])))
    np.testing.assert_allclose(last, last[0] * np.array([1, 0.75, 0.1, 0]), rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1, rtol=1e-14)
    assert (np.diff(lam) < 0).all() and schedule.alpha(40.0) == 0 and schedule.time(-np.inf) == 40
    traced = jax.jit(lambda s, t: (s.alpha(t), s.time(s.log_snr(t))))(schedule, jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(traced, [schedule.alpha(t), t], rtol=1e-4)
    grads = jax.grad(lambda s: s.alpha(jnp.asarray(t, jnp.float32)).sum())(jax.tree.map(jnp.float32, schedule))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_whole_numbers_are_floats_and_only_tables_are_tables():
    assert [s.discrete for s in ALL.values()] == [isinstance(s, schedules.Discrete) for s in ALL.values()]
    for whole, real in (
        (schedules.EDM(80), schedules.EDM(80.0)),
        (schedules.EDM(np.int64(7)), schedules.EDM(7.0)),
        (schedules.VP(0, 20), schedules.VP(0.0, 20.0)),
        (schedules.SubVP(np.int64(1), jnp.arange(8, 9)[0]), schedules.SubVP(1.0, 8.0)),
        (schedules.VE(1, np.array(50)), schedules.VE(1.0, 50.0)),
    ):
        assert type(whole.T) is type(real.T) is float and not whole.discrete
        assert all(np.issubdtype(np.asarray(leaf).dtype, np.floating) for leaf in jax.tree.leaves(whole))
        for t in (0.25, np.array([0.1, 1.0])):
            np.testing.assert_allclose(whole.log_snr(t), real.log_snr(t), rtol=1e-6)
            np.testing.assert_allclose(whole.time(whole.log_snr(t)), t, rtol=1e-6)
        assert whole.time(np.inf) == 0
    slope = jax.grad(lambda s: s.alpha(0.5))(schedules.VP(0, 20))
    np.testing.assert_allclose(slope.beta_max, -0.25 * 0.5**2 * np.exp(-0.25 * 0.5**2 * 20), rtol=1e-5)
    np.testing.assert_array_equal(schedules.linear_betas(np.int64(1000)), schedules.linear_betas(1000))
    np.testing.assert_array_equal(schedules.from_alphas_cumprod([0.9, 0.5]).alphas, np.sqrt([1, 0.9, 0.5]))


def test_hyper_parameters_are_leaves():
    rates = jnp.array([10.0, 20.0])
    alphas = jax.vmap(lambda b: schedules.VP(beta_max=b).alpha(1.0))(rates)
    np.testing.assert_allclose(alphas, np.exp(-0.25 * (np.array([10.0, 20]) - 0.1) - 0.05), rtol=1e-5)
    betas = jnp.asarray(schedules.linear_betas(50), jnp.float32)
    grad = jax.jit(jax.grad(lambda betas: schedules.discrete(betas).alpha(50.0)))(betas)
    np.testing.assert_allclose(grad, -0.5 * np.sqrt(np.prod(1 - np.float64(betas))) / (1 - np.float64(betas)), rtol=1e-4)


def test_errors_name_value_and_remedy():
    with pytest.raises(ValueError, match=r"T = 20 makes the last beta 1, not below 1: use T > 20"):
        schedules.linear_betas(20)
    with pytest.raises(ValueError, match=r"beta 1\.5 is outside \(0, 1\]"):
        schedules.discrete(np.array([0.1, 1.5]))
    with pytest.raises(ValueError, match=r"beta nan is outside"):
        schedules.discrete(np.array([0.1, np.nan]))
    with pytest.raises(ValueError, match=r"betas have shape \(2, 2\): give one axis"):
        schedules.discrete(np.full((2, 2), 0.1))
    for T in (1000.0, True, 0):
        with pytest.raises(ValueError, match=f"T = {T} is not a number of steps: give a whole number >= 1"):
            schedules.cosine_betas(T)
    for low, high in ((-1.0, 20.0), (0, 0), (0.1, np.nan), (np.float32(-1), jnp.float32(20))):
        with pytest.raises(ValueError, match=r"beta_min .* and beta_max .*: give rates >= 0, not both 0"):
            schedules.VP(low, high)
    for low, high in ((50.0, 0.01), (0, 1), (0.1, np.inf)):
        with pytest.raises(ValueError, match=r"sigma_min .* and sigma_max .*: give 0 < sigma_min < sigma_max"):
            schedules.VE(low, high)
    for T in (0, -1.0, np.nan):
        with pytest.raises(ValueError, match="of EDM, its largest sigma, is out of range: give a number > 0"):
            schedules.EDM(T)
    for bar in ([0.9, 0.95], [0.9, 0, 0], [1.0, 0.5], [0.9, np.nan], [-0.1]):
        with pytest.raises(ValueError, match="the signal must shrink at every step"):
            schedules.from_alphas_cumprod(bar)
