"""Priors whose denoiser, score, density and posterior are known exactly: Gaussians and mixtures of Gaussians.

    p(x) = sum_k w_k N(x; mu_k, Q_k diag(lam_k) Q_k^T)

A sampler run on one has a perfect network, so what is left is its own error; and given y = A x + noise the answer is a
mixture too (:meth:`Mixture.condition`), with the same methods. With x_t = alpha x_0 + sigma eps and
d_k = Q_k^T (x_t - alpha mu_k), v_k = alpha^2 lam_k + sigma^2, component k contributes, weighted by its responsibility for x_t,

    x0:  mu_k + Q_k (alpha lam_k / v_k) d_k          eps:  Q_k (sigma / v_k) d_k          score:  -Q_k d_k / v_k

Nothing is divided by sigma or alpha: both may be 0. Source: Bishop 2006, sections 2.3.1 to 2.3.3.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .base import Prediction, host, is_concrete, namespace, normal, pytree, safe_divide, safe_sqrt, static

HIGHEST = jax.lax.Precision.HIGHEST


def _norm_log(a):
    """log, and -inf with derivative 0 where a = 0."""
    positive = a > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, a, 1)), -jnp.inf)


@pytree
class Mixture:
    """A mixture of K Gaussians over images of ``shape`` with d pixels; built by :func:`mixture` or :func:`gaussian`.

    weights      (K,), sum 1
    centres      (K, d): Q_k^T mu_k, the means in the eigenbasis of their component
    eigenvalues  (K, d): variances along that eigenbasis; 0 = a direction that is known exactly
    bases        (G, d, d), columns are eigenvectors, shared by the components of a group; None: the pixel basis
    group        static, (K,): which basis belongs to a component
    Methods take ONE image (batches: ``jax.vmap``) in any float dtype and answer in it; alpha
    and sigma are scalars. ValueError for an image of another shape.
    """

    weights: Any
    centres: Any
    eigenvalues: Any
    bases: Any = None
    shape: tuple = static(default=())
    group: tuple = static(default=())

    @property
    def means(self):
        """(K, *shape)"""
        return self._rotate_back(self.centres).reshape(-1, *self.shape)

    def _rotate_back(self, z):
        """(K, d) coordinates in the components' eigenbases -> pixels."""
        if self.bases is None:
            return z
        xp = namespace(z, self.bases)
        by_group = [self.bases[g] for g in self.group]
        product = np.matmul if xp is np else lambda a, b: jnp.matmul(a, b, precision=HIGHEST)
        return xp.stack([product(Q, z[k]) for k, Q in enumerate(by_group)])

    def _components(self, x, alpha, sigma):
        """(d_k, v_k, log w_k N(x; k)) of the noisy mixture at ``x``: (K, d), (K, d), (K,)."""
        if x.shape != self.shape:
            raise ValueError(f"x has shape {x.shape}, the prior's images {self.shape}: give one image, batches by jax.vmap")
        w, centres, lam = (jnp.asarray(a).astype(x.dtype) for a in (self.weights, self.centres, self.eigenvalues))
        z = x.reshape(1, -1)
        if self.bases is not None:
            z = jnp.einsum("gij,i->gj", jnp.asarray(self.bases).astype(x.dtype), z[0], precision=HIGHEST)[np.array(self.group)]
        d = z - alpha * centres
        v = alpha**2 * lam + sigma**2
        log_v = jnp.log(jnp.where(v > 0, v, 1))  # v = 0, sigma = 0: the density is the one on the support
        logits = _norm_log(w) - 0.5 * (safe_divide(d**2, v) + log_v).sum(1)
        return d, v, logits

    def _to_pixels(self, r, *terms):
        """sum_k r_k Q_k term_k for each (K, d) term, as images."""
        stacked = jnp.stack(terms)  # (n, K, d)
        if self.bases is None:
            out = jnp.einsum("k,nkd->nd", r, stacked, precision=HIGHEST)
        else:
            member = np.equal.outer(np.arange(len(self.bases)), np.array(self.group)).astype(np.float32)
            of_group = jnp.einsum("gk,nkd->ngd", jnp.asarray(member, r.dtype) * r, stacked, precision=HIGHEST)
            out = jnp.einsum("gij,ngj->ni", jnp.asarray(self.bases).astype(r.dtype), of_group, precision=HIGHEST)
        return out.reshape(-1, *self.shape)

    def responsibilities(self, x, alpha=1.0, sigma=0.0):
        """p(component k | x_t = x), (K,)."""
        x, alpha, sigma = _typed(x, alpha, sigma)
        return jax.nn.softmax(self._components(x, alpha, sigma)[2])

    def log_density(self, x, alpha=1.0, sigma=0.0):
        """log p_t(x) of x_t = alpha x_0 + sigma eps, a scalar in nats; by default log p(x_0)."""
        x, alpha, sigma = _typed(x, alpha, sigma)
        logits = self._components(x, alpha, sigma)[2]
        return jax.nn.logsumexp(logits) - 0.5 * x.size * math.log(2 * math.pi)

    def score(self, x, alpha=1.0, sigma=0.0):
        """grad_x log p_t(x), in closed form: exact at sigma = 0 too."""
        x, alpha, sigma = _typed(x, alpha, sigma)
        d, v, logits = self._components(x, alpha, sigma)
        return self._to_pixels(jax.nn.softmax(logits), -safe_divide(d, v))[0]

    def denoise(self, x, alpha, sigma):
        """(E[x_0 | x_t = x], E[eps | x_t = x])."""
        x, alpha, sigma = _typed(x, alpha, sigma)
        d, v, logits = self._components(x, alpha, sigma)
        centres, lam = (jnp.asarray(a).astype(x.dtype) for a in (self.centres, self.eigenvalues))
        x0, eps = self._to_pixels(jax.nn.softmax(logits), centres + safe_divide(alpha * lam, v) * d, safe_divide(sigma, v) * d)
        return x0, eps

    def denoiser(self, schedule) -> ExactDenoiser:
        """The perfect network: ``denoise(x, t) -> Prediction`` at the times of ``schedule``."""
        return ExactDenoiser(self, schedule)

    def sample(self, key, dtype=jnp.float32):
        """One exact draw, of ``shape``. Many: ``jax.vmap(prior.sample)(jax.random.split(key, n))``."""
        key_component, key_noise = jax.random.split(key)
        w, centres, lam = (jnp.asarray(a).astype(dtype) for a in (self.weights, self.centres, self.eigenvalues))
        k = jax.random.categorical(key_component, _norm_log(w))
        z = centres[k] + safe_sqrt(lam[k]) * normal(key_noise, lam.shape[1:], dtype)
        if self.bases is not None:  # rotate with every basis and choose: choosing a basis first would copy it per draw
            bases = jnp.asarray(self.bases).astype(dtype)
            z = jnp.einsum("gij,j->gi", bases, z, precision=HIGHEST)[jnp.asarray(self.group)[k]]
        return z.reshape(self.shape)

    def moments(self):
        """(mean, of ``shape``; covariance (d, d) of the row-major pixels), exact. float64 numpy where all is concrete."""
        xp = namespace(self)
        w, lam = self.weights, self.eigenvalues
        means = self._rotate_back(self.centres)
        mean = (w[:, None] * means).sum(0)
        off = means - mean
        if self.bases is None:
            within = xp.diag((w[:, None] * lam).sum(0))
        else:
            mixed = [sum(w[k] * lam[k] for k in range(len(self.group)) if self.group[k] == g) for g in range(len(self.bases))]
            within = sum((Q * e) @ Q.T for Q, e in zip(self.bases, mixed))
        return mean.reshape(self.shape), within + (w[:, None] * off).T @ off

    def condition(self, A, y, noise_std) -> Mixture:
        """The exact posterior p(x | y) for y = A x + noise_std * unit noise, a Mixture with its own weights and eigenbases.

        A:          matrix (m, d) over row-major pixels, or a linear operator of one image (made a matrix by mapping the
                    identity through it; rounded to float32 unless float64 is enabled)
        y:          m values, any shape; may be traced
        noise_std:  one standard deviation in y's units, >= 0; 0 gives eigenvalues 0 in the directions that y determines
        Computed in float64 on the host where A, noise_std and the prior are concrete: O(d^3) per distinct covariance.
        Raises ValueError for sizes that do not fit or a negative noise_std.
        """
        A = host(_as_matrix(A, self.shape))
        noise_std, y = host(noise_std), host(y)
        d = self.centres.shape[1]
        y = y.reshape(-1)
        if A.ndim != 2 or A.shape != (y.size, d):
            raise ValueError(f"A of shape {A.shape} does not take {d} pixels to {y.size} measurements: give ({y.size}, {d})")
        if np.ndim(noise_std) != 0 or (is_concrete(noise_std) and not noise_std >= 0):
            raise ValueError(f"noise_std {noise_std} is not one standard deviation >= 0 in the units of y")
        means = self._rotate_back(self.centres)
        done, group, log_w, centres, lams, bases = {}, [], [], [], [], []
        for k, lam in enumerate(self.eigenvalues):
            name = (self.group[k], lam.tobytes()) if is_concrete(lam) else k  # equal covariances share one eigenbasis
            if name not in done:
                Q = None if self.bases is None else self.bases[self.group[k]]
                done[name] = (len(bases), *_posterior_covariance(Q, lam, A, noise_std))
                bases.append(done[name][2])
            g, eigenvalues, Q, gain, U, total = done[name]
            xp = namespace(y, gain, means)
            u = U.T @ (y - A @ means[k])
            logs = xp.where(total > 0, xp.log(xp.where(total > 0, total, 1.0)), 0.0)
            log_w.append(xp.log(self.weights[k]) - 0.5 * (safe_divide(u**2, total) + logs).sum())
            centres.append(Q.T @ (means[k] + gain @ u))
            lams.append(eigenvalues)
            group.append(g)
        xp = namespace(log_w, centres, lams, bases)
        log_w = xp.stack(log_w)
        w = xp.exp(log_w - log_w.max())
        return Mixture(w / w.sum(), xp.stack(centres), xp.stack(lams), xp.stack(bases), self.shape, tuple(group))


@pytree
class ExactDenoiser:
    """E[x_0 | x_t] and E[eps | x_t] of a prior under a schedule, as a denoiser for one image."""

    prior: Mixture
    schedule: Any

    def __call__(self, x, t) -> Prediction:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        x0, eps = self.prior.denoise(x, alpha, sigma)
        return Prediction(x0, eps, None, x, alpha, sigma)


def gaussian(mean, variance=None, *, covariance=None, basis=None, eigenvalues=None) -> Mixture:
    """One Gaussian as a :class:`Mixture`. mean: of any image shape; the rest as in :func:`mixture`, without the axis K."""
    one = lambda a: None if a is None else namespace(a).asarray(a)[None]
    return mixture([1.0], one(mean), one(variance), covariances=one(covariance), bases=basis, eigenvalues=one(eigenvalues))


def mixture(weights, means, variances=None, *, covariances=None, bases=None, eigenvalues=None, group=None) -> Mixture:
    """A mixture of K Gaussians over images. Say the covariances in one of three ways:

    weights      (K,) >= 0, normalised here
    means        (K, *shape)
    variances    (K, *shape), or anything that broadcasts to it: independent pixels
    covariances  (d, d) or (K, d, d) of the row-major pixels: decomposed here (float64 on the host where concrete)
    bases        (d, d) or (G, d, d), columns orthonormal eigenvectors, with ``eigenvalues`` (K, d), or what broadcasts to it;
                 ``group`` (K,) says which basis is whose (default: one basis for all, or one each)
    Arrays may be traced; concrete ones are kept in float64 and checked. Raises ValueError for shapes that do not fit, a
    missing or doubled covariance, negative weights or variances, and a matrix that is not symmetric, positive or orthonormal.
    """
    weights, means, variances, covariances, bases, eigenvalues = (
        None if a is None else host(a) for a in (weights, means, variances, covariances, bases, eigenvalues)
    )
    if sum(a is not None for a in (variances, covariances, bases)) != 1 or (bases is None) != (eigenvalues is None):
        raise ValueError("give exactly one of variances, covariances, or bases with eigenvalues")
    if means.ndim < 1 or weights.shape != means.shape[:1] or not len(means):
        raise ValueError(f"weights {weights.shape} and means {means.shape} do not fit: give (K,) and (K, *shape), K >= 1")
    K, shape, d = len(means), means.shape[1:], math.prod(means.shape[1:])
    if is_concrete(weights) and not (np.all(weights >= 0) and 0 < weights.sum() < np.inf):
        raise ValueError(f"weights {weights} do not normalise: give numbers >= 0, not all 0")
    if group is not None and bases is None:
        raise ValueError(f"group {group} belongs to bases, which are not given: leave it out")
    if variances is not None:
        eigenvalues = _broadcast(variances, (K, *shape), "variances").reshape(K, d)
    elif covariances is not None:
        eigenvalues, bases = _eigenbases(covariances, d)
        if len(bases) not in (1, K):
            raise ValueError(f"{len(bases)} covariances for {K} components: give one for all or one each")
        eigenvalues = _broadcast(eigenvalues, (K, d), "covariances")
    else:
        bases = bases[None] if bases.ndim == 2 else bases
        eigenvalues = _broadcast(eigenvalues, (K, d), "eigenvalues")
        _check_bases(bases, d)
    default = (0,) * K if bases is None or len(bases) == 1 else range(K)
    group = tuple(int(g) for g in (default if group is None else group))
    if bases is not None and (len(group) != K or not all(0 <= g < len(bases) for g in group)):
        raise ValueError(f"group {group} does not name one of {len(bases)} bases for each of {K} components")
    if is_concrete(eigenvalues) and not np.all(eigenvalues >= 0):
        raise ValueError(f"a variance is {np.min(eigenvalues):.4g}: give numbers >= 0")
    flat = means.reshape(K, d)
    centres = flat if bases is None else namespace(flat, bases).stack([flat[k] @ bases[g] for k, g in enumerate(group)])
    return Mixture(weights / weights.sum(), centres, eigenvalues, bases, tuple(shape), group)


def _typed(x, alpha, sigma):
    x = jnp.asarray(x)
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
    return x, jnp.asarray(alpha).astype(x.dtype), jnp.asarray(sigma).astype(x.dtype)


def _broadcast(a, shape, name):
    try:
        return namespace(a).broadcast_to(a, shape)
    except ValueError:
        raise ValueError(f"{name} of shape {a.shape} do not fit: give {shape}") from None


def _check_bases(bases, d):
    if bases.ndim != 3 or bases.shape[1:] != (d, d):
        raise ValueError(
            f"bases of shape {bases.shape} do not fit images of {d} pixels: give ({d}, {d}) or (groups, {d}, {d})"
        )
    if is_concrete(bases) and not np.allclose(np.swapaxes(bases, 1, 2) @ bases, np.eye(d), atol=1e-5):
        raise ValueError("bases are not orthonormal: give eigenvectors as columns, or covariances")


def _eigenbases(covariances, d):
    """(eigenvalues (n, d), bases (n, d, d)) of (d, d) or (n, d, d)."""
    C = covariances[None] if covariances.ndim == 2 else covariances
    if C.ndim != 3 or C.shape[1:] != (d, d):
        raise ValueError(f"covariances of shape {C.shape} do not fit images of {d} pixels: give ({d}, {d}) or (K, {d}, {d})")
    xp = namespace(C)
    if xp is np and not np.allclose(C, np.swapaxes(C, 1, 2), rtol=1e-6, atol=1e-8 * np.abs(C).max()):
        raise ValueError("a covariance is not symmetric: give (C + C.T) / 2")
    lam, Q = xp.linalg.eigh((C + xp.swapaxes(C, 1, 2)) / 2)
    rounding = 1e-6 * lam.max()  # a covariance made in float32 may have eigenvalues this far below 0
    if xp is np and lam.min() < -rounding:
        raise ValueError(f"a covariance has the eigenvalue {lam.min():.4g}: give a positive matrix")
    return xp.maximum(lam, 0.0), Q


def _as_matrix(A, shape):
    """The (m, d) matrix of a linear operator of one image; arrays pass."""
    if hasattr(A, "ndim"):
        return A
    if not callable(A):
        raise ValueError(
            f"A is a {type(A).__name__}: give a matrix (m, d), or an operator that maps one image of shape {shape}"
        )
    d = math.prod(shape)
    identity = jnp.eye(d).reshape(d, *shape)
    return jax.vmap(A)(identity).reshape(d, -1).T


def _posterior_covariance(Q, lam, A, noise_std):
    """What the posterior of a component owes to its covariance C = F F^T, F = Q sqrt(lam), by the SVD  A F = U s V^T:

        S = F V diag(n^2 / (s^2 + n^2)) V^T F^T        gain = F V diag(s / (s^2 + n^2))  on  U^T (y - A mu)

    Squares are never formed before they must be, and n = 0 needs no inverse of a singular matrix. Returns
    (eigenvalues, eigenbasis, gain (d, m), U (m, m), s^2 + n^2 per column of U).
    """
    xp = namespace(lam, A, noise_std) if Q is None else namespace(Q, lam, A, noise_std)
    (m, d), std = A.shape, safe_sqrt(lam)
    F = xp.diag(std) if Q is None else Q * std
    U, s, Vt = xp.linalg.svd(A @ F)
    tiny = 10 * max(m, d) * float(xp.finfo(s.dtype).eps)
    s = xp.where(s > tiny * s.max(initial=0.0), s, 0.0)
    pad = lambda a, size: xp.concatenate([a, xp.zeros((size - len(a),), a.dtype)])
    s_d, s_m = pad(s, d), pad(s, m)
    shrink = xp.where(s_d == 0, 1.0, noise_std / xp.sqrt(xp.where(s_d == 0, 1.0, s_d**2 + noise_std**2)))
    FV = F @ Vt.T
    rank = min(m, d)
    gain = xp.concatenate([FV[:, :rank] * safe_divide(s, s**2 + noise_std**2), xp.zeros((d, m - rank), FV.dtype)], 1)
    basis, root, _ = xp.linalg.svd(FV * shrink)
    root = xp.where(root > tiny * root.max(), root, 0.0)
    return root**2, basis, gain, U, s_m**2 + noise_std**2
