"""MMPS and PiGDM against exact posteriors. With a Gaussian prior a deterministic walk is an affine map of its start, so the
mean and covariance of its samples are computed from that map: no Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj

SHAPE = (4, 4, 1)
D = 16
SCHEDULE = dj.schedules.discrete(dj.schedules.linear_betas(1000))


def prior(white=None):
    rng = np.random.default_rng(0)
    mean = 0.3 * rng.standard_normal(SHAPE)
    if white is not None:
        return dj.priors.gaussian(mean, variance=white**2 * np.ones(SHAPE))
    F = rng.standard_normal((D, D)) * np.geomspace(1, 0.05, D)
    return dj.priors.gaussian(mean, covariance=0.05 * F @ F.T + 1e-3 * np.eye(D))


def operators():
    rng = np.random.default_rng(1)
    mask = jnp.asarray(rng.random(SHAPE) < 0.6, jnp.float64)
    M = rng.standard_normal((6, D)) / 3
    return {
        "mask": dj.operators.Mask(mask),
        "means": dj.operators.Downsample(2),
        "function": dj.operators.from_function(lambda x, M: M.astype(x.dtype) @ x.reshape(-1), SHAPE, jnp.asarray(M)),
    }


def measure(p, A, noise_std, seed=2):
    x = p.sample(jax.random.key(seed), jnp.float64)
    y = A(x)
    hidden = 0 if not isinstance(A, dj.operators.Mask) else 1 - A.weights(x)
    y = y + noise_std * jax.random.normal(jax.random.key(seed + 1), y.shape, y.dtype) + 3.0 * hidden  # never looked at
    return dj.Measurement(y, A, noise_std, value_range=(-9.0, 9.0))


def exact(p, m):
    """The posterior as a prior of its own."""
    M = np.asarray(jax.vmap(m.A)(jnp.eye(D).reshape(D, *SHAPE)).reshape(D, -1).T)
    y = np.asarray(m.y).reshape(-1)
    rows = np.abs(M).sum(1) > 0
    return p.condition(M[rows], y[rows], m.noise_std)


@pytest.mark.parametrize("noise_std", [0.02, 0.3])
@pytest.mark.parametrize("name", ["mask", "means", "function"])
def test_prediction_is_the_exact_posterior_mean_for_a_gaussian_prior(name, noise_std):
    with jax.enable_x64(True):
        p = prior()
        m = measure(p, operators()[name], noise_std)
        method = dj.methods.MMPS(p.denoiser(SCHEDULE), m, iterations=D)
        target = exact(p, m).denoiser(SCHEDULE)
        one = jax.jit(lambda x, t: (method.predict(x, t), target(x, t)))
        for t in (1.0, 30.5, 400.0, 1000.0):
            x = jax.random.normal(jax.random.key(int(t)), SHAPE, jnp.float64)
            got, want = one(x, jnp.asarray(t))
            np.testing.assert_allclose(got.x0, want.x0, rtol=0, atol=1e-7)
            np.testing.assert_allclose(SCHEDULE.alpha(t) * got.x0 + SCHEDULE.sigma(t) * got.eps, x, rtol=0, atol=1e-12)


def affine(method, kernel, table):
    """(mean, covariance) of the results of a walk that is affine in its start."""
    walk = lambda x: dj.sample(jax.random.key(0), method, table, x, kernel=kernel).x.reshape(-1)
    starts = jnp.concatenate([jnp.zeros((1, D)), jnp.eye(D)]).reshape(D + 1, *SHAPE)
    ends = np.asarray(jax.jit(jax.vmap(walk))(starts))
    M = (ends[1:] - ends[0]).T
    return ends[0], M @ M.T


def distance(method, kernel, rows, posterior):
    """Errors of the mean in posterior deviations (rms), and of the whitened covariance (largest of its log-eigenvalues). The
    walk goes down to sigma = 0.002: the last step loses the variance below it, and the table's own end, 0.01, is too high."""
    mean, covariance = affine(method, kernel, dj.timetables.log_snr(SCHEDULE, rows, t_min=0.2))
    m, S = posterior.moments()
    e, V = np.linalg.eigh(S)
    W = V / np.sqrt(e)
    values = np.linalg.eigvalsh(W.T @ covariance @ W)
    return np.sqrt((((mean - m.reshape(-1)) @ W) ** 2).mean()), np.abs(np.log(values)).max()


def test_samples_approach_the_exact_posterior():
    with jax.enable_x64(True):
        p = prior()
        m = measure(p, operators()["means"], 0.1)
        posterior = exact(p, m)
        method = dj.methods.MMPS(p.denoiser(SCHEDULE), m)
        second, first = dj.kernels.DPMSolverPP2M(SCHEDULE), dj.kernels.DDIM(SCHEDULE)
        mean, spread = distance(method, second, 100, posterior)
        assert mean < 0.01
        assert spread < 0.02  # of the log-variance, in every direction
        coarse, fine = (distance(method, first, rows, posterior)[1] for rows in (25, 100))
        assert spread < fine < 0.5 * coarse  # DDIM comes closer as 1 / rows
        # teeth: two steps of the solver, another noise level or a cut in the data step are seen
        wrong = {
            "one solver step": dj.base.replace(method, iterations=1),
            "noise_std": dj.base.replace(method, measurement=dj.base.replace(m, noise_std=0.13)),
        }
        for name, other in wrong.items():
            assert max(distance(other, second, 100, posterior)) > 0.1, name


def test_solve_residual_is_reported_and_falls_with_iterations():
    with jax.enable_x64(True):
        p = prior()
        m = measure(p, operators()["mask"], 0.05)
        kernel, table = dj.kernels.DDIM(SCHEDULE), dj.timetables.log_snr(SCHEDULE, 8)
        left = []
        for iterations in (1, 4, D):
            method = dj.methods.MMPS(p.denoiser(SCHEDULE), m, iterations=iterations)
            assert method.products(kernel) == iterations
            x = jnp.zeros(SHAPE)
            left.append(float(dj.sample(jax.random.key(0), method, table, x, kernel=kernel).info.rows["solve_residual"].max()))
        assert left[0] > left[1] > 1e-6 > left[2]


def test_the_solver_never_leaves_more_than_it_found():
    """Right for any regular matrix in as many steps as it has rows, with the least residual on the way; and for no matrix,
    symmetric or not, positive or not, is the residual larger than at the start."""
    from diffjax.methods.common import least_residual

    rng = np.random.default_rng(0)
    M, b = rng.normal(size=(6, 6)), jnp.asarray(rng.normal(size=6))
    positive = M @ M.T + np.eye(6)
    krylov = lambda K, n: np.stack([np.linalg.matrix_power(K, k) @ b for k in range(n)], 1)
    with jax.enable_x64(True):
        solve = jax.jit(lambda K, n: least_residual(lambda p: (K @ p, 2 * p), jnp.asarray(b, float), n), static_argnums=1)
        turn, shift = np.kron(np.eye(3), [[0.0, 1], [-1, 0]]), np.roll(np.eye(6), 1, 0)
        stalling = turn, shift, M - M.T, np.diag([1.0, -1, 1, -1, 1, -1]), np.diag([1.0, -2, 3, -4, 5, -6]) / 6
        for K in (positive, M, M - 3 * np.eye(6), np.diag([1.0, 1, 2, 2, 3, 3]), *stalling):
            for n in (1, 2, 3, 6, 10):
                u, twice, left = solve(K, n)
                best = krylov(K, min(n, 6)) @ np.linalg.lstsq(K @ krylov(K, min(n, 6)), b)[0]
                np.testing.assert_allclose(left, np.linalg.norm(K @ u - b) / np.linalg.norm(b), atol=1e-9)
                np.testing.assert_allclose(K @ u, K @ best, atol=1e-6)
                np.testing.assert_allclose(twice, 2 * u)
        for K in (np.zeros((6, 6)), np.outer(b, b)):
            u, _, left = solve(K, 10)
            assert left <= 1 and np.isfinite(u).all()
        z = np.ones(2)  # <z, K z> is exactly 0
        assert least_residual(lambda p: (jnp.array([1.0, -1.0]) * p, p), jnp.asarray(z), 2)[2] < 1e-12
        z = np.exp(1j * np.arange(3))  # complex measurements
        u, _, left = least_residual(lambda p: ({"a": 2 * p["a"]}, p), {"a": jnp.asarray(z)}, 2)
        np.testing.assert_allclose(u["a"], z / 2)


def test_the_solver_stays_finite_once_it_is_done():
    """In float32, long after rounding errors are all that is left, for decaying spectra over a floor of noise."""
    from diffjax.methods.common import least_residual

    solve = jax.jit(lambda K, b, n: least_residual(lambda p: (jnp.matmul(K, p), p), b, n), static_argnums=2)
    rng = np.random.default_rng(1)
    Q = np.linalg.qr(rng.normal(size=(50, 50)))[0]
    for floor, lowest in ((1e-4, 1e-9), (1e-4, 1e-2), (1.0, 1e-3)):
        K = jnp.asarray(Q * (floor + np.geomspace(1, lowest, 50)) @ Q.T, jnp.float32)
        for b in (Q[:, 0] + 0.1 * Q[:, 1], rng.normal(size=50)):
            for n in (3, 10, 30):
                u, _, left = solve(K, jnp.asarray(b, jnp.float32), n)
                true = np.linalg.norm(np.asarray(K, float) @ np.asarray(u, float) - b) / np.linalg.norm(b)
                assert left <= 1 and abs(left - true) < 2e-3
                assert np.linalg.norm(u) <= 2 * np.linalg.norm(b) / floor


@pytest.mark.parametrize("noise_std", [0.0, 0.2])
@pytest.mark.parametrize("name", ["mask", "means"])
def test_pigdm_is_exact_for_white_priors(name, noise_std):
    with jax.enable_x64(True):
        p = prior(white=0.4)
        m = measure(p, operators()[name], noise_std)
        exactly = dj.methods.PiGDM(p.denoiser(SCHEDULE), m, prior_std=0.4, weight="bayes")
        other = dj.base.replace(exactly, prior_std=1.0)
        target = exact(p, m).denoiser(SCHEDULE)
        all_three = jax.jit(lambda x, t: (target(x, t).x0, exactly.predict(x, t).x0, other.predict(x, t).x0))
        for t in (5.0, 300.0, 900.0):
            x = jax.random.normal(jax.random.key(int(t)), SHAPE, jnp.float64)
            want, got, wide = all_three(x, jnp.asarray(t))
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
        assert noise_std == 0 or np.abs(wide - want).max() > 1e-3


def test_pigdm_moves_as_published():
    """DDIM on the default: alpha_s x0_hat + sigma_s eps + alpha_s alpha_t J A^+ (y - A x0_hat), noise-free."""
    with jax.enable_x64(True):
        p = prior()
        m = measure(p, operators()["means"], 0.0)
        denoise, t, s = p.denoiser(SCHEDULE), 500.0, 400.0
        x = jax.random.normal(jax.random.key(0), SHAPE, jnp.float64)
        alpha_s, sigma_s = SCHEDULE.alpha(s), SCHEDULE.sigma(s)

        @jax.jit
        def moved(x):
            plain = denoise(x, t)
            J = jax.jacobian(lambda x: denoise(x, t).x0)(x).reshape(D, D)
            g = (J.T @ m.A.pinv(m.y - m.A(plain.x0)).reshape(-1)).reshape(SHAPE)
            return alpha_s * plain.x0 + sigma_s * plain.eps + alpha_s * SCHEDULE.alpha(t) * g

        want = moved(x)
        table = dj.timetables.from_times([t, s])
        got = dj.sample(jax.random.key(1), dj.methods.PiGDM(denoise, m), table, x, kernel=dj.kernels.DDIM(SCHEDULE)).x
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
