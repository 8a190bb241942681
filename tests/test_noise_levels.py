"""Masks with fractions, and noise_std per pixel and per channel, in every method and operator.

The prior is a Gaussian of independent pixels: there a method that treats pixels alike does to each what it does to all of them
at that pixel's noise level, and where nothing is noisy y / mask is the truth.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_capabilities import METHODS

import diffjax as dj

O, M, K = dj.operators, dj.methods, dj.kernels
QUICK = {"xla_backend_optimization_level": 0}  # these programs take longer to compile than to run
SHAPE = (4, 4, 2)
SCHEDULE = dj.schedules.discrete(dj.schedules.linear_betas(100))
TABLE = dj.timetables.log_snr(SCHEDULE, 100)
MEAN, VARIANCE = 0.1, 0.3


def gaussian(x, i):
    alpha, sigma = (c.astype(x.dtype) for c in (SCHEDULE.alpha(i + 1), SCHEDULE.sigma(i + 1)))
    return MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)


PRIOR = dj.denoisers.from_x0(gaussian, None, SCHEDULE)
rng = np.random.default_rng(0)
X = np.where(rng.random(SHAPE) < 0.5, -0.8, 0.8).astype(np.float32)
SOFT = np.array([1, 0.5, 0.25, 0], np.float32)[:, None, None] * np.ones((4, 4, 1), np.float32)
KNOWN = np.broadcast_to(SOFT > 0, SHAPE)
LEVELS = 0.05, 0.3
MIXED = np.where(rng.random(SHAPE) < 0.5, *LEVELS).astype(np.float32)
NOISY = (SOFT * X + 0.2 * rng.standard_normal(SHAPE)).astype(np.float32)

# Those that come near y only, with settings that let them here, and how near: a step size, or a weight of the prior. Half the
# brightness, in its place, is 0.4 or more away.
NEAR = {"dps": 0.3, "dps poisson": 0.3, "red-diff": 0.1, "diffpir gradient": 0.1, "diffpir back projection": 0.1}
NEAR |= {"psld": 0.1, "resample": 0.02, "diffpir": 0.02, "dpir": 0.02, "twisted": 0.2, "pigdm": 1e-4, "mmps": 1e-4}
BUILD = METHODS | {
    "dps": (lambda *a: M.DPS(*a, loss="squared", scale=0.7), K.DDPM),
    "dps poisson": (lambda *a: M.DPS(*a, loss="poisson", scale=0.5), K.DDPM),
    "red-diff": (lambda *a: M.REDDiff(*a, lr=0.2, weight=0.01), K.Marginal),
    "diffpir gradient": (lambda *a: M.DiffPIR(*a, data="gradient", iterations=50), K.DDIM),
    "diffpir back projection": (lambda *a: M.DiffPIR(*a, data="back_projection", iterations=20), K.DDIM),
    "mmps": (M.MMPS, K.DDIM),
    "psld": (lambda *a: M.PSLD(*a, omega=0.1), K.DDIM),
    "resample": (lambda *a: M.ReSample(*a, every=2, iterations=400, lr=0.02), K.DDIM),
    "twisted": (lambda *a: M.TwistedSMC(*a, particles=2), K.DDPM),
}
IGNORE = ("dps", "dps poisson", "psld", "mcg", "copaint", "red-diff")  # their papers have no noise model


@cache
def program(name):
    """(y, *stds) -> (results (n, *SHAPE), states (n, rows, *SHAPE)), a run for each std, all of the same draws. The draws are
    an argument: what makes them takes longer to compile than the method."""
    build, kernel = BUILD[name]
    kernel = kernel(SCHEDULE)
    method = lambda y, std: build(PRIOR, dj.Measurement(y, O.Mask(SOFT), std, (-9.0, 9.0)))
    any_one = method(NOISY, 0.0 if name == "ddnm" else 1.0)
    like = jax.eval_shape(lambda k: dj.draws(k, any_one, TABLE, SHAPE, kernel=kernel), jax.random.key(0))
    draw = np.random.default_rng(1)
    noise = jax.tree.map(lambda a: draw.normal(size=a.shape).astype(np.float32), like)

    def run(noise, y, stds):
        trace = lambda x, row, info: x
        sample = lambda m: dj.sample(None, m, TABLE, SHAPE, kernel=kernel, recorded=noise, remat="none", trace=trace)
        return jax.vmap(lambda std: (lambda r: (r.x, r.trace))(sample(method(y, std))))(stds)

    compiled = jax.jit(run, compiler_options=QUICK)
    stacked = lambda stds: np.stack([np.broadcast_to(s, SHAPE) for s in stds]).astype(np.float32)
    return lambda y, *stds: jax.device_get(compiled(noise, y, stacked(stds)))


@pytest.mark.parametrize("name", METHODS)
def test_a_fraction_measures_that_share_of_the_image(name):
    std = 0.01 if name == "twisted" else 0.0
    x = program(name)(SOFT * X, std, std, std)[0][0]
    np.testing.assert_allclose(x[KNOWN], X[KNOWN], atol=NEAR.get(name, 1e-6))
    assert np.isfinite(x).all()


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("ddnm", "resampling", "resample", "diffpir gradient")])
def test_each_pixel_has_its_own_noise(name):
    """As if all had it, along the whole walk. Resampling, ReSample's fits and gradient steps have one choice or step size for
    all pixels."""
    low, high, mixed = program(name)(NOISY, *LEVELS, MIXED)[1]
    np.testing.assert_allclose(mixed, np.where(MIXED == LEVELS[0], low, high), atol=1e-5)
    assert (np.abs(low - high)[..., KNOWN].max() > 0.1) == (name not in IGNORE)


def test_resampling_takes_the_noise_of_each_pixel():
    low, high, mixed = program("resampling")(NOISY, *LEVELS, MIXED)[1]
    assert np.abs(low - high).max() > 0.1 and np.abs(low - mixed).max() > 0.1


def method_of(name, std, A=None, y=None):
    m = dj.Measurement(NOISY if y is None else y, O.Mask(SOFT) if A is None else A, std, (-99.0, 99.0))
    return BUILD[name][0](PRIOR, m)


@pytest.mark.parametrize("make", [M.RePaint, M.Blended])
def test_merged_pixels_have_the_noise_of_their_level(make):
    """Linear in y's noise e and the fresh z: the squares of both factors add up to sigma^2; z's is 0 where e's is larger."""
    x, zero, one = (np.full(SHAPE, v, np.float32) for v in (0.3, 0.0, 1.0))
    level = dj.methods.repaint.Plan(0.8, 0.5, 1.0)
    merge = lambda e, z: make(PRIOR, dj.Measurement(SOFT * X + MIXED * e, O.Mask(SOFT), MIXED)).merge(x, level, z)
    clean = np.asarray(merge(zero, zero), np.float64)
    np.testing.assert_allclose(clean, np.where(KNOWN, 0.8 * X, x), atol=1e-6)
    own, fresh = merge(one, zero) - clean, merge(zero, one) - clean
    expected = 0.8 * MIXED / np.where(KNOWN, SOFT, 1)
    np.testing.assert_allclose(own[KNOWN], expected[KNOWN], rtol=1e-5)
    np.testing.assert_allclose(fresh[KNOWN] ** 2, np.maximum(0.25 - expected**2, 0)[KNOWN], atol=1e-6)
    assert (fresh[KNOWN] == 0).any() and (fresh[KNOWN] > 0.3).any()


def test_results_keep_what_is_noisy_and_paste_what_is_not():
    std, x = np.where(MIXED == LEVELS[0], 0.0, 0.3).astype(np.float32), np.full(SHAPE, 0.3, np.float32)
    for method in (method_of("repaint", std, y=SOFT * X), method_of("copaint", std, y=SOFT * X)):
        result, _ = method.finish(None, x, None)
        np.testing.assert_allclose(result, np.where(KNOWN & (std == 0), X, x), atol=1e-6)


def test_mmps_and_twisted_are_the_closed_form():
    """x0 | x_t, y of each pixel is a product of two Gaussians."""
    x, t = (0.5 * X + 0.1).astype(np.float32), 40.0
    method = method_of("twisted", MIXED)
    p, shift, _, _ = jax.jit(lambda x: method.twist(x, jnp.float32(t)), compiler_options=QUICK)(x)
    alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
    V = 1 / (1 / VARIANCE + alpha**2 / sigma**2)
    m = V * (MEAN / VARIANCE + alpha * x / sigma**2)
    exact = (m / V + SOFT * NOISY / MIXED**2) / (1 / V + SOFT**2 / MIXED**2)
    np.testing.assert_allclose(p.x0 + shift, exact, atol=2e-5)
    log_density = -0.5 * ((NOISY - SOFT * x) ** 2 / MIXED**2)[KNOWN].sum()
    np.testing.assert_allclose(method.likelihood(x), log_density, rtol=1e-5)


@pytest.mark.parametrize("splitting", ["hqs", "admm"])
def test_gradient_steps_and_the_dual_take_the_noise_of_each_pixel(splitting):
    """Many gradient steps end at the proximal map; a number is the array that is equal everywhere."""
    p = PRIOR(jnp.asarray(0.4 * X), jnp.float32(50.0))
    dual = None if splitting == "hqs" else jnp.full(SHAPE, 0.01, jnp.float32)

    def corrected(std, **settings):
        m = dj.Measurement(NOISY, O.Mask(SOFT), std, (-9.0, 9.0))
        return jax.jit(lambda: M.DiffPIR(PRIOR, m, **settings).correct(p, dual), compiler_options=QUICK)()[0].x0

    exact = corrected(MIXED)
    np.testing.assert_allclose(corrected(MIXED, data="gradient", iterations=20_000), exact, atol=1e-4)
    np.testing.assert_allclose(corrected(0.3), corrected(np.full(SHAPE, 0.3, np.float32)), atol=1e-6)
    assert np.abs(corrected(0.3) - exact).max() > 0.05


def test_simplified_ddnm_with_one_number_is_the_equal_array():
    x, row = jnp.asarray(0.4 * X), dj.base.Row(*[jnp.float32(50.0)] * 3, None, None, None, None)
    p, kernel = PRIOR(x, row.t), K.Marginal(SCHEDULE)
    table = dj.timetables.from_times([60.0, 5.0])

    def shaped(std):
        method = method_of("ddnm+ simplified", std)
        cast = lambda a: jnp.asarray(a[0], jnp.float32)
        at = dj.replace(row, k=jax.tree.map(cast, kernel.plan(table)), m=jax.tree.map(cast, method.plan(kernel, table)))
        new, noise = method.shaped(p, jnp.asarray(X), at)
        return np.stack([new.x0, noise])

    for std in (0.05, 0.3):  # less, and more than the level has
        np.testing.assert_allclose(shaped(std), shaped(np.full(SHAPE, std, np.float32)), atol=1e-6)
        np.testing.assert_allclose(shaped(std), shaped(np.full((1, 1, 1), std, np.float32)), atol=1e-6)
    assert np.abs(shaped(0.05) - shaped(0.3)).max() > 0.05


# --- operators ----------------------------------------------------------------------------------------------------------

BLUR = O.gaussian_kernel(3, 0.8)
SPECTRAL = {  # operator: (shape of the image, whether each entry of y may have a level, or each channel)
    "mask": (O.Mask(SOFT), SHAPE, "entry"),
    "hadamard": (O.Hadamard(SOFT), SHAPE, "entry"),
    "grey": (O.Grey([0.2, 0.7]), SHAPE, "entry"),
    "downsample": (O.Downsample(2), SHAPE, "entry"),
    "slices": (O.SliceAverage(2, axis=1), (2, 4, 2, 2), "entry"),
    "blur": (O.Blur(BLUR, factor=2), SHAPE, "channel"),
    "resize": (O.Resize(2), SHAPE, "channel"),
    "fourier": (O.Fourier(SOFT), SHAPE, "channel"),
    "separable": (O.separable(rng.standard_normal((2, 4)), rng.standard_normal((3, 4))), SHAPE, "channel"),
    "matrix": (O.matrix(rng.standard_normal((5, 32)), SHAPE), SHAPE, None),
}


def flat(y):
    leaves = [np.asarray(a) for a in jax.tree.leaves(y)]
    return np.concatenate([np.stack([a.real, a.imag]).ravel() if np.iscomplexobj(a) else a.ravel() for a in leaves])


def matrix(A, shape):
    eye = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    parts = jax.device_get(jax.jit(jax.vmap(A), compiler_options=QUICK)(eye))
    return np.stack([flat(jax.tree.map(lambda a: a[n], parts)) for n in range(len(eye))], 1)


def dense_prox(M, z, rho, y):
    """argmin sum (y - A x)^2 / rho + |x - z|^2 by the matrix of A."""
    full = lambda r, a: np.broadcast_to(r, a.shape) * (1 + 1j if np.iscomplexobj(a) else 1)
    rho = flat(tuple(map(full, rho, y)) if isinstance(rho, tuple) else jax.tree.map(lambda a: full(rho, a), y))
    left = np.eye(z.size) + M.T @ (M / rho[:, None])
    return np.linalg.solve(left, flat(z) + M.T @ (flat(y) / rho)).reshape(z.shape)


@pytest.mark.parametrize("name", SPECTRAL)
def test_levels_of_y_are_levels_of_the_spectrum(name):
    """U^T and a level per entry commute, so that noise stays independent; the proximal map weighs entries by theirs. Where
    that cannot be, the refusal names what does without."""
    A, shape, allowed = SPECTRAL[name]
    with jax.enable_x64(True):
        A = jax.tree.map(lambda a: np.asarray(a, np.float64), A)
        M, draw = matrix(A, shape), np.random.default_rng(2)
        z, y = draw.standard_normal(shape), jax.device_get(A(draw.standard_normal(shape)))
        y = y + 0.1 * y[::-1]
        uses = jax.jit(lambda z, level, y: (A.spread(level) * A.Ut(y), A.Ut(level * y), A.prox(z, level, y)),
                       compiler_options=QUICK)  # fmt: skip
        np.testing.assert_allclose(uses(z, 0.3, y)[2], dense_prox(M, z, 0.3, y), atol=1e-9)
        for kind, of in (("entry", y.shape), ("channel", y.shape[-1:])):
            level = draw.uniform(0.2, 2.0, of)
            if allowed == "entry" or (allowed and kind != "entry"):
                spectrum, same, prox = uses(z, level, y)
                np.testing.assert_allclose(spectrum, same, atol=1e-10)
                np.testing.assert_allclose(prox, dense_prox(M, z, level, y), atol=1e-9)
                continue
            for use in (A.spread, lambda level: A.prox(z, level, y)):
                with pytest.raises(ValueError, match=r"mixes the entries of y.*MMPS, or operators\.cg_prox"):
                    use(level)


def test_conjugate_gradients_take_any_level():
    with jax.enable_x64(True):
        draw = np.random.default_rng(3)
        for A in (O.Blur(BLUR, border="reflect"), O.stack(O.Downsample(2), O.Fourier(SOFT.astype(float)))):
            x, z = draw.standard_normal((2, *SHAPE))
            y = jax.device_get(A(x))
            rho = jax.tree.map(lambda a: draw.uniform(0.2, 2.0, a.shape), y)
            rho = (rho[0], np.float64(0.7)) if isinstance(rho, tuple) else rho
            got = jax.jit(O.cg_prox(A, 60).prox, compiler_options=QUICK)(z, rho, y)
            np.testing.assert_allclose(got, dense_prox(matrix(A, SHAPE), z, rho, y), atol=1e-8)


# --- any method, any operator -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "A, per, refused",
    [
        (O.Blur(BLUR), "entry", {"replacement", "ccdf", "ddrm", "ddnm+", "ddnm+ simplified", "pigdm", "diffpir", "dpir"}),
        (O.Downsample(2), "channel", {"ddnm+ simplified"}),
        (O.cg_prox(O.stack(O.Downsample(2), O.Mask(SOFT)), 3), "entry", set()),
    ],
    ids=["blur", "means", "stack by cg"],
)
def test_it_runs_or_names_what_does(A, per, refused):
    """Shapes only. Refused in one line, and what is named instead runs; the rest is refused for what the operator lacks."""
    y = A(jnp.asarray(X))
    std = jax.tree.map(lambda a: np.full(a.shape if per == "entry" else a.shape[-1:], 0.1, np.float32), y)
    ran, found = set(), set()
    for name, (_, kernel) in METHODS.items():
        if name in (*IGNORE, "ddnm", "repaint", "blended", "resampling"):
            continue
        try:
            method = method_of(name, std, A, y)
        except ValueError:
            continue  # it needs something else
        try:
            walk = lambda key: dj.sample(key, method, TABLE, SHAPE, kernel=kernel(SCHEDULE)).x
            assert jax.eval_shape(walk, jax.random.key(0)).shape == SHAPE, name
            ran.add(name)
        except ValueError as error:
            assert "use MMPS" in str(error) and "\n" not in str(error), (name, error)
            found.add(name)
    assert found == refused
    assert {"mmps", "twisted", "diffpir gradient"} <= ran and ({"diffpir", "pigdm", "dpir"} <= ran | refused)


def test_channels_of_a_blur_have_their_own_noise():
    """Each as if all had its level: channels know nothing of each other."""
    A, levels = O.Blur(BLUR), np.asarray(LEVELS, np.float32)
    y = A(jnp.asarray(X)) + 0.1
    for name in ("ddrm", "diffpir"):
        kernel = METHODS[name][1](SCHEDULE)
        noise = dj.Draws(None, np.random.default_rng(1).standard_normal((4, *SHAPE)).astype(np.float32))
        table = dj.timetables.from_times([60.0, 45.0, 30.0, 20.0, 10.0])
        start = jnp.asarray(X)
        run = lambda std: dj.sample(None, method_of(name, std, A, y), table, start, kernel=kernel, recorded=noise).x
        stds = np.stack([levels, levels[[0, 0]], levels[[1, 1]]])
        both = jax.jit(lambda stds: jax.vmap(run)(stds), compiler_options=QUICK)(stds)
        np.testing.assert_allclose(both[0], np.stack([both[1][..., 0], both[2][..., 1]], -1), atol=1e-5)
        assert np.abs(both[1] - both[2]).max() > 0.05
