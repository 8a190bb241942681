"""What operators are given: wrong shapes, dtypes and values are refused in one line, a batch as one array is each of its
images, and a function is linear only where it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj

O, M = dj.operators, dj.methods
QUICK = {"xla_backend_optimization_level": 0}  # these programs take longer to compile than to run
rng = np.random.default_rng(0)
SOFT = (0.3 + 0.7 * rng.random((4, 8, 1))).astype(np.float32)
CROOKED = rng.random((3, 4)).astype(np.float32)
FAMILIES = {
    "mask": O.Mask(SOFT),
    "blur": O.Blur(CROOKED, factor=2),
    "reflected blur": O.Blur(CROOKED, border="reflect", factor=2),
    "downsample": O.Downsample(np.int64(2)),
    "resize": O.Resize(2),
    "grey": O.Grey(),
    "hadamard": O.Hadamard(SOFT),
    "fourier": O.Fourier([1.0, 0.5, 0.2]),  # of the channels
    "separable": O.separable(rng.standard_normal((2, 4)), rng.standard_normal((3, 8))),
    "slices": O.SliceAverage(2, axis=1),
    "composition": O.Grey() @ O.Blur(CROOKED),
    "stack": O.stack(O.Grey(), O.Downsample(2)),
    "phase": O.PhaseRetrieval(),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_as_one_array_is_each_of_its_images(name):
    A, shape = FAMILIES[name], (2, 4, 2, 3) if name == "slices" else (4, 8, 3)
    xs, zs = rng.standard_normal((2, 2, *shape)).astype(np.float32)

    def everything(x, z):
        y = A(x)
        out = [y, A.residual(z, y)]
        out += [getattr(A, what)(y) for what in ("T", "pinv") if A.has(what)]
        out += [A.prox(z, 0.3, y)] if A.has("prox") else []
        return out + ([A.svd.Vt(x), A.svd.singular(A.svd.Vt(x)), A.svd.V(A.svd.Vt(x))] if A.has("svd") else [])

    def both(xs, zs):
        return everything(xs, zs), jax.vmap(everything)(xs, zs)

    at_once, each = jax.device_get(jax.jit(both, compiler_options=QUICK)(xs, zs))
    for got, expected in zip(jax.tree.leaves(at_once), jax.tree.leaves(each), strict=True):
        np.testing.assert_allclose(np.broadcast_to(got, expected.shape), expected, atol=1e-5 * max(1, np.abs(expected).max()))


PLANE, IMAGE, COLOUR, BATCH = (np.zeros(s, np.float32) for s in ((4, 4), (4, 4, 1), (4, 4, 3), (2, 4, 4, 1)))

ONES = np.ones((4, 4, 1))
TAKE_IMAGES = [O.Blur(CROOKED), O.Blur(CROOKED, border="zero"), O.Downsample(2), O.Resize(2), O.Grey(), O.PhaseRetrieval()]
TAKE_IMAGES += [O.Hadamard(ONES), O.Fourier(ONES), O.separable(np.eye(4), np.eye(4))]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: O.Mask(np.ones((4, 4)))(IMAGE), r"mask of shape \(4, 4\).*mask\[..., None\]"),
        (lambda: O.Mask(np.ones((4, 4, 3)))(IMAGE), r"does not fit an image of shape \(4, 4, 1\): give one of shape"),
        (lambda: O.Mask(np.ones((4, 4, 3))).T(IMAGE), "does not fit"),
        (lambda: O.Mask(np.ones((4, 4, 3))).prox(IMAGE, 0.1, IMAGE), "does not fit"),
        (lambda: O.Mask(np.ones((4, 4, 1)))(PLANE), r"give the image its channel axis, x\[..., None\]"),
        (lambda: O.Mask(np.ones((2, 4, 4, 1)))(IMAGE), "does not fit"),
        (lambda: O.Mask(np.ones((4, 4, 1))).residual(IMAGE, PLANE), r"y has shape \(4, 4\), but Mask of that image gives"),
        (lambda: O.Mask(np.ones((4, 4, 1))).residual(COLOUR, IMAGE), r"y has shape \(4, 4, 1\)"),
        (lambda: O.Mask(np.ones((4, 4, 1))).prox(IMAGE, 0.1, COLOUR), r"y has shape \(4, 4, 3\)"),
        (lambda: O.Mask(np.ones((4, 4, 1)))(IMAGE.astype(np.uint8)), "takes floats, not uint8"),
        (lambda: O.Blur(CROOKED)(COLOUR.astype(np.int32)), "takes floats, not int32"),
        (lambda: O.Fourier(np.ones((4, 4)))(IMAGE), r"mask\[..., None\]"),
        (lambda: O.Fourier(np.ones((4, 4, 3))).T(IMAGE + 0j), "does not fit"),
        (lambda: O.Hadamard(np.ones((4, 4)))(IMAGE), r"mask\[..., None\]"),
        (lambda: O.Hadamard(np.ones((4, 4, 3))).Ut(IMAGE), "does not fit"),
        (lambda: O.Blur(np.ones((3, 3, 3)))(IMAGE), "kernel has 3 channels, the image 1: give"),
        (lambda: O.Blur(np.ones((3, 3, 3))).T(IMAGE), "kernel has 3 channels"),
        (lambda: O.Blur(np.ones((3, 3, 3)), border="zero").T(IMAGE), "kernel has 3 channels"),
        (lambda: O.Blur(np.ones((3, 3, 3))).pinv(IMAGE), "kernel has 3 channels"),
        *((lambda A=A: A(PLANE), r"takes \(H, W, C\), not \(4, 4\): give it the channel axis") for A in TAKE_IMAGES),
        *((lambda A=A: A.T(PLANE), r"takes \(H, W, C\), not \(4, 4\)") for A in TAKE_IMAGES if A.has("T")),
        (lambda: O.resize(PLANE, 0.5), r"resize takes \(H, W, C\)"),
        (lambda: O.Grey()(IMAGE), "1 channels, Grey 3 weights"),
        (lambda: O.Grey().T(COLOUR), "has one channel"),
        (lambda: O.Grey(np.ones((2, 3)))(COLOUR), "one weight per channel"),
        (lambda: O.SliceAverage(2)(COLOUR), r"takes \(D, H, W, C\), not \(4, 4, 3\)"),
        (lambda: O.SliceAverage(2, axis=3), "axis 3 is out of range"),
        (lambda: O.matrix(np.ones((2, 16)), (4, 4, 1))(BATCH), "give one image, batches by jax.vmap"),
        (lambda: O.matrix(np.ones((2, 16)), (4, 4, 1)).T(np.zeros(3)), r"y has shape \(3,\), the matrix gives \(2,\)"),
        (lambda: O.separable(np.eye(4), np.ones((2, 4))).T(IMAGE), "y has shape"),
        (lambda: O.from_function(lambda x: x[::2], (4, 4, 1))(BATCH), "give one image, batches by jax.vmap"),
        (lambda: O.from_function(lambda x: x @ jnp.ones((3, 3)), (4, 4, 1)), "f does not accept an image of shape"),
        (lambda: O.Mask(np.nan), "mask nan is out of range: give 0"),
        (lambda: O.Mask(jnp.full((4, 4, 1), jnp.nan)), "mask nan"),
        (lambda: O.Mask(np.float32(255)), "mask / 255"),
        (lambda: O.Mask([[[1.5]]]), "mask 1.5"),
        (lambda: O.Blur(np.full((3, 3), np.nan)), "kernel's entry nan"),
        (lambda: O.Blur(CROOKED, np.float32(-0.1)), "cutoff -0.1"),
        (lambda: O.Blur(CROOKED, factor=2.0), "factor 2.0"),
        (lambda: O.Downsample(True), "factor True"),
        (lambda: O.PhaseRetrieval(np.nan), "oversample nan"),
        (lambda: O.gaussian_kernel(5, np.nan), "std nan"),
        (lambda: O.gaussian_kernel(True, 1.0), "size True"),
        (lambda: O.motion_kernel(5, np.float32(1.5)), "intensity 1.5"),
        (lambda: O.resize(IMAGE, np.nan), "scale nan"),
        (lambda: O.cg_prox(O.Downsample(2), 0.5), "iterations 0.5"),
        (lambda: O.noise.gaussian(jax.random.key(0), IMAGE, np.ones((4, 4))), r"noise_std has shape \(4, 4\), y"),
        (lambda: O.noise.gaussian(jax.random.key(0), IMAGE, np.float32(-1)), "std -1"),
        (lambda: O.noise.poisson(jax.random.key(0), IMAGE, np.nan), "rate nan"),
        (lambda: dj.Measurement(IMAGE, O.Mask(1.0), np.float32(-0.1)), "noise_std -0.1"),
        (lambda: dj.Measurement(IMAGE, O.Mask(1.0), [0.1, np.nan]), "noise_std nan"),
    ],
)  # fmt: skip
def test_refusals_say_what_is_taken(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_shapes_are_known_while_tracing():
    with pytest.raises(ValueError, match="does not fit an image"):
        jax.jit(lambda mask, x: O.Mask(mask)(x))(np.ones((4, 4)), IMAGE)
    with pytest.raises(ValueError, match="kernel has 3 channels"):
        jax.vmap(lambda x: O.Blur(np.ones((3, 3, 3)))(x))(BATCH)


def test_what_is_not_known_passes():
    """Tracers and what JAX puts in the place of leaves are no numbers."""
    jax.eval_shape(lambda m: O.Mask(m).mask, 3.0)
    axes = dj.Measurement(0, O.Mask(None), None)
    y, mask = np.stack([SOFT, SOFT]), O.Mask(SOFT)
    out = jax.vmap(lambda m: m.A(m.y), in_axes=(axes,))(dj.Measurement(y, mask, 0.1))
    assert out.shape == (2, 4, 8, 1)
    assert jax.eval_shape(lambda A: A, O.Mask(jax.ShapeDtypeStruct((2, 2, 1), float))).mask.shape == (2, 2, 1)


def test_numbers_and_lists_are_arrays():
    x = rng.uniform(-1, 1, (4, 4, 1)).astype(np.float32)
    for mask in (0.5, [[[0.5]]], np.float32(0.5), [0.5]):
        np.testing.assert_array_equal(O.Mask(mask)(x), 0.5 * x)
    np.testing.assert_allclose(O.Blur([[0, 0, 0], [0, 2, 0], [0, 0, 0]])(x), 2 * x, atol=1e-6)
    np.testing.assert_array_equal(O.Mask(x > 0)(x), np.where(x > 0, x, 0))
    assert dj.Measurement(x, O.Mask(1.0), [0.1]).noise_std.shape == (1,)


class Wrong(O.Operator):
    """Its adjoint has the measurement's shape."""

    def __call__(self, x):
        return x[::2]

    def T(self, y):
        return y


BOTH = O.stack(O.Downsample(2), O.Mask(np.ones((4, 4, 1))))


@pytest.mark.parametrize(
    "A, y, noise_std, message",
    [
        (O.Mask(np.ones((4, 4))), IMAGE, 0.0, r"Mask does not accept an image of shape \(4, 4, 1\).*mask\[..., None\]"),
        (O.Mask(np.ones((4, 4, 3))), COLOUR, 0.0, "does not accept an image"),
        (O.Downsample(2), IMAGE, 0.0, r"y has shape \(4, 4, 1\), but Downsample of an image \(4, 4, 1\) gives \(2, 2, 1\)"),
        (O.Fourier(np.ones((4, 4, 1))), IMAGE, 0.0, r"gives \(4, 4, 1\) complex"),
        (O.Mask(1.0), IMAGE + 0j, 0.0, r"y has shape \(4, 4, 1\) complex"),
        (BOTH, list(BOTH(IMAGE)), 0.0, r"y has shape list\(.*gives tuple\("),
        (Wrong(), IMAGE[::2], 0.0, r"Wrong.T gives \(2, 4, 1\) for an image \(4, 4, 1\): correct the operator"),
        (lambda x: x @ jnp.ones((3, 3)), IMAGE, 0.0, "function does not accept an image"),
        (O.Mask(1.0), IMAGE, np.ones((4, 4)), r"noise_std has shape \(4, 4\), y \(4, 4, 1\): give one number"),
        (O.Mask(1.0), IMAGE, np.ones(3), r"noise_std has shape \(3,\)"),
        (BOTH, BOTH(IMAGE), (0.1, np.ones(3)), r"noise_std has shape \(3,\), y \(4, 4, 1\)"),
        (BOTH, BOTH(IMAGE), (0.1,), "noise_std has 1 parts, y 2"),
    ],
)
def test_a_measurement_belongs_to_its_image(A, y, noise_std, message):
    for _ in range(2):  # what is right is remembered, what is wrong is not
        with pytest.raises(ValueError, match=message) as error:
            O.check_image(A, y, (4, 4, 1), jnp.float32, noise_std)
        assert "\n" not in str(error.value)


def test_right_measurements_pass():
    for A in (O.Mask(np.ones((4, 4, 1))), O.Downsample(2), BOTH, O.Fourier([1.0]), O.PhaseRetrieval(), O.cg_prox(BOTH)):
        y = A(IMAGE)
        for level in (0.1, np.ones(1)):
            O.check_image(A, y, (4, 4, 1), jnp.float32, level)
        jax.eval_shape(lambda A, y: O.check_image(A, y, (4, 4, 1)) or y, A, y)
    O.check_image(BOTH, BOTH(IMAGE), (4, 4, 1), jnp.float32, (0.1, np.ones((4, 4, 1))))


# --- functions ----------------------------------------------------------------------------------------------------------

SHAPE = (4, 4, 1)
W = rng.standard_normal((4, 4, 1)).astype(np.float32)


FUNCTIONS = {  # whether it is linear
    "a slice": (lambda x: x[::2], True),
    "a jitted product": (jax.jit(lambda x: W * x), True),
    "in bfloat16": (lambda x: (x.astype(jnp.bfloat16) * 3).astype(x.dtype), True),
    "a transform": (lambda x: jnp.fft.rfft(x, axis=0), True),
    "a scan": (lambda x: jax.lax.scan(lambda c, row: (c + row, c), 0 * x[0], x)[1], True),
    "zero": (lambda x: 0 * x, True),
    "an offset": (lambda x: 2 * x + 0.1, False),
    "an offset under jit": (jax.jit(lambda x: W * x + W), False),
    "a constant": (lambda x: jnp.ones(3), False),
    "tanh": (jnp.tanh, False),
    "tanh with an offset": (lambda x: jnp.tanh(x) + 0.1, False),
    "silu": (jax.nn.silu, False),
    "square": (lambda x: x * x, False),
    "modulus": (jnp.abs, False),
    "a choice": (lambda x: jnp.where(x > 0, x, 2 * x), False),
    "whole numbers": (lambda x: x.astype(int).astype(x.dtype), False),
    "the largest's place": (lambda x: jnp.argmax(x, 0).astype(float), False),
    "median": (lambda x: jnp.median(x, 0), False),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_linear_functions_have_an_adjoint_and_no_others(name):
    f, linear = FUNCTIONS[name]
    A = O.from_function(f, SHAPE)
    assert A.has("T") == linear
    x = jnp.asarray(rng.standard_normal(SHAPE), jnp.float32)
    y = jnp.asarray(rng.standard_normal(A(x).shape), A(x).dtype)
    if linear:
        pair = lambda a, b: np.vdot(np.asarray(a), np.asarray(b)).real
        rounding = 2**-7 if name == "in bfloat16" else 1e-5
        np.testing.assert_allclose(pair(A(x), y), pair(x, A.T(y)), atol=rounding * np.linalg.norm(A(x)) * np.linalg.norm(y))
        return
    with pytest.raises(ValueError, match="f is not linear: use a method that needs only A"):
        A.T(y)
    assert not (O.Downsample(2) @ O.from_function(jnp.tanh, SHAPE)).has("T")


def test_traced_arguments_of_a_function():
    """Their numbers are unknown: the function is judged by others."""

    def has(f, *args):
        found = []
        jax.eval_shape(lambda *args: found.append(O.from_function(f, SHAPE, *args).has("T")) or args, *args)
        return found[0]

    assert has(lambda x, w: w * x, W) and has(lambda x, i: x[i], np.arange(2))
    assert not has(lambda x, w, b: w * x + b, W, W)


@pytest.mark.parametrize("decoder", [lambda x: 1.5 * x + 0.1, lambda x: jnp.tanh(x) + 0.1], ids=["affine", "curved"])
def test_a_decoder_before_an_operator(decoder):
    """A latent is fitted through it; methods that need more of A say what to use."""
    schedule = dj.schedules.discrete(dj.schedules.linear_betas(100))
    prior = dj.denoisers.from_x0(lambda x, i: 0.5 * x, None, schedule)
    A = O.Downsample(2) @ O.from_function(decoder, SHAPE)
    x = jnp.asarray(0.3 * rng.standard_normal(SHAPE), jnp.float32)
    m = dj.Measurement(A(x), A)
    for make in (M.DDNM, M.DDRM, M.MMPS, M.PiGDM, M.DiffPIR, M.DPIR, M.RePaint, M.REDDiff):
        with pytest.raises(ValueError, match="use "):
            make(prior, m)
    table = dj.timetables.log_snr(schedule, 4)
    for method, kernel in (
        (M.DPS(prior, m), dj.kernels.DDPM),
        (M.CoPaint(prior, m), dj.kernels.DDIM),
        (M.REDDiff(prior, m, guess=jnp.zeros(SHAPE)), dj.kernels.Marginal),
    ):
        walk = lambda key, method=method, kernel=kernel: dj.sample(key, method, table, SHAPE, kernel=kernel(schedule)).x
        assert jax.eval_shape(walk, jax.random.key(0)).shape == SHAPE
    fit = M.DiffPIR(prior, m, data="gradient", iterations=2000)
    found, _ = jax.jit(lambda: fit.solve(jnp.zeros(SHAPE), jnp.float32(1e-6)), compiler_options=QUICK)()
    np.testing.assert_allclose(A(found), m.y, atol=1e-4)
