"""DDRM, DDNM and DDNM+ on a Gaussian prior: the exact law of their walks, and how far it is from the exact posterior.

Every operation is affine in the noise, so the sampler's own law follows from its Jacobian, to rounding. It is compared with a
recursion of mean and covariance written from the papers' formulas, in the variance-exploding coordinates of DDRM, and with
singular vectors of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quirks_spectral import SquaredAlpha, Stored, UnrotatedEps

import diffjax as dj
from diffjax.base import pytree

SHAPE, D, M, STD = (4, 4, 1), 16, 10, 0.3
RNG = np.random.default_rng(1)
PLACE = np.stack(np.divmod(np.arange(D), 4), 1)
COVARIANCE = 0.3 * np.exp(-0.25 * ((PLACE[:, None] - PLACE[None]) ** 2).sum(-1)) + 0.05 * np.eye(D)
MEAN = 0.3 * np.cos(np.arange(D))
RIGHT, LEFT = (np.linalg.qr(RNG.standard_normal((n, n)))[0] for n in (D, M))
S = np.append(np.geomspace(1, 0.05, 8), np.zeros(D - 8))  # two measurements see nothing
A = Stored(RIGHT, LEFT, S, SHAPE)
DENSE = LEFT @ (S[:M, None] * RIGHT.T[:M])
Y = DENSE @ RNG.multivariate_normal(MEAN, COVARIANCE) + STD * RNG.standard_normal(M)
VP = dj.schedules.discrete(dj.schedules.linear_betas(100))
# whether a row knows more or less than y then depends on the coefficient
GRID = dj.timetables.log_snr(VP, 12)
TRAVEL = dj.timetables.repaint(VP, jump=2, times=2, grid=dj.timetables.log_snr(VP, 8))

# --- the laws, from the papers -----------------------------------------------------------------------------------------


def denoised(t, covariance):
    """x0 = G x + g"""
    a, s = VP.alpha(t), VP.sigma(t)
    G = a * covariance @ np.linalg.inv(a**2 * covariance + s**2 * np.eye(D))
    return G, MEAN - a * G @ MEAN


def ddrm_row(t, s, G, g, eta, eta_b, std):
    """x_s = F x_t + f + N z of DDRM, section 3."""
    U, values, Vt = np.linalg.svd(DENSE)
    level_t, level = (VP.sigma(n) / VP.alpha(n) for n in (t, s))
    F, f, N = np.zeros((D, D)), np.zeros(D), np.zeros(D)
    for i in range(D):
        v, value = Vt[i], values[i] if i < M and values[i] > 1e-9 else 0.0
        to_x0, x0 = v @ G, v @ g
        own = v / VP.alpha(t)
        if value == 0:
            keep = np.sqrt(1 - eta**2) * level / level_t
            F[i], f[i], N[i] = to_x0 + keep * (own - to_x0), x0 - keep * x0, eta * level
            continue
        y = U[:, i] @ Y / value
        if level < std / value:
            keep = np.sqrt(1 - eta**2) * level / (std / value)
            F[i], f[i], N[i] = to_x0 - keep * to_x0, x0 + keep * (y - x0), eta * level
        else:
            F[i], f[i] = (1 - eta_b) * to_x0, (1 - eta_b) * x0 + eta_b * y
            N[i] = np.sqrt(level**2 - (std / value * eta_b) ** 2)
    alpha = VP.alpha(s)
    return alpha * Vt.T @ F, alpha * Vt.T @ f, alpha * Vt.T @ np.diag(N)


def ddrm_start(t, std):
    """Mean and covariance at the top."""
    U, values, Vt = np.linalg.svd(DENSE)
    level, m, v = VP.sigma(t) / VP.alpha(t), np.zeros(D), np.full(D, (VP.sigma(t) / VP.alpha(t)) ** 2)
    for i, value in enumerate(values):
        if value > 1e-9 and level >= std / value:
            m[i], v[i] = U[:, i] @ Y / value, level**2 - (std / value) ** 2
    return VP.alpha(t) * Vt.T @ m, VP.alpha(t) ** 2 * (Vt.T * v) @ Vt


def simplified_row(t, s, G, g, eta, std, ddpm=False):
    """x_s = F x_t + f + N z of DDNM+ with one lambda (DDNM for std = 0), by DDIM or the posterior q(x_s | x_t, x0)."""
    alpha, sigma = VP.alpha(s), VP.sigma(s)
    lam, left = (1, sigma**2 - (alpha * std) ** 2) if sigma >= alpha * std else (sigma / (alpha * std), 0)
    P = np.linalg.pinv(DENSE)
    K = np.eye(D) - lam * P @ DENSE
    to_x0, x0 = K @ G, K @ g + lam * P @ Y
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


def setup(name, std=STD):
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


def sampler(make, kernel, table, std, wrap=lambda d: d):
    """draws -> the walk's end, flat"""
    prior = dj.priors.gaussian(MEAN.reshape(SHAPE), covariance=COVARIANCE)
    method = make(wrap(prior.denoiser(VP)), dj.Measurement(jnp.asarray(Y), A, std, value_range=(-10.0, 10.0)))
    return method, lambda draws: dj.sample(None, method, kernel, table, SHAPE, recorded=draws, dtype=jnp.float64).x.reshape(-1)


def own_law(make, kernel, table, std, wrap=lambda d: d):
    with jax.enable_x64(True):
        method, run = sampler(make, kernel, table, std, wrap)
        draws = dj.draws(jax.random.key(0), method, kernel, table, SHAPE, jnp.float64)
        zero = jax.tree.map(jnp.zeros_like, draws)
        mean, pull = jax.vjp(jax.jit(run), zero)
        J = jax.vmap(lambda u: jnp.concatenate([a.reshape(-1) for a in jax.tree.leaves(pull(u))]))(jnp.eye(D))
        return np.asarray(mean), np.asarray(J @ J.T)


def deviation(name, make=None, wrap=lambda d: d):
    """Largest difference of the sampler's law from the paper's, in its standard deviations and variances."""
    default, kernel, table, std = setup(name)
    m, C = own_law(make or default, kernel, table, std, wrap)
    mean, covariance = LAWS[name]
    size = covariance.diagonal().max()
    return max(np.abs(m - mean).max() / np.sqrt(size), np.abs(C - covariance).max() / size)


@pytest.mark.parametrize("name", LAWS)
def test_the_law_of_the_walk(name):
    assert deviation(name) < 1e-9


@pytree
class HalfVariance(dj.methods.DDRM):
    def shaped(self, p, noise, row):
        return super().shaped(p, noise / np.sqrt(2), row)


@pytree
class HalfVariancePlus(dj.methods.DDNMPlus):
    def shaped(self, p, noise, row):
        return super().shaped(p, noise / np.sqrt(2), row)


@pytree
class NoEps(dj.methods.DDRM):
    kind: Any = 0

    def spectrum(self, c, e, z, u, s, std, move):
        return super().spectrum(c, 0 * e, z, u, s, std, move)


MUTANTS = {
    "half the variance, ddrm": ("ddrm", HalfVariance, None),
    "half the variance, ddnm+": ("ddnm+", HalfVariancePlus, None),
    "the noise's squared share": ("ddrm", lambda d, y: dj.methods.DDRM(d, y, 0.85**2), None),
    "no eps": ("ddrm", NoEps, None),
    "eps not transformed": ("ddnm+", dj.methods.DDNMPlus, lambda d: UnrotatedEps(d, jnp.asarray(RIGHT))),
    "travel from x": ("ddnm+", lambda d, y: dj.methods.DDNMPlus(d, y, travel="x"), None),
    "alpha squared": ("ddnm+simplified", lambda d, y: SquaredAlpha(d, y, form="simplified"), None),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_teeth_the_law_sees_mutants(mutant):
    name, make, wrap = MUTANTS[mutant]
    assert deviation(name, make, wrap or (lambda d: d)) > 1e-2
