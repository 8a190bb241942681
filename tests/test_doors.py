"""The door of ``sample``: one program for every call, one schedule, and one line for arguments of the wrong kind."""

import functools

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


def test_numpy_counts_are_counts():
    assert M.CoPaint(denoiser(), measured(), iterations=np.int64(2)).iterations == 2
    assert M.MMPS(denoiser(), measured(noise_std=0.1), iterations=np.int32(2)).iterations == 2
