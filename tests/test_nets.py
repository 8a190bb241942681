"""Networks: layers against numpy, one image against a batch, initialisation, labels, options, errors."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from diffjax.nets import DDPMUNet, Encoder, SuperRes, UNet, init, layers

TINY = dict(out_channels=1, width=8, multipliers=(1, 2), blocks=1, groups=4, patch=2)
FASHION = dict(out_channels=1, width=32, multipliers=(1, 2), blocks=2, patch=2, groups=8, classes=10, null_label=True)


FAST = {"xla_backend_optimization_level": 0}


def any_params(net, *inputs):
    """Parameters without the zeros of initialisation, so that every part matters: near 1 for gains, N(0, 1/fan_in)."""
    rng = np.random.default_rng(7)

    def leaf(path, a):
        fan_in = np.prod(a.shape[:-1]) or 1
        return jnp.asarray(rng.normal(size=a.shape) / np.sqrt(fan_in) + (path[-1].key == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(net.init, random.key(0), *inputs))


def once(function, *args):
    """The function compiled for one call: optimisation would take longer than it saves."""
    return jax.jit(function, compiler_options=FAST)(*args)


@functools.cache
def applied(net):
    """(params, x, t ...) -> the network's result; tests that ask for arrays of the same shapes share a program."""
    return jax.jit(net.apply, compiler_options=FAST)


@pytest.fixture(scope="module")
def tiny():
    """(net, params, x, t, y, result of the batch) of a small conditional network."""
    net = UNet(**TINY, classes=3, null_label=True)
    params = any_params(net, jnp.zeros((8, 8, 1)), jnp.zeros(()))
    x, t, y = random.normal(random.key(1), (3, 8, 8, 1)), jnp.array([0.0, 10.5, 999.0]), jnp.array([0, 2, 3])
    return net, params, x, t, y, applied(net)(params, x, t, y)


# --- layers ---------------------------------------------------------------------------------------------------------


def test_group_norm_is_that_of_one_image():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 5, 6)) * 0.1 + 100  # a mean of 1000 standard deviations
    gain, bias = rng.normal(size=6), rng.normal(size=6)
    wanted = np.empty_like(x)
    for index in np.ndindex(2, 3):
        for group in (slice(0, 3), slice(3, 6)):
            g = x[index][..., group]
            wanted[index][..., group] = (g - g.mean()) / np.sqrt(g.var() + 1e-5) * gain[group] + bias[group]
    norm = layers.GroupNorm(2)
    params = {"params": {"scale": jnp.asarray(gain), "bias": jnp.asarray(bias)}}
    # float32 keeps 100 to 4e-6, which is 4e-5 of a standard deviation
    np.testing.assert_allclose(norm.apply(params, jnp.asarray(x, jnp.float32)), wanted, atol=3e-4)
    np.testing.assert_allclose(norm.apply(params, jnp.asarray(x[1, 2], jnp.float32)), wanted[1, 2], atol=3e-4)


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_attention_by_loops(order):
    tokens, heads, size = 5, 2, 3
    qkv = np.random.default_rng(1).normal(size=(tokens, 3 * heads * size))
    wanted = np.zeros((tokens, heads * size))
    for head in range(heads):
        if order == "legacy":
            q, k, v = (qkv[:, (3 * head + i) * size : (3 * head + i + 1) * size] for i in range(3))
        else:
            q, k, v = (qkv[:, (heads * i + head) * size : (heads * i + head + 1) * size] for i in range(3))
        weight = np.exp(q @ k.T / np.sqrt(size))
        wanted[:, head * size : (head + 1) * size] = weight / weight.sum(1, keepdims=True) @ v
    np.testing.assert_allclose(layers.attend(jnp.asarray(qkv, jnp.float32), heads, order), wanted, atol=1e-5)


def test_sinusoid():
    got = layers.sinusoid(jnp.array([0.0, 2.0]), 5)
    np.testing.assert_allclose(got[0], [1, 1, 0, 0, 0])
    np.testing.assert_allclose(got[1], [np.cos(2), np.cos(0.02), np.sin(2), np.sin(0.02), 0], atol=1e-6)
    ddpm = layers.sinusoid(jnp.array(2.0), 4, sin_first=True, shift=1)
    np.testing.assert_allclose(ddpm, [np.sin(2), np.sin(2e-4), np.cos(2), np.cos(2e-4)], atol=1e-6)


def test_resampling():
    x = jnp.arange(16.0).reshape(4, 4, 1)
    np.testing.assert_array_equal(layers.space_to_depth(x, 2)[0, 1], [2, 3, 6, 7])
    np.testing.assert_array_equal(layers.average_pool(x)[..., 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(layers.nearest(x)[:3, :3, 0], [[0, 0, 1], [0, 0, 1], [4, 4, 5]])
    batch = random.normal(random.key(0), (2, 3, 8, 4, 5))
    np.testing.assert_array_equal(layers.depth_to_space(layers.space_to_depth(batch, 2), 2), batch)
    np.testing.assert_allclose(layers.average_pool(layers.nearest(batch)), batch, rtol=1e-6)


@pytest.mark.parametrize("spatial", [1, 3])
def test_resampling_of_signals_and_volumes(spatial):
    sides = (8, 4, 6)[:spatial]
    x = random.normal(random.key(0), (2, *sides, 3))
    small, deep, twice = layers.average_pool(x, spatial), layers.space_to_depth(x, 2, spatial), layers.nearest(x, spatial)
    for place in np.ndindex(*(side // 2 for side in sides)):
        block = x[:, *(slice(2 * n, 2 * n + 2) for n in place)].reshape(2, -1, 3)
        at = (slice(None), *place)
        np.testing.assert_allclose(small[at], block.mean(1), atol=1e-6)
        np.testing.assert_array_equal(deep[at], block.reshape(2, -1))
    for place in np.ndindex(*(2 * side for side in sides)):
        np.testing.assert_array_equal(twice[:, *place], x[:, *(n // 2 for n in place)])
    np.testing.assert_array_equal(layers.depth_to_space(deep, 2, spatial), x)


# --- the UNet -------------------------------------------------------------------------------------------------------


def test_one_image_is_its_image_in_a_batch(tiny):
    net, params, x, t, y, batch = tiny
    assert batch.shape == x.shape and float(jnp.abs(batch).max()) > 0.1
    np.testing.assert_allclose(once(jax.vmap(net.apply, (None, 0, 0, 0)), params, x, t, y), batch, atol=1e-5)
    alone = applied(net)(params, x[1], t[1], y[1])
    assert alone.shape == (8, 8, 1)
    np.testing.assert_allclose(alone, batch[1], atol=1e-5)
    axes = applied(net)(params, x[None], t[None], y[None])
    np.testing.assert_allclose(axes[0], batch, atol=1e-5)


def test_a_scalar_time_is_everyones(tiny):
    net, params, x, t, y, batch = tiny
    same = applied(net)(params, x, t[1], y[1])
    np.testing.assert_allclose(same[1], batch[1], atol=1e-5)
    assert float(jnp.abs(same[0] - batch[0]).max()) > 1e-3  # the time and the label matter


def test_labels(tiny):
    net, params, x, t, y, batch = tiny
    apply = applied(net)
    np.testing.assert_allclose(apply(params, x[2], t[2]), batch[2], atol=1e-5)  # no label: the null label, index 3
    assert float(jnp.abs(apply(params, x[2], t[2], jnp.int32(0)) - batch[2]).max()) > 1e-3
    assert bool(jnp.isnan(apply(params, x[2], t[2], jnp.int32(4))).all())  # out of range is loud, not the last row
    with pytest.raises(ValueError, match="integer"):
        net.apply(params, x, t, jnp.zeros(3))
    with pytest.raises(ValueError, match=r"conditional: give y in 0\.\.2"):
        UNet(**TINY, classes=3).init(random.key(0), x, t)
    with pytest.raises(ValueError, match="has no classes"):
        UNet(**TINY).init(random.key(0), x, t, y)


def test_initial_output_is_zero_and_every_parameter_learns(tiny):
    net, params, x, t, y, _ = tiny
    fresh = init(net, random.key(0), (8, 8, 1))
    assert isinstance(fresh, flax.core.FrozenDict)
    np.testing.assert_array_equal(applied(net)(flax.core.unfreeze(fresh), x, t, y), 0)

    gradient = once(jax.grad(lambda p: jnp.square(net.apply(p, x, t, y) - x).mean()), params)
    for path, g in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(g).all() and np.abs(g).max() > 0, jax.tree_util.keystr(path)


def test_the_shipped_configuration_keeps_its_parameters():
    net = UNet(**FASHION)
    shapes = jax.eval_shape(net.init, random.key(0), jnp.zeros((32, 32, 1)), jnp.zeros(()))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 921_028
    assert shapes["params"]["label"].shape == (11, 128)


def test_remat_changes_nothing():
    net = UNet(**(TINY | {"multipliers": (1,)}))
    other = net.clone(remat=True)
    x, t = random.normal(random.key(1), (8, 8, 1)), jnp.array(10.5)
    params = any_params(net, x, t)
    gradient = lambda net: jax.jit(jax.grad(lambda p: jnp.square(net.apply(p, x, t)).mean())).trace(params)
    traced = gradient(net), gradient(other)
    results = [one.lower().compile(compiler_options=FAST)(params) for one in traced]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results)
    plain, with_remat = (str(one.jaxpr) for one in traced)
    assert with_remat.count("remat") >= 6 and "remat" not in plain


def test_bfloat16_computes_in_it_and_keeps_float32_outside(tiny):
    net, params, x, t, y, batch = tiny
    half = net.clone(dtype=jnp.bfloat16)
    out = applied(half)(params, x, t, y)
    assert out.dtype == jnp.float32
    fresh = jax.eval_shape(half.init, random.key(0), x, t, y)
    assert {a.dtype for a in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    error = float(jnp.abs(out - batch).max() / jnp.abs(batch).max())
    assert 1e-5 < error < 0.05  # it does compute in bfloat16 (8 bits), and not worse


def test_float64_and_strict_promotion(tiny):
    _, params, x, t, y, batch = tiny
    net = tiny[0]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        wide = lambda a: jnp.asarray(np.asarray(a, np.float64))
        out = applied(net)(jax.tree.map(wide, params), wide(x), wide(t), y)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, batch, atol=2e-5)
    with jax.numpy_dtype_promotion("strict"):
        assert jax.eval_shape(net.apply, params, x, t, y).dtype == jnp.float32


def test_dropout_only_in_training(tiny):
    _, params, x, t, y, batch = tiny
    net = tiny[0].clone(dropout=0.5)
    np.testing.assert_allclose(applied(net)(params, x, t, y), batch, atol=1e-5)
    train = jax.jit(lambda key: net.apply(params, x, t, y, train=True, rngs={"dropout": key}), compiler_options=FAST)
    first, second = train(random.key(0)), train(random.key(1))
    assert float(jnp.abs(first - second).max()) > 1e-3
    np.testing.assert_array_equal(first, train(random.key(0)))


@pytest.mark.parametrize("field, value, message", [
    ("groups", 3, r"groups=3 does not divide a layer of 8 channels: use groups=2"),
    ("qkv_order", "old", 'qkv_order=\'old\': use "legacy"'),
    ("attention", (4,), r"attention=4 is no downsampling factor of this network: use some of \[1, 2\]"),
    ("null_label", True, "null_label=True needs classes"),
    ("heads", 5, "heads=5 does not divide 16 channels"),
    ("head_channels", 7, "head_channels=7 does not divide an attention of 16 channels"),
])  # fmt: skip
def test_bad_fields(field, value, message):
    with pytest.raises(ValueError, match=message):
        net = UNet(**(TINY | {field: value}))
        jax.eval_shape(net.init, random.key(0), jnp.zeros((8, 8, 1)), jnp.zeros(()))


def test_bad_sizes():
    net = UNet(**TINY)
    for shape, message in (((6, 8, 1), r"sides \(6, 8\) of x must be multiples of 4"), ((8, 8), r"\(\.\.\., H, W, C\)")):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(net.init, random.key(0), jnp.zeros(shape), jnp.zeros(()))


# --- signals and volumes --------------------------------------------------------------------------------------------


def thicker(params):
    """Parameters of the network with one more axis, whose kernels see only the middle of it."""

    def leaf(path, a):
        if path[-1].key != "kernel" or a.ndim == 2:
            return a
        wide = np.zeros((a.shape[0], *a.shape), np.float32)
        wide[a.shape[0] // 2] = a
        return wide

    return jax.tree_util.tree_map_with_path(leaf, params)


@pytest.mark.parametrize(("kind", "spatial"), [(UNet, 2), (Encoder, 1)])
def test_a_network_of_one_more_axis_on_what_is_constant_along_it(kind, spatial):
    """Then every slice goes through the network of one axis less: outputs and gradients by the image are equal."""
    how = dict(out_channels=2, width=4, multipliers=(1, 2), blocks=1, groups=2, attention=(2,), scale_shift=True)
    how |= {"pool": "adaptive"} if kind is Encoder else {}
    thin, thick = kind(**how, spatial=spatial), kind(**how, spatial=spatial + 1)
    x, t = random.normal(random.key(1), (2, *(4, 8)[:spatial], 3)), jnp.array([3.0, 50.0])
    params = any_params(thin, x, t)
    more = thicker(params)
    shapes = lambda tree: jax.tree.map(lambda a: a.shape, tree)
    assert shapes(more) == shapes(jax.eval_shape(thick.init, random.key(0), jnp.repeat(x[:, None], 4, axis=1), t))

    depth = 4
    deep = lambda x: jnp.repeat(x[:, None], depth, axis=1)
    slices = lambda y: y if kind is Encoder else y.mean(1)  # of the thick network's result
    size = lambda y: (y**2).sum()

    def result_and_gradient(apply, of):
        def size_and_result(x):
            y = apply(x)
            return size(of(y)), y

        (_, y), gradient = once(jax.value_and_grad(size_and_result, has_aux=True), x)
        return y, gradient

    wanted, wanted_gradient = result_and_gradient(lambda x: thin.apply(params, x, t), lambda y: y)
    got, gradient = result_and_gradient(lambda x: thick.apply(more, deep(x), t), slices)
    np.testing.assert_allclose(got, wanted if kind is Encoder else deep(wanted), atol=2e-5)
    np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-4 * float(jnp.abs(wanted_gradient).max()))


def test_the_rest_of_volumes():
    """Patches, a residual block that resamples, attention pooling, the sizes that are refused."""
    net = UNet(**(TINY | {"spatial": 3, "resblock_updown": True}))
    x, t = random.normal(random.key(1), (2, 4, 8, 4, 1)), jnp.array(3.0)
    params = any_params(net, x, t)
    out = applied(net)(params, x, t)
    assert out.shape == x.shape
    np.testing.assert_allclose(applied(net)(params, x[1], t), out[1], atol=1e-5)
    with pytest.raises(ValueError, match=r"sides \(4, 6, 4\) of x must be multiples of 4"):
        jax.eval_shape(net.apply, params, x[:, :, :6], t)
    with pytest.raises(ValueError, match=r"x must be \(\.\.\., D, H, W, C\)"):
        jax.eval_shape(net.apply, params, x[0, 0], t)
    encoder = Encoder(out_channels=5, width=4, multipliers=(1,), blocks=1, groups=2, spatial=3)
    shapes = jax.eval_shape(encoder.init, random.key(0), x, t)["params"]
    assert shapes["pool"]["position"].shape == (4 * 8 * 4 + 1, 4)
    with pytest.raises(ValueError, match="spatial=4: 1, 2 or 3"):
        UNet(**TINY, spatial=4)


def test_arrays_sharded_over_explicit_axes():
    """`jax.make_mesh` makes such axes: a user's own jit and vmap, without `parallel.shard`."""
    net = UNet(**TINY)
    x, t = random.normal(random.key(1), (4, 8, 8, 1)), jnp.array(3.0)
    params = any_params(net, x, t)

    def both(x):
        out, pull = jax.vjp(lambda x: net.apply(params, x, t), x)
        return out, pull(2 * out)[0]

    both = jax.vmap(both)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for got, wanted in zip(once(both, jax.device_put(x, over)), once(both, x)):
        assert got.sharding.is_equivalent_to(over, 4)
        np.testing.assert_allclose(got, wanted, atol=2e-5)


# --- relatives ------------------------------------------------------------------------------------------------------


def test_super_resolution_sees_the_small_image_enlarged():
    net = SuperRes(out_channels=1, width=4, multipliers=(1,), blocks=1, groups=2)
    params = any_params(net, jnp.zeros((8, 8, 1)), jnp.zeros(()), jnp.zeros((2, 2, 1)))
    apply = jax.jit(net.apply, compiler_options=FAST)
    x = random.normal(random.key(1), (2, 8, 8, 1))
    constant = apply(params, x, jnp.array(3.0), jnp.full((2, 2, 2, 1), 0.7))
    np.testing.assert_allclose(constant, apply(params, x, jnp.array(3.0), jnp.full((2, 4, 4, 1), 0.7)), atol=1e-5)
    assert float(jnp.abs(constant - apply(params, x, jnp.array(3.0), jnp.zeros((2, 2, 2, 1)))).max()) > 1e-3


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_encoder_of_one_image(pool):
    net = Encoder(out_channels=5, width=4, multipliers=(1, 2), blocks=1, groups=2, pool=pool)
    params = any_params(net, jnp.zeros((4, 4, 3)), jnp.zeros(()))
    x, t = random.normal(random.key(1), (2, 4, 4, 3)), jnp.array([1.0, 50.0])
    batch = applied(net)(params, x, t)
    assert batch.shape == (2, 5)
    np.testing.assert_allclose(applied(net)(params, x[1], t[1]), batch[1], atol=1e-5)
    if pool == "attention":
        with pytest.raises(ValueError, match="this encoder pools 4 pixels at its end, x has 16 there"):
            jax.eval_shape(net.apply, params, jnp.zeros((8, 8, 3)), t[0])
    with pytest.raises(ValueError, match="pool='mean': use one of adaptive"):
        net.clone(pool="mean")


def test_ddpm_wants_a_word_per_level():
    with pytest.raises(ValueError, match="attention_up has 1 entries, 2 levels need 2"):
        DDPMUNet(out_channels=3, multipliers=(1, 2), attention_up=(True,))
