"""The study of enlarged garments and of fruits' colours: its loss, its walks, its sweeps, its scores."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.methods import partdiff
from diffjax.training import data
from experiments import downstream
from experiments.tools import enlarging
from experiments.tools import enlarging_scores as judged
from experiments.tools.study import UserError

SHAPE = (8, 8, 1)
TABLE = enlarging.schedule()


class Simple:
    """A network of two numbers, quick to compile."""

    def __hash__(self):
        return 1

    def __eq__(self, other):
        return isinstance(other, Simple)

    def init(self, key, x, level, low):
        return {"x": jax.random.uniform(key), "low": jnp.float32(0.3)}

    def apply(self, params, x, level, low):
        return jnp.tanh(params["x"] * x - jnp.expand_dims(level, (-3, -2, -1)) * params["low"] * low)


class Tiny(enlarging.Study):
    def network(self):
        return NET


NET, PARAMS = Simple(), {"x": np.float32(0.7), "low": np.float32(1)}
STUDY = Tiny("", 8, 1, width=4, patch=2, tests=5)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def garments():
    bytes_of = lambda n, seed: np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), np.uint8)
    return data.Images(bytes_of(enlarging.HELD_OUT + 12, 1), None, bytes_of(5, 2), None)


# --- training -------------------------------------------------------------------------------------------------------


class Knowing:
    """A network that knows the noise of one picture's latents, K away from the enlarged one; where it is asked is kept."""

    def __init__(self, high, K):
        self.high, self.K = high, K

    def apply(self, params, x, level, low):
        log_snr = jnp.log(level**2) - jnp.log1p(-(level**2))
        lam = jnp.clip((self.K - TABLE.time(log_snr)) / self.K, 0, 1)
        return (x - level * (lam * self.high + (1 - lam) * low)) / jnp.sqrt(1 - level**2) + params


@pytest.mark.parametrize("name, other", [("sr3", 50.0), ("partdiff25", enlarging.NEVER), ("partdiff50", 25.0)])
def test_one_loss_trains_sr3_and_partdiff(name, other):
    """The network that knows the noise of its own latents has none, whatever K; one that knows another K's has some."""
    x, K = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8), enlarging.NETWORKS[name]
    batch = enlarging.told(name, np.stack([x] * 16))
    quick = lambda K: jax.jit(enlarging.loss_of(Knowing(data.scale(x), K)), compiler_options=enlarging.QUICK)
    loss = lambda K, extra=0.0: quick(K)(extra, jax.random.key(0), batch)[0]
    assert loss(K) < 1e-4
    np.testing.assert_allclose(loss(K, 0.5), 0.25, rtol=0.01)
    assert loss(other) > 1e-3


def test_times_reach_k_and_not_beyond():
    class Listening:
        def apply(self, params, x, level, low):
            jax.debug.callback(lambda v: levels.extend(np.ravel(v)), level)
            return x

    for name, top in (("partdiff10", 10), ("sr3", 100)):
        levels = []
        loss = jax.jit(enlarging.loss_of(Listening()), compiler_options=enlarging.QUICK)
        loss(0.0, jax.random.key(1), enlarging.told(name, np.zeros((200, *SHAPE), np.uint8)))
        jax.effects_barrier()
        least = float(TABLE.alpha(top))
        assert len(levels) == 200 and least - 1e-6 <= min(levels) < float(TABLE.alpha(0.97 * top)) and max(levels) < 1


def test_regression_is_told_nothing_but_y():
    """What it adds to the enlarged picture is what the network says of zeros at no level; its loss is the squared error."""
    x = np.random.default_rng(3).integers(0, 256, (2, *SHAPE), np.uint8)
    low = np.asarray(enlarging.enlarged(data.scale(x)))

    class Adding:
        def apply(self, params, x, level, low):
            assert x.shape[-3:] == SHAPE
            return params * jnp.cos(x) + 0.5 * low + jnp.expand_dims(level, (-3, -2, -1))

    made = enlarging.regress(Adding(), 0.25, low)
    np.testing.assert_allclose(made, 1.5 * low + 0.25, atol=1e-6)
    loss = enlarging.loss_of(Adding(), True)(0.25, jax.random.key(0), enlarging.told("regression", x))[0]
    np.testing.assert_allclose(loss, np.mean((made - data.scale(x)) ** 2), rtol=1e-5)


def test_an_interrupted_training_is_the_undisturbed_one(tmp_path, garments):
    def stop(n, *_):
        if n == 2:
            raise KeyboardInterrupt

    how = {"steps_": 4, "batch": 4, "save": 2, "base": False}
    enlarging.train(STUDY, "sr3", garments, tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        enlarging.train(STUDY, "sr3", garments, tmp_path / "parts", bar=stop, **how)
    enlarging.train(STUDY, "sr3", garments, tmp_path / "parts", **how)
    (one, n), (two, m) = (enlarging.weights(tmp_path / place, "sr3") for place in ("whole", "parts"))
    assert n == m == 4
    jax.tree.map(np.testing.assert_array_equal, one, two)
    x, seconds = judged.restored(STUDY, judged.GARMENTS["SR3, DDIM 10"], tmp_path / "whole", data.scale(garments.test))
    assert x.shape == garments.test.shape and np.abs(x).max() <= 1 and seconds > 0


def test_what_is_not_trained_is_said(tmp_path):
    with pytest.raises(UserError, match="has no network sr3: train it first"):
        enlarging.weights(tmp_path, "sr3")
    with pytest.raises(UserError, match="partdiff25"):
        downstream.main(["train", "fashion", "partdif25"])
    with pytest.raises(UserError, match="fruits"):
        downstream.main(["train", "fruit", "sr3"])


# --- walks ----------------------------------------------------------------------------------------------------------


KEYS = jax.random.split(jax.random.key(3), 2)
HIGHS = np.clip(0.5 * drawn(2, *SHAPE), -1, 1)
Y, LOWS = (np.asarray(a) for a in judged.seen(HIGHS))
X = drawn(2, *SHAPE, seed=4)
denoiser = lambda low: dj.denoisers.from_sr3(NET.apply, PARAMS, TABLE, low)
walk = lambda program, way, K, x=X: program(PARAMS, KEYS, LOWS, Y, x, np.float32(K), np.float32(way.eta),
                                            judged.table_of(way), way.calls)  # fmt: skip


def test_a_sweep_over_k_and_sr3_are_one_program():
    """And each is what the library walks: SR3 by DDPM from noise, PartDiff as published, from the same x_K."""
    program = judged.sampler(NET)
    names = ("SR3, T = 100", "SR3, DDIM 10", "PartDiff, K = 10", "PartDiff, K = 25", "PartDiff, K = 50")
    found = {name: walk(program, judged.GARMENTS[name], 1.0) for name in names}
    assert program._cache_size() == 1
    rows = dj.timetables.from_times(np.arange(100, -1, -1), TABLE)
    plain = dj.sample(KEYS[0], denoiser(LOWS[0]), rows, X[0], kernel=dj.kernels.DDPM()).x
    np.testing.assert_allclose(found["SR3, T = 100"][0], plain, atol=1e-4)
    setup = partdiff.published(denoiser(LOWS[0]), LOWS[0], K=25)
    aligned = dj.sample(KEYS[0], setup.method, setup.table, X[0], kernel=setup.kernel).x
    np.testing.assert_allclose(found["PartDiff, K = 25"][0], aligned, atol=1e-4)
    for a, b in itertools.combinations(found.values(), 2):
        assert np.abs(a - b).max() > 0.01


def test_drift_and_the_data_step_are_the_librarys():
    way = judged.GARMENTS["PartDiff, K = 25, drift"]
    got = walk(judged.sampler(NET, "drift"), way, 25.0)
    setup = partdiff.published(denoiser(LOWS[1]), LOWS[1], K=25, move="drift", bounds=(-1.0, 1.0))
    ours = dj.sample(KEYS[1], setup.method, setup.table, X[1], kernel=setup.kernel).x
    np.testing.assert_allclose(got[1], ours, atol=1e-4)
    fitted = walk(judged.sampler(NET, data_step=True), judged.FRUITS["SR3, DDIM 25, DDNM's data step"], 1.0)
    np.testing.assert_allclose(enlarging.measured(fitted), Y, atol=1e-4)


def test_a_search_among_inference_schedules_is_one_program():
    sweep = judged.schedule_sweep(NET, 6)
    lows, highs = np.float32([1e-4, 0.1, 0.1]), np.float32([0.5, 0.5, 0.9])
    found = sweep(PARAMS, lows, highs, KEYS, LOWS, X)
    again = sweep(PARAMS, lows[::-1].copy(), highs[::-1].copy(), KEYS, LOWS, X)
    assert sweep._cache_size() == 1
    np.testing.assert_allclose(found, again[::-1], atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 0.01 and np.abs(found[1] - found[2]).max() > 0.01
    other = dj.schedules.discrete(np.linspace(0.1, 0.9, 6))
    alone = dj.sample(KEYS[0], dj.replace(denoiser(LOWS[0]), denoise=dj.replace(denoiser(LOWS[0]).denoise, schedule=other)),
                      dj.timetables.from_times(np.arange(6, -1, -1), other), X[0], kernel=dj.kernels.DDPM()).x  # fmt: skip
    np.testing.assert_allclose(found[2, 0], alone, atol=1e-4)


# --- scores ---------------------------------------------------------------------------------------------------------


def test_shifts_are_in_grey_levels_of_each_channel():
    rng = np.random.default_rng(5)
    highs = rng.uniform(-0.5, 0.5, (40, 4, 4, 3))
    added = np.array([1.0, -2.0, 0.25]) + rng.normal(0, [0.1, 0.2, 0.3], (40, 3))
    with_noise = highs + added[:, None, None] / 127.5
    with_noise += (d := rng.normal(0, 0.1, highs.shape)) - d.mean((1, 2), keepdims=True)  # of mean 0 in each image
    row = judged.shifts(127.5 * (with_noise - highs).mean((1, 2)))
    error = added.std(0, ddof=1) / np.sqrt(40)
    for name, mean, se in zip(("red", "green", "blue"), added.mean(0), error):
        assert row[name] == f"{mean:+.2f} ± {se:.2f}"
    assert row["largest mean"] == pytest.approx(np.abs(added.mean(0)).max()) and 0.1 < row["spread"] < 0.3
    assert row["one image"] == pytest.approx(np.abs(added).mean())


def test_accuracy_and_its_error():
    assert judged.share([1] * 90 + [0] * 10) == "90.0 ± 3.0"
    cell = lambda right: {"right": right, "psnr": [20.0], "ssim": [0.5], "lpips": [0.1], "network_calls": 1, "seconds": 0.1}
    rows = judged.garment_rows({"SR3, T = 100": cell([1, 1, 0, 0]), "bicubic": cell([1, 0, 0, 0]), "originals": cell([1] * 4)})
    assert [row["method"] for row in rows] == ["originals", "bicubic", "SR3, T = 100"]
    assert rows[1]["from SR3, %"] == "-25.0 ± 49.0"  # of 0, 100, 0, 0: the mean, 1.96 times 50 / 2
    assert "from SR3, %" not in rows[2]


def test_chunks_cover_every_picture_in_one_shape():
    for count in (5, 32, 70):
        parts = judged.pieces(count)
        assert {len(rows) for rows in parts} == {32}
        np.testing.assert_array_equal(np.concatenate(parts)[:count], np.arange(count))
