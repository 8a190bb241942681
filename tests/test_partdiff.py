"""PartDiff: where a walk may start, what alignment trains, what remains of low; a sweep over K as one program."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffjax as dj
from diffjax.methods import LateStart, PartDiff, partdiff
from diffjax.sample import run
from diffjax.training import partdiff as training
from diffjax.training import state, step, times

K, S = dj.kernels, dj.schedules
T = 100
TABLE = S.discrete(S.linear_betas(T))
SHAPE = (4, 4, 1)
RNG = np.random.default_rng(0)
LOW, HIGH = (np.clip(0.5 * RNG.standard_normal(SHAPE), -1, 1).astype(np.float32) for _ in range(2))


def steps(k, schedule=TABLE):
    return dj.timetables.from_times(np.arange(k, -1, -1), schedule)


def knowing(target, k, high=HIGH, low=LOW, schedule=TABLE):
    """The network that knows the high-resolution image: what it says of it, by target, on whole steps."""

    def network(x, i):
        t = i + 1
        lam, lam_s = (k - t) / k, (k - t + 1) / k
        r = dj.process.snr_ratio(schedule, t, t - 1)
        m = {"eps": lam, "unmixed": 1.0, "drift": lam + (lam_s - lam) / (1 - r)}[target]
        return low + m * (high - low)

    return dj.denoisers.from_x0(network, None, schedule)


# --- timetables: a sweep over K is one program ----------------------------------------------------------------------


def test_a_sweep_over_k_is_one_program_and_equals_each_walk_alone():
    traces = []

    def network(params, x, i):
        traces.append(1)
        return params * jnp.tanh(x) + 0.01 * i

    denoise = dj.denoisers.from_x0(network, jnp.float32(0.5), TABLE)
    chosen, key = (10, 25, 40), jax.random.key(0)
    late = lambda k: dj.timetables.start_at(steps(T), k)
    walk = lambda table, **how: dj.sample(key, LateStart(denoise, LOW), table, SHAPE, **how).x
    alone = [walk(late(k)) for k in (10, 40)]
    walk(dj.timetables.padded(late(5), 40), part=(0, 5))
    traces.clear()
    before = run._cache_size()
    swept = [walk(dj.timetables.padded(late(k), 40), part=(0, k)) for k in chosen]
    assert not traces and run._cache_size() == before, "K = 5 was compiled, the others are that program"
    stack = jax.tree.map(lambda *a: np.stack(a), *(dj.timetables.padded(late(k), 40) for k in chosen))
    mapped = jax.jit(jax.vmap(walk))(stack)
    np.testing.assert_allclose(swept, mapped, atol=1e-5)
    np.testing.assert_allclose(swept[::2], alone, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 0.01


def test_aligned_walks_of_several_k_are_one_program_with_finite_gradients():
    network = lambda c, x, i: c * jnp.tanh(x)

    def end(c, low, k, table):
        return dj.sample(jax.random.key(1), PartDiff(dj.denoisers.from_x0(network, c, TABLE), low, k, move="drift"), table,
                         SHAPE).x.sum()  # fmt: skip

    sweep = jax.jit(jax.vmap(jax.value_and_grad(end, (0, 1)), (None, None, 0, 0)))
    chosen = np.array([5.0, 12.0], np.float32)
    tables = jax.tree.map(lambda *a: np.stack(a), *(dj.timetables.padded(steps(int(k)), 12) for k in chosen))
    values, gradients = sweep(jnp.float32(0.3), LOW, chosen, tables)
    value, gradient = jax.jit(jax.value_and_grad(end, (0, 1)))(jnp.float32(0.3), LOW, chosen[0], steps(5))
    np.testing.assert_allclose(values[0], value, rtol=1e-4)
    for a, b in zip(gradients, gradient):
        assert np.isfinite(a).all() and np.abs(b).max() > 0
        np.testing.assert_allclose(a[0], b, rtol=1e-3, atol=1e-4)


def test_a_padded_table_keeps_its_rows_and_says_what_it_cannot():
    table = dj.timetables.start_at(dj.timetables.log_snr(TABLE, 6), 30.0)
    longer = dj.timetables.padded(table, len(table) + 3)
    for name in ("t", "s", "r", "up", "level", "i", "fresh", "log_snr"):
        np.testing.assert_array_equal(getattr(longer, name)[: len(table)], getattr(table, name), err_msg=name)
    assert (longer.t[len(table) :] == 0).all() and (longer.s == longer.r).all()
    assert list(longer.i) == list(range(len(longer))) and longer.fresh[len(table) :].all()
    with pytest.raises(ValueError, match="cannot be padded to 2: give at least"):
        dj.timetables.padded(table, 2)


# --- walks --------------------------------------------------------------------------------------------------------


PAIRS = [("eps", "eps"), ("eps", "unmixed"), ("eps", "drift"), ("unmixed", "drift"), ("drift", "drift"), ("drift", "eps")]


def reached(target, k):
    """(T + 1,): m of a target, by hand."""
    t = np.arange(T + 1)
    lam, lam_s = np.clip((k - t) / k, 0, 1), np.clip((k - t + 1) / k, 0, 1)
    r = dj.process.snr_ratio(TABLE, t, np.maximum(t - 1, 0))
    return {"eps": lam, "unmixed": 1 + 0 * lam, "drift": lam + (lam_s - lam) / np.where(t > 0, 1 - r, 1)}[target]


@pytest.mark.parametrize(("target", "move"), PAIRS)
def test_what_is_left_of_low(target, move):
    """A network that knows high, told to say each target, walked as each: "eps" ends at high + (low - high) / K, and on
    fewer rows at the share that the last one leaves; the others end at high, whatever was trained. DDIM, DDPM and between."""
    network = lambda m, x, i: LOW + m[jnp.round(i + 1).astype(int)] * (HIGH - LOW)

    def end(k, m, table, eta):
        method = PartDiff(dj.denoisers.from_x0(network, m, TABLE), LOW, k, target=target, move=move, guess=HIGH)
        return dj.sample(jax.random.key(0), method, table, SHAPE, kernel=K.DDIM(eta=eta)).x

    walks = [(5, 5), (20, 20), (20, 4)]
    tables = [dj.timetables.padded(dj.timetables.from_times(np.linspace(k, 0, n + 1), TABLE), 20) for k, n in walks]
    sweep = jax.vmap(jax.vmap(end, (0, 0, 0, None)), (None, None, None, 0))
    k, m = np.array([float(k) for k, _ in walks], np.float32), np.stack([reached(target, k) for k, _ in walks])
    x = jax.jit(sweep)(
        k, m.astype(np.float32), jax.tree.map(lambda *a: np.stack(a), *tables), np.array([0.0, 0.5, 1.0], np.float32)
    )
    for n, (_, rows) in enumerate(walks):
        left = 1 / rows if move == "eps" else 0.0
        np.testing.assert_allclose(x[:, n], np.stack(3 * [HIGH + left * (LOW - HIGH)]), atol=3e-5)


def test_lambda_of_the_step_below_reaches_high():
    """ahead = 1: lambda_{t-1} in place of lambda_t."""
    k = 10
    assert partdiff.share(1, k, 1.0) == 1 and partdiff.share(k, k, 1.0) == 1 / k
    network = lambda x, i: LOW + (k - i) / k * (HIGH - LOW)  # i = t - 1
    method = PartDiff(dj.denoisers.from_x0(network, None, TABLE), LOW, k, ahead=1.0)
    np.testing.assert_allclose(dj.sample(jax.random.key(0), method, steps(k), SHAPE).x, HIGH, atol=1e-5)


@pytest.mark.parametrize("move", ["eps", "drift"])
def test_residue_on_a_gaussian_follows_the_recursion_of_its_mean(move):
    """high given low is N(m, v): the mean of the walk is a recursion of three lines, written out here. The residue of "eps" is
    1 / K where low determines high (v = 0), and grows with v: what the latent lacks of high, the network takes for high's own.
    That of "drift" begins at 0."""
    m, low, k, schedule = 0.8, -0.2, 25, S.discrete(S.linear_betas(T, 1e-4, 0.12, rescale=False))
    variances = np.array([0.0, 0.01, 0.1, 1.0])

    def known(x, t, a, s, v):
        """E[high | x^_t] at lambda of t."""
        lam = (k - t) / k
        return m + a * lam * v / ((a * lam) ** 2 * v + s**2) * (x - a * (low + lam * (m - low)))

    mean = schedule.alpha(k) * low + 0 * variances
    for t in range(k, 0, -1):
        high, lam = known(mean, t, schedule.alpha(t), schedule.sigma(t), variances), (k - t) / k
        c_0, c_t, _ = dj.process.posterior(schedule, t, t - 1)
        drift = schedule.alpha(t - 1) / k * (high - low) if move == "drift" else 0
        mean = c_0 * (low + lam * (high - low)) + c_t * mean + drift
    left = (m - mean) / (m - low)

    def network(v, x, i):
        t = i + 1
        return low + (k - t) / k * (known(x, t, schedule.alpha(t), schedule.sigma(t), v) - low)

    def end(v):
        method = PartDiff(dj.denoisers.from_x0(network, v, schedule), np.full(1, low), k, move=move, guess=np.full(1, m))
        none = dj.Draws(np.zeros(1), np.zeros((k, 1)))  # the walk is linear: without noise it is its mean
        return dj.sample(None, method, steps(k, schedule), (1,), recorded=none, dtype=jnp.float64).x[0]

    with jax.enable_x64(True):
        np.testing.assert_allclose((m - np.asarray(jax.jit(jax.vmap(end))(variances))) / (m - low), left, atol=1e-9)
    assert abs(left[0] - (1 / k if move == "eps" else 0)) < 1e-12
    assert (np.diff(left) > 0).all() if move == "eps" else (np.abs(left) < 0.05).all()


@pytest.fixture(scope="module")
def gaussian():
    """high is N(mean, variance) whatever low is; walks from K = 0.4 of a formula."""
    mean, variance = 0.4 * RNG.standard_normal(SHAPE), 0.02 + 0.3 * RNG.random(SHAPE)
    return mean, variance, dj.priors.gaussian(mean, variance), S.VP()


def test_a_prior_is_aligned_by_a_change_of_variables(gaussian):
    """Against conditioning the joint Gaussian of high and its latent."""
    mean, variance, prior, schedule = gaussian
    aligned = partdiff.Aligned(prior.denoiser(schedule), LOW, 0.4)
    with jax.enable_x64(True):
        x = RNG.standard_normal(SHAPE)
        for t in (0.01, 0.1, 0.25, 0.39):
            a, s, lam = schedule.alpha(t), schedule.sigma(t), (0.4 - t) / 0.4
            gain = a * lam * variance / ((a * lam) ** 2 * variance + s**2)
            expected = mean + gain * (x - a * (lam * mean + (1 - lam) * LOW))
            p = aligned(jnp.asarray(x), jnp.float64(t))
            np.testing.assert_allclose(p.x0, expected, atol=1e-6)
            np.testing.assert_allclose(a * p.x0 + s * p.eps, x, atol=1e-9)


@pytest.mark.parametrize("move", ["drift", "unmixed"])
def test_drift_in_short_steps_ends_in_the_posterior_of_high(gaussian, move):
    """Known answer: mean and variance of high given low. "unmixed" walks off the latents it was trained on, and misses."""
    mean, variance, prior, schedule = gaussian
    table = dj.timetables.log_snr(schedule, 300, t_max=0.4)

    def end(start):
        method = PartDiff(partdiff.Aligned(prior.denoiser(schedule), LOW, 0.4), LOW, 0.4, target="unmixed", move=move)
        return dj.sample(None, method, table, SHAPE, kernel=K.DDIM(), dtype=jnp.float64, recorded=dj.Draws(start, ())).x

    with jax.enable_x64(True):
        middle, high = jax.jit(jax.vmap(end))(np.stack([np.zeros(SHAPE), np.ones(SHAPE)]))  # linear, pixel by pixel
        middle, high = np.asarray(middle), np.asarray(high)
    off, ratio = np.abs(middle - mean).max(), (high - middle) ** 2 / variance
    right = off < 0.02 and (np.abs(ratio - 1) < 0.05).all()
    assert right == (move == "drift"), (off, ratio.min(), ratio.max())


# --- where to start -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "ancestral"), [(K.DDPM(), True), (K.DDIM(), False)], ids=["ddpm", "ddim"])
def test_the_start_that_forgets_all_but_a_tenth(kernel, ancestral):
    """Two walks with the same noise from two images, under a Gaussian prior: what is left of their difference."""
    schedule, spread = S.VP(), np.linspace(0.05, 0.5, 4)
    prior = dj.priors.gaussian(np.zeros(4), spread**2)
    for keep in (0.05, 0.3):
        for n in (0, 3):
            t = partdiff.start_time(schedule, spread[n], keep, ancestral)
            table = dj.timetables.log_snr(schedule, 400, t_max=float(t))
            end = lambda low: dj.sample(jax.random.key(0), LateStart(prior.denoiser(schedule), low), table, (4,),
                                        kernel=kernel).x  # fmt: skip
            left = np.asarray(end(np.full(4, 0.7, np.float32)) - end(np.full(4, -0.3, np.float32)))
            np.testing.assert_allclose(left, partdiff.contraction(schedule, t, spread**2, ancestral), rtol=0.03, atol=1e-3)
            assert abs(left[n] / keep - 1) < 0.03


def test_start_time_of_tables_and_its_ends():
    rule = partdiff.start_time
    assert rule(TABLE, 0.1) == np.ceil(rule(TABLE, 0.1)) and 1 <= rule(TABLE, 0.0) < rule(TABLE, 0.1) < rule(TABLE, 0.3) <= T
    assert rule(TABLE, 0.1, 0.05) > rule(TABLE, 0.1) and rule(TABLE, 0.1, ancestral=False) > rule(TABLE, 0.1)
    t = rule(TABLE, 0.1)
    assert partdiff.contraction(TABLE, t, 0.01) <= 0.1 < partdiff.contraction(TABLE, t - 1, 0.01)
    for call, words in ((lambda: rule(TABLE, -1.0), "distance -1"), (lambda: rule(TABLE, 0.1, 1.0), "keep 1 is out of range")):
        with pytest.raises(ValueError, match=words):
            call()


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", training.PREDICTIONS)
@pytest.mark.parametrize("target", partdiff.TARGETS)
def test_the_network_that_knows_high_has_no_loss(target, prediction):
    """And no other target's network has none; its noise is that of x0 = low + m (high - low)."""
    k, noise = 20, RNG.standard_normal(SHAPE).astype(np.float32)

    def network(of):
        p = lambda x, i: knowing(of, k)(x, i + 1)
        v = lambda p, t: TABLE.alpha(t) * p.eps - TABLE.sigma(t) * p.x0
        return lambda x, i: {"eps": p(x, i).eps, "x0": p(x, i).x0, "v": v(p(x, i), i + 1)}[prediction]

    for t in (1.0, 7.0, 19.0):
        found = {of: training.loss(network(of), TABLE, LOW, HIGH, t, noise, k, target=target, prediction=prediction,
                                   norm="l1")[0] for of in partdiff.TARGETS}  # fmt: skip
        assert found[target] < 1e-5
        assert all(found[of] > 1e-4 for of in found if of != target and not (t == 1 and {of, target} == {"unmixed", "drift"}))


@pytest.mark.parametrize("prediction", training.PREDICTIONS)
@pytest.mark.parametrize("target", ["eps", "drift"])
def test_kl_weighting_is_the_kl_of_two_gaussians(target, prediction):
    """KL(q || p_theta) per pixel: means from the printed posterior and from a network's step, one variance."""
    k, t, noise = 20, 8.0, RNG.standard_normal(SHAPE)
    with jax.enable_x64(True):
        wrong = lambda x, i: 0.3 * x + 0.1
        got, _ = training.loss(wrong, TABLE, LOW, HIGH, t, noise, k, target=target, prediction=prediction, weighting="kl")
        lam_q = partdiff.share(t if target == "eps" else t - 1, k)
        mean, std = partdiff.posterior(TABLE, LOW, HIGH, noise, t, t - 1, lam_q)
        x = dj.process.q_sample(TABLE, partdiff.mixed(LOW, HIGH, partdiff.share(t, k)), t, noise)
        p = getattr(dj.denoisers, f"from_{prediction}")(wrong, None, TABLE)(x, t)
        c_0, c_t, _ = dj.process.posterior(TABLE, t, t - 1)
        expected = np.mean((c_0 * p.x0 + c_t * x - mean) ** 2) / (2 * std**2)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def linear(told):
    """x0 = low + lambda c low: one number to learn. high is 2 low, so that it is 1."""

    def apply(params, x, i, cond, train=False, rngs=None):
        lam = cond[..., 1:] if told else partdiff.share(i + 1, 25)
        return cond[..., :1] * (1 + lam * params)

    return types.SimpleNamespace(apply=apply)


@pytest.mark.parametrize("told", [False, True], ids=["one K", "all K"])
def test_training_with_alignment_from_examples_to_images(told):
    net, lows = linear(told), 0.4 * RNG.standard_normal((16, *SHAPE)).astype(np.float32)
    how = {"tell": partdiff.with_plane} if told else {}
    example = training.example_loss(net, TABLE, (5, 40) if told else 25, prediction="x0", **how)
    rule = times.Uniform(whole=True, top=40 if told else 25)
    optimizer, params = optax.adam(0.05), jnp.float32(0.0)
    train = step.train_step(step.mean_loss(example, TABLE, rule=rule), optimizer, ema=0.9, key=jax.random.key(0))
    now = state.init_state(params, optimizer)
    for _ in range(150):
        now, _ = train(now, {"x": 2 * lows, "cond": lows})
    (player,) = now.players.values()
    np.testing.assert_allclose(player.params, 1.0, atol=1e-3)
    for k in (8, 25, 40) if told else (25,):
        denoise = dj.denoisers.from_x0(net.apply, player.params, TABLE, cond=lows[0])
        method = PartDiff(denoise, lows[0], k, move="drift", **how)
        x = dj.sample(jax.random.key(0), method, steps(k), SHAPE).x
        np.testing.assert_allclose(x, 2 * lows[0], atol=5e-3)
    held_out = step.held_out(example, TABLE, levels=(0.05, 0.2))
    assert (np.asarray(held_out(player.params, {"x": 2 * lows, "cond": lows})["loss"]) < 1e-4).all()


def test_times_stay_at_and_below_k():
    draw = lambda rule: np.asarray(jax.vmap(lambda k: rule.draw(k, 8, TABLE)[0])(jax.random.split(jax.random.key(0), 200)))
    whole, any_ = draw(times.Uniform(whole=True, top=25)), draw(times.Uniform(top=25.0))
    assert set(whole.ravel()) == set(range(1, 26)) and 1 <= any_.min() < 1.2 and 24.8 < any_.max() <= 25


# --- what is refused ------------------------------------------------------------------------------------------------


def test_what_is_refused_in_one_line():
    denoise = knowing("eps", 25)
    walk = lambda method, k=25, **how: dj.sample(jax.random.key(0), method, steps(k), SHAPE, **how)
    eps = functools.partial(training.loss, lambda x, i: x, TABLE, LOW, HIGH, 3.0, HIGH, 25)
    net = linear(False)
    for call, words in (
        (lambda: walk(LateStart(denoise)), "LateStart has no image to start from: pass low="),
        (lambda: walk(LateStart(denoise, LOW[:2])), "low has shape (2, 4, 1)"),
        (lambda: walk(PartDiff(denoise, LOW)), "PartDiff has no K"),
        (lambda: walk(PartDiff(denoise, LOW, 30)), "starts at t = 25, the network was aligned from K = 30: use timetables"),
        (lambda: PartDiff(denoise, LOW, 0.0), "K 0 is out of range"),
        (lambda: PartDiff(denoise, LOW, 25, target="drif"), "target 'drif' is unknown: did you mean 'drift'"),
        (lambda: PartDiff(denoise, LOW, 25, move="esp"), "move 'esp' is unknown"),
        (lambda: walk(PartDiff(denoise, LOW, 25, move="drift"), kernel=K.Heun()), "not to Heun: use DDPM() or DDIM()"),
        (lambda: eps(norm="l3"), "norm 'l3' is unknown"),
        (lambda: eps(prediction="score"), "prediction 'score' is unknown"),
        (lambda: eps(weighting="kl", norm="l1"), 'weighting "kl" is that of'),
        (lambda: training.example_loss(net, TABLE, (5, 40)), "K (5, 40) is a range: the network must be told lambda"),
        (lambda: training.example_loss(net, TABLE, (40, 5), tell=partdiff.with_plane), "K (40, 5) are empty"),
        (lambda: training.example_loss(net, TABLE, 25)(0.0, jax.random.key(0), {"x": HIGH}, 3.0, True), 'has no "cond"'),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert words in str(error.value) and "\n" not in str(error.value)
