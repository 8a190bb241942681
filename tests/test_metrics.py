"""diffjax.metrics against scikit-image, closed forms and direct implementations in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.metrics import (
    _unit_channels,
    alexnet_features,
    frechet_distance,
    kernel_distance,
    lpips,
    nearest,
    precision_recall,
    psnr,
    psnr_hole,
    ssim,
)
from diffjax.zoo.lpips import lpips_weights


@pytest.fixture(scope="module")
def weights():
    return lpips_weights()


def pair(shape, seed=0, noise=0.3):
    """A smooth image in [-1, 1] and a noisy copy, float32."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]] / max(shape)
    clean = np.stack([np.sin(7 * x + k) * np.cos(5 * y - k) for k in range(shape[2])], axis=-1)
    noisy = np.clip(clean + noise * rng.standard_normal(shape), -1, 1)
    return clean.astype(np.float32), noisy.astype(np.float32)


def test_psnr_of_a_constant_difference():
    x = np.zeros((4, 5, 3), np.float32)
    assert float(psnr(x, x + 0.2)) == pytest.approx(20.0, abs=1e-5)  # 10 log10(4 / 0.04)
    assert float(psnr(x, x + 0.2, peak=1.0)) == pytest.approx(10 * np.log10(1 / 0.04), abs=1e-5)
    assert np.isinf(psnr(x, x))


def test_psnr_of_the_hole_counts_hidden_pixels_alone():
    mask = np.ones((4, 6), np.float32)
    mask[:, 4:] = 0
    x = np.zeros((4, 6, 2), np.float32)
    y = x + np.where(mask[..., None] == 1, 0.7, 0.02).astype(np.float32)
    expected = 10 * np.log10(4 / 0.02**2)
    assert float(psnr_hole(x, y, mask)) == pytest.approx(expected, abs=1e-4)
    assert float(psnr(x, y, where=1 - mask)) == pytest.approx(expected, abs=1e-4)
    assert float(psnr_hole(x, y, mask[..., None])) == pytest.approx(expected, abs=1e-4)
    assert float(psnr(x, y, where=mask)) == pytest.approx(10 * np.log10(4 / 0.7**2), abs=1e-4)


@pytest.mark.parametrize("shape", [(32, 32, 1), (11, 17, 3), (40, 24, 3)])
def test_ssim_equals_scikit_image(shape):
    reference = pytest.importorskip("skimage.metrics").structural_similarity
    x, y = pair(shape)
    expected = reference(
        x.astype(np.float64), y.astype(np.float64), data_range=2.0, channel_axis=-1,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    with jax.enable_x64(True):
        assert float(jax.jit(ssim)(x.astype(np.float64), y.astype(np.float64))) == pytest.approx(expected, abs=1e-12)
    assert float(jax.jit(ssim)(x, y)) == pytest.approx(expected, abs=1e-5)
    assert float(jax.jit(ssim)(x, x)) == pytest.approx(1.0, abs=1e-6)


def alexnet_in_numpy(image, weights):
    """What the five ReLUs give, from the layers' definition, float64, without JAX: image (H, W, 3)."""
    w = {k: np.asarray(v, np.float64) for k, v in weights.items()}
    windows = np.lib.stride_tricks.sliding_window_view
    a = (image.astype(np.float64) - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
    for n, (stride, pad) in enumerate([(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)]):
        if n in (1, 2):
            a = windows(a, (3, 3), axis=(0, 1))[::2, ::2].max((-2, -1))
        kernel = w[f"features.{n}.kernel"]
        a = np.pad(a, ((pad, pad), (pad, pad), (0, 0)))
        patches = windows(a, kernel.shape[:2], axis=(0, 1))[::stride, ::stride]
        a = np.maximum(np.tensordot(patches, kernel, ([2, 3, 4], [2, 0, 1])) + w[f"features.{n}.bias"], 0)
        yield a


def lpips_in_numpy(x, y, weights):
    """LPIPS from its definition: x, y (H, W, 3)."""
    unit = lambda a: a / (np.sqrt(np.sum(a**2, axis=-1, keepdims=True)) + 1e-10)
    layers = enumerate(zip(alexnet_in_numpy(x, weights), alexnet_in_numpy(y, weights), strict=True))
    heads = [np.asarray(weights[f"lin.{n}.weight"], np.float64) for n in range(5)]
    return sum(np.mean((unit(p) - unit(q)) ** 2 @ heads[n]) for n, (p, q) in layers)


def test_lpips_equals_its_definition(weights):
    x, y = pair((70, 66, 3))
    assert float(jax.jit(lpips)(x, y, weights)) == pytest.approx(lpips_in_numpy(x, y, weights), rel=1e-5)


def test_lpips_of_a_small_grey_image_is_that_of_its_enlargement(weights):
    x, y = pair((25, 32, 1))  # the shorter side needs three repetitions: 75 x 96
    enlarged = [np.repeat(np.kron(a[..., 0], np.ones((3, 3)))[..., None], 3, axis=-1) for a in (x, y)]
    assert float(jax.jit(lpips)(x, y, weights)) == pytest.approx(lpips_in_numpy(*enlarged, weights), rel=1e-5)


def test_alexnet_features_are_means_of_the_layers(weights):
    x, _ = pair((32, 32, 3))  # the enlargement to 64 x 64 is a part of it
    expected = np.concatenate([f.mean((0, 1)) for f in alexnet_in_numpy(x.repeat(2, 0).repeat(2, 1), weights)])
    found = jax.jit(alexnet_features)(x, weights)
    assert found.shape == (1152,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_lpips_is_a_dissimilarity_and_vmaps_with_finite_gradients(weights):
    x, y = pair((64, 64, 3), noise=0.1)
    _, z = pair((64, 64, 3), noise=0.6)
    black = np.full_like(x, -1.0)
    run = jax.jit(jax.vmap(jax.value_and_grad(lpips), in_axes=(0, 0, None)))
    d, gradient = run(np.stack([x, x, y, x, black]), np.stack([x, y, x, z, x]), weights)
    assert 0 <= float(d[0]) < 1e-12  # rows of a batch may round apart in their last bit: squared, 1e-14
    assert float(d[1]) == pytest.approx(float(d[2]), rel=1e-5)
    assert 0 < float(d[1]) < float(d[3])
    assert bool(jnp.all(jnp.isfinite(gradient)))
    assert float(jnp.min(jnp.max(jnp.abs(gradient[1:]), axis=(1, 2, 3)))) > 0
    # a position where no channel fires: ReLU would hide a NaN from the result, but not from jax.debug_nans
    assert bool(jnp.all(jnp.isfinite(jax.grad(lambda f: jnp.sum(_unit_channels(f)))(jnp.zeros((1, 2, 2, 3))))))


def test_lpips_weights_are_whole(weights):
    assert sum(v.size for v in weights.values()) == 2_470_848 and len(weights) == 15
    assert all(v.dtype == jnp.float32 for v in weights.values())


def test_frechet_distance_of_diagonal_gaussians():
    # samples whose mean and covariance are exact: columns of a Hadamard matrix are orthogonal and balanced
    h = np.array([[1.0]])
    for _ in range(4):
        h = np.block([[h, h], [h, -h]])
    base = h[:, 1:5] * np.sqrt(15 / 16)  # covariance (n - 1) exactly the identity, mean 0
    s, t, shift = np.array([1.0, 2.0, 0.5, 0.0]), np.array([3.0, 1.0, 0.5, 2.0]), np.array([1.0, 0, 0, -2.0])
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))
    # with a variance of 0, as of pixels that are always black, the root of its rounding error, 1e-8, is what is left
    for deviations, tolerance in ((s, 1e-6), (s + 1, 1e-9)):
        expected = np.sum(shift**2) + np.sum((deviations - t) ** 2)
        one, other = base * deviations, base * t + shift
        assert frechet_distance(one, other) == pytest.approx(expected, abs=tolerance)
        assert frechet_distance(one @ rotation, other @ rotation) == pytest.approx(expected, abs=tolerance)


def test_frechet_distance_when_covariances_do_not_commute():
    rng = np.random.default_rng(1)
    a, b = (
        rng.standard_normal((50, 2)) @ [[2.0, 1], [0, 1]],
        rng.standard_normal((60, 2)) @ [[1.0, -2], [0.3, 1]],
    )
    p, q = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # for 2 x 2 matrices tr sqrt(M) = sqrt(tr M + 2 sqrt(det M))
    root = np.sqrt(np.trace(p @ q) + 2 * np.sqrt(np.linalg.det(p) * np.linalg.det(q)))
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(p) + np.trace(q) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_equals_a_double_loop():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((7, 3)), 0.5 + 2 * rng.standard_normal((5, 3))

    def mean_kernel(u, v, same):
        values = []
        for i, p in enumerate(u):
            values += [(float(np.dot(p, q)) / 3 + 1) ** 3 for j, q in enumerate(v) if not (same and i == j)]
        return sum(values) / len(values)

    expected = mean_kernel(a, a, True) + mean_kernel(b, b, True) - 2 * mean_kernel(a, b, False)
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_is_unbiased():
    rng = np.random.default_rng(3)
    values = [kernel_distance(*rng.standard_normal((2, 20, 4))) for _ in range(400)]
    # mean 0 within 4 standard errors; with the diagonal kept (the biased form) the mean would be far above
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert np.min(values) < 0


def test_kernel_distance_of_two_distributions():
    """Its value, not only its zero: in one dimension k(u, v) = (u v + 1)^3 expands into moments."""
    rng = np.random.default_rng(4)
    moments = lambda mean: np.array([1, mean, 1 + mean**2, mean**3 + 3 * mean])  # of N(mean, 1), order 0 to 3
    binomial = np.array([1, 3, 3, 1])
    expected = float(np.sum(binomial * (moments(0.0) - moments(0.7)) ** 2))
    values = [kernel_distance(rng.standard_normal((30, 1)), rng.standard_normal((25, 1)) + 0.7) for _ in range(400)]
    assert abs(np.mean(values) - expected) < 4 * np.std(values) / np.sqrt(len(values))


def test_nearest_equals_a_double_loop():
    rng = np.random.default_rng(5)
    a, b = rng.uniform(0, 255, (1030, 3)).round(), rng.uniform(0, 255, (40, 3)).round()  # more than one block of rows
    a[1027] = b[13]
    each = np.array([[np.sqrt(np.mean((p - q) ** 2)) for q in b] for p in a])
    distance, which = nearest(a, b)
    np.testing.assert_allclose(distance, each.min(1), rtol=1e-12)
    np.testing.assert_array_equal(each[np.arange(len(a)), which], each.min(1))
    assert (distance[1027], which[1027]) == (0, 13)
    distance, which = nearest(b, b, same=True)
    others = [[np.sqrt(np.mean((p - q) ** 2)) if i != j else np.inf for j, q in enumerate(b)] for i, p in enumerate(b)]
    np.testing.assert_allclose(distance, np.min(others, 1), rtol=1e-12)
    assert not np.any(which == np.arange(len(b)))


def test_frechet_of_fewer_vectors_than_features():
    """As by the eigenvalues of the product of both covariances, which has no symmetric root."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, (9, 20)) @ rng.normal(0, 1, (20, 20)), rng.normal(0.5, 2, (14, 20))
    covariances = [np.cov(f, rowvar=False) for f in (a, b)]
    cross = np.sqrt(np.clip(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0, None)).sum()
    wanted = np.sum((a.mean(0) - b.mean(0)) ** 2) + sum(map(np.trace, covariances)) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-6) and frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_precision_and_recall_by_hand():
    """Four points a line each, k = 1: balls of the real ones cover [-1, 4], those of the others [-2.5, 2] and around 10."""
    column = lambda *values: np.array(values)[:, None]
    real, fake = column(0.0, 1.0, 2.0, 3.0), column(-1.0, 0.5, 10.0, 10.1)
    assert precision_recall(real, fake, k=1) == (0.5, 0.75)  # -1 lies on the border
    assert precision_recall(fake, real, k=1) == (0.75, 0.5)
    assert precision_recall(real, fake + 100) == (0.0, 0.0) and precision_recall(real, real) == (1.0, 1.0)
    rng = np.random.default_rng(1)
    apples, pears = rng.normal(0, 1, (200, 2)), rng.normal(50, 1, (200, 2))
    precision, recall = precision_recall(np.concatenate([apples, pears]), rng.normal(0, 0.5, (400, 2)))
    assert precision > 0.95 and 0.2 < recall < 0.5  # only apples, and none of their rim
    precision, recall = precision_recall(apples, np.concatenate([apples + 1e-3, pears]))
    assert precision == 0.5 and recall == 1.0


def test_precision_and_recall_in_blocks_and_far_from_the_origin():
    rng = np.random.default_rng(2)
    real, fake = rng.normal(0, 1, (1100, 3)), rng.normal(0.7, 1.2, (1050, 3))

    def direct(a, b, k):
        apart = lambda a, b: np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
        return np.mean((apart(a, b) <= np.sort(apart(b, b), 1)[:, k]).any(1))

    wanted = direct(fake, real, 3), direct(real, fake, 3)
    assert precision_recall(real, fake) == wanted and precision_recall(real + 1e4, fake + 1e4) == pytest.approx(
        wanted, abs=2e-3
    )


def test_wrong_shapes_are_named(weights):
    x = jnp.zeros((16, 16, 3))
    for call in (lambda: psnr(x, x[:8]), lambda: ssim(x, x[:8]), lambda: lpips(x, x[:8], weights)):
        with pytest.raises(ValueError, match=r"\(16, 16, 3\) and \(8, 16, 3\)"):
            call()
    with pytest.raises(ValueError, match="11x11"):
        ssim(x[:8], x[:8])
    with pytest.raises(ValueError, match="vmap"):
        lpips(x[None], x[None], weights)
    with pytest.raises(ValueError, match="frechet_distance"):
        frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match=r"kernel_distance.*at least 2"):
        kernel_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="nearest"):
        nearest(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match=r"precision_recall compares two sets of at least 4"):
        precision_recall(np.zeros((3, 2)), np.zeros((5, 2)))
    with pytest.raises(ValueError, match="k 0 is no number of neighbours"):
        precision_recall(np.zeros((5, 2)), np.zeros((5, 2)), k=0)
    with pytest.raises(ValueError, match="vmap"):
        alexnet_features(x[None], weights)
