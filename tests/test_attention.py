"""nets.attention: every form equals the formula in float64, under every transformation, for every number of tokens."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from test_convolution import least

from diffjax.nets import attention as module
from diffjax.nets.attention import attention

FORMS = {
    "as it stands": module._as_it_stands,
    "heads first": module._heads_first,
    "blocks": functools.partial(module._in_blocks, 4),
    "chosen": attention,
}
FAST = {"xla_backend_optimization_level": 0}


def formula(q, k, v):
    """One query and one head after another, in float64."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.empty(q.shape)
    for *lead, query, head in np.ndindex(q.shape[:-1]):
        at = tuple(lead)
        product = k[at][:, head] @ q[at][query, head] / np.sqrt(q.shape[-1])
        weight = np.exp(product - product.max())
        out[(*at, query, head)] = weight / weight.sum() @ v[at][:, head]
    return out


def arrays(queries, keys, heads=2, size=3, lead=(), dtype=jnp.float32):
    rng = np.random.default_rng(queries + 10 * keys)
    shapes = ((*lead, n, heads, size) for n in (queries, keys, keys))
    return [jnp.asarray(2 * rng.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("queries, keys, heads, lead", [
    (8, 8, 2, ()), (9, 9, 1, (2,)), (1, 7, 2, (2, 1)), (7, 1, 3, ()), (5, 12, 2, (3,)),
])  # fmt: skip
def test_equals_the_formula(form, queries, keys, heads, lead):
    """8 divides into blocks of 4; 9, 7 and 5 do not; 1 is less than a block."""
    q, k, v = arrays(queries, keys, heads, lead=lead)
    np.testing.assert_allclose(FORMS[form](q, k, v), formula(q, k, v), atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_masked_keys_do_not_count(form):
    """Where no key counts, all do: the mean."""
    q, k, v = arrays(5, 7, lead=(3,))
    mask = np.array([[1, 0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 0, 0, 0], [0] * 7], bool)
    got = FORMS[form](q, k, v, jnp.asarray(mask))
    for i, kept in enumerate(mask[:2]):
        np.testing.assert_allclose(got[i], formula(q[i], k[i][kept], v[i][kept]), atol=2e-6)
    np.testing.assert_allclose(got[2], jnp.broadcast_to(v[2].mean(0), got[2].shape), atol=2e-6)


def test_masked_keys_of_many_tokens_do_not_count():
    q, k, v = arrays(263, 264, heads=1, size=2)
    mask = np.random.default_rng(0).integers(0, 2, 264).astype(bool)
    got = jax.jit(attention, compiler_options=FAST)(q, k, v, mask)
    np.testing.assert_allclose(got, formula(q, k[mask], v[mask]), atol=5e-6)


def size_of(q, k, v, form):
    return (form(q, k, v) ** 3).sum()


TRANSFORMATIONS = {
    "grad": lambda f, *a: jax.grad(lambda *a: (f(*a) ** 3).sum(), (0, 1, 2))(*a),
    "jvp": lambda f, *a: jax.jvp(f, a, tuple(b[::-1] for b in a)),
    "jvp of grad": lambda f, *a: jax.jvp(
        lambda *a: jax.grad(lambda *a: (f(*a) ** 3).sum(), (0, 1, 2))(*a), a, tuple(b[::-1] for b in a)
    ),
    "vmap": lambda f, q, k, v: jax.vmap(jax.grad(lambda *a: (f(*a) ** 3).sum()), (0, None, -1))(
        jnp.stack([q, 2 * q]), k, jnp.stack([v, -v], -1)
    ),
}


@pytest.mark.parametrize("form", ["heads first", "blocks", "chosen"])
@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
def test_transformations_equal_those_of_the_formula_as_it_stands(form, transformation, monkeypatch):
    monkeypatch.setattr(module, "BLOCKS", 1)  # "chosen" goes through the choice by platform
    monkeypatch.setattr(module, "QUERIES_CPU", 2)
    with jax.enable_x64(True):
        qkv = arrays(5, 6, dtype=jnp.float64)
        once = functools.partial(jax.jit, compiler_options=FAST)
        how = lambda f: jax.tree.leaves(once(functools.partial(TRANSFORMATIONS[transformation], f))(*qkv))
        for a, b in zip(how(FORMS[form]), how(module._as_it_stands), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("tokens", [64, 200, 300])
def test_the_forms_chosen_for_real_sizes_agree_in_float32(tokens):
    """As it stands, heads first, blocks of 100 queries: 5e-7 of values up to 1."""
    q, k, v = (a / 2 for a in arrays(tokens, tokens, 2, 8))
    v = v / jnp.abs(v).max()
    whole = jax.jit(module._as_it_stands)(q, k, v)
    np.testing.assert_allclose(jax.jit(attention)(q, k, v), whole, atol=5e-7)


def loops(lowered):
    return str(lowered).count("stablehlo.while")


def test_one_choice_by_size_and_platform():
    """Compiling for another platform takes that platform's form, though only a CPU is here."""
    program = lambda tokens, *platforms: jax.export.export(jax.jit(attention), platforms=platforms)(
        *(jax.ShapeDtypeStruct((tokens, 1, 8), jnp.float32),) * 3
    ).mlir_module()  # fmt: skip
    assert [loops(program(tokens, "cpu")) for tokens in (64, 200, 300)] == [0, 0, 1]
    for platform in ("cuda", "tpu"):
        assert "tensor<3x100x8xf32>" not in program(300, platform) and "tensor<1x300x8xf32>" in program(300, platform)
        assert "tensor<2x1x1024x8xf32>" in program(2048, platform)
    assert "tensor<16x1x128x8xf32>" in program(2048, "cpu")


def test_gradient_keeps_no_matrix_of_all_tokens():
    tokens, heads = 512, 2
    qkv = (jax.ShapeDtypeStruct((tokens, heads, 8), jnp.float32),) * 3
    program = lambda form: jax.jit(jax.grad(functools.partial(size_of, form=form))).lower(*qkv).compile()
    temp = lambda form: program(form).memory_analysis().temp_size_in_bytes
    matrix = 4 * heads * tokens**2
    assert temp(attention) < matrix < temp(module._as_it_stands)


def test_many_tokens_are_faster_and_few_as_fast_as_the_formula_as_it_stands():
    """A contract of ratios, with the gradient, of an image in a batch."""
    for tokens, most in ((1024, 0.8), (64, 1.5)):
        q, k, v = (a / 4 for a in arrays(tokens, tokens, 1, 32, lead=(1,)))
        forms = {"ours": attention, "as it stands": module._as_it_stands}
        both = {name: jax.jit(jax.grad(functools.partial(size_of, form=form), (0, 1, 2))) for name, form in forms.items()}
        seconds = least(both, q, k, v)
        assert seconds["ours"] < most * seconds["as it stands"], tokens


@pytest.mark.parametrize("dtype, tolerance", [(jnp.bfloat16, 2e-2), (jnp.float16, 2e-3)])
@pytest.mark.parametrize("tokens", [16, 200, 300])
def test_half_precision_sums_in_float32(dtype, tolerance, tokens):
    """Products q k of 400 and sums of 300 weights: a softmax in half precision is far off, a float16 sum of v overflows."""
    q, k, v = arrays(tokens, tokens, 1, 16)
    q, k, v = (a.astype(dtype) for a in (q * 2, k, v * 2000 if dtype == jnp.float16 else v))
    out = jax.jit(attention)(q, k, v)
    assert out.dtype == dtype
    wanted = formula(q, k, v)
    np.testing.assert_allclose(np.asarray(out, np.float64), wanted, atol=tolerance * np.abs(wanted).max())


def test_sharded_over_devices_equals_one_device():
    q, k, v = arrays(300, 300, 1, 4, lead=(4,))
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    over = functools.partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))
    both = lambda q, k, v: (attention(q, k, v), jax.grad(functools.partial(size_of, form=attention))(q, k, v))
    once = functools.partial(jax.jit, compiler_options=FAST)
    for a, b in zip(once(over(both))(q, k, v), once(both)(q, k, v)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


class TestCudnn:
    """What a GPU's fused attention is given, with JAX's own attention in its place: here is no GPU."""

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch):
        self.calls = []

        def dot_product_attention(q, k, v, implementation):
            self.calls.append((q.shape, implementation))
            return real(q, k, v, implementation="xla")

        real = jax.nn.dot_product_attention
        monkeypatch.setattr(jax.nn, "dot_product_attention", dot_product_attention)

    def test_equals_the_formula_and_has_every_derivative(self):
        q, k, v = arrays(3, 2, 1, 8, lead=(2, 3))
        np.testing.assert_allclose(module._cudnn(q, k, v), formula(q, k, v), atol=2e-6)
        assert self.calls == [((6, 3, 1, 8), "cudnn")]
        for name, how in TRANSFORMATIONS.items():
            forms = (functools.partial(how, form) for form in (module._cudnn, module._as_it_stands))
            once = functools.partial(jax.jit, compiler_options=FAST)
            for a, b in zip(*(jax.tree.leaves(once(form)(q, k, v)) for form in forms), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max(), err_msg=name)

    def test_its_conditions(self, monkeypatch):
        device = type("Device", (), {"compute_capability": "9.0"})
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(jax, "devices", lambda: [device])
        fused = lambda dtype, size: module.fused(jnp.zeros((4, 1, size), dtype))
        assert fused(jnp.bfloat16, 64) and fused(jnp.float16, 128)
        assert not fused(jnp.float32, 64) and not fused(jnp.bfloat16, 20) and not fused(jnp.bfloat16, 256)
        for other in ("7.5", "gfx90a", None):
            device.compute_capability = other
            assert not fused(jnp.bfloat16, 64)
