"""DPIR, DiffPIR's options and errors, Resampling's choice, CCDF's late start, and the photograph's denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import check, load

import diffjax as dj
from diffjax import zoo
from diffjax.convert import dncnn as converter
from diffjax.methods.resampling import choose

SHAPE = (4, 4, 1)
SCHEDULE = dj.schedules.discrete(dj.schedules.linear_betas(1000))
QUICK = {"xla_backend_optimization_level": 1}  # these programs take longer to compile than to run


def prior(schedule=SCHEDULE, variance=0.3):
    return dj.priors.gaussian(np.full(SHAPE, 0.2), variance).denoiser(schedule)


def measured(A=None, shape=SHAPE, noise_std=0.1):
    y = jnp.asarray(np.random.default_rng(0).uniform(-0.9, 0.9, shape), jnp.float32)
    return dj.Measurement(y, dj.operators.Mask(np.eye(4)[..., None].astype(np.float32)) if A is None else A, noise_std)


# --- timetables ---------------------------------------------------------------------------------------------------------


@pytest.mark.golden("plug_and_play", "ops_diffpir_tables")
def test_published_tables(golden_file):
    run, _ = load(golden_file)
    sequences = [k for k in run if k.startswith("seq_quad_") and int(k.rsplit("_", 1)[1]) <= 200]
    assert sequences
    for name in sequences:
        table = dj.timetables.diffpir(SCHEDULE, int(name.rsplit("_", 1)[1]))
        np.testing.assert_array_equal(table.t, 1000 - np.unique(run[name]))
        assert table.s[-1] == 0 and len(table) == len(np.unique(run[name]))
    for name in [k for k in run if k.startswith("dpir_sigma_")]:
        sigma, rho = run[name], run[name.replace("sigma", "rho")]
        table = dj.timetables.dpir(dj.schedules.EDM(), 2 * sigma[-1], len(sigma))
        check(f"{golden_file.stem} {name}", table.t / 2, sigma, 1e-12)
        noise_std = np.sqrt(3 * rho * sigma**2)  # of images in [0, 1]; there lambda is 1 / 3
        check(f"{golden_file.stem} rho", np.ptp(noise_std), 0.0, 1e-12, absolute=True)
    assert dj.timetables.published("diffpir-20", SCHEDULE).t[-2] == 27


# --- DiffPIR ------------------------------------------------------------------------------------------------------------


def test_noiseless_known_pixels_are_kept():
    method = dj.methods.DiffPIR(prior(), measured(noise_std=0.0))
    x = dj.sample(
        jax.random.key(0), method, dj.timetables.diffpir(SCHEDULE, 10), SHAPE, kernel=dj.kernels.DDIM(SCHEDULE, zeta=1.0)
    ).x
    m = method.measurement.A.mask
    np.testing.assert_allclose(m * x, m * method.measurement.y, atol=0.002)  # the noise floor
    assert np.isfinite(x).all()


def test_a_late_start_begins_at_the_guess():
    guess = jnp.full(SHAPE, 0.7)
    table = dj.timetables.start_at(dj.timetables.diffpir(SCHEDULE, 20), 240.0)
    row = jax.tree.map(lambda a: a[0], table.rows())
    for method in (dj.methods.DiffPIR(prior(), measured(), guess=guess), dj.methods.CCDF(prior(), measured(), guess=guess)):
        x = method.start(dj.kernels.DDIM(SCHEDULE), row, jnp.ones(SHAPE))
        np.testing.assert_allclose(x, SCHEDULE.alpha(240.0) * 0.7 + SCHEDULE.sigma(240.0), rtol=1e-6)
    y = measured(dj.operators.Downsample(2), (2, 2, 1))
    x = dj.methods.CCDF(prior(), y).start(dj.kernels.DDIM(SCHEDULE), row, jnp.zeros(SHAPE))
    np.testing.assert_allclose(x, SCHEDULE.alpha(240.0) * y.A.pinv(y.y), rtol=1e-6)


def test_any_linear_function_with_conjugate_gradients_or_gradients():
    A = dj.operators.from_function(lambda x: x[::2] + 0.5 * x[1::2], SHAPE)
    walk = lambda method: dj.sample(
        jax.random.key(0), method, dj.timetables.diffpir(SCHEDULE, 10), SHAPE, kernel=dj.kernels.DDIM(SCHEDULE)
    )
    y = measured(dj.operators.cg_prox(A, 8), (2, 4, 1))
    result = walk(dj.methods.DiffPIR(prior(), y))
    assert result.info.rows["prox_residual"].shape == (10,) and (result.info.rows["prox_residual"] < 1e-3).all()
    close = walk(dj.methods.DiffPIR(prior(), measured(A, (2, 4, 1)), data="gradient", lipschitz=1.25, iterations=60)).x
    np.testing.assert_allclose(close, result.x, atol=1e-3)


def test_a_matrix_and_the_mask_it_spells():
    """Measurements of another rank than the image's: the same walk as the operator that keeps its shape."""
    keep = np.random.default_rng(3).random(SHAPE) < 0.5
    A = dj.operators.matrix(np.eye(keep.size)[keep.ravel()], SHAPE)
    x = np.random.default_rng(4).uniform(-0.8, 0.8, SHAPE).astype(np.float32)
    rows = [(jnp.asarray(x.ravel()[keep.ravel()]), A), (jnp.asarray(x * keep), dj.operators.Mask(jnp.asarray(keep, float)))]
    table, kernel = dj.timetables.diffpir(SCHEDULE, 6), dj.kernels.DDIM(SCHEDULE)
    admm = lambda *a: dj.methods.DiffPIR(*a, splitting="admm")
    for build in (dj.methods.DiffPIR, admm, dj.methods.PiGDM, dj.methods.DPS, dj.methods.Replacement, dj.methods.CCDF):
        a, b = (
            dj.sample(jax.random.key(0), build(prior(), dj.Measurement(y, op, 0.1)), table, SHAPE, kernel=kernel).x
            for y, op in rows
        )
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_ilvr_shares_low_frequencies():
    reference = jnp.asarray(np.random.default_rng(1).uniform(-0.8, 0.8, SHAPE), jnp.float32)
    table, kernel = dj.timetables.log_snr(SCHEDULE, 10), dj.kernels.DDPM(SCHEDULE)
    walk = lambda until: (
        dj.sample(
            jax.random.key(0),
            dj.methods.ilvr(prior(), reference, 2, until),
            table,
            jax.random.normal(jax.random.key(1), SHAPE),
            kernel=kernel,
        ).x
    )
    A = dj.operators.Downsample(2)
    np.testing.assert_allclose(A(walk(0.0)), A(reference), atol=1e-5)
    assert np.abs(A(walk(900.0)) - A(reference)).max() > 0.05  # let go at t = 900


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: dj.methods.DiffPIR(prior(), measured(dj.operators.from_function(lambda x: x[:2], SHAPE))), "cg_prox"),
        (lambda: dj.methods.DiffPIR(prior(), measured(), data="proximal"), "did you mean 'prox'"),
        (lambda: dj.methods.DiffPIR(prior(), measured(), splitting="adm"), "did you mean 'admm'"),
        (lambda: dj.methods.DiffPIR(prior(), measured(), iterations=0), "whole number >= 1"),
        (lambda: dj.methods.Replacement(prior(), measured(dj.operators.from_function(lambda x: x[:2], SHAPE))), "pinv"),
        (lambda: dj.methods.Blended(prior(), measured(dj.operators.Downsample(2), (2, 2, 1))), "needs a Mask"),
        (lambda: dj.methods.Resampling(prior(), measured(), particles=3, keep=4), "from 1 to 3"),
        (lambda: dj.methods.DPIR(prior(), measured(dj.operators.from_function(lambda x: x[:2], SHAPE))), "needs A.prox"),
        (lambda: dj.timetables.diffpir(SCHEDULE, 1), "from 2 to 1000"),
    ],
)
def test_errors_name_the_remedy(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


# --- Resampling ---------------------------------------------------------------------------------------------------------


def test_choice_of_particles():
    weights = jnp.asarray([0.5, 0.24, 0.16, 0.1, 0.0], jnp.float32)
    gumbel = jax.random.gumbel(jax.random.key(0), (2000, 5))
    chosen = np.asarray(jax.vmap(lambda g: choose(weights, g))(gumbel))
    counts = np.stack([np.bincount(c, minlength=5) for c in chosen])
    assert (counts.sum(1) == 5).all() and (counts >= [2, 1, 0, 0, 0]).all() and (counts[:, 4] == 0).all()
    assert (counts - [2, 1, 0, 0, 0] <= 1).all()  # the rest is drawn without replacement
    # two of (0.5, 0.2, 0.8, 0.5) without replacement, first and then among what is left
    w = np.array([0.5, 0.2, 0.8, 0.5])
    p = w / 2
    both = p + sum(p[j] * np.where(np.arange(4) == j, 0, w / (2 - w[j])) for j in range(4))
    error = (counts[:, :4] - [2, 1, 0, 0]).mean(0) - both
    assert np.abs(error).max() < 5 * 0.5 / np.sqrt(2000)


def test_more_particles_come_closer_to_the_posterior():
    """The error of the hidden half's mean, in posterior deviations, on a correlated prior."""
    C = 0.3 * np.exp(-0.1 * np.abs(np.subtract.outer(np.arange(16), np.arange(16)))) + 0.01 * np.eye(16)
    y = np.random.default_rng(0).multivariate_normal(np.zeros(16), C)
    known, hidden = slice(0, 8), slice(8, 16)
    gain = C[hidden, known] @ np.linalg.inv(C[known, known])
    e, V = np.linalg.eigh(C[hidden, hidden] - gain @ C[known, hidden])

    mask = dj.operators.Mask((np.arange(16) < 8).astype(np.float32).reshape(SHAPE))
    measurement = dj.Measurement(y.reshape(SHAPE).astype(np.float32), mask, value_range=(-3.0, 3.0))
    denoise = dj.priors.gaussian(np.zeros(SHAPE), covariance=C).denoiser(SCHEDULE)
    kernel, table, n = dj.kernels.DDIM(SCHEDULE), dj.timetables.log_snr(SCHEDULE, 30), 1024

    def error(particles):
        method = dj.methods.Resampling(denoise, measurement, particles=particles, bounds=(-5.0, 5.0))
        walk = lambda key: dj.sample(key, method, table, SHAPE, kernel=kernel).x
        x = jax.jit(jax.vmap(walk), compiler_options=QUICK)(jax.random.split(jax.random.key(0), n))
        z = (np.asarray(x).reshape(n, 16)[:, hidden].mean(0) - gain @ y[known]) @ V / np.sqrt(e)
        return np.sqrt((z**2).mean())

    # the rms of 8 means of n draws with unit variance moves by 1 / sqrt(8 n) per standard deviation
    few, many = error(1), error(32)
    assert few - many > 3 * np.sqrt(2 / (8 * n)), (few, many)


# --- DPIR ---------------------------------------------------------------------------------------------------------------


def test_dpir_is_its_recursion():
    noise_std, variance = 0.1, 0.3
    y = measured(noise_std=noise_std)
    table = dj.timetables.dpir(SCHEDULE, noise_std)
    method = dj.methods.DPIR(prior(variance=variance), y, lam=0.5)
    got = dj.sample(jax.random.key(0), method, table, SHAPE, kernel=dj.kernels.Marginal(SCHEDULE)).x
    m, z = np.asarray(y.A.mask), np.zeros(SHAPE)
    for ratio in np.geomspace(98 / 255, noise_std, 8):
        rho = 0.5 * noise_std**2 / ratio**2
        x = (m * y.y + rho * z) / (m**2 + rho)
        z = 0.2 + variance / (variance + ratio**2) * (x - 0.2)
    np.testing.assert_allclose(got, z, atol=1e-5)
    with pytest.raises(ValueError, match="Marginal"):
        dj.sample(jax.random.key(0), method, table, SHAPE, kernel=dj.kernels.DDIM(SCHEDULE))


def psnr(a, b):
    return -10 * np.log10(np.mean((np.clip(a, -1, 1) - b) ** 2) / 4)


def test_a_state_that_is_no_dncnn_is_refused():
    state = {
        f"conv{n}.{k}": np.zeros((4, 4 if n else 1, 3, 3) if k == "weight" else 4) for n in (0, 1) for k in ("weight", "bias")
    }
    with pytest.raises(ValueError, match=r"conv1.weight \(4, 4, 3, 3\) \(wanted \(1, 4, 3, 3\)\)"):
        converter.convert(state)
    with pytest.raises(ValueError, match="not a DnCNN"):
        converter.convert({"conv_in.weight": np.zeros((4, 1, 3, 3))})


def test_dncnn_denoises_the_photograph():
    """20.6 to 30.9 dB with noise of 25 grey levels, as the delivery of the weights measured with another implementation."""
    denoise, image = zoo.dncnn(), zoo.bundled.photograph()
    noisy = image + 50 / 255 * np.random.default_rng(0).standard_normal(image.shape).astype(np.float32)
    clean = np.asarray(jax.jit(denoise)(jnp.asarray(noisy), 50 / 255).x0)
    print(f"{psnr(noisy, image):.2f} dB -> {psnr(clean, image):.2f} dB")
    assert abs(psnr(noisy, image) - 20.60) < 0.1 and abs(psnr(clean, image) - 30.88) < 0.2


def test_dpir_with_dncnn_deblurs_a_photograph():
    image = jnp.asarray(zoo.bundled.photograph()[64:128, 64:128])
    A = dj.operators.Blur(dj.operators.gaussian_kernel(9, 1.6))
    y = A(image) + 0.05 * jax.random.normal(jax.random.key(0), image.shape)
    denoise = zoo.dncnn()
    method = dj.methods.DPIR(denoise, dj.Measurement(y, A, 0.05))
    table = dj.timetables.from_rows([(50 / 255, 50 / 255, 50 / 255)] * 6)
    walk = jax.jit(
        lambda m: dj.sample(jax.random.key(0), m, table, image.shape, kernel=dj.kernels.Marginal(denoise.schedule)).x
    )
    x = walk(method)
    print(f"{psnr(y, image):.2f} dB -> {psnr(x, image):.2f} dB")
    assert psnr(x, image) > psnr(y, image) + 2
