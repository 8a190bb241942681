"""SR3: its network, what it is told, sampling under any schedule and kernel, its losses, the residual of SRDiff, its files."""

import dataclasses
import functools
import shutil
import warnings
from pathlib import Path

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import zoo
from diffjax.convert import files, sr3
from diffjax.nets import SR3UNet, init
from diffjax.nets.layers import ResBlock
from diffjax.training import losses, low_resolution, step, times

FAST = {"xla_backend_optimization_level": 0}
SMALL = dict(out_channels=1, width=4, multipliers=(1, 2), blocks=1, groups=2, condition=2)
TINY = SMALL | dict(multipliers=(1,), blocks=0, groups=1)  # the middle and one block more
WHOLE = Path(__file__).parent / "golden/super_resolution/sr3_full_tiny.safetensors"
TRAINED = dj.schedules.discrete(dj.schedules.sr3_betas())


def filled(net, shape, seed=0):
    """Parameters without the zeros of a new network, so that every part matters."""
    rng = np.random.default_rng(seed)
    x = jnp.zeros(shape)
    tree = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(()), net.blank(x))

    def leaf(path, a):
        fan_in = np.prod(a.shape[:-1]) if path[-1].key == "kernel" else 1
        return np.asarray(rng.normal(size=a.shape) / np.sqrt(fan_in) + (path[-1].key == "scale"), np.float32)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def drawn(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- the network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"resblock_updown": True, "rescale": True}, TINY | {"spatial": 3}])
def test_an_image_alone_is_what_it_is_in_a_batch(fields):
    net = SR3UNet(**(SMALL | fields))
    side = 4 if net.spatial == 3 else 8
    shape = (side,) * net.spatial
    params, x, cond = filled(net, (*shape, 1)), drawn(2, *shape, 1), drawn(2, *shape, 2, seed=2)
    level = np.array([0.3, 0.9], np.float32)
    apply = jax.jit(net.apply, compiler_options=FAST)
    batch = apply(params, x, level, cond)
    assert batch.shape == x.shape
    np.testing.assert_allclose(apply(params, x[1], level[1], cond[1]), batch[1], rtol=2e-5, atol=2e-5)
    other = apply(params, x, level, np.stack([cond[0], cond[0]]))
    assert np.abs(other[1] - batch[1]).max() > 1e-2 and np.abs(other[0] - batch[0]).max() < 1e-5, "the condition matters"
    assert np.abs(apply(params, x, level[::-1].copy(), cond) - batch).max() > 1e-3, "the level matters"


def test_the_papers_blocks_divide_sums_by_the_root_of_two():
    x, e = drawn(4, 4, 8), drawn(8)
    plain, rescaled = (ResBlock(8, groups=4, rescale=rescale) for rescale in (False, True))

    @functools.partial(jax.jit, compiler_options=FAST)
    def both(x, e):
        params = plain.init(jax.random.key(0), x, e)
        return rescaled.apply(params, x, e), plain.apply(params, x, e)

    one, two = both(x, e)
    np.testing.assert_allclose(one, two / np.sqrt(2), rtol=1e-6, atol=1e-6)


def test_what_the_network_does_not_take_is_said():
    net, x = SR3UNet(**SMALL), jnp.zeros((8, 8, 1))
    params = jax.eval_shape(functools.partial(init, net, shape=(8, 8, 1)), jax.random.key(0))
    ask = lambda net, *cond: jax.eval_shape(net.apply, params, x, jnp.zeros(()), *cond)
    with pytest.raises(ValueError, match=r"condition is missing: this network takes an image \(..., H, W, 2\) of the size"):
        ask(net)
    for shape in ((8, 8, 3), (4, 4, 2), (2, 8, 8, 2)):
        with pytest.raises(ValueError, match="the condition has shape"):
            ask(net, jnp.zeros(shape))
    with pytest.raises(ValueError, match="the condition is a dict"):
        net.init(jax.random.key(0), x, jnp.zeros(()), {"low": x})
    with pytest.raises(ValueError, match="takes no condition"):
        ask(net.clone(condition=0), x)
    with pytest.raises(ValueError, match="told='sigma'"):
        SR3UNet(**SMALL, told="sigma")
    with pytest.raises(ValueError, match="no label"):
        SR3UNet(**SMALL, classes=3)
    with pytest.raises(ValueError, match="does not keep alpha"):
        dj.denoisers.from_sr3(net.apply, params, dj.schedules.VE())


# --- sampling -------------------------------------------------------------------------------------------------------


def exact(params, x, level, cond):
    """eps of Gaussian images N(cond, std^2), told the level."""
    (std,) = params
    variance = level**2 * std**2 + 1 - level**2
    return jnp.sqrt(1 - level**2) * (x - level * cond) / variance


STD, SHAPE = 0.25, (4, 4, 1)
LOW = 0.5 * drawn(*SHAPE, seed=3)
EXACT = dj.denoisers.from_sr3(exact, (np.float32(STD),), TRAINED, LOW, clip=None)


def flowed(x, schedule):
    """Where the probability-flow ODE leads x from the schedule's last time."""
    a, s = float(schedule.alpha(schedule.T)), float(schedule.sigma(schedule.T))
    return LOW + STD * (x - a * LOW) / np.sqrt(a**2 * STD**2 + s**2)


@pytest.mark.parametrize("kernel, n, error", [(dj.kernels.DDIM(), 200, 0.01), (dj.kernels.DPMSolverPP2M(), 25, 0.01)])
def test_any_kernel_on_any_timetable(kernel, n, error):
    x = drawn(*SHAPE)
    table = dj.timetables.log_snr(TRAINED, n)
    got = dj.sample(jax.random.key(0), EXACT, table, x, kernel=kernel).x
    assert np.abs(got - flowed(x, TRAINED)).max() < error


def test_an_inference_schedule_is_a_timetable_of_the_training_schedule():
    """Another schedule, every step of it, or its noise levels as times of the training's own: the same walk."""
    other = dj.schedules.discrete(dj.schedules.sr3_betas(20, 1e-4, 0.4))
    rows = np.arange(other.T, -1, -1)
    x = drawn(*SHAPE)
    one = dj.sample(jax.random.key(0), dj.replace(EXACT, schedule=other), dj.timetables.from_times(rows, other), x)
    ts = TRAINED.time(np.append(other.log_snr(rows[:-1]), np.inf))
    two = dj.sample(jax.random.key(0), EXACT, dj.timetables.from_times(ts, TRAINED), x)
    np.testing.assert_allclose(one.x, two.x, atol=2e-4)


def test_the_search_among_inference_schedules_is_one_program():
    """SR3 chooses its 100 inference steps by a grid search over linear betas: here one compiled sweep, each entry of which is
    the walk alone. Their ends are scored against where the exact flow leads."""
    chex.clear_trace_counter()
    n, x = 12, drawn(*SHAPE)
    table = dj.timetables.from_times(np.arange(n, -1, -1))

    def one(low, high, cond, x):
        schedule = dj.schedules.discrete(dj.schedules.sr3_betas(n, low, high))
        denoise = dj.replace(EXACT, schedule=schedule, cond=cond)
        return dj.sample(jax.random.key(0), denoise, table, x, kernel=dj.kernels.DDIM()).x

    counted = chex.assert_max_traces(one, n=1)
    sweep = jax.jit(lambda *given: jax.vmap(counted, (0, 0, None, None))(*given), compiler_options=FAST)
    lows, highs = (a.ravel() for a in np.meshgrid(np.float32([1e-4, 1e-2]), np.float32([0.2, 0.6, 0.9])))
    found = sweep(lows, highs, LOW, x)
    errors = []
    for low, high, got in zip(lows, highs, found):
        schedule = dj.schedules.discrete(dj.schedules.sr3_betas(n, float(low), float(high)))
        np.testing.assert_allclose(got, one(float(low), float(high), LOW, x), atol=2e-5)
        errors.append(np.abs(got - flowed(x, schedule)).max())
    assert len({round(float(e), 5) for e in errors}) == len(errors), "each schedule walks differently"
    other = sweep(lows[::-1].copy(), highs, 2 * LOW, x)  # other schedules and another picture: still the one trace
    assert np.abs(other - found).max() > 0.1


def test_gradients_through_sr3():
    """Of a whole ancestral walk, to the weights and to the condition: finite differences in float64. (To the schedule:
    test_denoisers.)"""
    with jax.enable_x64(True):
        net = SR3UNet(**TINY)
        wide = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree)
        params, x, cond = wide((filled(net, (4, 4, 1)), drawn(4, 4, 1), 0.3 * drawn(4, 4, 2, seed=2)))
        schedule = dj.schedules.discrete(dj.schedules.sr3_betas(3, 0.1, 0.6))
        table, kernel = dj.timetables.from_times([3, 2, 1, 0]), dj.kernels.DDPM()

        def f(params, cond):
            denoise = dj.denoisers.from_sr3(net.apply, params, schedule, cond, clip=None)
            return jnp.sum(jnp.sin(dj.sample(jax.random.key(1), denoise, table, x, remat="none", kernel=kernel).x))

        rng = np.random.default_rng(5)
        way = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), (params, cond))
        f = jax.jit(jax.value_and_grad(f, argnums=(0, 1)), compiler_options=FAST)
        grads, h = f(params, cond)[1], 1e-6
        moved = lambda tree, way, h: jax.tree.map(lambda a, d: a + h * d, tree, way)
        ends = [
            [f(moved(params, way[0], s), cond)[0] for s in (h, -h)],
            [f(params, moved(cond, way[1], s))[0] for s in (h, -h)],
        ]
        for grad, direction, (up, down) in zip(grads, way, ends):
            slope = float(up - down) / (2 * h)
            ours = float(sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(grad), jax.tree.leaves(direction))))
            assert abs(ours - slope) < 1e-5 * abs(slope) and abs(slope) > 1e-3, (ours, slope)


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [times.BetweenLevels(), times.BetweenLevels(squared=True), times.BetweenLevels(together=True)]
)
def test_levels_are_drawn_between_neighbours(rule):
    count = 1 if rule.together else 20_000
    draw = jax.jit(lambda key: rule.draw(key, count, TRAINED)[0])
    t = np.asarray(jnp.concatenate([draw(jax.random.key(n)) for n in range(400 if rule.together else 1)]), np.float64)
    rows = np.ceil(t)
    assert t.min() > 0 and t.max() <= TRAINED.T
    # every row is as likely as the others: the mean of uniform rows, to four deviations
    assert abs(rows.mean() / TRAINED.T - 0.5) < 4 * np.sqrt(1 / 12 / len(t))
    clear = rows > 50  # near 0 the float32 of t has digits, that of alpha has none
    power = 2 if rule.squared else 1
    level, before, after = (TRAINED.alpha(at) ** power for at in (t[clear], rows[clear] - 1, rows[clear]))
    share = (before - level) / (before - after)
    assert abs(share.mean() - 0.5) < 4 * np.sqrt(1 / 12 / len(share)) and abs(share.std() - np.sqrt(1 / 12)) < 0.02


def test_levels_next_to_the_clean_image_keep_their_digits():
    """Between the first two levels alpha has eight values in float32."""
    share = np.linspace(0.001, 1, 1000, dtype=np.float32)
    t = np.asarray(jax.jit(lambda share: times.between_levels(TRAINED, jnp.float32(1), share))(share), np.float64)
    gone = 1 - np.sqrt(1 - TRAINED.sigma(t) ** 2)
    np.testing.assert_allclose(gone / gone[-1], share, rtol=1e-3)
    with pytest.raises(ValueError, match="use Uniform"):
        times.BetweenLevels().draw(jax.random.key(0), 2, dj.schedules.VP())


def test_absolute_errors_are_weighted_by_the_root():
    """A network of eps whose errors count as those of x0 has the loss of the network of x0."""
    x, noise, t = drawn(4, 4, 1), drawn(4, 4, 1, seed=2), 700.0
    a, s = (np.float32(f(t)) for f in (TRAINED.alpha, TRAINED.sigma))
    eps = lambda x_t, level: jnp.tanh(x_t) * level
    x0 = lambda x_t, level: (x_t - s * eps(x_t, level)) / a
    how = {"time": dj.denoisers.NoiseLevel(), "norm": "l1"}
    one, terms = losses.eps_loss(eps, TRAINED, x, t, noise, weighting="x0", **how)
    two, _ = losses.x0_loss(x0, TRAINED, x, t, noise, **how)
    np.testing.assert_allclose(one, two, rtol=1e-4)
    assert list(terms) == ["mae"]
    with pytest.raises(ValueError, match="norm 'l3'"):
        losses.eps_loss(eps, TRAINED, x, t, noise, norm="l3")


def test_a_regression_is_the_same_network_told_nothing():
    net = SR3UNet(**TINY, told=None)
    params = filled(net, (4, 4, 1))
    example = {"x": drawn(4, 4, 1), "cond": drawn(4, 4, 2, seed=2)}
    one = step.example_loss(net, TRAINED, functools.partial(losses.regression_loss, norm="l1"))
    f = jax.jit(lambda key, t: one(params, key, example, t, False), compiler_options=FAST)
    loss, terms = f(jax.random.key(0), 3.0)
    guess = jax.jit(net.apply, compiler_options=FAST)(params, np.zeros_like(example["x"]), 0.0, example["cond"])
    np.testing.assert_allclose(loss, np.abs(guess - example["x"]).mean(), rtol=1e-5)
    again = f(jax.random.key(1), 1500.0)[0]
    assert float(again) == float(loss) == float(terms["mae"]), "neither noise nor time matters"


def test_srdiff_learns_what_the_enlarged_picture_lacks():
    rng = np.random.default_rng(0)
    high = rng.integers(0, 256, (2, 8, 8, 1), np.uint8)
    pair = low_resolution.examples(high, 2)
    assert pair["cond"].shape == high.shape and pair["cond"].dtype == np.uint8
    features = lambda w, cond: jnp.concatenate([cond, jnp.tanh(w * cond)], -1)

    def target(w):
        decode = low_resolution.residual(functools.partial(features, w))
        return decode({name: a[0] for name, a in pair.items()})

    got = target(2.0)
    assert got["cond"].shape == (8, 8, 2)
    base, x = (pair[name][0] / np.float32(127.5) - 1 for name in ("cond", "x"))
    wanted = np.clip(2 * (x - base), -1, 1)
    np.testing.assert_allclose(got["x"], wanted, atol=1e-6)
    assert jax.grad(lambda w: (target(w)["cond"] ** 2).sum())(2.0) == 0, "the features are frozen"
    space = dj.autoencoder.residual(base)
    reached = np.abs(2 * (x - base)) < 1
    assert reached.any() and not reached.all()
    np.testing.assert_allclose(np.where(reached, space.decode(got["x"]) - x, 0), 0, atol=1e-6)


def test_factors_that_do_not_divide_are_said():
    with pytest.raises(ValueError, match="factor 3 does not divide 8x8: crop to 6x6"):
        low_resolution.shrunk(np.zeros((8, 8, 1), np.uint8), 3)
    with pytest.raises(ValueError, match="float32 of shape"):
        low_resolution.enlarged(np.zeros((8, 8, 1), np.float32), 2)


def test_the_configuration_in_small(tmp_path):
    """The training program's examples and their condition, its loss, and the prior that its weights make."""
    from diffjax.cli.training_run import Run
    from experiments import configs

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=rng.integers(0, 256, (600, 8, 8), np.uint8))
    small = dict(data=str(tmp_path / "a.npz"), size=8, condition="sr2", width=4, multipliers=(1,), groups=2, blocks=1,
                 batch=16, flip=True, out=str(tmp_path / "run"))  # fmt: skip
    config = dataclasses.replace(configs.load()["fashion32_sr3"], **small)
    run = Run(config)
    example = run._decode({"x": run.stream(0)["x"][0]}, jax.random.key(0))
    low = dj.operators.Resize(2)(example["x"])
    np.testing.assert_allclose(example["cond"], dj.operators.resize(low, 2), atol=1e-6)

    params = filled(run.net, (8, 8, 1))
    nothing = jax.tree_util.tree_map_with_path(lambda path, a: a * (path[1].key != "conv_out"), params)
    terms = run.held_out(nothing, run.data.examples("test", slice(64)))
    # a network that says nothing misses unit noise by its mean absolute value
    np.testing.assert_allclose(terms["mae"], np.sqrt(2 / np.pi), rtol=0.05)

    zoo.save(tmp_path / "small", params, {"name": "small", "config": dataclasses.asdict(config)}, np.float32)
    prior = zoo.load(tmp_path / "small")
    assert (prior.loss, prior.shape, prior.conditional, prior.net.module) == ("eps", (8, 8, 1), True, run.net)
    assert isinstance(prior.time, dj.denoisers.NoiseLevel) and prior.schedule.T == 1000
    with pytest.raises(ValueError, match="needs a condition"):
        prior.denoiser()


@pytest.mark.parametrize("change, said", [
    ({"condition": "sr3"}, "does not divide"), ({"network": "unet"}, "go together"), ({"classes": 2}, "no label"),
    ({"norm": "l3"}, "norm 'l3' is unknown"), ({"times": "level"}, "did you mean 'levels'"), 
    ({"condition": "sr"}, "'sr' is unknown"), ({"condition_channels": 2}, "--condition-channels 1"),
])  # fmt: skip
def test_configurations_that_do_not_exist(tmp_path, change, said):
    from diffjax.cli.training_run import Run
    from experiments import configs

    config = dataclasses.replace(configs.load()["fashion32_sr3"], data=str(tmp_path), out=str(tmp_path / "run"), **change)
    with pytest.raises(ValueError, match=said):
        Run(config)


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_released_file_is_a_prior(tmp_path):
    file = tmp_path / "I640000_E37_gen.safetensors"
    shutil.copy(WHOLE, file)
    config = {"norm_groups": 4, "image_size": 16}  # its own names
    with warnings.catch_warnings():
        warnings.simplefilter("error", zoo.Assumed)
        prior = zoo.load(file, config)
    assert (prior.shape, prior.loss, prior.conditional, prior.classes) == ((16, 16, 3), "eps", True, 0)
    state = files.read(file, [])
    np.testing.assert_allclose(prior.schedule.alphas[1:] ** 2, state["alphas_cumprod"], rtol=1e-6)
    net, params = sr3.convert(state, groups=4)
    assert prior.net == net
    low = 0.5 * drawn(16, 16, 3, seed=2)
    mine = dj.denoisers.from_sr3(net.apply, dict(params), prior.schedule, low)
    ours, theirs = (
        jax.tree.flatten(dj.replace(d, denoise=dj.replace(d.denoise, params=0))) for d in (prior.denoiser(low), mine)
    )
    assert ours[1] == theirs[1]
    jax.tree.map(np.testing.assert_array_equal, (ours[0], prior.params), (theirs[0], flax.core.unfreeze(params)))
    with pytest.raises(ValueError, match="needs a condition"):
        prior.denoiser()

    other = zoo.load(file, config | {"schedule": "linear", "T": 20, "beta_min": 1e-4, "beta_max": 0.3})
    assert other.schedule.T == 20, "any other schedule may be chosen afterwards"
    bad = {"give groups=": {"image_size": 16}, "give size=": {"norm_groups": 4}, "leave out loss": {**config, "loss": "v"},
           "multiple of 2": {**config, "image_size": 15}}  # fmt: skip
    for wanted, given in bad.items():
        with pytest.raises(ValueError, match=wanted):
            zoo.load(file, given)


@pytest.mark.parametrize("name", sr3.PUBLISHED)
def test_published_configurations_are_recognised(name):
    """Of names and shapes alone, at full size: nothing is computed."""
    fields, unseen, side = sr3.PUBLISHED[name]
    net = SR3UNet(3, **fields, **unseen)
    x = jax.ShapeDtypeStruct((side, side, 3), jnp.float32)
    shapes = sr3.strict.shapes(net, x, jax.ShapeDtypeStruct((), jnp.float32), x)
    count = sum(np.prod(shape) for shape in shapes.values())
    assert round(count / 1e6, 1) == {"16 to 128": 97.8, "64 to 512": 155.3}[name], "millions, as counted by the code itself"
    wanted = sr3.strict.expected(sr3.strict.used(sr3.table(net), shapes), shapes)
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in wanted.items()}
    assert SR3UNet(**sr3.config_from_state(state)) == net


def test_damaged_files_end_in_one_line():
    state = files.read(WHOLE, [])
    at = lambda name: f"denoise_fn.{name}"
    for change, wanted in (
        ({at("downs.1.res_block.block1.block.3.weight"): None}, "missing: downs.1.res_block.block1.block.3.weight"),
        ({at("ups.9.conv.weight"): np.zeros(3, np.float32)}, "left over: ups.9.conv.weight"),
        ({at("final_conv.block.3.weight"): np.zeros((3, 9, 3, 3), np.float32)}, "of another shape: final_conv.block.3.weight"),
        ({name: None for name in state if name.startswith(at("downs.3."))}, "cut short or of another family"),
        ({"optimizer": np.zeros(3, np.float32)}, "belong to no part"),
        ({at("downs.0.weight"): None, at("downs.0.bias"): None}, "no downs.0"),
    ):
        damaged = {name: a for name, a in (state | change).items() if a is not None}
        with pytest.raises(ValueError, match=wanted) as caught:
            sr3.convert(damaged, groups=4)
        assert "\n" not in str(caught.value)
