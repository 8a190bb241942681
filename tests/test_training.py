"""Losses, weightings, the step, the averaged weights, the learning rate, checkpoints, and the program's errors."""

import dataclasses
import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import schedules
from diffjax.training import checkpoints, losses, state, step, times

SHAPE = (4, 4, 1)
COSINE = schedules.discrete(schedules.cosine_betas(50))


def alpha_sigma(betas, t):
    """By the definition, for whole t."""
    bar = np.prod(1 - betas[: int(t)])
    return np.sqrt(bar), np.sqrt(1 - bar)


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    x_0 = rng.integers(0, 256, SHAPE) / 127.5 - 1
    return x_0, rng.standard_normal(SHAPE), rng.standard_normal((4, 4, 2))


# --- losses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1, 7, 50])
def test_v_eps_and_x0_losses_by_their_definition(image, t):
    x_0, noise, output = image
    output = output[..., :1]
    alpha, sigma = alpha_sigma(schedules.cosine_betas(50), t)
    with jax.enable_x64(True):
        seen = []
        net = lambda x, i: (seen.append((x, i)), output)[1]
        v, _ = losses.v_loss(net, COSINE, jnp.array(x_0), t, jnp.array(noise))
        eps, _ = losses.eps_loss(net, COSINE, jnp.array(x_0), t, jnp.array(noise))
        x0, _ = losses.x0_loss(net, COSINE, jnp.array(x_0), t, jnp.array(noise))
    np.testing.assert_allclose(v, np.mean((output - alpha * noise + sigma * x_0) ** 2), rtol=1e-12)
    np.testing.assert_allclose(eps, np.mean((output - noise) ** 2), rtol=1e-12)
    np.testing.assert_allclose(x0, np.mean((output - x_0) ** 2), rtol=1e-12)
    for x, i in seen:
        np.testing.assert_allclose(x, alpha * x_0 + sigma * noise, rtol=1e-12)
        assert i == t - 1, "the network is told the official index"


@pytest.mark.parametrize("name", ["x0", "eps", "v", "min_snr"])
@pytest.mark.parametrize("t", [3, 25, 47.5])
def test_a_weighted_loss_is_the_error_it_names(image, name, t):
    """One prediction, seen as v and as eps, has the same weighted loss: the error of x0, eps or v worked out directly."""
    x_0, noise, output = image
    alpha, sigma = float(COSINE.alpha(t)), float(COSINE.sigma(t))
    snr = (alpha / sigma) ** 2
    x_t = alpha * x_0 + sigma * noise
    x_0_hat = output[..., :1]
    eps_hat = (x_t - alpha * x_0_hat) / sigma
    v_hat = alpha * eps_hat - sigma * x_0_hat
    x_0_error = np.mean((x_0_hat - x_0) ** 2)
    expected = {
        "x0": x_0_error,
        "eps": np.mean((eps_hat - noise) ** 2),
        "min_snr": min(snr, 2.0) * x_0_error,
        "v": np.mean((v_hat - (alpha * noise - sigma * x_0)) ** 2),
    }
    with jax.enable_x64(True):
        for loss, output in ((losses.v_loss, v_hat), (losses.eps_loss, eps_hat), (losses.x0_loss, x_0_hat)):
            got, _ = loss(lambda x, i, o=output: o, COSINE, jnp.array(x_0), t, jnp.array(noise), weighting=name, gamma=2.0)
            np.testing.assert_allclose(got, expected[name], rtol=1e-9)


def test_unknown_weighting():
    with pytest.raises(ValueError, match="did you mean 'min_snr'"):
        losses.weight("min-snr", "v", 0.0)


def hybrid_by_hand(betas, x_0, t, noise, output):
    """Nichol and Dhariwal 2021 from betas alone, in numpy."""
    bar = np.cumprod(1 - betas)
    before = np.append(1.0, bar)[:-1]
    posterior = betas * (1 - before) / (1 - bar)
    log_small = np.log(np.append(posterior[1], posterior[1:]))
    i = t - 1
    x_t = np.sqrt(bar[i]) * x_0 + np.sqrt(1 - bar[i]) * noise
    eps, v = output[..., :1], output[..., 1:]
    x_0_hat = (x_t - np.sqrt(1 - bar[i]) * eps) / np.sqrt(bar[i])
    c_0, c_t = betas[i] * np.sqrt(before[i]) / (1 - bar[i]), (1 - before[i]) * np.sqrt(1 - betas[i]) / (1 - bar[i])
    log_var = (v + 1) / 2 * np.log(betas[i]) + (1 - v) / 2 * log_small[i]
    difference = c_0 * (x_0 - x_0_hat)
    if t > 1:
        variance = np.exp(log_var)
        terms = 0.5 * (log_var - log_small[i] - 1 + (np.exp(log_small[i]) + difference**2) / variance)
    else:
        mean, std = c_0 * x_0_hat + c_t * x_t, np.exp(log_var / 2)
        cdf = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))
        up = np.where(x_0 > 0.999, 1.0, cdf((x_0 + 1 / 255 - mean) / std))
        down = np.where(x_0 < -0.999, 0.0, cdf((x_0 - 1 / 255 - mean) / std))
        terms = -np.log(np.maximum(up - down, 1e-12))
    return np.mean((eps - noise) ** 2), np.mean(terms) / np.log(2)


def test_hybrid_loss_by_hand_and_its_held_mean(image):
    x_0, noise, output = image
    output[..., :1] = noise + 0.1 * output[..., :1]
    times = np.array([1, 2, 30, 50])

    def loss(output, t):
        return losses.hybrid_loss(lambda x, i: output, COSINE, jnp.array(x_0), t, jnp.array(noise))

    with jax.enable_x64(True):
        run = jax.jit(jax.vmap(jax.value_and_grad(loss, has_aux=True), (None, 0)))
        (total, terms), grad = run(jnp.array(output), jnp.array(times))
    mse, vb = np.transpose([hybrid_by_hand(schedules.cosine_betas(50), x_0, t, noise, output) for t in times])
    np.testing.assert_allclose(terms["mse"], mse, rtol=1e-12)
    np.testing.assert_allclose(terms["vb"], vb, rtol=1e-7)
    np.testing.assert_allclose(total, mse + 50 / 1000 * vb, rtol=1e-7)
    held = np.broadcast_to(2 * (output[..., :1] - noise) / noise.size, grad[..., :1].shape)
    np.testing.assert_allclose(grad[..., :1], held, rtol=1e-9)
    assert (np.abs(grad[..., 1:]).max((1, 2, 3)) > 1e-7).all(), "the bound moves the variance"


def test_hybrid_loss_wants_twice_the_channels(image):
    with pytest.raises(ValueError, match="needs 2"):
        losses.hybrid_loss(lambda x, i: x, COSINE, jnp.array(image[0]), 3, jnp.array(image[1]))


# --- the step -----------------------------------------------------------------------------------------------------


LONG = schedules.discrete(schedules.cosine_betas(1000))


def test_times_are_stratified():
    for seed in range(20):
        t = np.sort(np.asarray(times.Uniform().draw(jax.random.key(seed), 8, LONG)[0]))
        assert (np.floor((t - 1) / 999 * 8).astype(int) == np.arange(8)).all()
    keys = jax.random.split(jax.random.key(0), 500)
    five = schedules.discrete(schedules.cosine_betas(5))
    whole = np.asarray(jax.vmap(lambda k: times.Uniform(whole=True).draw(k, 4, five)[0])(keys))
    counts = np.bincount(whole.astype(int).ravel(), minlength=7)
    assert (whole == np.round(whole)).all() and counts[0] == counts[6] == 0
    assert np.abs(counts[1:6] - 400).max() < 60  # binomial deviation at most 18


class Scale:
    """Predicts v = w x: one number per label to learn; its best value is known."""

    def apply(self, params, x, i, y=None, train=False, rngs=None):
        return (params["w"] if y is None else params["w"][y]) * x  # y: the condition, a label


LINEAR = schedules.discrete(np.full(1, 0.5))  # one level: alpha^2 = sigma^2 = 1/2


def train(images, labels, params, steps=250, sharded=None, batch=64):
    optimizer = state.adam(state.warmup_stable_decay(0.05, steps, 2, steps // 2), clip=1.0)
    example = step.example_loss(Scale(), LINEAR, losses.v_loss, null=2, dropout=0.25)
    loss = step.mean_loss(example, LINEAR, sharded=sharded)
    one = step.train_step(loss, optimizer, ema=0.95, key=jax.random.key(1))
    s, metrics = state.init_state(params, optimizer), None
    examples = {"x": images} if labels is None else {"x": images, "cond": labels}
    for n in range(steps):
        rows = np.random.default_rng(n).integers(0, len(images), batch)
        s, metrics = one(s, jax.tree.map(lambda a: a[rows], examples))
    return s, metrics


def test_training_finds_the_best_linear_predictor():
    """x_0 = +-c per pixel: E[v x] / E[x^2] = alpha sigma (1 - c^2) / (alpha^2 c^2 + sigma^2) = (1 - c^2) / (1 + c^2).
    Class 1 is black and white (c = 1), class 0 grey; the null label sees both: (1 - m) / (1 + m), m = mean c^2."""
    rng = np.random.default_rng(0)
    sign = rng.integers(0, 2, (400, *SHAPE))
    labels = np.arange(400, dtype=np.int32) % 2
    level = np.where(labels == 1, 127.5, 31.5)[:, None, None, None]
    images = (127.5 + np.where(sign, level, -level)).astype(np.uint8)
    c2 = np.array([(31.5 / 127.5) ** 2, 1.0])
    s, _ = train(images, labels, {"w": jnp.array([0.5, 0.5, 0.5])})
    m = np.append(c2, c2.mean())
    np.testing.assert_allclose(s.ema["w"], (1 - m) / (1 + m), atol=0.06)
    assert int(s.step) == 250


def test_held_out_loss_of_the_ideal_network_is_the_bayes_error():
    """x_0 ~ N(0, s^2): the error of E[v | x_t] has variance s^2 / (alpha^2 s^2 + sigma^2)."""
    s2 = 0.25**2
    pixels = np.random.default_rng(0).normal(0, 0.25, (64, 8, 8, 1))
    images = np.clip(np.rint((pixels + 1) * 127.5), 0, 255).astype(np.uint8)

    class Ideal:
        def apply(self, params, x, i, y=None, train=False, rngs=None):
            a, s = (f(i + 1).astype(x.dtype) for f in (COSINE.alpha, COSINE.sigma))
            var = a**2 * s2 + s**2
            x_0 = a * s2 / var * x
            return a * (x - a * x_0) / s - s * x_0

    levels = (0.1, 0.5, 0.9)
    example = step.example_loss(Ideal(), COSINE, losses.v_loss)
    got = step.held_out(example, COSINE, levels=levels, sharded=step.shardings()[1])({}, {"x": images})
    a, s = COSINE.alpha(np.array(levels) * 50), COSINE.sigma(np.array(levels) * 50)
    expected = s2 / (a**2 * s2 + s**2)
    np.testing.assert_allclose(got["loss"], expected, rtol=0.08)  # 4096 pixels: 2.2 % deviation
    assert got["loss"].shape == (3,)


def test_sharded_over_devices_equals_one_device():
    images = np.random.default_rng(0).integers(0, 256, (64, *SHAPE), np.uint8)
    alone, metrics = train(images, None, {"w": jnp.array(0.5)}, steps=5, batch=16)
    replicated, sharded = step.shardings(jax.devices()[:2])
    params = jax.device_put({"w": jnp.array(0.5)}, replicated)
    many, metrics_many = train(images, None, params, steps=5, batch=16, sharded=sharded)
    np.testing.assert_allclose(alone.params["w"], many.params["w"], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], metrics_many["loss"], rtol=1e-5)


def test_average_by_a_loop():
    values = np.random.default_rng(0).standard_normal(200)
    expected = ema = 3.0
    for n, value in enumerate(values):
        d = min(0.9, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * value
        ema = state.average(jnp.asarray(ema), jnp.asarray(value), jnp.asarray(n), 0.9)
    np.testing.assert_allclose(ema, expected, rtol=1e-4)


def test_learning_rate():
    rate = state.warmup_stable_decay(2.0, steps=100, warmup=4, cooldown=10)
    got = [float(rate(n)) for n in (0, 1, 3, 4, 50, 90, 95, 99)]
    np.testing.assert_allclose(got, [0.5, 1.0, 2.0, 2.0, 2.0, 2.0, 1.0, 0.2], rtol=1e-6)
    longer = state.warmup_stable_decay(2.0, steps=200, warmup=4, cooldown=10)
    assert all(float(rate(n)) == float(longer(n)) for n in range(91)), "a longer run begins the same"
    with pytest.raises(ValueError, match="do not fit"):
        state.warmup_stable_decay(1.0, 10, 5, 6)


def test_gradients_are_clipped():
    """Adam hides the scale of a constant gradient, so the first moment is looked at: (1 - b1) x the clipped gradient."""
    optimizer = state.adam(1.0, b1=0.9, clip=0.5)
    params = {"w": jnp.zeros(2)}
    _, s = optimizer.update({"w": jnp.array([3.0, 4.0])}, optimizer.init(params), params)
    (moment,) = [leaf.mu["w"] for leaf in jax.tree.leaves(s, is_leaf=lambda a: hasattr(a, "mu")) if hasattr(leaf, "mu")]
    np.testing.assert_allclose(moment, [0.03, 0.04], rtol=1e-5)


# --- checkpoints --------------------------------------------------------------------------------------------------


def small_state(n, width=3):
    params = {"a": {"w": jnp.full((width, 2), float(n))}}
    s = state.init_state(params, state.adam(0.1))
    return dataclasses.replace(s, step=jnp.asarray(n, jnp.int32))


def save(store, n, loss):
    store.save(n, state.to_items(small_state(n)), loss)


def test_checkpoints_keep_the_last_ones_and_the_best(tmp_path):
    with checkpoints.Checkpoints(tmp_path, keep=2) as store:
        assert store.last() is None and store.best() is None
        for n, loss in ((1, 0.9), (2, 0.3), (3, 0.5), (4, 0.6), (5, 0.4)):
            save(store, n, loss)
        store.wait()
        assert sorted(int(p.name) for p in tmp_path.iterdir()) == [2, 4, 5]
        assert (store.last(), store.best()) == (5, 2)
        abstract = lambda sharding=None, **sizes: checkpoints.abstract(
            jax.eval_shape(lambda: state.to_items(small_state(0, **sizes))), sharding
        )
        shapes = abstract(step.shardings()[0])
        restored = state.from_items(store.restore(shapes, "best"))
        assert jax.tree.structure(restored) == jax.tree.structure(small_state(2))
        jax.tree.map(np.testing.assert_array_equal, restored, small_state(2))
        for wrong, message in (
            (lambda: store.restore(shapes, 3), "no checkpoint 3"),
            (lambda: store.restore(abstract(width=4)), "another network"),
            (lambda: store.restore({"emma": shapes["ema"]}), "no item 'emma': did you mean 'ema'"),
        ):
            with pytest.raises(ValueError, match=message) as error:
                wrong()
            assert "\n" not in str(error.value)
    with checkpoints.Checkpoints(tmp_path, read_only=True) as store:
        ema, at = store.read("ema")
    assert at == 2 and jax.tree.structure(ema["net"]) == jax.tree.structure(small_state(2).ema)
    np.testing.assert_array_equal(ema["net"]["a"]["w"], np.full((3, 2), 2.0))


def test_a_half_written_save_is_not_a_checkpoint(tmp_path):
    with checkpoints.Checkpoints(tmp_path, keep=2) as store:
        save(store, 1, 0.5)
    (tmp_path / "1").rename(tmp_path / "2.orbax-checkpoint-tmp")  # complete inside, but never renamed to its step
    with checkpoints.Checkpoints(tmp_path, keep=2, read_only=True) as store:
        assert store.last() is None
    with checkpoints.Checkpoints(tmp_path, keep=2) as store:
        assert store.last() is None
        save(store, 2, 0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["2"], "the remains are cleared away"


def test_reading_a_folder_without_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="has no checkpoints"):
        checkpoints.Checkpoints(tmp_path / "nowhere", read_only=True)


# --- the program --------------------------------------------------------------------------------------------------

WRONG = {
    "option": (["debug", "--stepz", "3"], "did you mean '--steps'?"),
    "config": (["fashion"], "did you mean 'fashion32'"),
    "nothing": ([], "CONFIG"),
    "number": (["debug", "--steps", "many"], "--steps 'many' is not a whole number"),
    "tuple": (["debug", "--multipliers", "1,b"], "is not numbers like 1,2,4"),
    "data": (["debug", "--data", "DIR/none"], "does not exist"),
    "loss": (["debug", "--loss", "vv"], "unknown loss 'vv'"),
    "weighting": (["debug", "--weighting", "min-snr"], "did you mean 'min_snr'"),
    "schedule": (["debug", "--schedule", "cosin"], "did you mean 'cosine'"),
    "cooldown": (["debug", "--steps", "20"], "do not fit into 20 steps"),
    "batch": (["debug", "--batch", "17"], "not divisible by 8 devices"),
    "size": (["debug", "--size", "34", "--data", "DIR/a.npz"], "multiples of"),
    "attention": (["debug", "--attention", "3", "--data", "DIR/a.npz"], "attention=3"),
    "out": (["debug", "--out", "DIR/a.npz/x", "--data", "DIR/a.npz"], "cannot be written"),
    "other run": (["debug", "--out", "DIR/run", "--data", "DIR/a.npz", "--lr", "1"], "holds a run with lr"),
}


@pytest.mark.parametrize("argv, message", WRONG.values(), ids=WRONG)
def test_the_program_refuses_in_one_line(tmp_path, capsys, monkeypatch, argv, message):
    from diffjax.cli import train
    from experiments import configs

    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "a.npz", x=np.zeros((600, 32, 32), np.uint8), y=np.arange(600) % 10)
    if "DIR/run" in argv:
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        config, _ = train.parse(["debug"], configs.load())
        (tmp_path / "run" / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    before = sorted(tmp_path.rglob("*"))
    assert train.main([a.replace("DIR", str(tmp_path)) for a in argv], configs.load()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said and said.startswith("error: ")
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


def test_options_reach_the_configuration():
    from diffjax.cli import train
    from experiments import configs

    line = "debug --multipliers 1,2,4 --flip true --lr 1e-3 --sample-every 7 --devices 2"
    config, options = train.parse(line.split(), configs.load())
    assert (config.multipliers, config.flip, config.lr, config.sample_every) == ((1.0, 2.0, 4.0), True, 1e-3, 7)
    assert options.devices == 2 and config.out == "runs/debug"


def test_what_CONFIG_can_be(tmp_path, capsys):
    """The defaults, how a shipped prior was trained, a JSON file, the folder of a run (which goes on there)."""
    from diffjax.cli import train
    from experiments import configs

    parse = lambda line: train.parse(line.split())[0]
    mine = parse("default --name flowers --data photos --channels 3")
    assert (mine.name, mine.data, mine.channels, mine.out) == ("flowers", "photos", 3, "runs/flowers")
    shipped, written = parse("fashion32"), configs.load()["fashion32"]
    assert (shipped.width, shipped.loss, shipped.classes, shipped.out) == (written.width, written.loss, 10, "runs/fashion32")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(dataclasses.asdict(mine)))
    assert parse(str(run)) == dataclasses.replace(mine, out=str(run)) and parse(str(run / "config.json")) == mine
    (tmp_path / "odd.json").write_text(json.dumps({"name": "odd", "data": "x", "widht": 3}))
    (tmp_path / "empty").mkdir()
    for line, said in {
        "default": "--data is needed",
        "defalt": "did you mean 'default'",
        f"{tmp_path / 'odd.json'}": "unknown fields widht",
        f"{tmp_path / 'none.json'}": "cannot be read",
        f"{tmp_path / 'empty'}": "not the folder of a training run",
    }.items():
        assert train.main(line.split()) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_a_command_trains_as_the_configuration_says():
    """The command that a card keeps leads back to the same configuration."""
    import shlex

    from diffjax.cli import config, train
    from experiments import configs

    for written in configs.load().values():
        line = shlex.split(config.command(written))
        assert line[:2] == ["diffjax", "train"]
        assert dataclasses.replace(train.parse(line[2:])[0], out=written.out) == written


def test_progress(monkeypatch):
    from diffjax.cli import progress

    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with progress.Progress(100, start=40, label="run", unit="images", per_step=16, stream=stream, quiet_every=10) as bar:
        now[0] = 50.0  # the first step compiles and does not count
        bar.update(41)
        for n in range(42, 62):
            now[0] += 2.0
            bar.update(n, loss=0.5)
        assert bar.rate() == pytest.approx(0.5)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("run [########............] 41/100")
    assert lines[-1] == "run [############........] 61/100  loss 0.5  8 images/s  1:30 gone, 1:18 left"
    assert 3 <= len(lines) <= 6 and progress.clock(3675) == "1:01:15"
