"""Networks of latent diffusion: conditions of every kind, one image against a batch, masks, heads, errors."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from diffjax import denoisers, schedules
from diffjax.nets import (
    ClassEmbedder,
    Conditioned,
    ConditionUNet,
    LatentUNet,
    SpatialRescaler,
    TextTransformer,
    TokenEncoder,
    conditioners,
    init,
)

FAST = {"xla_backend_optimization_level": 0}
SMALL = dict(out_channels=2, width=8, multipliers=(1,), blocks=1, attention=(1,), groups=4, heads=2)
UNET = LatentUNet(**SMALL, concat=1, depth=1, context=6, classes=3, null_label=True)
READER = TokenEncoder(6, vocabulary=9, length=4, classes=3, layers=1, heads=2)
NET = Conditioned(UNET, READER)
X = np.random.default_rng(0).normal(size=(2, 4, 4, 2)).astype(np.float32)
T = np.array([3.0, 700.5], np.float32)


def conditions():
    rng = np.random.default_rng(1)
    return {
        "tokens": np.array([[3, 1, 0, 0], [8, 2, 5, 0]]),
        "boxes": rng.uniform(size=(2, 2, 4)).astype(np.float32),
        "classes": np.array([[1, 0], [2, 1]]),
        "concat": rng.normal(size=(2, 4, 4, 1)).astype(np.float32),
        "label": np.array([0, 2]),
    }


def any_params(net, x):
    """Parameters without the zeros of initialisation, so that every part matters."""
    rng = np.random.default_rng(7)
    tree = jax.eval_shape(net.init, random.key(0), x, jnp.zeros(()), net.blank(x))

    def leaf(path, a):
        fan_in = np.prod(a.shape[:-1]) if path[-1].key == "kernel" else 1
        return np.asarray(rng.normal(size=a.shape) / np.sqrt(fan_in) + (path[-1].key == "scale"), np.float32)

    return jax.tree_util.tree_map_with_path(leaf, tree)


@pytest.fixture(scope="module")
def network():
    """(parameters, the network as one compiled function of parameters, x, t, condition)."""
    chex.clear_trace_counter()
    apply = chex.assert_max_traces(lambda params, x, t, cond: NET.apply(params, x, t, cond), n=1)
    return any_params(NET, X[0]), jax.jit(apply, compiler_options=FAST)


def test_every_condition_matters_and_none_costs_a_trace(network):
    params, apply = network
    usual = apply(params, X, T, conditions())
    for name, image in (("tokens", 0), ("boxes", 1), ("classes", 1), ("concat", 0), ("label", 0)):
        cond = conditions()
        cond[name] = cond[name].copy()
        cond[name][image, ...] = cond[name][image][::-1] if cond[name].ndim > 1 else 1
        changed = np.abs(apply(params, X, T, cond) - usual).max((1, 2, 3))
        assert changed[image] > 1e-3 > 1e-5 > changed[1 - image], f"{name}: {changed}"


def test_what_is_no_word_and_no_box_is_not_seen(network):
    """A box of class 0 may lie anywhere; boxes come in any order."""
    params, apply = network
    usual, cond = apply(params, X, T, conditions()), conditions()
    cond["boxes"][0, 1] = 0.123
    cond["boxes"][1], cond["classes"][1] = cond["boxes"][1, ::-1].copy(), cond["classes"][1, ::-1].copy()
    np.testing.assert_allclose(apply(params, X, T, cond), usual, atol=3e-6)


def test_one_image_alone_is_the_image_in_a_batch(network):
    params, apply = network
    alone = jax.jit(NET.apply, compiler_options=FAST)(params, X[1], T[1], {k: a[1] for k, a in conditions().items()})
    np.testing.assert_allclose(alone, apply(params, X, T, conditions())[1], atol=3e-6)


def test_a_denoiser_with_guidance_takes_it(network):
    params, _ = network
    cond = {name: a[0] for name, a in conditions().items()}
    null = {"tokens": 0, "boxes": 0.0, "classes": 0, "concat": 0.0, "label": 3}
    schedule = schedules.discrete(schedules.linear_betas(1000))
    denoise = denoisers.from_eps(NET.apply, params, schedule, cond=cond)
    guided = denoisers.classifier_free(denoise, cond, null, 3.0)
    assert jax.eval_shape(lambda x: guided(x, 20.0).x0, X[0]).shape == X[0].shape


def test_initialisation():
    """A new network gives zero, whatever it is told."""
    net = Conditioned(LatentUNet(**SMALL, depth=1, context=6), ClassEmbedder(6, 4))
    shapes = jax.eval_shape(lambda key: init(net, key, (4, 4, 2)), random.key(0))
    assert set(shapes["params"]) == {"net", "reader"}
    assert shapes["params"]["net"]["down_0_0_transformer"]["block_0"]["attention_2"]["k"]["kernel"].shape == (6, 8)


def test_heads_and_depths_of_the_levels():
    net = ConditionUNet(**SMALL | dict(multipliers=(1, 2), heads=(2, 8), depth=(1, 2), context=6, attention_down=(True, True)))
    parts = {part.name: part for entry in [*net.down_path(), net.middle_path(), *net.up_path()] for part in entry}
    assert (parts["down_0_0_transformer"].heads, parts["down_0_0_transformer"].depth) == (2, 1)
    assert (parts["down_1_0_transformer"].heads, parts["middle_transformer"].depth) == (8, 2)
    assert parts["up_1_0_transformer"].heads == 8 and "up_0_0_transformer" not in parts
    with pytest.raises(ValueError, match=r"heads=\(2, 8\): give one number"):
        LatentUNet(**SMALL | dict(heads=(2, 8)))


def test_logits_of_ids():
    """A group norm and a product, nothing between them (unlike the usual last layers)."""

    class Head(LatentUNet):
        @nn.compact
        def __call__(self, h):
            return self.head(h)

    net = Head(**SMALL, ids=5)
    h = np.random.default_rng(2).normal(size=(2, 2, 8))
    rng = np.random.default_rng(3)
    gain, bias, kernel, shift = (rng.normal(size=n) for n in (8, 8, (8, 5), 5))
    params = {"norm_ids": {"scale": gain, "bias": bias}, "ids_out": {"kernel": kernel, "bias": shift}}
    grouped = h.reshape(4, 4, 2)
    normed = (grouped - grouped.mean((0, 2), keepdims=True)) / np.sqrt(grouped.var((0, 2), keepdims=True) + 1e-5)
    expected = (normed.reshape(h.shape) * gain + bias) @ kernel + shift
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    np.testing.assert_allclose(net.apply({"params": params}, jnp.asarray(h, jnp.float32)), expected, atol=3e-5)


@pytest.mark.parametrize(
    "options, cond, message",
    [
        (dict(concat=1), None, "lacks 'concat': this network takes concat, an image (..., H, W, 1)"),
        (dict(concat=1), {"concat": jnp.zeros((2, 4, 4, 3))}, "concat has shape (2, 4, 4, 3), x (2, 4, 4, 2)"),
        (dict(concat=1), {"concat": jnp.zeros((2, 8, 8, 1))}, "concat has shape (2, 8, 8, 1)"),
        (dict(concat=1), {"concat": jnp.zeros((3, 4, 4, 1))}, "concat has shape (3, 4, 4, 1)"),
        (dict(concat=1), {"concat": jnp.zeros((4, 4, 1)), "label": 1}, "has 'label', which is not taken"),
        (dict(concat=1), {"context": jnp.zeros((3, 6))}, "has 'context', which is not taken"),
        (dict(concat=1, classes=4), jnp.zeros((4, 4, 1)), "must be a dict, got ArrayImpl"),
        (dict(concat=1), jnp.zeros((8, 4, 1)), "concat has shape (8, 4, 1)"),
        (dict(depth=1, context=6), {"context": jnp.zeros((3, 5))}, "takes context, tokens (..., L, 6)"),
        (dict(depth=1, context=6), {"context": jnp.zeros(6)}, "context has shape (6,)"),
        (dict(depth=1, context=6), {"context": jnp.zeros((3, 6)), "mask": jnp.ones(2, bool)}, "mask has shape (2,)"),
        (dict(depth=1, context=6), {"context": jnp.zeros((3, 6)), "mask": jnp.ones(3)}, "booleans"),
        (dict(depth=1, context=6), 3, "must be a dict, got int"),
        (dict(classes=4), None, "lacks 'label': this network takes a label in 0..3"),
        (dict(classes=4), jnp.zeros((4, 4, 1)), "integer class labels"),
        (dict(), {"label": 1}, "takes no condition"),
    ],
)
def test_a_condition_of_another_kind_is_refused_in_one_line(options, cond, message):
    with pytest.raises(ValueError) as error:
        jax.eval_shape(lambda: LatentUNet(**SMALL | options).init(random.key(0), X, T, cond))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_conditioners_refuse():
    words = TextTransformer(8, 1, vocabulary=9, length=4)
    unread = Conditioned(LatentUNet(**SMALL, depth=1, context=6), READER)
    for call, message in (
        (lambda: words.init(random.key(0), np.zeros(5, int)), "5 tokens are more than the 4"),
        (lambda: words.init(random.key(0), np.zeros(3)), "tokens must be integers in 0..8"),
        (lambda: READER.init(random.key(0), np.zeros(3, int)), "reads tokens, boxes, classes, got 1"),
        (
            lambda: READER.init(random.key(0), np.zeros(3, int), np.zeros((2, 4)), np.zeros(3, int)),
            "boxes have shape (2, 4), their classes (3,)",
        ),
        (lambda: TokenEncoder(8), "reads nothing"),
        (lambda: SpatialRescaler(method="lanczos"), "use one of nearest, bilinear, bicubic, area"),
        (lambda: SpatialRescaler(stages=3).apply({}, jnp.zeros((4, 4, 1))), "leave none"),
        (lambda: unread.init(random.key(0), X, T, {"tokens": np.zeros((2, 3), int)}), "the condition lacks boxes, classes"),
        (lambda: unread.init(random.key(0), X, T), "the condition lacks tokens, boxes, classes"),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("method", conditioners.METHODS)
@pytest.mark.parametrize("n, factor", [(16, 0.5), (15, 0.5), (12, 0.25), (9, 1.5)])
def test_rescaling_keeps_constants_and_ramps(method, n, factor):
    """Rows sum to 1. Away from the edges the linear ones, and the cubic one half way between pixels, keep a ramp a ramp."""
    M = conditioners.rescaling(n, factor, method)
    assert M.shape == (int(n * factor), n)
    np.testing.assert_allclose(M.sum(1), 1, atol=1e-12)
    if method == "bilinear" or (method == "bicubic" and factor < 1):
        inner = slice(2, -2) if len(M) > 4 else slice(1, -1)
        centres = (np.arange(len(M)) + 0.5) / factor - 0.5
        np.testing.assert_allclose((M @ np.arange(n))[inner], centres[inner], atol=1e-12)
