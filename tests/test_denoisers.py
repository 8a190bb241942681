"""What a network is told: its time and its condition, both pytrees; guidance acts on the whole condition."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import denoisers, schedules
from diffjax.denoisers import IndexTime, LogSNR, NoiseLevel, Scaled, Sigma

VP = schedules.discrete(schedules.linear_betas(100))
SHAPE = (4, 4, 1)
X = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


@pytest.fixture(autouse=True)
def count_from_zero():
    chex.clear_trace_counter()


def tells(x, i):
    """A network that predicts the time it is told."""
    return jnp.full_like(x, i)


def told(denoise, t=40.0, x=X):
    return denoise(x, t).eps[0, 0, 0]


def shifted(shift, t):
    return shift + t


# --- times --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1.0, 40.0, 99.5])
def test_each_time_is_what_its_name_says(t):
    """Against the table of cumulative products, not the schedule's own methods; between entries log-SNR is linear."""
    abar = np.append(1.0, np.cumprod(1 - schedules.linear_betas(100)))
    low, high = int(np.floor(t)), int(np.ceil(t))
    log_snr = np.log(abar / np.maximum(1 - abar, 1e-300))
    lam = 0.5 * (log_snr[low] + log_snr[high])
    alpha, sigma = 1 / np.sqrt(1 + np.exp(-lam)), 1 / np.sqrt(1 + np.exp(lam))
    expected = (
        (None, t - 1),
        (IndexTime(), t - 1),
        (Scaled(0.25), (t - 1) / 4),
        (NoiseLevel(), alpha),
        (Sigma(2.0), 2 * sigma / alpha),
        (LogSNR(), lam),
        (lambda t: 7 * t, 7 * t),
        (jax.tree_util.Partial(shifted, 3.0), t + 3),
    )
    for time, value in expected:
        np.testing.assert_allclose(told(denoisers.from_eps(tells, None, VP, time=time), t), value, rtol=2e-6)


@pytest.mark.parametrize(
    "make",
    [Scaled, Sigma, LogSNR, lambda a: jax.tree_util.Partial(shifted, a)],
    ids=["scaled", "sigma", "log_snr", "partial"],
)
def test_a_time_built_anew_costs_no_retrace_and_its_fields_are_leaves(make):
    run = jax.jit(chex.assert_max_traces(lambda denoise: told(denoise), n=1))
    build = lambda a: denoisers.from_eps(tells, None, VP, time=make(a))
    values = [float(run(build(jnp.float32(a)))) for a in (1.0, 2.0, 3.0)]
    slope = values[1] - values[0]  # all of these are linear in their field
    np.testing.assert_allclose(values[2] - values[1], slope, rtol=1e-5)
    assert abs(slope) > 1e-3
    many = jax.jit(jax.vmap(jax.value_and_grad(lambda a: told(build(a)))))(jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(many, [values, [slope] * 3], rtol=1e-5)


def test_the_noise_level_follows_the_schedule_it_is_used_with():
    """SR3 is told sqrt(abar): no retrace for another schedule, and a gradient into its betas."""
    run = jax.jit(chex.assert_max_traces(lambda s: told(denoisers.from_eps(tells, None, s, time=NoiseLevel())), n=1))
    for betas in (schedules.linear_betas(100), schedules.cosine_betas(100)):
        np.testing.assert_allclose(run(schedules.discrete(betas)), np.sqrt(np.prod(1 - betas[:40])), rtol=1e-5)
    level = lambda beta: told(denoisers.from_eps(tells, None, schedules.discrete(beta * jnp.ones(100)), time=NoiseLevel()))
    np.testing.assert_allclose(jax.jit(jax.grad(level))(0.02), -20 * 0.98**19, rtol=1e-4)  # (1 - beta)^20 at t = 40


def test_previous_mean_and_edm_networks_take_times_and_conditions_too():
    network = lambda x, i, c: jnp.full_like(x, i) + c
    p = denoisers.from_previous(network, None, VP, time=Scaled(2.0), cond=5.0)
    out, _ = p.inner.output(X, 40.0)
    np.testing.assert_allclose(out, 2 * 39 + 5.0)
    vp = schedules.VP()
    a, s, d = vp.alpha(0.5), vp.sigma(0.5), 0.5
    noise, u = s / a, X / a  # table 1 of the paper
    c_skip, c_out, c_in = d**2 / (noise**2 + d**2), noise * d / np.sqrt(noise**2 + d**2), 1 / np.sqrt(noise**2 + d**2)
    for time, value in ((None, np.log(noise) / 4), (Scaled(0.001), 0.4995)):
        p = denoisers.from_edm(lambda x, i, c: network(x, i, c) + x, None, vp, time=time, cond=5.0)(X, 0.5)
        np.testing.assert_allclose(p.x0, c_skip * u + c_out * (c_in * u + value + 5.0), rtol=1e-5)


def test_edm_where_nothing_of_the_image_is_left():
    """At alpha = 0 the input is x / sigma, its log-noise large and finite, and x0 = sigma_data F."""
    flow = schedules.RectifiedFlow()
    seen = []
    p = denoisers.from_edm(lambda x, i: (seen.append((x, i)), 0.3 * x)[1], None, flow)(X, 1.0)
    np.testing.assert_allclose(seen[0][0], X, rtol=1e-6)
    assert 5 < seen[0][1] < 100
    np.testing.assert_allclose(p.x0, 0.5 * 0.3 * X, rtol=1e-6)
    assert np.isfinite(p.eps).all()


# --- conditions ---------------------------------------------------------------------------------------------------


def network(params, x, i, cond):
    """eps from all leaves of a condition."""
    words = params["words"][cond["tokens"]] * cond["mask"]
    return x + 0.01 * i + words.sum() + cond["low"].mean()


PARAMS = {"words": jnp.array([0.0, 1.0, 10.0, 100.0])}
COND = {"tokens": jnp.array([1, 2, 0]), "mask": jnp.array([1.0, 1.0, 0.0]), "low": jnp.full((2, 2, 1), 0.5)}
NULL = {"tokens": 0, "mask": 0.0, "low": 0.0}


def test_guidance_acts_on_the_whole_condition():
    with_condition = denoisers.from_eps(network, PARAMS, VP, cond=COND)
    base = X + 0.01 * 39
    np.testing.assert_allclose(with_condition.output(X, 40.0)[0], base + 11.5, rtol=1e-6)
    for wrapped in (with_condition, denoisers.clipped(with_condition, keep_eps=True)):
        eps = jax.jit(lambda scale, w=wrapped: denoisers.classifier_free(w, COND, NULL, scale)(X, 40.0).eps)
        for scale in (0.0, 1.0, 3.0):
            np.testing.assert_allclose(eps(scale), base + scale * 11.5, atol=1e-4)


def test_another_condition_costs_no_retrace_and_gradients_reach_it():
    run = jax.jit(chex.assert_max_traces(lambda denoise: denoise(X, 40.0).eps.mean(), n=1))
    guided = lambda tokens, low, scale: denoisers.classifier_free(
        denoisers.from_eps(network, PARAMS, VP), {**COND, "tokens": tokens, "low": low}, NULL, scale
    )
    first = run(guided(jnp.array([1, 2, 0]), COND["low"], 2.0))
    second = run(guided(jnp.array([3, 2, 0]), 2 * COND["low"], 2.0))
    np.testing.assert_allclose(second - first, 2 * (99 + 0.5), rtol=1e-5)
    value = lambda tokens, low: guided(tokens, low, 2.0)(X, 40.0).eps.mean()
    tokens, low = jnp.array([[1, 2, 0], [3, 2, 0]]), COND["low"]
    many, slopes = jax.jit(jax.vmap(jax.value_and_grad(value, 1), (0, None)))(tokens, low)
    np.testing.assert_allclose(slopes, np.full((2, 2, 2, 1), 2 / 4), rtol=1e-5)
    np.testing.assert_allclose(many[1] - many[0], 2 * 99, rtol=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d: denoisers.classifier_free(d, COND, {"tokens": 0}), "another structure"),
        (lambda d: denoisers.classifier_free(d, COND, {**NULL, "mask": np.zeros(2)}), "shape (2,) where ['mask'] is (3,)"),
        (lambda d: denoisers.classifier_free(lambda x, t: d(x, t), COND, NULL), "takes no condition"),
    ],
)
def test_conditions_that_do_not_fit(call, message):
    with pytest.raises(ValueError) as error:
        call(denoisers.from_eps(network, PARAMS, VP, cond=COND))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_classifier_guidance_is_finite_where_nothing_of_the_image_is_left():
    flow = schedules.RectifiedFlow()
    denoise = denoisers.classifier(
        denoisers.from_velocity(lambda x, i: 0.5 * x, None, flow), lambda x, t: jnp.ones_like(x), 2.0
    )
    p = jax.jit(denoise)(X, 1.0)
    chex.assert_tree_all_finite(p)
    np.testing.assert_allclose(p.eps, X - 2.0, rtol=1e-6)  # velocity eps - x0 = x / 2 at x = eps gives eps = x
    slope = jax.jit(jax.grad(lambda x: denoise(x, 1.0).x0.sum()))(X)
    chex.assert_tree_all_finite(slope)


# --- the program --------------------------------------------------------------------------------------------------


class Net:
    """Compared by value, as Flax modules are."""

    def __init__(self, gain):
        self.gain = gain

    def __eq__(self, other):
        return isinstance(other, Net) and self.gain == other.gain

    def __hash__(self):
        return hash(self.gain)

    def apply(self, params, x, i):
        return self.gain * params * x


def test_an_equal_network_built_again_is_the_same_program():
    run = jax.jit(chex.assert_max_traces(lambda denoise: denoise(X, 40.0).eps, n=1))
    for params in (1.0, 2.0):
        np.testing.assert_allclose(run(denoisers.from_eps(Net(3).apply, params, VP)), 3 * params * X, rtol=1e-6)
    other = jax.tree.structure(denoisers.from_eps(Net(4).apply, 1.0, VP))
    assert other != jax.tree.structure(denoisers.from_eps(Net(3).apply, 1.0, VP))
