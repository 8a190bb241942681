"""The autoencoder as a word, its networks, their converter."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import autoencoder, nets, replace
from diffjax.convert import first_stage, strict
from diffjax.nets.autoencoder import codebook_loss, gaussian, quantise

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


# --- linear: everything has a closed form -----------------------------------------------------------------------------


def linear(f=2, channels=3, c=2, **how):
    D = RNG.standard_normal((f * f * channels, c))
    return D, autoencoder.linear(D, RNG.standard_normal(f * f * channels), f=f, **how)


def test_linear_decode_is_the_matrix_on_each_block():
    D, ae = linear()
    z = normal(2, 3, 2)
    x = np.asarray(ae.decode(z))
    assert x.shape == (4, 6, 3) and ae.latent_shape(x.shape) == z.shape
    for i in range(2):
        for j in range(3):
            block = D @ np.asarray(z[i, j]) + np.asarray(ae.params["b"])
            np.testing.assert_allclose(x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].ravel(), block, rtol=1e-5, atol=1e-5)


def test_it_says_whether_decode_is_linear():
    D, affine = linear()
    plain = autoencoder.linear(D, f=2)
    assert plain.linear and not affine.linear and not replace(plain, shift=0.5).linear
    z, w = normal(2, 2, 2), normal(2, 2, 2)
    np.testing.assert_allclose(plain.decode(2 * z - w), 2 * plain.decode(z) - plain.decode(w), atol=1e-4)


def test_encode_inverts_decode_and_is_the_least_squares_latent():
    D, ae = linear(shift=(0.3, -1.0), scale=(2.0, 0.25))
    z = normal(2, 4, 4, 2)
    np.testing.assert_allclose(ae.encode(ae.decode(z)), z, atol=1e-4)
    x = normal(2, 2, 3)  # not in the range of D
    raw, *_ = np.linalg.lstsq(D, np.asarray(x).ravel() - np.asarray(ae.params["b"]), rcond=None)
    expected = (raw - np.asarray(ae.shift)) * np.asarray(ae.scale)
    np.testing.assert_allclose(ae.encode(x).ravel(), expected, rtol=1e-4, atol=1e-4)
    residual = x - ae.decode(ae.encode(x))
    np.testing.assert_allclose(D.T @ np.asarray(residual).ravel(), 0, atol=1e-4)


def test_a_gaussian_latent_is_a_gaussian_picture():
    """x = D z + b with z ~ N(0, 1): the covariance of decoded draws, within five standard errors of what D D^T says."""
    D, ae = linear(shift=0.5, scale=2.0)
    n = 4000
    z = jax.random.normal(jax.random.key(0), (n, 1, 1, 2))
    x = np.asarray(ae.decode(z)).reshape(n, -1)
    covariance, mean = D @ D.T / 4, D @ np.full(2, 0.5) + np.asarray(ae.params["b"])
    variance = np.diag(covariance)
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(variance / n))
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / n)
    assert np.all(np.abs(np.cov(x.T) - covariance) < 5 * error)


def test_scale_and_shift_act_on_moments_and_draws():
    """encode(key) has the mean and the variance that moments promise, in the units of z."""
    _, ae = linear(logvar=np.log([0.04, 0.25]), shift=(1.0, 0.0), scale=(3.0, -0.5))
    x = normal(2, 2, 3)
    mean, logvar = ae.moments(x)
    np.testing.assert_allclose(jnp.exp(logvar).ravel(), [0.04 * 9, 0.25 * 0.25], rtol=1e-5)
    np.testing.assert_array_equal(ae.encode(x), mean)
    n = 4000
    z = jax.vmap(lambda key: ae.encode(x, key))(jax.random.split(jax.random.key(1), n)).reshape(n, 2)
    variance = np.exp(np.asarray(logvar).ravel())
    assert np.all(np.abs(z.mean(0) - mean.ravel()) < 5 * np.sqrt(variance / n))
    assert np.all(np.abs(z.var(0) / variance - 1) < 5 * np.sqrt(2 / n))
    plain = replace(ae, shift=0.0, scale=1.0)
    np.testing.assert_allclose((plain.moments(x)[0] - jnp.asarray(ae.shift)) * jnp.asarray(ae.scale), mean, rtol=1e-5)


def test_without_a_variance_a_key_changes_nothing():
    _, ae = linear()
    x = normal(4, 4, 3)
    assert ae.moments(x)[1] is None
    np.testing.assert_array_equal(ae.encode(x, jax.random.key(0)), ae.encode(x))


def test_gradient_through_decode_against_finite_differences():
    with jax.enable_x64(True):
        _, ae = linear(scale=2.0)
        z = jnp.asarray(RNG.standard_normal((2, 2, 2)))
        ae = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), ae)
        of = lambda z: jnp.sum(jnp.sin(ae.decode(z)))
        ahead = jnp.asarray(RNG.standard_normal(z.shape))
        slope = (of(z + 1e-5 * ahead) - of(z - 1e-5 * ahead)) / 2e-5
        np.testing.assert_allclose(jnp.vdot(jax.grad(of)(z), ahead), slope, rtol=1e-7)


@pytest.mark.parametrize("how, words", [
    (dict(scale=0.0), "scale 0.0 cannot be undone"), (dict(scale=(1.0, np.nan)), "cannot be undone"),
    (dict(shift=(1.0, 2.0, 3.0)), "one for each of 2 channels"),
])  # fmt: skip
def test_units_that_cannot_be(how, words):
    with pytest.raises(ValueError, match=words) as error:
        linear(**how)
    assert "\n" not in str(error.value)


def test_sides_that_are_no_multiple():
    _, ae = linear()
    for call in (ae.encode, ae.moments, lambda x: ae.latent_shape(x.shape)):
        with pytest.raises(
            ValueError, match=r"sides 5 x 4 of x are no multiples of f=2: crop to 4 x 4 or pad to 6 x 4"
        ) as error:
            call(normal(5, 4, 3))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="z has 3 channels, this autoencoder's latents have 2"):
        ae.decode(normal(2, 2, 3))
    with pytest.raises(ValueError, match="uint8"):
        ae.encode(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"give \(4 \* C, channels\)"):
        autoencoder.linear(np.zeros((6, 2)), f=2)


def test_kl_and_nll_by_quadrature():
    grid = np.linspace(-12, 12, 200_001)
    log = lambda m, v: -0.5 * (np.log(2 * np.pi * v) + (grid - m) ** 2 / v)
    p = np.exp(log(0.7, 0.3))
    step = grid[1] - grid[0]
    for m, v in ((0.0, 1.0), (-0.4, 2.0)):
        got = autoencoder.kl(jnp.array([0.7]), jnp.log(jnp.array([0.3])), m, np.log(v))
        np.testing.assert_allclose(got, np.sum(p * (log(0.7, 0.3) - log(m, v))) * step, rtol=1e-5)
    entropy = -np.sum(p * log(0.7, 0.3)) * step
    z = 0.7 + np.sqrt(0.3) * np.array([-1.0, 1.0])  # two points with the second moment of the distribution
    got = autoencoder.nll(jnp.asarray(z), jnp.full(2, 0.7), jnp.log(jnp.full(2, 0.3)))
    np.testing.assert_allclose(got, 2 * entropy, rtol=1e-5)


# --- networks -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    """An autoencoder of each kind on grey pictures, f = 2, with weights that are not zero anywhere."""
    common = {
        "channels": 1,
        "latent_channels": 2,
        "width": 4,
        "multipliers": (1, 2),
        "blocks": 1,
        "groups": 2,
        "attention": (2,),
    }
    made = {}
    for kind, more in ((nets.AutoencoderKL, {}), (nets.AutoencoderVQ, {"codes": 8})):
        net = kind(**common, **more)
        shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((4, 4, 1)))
        params = jax.tree.map(lambda a: 0.4 * normal(*a.shape), shapes)
        made[kind.__name__] = net, params
    return made


def test_an_image_alone_is_what_it_is_in_a_batch(small):
    net, params = small["AutoencoderVQ"]
    ae = autoencoder.from_network(net, params, shift=0.1, scale=(0.5, 2.0))
    x = normal(3, 8, 4, 1)

    def both(ae, x):
        z = ae.encode(x)
        return z, ae.decode(z)

    together, mapped = jax.jit(both)(ae, x), jax.jit(jax.vmap(both, (None, 0)))(ae, x)
    alone = jax.jit(both)(ae, x[1])
    assert together[0].shape == ae.latent_shape(x.shape) and together[1].shape == x.shape
    for all_, each, one in zip(together, mapped, alone):
        np.testing.assert_allclose(all_, each, atol=2e-5)
        np.testing.assert_allclose(all_[1], one, atol=2e-5)


def test_one_trace_for_other_weights_and_units(small):
    net, params = small["AutoencoderKL"]
    traces = []

    @jax.jit
    def run(ae, z):
        traces.append(1)
        return ae.decode(z)

    z = normal(2, 2, 2)
    first = run(autoencoder.from_network(net, params, scale=jnp.float32(1)), z)
    second = run(autoencoder.from_network(net.copy(), jax.tree.map(lambda a: a * 1.5, params), scale=jnp.float32(2)), z)
    assert len(traces) == 1 and not np.allclose(first, second)


def test_vq_decode_quantises_unless_told_otherwise(small):
    net, params = small["AutoencoderVQ"]
    ae = autoencoder.from_network(net, params, shift=0.2, scale=2.0)
    book = params["params"]["codebook"]
    z = normal(2, 2, 2)
    nearest = np.argmin(((np.asarray(z)[..., None, :] / 2 + 0.2 - np.asarray(book)) ** 2).sum(-1), axis=-1)
    moved = (book[nearest] - 0.2) * 2
    np.testing.assert_allclose(ae.quantise(z), moved, atol=1e-5)
    np.testing.assert_allclose(ae.decode(z), ae.decode(moved, quantise=False), atol=1e-4)
    assert np.abs(ae.decode(z) - ae.decode(z, quantise=False)).max() > 1e-2
    np.testing.assert_allclose(jax.grad(lambda z: ae.quantise(z).sum())(z), 1.0, rtol=1e-6)  # straight through


def test_ties_pick_the_first_code():
    book = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    h = jnp.array([[0.0, 2.0], [0.0, 0.0], [-3.0, 0.0]])  # equal codes; equal distances; one nearest
    np.testing.assert_array_equal(quantise(h, book).indices, [1, 0, 3])


def test_distances_in_parts_are_those_at_once(monkeypatch):
    book, h = normal(50, 3), normal(4, 5, 3)
    whole = quantise(h, book)
    monkeypatch.setattr("diffjax.nets.autoencoder.DISTANCES", 350)
    for a, b in zip(whole, quantise(h, book)):
        np.testing.assert_array_equal(a, b)


def test_beta_is_on_the_codebook_where_legacy():
    h, codes = normal(4, 3), normal(4, 3)
    square = float(jnp.mean((h - codes) ** 2))
    for legacy, by_h, by_codes in ((True, 1.0, 0.25), (False, 0.25, 1.0)):
        value, grads = jax.value_and_grad(lambda h, c: codebook_loss(h, c, 0.25, legacy), (0, 1))(h, codes)
        np.testing.assert_allclose(value, 1.25 * square, rtol=1e-6)
        np.testing.assert_allclose(grads[0], by_h * 2 * (h - codes) / h.size, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(grads[1], by_codes * 2 * (codes - h) / h.size, rtol=1e-5, atol=1e-7)


def test_log_variance_is_clamped_with_the_gradient_cut():
    _, logvar = gaussian(jnp.array([0.0, 0.0, 0.0, -50.0, 3.0, 50.0]))
    np.testing.assert_array_equal(logvar, [-30.0, 3.0, 20.0])
    slope = jax.grad(lambda h: gaussian(h)[1].sum())(jnp.array([0.0, 0.0, 0.0, -50.0, 20.0, 50.0]))
    np.testing.assert_array_equal(slope, [0, 0, 0, 0, 1, 0])


# --- converter ----------------------------------------------------------------------------------------------------------

PUBLISHED = {  # name: (kind, latent channels, codes, multipliers, factors with attention, middle, millions of parameters)
    "kl-f4": ("KL", 3, None, (1, 2, 4), (), True, 55.3),
    "kl-f8": ("KL", 4, None, (1, 2, 4, 4), (), True, 83.7),
    "kl-f16": ("KL", 16, None, (1, 1, 2, 2, 4), (16,), True, 69.6),
    "kl-f32": ("KL", 64, None, (1, 1, 2, 2, 4, 4), (16, 32), True, 103.9),
    "vq-f4": ("VQ", 3, 8192, (1, 2, 4), (), True, 55.3),
    "vq-f4-noattn": ("VQ", 3, 8192, (1, 2, 4), (), False, 53.2),
    "vq-f8": ("VQ", 4, 16384, (1, 2, 2, 4), (8,), True, 67.7),
    "vq-f8-n256": ("VQ", 4, 256, (1, 2, 2, 4), (8,), True, 67.7),
    "vq-f16": ("VQ", 8, 16384, (1, 1, 2, 2, 4), (16,), True, 69.6),
}


def count(kind, e, codes, multipliers, factors, middle, width=128, blocks=2, channels=3):
    """Numbers in the published network, added up by hand: an independent way to the total."""
    conv = lambda i, o, size=3: size * size * i * o + o
    res = lambda i, o: 2 * i + conv(i, o) + 2 * o + conv(o, o) + (conv(i, o, 1) if i != o else 0)
    attention = lambda c: 2 * c + 4 * conv(c, c, 1)
    doubled = 2 if kind == "KL" else 1
    widths = [width * m for m in multipliers]
    total = conv(channels, width) + conv(widths[-1], doubled * e) + 2 * widths[-1]  # encoder: first and last
    total += conv(e, widths[-1]) + conv(width * multipliers[0], channels) + 2 * widths[0]  # decoder
    total += 2 * (2 * res(widths[-1], widths[-1]) + middle * attention(widths[-1]))
    for way in ("down", "up"):
        at = width if way == "down" else widths[-1]
        for level in range(len(widths)) if way == "down" else reversed(range(len(widths))):
            for _ in range(blocks + (way == "up")):
                total += res(at, widths[level]) + (2**level in factors) * attention(widths[level])
                at = widths[level]
            resampled = level < len(widths) - 1 if way == "down" else level > 0
            total += resampled * conv(at, at)
    return total + conv(doubled * e, doubled * e, 1) + conv(e, e, 1) + (codes or 0) * e


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_first_stages(name):
    """Built from its configuration and, without one, from the names and shapes of its file; by `eval_shape` alone."""
    kind, e, codes, multipliers, factors, middle, millions = PUBLISHED[name]
    config = {"embed_dim": e, "ddconfig": {
        "double_z": kind == "KL", "z_channels": e, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
        "ch_mult": list(multipliers), "num_res_blocks": 2, "attn_resolutions": [256 // f for f in factors], "dropout": 0.0,
        **({} if middle else {"attn_type": "none"})}} | ({"n_embed": codes} if codes else {})  # fmt: skip
    of, fields = first_stage.from_config(config)
    net = of(**fields)
    assert type(net).__name__ == f"Autoencoder{kind}" and net.f == 2 ** (len(multipliers) - 1)
    assert tuple(net.attention) == tuple(net.attention_up) == factors
    shapes = strict.shapes(net, jax.ShapeDtypeStruct((net.f, net.f, 3), jnp.float32))
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    assert total == count(kind, e, codes, multipliers, factors, middle) and round(total / 1e6, 1) == millions
    wanted = strict.expected(strict.used(first_stage.table(net), shapes), shapes)
    state = {name: np.broadcast_to(np.float16(0), shape) for name, shape in wanted.items()}
    whole = {f"first_stage_model.{name}": a for name, a in state.items()} | {"model.diffusion_model.out.0.weight": np.zeros(1)}
    read, fields = first_stage.config_from_state(first_stage.own(whole))
    assert read(**fields) == net
    with pytest.warns(UserWarning, match="dropped 1 arrays loss"):
        kept = first_stage.own(state | {"loss.logvar": np.zeros(())})
    assert kept.keys() == state.keys()


def in_file(small, kind, style="official"):
    net, params = small[kind]
    return first_stage.to_state(net, params, style)


@pytest.mark.parametrize("style", ["official", "diffusers"])
@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderVQ"])
def test_files_of_both_houses(small, kind, style):
    """Read without a configuration; older names and 1x1 convolutions as attention in diffusers' layout as well."""
    net, params = small[kind]
    state = in_file(small, kind, style)
    if style == "diffusers":
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for after, before in old.items():
            state = {name.replace(f".{after}.", f".{before}."): a for name, a in state.items()}
        state = {n: a[..., None, None] if ".attentions." in n and a.ndim == 2 else a for n, a in state.items()}
    again, back = first_stage.convert(state, groups=2)
    assert again == net.copy(attention_up=again.attention_up, z_channels=again.z_channels)
    assert (again.attention_up, again.z_channels) == ((2,), 2)
    jax.tree.map(np.testing.assert_array_equal, flax.core.unfreeze(back), params)


@pytest.mark.parametrize("broken", ["encoder.conv_in.weight", "decoder.up.1.block.0.conv1.bias", "quant_conv.weight",
                                    "encoder.mid.attn_1.q.weight", "quantize.embedding.weight"])  # fmt: skip
def test_a_missing_or_renamed_array_is_one_line(small, broken):
    state = in_file(small, "AutoencoderVQ")
    array = state.pop(broken)
    if not broken.startswith("quant"):
        state[f"{broken}_"] = array
    with pytest.raises(ValueError) as error:
        first_stage.convert(state, groups=2)
    assert "\n" not in str(error.value) and broken in str(error.value), str(error.value)


def test_a_file_of_something_else_is_one_line():
    for state in ({}, {"conv0.weight": np.zeros((1, 1, 3, 3))}):
        with pytest.raises(ValueError, match="no checkpoint of an autoencoder"):
            first_stage.convert(state)
    with pytest.raises(ValueError, match="attn_type='linear' is not supported"):
        first_stage.from_config({"embed_dim": 3, "ddconfig": {"attn_type": "linear"}})
    with pytest.raises(ValueError, match="DownBlock2D, which is not supported"):
        first_stage.from_config({"down_block_types": ["DownBlock2D"]})


def test_where_the_scale_comes_from(small):
    state = in_file(small, "AutoencoderKL")
    whole = {f"first_stage_model.{name}": a for name, a in state.items()} | {"scale_factor": np.float32(0.2)}
    of = lambda *given, **how: first_stage.autoencoder(*given, groups=2, **how)
    assert of(whole).scale == pytest.approx(0.2)
    assert of(whole, scale=3.0).scale == 3.0
    with pytest.warns(UserWarning, match="nothing says the scale factor"):
        assert of(state).scale == 1.0
    assert first_stage.autoencoder(in_file(small, "AutoencoderVQ"), groups=2).scale == 1.0
    units = first_stage.latent_units
    assert units({}, {"scaling_factor": 1.5, "shift_factor": 0.06}) == (0.06, 1.5)
    assert units({}, {"scaling_factor": 0.18215, "shift_factor": None}) == (0.0, 0.18215)
    shift, scale = units({}, {"scaling_factor": 0.5, "latents_mean": [1.0, 2.0], "latents_std": [0.1, 4.0]})
    np.testing.assert_allclose(shift, [1, 2]), np.testing.assert_allclose(scale, [5, 0.125])
