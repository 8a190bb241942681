"""How close a restoration is to the truth, and one set of images to another.

`psnr`, `psnr_hole`, `ssim` and `lpips` compare two images (H, W, C) and are pure JAX: batches are `vmap`,
gradients exist. `frechet_distance`, `kernel_distance`, `precision_recall` and `nearest` compare two sets of vectors on the
host, in float64 numpy. Images are in [-1, 1] unless `peak` (largest value minus smallest) says otherwise.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

LPIPS_MIN_SIZE = 64  # AlexNet's third pooling grid is empty well below this; smaller images are enlarged ("lpips@64")


def _same_shape(name: str, x: jax.Array, y: jax.Array) -> None:
    if x.shape != y.shape:
        raise ValueError(f"{name} compares images of one shape: got {x.shape} and {y.shape}; crop or resize one of them")


def psnr(x: jax.Array, y: jax.Array, *, peak: float = 2.0, where: jax.Array | None = None) -> jax.Array:
    """Peak signal-to-noise ratio in dB, a scalar: 10 log10(peak^2 / mean squared difference), inf if equal.

    x, y: any equal shape, e.g. (H, W, C). peak: value range, 2 for images in [-1, 1], 1 for [0, 1], 255 for
    bytes. where: weights, 1 = counted, 0 = not; (H, W) or anything that broadcasts to x. NaN if it counts
    nothing. Raises ValueError for two shapes.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    _same_shape("psnr", x, y)
    square = (x - y) ** 2
    if where is None:
        mse = jnp.mean(square)
    else:
        where = jnp.asarray(where, square.dtype)
        where = jnp.broadcast_to(where[..., None] if where.ndim == x.ndim - 1 else where, x.shape)
        mse = jnp.sum(square * where) / jnp.sum(where)
    return 10.0 * (2.0 * jnp.log10(jnp.asarray(peak, square.dtype)) - jnp.log10(mse))


def psnr_hole(x: jax.Array, y: jax.Array, mask: jax.Array, *, peak: float = 2.0) -> jax.Array:
    """`psnr` over the hidden pixels alone. mask: (H, W) or as broadcasts to x, 1 = known, 0 = hidden."""
    return psnr(x, y, peak=peak, where=1.0 - jnp.asarray(mask, jnp.asarray(x).dtype))


def _gaussian_window(sigma: float = 1.5, radius: int = 5) -> np.ndarray:
    k = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return k / k.sum()


def ssim(x: jax.Array, y: jax.Array, *, peak: float = 2.0) -> jax.Array:
    """Structural similarity (Wang et al. 2004), a scalar in [-1, 1], 1 for equal images.

    Gaussian window of 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, population covariances, averaged over
    the windows that lie inside the image: scikit-image's `structural_similarity` with gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False. x, y: (H, W, C) with H, W >= 11; peak as in `psnr`. Raises
    ValueError otherwise.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    _same_shape("ssim", x, y)
    if x.ndim != 3 or min(x.shape[:2]) < 11:
        raise ValueError(f"ssim needs an image (H, W, C) of at least 11x11 pixels, its window: got shape {x.shape}")
    window = _gaussian_window()

    def blur(
        a,
    ):  # a sum of shifted images: exact in float32 on every backend, unlike a default-precision convolution
        for axis in (0, 1):
            n = a.shape[axis] - len(window) + 1
            a = sum(float(w) * jax.lax.slice_in_dim(a, k, k + n, axis=axis) for k, w in enumerate(window))
        return a

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    return jnp.mean((2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)))


# stride and padding of AlexNet's five convolutions, and whether a 3x3 max-pool of stride 2 comes before them
_ALEXNET = ((4, 2, False), (1, 2, True), (1, 1, True), (1, 1, False), (1, 1, False))


def _alexnet_features(x: jax.Array, weights: dict[str, jax.Array]) -> list[jax.Array]:
    """Images (N, H, W, 1 or 3) in [-1, 1] -> what the five ReLUs give, (N, h, w, c) each."""
    times = -(-LPIPS_MIN_SIZE // min(x.shape[1:3]))
    if times > 1:
        x = jnp.repeat(jnp.repeat(x, times, axis=1), times, axis=2)
    x = jnp.broadcast_to(x, (*x.shape[:3], 3))
    x = (x - jnp.array([-0.030, -0.088, -0.188], x.dtype)) / jnp.array([0.458, 0.448, 0.450], x.dtype)
    features = []
    for n, (stride, pad, pool) in enumerate(_ALEXNET):
        if pool:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
        x = jax.lax.conv_general_dilated(
            x, weights[f"features.{n}.kernel"].astype(x.dtype), (stride, stride), [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=jax.lax.Precision.HIGHEST,
        )  # fmt: skip
        x = jax.nn.relu(x + weights[f"features.{n}.bias"].astype(x.dtype))
        features.append(x)
    return features


def _unit_channels(f: jax.Array) -> jax.Array:
    square = jnp.sum(f**2, axis=-1, keepdims=True)
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)  # gradient of sqrt at 0 is not NaN
    return f / (norm + 1e-10)


def lpips(x: jax.Array, y: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
    """LPIPS v0.1 with AlexNet (Zhang et al., CVPR 2018): a scalar, 0 for equal images, larger = less alike.

    x, y: one image (H, W, 3) in [-1, 1], or (H, W, 1), repeated to three channels. weights:
    `diffjax.zoo.lpips_weights()`. Features after each of the five ReLUs are scaled to unit length over
    channels; their squared differences are weighted by the heads, averaged over positions and summed over
    layers. Images whose shorter side is below 64 are first enlarged by repeating each pixel the smallest
    whole number of times that reaches 64: report such a value as "lpips@64". Convolutions run at the highest
    precision (TPUs would default to bfloat16). Raises ValueError for other shapes.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    _same_shape("lpips", x, y)
    if x.ndim != 3 or x.shape[-1] not in (1, 3):
        raise ValueError(f"lpips compares one image (H, W, 1) or (H, W, 3), batches by vmap: got shape {x.shape}")
    pair = jnp.stack([x, y])
    total = jnp.zeros((), pair.dtype)
    for n, f in enumerate(_alexnet_features(pair, weights)):
        u = _unit_channels(f)
        head = weights[f"lin.{n}.weight"].astype(f.dtype)
        total += jnp.mean(jnp.sum((u[0] - u[1]) ** 2 * head, axis=-1))
    return total


def alexnet_features(x: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
    """Feature vector (1152,) of one image, for `kernel_distance`: what AlexNet's five ReLUs give, each averaged over
    its positions (64 + 192 + 384 + 256 + 256 channels). x and weights as in `lpips`, small images enlarged likewise.
    """
    x = jnp.asarray(x)
    if x.ndim != 3 or x.shape[-1] not in (1, 3):
        raise ValueError(f"alexnet_features needs one image (H, W, 1) or (H, W, 3), batches by vmap: got shape {x.shape}")
    return jnp.concatenate([jnp.mean(f[0], axis=(0, 1)) for f in _alexnet_features(x[None], weights)])


def _vectors(name: str, a, b, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < least:
        raise ValueError(
            f"{name} compares two sets of at least {least} feature vectors, (n, d) and (m, d): got {a.shape} and {b.shape}"
        )
    return a, b


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of the Gaussians fitted to two feature sets (Heusel et al. 2017: FID).

    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), covariances with n - 1. a: (n, d), b: (m, d),
    features, not pixels. Never negative; 0 for equal sets. It is biased upward by terms of order 1/n: compare
    values of equal n only. tr (S_a S_b)^(1/2) is the sum of the roots of the eigenvalues of S_a^(1/2) S_b
    S_a^(1/2), which is symmetric; of fewer vectors than features it is that of the singular values of A B^T, where
    S_a = A^T A and S_b = B^T B. Raises ValueError for other shapes.
    """
    a, b = _vectors("frechet_distance", a, b)
    if min(len(a), len(b)) < a.shape[1]:
        root_a, root_b = ((f - f.mean(0)) / np.sqrt(len(f) - 1) for f in (a, b))
        cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
        distance = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.sum(root_a**2) + np.sum(root_b**2) - 2 * cross
        return max(float(distance), 0.0)
    cov_a, cov_b = (np.atleast_2d(np.cov(f, rowvar=False)) for f in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = root_a @ cov_b @ root_a
    cross = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None)).sum()
    distance = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return max(float(distance), 0.0)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kernel distance (Binkowski et al. 2018: KID): the unbiased squared MMD with k(u, v) = (u.v / d + 1)^3.

    a: (n, d), b: (m, d). Unbiased at every n, so it may come out slightly negative for sets of one
    distribution. All pairs are used, not random subsets, in blocks of 1024 rows. Raises ValueError for other
    shapes.
    """
    a, b = _vectors("kernel_distance", a, b)

    def total(u, v):
        return sum(float(np.sum((u[i : i + 1024] @ v.T / u.shape[1] + 1) ** 3)) for i in range(0, len(u), 1024))

    def off_diagonal_mean(u):
        diagonal = float(np.sum((np.sum(u * u, axis=1) / u.shape[1] + 1) ** 3))
        return (total(u, u) - diagonal) / (len(u) * (len(u) - 1))

    return off_diagonal_mean(a) + off_diagonal_mean(b) - 2 * total(a, b) / (len(a) * len(b))


def nearest(a: np.ndarray, b: np.ndarray, *, same: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(root-mean-square difference of each row of ``a`` to the nearest row of ``b``, which row that is): (n,) each.

    a: (n, d), b: (m, d), for example flattened images; the distance is in their units. A sample much nearer to a
    training image than unseen images are was copied. same: b is a, and no row counts as its own neighbour. Raises
    ValueError for other shapes.
    """
    a, b = _vectors("nearest", a, b, least=1 + same)
    squares = np.sum(b * b, axis=1)
    found = np.empty(len(a), np.int64)
    for start in range(0, len(a), 1024):
        part = a[start : start + 1024]
        square = squares - 2 * part @ b.T  # plus |part|^2, the same along a row
        if same:
            rows = np.arange(len(part))
            square[rows, start + rows] = np.inf
        found[start : start + 1024] = square.argmin(1)
    return np.sqrt(np.mean((a - b[found]) ** 2, axis=1)), found


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    """(precision, recall) of two feature sets (Kynkaanniemi et al. 2019, arXiv:1904.06991, equation 2), each in [0, 1].

    A set's manifold is the union of balls around its vectors, each as large as the distance to its k-th nearest neighbour in
    the set. Precision is the share of ``fake`` inside the real manifold: how many samples look real. Recall is the share of
    ``real`` inside the fake one: how much of the data the samples reach. A ball's border belongs to it. The paper has k = 3
    and 50,000 vectors of each. Both shares depend on the sizes of the sets: compare values of equal sizes only, best with as
    many of both. real: (n, d), fake: (m, d), in blocks of 1024 rows. Raises ValueError for other shapes, and where a set has
    no k others.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k {k!r} is no number of neighbours: give a whole number of at least 1, the paper's is 3")
    real, fake = _vectors("precision_recall", real, fake, least=k + 1)
    centre = np.concatenate([real, fake]).mean(0)  # fewer digits are lost in squares of differences
    real, fake = real - centre, fake - centre

    def squares(a, b):
        return np.maximum(np.sum(a * a, 1)[:, None] - 2 * a @ b.T + np.sum(b * b, 1), 0)

    def radii(a):
        found = np.empty(len(a))
        for start in range(0, len(a), 1024):
            square = squares(a[start : start + 1024], a)
            rows = np.arange(len(square))
            square[rows, start + rows] = 0  # itself, the nearest of all
            found[start : start + 1024] = np.partition(square, k, axis=1)[:, k]
        return found

    def inside(a, b):
        """Share of ``a`` in the manifold of ``b``."""
        size = radii(b) * (1 + 1e-9)
        return float(np.mean(np.concatenate(
            [(squares(a[n : n + 1024], b) <= size).any(1) for n in range(0, len(a), 1024)])))  # fmt: skip

    return inside(fake, real), inside(real, fake)
