"""Score and flow matching losses, times, NCSN++ and its filters, the score-SDE code's conventions, a tiny run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import denoisers, process, schedules
from diffjax.convert import score_sde
from diffjax.nets import NCSNpp, fir, init
from diffjax.training import losses, resamplers, times

FORMULAS = {"ve": schedules.VE(), "vp": schedules.VP(), "subvp": schedules.SubVP(), "flow": schedules.RectifiedFlow()}
TINY = dict(out_channels=1, width=8, multipliers=(1, 2), blocks=1, attention=(), fourier_scale=1.0)


# --- losses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMULAS)
def test_one_prediction_has_one_weighted_loss(name):
    """Whether the network gives eps, x0, the velocity or the score: a weighting's loss is the error of what it names."""
    rng, schedule = np.random.default_rng(0), FORMULAS[name]
    x_0, noise, x_0_hat = rng.standard_normal((3, 4, 4, 1))
    t = np.float64(0.3)
    a, s = schedule.alpha(t), schedule.sigma(t)
    eps_hat = noise + a / s * (x_0 - x_0_hat)
    root = np.sqrt(a**2 + s**2)
    gives = {"eps": eps_hat, "x0": x_0_hat, "velocity": eps_hat - x_0_hat, "score": -eps_hat / s}
    wanted = {
        "eps": np.mean((eps_hat - noise) ** 2), "x0": np.mean((x_0_hat - x_0) ** 2),
        "velocity": np.mean((eps_hat - x_0_hat - noise + x_0) ** 2),
        "v": np.mean(((a * eps_hat - s * x_0_hat) / root - (a * noise - s * x_0) / root) ** 2),
    }  # fmt: skip
    with jax.enable_x64(True):
        for given, output in gives.items():
            loss = getattr(losses, f"{given}_loss")
            of = lambda net, loss=loss, **how: float(loss(net, schedule, jnp.array(x_0), t, jnp.array(noise), **how)[0])
            for weighting, value in wanted.items():
                got = of(lambda x, i, o=output: jnp.array(o), weighting=weighting)
                np.testing.assert_allclose(got, value, rtol=1e-9, err_msg=f"{given}, {weighting}")
            halves = of(lambda x, i, o=output: jnp.array(o), reduction="half_sum")
            np.testing.assert_allclose(halves, 8 * of(lambda x, i, o=output: jnp.array(o)), rtol=1e-12)
        with pytest.raises(ValueError, match="did you mean 'half_sum'"):
            of(lambda x, i: x, reduction="halfsum")


def test_the_likelihood_weight_is_g_squared():
    rng, schedule, t = np.random.default_rng(0), schedules.VE(0.01, 50.0), np.float64(0.4)
    x_0, noise, score = rng.standard_normal((3, 4, 4, 1))
    sigma = 0.01 * 5000**0.4
    with jax.enable_x64(True):
        got, _ = losses.score_loss(
            lambda x, i: jnp.array(score), schedule, jnp.array(x_0), t, jnp.array(noise), likelihood=True
        )
    wanted = 2 * np.log(5000) * sigma**2 * np.mean((score + noise / sigma) ** 2)
    np.testing.assert_allclose(got, wanted, rtol=1e-9)


# --- times ----------------------------------------------------------------------------------------------------------


def test_uniform_and_logit_normal_times():
    table, formula = schedules.discrete(schedules.cosine_betas(50)), schedules.VP()
    for schedule, low, high in ((table, 1, 50), (formula, 1e-5, 1)):
        t, weights = times.Uniform().draw(jax.random.key(0), 1000, schedule)
        assert (weights == 1).all() and low <= t.min() < low + 0.1 * high and 0.99 * high < t.max() <= high
        assert abs(t.mean() - (low + high) / 2) < 1e-3 * high
        t, _ = times.LogitNormal(-0.5, 0.7).draw(jax.random.key(0), 4000, schedule)
        u = (np.asarray(t, float) - low) / (high - low)
        logit = np.log(u / (1 - u))
        np.testing.assert_allclose([logit.mean(), logit.std()], [-0.5, 0.7], atol=5e-3)
    with pytest.raises(ValueError, match="std 0"):
        times.LogitNormal(std=0.0)


@pytest.mark.parametrize("name", ["ve", "vp", "subvp"])
def test_importance_sampled_times_keep_the_mean_of_the_likelihood_weighted_loss(name):
    """The weight g^2 / sigma^2 of an error e(t) in eps, integrated over t, against its weighted mean at the drawn times."""
    schedule = FORMULAS[name]
    error = lambda t: np.cos(3 * t) ** 2 + 0.1
    with jax.enable_x64(True):
        t, weights = map(np.asarray, times.LogSNR(1e-3).draw(jax.random.key(3), 4000, schedule))
    fine = np.geomspace(1e-3, 1, 100_001)
    g2 = process.sde(schedule, fine)[1]
    wanted = np.trapezoid(g2 / schedule.sigma(fine) ** 2 * error(fine), fine) / (1 - 1e-3)
    np.testing.assert_allclose(np.mean(weights * error(t)), wanted, rtol=2e-3)
    assert t.min() >= 1e-3 and t.max() <= 1
    with pytest.raises(ValueError, match="is a table"):
        times.LogSNR().draw(jax.random.key(0), 4, schedules.discrete(schedules.cosine_betas(10)))


def test_the_second_moment_sampler_for_times_of_a_formula():
    """Bins of larger losses are drawn more often, and the weighted mean stays that of uniform times; its spread is less."""
    schedule, bins = schedules.VE(), 8
    loss = lambda t: np.exp(-6 * np.asarray(t))
    sampler = resamplers.loss_second_moment(bins, length=2)
    rule = times.Binned(sampler)
    middles = (np.arange(bins) + 0.5) / bins
    rows = rule.rows(jnp.asarray(middles), schedule)
    assert (rows == np.arange(1, bins + 1)).all()
    for _ in range(2):
        sampler = sampler.update(rows, jnp.asarray(loss(middles)))
    t, weights = times.Binned(sampler).draw(jax.random.key(0), 20_000, schedule)
    uniform = (1 - np.exp(-6)) / 6
    importance = np.asarray(weights) * loss(t)
    np.testing.assert_allclose(importance.mean(), uniform, rtol=0.01)
    flat = loss(times.Uniform().draw(jax.random.key(0), 20_000, schedule)[0])
    assert importance.std() < 0.4 * flat.std()
    rows = np.asarray(times.Binned(sampler).rows(t, schedule))
    assert (np.abs(rows - 0.5 - np.asarray(t, float) * bins) < 0.501).all()


# --- the network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 1), (1, 2, 3, 4), (1, 1)])
def test_filters_by_a_convolution(taps):
    """Zeros inserted, padded, convolved with the outer product in two dimensions, every second pixel taken."""
    x = np.random.default_rng(0).standard_normal((2, 6, 8, 3))
    kernel = np.outer(taps, taps) / np.sum(taps) ** 2
    excess = len(taps) - 2

    def convolve(z, low, high):
        z = np.pad(z, ((0, 0), (low, high), (low, high), (0, 0)))
        rows, columns = z.shape[1] - len(taps) + 1, z.shape[2] - len(taps) + 1
        return sum(
            kernel[::-1, ::-1][a, b] * z[:, a : a + rows, b : b + columns] for a in range(len(taps)) for b in range(len(taps))
        )

    spread = np.zeros((2, 12, 16, 3))
    spread[:, ::2, ::2] = x
    with jax.enable_x64(True):
        down, up = (np.asarray(f(jnp.asarray(x), taps)) for f in (fir.down, fir.up))
    np.testing.assert_allclose(down, convolve(x, (excess + 1) // 2, excess // 2)[:, ::2, ::2], atol=1e-12)
    np.testing.assert_allclose(up, 4 * convolve(spread, (excess + 1) // 2 + 1, excess // 2), atol=1e-12)


def test_sigma_data_is_the_score_of_gaussian_data():
    """A new network gives nothing yet, so that its score is -x / (t^2 + s^2); and an image alone is that of a batch."""
    net = NCSNpp(**TINY, sigma_data=0.5, classes=3, null_label=True, patch=2, progressive_input="residual")
    params = init(net, jax.random.key(0), (8, 8, 1))
    x, t, y = jax.random.normal(jax.random.key(1), (2, 8, 8, 1)), jnp.array([0.3, 20.0]), jnp.array([1, 3])
    apply = jax.jit(net.apply, compiler_options={"xla_backend_optimization_level": 0})
    np.testing.assert_allclose(apply(params, x, t, y), -x / (t**2 + 0.25)[:, None, None, None], rtol=1e-5)
    moved = jax.tree.map(lambda a: a + 0.1, params)
    both, alone = apply(moved, x, t, y), apply(moved, x[1], t[1], None)
    np.testing.assert_allclose(both[1], alone, rtol=2e-4, atol=1e-5)
    assert np.abs(both + x / (t**2 + 0.25)[:, None, None, None]).max() > 1e-3


def test_ncsnpp_refuses_what_does_not_go_together():
    for options, said in (
        ({"attention": (3,)}, "attention=3"),
        ({"progressive": "skip"}, "progressive='skip'"),
        ({"embedding": "positional", "sigma_data": 1.0}, "sigma_data=1.0"),
        ({"conditional": False, "classes": 2}, "classes=2"),
    ):
        with pytest.raises(ValueError, match=said):
            NCSNpp(**TINY | options)
    for call, said in (((jnp.zeros((6, 7, 1)), 1.0), "multiples of 2"), ((jnp.zeros((8, 8, 1)), 1.0, 2), "no classes")):
        with pytest.raises(ValueError, match=said):
            jax.eval_shape(NCSNpp(**TINY).init, jax.random.key(0), *call)


def test_a_state_dict_that_does_not_fit():
    net = NCSNpp(**TINY, progressive_input="residual", scale_by_sigma=True)
    state = score_sde.to_state(net, init(net, jax.random.key(0), (4, 4, 1)))
    hints = {"fir": (1, 3, 3, 1), "centre": False, "scale_by_sigma": True}
    back, _ = score_sde.convert(state, **hints)
    for name in ("width", "multipliers", "blocks", "attention", "embedding", "resblock", "progressive_input", "sigmas"):
        assert getattr(back, name) == getattr(net, name)
    with pytest.raises(ValueError, match="does not show fir, centre, scale_by_sigma"):
        score_sde.convert(state)
    with pytest.raises(ValueError, match="Flax's names show no order"):
        score_sde.convert({"Conv_0": {"kernel": state["sigmas"]}})
    renamed = {name.replace(".4.Conv_0", ".4.Conv_9"): a for name, a in state.items()}
    with pytest.raises(ValueError, match=r"missing: all_modules.4.Conv_0.weight.*left over: all_modules.4.Conv_9") as error:
        score_sde.convert(renamed, **hints)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="residual blocks"):
        score_sde.convert({name: a for name, a in state.items() if not name.startswith("all_modules.8.")}, **hints)


# --- what the networks of the score-SDE code are told -----------------------------------------------------------------


def test_conventions_by_schedule():
    """N(0.2, 0.5^2) data: every convention gives E[x0 | x], with the label that the official network expects."""
    mean, var, seen = 0.2, 0.25, []
    rising = np.geomspace(0.01, 50, 20)
    cases = (
        (schedules.VE(), 0.6, 0.01 * 5000**0.6), (schedules.VP(), 0.6, 999 * 0.6), (schedules.SubVP(), 0.6, 999 * 0.6),
        (schedules.Discrete(np.ones(21), np.append(0, rising)), 18, 2),
        (schedules.discrete(schedules.cosine_betas(20)), 18, 17),
    )  # fmt: skip
    x = jnp.linspace(-2, 2, 12).reshape(2, 2, 3)
    for schedule, t, label in cases:
        a, s = float(schedule.alpha(t)), float(schedule.sigma(t))

        def net(x, i, a=a, s=s):
            seen.append(float(i))
            score = -(x - a * mean) / (a**2 * var + s**2)
            return score if a == 1 else -s * score

        got = denoisers.from_score_sde(net, None, schedule)(x, t)
        np.testing.assert_allclose(got.x0, mean + a * var / (a**2 * var + s**2) * (x - a * mean), rtol=1e-4)
        np.testing.assert_allclose(seen.pop(), label, rtol=1e-5)

    def unit(params, u, i):  # of images in [0, 1]: half the mean and deviation, moved
        seen.append(float(i))
        return -(u - (mean + 1) / 2) / (var / 4 + i**2)

    schedule = schedules.VE(0.02, 100.0)
    got = denoisers.from_score_sde(unit, {}, schedule, unit_range=True)(x, 0.6)
    s = float(schedule.sigma(0.6))
    np.testing.assert_allclose(got.x0, mean + var / (var + s**2) * (x - mean), rtol=1e-4)
    np.testing.assert_allclose(seen.pop(), s / 2, rtol=1e-6)
    for schedule, said in ((schedules.RectifiedFlow(), "RectifiedFlow is no"), (schedules.VP(), "unit_range=True under VP")):
        with pytest.raises(ValueError, match=said):
            denoisers.from_score_sde(unit, {}, schedule, unit_range=True)


# --- a run ------------------------------------------------------------------------------------------------------------


def test_the_variance_exploding_prior_in_small(tmp_path):
    """Its configuration, made tiny, on white images: the step lowers the loss, and what is saved denoises by its score."""
    import dataclasses

    from diffjax import zoo
    from diffjax.cli.training_run import Run
    from experiments import configs

    np.savez(tmp_path / "a.npz", x=np.full((600, 8, 8), 255, np.uint8), y=np.arange(600) % 10)
    small = dict(data=str(tmp_path / "a.npz"), size=8, width=4, multipliers=(1,), blocks=1, batch=8, warmup=1, cooldown=1,
                 out=str(tmp_path / "run"), lr=1e-2)  # fmt: skip
    config = dataclasses.replace(configs.load()["fashion32_ve"], **small)
    run = Run(config)
    fast = {"xla_backend_optimization_level": 0}
    now = jax.tree.map(jnp.asarray, run.start())
    step = run.step.lower(now, run.put(run.stream(0))).compile(compiler_options=fast)
    seen = []
    for n in range(40):
        now, metrics = step(now, run.put(run.stream(n)))
        seen.append(float(metrics["loss"]))
    assert np.mean(seen[-10:]) < 0.9 * np.mean(seen[:10])

    zoo.save(tmp_path / "small", now.params, {"name": "small", "config": dataclasses.asdict(config)}, np.float32)
    prior = zoo.load(tmp_path / "small")
    assert (prior.loss, prior.shape, prior.classes) == ("score", (8, 8, 1), 10)
    assert isinstance(prior.schedule, schedules.VE) and prior.schedule.sigma_max == 45.0
    x, told = 0.5 * jax.random.normal(jax.random.key(0), prior.shape), np.float32(prior.schedule.sigma(0.5))
    denoise = lambda params, x: dataclasses.replace(prior, params=params).denoiser(3, clip=False)(x, 0.5).score()
    both = lambda params, x: (denoise(params, x), prior.net.apply(params, x, told, jnp.asarray(3)))
    got, score = jax.jit(both, compiler_options=fast)(prior.params, x)
    np.testing.assert_allclose(got, score, rtol=1e-4, atol=1e-5)


NAMES = [("network", "ncsnp", "'ncsnpp'"), ("schedule", "vee", "'ve'"), ("times", "logit", "'logit_normal'")]


@pytest.mark.parametrize("field, value, said", NAMES)
def test_names_that_do_not_exist(tmp_path, capsys, field, value, said):
    from diffjax.cli import train
    from experiments import configs

    assert train.main(["debug", f"--{field}", value, "--out", str(tmp_path)], configs.load()) == 2
    assert f"did you mean {said}" in capsys.readouterr().err
