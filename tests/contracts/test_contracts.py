"""What every kernel and method promises (the plan's contract table). Entries: cases.py."""

import dataclasses
from functools import cache, lru_cache

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, SCHEDULE, SHAPE, arguments, build, jitted, program

import diffjax as dj
from diffjax.sample import begin

compiled = lru_cache(maxsize=None)(jitted)


@pytest.fixture(params=CASES, ids=lambda c: c.name, scope="module")
def case(request):
    return request.param


def run(case, seed=0, data_seed=0):
    return compiled(case)(jax.random.key(seed), *arguments(seed=data_seed))


def test_pytree_protocol_and_frozen(case):
    kernel, method = case.kernel(SCHEDULE), dj.method.as_method(build(case, *arguments()))
    for thing in (kernel, method, case.table(SCHEDULE)):
        leaves, structure = jax.tree.flatten(thing)
        again = jax.tree.unflatten(structure, leaves)
        assert type(again) is type(thing)
        assert jax.tree.structure(again) == structure
        with pytest.raises(dataclasses.FrozenInstanceError):
            thing.schedule = None
    for name in ("plan", "init", "draw", "step"):
        assert callable(getattr(kernel, name)) and callable(getattr(method, name))


def test_image_alone_equals_image_in_a_batch_on_four_devices(case):
    params, _ = arguments()
    keys = jax.random.split(jax.random.key(5), 7)  # padded to eight: two images in the vmap of each of four devices
    ys = jnp.stack([arguments(seed=n)[1] for n in range(7)])
    fn = lambda key, y: program(case)(key, params, y).x
    alone = jnp.stack([compiled(case)(key, params, y).x for key, y in zip(keys, ys)])
    together = dj.parallel.shard(fn, dj.parallel.mesh(jax.devices()[:4]))(keys, ys)
    scale = np.abs(alone).max()
    np.testing.assert_allclose(together, alone, atol=1e-5 * scale)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3 * scale


@cache
def replayed(case):
    """(draws, params, y) -> (x, state before ``finish``) of the walk in two parts (three where the rows are odd in number):
    all of one length, so that one program walks them."""
    table, kernel = case.table(SCHEDULE), case.kernel(SCHEDULE)
    count = 2 if len(table) % 2 == 0 else 3
    length = len(table) // count
    assert count * length == len(table)

    @jax.jit
    def walk(table, state, noise, params, y):
        method = build(case, params, y)
        result = dj.sample(None, method, table, SHAPE, kernel=kernel, state=state, recorded=noise)
        return result.x, result.state

    def parts(noise, params, y):
        state = begin(None, dj.plan(build(case, params, y), table, SHAPE, kernel=kernel), noise)
        noise = dataclasses.replace(noise, start=None)
        for first in range(0, len(table), length):
            part = slice(first, first + length)
            x, state = walk(table[part], state, jax.tree.map(lambda a: a[part], noise), params, y)
        return x, state

    return parts


@cache
def drawn(case, seed):
    return dj.draws(jax.random.key(seed), build(case, *arguments()), case.table(SCHEDULE), SHAPE, kernel=case.kernel(SCHEDULE))


def test_recorded_draws_replay_the_run_in_two_parts(case):
    """The run from a key, in one piece, equals the replay of its draws, in pieces."""
    noise, whole = drawn(case, 0), run(case)
    x, state = replayed(case)(noise, *arguments())
    np.testing.assert_allclose(x, whole.x, rtol=0, atol=1e-5 * np.abs(x).max())
    for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(whole.state)):
        np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())
    moved = jax.tree.map(lambda a: a + 0.1, noise)
    differs = bool(np.abs(replayed(case)(moved, *arguments())[0] - x).max() > 1e-3)
    assert differs == (case.stochastic or case.starts)


def test_one_trace_for_new_arrays(case):
    first, second = run(case, seed=0), run(case, seed=1, data_seed=1)
    assert len(compiled(case).traces) == 1
    assert np.abs(first.x - second.x).max() > 1e-3


@pytest.mark.parametrize("name", ["ddpm-jumps", "repaint", "twisted"])
def test_walk_in_two_parts_from_a_key_equals_one(name):
    """Which draw of a key belongs to which row is the loop's business, not the method's: a kernel, a method, particles."""
    case = next(c for c in CASES if c.name == name)
    table, kernel = case.table(SCHEDULE), case.kernel(SCHEDULE)
    n, key, args = len(table) // 2, jax.random.key(0), arguments()

    @jax.jit
    def half(table, state, params, y):
        return dj.sample(key, build(case, params, y), table, SHAPE, kernel=kernel, state=state).state

    state = begin(key, dj.plan(build(case, *args), table, SHAPE, kernel=kernel))
    for part in (table[:n], table[n:]):
        state = half(part, state, *args)
    whole = run(case).state  # before ``finish``
    for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(whole)):
        np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_network_calls_are_as_declared(case):
    run(case)
    jax.effects_barrier()
    compiled(case).calls.clear()
    result = run(case)
    jax.block_until_ready(result.x)
    jax.effects_barrier()
    seen, rows = len(compiled(case).calls), len(case.table(SCHEDULE))
    declared = dj.method.as_method(build(case, *arguments())).calls(case.kernel(SCHEDULE))
    if "calls" in result.info.rows:
        assert seen == int(result.info.rows["calls"].sum()) <= declared * rows
    else:
        assert seen == declared * rows
    assert case.calls is None or declared == case.calls


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_dtype_is_kept_under_strict_promotion(case, dtype):
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(True):
        result = jax.eval_shape(program(case), jax.random.key(0), *arguments(dtype))
        assert result.x.dtype == dtype
    assert run(case).x.dtype == jnp.float32  # traced under strict promotion, without x64


def test_gradients_are_finite_and_equal_finite_differences(case):
    with jax.enable_x64(True):
        args = arguments(jnp.float64)
        key = jax.random.key(1)
        weights = jnp.asarray(np.random.default_rng(2).standard_normal(SHAPE))
        loss = jax.jit(jax.value_and_grad(lambda args: (weights * program(case)(key, *args).x).sum()))
        _, gradient = loss(args)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
        rng = np.random.default_rng(3)
        direction = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape)), args)
        step = lambda h: loss(jax.tree.map(lambda a, d: a + h * d, args, direction))[0]
        h = 1e-5
        numeric = (step(h) - step(-h)) / (2 * h)
        exact = sum((g * d).sum() for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction)))
        assert abs(exact) > 1e-3
        np.testing.assert_allclose(numeric, exact, rtol=1e-6)


def test_no_key_is_used_twice(case):
    with jax.debug_key_reuse(True):  # looks at the traced program
        jax.jit(program(case)).trace(jax.random.key(0), *arguments())


def test_a_key_used_twice_is_seen():
    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.jit(lambda key: jax.random.normal(key) + jax.random.uniform(key)).trace(jax.random.key(0))


def test_teeth_data_and_noise_change_the_result(case):
    params, y = arguments()
    base = run(case).x
    if case.method is not None:
        assert np.abs(compiled(case)(jax.random.key(0), params, y + 0.1).x - base).max() > 1e-3
    other = dataclasses.replace(drawn(case, 1), start=drawn(case, 0).start)
    two = [replayed(case)(noise, params, y)[0] for noise in (drawn(case, 0), other)]
    differs = bool(np.abs(two[0] - two[1]).max() > 1e-5)
    assert differs == (case.stochastic or case.table(SCHEDULE).jumps)


def test_no_move_returns_x_itself(case):
    """A row with s = t changes nothing that the method does not change before or after it."""
    if case.method is not None:
        pytest.skip("methods may act at s = t (optimise before travelling)")
    x = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), jnp.float32)
    table = dj.timetables.from_rows([(40.0, 40.0, 40.0)])
    got = dj.sample(jax.random.key(0), build(case, *arguments()), table, x, kernel=case.kernel(SCHEDULE)).x
    np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize("remat, bound", [("none", None), ("row", 2.5), ("sqrt", 2.5)])
def test_gradient_memory_grows_as_remat_says(remat, bound):
    """A network with large activations: with "none" they are all kept; otherwise one state per row is."""
    wide = np.random.default_rng(0).standard_normal((16, 512)).astype(np.float32) * 0.02

    def network(params, x, i):
        h = jnp.tanh(x.reshape(1, 16) @ params)
        return jnp.tanh(h @ params.T).reshape(x.shape), jnp.zeros_like(x)

    def memory(rows):
        table = dj.timetables.log_snr(SCHEDULE, rows)
        case = cases.Case("ddpm", dj.kernels.DDPM)
        loss = lambda key, params, y: program(case, network, remat, table)(key, params, y).x.sum()
        grad = jax.jit(jax.grad(loss, argnums=1))
        return grad.lower(jax.random.key(0), wide, arguments()[1]).compile().memory_analysis().temp_size_in_bytes

    growth = memory(96) / memory(12)
    assert growth > 4 if bound is None else growth < bound, f"remat={remat}: 8x rows cost {growth:.2f}x memory"


def test_remat_options_agree():
    case = next(c for c in CASES if c.name == "ddim-eta")
    for rows, options in ((13, ("row", "sqrt")), (8, ("sqrt",))):  # 13: prime, so that "sqrt" has a remainder; 8: none
        table = dj.timetables.log_snr(SCHEDULE, rows)
        grad = lambda remat, table=table: jax.jit(
            jax.grad(lambda p, y: program(case, remat=remat, table=table)(jax.random.key(0), p, y).x.sum())
        )(*arguments())
        wanted = jax.tree.leaves(grad("none"))
        for remat in options:
            for a, b in zip(jax.tree.leaves(grad(remat)), wanted):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
