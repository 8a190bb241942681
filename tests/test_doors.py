"""The door of ``sample``: one program for every call, one schedule, and one line for arguments of the wrong kind."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.sample import run

SHAPE = (4, 4, 1)
SCHEDULE = dj.schedules.discrete(dj.schedules.linear_betas(1000))
OTHER = dj.schedules.discrete(dj.schedules.cosine_betas(1000))
TABLE = dj.timetables.log_snr(SCHEDULE, 6)
KEY = jax.random.key(0)
HALF = jnp.ones(SHAPE).at[:, 2:].set(0)


def network(params, x, i):
    return params * x / (1 + 0.001 * i)


def denoiser(params=0.5, schedule=SCHEDULE):
    return dj.denoisers.from_x0(network, jnp.float32(params), schedule)


def measured(y=0.2, noise_std=0.0):
    return dj.Measurement(y * HALF, dj.operators.Mask(HALF), noise_std)


# --- compiled once --------------------------------------------------------------------------------------------------------


def test_eager_calls_share_one_program():
    """Other weights, y, keys, hyper-parameters and tables of the same length: no trace, and the same result as under jit."""
    traces = []

    def counting(params, x, i):
        traces.append(1)
        return network(params, x, i)

    def call(params, y, seed, scale, table):
        denoise = dj.denoisers.from_x0(counting, jnp.float32(params), SCHEDULE)
        return dj.sample(jax.random.key(seed), dj.methods.DPS(denoise, measured(y), scale=scale), table, SHAPE).x

    first = call(0.5, 0.2, 0, 0.3, TABLE)
    count = len(traces)
    second = call(0.6, -0.1, 1, 1.0, dj.timetables.uniform(SCHEDULE, 6))
    assert count > 0 and len(traces) == count
    direct = jax.jit(lambda y: call(0.6, y, 1, 1.0, dj.timetables.uniform(SCHEDULE, 6)))(-0.1)
    np.testing.assert_allclose(second, direct, atol=1e-6)
    assert np.abs(first - second).max() > 1e-2


def test_eager_sweeps_and_shards_share_one_program():
    traces = []

    def counting(params, x, i):
        traces.append(1)
        return network(params, x, i)

    def one(key, y):
        denoise = dj.denoisers.from_x0(counting, jnp.float32(0.5), SCHEDULE)
        return dj.sample(key, dj.methods.RePaint(denoise, measured(y)), TABLE, SHAPE).x

    keys, ys = jax.random.split(KEY, 4), jnp.linspace(-0.5, 0.5, 4)
    mapped, sharded, counts = [], [], []
    for values in (ys, ys + 0.1):
        mapped.append(jax.vmap(one)(keys, values))
        sharded.append(dj.parallel.shard(one, dj.parallel.mesh(jax.devices()[:2]))(keys, values))
        counts.append(len(traces))
    assert counts[0] == counts[1] > 0  # the second round traced nothing
    for a, b in zip(mapped, sharded):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert dj.parallel.shard(one, dj.parallel.mesh()) is dj.parallel.shard(one, dj.parallel.mesh())


def test_a_planned_walk_is_an_argument():
    method = dj.methods.DPS(denoiser(), measured())
    walk = dj.plan(method, TABLE, SHAPE)
    many = jax.jit(jax.vmap(dj.run, in_axes=(0, None)))(jax.random.split(KEY, 3), walk).x
    assert len(walk) == 6
    np.testing.assert_allclose(many[1], dj.sample(jax.random.split(KEY, 3)[1], method, TABLE, SHAPE).x, atol=1e-6)


def test_weights_are_no_constants():
    """A million weights: the program's text does not hold them, nor does it grow with them."""

    def big(params, x, i):
        return jnp.tanh(x + params[:16].reshape(SHAPE))

    def text(size):
        denoise = dj.denoisers.from_x0(big, jnp.ones(size), SCHEDULE)
        return len(run.lower(KEY, dj.plan(denoise, TABLE, SHAPE)).as_text())

    assert abs(text(1_000_000) - text(1_000)) < 2_000


# --- one schedule ---------------------------------------------------------------------------------------------------------


def test_kernels_and_methods_take_the_denoisers_schedule():
    for kernel in (dj.kernels.DDPM, dj.kernels.Heun, dj.kernels.DPMSolverPP2M, functools.partial(dj.kernels.DDIM, eta=0.5)):
        bare = dj.sample(KEY, denoiser(), TABLE, SHAPE, kernel=kernel())
        told = dj.sample(KEY, denoiser(), TABLE, SHAPE, kernel=kernel(schedule=SCHEDULE))
        np.testing.assert_array_equal(bare.x, told.x)
    assert dj.sample(KEY, dj.methods.DDRM(denoiser(), measured(noise_std=0.1)), TABLE, SHAPE).x.shape == SHAPE


def test_two_schedules_that_differ_are_refused():
    for kernel in (dj.kernels.DDPM(OTHER), dj.kernels.guided(dj.kernels.DDPM(OTHER), lambda x, t: -x)):
        with pytest.raises(ValueError, match="another schedule than the denoiser"):
            dj.sample(KEY, dj.methods.RePaint(denoiser(), measured()), TABLE, SHAPE, kernel=kernel)
    single = jax.tree.map(jnp.float32, SCHEDULE)  # the same one, rounded
    assert dj.sample(KEY, denoiser(), TABLE, SHAPE, kernel=dj.kernels.DDPM(single)).x.shape == SHAPE


def test_a_start_in_the_middle_needs_an_image():
    """From N(0, 1) at alpha 0.7 the samples were wrong without a word."""
    for table in (dj.timetables.respaced(SCHEDULE, "ddim2"), dj.timetables.start_at(TABLE, 300), TABLE[3:]):
        for method in (denoiser(), dj.methods.DPS(denoiser(), measured())):
            with pytest.raises(ValueError, match="Pass an array"):
                dj.sample(KEY, method, table, SHAPE)
        assert dj.sample(KEY, denoiser(), table, jnp.zeros(SHAPE)).x.shape == SHAPE
    late = dj.timetables.start_at(TABLE, 300)
    for method in (dj.methods.CCDF(denoiser(), measured()), dj.methods.DiffPIR(denoiser(), measured(), guess=HALF)):
        assert dj.sample(KEY, method, late, SHAPE).x.shape == SHAPE


def test_a_walk_cut_in_two_starts_afresh_without_its_state():
    """A slice used to extrapolate from a prediction that was never made."""
    kernel, x = dj.kernels.DPMSolverPP2M(), 0.3 * jax.random.normal(KEY, SHAPE)
    rest, late = TABLE[3:], dj.timetables.from_times(np.append(TABLE.t[3:], 0.0))
    np.testing.assert_allclose(
        dj.sample(KEY, denoiser(), rest, x, kernel=kernel).x, dj.sample(KEY, denoiser(), late, x, kernel=kernel).x, atol=1e-6
    )


def test_resuming_plans_in_the_states_dtype():
    with jax.enable_x64(True):
        denoise = dj.denoisers.from_x0(network, jnp.float64(0.5), SCHEDULE)
        whole = dj.sample(KEY, denoise, TABLE, SHAPE, dtype=jnp.float64)
        head = dj.sample(KEY, denoise, TABLE[:3], SHAPE, dtype=jnp.float64)
        rest = dj.sample(KEY, denoise, TABLE[3:], SHAPE, state=head.state)
        assert rest.x.dtype == jnp.float64
        np.testing.assert_allclose(rest.x, whole.x, rtol=0, atol=1e-15)


def test_a_quiet_ddim_draws_nothing():
    """eta 0 needs no noise, and the draw is all that it costs beside the network."""
    noise = dj.draws(KEY, denoiser(), TABLE, SHAPE)
    assert jax.tree.leaves(noise.rows) == []
    assert jax.tree.leaves(dj.draws(KEY, denoiser(), TABLE, SHAPE, kernel=dj.kernels.DDIM(eta=0.5)).rows)[0].shape == (
        6,
        *SHAPE,
    )
    x = jax.random.normal(KEY, SHAPE)
    traced = jax.jit(lambda eta: dj.sample(KEY, denoiser(), TABLE, x, kernel=dj.kernels.DDIM(eta=eta)).x)(0.0)
    np.testing.assert_allclose(dj.sample(KEY, denoiser(), TABLE, x).x, traced, atol=1e-6)


# --- plain functions ------------------------------------------------------------------------------------------------------


def plain(x, t):
    return denoiser()(x, t)


METHODS = [name for name, entry in dj.registry.METHODS.items() if entry.whole is None]


@pytest.mark.parametrize("name", METHODS)
def test_a_plain_function_is_a_denoiser_for_every_method(name):
    """It gives what the denoiser gives, and the method is a jit argument."""
    entry = dj.registry.get(name)
    m = measured(noise_std=0.1 if entry.method.noise == "needed" else 0.0)
    setup = entry.build(denoiser(), m, 6)
    kernel = setup.kernel.bind(SCHEDULE)
    other = dj.replace(setup.method, denoise=plain)
    go = jax.jit(lambda key, method: dj.sample(key, method, setup.table, SHAPE, kernel=kernel).x)
    np.testing.assert_allclose(go(KEY, other), go(KEY, setup.method), atol=2e-5)


def test_optimise_start_and_estimates_take_one_too():
    kernel = dj.kernels.DDIM(SCHEDULE)
    found = dj.methods.optimise_start(KEY, plain, measured(), TABLE, SHAPE, iterations=2, kernel=kernel)
    method = dj.methods.CoPaint(plain, measured(), estimate_steps=2)
    assert found.x.shape == SHAPE and dj.sample(KEY, method, TABLE, SHAPE, kernel=kernel).x.shape == SHAPE


# --- arguments of the wrong kind ------------------------------------------------------------------------------------------

K, M = dj.kernels, dj.methods
WRONG = {
    "table is a number": (lambda: dj.sample(KEY, denoiser(), 50, SHAPE), "for 50 steps timetables.log_snr"),
    "table is a list": (lambda: dj.sample(KEY, denoiser(), [3, 2, 1], SHAPE), "not a Timetable"),
    "kernel and table exchanged": (lambda: dj.sample(KEY, denoiser(), K.DDIM(), SHAPE, kernel=TABLE), "not a Timetable"),
    "kernel is a class": (lambda: dj.sample(KEY, denoiser(), TABLE, SHAPE, kernel=K.DDIM), "write kernels.DDIM()"),
    "kernel is a schedule": (lambda: dj.sample(KEY, denoiser(), TABLE, SHAPE, kernel=SCHEDULE), "not a kernel"),
    "eta as schedule": (lambda: dj.sample(KEY, denoiser(), TABLE, SHAPE, kernel=K.DDIM(0.5)), r"DDIM\(eta=0.5\)"),
    "method is a class": (lambda: dj.sample(KEY, M.DPS, TABLE, SHAPE), "the class DPS is neither"),
    "method of a method": (
        lambda: dj.sample(KEY, M.DPS(M.DPS(denoiser(), measured()), measured()), TABLE, SHAPE),
        "methods wrap a denoiser",
    ),
    "no denoiser": (lambda: dj.sample(KEY, None, TABLE, SHAPE), "neither a denoiser nor a method"),
    "an array": (lambda: dj.sample(KEY, jnp.zeros(SHAPE), TABLE, SHAPE), "neither a denoiser nor a method"),
    "a network's array": (
        lambda: dj.sample(KEY, lambda x, t: 0.5 * x, TABLE, SHAPE, kernel=K.DDIM(SCHEDULE)),
        "not a Prediction",
    ),
    "no schedule anywhere": (lambda: dj.sample(KEY, plain, TABLE, SHAPE), r"pass kernels.DDIM\(schedule\)"),
    "uint8 start": (lambda: dj.sample(KEY, denoiser(), TABLE, np.zeros(SHAPE, np.uint8)), "127.5"),
    "shape is a number": (lambda: dj.sample(KEY, denoiser(), TABLE, 32), "give a shape"),
    "whole dtype": (lambda: dj.sample(KEY, denoiser(), TABLE, SHAPE, dtype=jnp.int32), "cannot hold an image"),
    "state of another kind": (lambda: dj.sample(KEY, denoiser(), TABLE, SHAPE, state=(1, 2)), ".state of a Result"),
    "no key": (lambda: dj.sample(None, denoiser(), TABLE, SHAPE), "jax.random.key"),
    "no measurement": (lambda: dj.sample(KEY, M.DPS(denoiser()), TABLE, SHAPE), "has no measurement"),
    "eta above 1": (lambda: K.DDIM(eta=3.0), "eta 3"),
    "zeta array above 1": (lambda: K.DDIM(zeta=np.float32(4)), "zeta 4"),
    "negative noise": (lambda: measured(noise_std=np.float32(-0.1)), "noise_std -0.1"),
    "noise is NaN": (lambda: measured(noise_std=jnp.array([0.1, np.nan])), "noise_std nan"),
    "eta of DDRM": (lambda: M.DDRM(denoiser(), measured(), eta=jnp.float32(3)), "eta 3"),
    "guided without noise": (lambda: K.guided(K.DDIM(), lambda x, t: x), r"use DDPM or DDIM\(eta=1\)"),
    "guided without a transition": (lambda: K.guided(K.Heun(), lambda x, t: x), "no Gaussian transition"),
    "bool for a count": (lambda: M.CoPaint(denoiser(), measured(), iterations=True), "iterations True"),
    "kernel that the method refuses": (
        lambda: dj.sample(KEY, M.DDRM(denoiser(), measured()), TABLE, SHAPE, kernel=K.DDPM()),
        r"use kernels.Marginal\(\)",
    ),
    "key is a number": (lambda: dj.sample(0, denoiser(), TABLE, SHAPE), r"pass jax.random.key\(0\)"),
    "a batch of keys": (lambda: dj.sample(jax.random.split(KEY), denoiser(), TABLE, SHAPE), "one image takes one key"),
    "dtype is a word": (lambda: dj.sample(KEY, denoiser(), TABLE, SHAPE, dtype="floaty"), "dtype 'floaty' cannot"),
    "negative side": (lambda: dj.sample(KEY, denoiser(), TABLE, (-4, 4, 1)), "side of the image -4"),
    "half a pixel": (lambda: dj.sample(KEY, denoiser(), TABLE, (4.5, 4, 1)), "side of the image 4.5"),
    "recorded is an image": (lambda: dj.sample(KEY, denoiser(), TABLE, SHAPE, recorded=HALF), "recorded is .* pass Draws"),
    "part is a number": (lambda: dj.sample(KEY, denoiser(), TABLE, SHAPE, part=3), r"part is 3: pass \(first, last\)"),
    "trace is a number": (lambda: dj.sample(KEY, denoiser(), TABLE, SHAPE, trace=3), "trace is 3: pass a function"),
    "schedule is betas": (lambda: dj.denoisers.from_eps(network, 0.5, np.ones(3)), r"pass schedules.discrete\(betas\)"),
    "schedule is a class": (lambda: dj.denoisers.from_edm(network, 0.5, dj.schedules.VP), "the class VP is no schedule"),
    "grid of betas": (lambda: dj.timetables.log_snr(dj.schedules.linear_betas(100), 5), "is no schedule: pass"),
    "grid of a denoiser": (lambda: dj.timetables.ddnm(denoiser(), 5), "is no schedule: pass its .schedule"),
    "betas of a kernel": (lambda: K.DDIM(dj.schedules.linear_betas(1000)).bind(None), "name the hyper-parameters"),
    "travel without a table": (lambda: dj.timetables.travel(SCHEDULE, 3), "travel walks a timetable"),
    "y and A exchanged": (lambda: dj.Measurement(dj.operators.Mask(HALF), HALF), "takes y first"),
    "A is a class": (lambda: dj.Measurement(HALF, dj.operators.Grey), "the class Grey, no operator: build it"),
    "A is None": (lambda: dj.sample(KEY, M.DPS(denoiser(), dj.Measurement(HALF, None)), TABLE, SHAPE), "A is None: pass"),
    "noise_std is a word": (lambda: measured(noise_std="0.1"), "noise_std is '0.1'"),
    "noise_std is None": (
        lambda: dj.sample(KEY, M.DPS(denoiser(), measured(noise_std=None)), TABLE, SHAPE),
        "noise_std is None: pass",
    ),
    "noise_std is complex": (lambda: measured(noise_std=1 + 0j), r"noise_std is \(1\+0j\)"),
    "eta is a word": (lambda: K.DDIM(eta="1"), "eta is '1'"),
    "eta is None": (lambda: dj.sample(KEY, denoiser(), TABLE, SHAPE, kernel=K.DDIM(eta=None)), "eta of DDIM is None"),
    "eta and zeta": (lambda: K.DDIM(eta=0.5, zeta=0.5), "zeta 0.5 stands for eta"),
    "mask is a word": (lambda: dj.operators.Mask("half"), "mask is 'half'"),
    "mask is complex": (lambda: dj.operators.Mask(HALF * 1j), "mask is"),
    "rho is 0": (lambda: dj.timetables.karras(SCHEDULE, 5, rho=0.0), "rho 0"),
    "warm-up beyond the end": (lambda: dj.schedules.warmup_betas(10, 3.0), "fraction 3"),
    "DPIR from below its top": (lambda: dj.timetables.dpir(SCHEDULE, 0.5), "noise_std 0.5 .* pass a larger top"),
    "DPIR's noise per pixel": (lambda: dj.timetables.dpir(SCHEDULE, np.ones(SHAPE)), r"of shape \(4, 4, 1\) is not one"),
    "share above 1": (lambda: M.Replacement(denoiser(), measured(), strength=3.0), "strength 3"),
    "share of CCDF": (lambda: M.CCDF(denoiser(), measured(), strength=np.float32(3)), "strength 3"),
    "share of the data step": (lambda: M.DiffPIR(denoiser(), measured(), guidance=3.0), "guidance 3"),
    "negative weight": (lambda: M.DiffPIR(denoiser(), measured(), lam=-1.0), "lam -1"),
    "negative deviation": (lambda: M.PiGDM(denoiser(), measured(), prior_std=-1.0), "prior_std -1"),
    "step size NaN": (lambda: M.DPS(denoiser(), measured(), scale=np.nan), "scale nan"),
    "learning rate NaN": (lambda: M.CoPaint(denoiser(), measured(), lr=jnp.float32(np.nan)), "lr nan"),
    "guidance NaN": (lambda: dj.denoisers.classifier(denoiser(), lambda x, t: x, np.nan), "scale nan"),
    "empty bounds": (lambda: dj.denoisers.clipped(denoiser(), 1.0, -1.0), r"low < high"),
    "empty bounds of Blended": (lambda: M.Blended(denoiser(), measured(), bounds=(1.0, -1.0)), "low < high"),
    "log p instead of its gradient": (
        lambda: dj.sample(KEY, denoiser(), TABLE, SHAPE, kernel=K.guided(K.DDPM(), lambda x, t: (x**2).sum())),
        r"the guiding gradient has shape \(\) for an image of \(4, 4, 1\)",
    ),
    "a gradient of one column": (
        lambda: dj.sample(KEY, dj.denoisers.classifier(denoiser(), lambda x, t: x[:, :1]), TABLE, SHAPE),
        "the guiding gradient has shape",
    ),
    "an EDM network of one column": (
        lambda: dj.sample(KEY, dj.denoisers.from_edm(lambda x, i: x[:, :1], None, SCHEDULE), TABLE, SHAPE),
        "what the network returned has shape",
    ),
    "a plain function of one column": (
        lambda: dj.sample(KEY, lambda x, t: denoiser()(x, t).with_x0(x[:, :1]), TABLE, SHAPE, kernel=K.DDIM(SCHEDULE)),
        "x0 of the denoiser's prediction has shape",
    ),
    "a late start to optimise": (
        lambda: M.optimise_start(KEY, denoiser(), measured(), dj.timetables.start_at(TABLE, 200.0), SHAPE, iterations=1),
        "pure noise is no image",
    ),
    "a start that is not finite": (
        lambda: dj.sample(KEY, denoiser(), TABLE, np.full(SHAPE, np.nan, np.float32)),
        "the start nan",
    ),
    "images without a spread": (
        lambda: dj.denoisers.from_edm(lambda x, i: x, None, SCHEDULE, sigma_data=np.float32(-1)),
        "sigma_data -1",
    ),
    "an optimised start under noise": (
        lambda: M.optimise_start(KEY, denoiser(), measured(), TABLE, SHAPE, iterations=1, kernel=K.DDPM()),
        "draws noise",
    ),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_one_line_names_the_remedy(what):
    make, message = WRONG[what]
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_whole_prior_is_sent_to_its_denoiser(prior):
    with pytest.raises(ValueError, match=r"call its .denoiser\(\)"):
        dj.sample(KEY, prior, TABLE, SHAPE)


def test_a_measurement_that_may_be_in_another_range_is_said():
    """Of a picture in [0, 1] where [-1, 1] is the range; not of one that reaches below 0, nor where the range is told."""
    y = np.random.default_rng(0).uniform(0, 1, (16, 16, 1)).astype(np.float32)
    A = dj.operators.Mask(np.ones((16, 16, 1)))
    with pytest.warns(dj.base.Units, match=r"if \[0, 1\] was meant, give 2 y - 1"):
        dj.Measurement(y, A)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dj.Measurement(2 * y - 1, A), dj.Measurement(y, A, value_range=(0, 1)), dj.Measurement(0 * y, A)


def test_numpy_counts_are_counts():
    assert M.CoPaint(denoiser(), measured(), iterations=np.int64(2)).iterations == 2
    assert M.MMPS(denoiser(), measured(noise_std=0.1), iterations=np.int32(2)).iterations == 2
