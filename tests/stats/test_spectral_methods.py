"""DDRM, DDNM and DDNM+ on a Gaussian prior: the exact law of their walks, and how far it is from the exact posterior.

Every operation is affine in the noise, so the sampler's own law follows from its Jacobian, to rounding. It is compared with a
recursion of mean and covariance written from the papers' formulas, in the variance-exploding coordinates of DDRM, and with
singular vectors of its own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quirks_spectral import SquaredAlpha, Stored, UnrotatedEps

import diffjax as dj

SHAPE, D, M, STD = (4, 4, 1), 16, 10, 0.3
RNG = np.random.default_rng(1)
PLACE = np.stack(np.divmod(np.arange(D), 4), 1)
COVARIANCE = 0.3 * np.exp(-0.25 * ((PLACE[:, None] - PLACE[None]) ** 2).sum(-1)) + 0.05 * np.eye(D)
MEAN = 0.3 * np.cos(np.arange(D))
RIGHT, LEFT = (np.linalg.qr(RNG.standard_normal((n, n)))[0] for n in (D, M))
S = np.append(np.geomspace(1, 0.05, 8), np.zeros(D - 8))  # two measurements see nothing
A = Stored(RIGHT, LEFT, S, SHAPE)
DENSE = LEFT @ (S[:M, None] * RIGHT.T[:M])
U, VALUES, VT = np.linalg.svd(DENSE)  # vectors of its own
PINV = np.linalg.pinv(DENSE)
VALUES = np.append(np.where(VALUES > 1e-9, VALUES, 0), np.zeros(D - M))
Y = DENSE @ RNG.multivariate_normal(MEAN, COVARIANCE) + STD * RNG.standard_normal(M)
VP = dj.schedules.discrete(dj.schedules.linear_betas(1000))
# whether a row knows more or less than y then depends on the coefficient
GRID = dj.timetables.start_at(dj.timetables.log_snr(VP, 16), 250.0)  # a late start, which y shapes
TRAVEL = dj.timetables.repaint(VP, jump=2, times=2, grid=dj.timetables.log_snr(VP, 8))

# --- the laws, from the papers -----------------------------------------------------------------------------------------


def denoised(t, covariance):
    """x0 = G x + g"""
    a, s = VP.alpha(t), VP.sigma(t)
    G = a * covariance @ np.linalg.inv(a**2 * covariance + s**2 * np.eye(D))
    return G, MEAN - a * G @ MEAN


def ddrm_row(t, s, G, g, eta, eta_b, std):
    """x_s = F x_t + f + N z of DDRM, section 3."""
    alpha_t, alpha = VP.alpha(t), VP.alpha(s)
    level_t, level = VP.sigma(t) / alpha_t, VP.sigma(s) / alpha
    F, f, N = np.zeros((D, D)), np.zeros(D), np.zeros(D)
    for i, (v, value) in enumerate(zip(VT, VALUES)):
        to_x0, x0 = v @ G, v @ g
        if value == 0:
            keep = np.sqrt(1 - eta**2) * level / level_t
            F[i], f[i], N[i] = to_x0 + keep * (v / alpha_t - to_x0), x0 - keep * x0, eta * level
        elif level < std / value:
            keep = np.sqrt(1 - eta**2) * level / (std / value)
            F[i], f[i], N[i] = to_x0 - keep * to_x0, x0 + keep * (U[:, i] @ Y / value - x0), eta * level
        else:
            F[i], f[i] = (1 - eta_b) * to_x0, (1 - eta_b) * x0 + eta_b * U[:, i] @ Y / value
            N[i] = np.sqrt(level**2 - (std / value * eta_b) ** 2)
    return alpha * VT.T @ F, alpha * VT.T @ f, alpha * VT.T * N


def ddrm_start(t, std):
    """Mean and covariance at the top."""
    level = VP.sigma(t) / VP.alpha(t)
    m, v = np.zeros(D), np.full(D, level**2)
    for i, value in enumerate(VALUES):
        if value > 0 and level >= std / value:
            m[i], v[i] = U[:, i] @ Y / value, level**2 - (std / value) ** 2
    return VP.alpha(t) * VT.T @ m, VP.alpha(t) ** 2 * (VT.T * v) @ VT


def simplified_row(t, s, G, g, eta, std, ddpm=False):
    """x_s = F x_t + f + N z of DDNM+ with one lambda (DDNM for std = 0), by DDIM or the posterior q(x_s | x_t, x0)."""
    alpha, sigma = VP.alpha(s), VP.sigma(s)
    lam, left = (1, sigma**2 - (alpha * std) ** 2) if sigma >= alpha * std else (sigma / (alpha * std), 0)
    K = np.eye(D) - lam * PINV @ DENSE
    to_x0, x0 = K @ G, K @ g + lam * PINV @ Y
    if ddpm:
        c_0, c_t, c = dj.process.posterior(VP, t, s)
        return c_0 * to_x0 + c_t * np.eye(D), c_0 * x0, c * np.eye(D)
    keep = np.sqrt(left * (1 - eta**2)) / VP.sigma(t)
    F = alpha * to_x0 + keep * (np.eye(D) - VP.alpha(t) * G)
    return F, alpha * x0 - keep * VP.alpha(t) * g, eta * np.sqrt(left) * np.eye(D)


def law(row, table, start=None, travel="x0", covariance=COVARIANCE):
    """Mean and covariance at the end of the walk; ``row(t, s, G, g)`` -> (F, f, N)."""
    m, C = (np.zeros(D), np.eye(D)) if start is None else start(table.t[0])
    for t, s, r in zip(table.t, table.s, table.r):
        G, g = denoised(t, covariance)
        F, f, N = row(t, s, G, g)
        x0 = G @ m + g, G @ C @ G.T
        m, C = F @ m + f, F @ C @ F.T + N @ N.T
        if r > s and travel == "x0":
            m, C = VP.alpha(r) * x0[0], VP.alpha(r) ** 2 * x0[1] + VP.sigma(r) ** 2 * np.eye(D)
        elif r > s:
            a, c = dj.process.transition(VP, r, s)
            m, C = a * m, a**2 * C + c**2 * np.eye(D)
    return m, C


LAWS = {
    "ddrm": law(lambda *a: ddrm_row(*a, 0.85, 1.0, STD), GRID, lambda t: ddrm_start(t, STD)),
    "ddrm-shares": law(lambda *a: ddrm_row(*a, 0.6, 0.7, STD), GRID, lambda t: ddrm_start(t, STD)),
    "ddrm-noiseless": law(lambda *a: ddrm_row(*a, 0.85, 1.0, 0.0), GRID, lambda t: ddrm_start(t, 0.0)),
    "ddnm+": law(lambda *a: ddrm_row(*a, 0.85, 1.0, STD), TRAVEL),
    "ddnm+simplified": law(lambda *a: simplified_row(*a, 0.85, STD), TRAVEL),
    "ddnm": law(lambda *a: simplified_row(*a, 0.85, 0.0), TRAVEL, travel="x"),
    "ddnm-ddpm": law(lambda *a: simplified_row(*a, None, 0.0, ddpm=True), TRAVEL),
}

# --- the sampler's own -------------------------------------------------------------------------------------------------


def setup(name):
    """(make(denoise, measurement), kernel, table, noise_std)"""
    m, K = dj.methods, dj.kernels
    return {
        "ddrm": (m.DDRM, K.Marginal(VP), GRID, STD),
        "ddrm-shares": (lambda d, y: m.DDRM(d, y, 0.6, 0.7), K.Marginal(VP), GRID, STD),
        "ddrm-noiseless": (m.DDRM, K.Marginal(VP), GRID, 0.0),
        "ddnm+": (m.DDNMPlus, K.Marginal(VP), TRAVEL, STD),
        "ddnm+simplified": (lambda d, y: m.DDNMPlus(d, y, form="simplified"), K.Marginal(VP), TRAVEL, STD),
        "ddnm": (lambda d, y: m.DDNM(d, y, travel="x"), K.DDIM(VP, zeta=0.85**2), TRAVEL, 0.0),
        "ddnm-ddpm": (m.DDNM, K.DDPM(VP), TRAVEL, 0.0),
    }[name]


PRIOR = dj.priors.gaussian(MEAN.reshape(SHAPE), covariance=COVARIANCE)


@functools.lru_cache
def own(name, make=None, wrap=lambda d: d):
    """(mean, Jacobian by the start, by the rows' draws, by the jumps') of the sampler's end."""
    default, kernel, table, std = setup(name)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def jacobian(method, draws):
        run = lambda draws: dj.sample(None, method, table, SHAPE, kernel=kernel, recorded=draws, dtype=jnp.float64).x.reshape(
            -1
        )
        mean, pull = jax.vjp(run, draws)
        return mean, jax.vmap(lambda u: pull(u)[0])(jnp.eye(D))

    with jax.enable_x64(True):
        measured = dj.Measurement(jnp.asarray(Y), A, std, value_range=(-10.0, 10.0))
        method = (make or default)(wrap(PRIOR.denoiser(VP)), measured)
        method.check(kernel, table)
        zero = jnp.zeros((len(table), *SHAPE))
        mean, J = jacobian(method, dj.Draws(zero[0], zero, zero if table.jumps else None))
        flat = lambda a: np.zeros((D, 1)) if a is None else np.asarray(a).reshape(D, -1)
        return np.asarray(mean), flat(J.start), flat(J.rows), flat(J.jumps)


def deviation(name, found, rows=1.0):
    """Largest difference of the sampler's law from the paper's, in its standard deviations and variances; ``rows``: scale of
    the rows' noise."""
    m, start, moves, jumps = found
    C = start @ start.T + rows**2 * moves @ moves.T + jumps @ jumps.T
    mean, covariance = LAWS[name]
    size = covariance.diagonal().max()
    return max(np.abs(m - mean).max() / np.sqrt(size), np.abs(C - covariance).max() / size)


@pytest.mark.parametrize("name", LAWS)
def test_the_law_of_the_walk(name):
    assert deviation(name, own(name)) < 1e-9


@pytest.mark.parametrize("name", LAWS)
def test_teeth_half_the_variance(name):
    assert deviation(name, own(name), rows=np.sqrt(0.5)) > 1e-2


@dj.base.pytree
class FromNoise(dj.methods.DDNMPlus):
    """Its start forgets y, and nobody minds."""

    def starts_anywhere(self):
        return True


MUTANTS = {
    "eps not transformed": ("ddnm+", dj.methods.DDNMPlus, lambda d: UnrotatedEps(d, jnp.asarray(RIGHT))),
    "travel from x": ("ddnm+", lambda d, y: dj.methods.DDNMPlus(d, y, travel="x"), lambda d: d),
    "alpha squared": ("ddnm+simplified", lambda d, y: SquaredAlpha(d, y, form="simplified"), lambda d: d),
    "no start from y": ("ddrm", FromNoise, lambda d: d),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_teeth_the_law_sees_mutants(mutant):
    name, make, wrap = MUTANTS[mutant]
    assert deviation(name, own(name, make, wrap)) > 1e-2


# --- against the posterior ---------------------------------------------------------------------------------------------

# coefficients that y sees and those that it hides are independent
INDEPENDENT = RIGHT @ np.diag(np.linspace(0.05, 0.5, D)) @ RIGHT.T


def spread(row, rows, std, start=None, covariance=COVARIANCE):
    """(geometric mean of the variances over the posterior's, along its principal directions; rms error of the mean in its
    standard deviations)"""
    prior = dj.priors.gaussian(MEAN.reshape(SHAPE), covariance=covariance)
    mean, exact = prior.condition(DENSE, Y, std).moments()
    m, C = law(row, dj.timetables.log_snr(VP, rows), start, covariance=covariance)
    e, V = np.linalg.eigh(exact)
    free = e > 1e-9 * e.max()
    ratio = (V.T @ C @ V).diagonal()[free] / e[free]
    z = (V.T @ (m - mean.reshape(-1)))[free] / np.sqrt(e[free])
    return np.exp(np.log(ratio).mean()), np.sqrt((z**2).mean())


@pytest.mark.parametrize("eta", [0.0, 0.85, 1.0])
def test_the_share_of_fresh_noise_narrows_what_y_hides(eta):
    """By (1 + sqrt(1 - eta^2)) / 2 in the limit of many steps: the stationary variance of x <- k x + sigma eta z with
    k = 1 - sigma^2 / v (1 - sqrt(1 - eta^2)), v = alpha^2 lambda + sigma^2, over v, as sigma goes to 0."""
    row, start = lambda *a: ddrm_row(*a, eta, 1.0, 0.0), lambda t: ddrm_start(t, 0.0)
    errors = []
    for rows in (100, 400):
        variance, mean = spread(row, rows, 0.0, start, INDEPENDENT)
        errors.append(abs(variance - (1 + np.sqrt(1 - eta**2)) / 2))
        assert mean < 0.01
    assert errors[1] < min(0.015, 0.3 * errors[0])  # first order in the step


def test_ddnm_by_ddpm_is_exact_in_the_limit():
    errors = []
    for rows in (100, 400):
        variance, mean = spread(lambda *a: simplified_row(*a, None, 0.0, ddpm=True), rows, 0.0, None, INDEPENDENT)
        errors.append(abs(variance - 1))
        assert mean < 0.01
    assert errors[1] < min(0.03, 0.3 * errors[0])


def test_the_stated_bias_with_noise():
    """Too narrow by half at the defaults; the simplified form falls to y's noise where s < 1."""
    row, start = lambda *a: ddrm_row(*a, 0.85, 1.0, STD), lambda t: ddrm_start(t, STD)
    for rows in (20, 100):
        variance, _ = spread(row, rows, STD, start)
        print(f"DDRM, DDNM+ at their defaults, {rows} rows: {variance:.2f} of the posterior's variance")
        assert 0.35 < variance < 0.55
    variance, mean = spread(lambda *a: simplified_row(*a, 0.85, STD), 100, STD)
    assert variance < 0.05 and mean > 2


@pytest.mark.parametrize("name", ["ddrm-noiseless", "ddnm", "ddnm-ddpm"])
def test_noiseless_results_fit_y(name):
    mean, *J = own(name)
    np.testing.assert_allclose(DENSE @ mean, Y - LEFT[:, 8:] @ (LEFT[:, 8:].T @ Y), atol=1e-9)
    assert max(np.abs(DENSE @ j).max() for j in J) < 1e-9
