"""Restoration in latent space, with a linear autoencoder x = D z + b: laws are those of pixel space with operator A D."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.base import pytree, static

O, M, K, T = dj.operators, dj.methods, dj.kernels, dj.timetables
SHAPE, LATENT = (4, 4, 1), (2, 2, 2)
SCHEDULE = dj.schedules.discrete(dj.schedules.linear_betas(100))
RNG = np.random.default_rng(0)
D = RNG.normal(size=(16, 8)) / 3
MASK = (np.arange(16).reshape(SHAPE) % 3 > 0).astype(np.float32)


@pytree
class Linear:
    """x = D z + b; encode is the least-squares z."""

    D: jax.Array
    b: jax.Array
    linear: bool = static(default=True)

    f = 2

    def decode(self, z):
        return jnp.matmul(self.D, z.reshape(-1), precision="highest").reshape(SHAPE) + self.b

    def encode(self, x, key=None):
        return jnp.matmul(jnp.linalg.pinv(self.D), (x - self.b).reshape(-1), precision="highest").reshape(LATENT)

    def latent_shape(self, shape):
        return (shape[0] // 2, shape[1] // 2, 2)


LINEAR = Linear(jnp.asarray(D, jnp.float32), jnp.zeros(SHAPE))
OFFSET = Linear(jnp.asarray(D, jnp.float32), jnp.full(SHAPE, 0.3), linear=False)
PRIOR = dj.priors.gaussian(0.3 * RNG.normal(size=LATENT), 0.2 + 0.3 * RNG.random(LATENT))
DENOISE = PRIOR.denoiser(SCHEDULE)
FLAT = np.asarray(MASK.reshape(-1, 1) * D)  # A D
Y = np.asarray(MASK * np.asarray(LINEAR.decode(jnp.asarray(PRIOR.sample(jax.random.key(9))))))
TABLE = T.log_snr(SCHEDULE, 6)


def in_latents(noise_std=0.1, autoencoder=LINEAR):
    return dj.Measurement(Y, O.Decoded(O.Mask(MASK), autoencoder), noise_std, (-9.0, 9.0))


def in_pixels(noise_std=0.1):
    """The same measurement as an operator of an image of the latent's shape."""
    matrix = jnp.asarray(FLAT, jnp.float32)
    A = O.from_function(lambda z: jnp.matmul(matrix, z.reshape(-1), precision="highest").reshape(SHAPE), LATENT)
    return dj.Measurement(Y, A, noise_std, (-9.0, 9.0))


def red_diff(denoise, m):
    """In latents it starts at encode(A^+ y), and knows how much is measured."""
    if isinstance(m.A, O.Decoded):
        return M.REDDiff(denoise, m)
    return M.REDDiff(denoise, m, weight=0.25 * MASK.mean(), guess=LINEAR.encode(jnp.asarray(m.y)))


DIFFERENTIABLE = {
    "dps": (M.DPS, None),
    "dps squared": (lambda d, m: M.DPS(d, m, scale=0.1, loss="squared"), K.DDIM(eta=0.5)),
    "copaint": (lambda d, m: M.CoPaint(d, m, lr=0.2, adaptive=False, exact=False, bounds=(-9.0, 9.0)), None),
    "diffpir gradient": (lambda d, m: M.DiffPIR(d, m, data="gradient"), K.DDIM(zeta=0.3)),
    "red-diff": (lambda d, m: red_diff(d, m), None),
    "mmps": (lambda d, m: M.MMPS(d, m, iterations=4), None),
}


@pytest.mark.parametrize("name", list(DIFFERENTIABLE))
def test_the_law_in_latents_is_the_one_in_pixels(name):
    """Draw for draw."""
    build, kernel = DIFFERENTIABLE[name]
    walk = jax.jit(lambda m: dj.sample(jax.random.key(1), build(DENOISE, m), TABLE, LATENT, kernel=kernel).x)
    ours, theirs = walk(in_latents()), walk(in_pixels())
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)
    assert np.abs(ours - walk(dj.replace(in_latents(), y=Y + 0.5))).max() > 1e-2


def test_the_start_of_a_walk_is_optimised_as_in_pixels():
    found = [M.optimise_start(jax.random.key(1), DENOISE, m, TABLE, LATENT, iterations=20, lr=0.1)
             for m in (in_latents(), in_pixels())]  # fmt: skip
    for ours, theirs in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert found[0].loss[-1] < 0.5 * found[0].loss[0]


def test_the_posterior_of_latent_and_picture():
    """Samples of MMPS against closed forms: mean and covariance of z given y, and of x = D z."""
    m, n = in_latents(0.3), 1500
    exact = PRIOR.condition(FLAT, Y, 0.3)
    method = M.MMPS(DENOISE, m, iterations=8)
    table = T.log_snr(SCHEDULE, 30)
    one = lambda key: dj.sample(key, method, table, LATENT, kernel=K.DPMSolverPP2M()).x
    z = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), n))
    x = jax.vmap(m.A.picture)(z)
    mean, covariance = exact.moments()
    for got, centre, spread in (
        (np.asarray(z).reshape(n, -1), mean.ravel(), covariance),
        (np.asarray(x).reshape(n, -1), D @ mean.ravel(), D @ covariance @ D.T),
    ):
        std = np.sqrt(np.diag(spread))
        assert np.all(np.abs(got.mean(0) - centre) < 5 * std / np.sqrt(n) + 0.02 * std)
        np.testing.assert_allclose(got.std(0), std, rtol=5 / np.sqrt(2 * n) + 0.03)  # five deviations, and the grid's error


def test_gluing_keeps_to_the_encoder():
    """In pixels encode and decode are the identity: gluing pulls as far as A^+ of the residual. With gamma 0 it is DPS."""
    z = jnp.asarray(RNG.normal(size=LATENT), jnp.float32)
    m = in_latents(0.0)
    x = np.asarray(LINEAR.decode(z))
    glued = np.asarray(LINEAR.encode(jnp.asarray(np.where(MASK > 0, Y, x), jnp.float32)))
    fit, apart = np.linalg.norm(MASK * x - Y), np.linalg.norm(np.asarray(z) - glued)
    np.testing.assert_allclose(M.PSLD(DENOISE, m, 0.7, 0.4).objective(z), 0.7 * fit + 0.4 * apart, rtol=1e-5)
    walk = lambda method: dj.sample(jax.random.key(3), method, TABLE, LATENT, kernel=K.DDIM(eta=0.5)).x
    np.testing.assert_allclose(walk(M.PSLD(DENOISE, m, 0.3, 0.0)), walk(M.DPS(DENOISE, m, scale=0.3)), atol=1e-5)
    assert np.abs(walk(M.PSLD(DENOISE, m, 0.3, 0.4)) - walk(M.DPS(DENOISE, m, scale=0.3))).max() > 1e-3


def test_hard_consistency_fits_y_and_stops_at_the_noise():
    m = in_latents(0.0)
    method = M.ReSample(DENOISE, m, lr=0.05, every=2, iterations=300)
    result = jax.jit(lambda key: dj.sample(key, method, TABLE, LATENT))(jax.random.key(4))
    assert float(method.misfit(result.x)) < 1e-3 * np.sum(Y**2)
    z = jnp.asarray(RNG.normal(size=LATENT), jnp.float32)
    noisy = M.ReSample(DENOISE, in_latents(0.3), lr=0.03, iterations=600)
    left = float(noisy.noise_left(z))
    np.testing.assert_allclose(left, 0.09 * MASK.sum(), rtol=1e-5)
    assert 0.7 * left < float(noisy.misfit(noisy.fit_latents(z))) <= left < float(noisy.misfit(z))
    plain = M.ReSample(DENOISE, in_latents(0.0), scale=0.0, every=100, iterations=1, lr=0.0)  # nothing is due: the bare walk
    bare = dj.sample(jax.random.key(4), DENOISE, TABLE, LATENT, kernel=K.DDIM())
    np.testing.assert_allclose(dj.sample(jax.random.key(4), plain, TABLE, LATENT).x, bare.x, atol=1e-6)


def test_resampling_has_the_product_law():
    """z_s is drawn from N(alpha_s z0*, v) times N(z', sigma_s^2), v = 40 times the posterior variance."""
    method = M.ReSample(DENOISE, in_latents(0.0), every=1)
    plan = method.plan(K.DDIM().bind(SCHEDULE), TABLE)
    (alpha, sigma), std = dj.process.marginal(SCHEDULE, TABLE.s), dj.process.posterior(SCHEDULE, TABLE.t, TABLE.s)[2]
    v = 40 * std[:-1] ** 2
    np.testing.assert_allclose(plan.to_fit[:-1], v * alpha[:-1] / (v + sigma[:-1] ** 2))
    np.testing.assert_allclose(plan.to_move[:-1], sigma[:-1] ** 2 / (v + sigma[:-1] ** 2))
    np.testing.assert_allclose(plan.std[:-1] ** 2, v * sigma[:-1] ** 2 / (v + sigma[:-1] ** 2))
    assert plan.stage[-1] == 0 and set(plan.stage) == {0, 1, 2}


def test_adjoint_and_gradient():
    A = in_latents().A
    z, y = (jnp.asarray(RNG.normal(size=s), jnp.float32) for s in (LATENT, SHAPE))
    np.testing.assert_allclose(A(z).ravel(), FLAT @ np.asarray(z).ravel(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(A.T(y).ravel(), FLAT.T @ np.asarray(y).ravel(), rtol=1e-5, atol=1e-5)
    loss = lambda ae: (O.Decoded(O.Mask(MASK), ae)(z) ** 2).sum()
    up = jax.tree.map(lambda a: a + 1e-2, LINEAR)
    down = jax.tree.map(lambda a: a - 1e-2, LINEAR)
    slope = sum(float(g.sum()) for g in jax.tree.leaves(jax.grad(loss)(LINEAR)))
    np.testing.assert_allclose((loss(up) - loss(down)) / 2e-2, slope, rtol=1e-3)


def test_known_pixels_come_back_when_asked_for():
    z = jnp.asarray(RNG.normal(size=LATENT), jnp.float32)
    A = in_latents(autoencoder=OFFSET).A
    x = np.asarray(A.picture(z))
    assert np.abs(MASK * (x - Y)).max() > 0.1
    np.testing.assert_allclose(A.picture(z, Y), np.where(MASK > 0, Y, x), atol=1e-6)


def test_masks_of_latents():
    mask = np.ones((4, 6, 1))
    mask[1, 3] = 0
    np.testing.assert_array_equal(O.latent_mask(mask, 2)[..., 0], [[1, 0, 1], [1, 1, 1]])
    np.testing.assert_array_equal(O.latent_mask(mask, 2, share=0.75)[..., 0], np.ones((2, 3)))
    half = np.ones(SHAPE)
    half[:2] = 0
    m = O.masked_latents(dj.Measurement(half * 0.5, O.Mask(half)), LINEAR)
    np.testing.assert_array_equal(m.A.mask[..., 0], [[0, 0], [1, 1]])
    np.testing.assert_allclose(m.y[1], LINEAR.encode(jnp.asarray(half * 0.5, jnp.float32))[1], atol=1e-6)
    assert dj.sample(jax.random.key(0), M.RePaint(DENOISE, m), TABLE, LATENT).x.shape == LATENT
    with pytest.raises(ValueError, match=r"use operators.Decoded"):
        O.masked_latents(dj.Measurement(np.zeros((2, 2, 1)), O.Downsample(2)), LINEAR)


@pytest.mark.parametrize("build", [M.RePaint, M.DDRM, M.DDNM, M.PiGDM, M.DiffPIR, M.MCG, M.MMPS, M.DPIR])
def test_what_needs_more_is_refused_in_one_line(build):
    with pytest.raises(ValueError, match=r"use DPS, PSLD, ReSample or DiffPIR\(data='gradient'\)") as error:
        build(DENOISE, in_latents(0.0, OFFSET))
    assert "\n" not in str(error.value)


def test_slips():
    with pytest.raises(ValueError, match="decoded already"):
        O.Decoded(in_latents().A, LINEAR)
    with pytest.raises(ValueError, match="no autoencoder, it has no decode"):
        O.Decoded(O.Mask(MASK), O.Grey())
    with pytest.raises(ValueError, match=r"PSLD needs A\.pinv"):
        curved = O.Decoded(O.from_function(lambda x: jnp.tanh(x), SHAPE), LINEAR)
        M.PSLD(DENOISE, dj.Measurement(Y, curved, value_range=(-9.0, 9.0)))


# --- grids of latent diffusion --------------------------------------------------------------------------------------


def test_exactly_as_many_steps_and_never_beyond_the_table():
    for S in (1000, 100, 40, 9, 2):
        for spacing in ("uniform", "quad"):
            for n in {*range(1, min(S, 60) + 1), *range(max(S - 40, 1), S + 1), S // 2, S // 3 or 1}:
                kept = T.space_ldm(S, n, spacing)
                assert len(kept) == n and (np.diff(kept) > 0).all() and 0 <= kept[0] and kept[-1] < S, (S, n, spacing)
                if spacing == "uniform" and S % n == 0 and n <= S // 2:
                    np.testing.assert_array_equal(kept, T.space_ldm(S, n, count="published"))
    long = dj.schedules.discrete(dj.schedules.scaled_linear_betas(1000))
    assert len(T.ldm(long, 7)) == 7 and len(T.ldm(long, 7, count="published")) == 8 and T.ldm(long, 7).s[-1] == 1
    with pytest.raises(ValueError, match=r"reaches index 1000, beyond the table's 999: use count='exact'"):
        T.ldm(long, 1000, count="published")
    assert len(T.ldm(long, 1000)) == 1000 and T.ldm(long, 1000).s[-1] == 0
    with pytest.raises(ValueError, match="did you mean 'leading'"):
        T.diffusers(long, 10, "leadin")


def test_low_temperature_takes_variance_away():
    table = T.log_snr(SCHEDULE, 30)
    walk = lambda c: jax.jit(
        jax.vmap(lambda key: dj.sample(key, DENOISE, table, LATENT, kernel=K.DDIM(eta=1.0, temperature=c)).x)
    )(jax.random.split(jax.random.key(5), 300))
    warm, cold = (np.asarray(walk(c)).std(0).mean() for c in (1.0, 0.5))
    assert cold < 0.85 * warm


# --- tiles ----------------------------------------------------------------------------------------------------------


def test_tiles_cover_all_and_give_back_what_is_local():
    x = jnp.asarray(RNG.normal(size=(19, 13, 3)), jnp.float32)  # strides that do not reach the edge
    np.testing.assert_allclose(dj.tiles.tiled(lambda tile: tile, x, 8, 5), x, atol=1e-6)
    np.testing.assert_allclose(dj.tiles.tiled(jnp.tanh, x, (8, 13), (3, 1), at_once=4, ties=True), np.tanh(x), atol=1e-6)
    larger = dj.tiles.tiled(lambda tile: jnp.repeat(jnp.repeat(tile, 2, 0), 2, 1), x, 8, 4)
    np.testing.assert_allclose(larger, np.repeat(np.repeat(x, 2, 0), 2, 1), atol=1e-6)
    smaller = dj.tiles.tiled(lambda tile: tile[::2, ::2], x[:16, :12], 8, 4)
    np.testing.assert_allclose(smaller, x[:16:2, :12:2], atol=1e-6)
    with pytest.raises(ValueError, match="larger than the picture"):
        dj.tiles.tiled(jnp.tanh, x, 16, 8)
    with pytest.raises(ValueError, match="leaves pixels out"):
        dj.tiles.Tiling((16, 16), 4, 5)
