"""Training with any condition (an image, tokens), with its dropout, and with several networks that take turns."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffjax as dj
from diffjax import denoisers, schedules, zoo
from diffjax.training import checkpoints, data, losses, state, step

HALF = schedules.discrete(np.full(1, 0.5))  # one level: alpha^2 = sigma^2 = 1/2
COSINE = schedules.discrete(schedules.cosine_betas(50))


def fit(net, schedule, loss, examples, params, null, steps=300, batch=64):
    """The averaged parameters after a short training with a quarter of the conditions dropped."""
    example = step.example_loss(net, schedule, loss, null=null, dropout=0.25)
    optimizer = state.adam(state.warmup_stable_decay(0.1, steps, 2, steps // 2))
    one = step.train_step(step.mean_loss(example, schedule), optimizer, ema=0.9, key=jax.random.key(1))
    stream, s = data.Stream(examples, batch), state.init_state(params, optimizer)
    for n in range(steps):
        s, _ = one(s, stream(n))
    return s.ema


@pytest.fixture(autouse=True)
def count_from_zero():
    chex.clear_trace_counter()


class Enlarges:
    """v from x and a small image: known (a x + b enlarged) + (1 - known) c x."""

    def apply(self, params, x, i, cond, train=False, rngs=None):
        up = jnp.repeat(jnp.repeat(cond["low"], 2, 0), 2, 1)
        with_image = params["a"] * x + params["b"] * up
        return cond["known"] * with_image + (1 - cond["known"]) * params["c"] * x


def test_a_small_image_as_condition():
    """x_0 is the small image enlarged, so v = (alpha / sigma) x - x_0 / sigma is known exactly: a = 1, b = -sqrt 2. Without
    it the best is c = (1 - m) / (1 + m), m the mean square (as in test_training). Were the leaves dropped one by one, a
    black image would come with known = 1 and spoil a and b."""
    low = np.random.default_rng(0).choice([-0.8, -0.2, 0.2, 0.8], (400, 2, 2, 1)).astype(np.float32)
    examples = {"x": low.repeat(2, 1).repeat(2, 2), "cond": {"low": low, "known": np.ones(400, np.float32)}}
    params = {"a": jnp.array(0.3), "b": jnp.array(0.0), "c": jnp.array(0.0)}
    got = fit(Enlarges(), HALF, losses.v_loss, examples, params, {"low": 0.0, "known": 0.0})
    m = (low**2).mean()
    np.testing.assert_allclose([got["a"], got["b"]], [1, -np.sqrt(2)], atol=0.02)
    np.testing.assert_allclose(got["c"], (1 - m) / (1 + m), atol=0.06)  # estimated from a quarter of 64 images a step


class Reads:
    """x_0, a plain image as bright as its two words on average; without words a guess."""

    def apply(self, params, x, i, cond, train=False, rngs=None):
        here = jnp.any(cond["tokens"] > 0)
        return jnp.full_like(x, 1.0) * jnp.where(here, params["words"][cond["tokens"]].mean(), params["guess"])


LEVELS = np.array([0.0, -0.6, 0.1, 0.7], np.float32)  # of the words; word 0 is no word
WORDS = np.random.default_rng(0).integers(1, 4, (400, 2))


@pytest.fixture(scope="module")
def reader():
    images = np.broadcast_to(LEVELS[WORDS].mean(1)[:, None, None, None], (400, 4, 4, 1))
    examples = {"x": images, "cond": {"tokens": WORDS}}
    params = {"words": jnp.zeros(4), "guess": jnp.array(0.0)}
    trained = fit(Reads(), COSINE, losses.x0_loss, examples, params, {"tokens": 0})
    null = {"tokens": np.zeros(2, int)}
    return zoo.Prior(trained, COSINE, "reader", Reads(), (4, 4, 1), "x0", null=null, conditional=True), examples


def test_tokens_as_condition_from_training_to_samples(reader):
    prior, examples = reader
    guess = LEVELS[WORDS].mean()
    np.testing.assert_allclose(prior.params["words"][1:], LEVELS[1:], atol=0.02)
    np.testing.assert_allclose(prior.params["guess"], guess, atol=0.06)

    table = dj.timetables.log_snr(COSINE, 4)
    walk = lambda key, cond: dj.sample(key, prior.denoiser(cond, 2.0, clip=False), table, (4, 4, 1)).x
    paint = jax.jit(chex.assert_max_traces(walk, n=1))
    for words in ([1, 1], [3, 2]):
        expected = prior.params["guess"] + 2 * (LEVELS[words].mean() - prior.params["guess"])
        np.testing.assert_allclose(paint(jax.random.key(0), {"tokens": jnp.array(words)}), expected, atol=0.06)

    example = step.example_loss(prior.net, COSINE, losses.x0_loss, null={"tokens": 0}, dropout=0.5)
    held_out = step.held_out(example, COSINE, levels=(0.2, 0.8))
    terms = held_out(prior.params, jax.tree.map(lambda a: a[:16], examples))
    assert (terms["loss"] < 4e-4).all() and terms["loss"].shape == (2,), "nothing is dropped when it is measured"


def test_what_a_prior_with_a_condition_refuses(reader):
    prior, _ = reader
    unguided = dataclasses.replace(prior, null=None)
    cond = {"tokens": jnp.array([1, 2])}
    for call, message in (
        (lambda: prior.denoiser({"words": cond["tokens"]}), "another structure"),
        (lambda: prior.denoiser({"tokens": jnp.arange(5)}), "shape (2,) where ['tokens'] is (5,)"),
        (lambda: prior.denoiser(scale=2.0), "needs a condition to guide towards"),
        (lambda: unguided.denoiser(), "needs a condition and has no null"),
        (lambda: unguided.denoiser(cond, 2.0), "no null condition"),
        (lambda: dataclasses.replace(unguided, conditional=False).denoiser(cond), "knows no labels"),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert message in str(error.value) and "\n" not in str(error.value)
    null = prior.denoiser(clip=False)(jnp.zeros((4, 4, 1)), 20.0)
    np.testing.assert_allclose(null.x0, prior.params["guess"], rtol=1e-6)
    unguided.denoiser(cond)


@pytest.mark.parametrize(
    "options, example, message",
    [
        ({"dropout": 0.1}, None, "needs a null"),
        ({"dropout": 1.5, "null": 0}, None, "choose it in [0, 1]"),
        ({}, {"image": np.zeros(2)}, "got entries image"),
        ({}, np.zeros(2, np.float32), "got a "),
        ({"dropout": 0.1, "null": {"a": 0}}, {"x": np.zeros(2), "cond": 3}, "another structure"),
    ],
)
def test_examples_that_do_not_fit(options, example, message):
    with pytest.raises(ValueError) as error:
        step.example_loss(Reads(), COSINE, losses.x0_loss, **options)({}, jax.random.key(0), example, 3.0, True)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_network_trained_on_the_noise_level_is_told_it():
    told = []
    net = lambda x, i: (told.append(i), x)[1]
    for loss in (losses.v_loss, losses.eps_loss, losses.x0_loss):
        loss(net, COSINE, jnp.zeros(3), 20, jnp.ones(3), time=denoisers.NoiseLevel())
    np.testing.assert_allclose(told, np.sqrt(np.prod(1 - schedules.cosine_betas(50)[:20])), rtol=1e-6)


# --- several networks ---------------------------------------------------------------------------------------------


def game(decays):
    """Two numbers, each with its optimiser: a wants to be b, b wants to be three times a, from the third step on."""

    @chex.assert_max_traces(n=1)
    def first(params, key, batch, step):
        difference = params["a"]["w"] - params["b"]["w"]
        return 0.5 * difference**2, {"difference": difference}

    def second(params, key, batch, step):
        return 0.5 * (step >= 2) * (params["b"]["w"] - 3 * params["a"]["w"] + batch["x"].mean()) ** 2, {}

    optimizers = {"a": optax.sgd(0.1), "b": optax.sgd(0.2, momentum=0.5)}
    one = step.train_step({"a": first, "b": second}, optimizers, ema=decays, key=jax.random.key(0))
    kept = {name: decay is not None for name, decay in decays.items()}
    s = state.init_state({"a": {"w": jnp.array(1.0)}, "b": {"w": jnp.array(2.0)}}, optimizers, kept)
    return one, s


def test_two_players_take_turns(tmp_path):
    one, s = game({"a": 0.5, "b": None})
    a, b, ema, velocity = 1.0, 2.0, 1.0, 0.0
    for n in range(4):
        s, metrics = one(s, {"x": jnp.ones(8)})
        np.testing.assert_allclose(metrics["a.difference"], a - b, rtol=1e-5)
        np.testing.assert_allclose(metrics["a.loss"], (a - b) ** 2 / 2, rtol=1e-5)
        a -= 0.1 * (a - b)
        velocity = 0.5 * velocity + (b - 3 * a + 1) * (n >= 2)  # the second sees what the first has become
        b -= 0.2 * velocity
        decay = min(0.5, (1 + n) / (10 + n))
        ema = decay * ema + (1 - decay) * a
        np.testing.assert_allclose([s.players["a"].params["w"], s.players["b"].params["w"]], [a, b], rtol=1e-5)
    assert set(metrics) == {"a.loss", "a.grad_norm", "a.difference", "b.loss", "b.grad_norm"} and int(s.step) == 4
    np.testing.assert_allclose(s.players["a"].ema["w"], ema, rtol=1e-5)
    assert s.players["b"].ema is None

    with checkpoints.Checkpoints(tmp_path, metric="score", largest=True) as store:
        store.save(4, state.to_items(s), 0.5)
        store.save(5, state.to_items(dataclasses.replace(s, step=s.step + 1)), 0.3)
        store.wait()
        assert store.best() == 4
        again = state.from_items(store.restore(checkpoints.abstract(state.to_items(s)), "best"))
        assert set(store.read("ema")[0]) == {"a"}
    chex.assert_trees_all_equal(again, s)


def test_what_players_refuse():
    one, s = game({"a": 0.5, "b": 0.5})
    with pytest.raises(ValueError, match="players a, b"):
        _ = s.params
    alone = dataclasses.replace(s, players={"a": s.players["a"]})
    with pytest.raises(ValueError, match="differ in 'b'"):
        one(alone, {"x": jnp.ones(8)})
    with pytest.raises(ValueError, match="differ in 'c'"):
        state.init_state({"a": {}, "c": {}}, {"a": optax.sgd(0.1)})
    one, _ = game({"a": None, "b": 0.5})
    with pytest.raises(ValueError, match="keeps an average"):
        one(s, {"x": jnp.ones(8)})
