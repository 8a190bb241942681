"""One image's function on a mesh: the same numbers, odd batches, and not a single collective."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import SCHEDULE, SHAPE, arguments, gaussian

import diffjax as dj

COLLECTIVE = re.compile(r"= [^=]*\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(")


def ddim(key, y, mask):
    denoise = dj.denoisers.from_x0(gaussian, arguments()[0], SCHEDULE)
    return dj.sample(key, denoise, dj.timetables.log_snr(SCHEDULE, 8), SHAPE, kernel=dj.kernels.DDIM(SCHEDULE, eta=0.5)).x


def repaint(key, y, mask):
    denoise = dj.denoisers.from_x0(gaussian, arguments()[0], SCHEDULE)
    method = dj.methods.RePaint(denoise, dj.Measurement(y, dj.operators.Mask(mask)))
    table = dj.timetables.repaint(SCHEDULE, jump=2, times=2, grid=dj.timetables.log_snr(SCHEDULE, 8))
    return dj.sample(key, method, table, SHAPE, kernel=dj.kernels.DDPM(SCHEDULE)).x


def batch(n):
    keys = jax.random.split(jax.random.key(0), n)
    ys = jnp.stack([arguments(seed=k)[1] for k in range(n)])
    masks = jnp.asarray(np.random.default_rng(0).random((n, *SHAPE)) < 0.5, jnp.float32)
    return keys, ys, masks


@pytest.mark.parametrize("program", [ddim, repaint])
@pytest.mark.parametrize("images", [16, 5])
def test_eight_devices_equal_one(program, images):
    args = batch(images)
    one = jax.jit(jax.vmap(program))(*args)
    many = dj.parallel.shard(program, dj.parallel.mesh())(*args)
    assert jax.device_count() == 8 and many.shape == one.shape
    np.testing.assert_allclose(many, one, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize("program", [ddim, repaint])
def test_the_compiled_program_has_no_collective_and_is_spread(program):
    run = dj.parallel.shard(program, dj.parallel.mesh())
    out = run(*batch(16))
    assert len(out.sharding.device_set) == 8 and not out.sharding.is_fully_replicated
    assert not COLLECTIVE.search(run.lower(*batch(16)).compile().as_text())


def test_the_collective_pattern_sees_one():
    mesh = dj.parallel.mesh()
    spec = jax.sharding.PartitionSpec("data")
    total = jax.shard_map(lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=spec, out_specs=jax.sharding.PartitionSpec())
    assert COLLECTIVE.search(jax.jit(total).lower(jnp.ones(8)).compile().as_text())


def test_shared_arguments_are_not_batched():
    keys, ys, masks = batch(3)
    run = dj.parallel.pmapped(repaint, in_axes=(0, 0, None))
    one = jax.vmap(repaint, in_axes=(0, 0, None))(keys, ys, masks[0])
    np.testing.assert_allclose(run(keys, ys, masks[0]), one, atol=1e-5)


def test_batches_of_different_length_are_refused():
    keys, ys, masks = batch(4)
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        dj.parallel.pmapped(repaint)(keys, ys[:3], masks)


def test_a_mesh_of_jax_make_mesh_and_an_odd_batch():
    """Its axes are explicit by default, which does not allow an uneven crop."""
    xs = np.arange(15.0, dtype=np.float32).reshape(5, 3)
    for shape, names in (((8,), ("data",)), ((4, 2), ("data", "model"))):
        run = dj.parallel.shard(lambda x: 2 * x, jax.make_mesh(shape, names))
        np.testing.assert_array_equal(run(xs), 2 * xs)
        assert run.lower(xs).compile()


@pytest.mark.parametrize("in_axes, message", [(1, "in_axes 1"), ((0, None), "in_axes"), (0, "no leading axis")])
def test_axes_that_do_not_fit_are_refused(in_axes, message):
    with pytest.raises(ValueError, match=message):
        dj.parallel.pmapped(lambda x: x, in_axes)(3.0)
