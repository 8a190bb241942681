"""What the recorded runs of DDRM and DDNM need and the library does not do, each with the reason.

The official operators come as stored singular bases, so the runs replay with a test-only operator of dense matrices, and
their draws, made in pieces and in spectral coordinates, are assembled into the one image-space draw of each row.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax.base import pytree, replace, static
from diffjax.methods.ddnm import PlusPlan
from diffjax.methods.ddrm import restore_spectrum

T = 1000
VP = dj.schedules.discrete(dj.schedules.linear_betas(T))


def mixture(run, dtype):
    """The exact denoiser of the recorded runs for one image (C, H, W): a mixture of Gaussians, variances per component or
    pixel."""

    def network(params, x, i):
        w, mu, var, bar = params
        a = bar[i.astype(int)]
        var = var.reshape(var.shape + (1,) * (mu.ndim - var.ndim))
        total = jnp.broadcast_to(a * var + 1 - a, mu.shape)
        d = x - jnp.sqrt(a) * mu
        logs = jnp.log(w) - 0.5 * (d**2 / total + jnp.log(total)).reshape(len(w), -1).sum(1)
        r = jax.nn.softmax(logs).reshape(-1, *(1,) * x.ndim)
        return jnp.sqrt(1 - a) * (r * d / total).sum(0)

    params = run["gmm_w"], run["gmm_mu"], run["gmm_var"], np.cumprod(1 - dj.schedules.linear_betas(T))
    return dj.denoisers.from_eps(network, jax.tree.map(lambda p: jnp.asarray(p, dtype), params), VP)


# --- operators ---------------------------------------------------------------------------------------------------------


@pytree
class Stored(dj.operators.Spectral):
    """A = U diag(s) V^T by matrices V (N, N), U (M, M) and s (N,) over images flattened in the order of ``shape``."""

    right: Any
    left: Any
    s: Any
    shape: tuple = static()

    def Vt(self, x):
        return x.reshape(-1) @ self.right

    def V(self, c):
        return (self.right @ c).reshape(self.shape)

    def Ut(self, y):
        return jnp.pad(y @ self.left, (0, self.right.shape[0] - len(y)))

    def U(self, c):
        return self.left @ c[: len(self.left)]


def _separable(left, right, c, order, channels):
    """Spectra (n, pixels x channels), pixels sorted by ``order`` -> images (n, channels, a, b) = left C right^T."""
    n, a, b = len(c), left.shape[1], right.shape[1]
    image = np.empty((n, a * b, channels))
    image[:, order] = c.reshape(n, a * b, channels)
    return left @ image.transpose(0, 2, 1).reshape(n, channels, a, b) @ right.T


def stored_bases(run, shape, prefix, rotated=True):
    """(V, U) of a run as matrices, its spectrum laid out as the official code does; ``rotated=False``: the layout alone, with
    identities for the small bases."""
    C, H, W = shape
    N, M = C * H * W, len(run["singulars"])
    get = lambda name: run.get(f"{prefix}_{name}")
    small = lambda name: None if get(name) is None else get(name) if rotated else np.eye(len(get(name)))
    c, u = np.eye(N), np.eye(M)
    if get("kept_indices") is not None:
        images = np.empty((N, N))
        images[:, np.concatenate([get("kept_indices"), get("missing_indices")])] = c
        images = images.reshape(N, -1, C).transpose(0, 2, 1)
    elif get("perm") is not None and get("V_small") is None and get("V_small1") is None:  # Walsh-Hadamard
        images = np.empty((N, C, H * W))
        images[:, :, get("perm")] = c.reshape(N, -1, C).transpose(0, 2, 1)
        if rotated:
            hadamard = np.ones((1, 1))
            while len(hadamard) < H * W:
                hadamard = np.kron([[1, 1], [1, -1]], hadamard)
            images = images @ hadamard / np.sqrt(H * W)
    elif get("perm") is not None:  # separable: blurs and bicubic downsampling
        names = ("small", "small") if get("V_small") is not None else ("small1", "small2")
        order = np.concatenate([get("perm"), np.arange(len(get("perm")), H * W)])
        images = _separable(*(small(f"V_{n}") for n in names), c, order, C)
        lefts = [small(f"U_{n}") for n in names]
        blur = lefts[0].shape[0] == H
        u = _separable(*lefts, u, get("perm") if blur else np.arange(M // C), C).reshape(M, M)
    elif get("V_small") is not None and len(get("V_small")) == 3:  # grey
        images = np.einsum("ij,njp->nip", small("V_small"), c.reshape(N, C, H * W))
        u = u * get("U_small")[0, 0]
    elif get("V_small") is not None:  # block means
        r = round(np.sqrt(len(get("V_small"))))
        first, rest = c[:, :M].reshape(N, M, 1), c[:, M:].reshape(N, M, r * r - 1)
        blocks = np.concatenate([first, rest], 2) @ small("V_small").T
        images = blocks.reshape(N, C, H // r, W // r, r, r).transpose(0, 1, 2, 4, 3, 5)
        u = u * get("U_small")[0, 0]
    else:  # denoising
        images = c
    return images.reshape(N, N).T, u.T


def singular_values(run, shape):
    """(N,), zeros where nothing is measured."""
    s = run["singulars"]
    return np.pad(s, (0, np.prod(shape) - len(s)))


# --- DDRM --------------------------------------------------------------------------------------------------------------


def ddrm_operator(run, meta, shape):
    """The operator and V. With noise, official DDRM compares s sigma < std and so takes coefficients whose singular value it
    has set to 0 for measured, though u is pure noise there: a singular value too small to matter says the same."""
    right, left = stored_bases(run, shape, "H")
    s = singular_values(run, shape)
    measured = np.arange(len(s)) < len(run["singulars"])
    s = np.where(measured & (s == 0) & (meta["sigma_0"] > 0), 1e-30, s)
    return Stored(right, left, s, shape), right


def ddrm_draws(run, meta, table, right):
    """(start, rows) in image space. Official DDRM draws noise for all coefficients, for those that know less than x_s, and for
    the measured ones, and uses of each what it needs."""
    s, std = run["singulars"], meta["sigma_0"]
    rows, at = [], 0
    for n, below in enumerate(table.s):
        level = VP.sigma(below) / VP.alpha(below)
        after, before = s * level < std, s * level > std
        z = run["draw__missing"][n].astype(np.float64)
        z[:, : len(s)][:, before] = run["draw__before"][n][:, before]
        if after.any():
            size = len(z) * after.sum()
            z[:, : len(s)][:, after] = run["draw__after"].reshape(-1)[at : at + size].reshape(len(z), -1)
            at += size
        rows.append(z @ right.T)
    start = run["draw__x_T"][0].astype(np.float64)
    return start.reshape(len(start), -1) @ right.T, np.stack(rows)


# --- DDNM --------------------------------------------------------------------------------------------------------------


def travel_draws(pairs, draws):
    """One draw per row from one per step up: official DDNM starts each step of a climb from x0: its last draw is left."""
    rows, at = [], 0
    for i, j in pairs:
        if j < i:
            rows.append(np.zeros(draws.shape[1:]))
        else:
            rows[-1] = draws[at].astype(np.float64)
            at += 1
    return np.stack(rows)


@pytree
class UnrotatedEps:
    """A denoiser whose eps official DDNM+ weighs in spectral coordinates without having transformed it: only the layout of the
    spectrum is applied, then V."""

    denoise: Any
    layout: Any  # V times the transposed layout

    def __call__(self, x, t):
        p = self.denoise(x, t)
        return replace(p, eps=(self.layout @ p.eps.reshape(-1)).reshape(x.shape))


@pytree
class OtherSingularValues(dj.methods.DDNMPlus):
    """DDNM+ on the official blurs: A and A^+ pair singular values, small ones set to 0, with other coefficients than lambda,
    which takes them all. ``tiled`` (N,): those of A^+; the operator's own: those of lambda."""

    tiled: Any = None

    def shaped(self, p, noise, row):
        A, u, s, std = dj.methods.DDRM(self.denoise, self.measurement).observed(p.x0)
        c, e, z = A.Vt(p.x0), A.Vt(p.eps), A.Vt(noise)
        tiled = jnp.asarray(self.tiled).astype(s.dtype)
        u = jnp.where(tiled > 0, s * u / jnp.where(tiled > 0, tiled, 1), s * c)
        eta = jnp.asarray(self.eta).astype(s.dtype)
        c, z = restore_spectrum(c, e, z, u, s, alpha=row.k.move.alpha, sigma=row.k.move.sigma, std=std, eta=eta)
        return p.with_x0(A.V(c), keep_eps=True), A.V(z)


@pytree
class SquaredAlpha(dj.methods.DDNMPlus):
    """The simplified form as released: lambda and the factor of the noise from abar and sqrt(1 - abar^2) in place of alpha and
    sigma, and the noise scaled by both. ``level``: where that sigma is taken: "s", or "t" in CoPaint's copy."""

    level: str = static(default="s")

    def plan(self, kernel, table):
        plan = super().plan(kernel, table)
        sigma = np.sqrt(1 - kernel.schedule.alpha(getattr(table, self.level)) ** 4)
        lam, shrink = self.weights(kernel.schedule.alpha(table.s) ** 2, sigma)
        return PlusPlan(plan.alpha, plan.sigma, lam, shrink * sigma)


@pytree
class Simple(dj.operators.Operator):
    """The simplified form's operators on (..., C, H, W): mask, grey (mean of three, repeated), block mean; ``pinv`` undoes
    them in reverse, masked at the end (no pseudo-inverse where all three meet)."""

    mask: Any
    scale: int = static(default=1)
    grey: bool = static(default=False)

    def _grey(self, x):
        return jnp.broadcast_to(x.mean(-3, keepdims=True), x.shape) if self.grey else x

    def __call__(self, x):
        x = self._grey(self.mask.astype(x.dtype) * x)
        *n, h, w = x.shape
        return x.reshape(*n, h // self.scale, self.scale, w // self.scale, self.scale).mean((-3, -1))

    def pinv(self, y):
        return self.mask.astype(y.dtype) * jnp.repeat(jnp.repeat(y, self.scale, -2), self.scale, -1)
