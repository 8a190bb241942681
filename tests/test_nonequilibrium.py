"""Sohl-Dickstein et al. 2015 where everything is known: Gaussian and mixture priors, chains of bits small enough to count.

A Gaussian prior's chain is linear, so that the density the model gives to an image is a Gaussian too (``chain``): annealed
estimates are of it, not of the prior's own density, from which it differs by the steps' errors.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gd_closed_form import quick_jit
from optimised import LEVEL_1

import diffjax as dj
from diffjax.likelihood import binomial, nonequilibrium, variational

TABLED, VE = dj.schedules.discrete(dj.schedules.linear_betas(100)), dj.schedules.VE(0.3, 3.0)
SCHEDULES = {"vp": dj.schedules.VP(0.1, 6.0), "ve": VE, "subvp": dj.schedules.SubVP(0.1, 6.0)}
MEAN, VARIANCE = np.array([0.3, -0.2]), np.array([0.5, 0.05])
GAUSSIAN = dj.priors.gaussian(MEAN, VARIANCE)
MIXTURE = dj.priors.mixture([0.3, 0.7], [[0.6, 0.6], [-0.5, 0.1]], [[0.05, 0.1], [0.1, 0.02]])
X_0 = jnp.asarray([0.5, -0.3], jnp.float32)
KERNEL = dj.kernels.DDPM(variance="large")
ROWS = 16


def chain(schedule, table):
    """(mean, variance) per pixel of x_0 under the model: Gaussian steps of the exact denoiser of ``GAUSSIAN``."""
    moves = variational.rows(dj.replace(KERNEL, schedule=schedule), table, np.float64).k.move
    top = 1.0 if schedule.variance_preserving else schedule.sigma(table.t[0]) ** 2
    mean, variance = np.zeros(2), np.full(2, top)
    for n in range(len(table)):
        alpha, sigma = schedule.alpha(table.t[n]), schedule.sigma(table.t[n])
        gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
        slope = moves.c_0[n] * gain + moves.c_t[n]
        mean = slope * mean + moves.c_0[n] * (MEAN - gain * alpha * MEAN)
        variance = slope**2 * variance + np.exp(moves.large[n])
    return mean, variance


def descent(schedule):
    """From pure noise's neighbourhood to log-SNR 2 in steps of a third, then to 0. The weights of steps above one half have no
    variance: the posterior of x_0 then is wider than a step."""
    return dj.timetables.log_snr(schedule, ROWS, t_min=float(schedule.time(2.0)))


def log_normal(x, mean, variance):
    return float(-0.5 * (np.log(2 * np.pi * variance) + (np.asarray(x) - mean) ** 2 / variance).sum())


@functools.partial(jax.jit, compiler_options=LEVEL_1, static_argnames=("n", "decoder"))
def estimate(key, denoise, table, x_0, n, decoder="density"):
    return nonequilibrium.annealed(key, denoise, KERNEL, table, x_0, n, decoder=decoder)


@functools.partial(quick_jit, static_argnames=("n", "decoder"))
def bounds(key, denoise, table, x_0, n, decoder="density"):
    one = lambda key: nonequilibrium.lower_bound(key, denoise, KERNEL, table, x_0, decoder=decoder)
    return jax.vmap(one)(jax.random.split(key, n))


def within(value, expected, error, sigmas=4):
    assert error > 0 and abs(float(value) - expected) < sigmas * float(error), (float(value), expected, float(error))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_probability_is_unbiased_within_its_error_and_the_bound_below(name):
    schedule = SCHEDULES[name]
    table = descent(schedule)
    exact = log_normal(X_0, *chain(schedule, table))
    found = estimate(jax.random.key(0), GAUSSIAN.denoiser(schedule), table, X_0, 20_000)
    within(np.exp(found.log_p - exact), 1.0, found.standard_error * np.exp(found.log_p - exact))
    assert found.standard_error < 0.1 and found.effective > 500
    np.testing.assert_allclose(found.lower, found.prior + found.steps.sum(), rtol=1e-4, atol=1e-4)
    assert found.lower + 4 * found.lower_error < exact  # a strict bound here
    np.testing.assert_allclose(found.bits, -found.log_p / (2 * np.log(2)), rtol=1e-6)


def test_its_error_covers_the_truth_and_its_logarithm_lies_below():
    """200 estimates of 1000 trajectories: standardised errors of the probability are of size 1."""
    schedule = SCHEDULES["vp"]
    table = descent(schedule)
    exact = log_normal(X_0, *chain(schedule, table))
    log_w = estimate(jax.random.key(1), GAUSSIAN.denoiser(schedule), table, X_0, 200_000).log_weights
    log_p, error, effective = jax.vmap(nonequilibrium.summary)(log_w.reshape(200, 1000))
    p = np.exp(np.asarray(log_p) - exact)
    z = (p - 1) / (np.asarray(error) * p)
    assert 0.75 < np.sqrt((z**2).mean()) < 1.5 and (abs(z) < 3).mean() > 0.95
    assert (effective > 100).all()
    few = jax.vmap(nonequilibrium.summary)(log_w.reshape(-1, 10))[0] - exact  # 0.03 too small on average
    assert few.mean() < -5 * few.std() / len(few) ** 0.5


def test_lower_bound_of_a_gaussian_in_closed_form():
    """E_q of each KL and of log p(x_0 | x_1), by the moments of x_t."""
    schedule, (x, n) = SCHEDULES["vp"], (np.asarray(X_0, np.float64), ROWS)
    table = descent(schedule)
    moves = variational.rows(dj.replace(KERNEL, schedule=schedule), table, np.float64).k.move
    expected = []
    for k in range(n):
        alpha, sigma = schedule.alpha(table.t[k]), schedule.sigma(table.t[k])
        gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
        off = (1 - gain * alpha) * (x - MEAN)  # E[x_0 - x0_hat]; its variance is (gain sigma)^2
        large, small = np.exp(moves.large[k]), np.exp(moves.small[k])
        if k < n - 1:
            error = moves.c_0[k] ** 2 * (off**2 + (gain * sigma) ** 2)
            expected.append(0.5 * (np.log(large / small) + (small + error) / large - 1).sum())
        else:
            slope = moves.c_0[k] * gain + moves.c_t[k]
            miss = x - moves.c_0[k] * (MEAN - gain * alpha * MEAN) - slope * alpha * x
            expected.append(0.5 * (np.log(2 * np.pi * large) + (miss**2 + (slope * sigma) ** 2) / large).sum())
    found = bounds(jax.random.key(2), GAUSSIAN.denoiser(schedule), table, X_0, 4000)
    for k in range(n):
        error = found.steps[:, k].std() / 4000**0.5
        assert abs(found.steps[:, k].mean() - expected[k]) < 4.5 * error + 1e-5 * abs(expected[k]), k
    alpha, sigma = schedule.alpha(table.t[0]), schedule.sigma(table.t[0])
    prior = 0.5 * (alpha**2 * x**2 + sigma**2 - 1 - np.log(sigma**2)).sum()
    np.testing.assert_allclose(found.prior[0], prior, rtol=1e-3, atol=1e-7)
    within(found.total.mean(), -prior - sum(expected), found.total.std() / 4000**0.5)
    assert -prior - sum(expected) < log_normal(x, *chain(schedule, table))


def test_the_papers_k_for_data_of_mean_square_one_and_its_slip():
    """Standard-normal data and the exact reverse process: K is the null model's likelihood, on average over data. As coded the
    KLs are T / (T - 1) of what they are: -0.111 bits at T = 20."""
    T = 20
    schedule = dj.schedules.discrete(dj.schedules.nonequilibrium_betas(T))
    table = dj.timetables.from_times(np.arange(T, -1, -1))
    standard = dj.priors.gaussian(np.zeros(1), np.ones(1)).denoiser(schedule)

    def one(key):
        key_x, key = jax.random.split(key)
        return nonequilibrium.lower_bound(key, standard, KERNEL, table, jax.random.normal(key_x, (1,)))

    found = quick_jit(jax.vmap(one))(jax.random.split(jax.random.key(3), 20_000))
    bits = (found.paper - found.null) / math.log(2)
    within(bits.mean(), 0.0, bits.std() / 20_000**0.5)
    kls = found.steps[:, :-1].sum(1) / math.log(2)
    coded = bits - kls * (T / (T - 1) - 1)
    within(coded.mean(), -0.111, coded.std() / 20_000**0.5)
    assert coded.mean() < -0.09
    # "total" has the data's own mean square in place of 1
    x = jnp.asarray([0.8, -math.sqrt(2 - 0.64)])  # of mean square 1: both agree, draw by draw but for the last row's x_1
    both = nonequilibrium.lower_bound
    pair = dj.priors.gaussian(np.zeros(2), np.ones(2)).denoiser(schedule)
    many = jax.vmap(lambda k: both(k, pair, KERNEL, table, x))(jax.random.split(jax.random.key(4), 2000))
    gap = many.total - many.paper
    within(gap.mean(), 0.0, gap.std() / 2000**0.5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_bound_is_on_its_right_side_for_a_mixture(name):
    """Images drawn from it; the density that the chain gives them is known by nothing but the estimate itself."""
    schedule = SCHEDULES[name]
    table = descent(schedule)
    denoise = MIXTURE.denoiser(schedule)
    images = jax.vmap(MIXTURE.sample)(jax.random.split(jax.random.key(5), 8))
    found = jax.vmap(lambda k, x: estimate(k, denoise, table, x, 2000))(jax.random.split(jax.random.key(6), 8), images)
    bound = jax.vmap(lambda k, x: bounds(k, denoise, table, x, 500).total)(jax.random.split(jax.random.key(7), 8), images)
    error = np.hypot(bound.std(1) / 500**0.5, found.standard_error)
    assert (bound.mean(1) < found.log_p + 3 * error).all() and (found.lower < found.log_p).all()
    agree = np.hypot(bound.std(1) / 500**0.5, found.lower_error)
    assert (abs(bound.mean(1) - found.lower) < 4 * agree).all()


def entropy_of(schedule, table, variances):
    """H(X_s | X_t) per dimension of independent Gaussian data, s > 0."""
    total = []
    for t, s in zip(table.t, table.s):
        a, std = dj.process.transition(schedule, t, s)
        v_s = schedule.alpha(s) ** 2 * variances + schedule.sigma(s) ** 2
        total.append(np.mean(0.5 * (1 + np.log(2 * np.pi * v_s * std**2 / (a**2 * v_s + std**2)))))
    return np.array(total)


@pytest.mark.parametrize("name", SCHEDULES)
def test_entropy_bounds_hold_the_exact_entropy(name):
    schedule = SCHEDULES[name]
    table = descent(schedule)
    rounding = 1e-9
    for variances in (np.array([0.5, 0.05]), np.array([1.0, 1.0]), np.array([1e-4, 1e-4]), np.array([9.0, 0.1])):
        exact = entropy_of(schedule, table, variances)
        lower, upper = nonequilibrium.entropy_bounds(schedule, table, variances.mean())
        assert (lower <= exact + rounding).all() and (exact <= upper + rounding).all()
        lower, upper = nonequilibrium.entropy_bounds(schedule, table)
        growing = name == "ve" or (name == "vp" and variances.mean() <= 1)
        assert not growing or (exact <= upper + rounding).all()
    lower, upper = nonequilibrium.entropy_bounds(schedule, table, 1.0)
    np.testing.assert_allclose(upper, entropy_of(schedule, table, np.ones(1)), rtol=1e-9)  # met by a Gaussian
    narrow = entropy_of(schedule, table, np.full(1, 1e-12))[:-1]
    np.testing.assert_allclose(nonequilibrium.entropy_bounds(schedule, table)[0][:-1], narrow, atol=1e-5)  # by a point
    assert nonequilibrium.entropy_bounds(schedule, table)[0][-1] == -np.inf
    with pytest.raises(ValueError, match="variance -1 is out of range"):
        nonequilibrium.entropy_bounds(schedule, table, -1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_forward_trajectories_have_the_marginals_and_reverse_ones_the_prior(name):
    schedule = SCHEDULES[name]
    table = descent(schedule)
    keys = jax.random.split(jax.random.key(8), 4000)
    up = quick_jit(jax.vmap(lambda k: nonequilibrium.forward(k, schedule, table, X_0)))(keys)
    assert up.shape == (4000, ROWS + 1, 2) and (up[:, 0] == X_0).all()
    times = np.asarray(table.t)[::-1]
    alpha, sigma = schedule.alpha(times)[:, None], schedule.sigma(times)[:, None]
    z = (np.asarray(up[:, 1:], np.float64) - alpha * np.asarray(X_0)) / sigma
    assert (abs(z.mean(0)) < 5 / 4000**0.5).all() and (abs(z.var(0) - 1) < 5 * (2 / 4000) ** 0.5).all()
    down = quick_jit(jax.vmap(lambda k: nonequilibrium.reverse(k, GAUSSIAN.denoiser(schedule), KERNEL, table, (2,))))(keys)
    mean, variance = chain(schedule, table)
    # the last state is the decoder's mean: without its variance
    last = np.exp(variational.rows(dj.replace(KERNEL, schedule=schedule), table, np.float64).k.move.large[-1])
    assert down.shape == (4000, ROWS + 1, 2)
    assert (abs(down[:, -1].mean(0) - mean) < 5 * np.sqrt(variance / 4000)).all()
    assert (abs(down[:, -1].var(0) / (variance - last) - 1) < 5 * (2 / 4000) ** 0.5).all()


# --- the paper's own model ---


def test_learned_betas_at_zero_are_the_released_ones_and_can_be_learned():
    T = 12
    np.testing.assert_allclose(nonequilibrium.learned_betas(np.zeros(4), T), dj.schedules.nonequilibrium_betas(T), rtol=1e-12)
    basis = nonequilibrium.temporal_basis(T, 4)
    assert basis.shape == (4, T) and np.allclose(basis.sum(0), 1) and basis[0, 0] == basis.max()
    table, apply = dj.timetables.from_times(np.arange(T, -1, -1)), lambda params, x, b: (params @ b * x, 0 * x)

    def loss(params):
        coefficients, inner = params
        denoise = nonequilibrium.denoiser(apply, inner, nonequilibrium.learned_betas(coefficients, T), basis)
        return -nonequilibrium.lower_bound(
            jax.random.key(0), denoise, dj.kernels.DDPM(variance="learned"), table, x_0, decoder="forward"
        ).total

    with jax.enable_x64(True):
        x_0, at, step = X_0.astype(float), (0.1 * jnp.arange(4.0), 0.1 * jnp.ones(4)), 1e-4 * np.eye(4)[1]
        both = quick_jit(jax.value_and_grad(loss))  # one program
        for n, leaf in enumerate(both(at)[1]):
            moved = [both(tuple(a + sign * step if k == n else a for k, a in enumerate(at)))[0] for sign in (1, -1)]
            np.testing.assert_allclose(leaf[1], (moved[0] - moved[1]) / 2e-4, rtol=2e-3)
    for wrong in (1, 2.5):
        with pytest.raises(ValueError, match=f"T {wrong} is out of range"):
            nonequilibrium.temporal_basis(wrong)


# --- bits ---

T_BITS, BITS = 4, 3
PROCESS = binomial.Binomial(dj.schedules.harmonic_betas(T_BITS))
DATA = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 1]], np.float32)
ALL = np.array(list(itertools.product((0, 1), repeat=BITS)), np.float32)


def guess(x, t):
    """Logits of no particular meaning that depend on everything."""
    return 0.7 * (x - 0.4) - 0.3 * jnp.roll(x, 1) + 0.1 * t


REVERSE = binomial.from_clean(PROCESS, guess)


def model_probability():
    """p(x_0) of all sequences by summing over every trajectory: products of transition matrices."""
    p = np.full(len(ALL), 1 / len(ALL))
    for t in range(T_BITS, 0, -1):
        rate = np.asarray(jax.vmap(lambda x: jax.nn.sigmoid(REVERSE(x, t)))(jnp.asarray(ALL)), np.float64)
        p = p @ np.prod(np.where(ALL[None] > 0.5, rate[:, None], 1 - rate[:, None]), -1)
    return p


def forward_matrix(t):
    rate = np.asarray(PROCESS.transition(jnp.asarray(ALL), t), np.float64)
    return np.prod(np.where(ALL[None] > 0.5, rate[:, None], 1 - rate[:, None]), -1)


def test_binomial_chain_by_enumeration():
    p = model_probability()
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)
    marginal = np.eye(len(ALL))
    for t in range(1, T_BITS + 1):
        before, marginal = marginal, marginal @ forward_matrix(t)
        ours = np.asarray(jax.vmap(lambda x: PROCESS.marginal(x, t))(jnp.asarray(ALL)))
        np.testing.assert_allclose(marginal @ ALL, ours, atol=1e-6)
        x_0, x_t = 3, 6  # by Bayes' rule: q(x_s | x_t, x_0)
        joint = before[x_0] * forward_matrix(t)[:, x_t]
        ours = PROCESS.posterior(jnp.asarray(ALL[x_t]), jnp.asarray(ALL[x_0]), t)
        np.testing.assert_allclose((joint / joint.sum()) @ ALL, ours, atol=1e-6)
    np.testing.assert_allclose(marginal, 1 / len(ALL), atol=1e-6)  # all erased

    x_0 = jnp.asarray(ALL[5])
    log_p, error, effective, log_w = quick_jit(lambda k: binomial.annealed(k, PROCESS, REVERSE, x_0, 20_000))(
        jax.random.key(0)
    )
    within(np.exp(log_p) / p[5], 1.0, error)
    assert effective > 1000
    keys = jax.random.split(jax.random.key(1), 20_000)
    found = quick_jit(jax.vmap(lambda k: binomial.bound(k, PROCESS, REVERSE, x_0)))(keys)
    spread = np.hypot(found.total.std(), log_w.std() / math.log(2)) / 20_000**0.5
    within(found.total.mean(), -log_w.mean() / math.log(2), spread)
    assert found.total.mean() - 4 * spread > -np.log2(p[5])
    np.testing.assert_allclose(found.total, found.prior + found.steps.sum(1), rtol=1e-5)

    drawn = quick_jit(jax.vmap(lambda k: binomial.sample(k, PROCESS, REVERSE, (BITS,))[-1]))(keys)
    counts = np.bincount(np.asarray(drawn).astype(int) @ [4, 2, 1], minlength=8) / 20_000
    assert (abs(counts - p) < 4.5 * np.sqrt(p / 20_000)).all()


def test_binomial_bound_is_a_sum_over_trajectories_and_entropy_bounds_hold():
    """Exact reverse rates of four sequences; H(X_s | X_t) by enumeration."""
    joint = np.zeros(len(ALL))
    joint[[int(x @ np.array([4, 2, 1])) for x in DATA]] = 0.25
    lower, upper = binomial.entropy_bounds(PROCESS)
    entropy = lambda p: float(-(p[p > 0] * np.log2(p[p > 0])).sum())
    for t in range(1, T_BITS + 1):
        both = joint[:, None] * forward_matrix(t)
        after = both.sum(0)
        conditional = (entropy(both.ravel()) - entropy(after)) / BITS
        n = T_BITS - t
        assert lower[n] - 1e-9 <= conditional <= upper[n] + 1e-9
        joint = after


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: binomial.bound(None, PROCESS, REVERSE, jnp.asarray([0, 0.5, 1])), r"x_0 has the value 0\.5: .* takes bits"),
        (lambda: binomial.annealed(None, PROCESS, REVERSE, jnp.asarray([0.0, -1, 1])), r"x_0 has the value -1: .* takes bits"),
        (lambda: PROCESS.forward(None, jnp.asarray([0.0, 255])), "x_0 has the value 255"),
        (lambda: binomial.annealed(None, PROCESS, REVERSE, jnp.asarray(DATA[0]), 1), "trajectories 1 is out of range"),
        (lambda: binomial.Binomial(np.array([0.5, 1.5])), r"beta 1\.5 is outside \(0, 1\]"),
        (lambda: binomial.Binomial(0.5), r"betas have shape \(\)"),
        (
            lambda: nonequilibrium.annealed(None, GAUSSIAN.denoiser(TABLED), KERNEL, dj.timetables.log_snr(TABLED, 4), X_0, 4),
            r"x_0 has the value 0\.5, which is no 8-bit one",
        ),
        (
            lambda: estimate(None, GAUSSIAN.denoiser(VE), dj.timetables.log_snr(VE, 4), X_0, 4, "forward"),
            "decoder 'forward' .* VE does not: use 'density'",
        ),
        (
            lambda: estimate(None, GAUSSIAN.denoiser(TABLED), dj.timetables.log_snr(TABLED, 4), X_0, 1),
            "trajectories 1 is out of range",
        ),
    ],
)
def test_errors_name_value_and_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- the product with a second distribution ---


def restored(method, table, top, n):
    """(n, 2) results from starts of deviation ``top``, which is not quite pure noise of these schedules."""

    def one(key):
        key_start, key = jax.random.split(key)
        return dj.sample(key, method, table, top * jax.random.normal(key_start, (2, 1, 1)), kernel=KERNEL).x

    return np.asarray(quick_jit(jax.vmap(one))(jax.random.split(jax.random.key(10), n)), np.float64).reshape(n, 2)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_inpainting_and_denoising_have_the_law_of_their_steps(name):
    """On a Gaussian prior every step is linear, and so is its product with r: mean and variance by recursion."""
    schedule = SCHEDULES[name]
    table, shape = descent(schedule), (2, 1, 1)
    prior = dj.priors.gaussian(MEAN.reshape(shape), VARIANCE.reshape(shape)).denoiser(schedule)
    moves = variational.rows(dj.replace(KERNEL, schedule=schedule), table, np.float64).k.move
    y, n = np.array([0.4, 0.1]), 4000
    for mask, noise, strength in (([1, 0], 0.0, 1.0), ([1, 1], 0.7, 1.0), ([0.5, 1], 0.7, 2.0)):
        m = np.array(mask, float)
        measured = dj.Measurement(jnp.asarray(y.reshape(shape)), dj.operators.Mask(m.reshape(shape)), noise, (-4.0, 4.0))
        top = 1.0 if name == "vp" else float(schedule.sigma(table.t[0]))
        x = restored(dj.methods.Nonequilibrium(prior, measured, strength), table, top, n)
        mean, variance = np.zeros(2), np.full(2, top**2)
        for k in range(len(table)):
            alpha, sigma = schedule.alpha(table.t[k]), schedule.sigma(table.t[k])
            gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
            slope, offset = moves.c_0[k] * gain + moves.c_t[k], moves.c_0[k] * (MEAN - gain * alpha * MEAN)
            step = np.exp(moves.large[k])
            precision = 1 / step + strength * m**2 / noise**2 if noise else np.where(m > 0, np.inf, 1 / step)
            pull = np.where(m > 0, y / m, 0) if noise == 0 else strength * m * y / noise**2 / precision
            keep = 1 / (step * precision)
            mean = keep * (slope * mean + offset) + pull
            variance = (keep * slope) ** 2 * variance + (1 / precision) * (k < len(table) - 1)  # none at the end
        assert (abs(x.mean(0) - mean) < 5 * np.sqrt(variance / n) + 1e-5).all()
        assert (abs(x.var(0) - variance) < 5 * variance * (2 / n) ** 0.5 + 1e-9).all()
        assert noise or np.allclose(x[:, 0], y[0], atol=1e-6)


def test_the_start_is_a_product_too():
    measured = dj.Measurement(jnp.full((2, 1, 1), 0.5), dj.operators.Mask(np.array([1.0, 0]).reshape(2, 1, 1)), 3.0)
    method, row = dj.methods.Nonequilibrium(GAUSSIAN.denoiser(VE), measured), descent(VE).rows()
    row = jax.tree.map(lambda a: a[0], row)
    x = method.start(dj.kernels.DDPM(VE), row, jnp.ones((2, 1, 1))).ravel()
    np.testing.assert_allclose(x, [0.25 + 3 / math.sqrt(2), 3.0], rtol=1e-5)  # N(0, 9) N(0.5, 9): mean 1/4, variance 9/2


def test_a_weak_second_distribution_perturbs_the_mean_by_its_gradient():
    """The paper's rule, f_mu + f_Sigma grad log r, is the limit of the exact product."""
    mean, y = (jnp.asarray(a).reshape(2, 1, 1) for a in ([0.3, -0.5], [1.0, 0.5]))
    std = jnp.float32(0.2)
    method = dj.methods.Nonequilibrium(lambda x, t: None, dj.Measurement(y, dj.operators.Mask(np.ones((2, 1, 1))), 20.0))
    moved, narrowed = method.product(mean, std)
    np.testing.assert_allclose((moved - mean) / (std**2 * (y - mean) / 20.0**2), 1, rtol=2e-3)
    np.testing.assert_allclose(narrowed, std, rtol=1e-3)


def test_a_step_without_noise_has_no_product():
    measured = dj.Measurement(jnp.zeros((2, 1, 1)), dj.operators.Mask(np.ones((2, 1, 1))))
    method = dj.methods.Nonequilibrium(dj.denoisers.from_x0(lambda x, i: x, None, TABLED), measured)
    for kernel in (dj.kernels.DDIM(), dj.kernels.Heun()):
        with pytest.raises(ValueError, match=rf"{type(kernel).__name__} adds no noise: use kernels.DDPM\(\)"):
            dj.plan(method, dj.timetables.log_snr(TABLED, 4), (2, 1, 1), kernel=kernel)
    assert len(dj.plan(method, dj.timetables.log_snr(TABLED, 4), (2, 1, 1), kernel=dj.kernels.DDIM(eta=0.5))) == 4
