"""Operators: what is particular to each family (what all promise: contracts/test_operators.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj

O = dj.operators
rng = np.random.default_rng(0)
CROOKED = rng.random((3, 4))  # even and odd, no symmetry
COLOURED = rng.random((3, 3, 2))
COLUMNS = np.array([1, 1, 0, 0.5, 0, 0])[None, :, None]


apply = jax.jit(lambda A, x: A(x))


def close(got, expected, tolerance):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("border, mode", [("wrap", "wrap"), ("reflect", "mirror"), ("zero", "constant")])
def test_blur_is_scipys_convolution(border, mode):
    from scipy.ndimage import convolve

    x = np.random.default_rng(0).standard_normal((9, 8, 2))
    for k in (rng.random((5, 3)), rng.random((4, 6))):
        with jax.enable_x64(True):
            expected = np.stack([convolve(x[..., c], k, mode=mode) for c in range(2)], -1)
            close(apply(O.Blur(k, border=border), x), expected, 1e-12)


def test_a_bright_pixel_becomes_the_kernel():
    k = O.motion_kernel(5, 0.3, seed=1)
    x = np.zeros((9, 9, 1))
    x[4, 4] = 1
    with jax.enable_x64(True):
        for border in ("wrap", "reflect", "zero"):
            close(apply(O.Blur(k, border=border), x)[2:7, 2:7, 0], k, 1e-12)


def test_composition_of_blur_and_block_mean_is_closed_form():
    x = jnp.asarray(rng.standard_normal((12, 24, 2)))
    for k in (CROOKED, COLOURED):
        blur = O.Blur(k, factor=2)
        both = O.Downsample(3) @ blur
        assert isinstance(both, O.Blur) and both.factor == 6
        close(apply(both, x), apply(O.Downsample(3), apply(blur, x)), 1e-6)
    assert not (O.Downsample(2) @ O.Blur(k, border="zero")).has("prox")


def test_cutoff_hides_small_singular_values():
    k = O.gaussian_kernel(7, 1.2)
    sharp, blunt = O.Blur(k), O.Blur(k, cutoff=0.03)
    x = jnp.asarray(rng.standard_normal((8, 8, 1)), jnp.float32)

    @jax.jit
    def both(sharp, blunt, x):
        c, y = blunt.Vt(x), sharp(x)
        kept = blunt.singular(c)
        return sharp.singular(c), kept, y, blunt(x), blunt.pinv(y), blunt.V(jnp.where(kept > 0, c, 0))

    s, kept, y, same, back, shown = both(sharp, blunt, x)
    np.testing.assert_array_equal(kept, np.where(s > 0.03 * s.max(), s, 0))
    assert 0 < (kept == 0).sum() < kept.size
    np.testing.assert_array_equal(y, same)  # what is measured does not change
    close(back, shown, 1e-4)


def test_cg_reports_what_is_left():
    A = O.Blur(CROOKED, border="zero")
    z, y = jnp.asarray(rng.standard_normal((2, 4, 4, 1)), jnp.float32)
    left = [float(jax.jit(O.cg_prox(A, n).prox_info)(z, 0.3, y)[1]["prox_residual"]) for n in (1, 5, 15)]
    assert 1 > left[0] > left[1] > left[2] and left[2] < 1e-3
    with pytest.raises(ValueError, match=r"needs A\.T"):
        O.cg_prox(O.PhaseRetrieval())


def test_motion_kernels():
    kernels = [O.motion_kernel(31, 0.5, seed) for seed in range(8)]
    np.testing.assert_array_equal(kernels[3], O.motion_kernel(31, 0.5, 3))
    i = np.arange(31) - 15
    for k in kernels:
        assert k.shape == (31, 31) and (k >= 0).all() and k.sum() == pytest.approx(1)
        assert abs((k.sum(1) * i).sum()) < 4 and abs((k.sum(0) * i).sum()) < 4  # the path's centre of mass is the middle
    assert len({k.tobytes() for k in kernels}) == 8
    spread = lambda k: (k.sum(1) * i**2).sum() + (k.sum(0) * i**2).sum()
    assert np.mean([spread(k) for k in kernels]) > 4
    assert np.isfinite(O.motion_kernel(7, 0.5, 0)).all()


class Still:
    """A numpy generator of a motion that does not move."""

    def uniform(self, low=0.0, high=1.0):
        return 1e-6 * high

    def beta(self, a, b):
        return 1e-6

    def triangular(self, low, mode, high):
        return 0.0


@pytest.mark.parametrize("size", [5, 8, 13, 20])
def test_motion_has_its_middle_at_the_kernels_centre(size):
    """A camera that stands still moves no pixel; others move the image nowhere on average."""
    at = np.arange(size) - size // 2
    middle = lambda k: np.array([(k.sum(1) * at).sum(), (k.sum(0) * at).sum()])
    np.testing.assert_allclose(middle(O.motion_kernel(size, 0.5, Still())), 0, atol=1e-6)
    if size < 10:  # standard errors of at most 0.03 pixels
        assert np.abs(np.mean([middle(O.motion_kernel(size, 0.5, seed)) for seed in range(60)], 0)).max() < 0.25


def test_noise_has_the_standard_deviation_asked_for():
    """5 standard errors; Poisson: mean v and variance v / (255 rate) in [0, 1]."""
    n, key = 20_000, jax.random.key(0)
    y = jnp.zeros(n)
    real = jax.device_get(jax.jit(O.noise.gaussian)(key, {"a": y, "b": y.astype(jnp.complex64)}, 0.3))
    for part in (real["a"], real["b"].real, real["b"].imag):
        assert abs(np.std(part) / 0.3 - 1) < 5 / np.sqrt(2 * n)
    assert abs(np.corrcoef(real["b"].real, real["b"].imag)[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(real["a"], real["b"].real)[0, 1]) < 5 / np.sqrt(n)
    poisson = jax.jit(O.noise.poisson)
    for level, rate in ((0.0, 0.1), (-0.5, 1.0)):
        v, got = (level + 1) / 2, (np.asarray(poisson(key, np.full(n, level, np.float32), rate)) + 1) / 2
        assert abs(got.mean() - v) < 5 * np.sqrt(v / (255 * rate) / n)
        assert abs(got.var() / (v / (255 * rate)) - 1) < 5 * np.sqrt(2.2 / n)
    A = O.Fourier(COLUMNS)
    measured = O.measure(key, A, jnp.zeros((4, 6, 1)), 0.2)
    assert measured.noise_std == 0.2 and measured.A is A and jnp.iscomplexobj(measured.y)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: O.Blur(CROOKED, border="wrapped"), "did you mean 'wrap'"),
        (lambda: O.Blur(np.ones(3)), "kernel has shape"),
        (lambda: O.Blur(CROOKED, factor=0), "factor 0"),
        (lambda: O.Blur(CROOKED, factor=2)(jnp.zeros((5, 4, 1))), "does not divide the image's 5x4: crop it to 4x4"),
        (lambda: O.Resize(3)(jnp.zeros((6, 8, 1))), "crop it to 6x6"),
        (lambda: O.Resize(2, "bicubic"), "did you mean 'cubic'"),
        (lambda: O.Hadamard(np.ones((6, 6, 1)))(jnp.zeros((6, 6, 1))), "power of two"),
        (lambda: O.Fourier(255 * np.ones((4, 4, 1))), "mask / 255"),
        (lambda: O.Grey().svd.Vt(jnp.zeros((2, 2, 4))), "one weight per channel"),
        (lambda: O.matrix(np.ones((2, 5)), (2, 2, 1)), "give"),
        (lambda: O.SliceAverage(2)(jnp.zeros((3, 2, 2, 1))), "keep 2"),
        (lambda: O.motion_kernel(9, 1.5), "intensity 1.5"),
        (lambda: O.gaussian_kernel(9, 0), "std 0"),
        (lambda: O.random_mask((4, 4), 1.2), "fraction 1.2"),
        (lambda: O.PhaseRetrieval(-1.0), "oversample -1"),
        (lambda: O.cg_prox(O.Downsample(2), 0), "iterations 0"),
    ],
)
def test_errors_name_the_value_and_the_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()
