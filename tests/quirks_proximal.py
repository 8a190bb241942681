"""What recorded runs of DiffPIR, Blended and Resampling need and the library does not do, each with the reason.

DiffPIR's scripts work on [0, 1] and measure noise there, but take sigma_t / alpha_t of images in [-1, 1]: a run's lambda is
four of ours (``house_lambda``). The start is made from y (``official_start``), the observation is quantised to bytes before
noise is added (``y`` is taken from the file), and the last call of the network is dropped (no row for it).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax.base import pytree, safe_sqrt

BETAS = dj.schedules.linear_betas(1000)


# --- DiffPIR ------------------------------------------------------------------------------------------------------------


def mixture_eps(params, x, i):
    """eps of an image (H, W, C) under a mixture of isotropic or diagonal Gaussians; the variance output is unused."""
    w, mu, var, bar = params
    a = bar[i.astype(int)]
    spread = (a * var + 1 - a).reshape(var.shape + (1,) * (mu.ndim - var.ndim)) * jnp.ones_like(mu)
    d = x - jnp.sqrt(a) * mu
    log_r = jnp.log(w) - 0.5 * (d**2 / spread + jnp.log(spread)).sum((1, 2, 3))
    r = jnp.exp(log_r - log_r.max())
    return jnp.sqrt(1 - a) * jnp.einsum("k,khwc->hwc", r / r.sum(), d / spread)


@pytree
class OfficialEta(dj.kernels.DDIM):
    """DiffPIR's noise: a share zeta fresh, and within the rest std eta sigma_s / sigma_t sqrt(beta_t), beta_t the one-step
    beta of the full table whatever the stride (DDIM's own has the stride's)."""

    def __post_init__(self):
        """Both at once, which DDIM refuses."""

    def coefficients(self, table):
        move = super().coefficients(table)
        t = np.asarray(table.t).astype(int)
        sigma_s, sigma_t = self.schedule.sigma(table.s), self.schedule.sigma(table.t)
        own = self.eta * sigma_s / sigma_t * np.sqrt(BETAS[t - 1])
        std = np.sqrt(self.zeta * sigma_s**2 + (1 - self.zeta) * own**2)
        eps = np.sqrt(1 - self.zeta) * safe_sqrt(sigma_s**2 - own**2)
        return dj.kernels.ddim.Move(move.alpha_s, eps, std)

    def compose(self, table, eta_noise, zeta_noise):
        """The unit noise of each row from the two official draws."""
        t = np.asarray(table.t).astype(int)
        sigma_s, sigma_t = self.schedule.sigma(table.s), self.schedule.sigma(table.t)
        own = np.sqrt(1 - self.zeta) * self.eta * sigma_s / sigma_t * np.sqrt(BETAS[t - 1])
        fresh = np.sqrt(self.zeta) * sigma_s
        each = lambda a: np.reshape(a, (-1,) + (1,) * (zeta_noise.ndim - 1))
        total = np.where(own**2 + fresh**2 > 0, np.sqrt(own**2 + fresh**2), 1.0)
        return (each(own) * eta_noise + each(fresh) * zeta_noise) / each(total)


def cubic(x):
    a = np.abs(x)
    inner, outer = 1.5 * a**3 - 2.5 * a**2 + 1, -0.5 * a**3 + 2.5 * a**2 - 4 * a + 2
    return np.where(a <= 1, inner, np.where(a <= 2, outer, 0.0))


def resize_matrix(n, factor):
    """(n / factor, n) antialiased cubic interpolation with mirrored edges, its weights rounded to float32 as released."""
    m = n // factor
    centre = (np.arange(m) + 0.5) * factor - 0.5
    reach = 2 * factor
    at = np.floor(centre)[:, None] + np.arange(-reach - 1, reach + 2)
    weights = cubic((at - centre[:, None]) / factor) / factor
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32).astype(np.float64)
    mirrored = np.mod(at, 2 * n).astype(int)
    mirrored = np.where(mirrored >= n, 2 * n - 1 - mirrored, mirrored)
    matrix = np.zeros((m, n))
    np.add.at(matrix, (np.arange(m)[:, None], mirrored), weights)
    return matrix


@pytree
class Resize(dj.operators.Operator):
    """Down-sampling of an image (H, W, C); its "pseudo-inverse" is the official back projection, nearest neighbours."""

    rows: Any
    columns: Any

    def __call__(self, x):
        return jnp.einsum("ih,hwc,jw->ijc", self.rows, x, self.columns, precision="highest")

    def pinv(self, y):
        factor = self.rows.shape[1] // self.rows.shape[0]
        return jnp.repeat(jnp.repeat(y, factor, 0), factor, 1)


def resize(shape, factor, dtype):
    return Resize(*(jnp.asarray(resize_matrix(n, factor), dtype) for n in shape[:2]))


def official_start(hyper, script, run, noise, schedule):
    """x at t_start + 1, made from y in [-1, 1] with hidden pixels at -1: alpha y + sigma z, or, in the scripts for one task, y
    taken for a state at the time t_y whose sigma / alpha is y's noise (without its alpha)."""
    y = run["y"] if str(run["y_range"]) == "[-1,1]" else 2 * run["y"] * run.get("mask", 1) - 1
    t = hyper["t_start"] + 1
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if script == "main_ddpir.py":
        return alpha * y + sigma * noise
    q = alpha / schedule.alpha(hyper["t_y"] + 1)
    return q * y + np.sqrt(sigma**2 - (q * schedule.sigma(hyper["t_y"] + 1)) ** 2) * noise


# --- CoPaint's "resample" -----------------------------------------------------------------------------------------------


NEAR_TIE = 0.01


@pytree
class BrokenResampling(dj.methods.Resampling):
    """Resampling as released: the step's result is thrown away, so that only the choice of particles acts on x, and the final
    choice draws as the others do. What a choice needs is given in place of Gumbel noise, (2, particles): the indices that the
    recorder drew itself, -1 where none, and how often each particle is kept for certain if its n w_i is near a whole number
    (-1: floor(n w_i) whatever it is). Near means relatively by ``NEAR_TIE``: 0.01 in n w_i are 2.5e-5 in the squared distances
    that the choice looks at, 200 roundings of float32.

    info: ``weights`` (particles,) of each choice."""

    final: Any = None  # the same for the final choice

    def init(self, kernel, x):
        return jax.vmap(kernel.init)(x), jnp.zeros_like(x)  # the cleanest reference differs between particles

    def step(self, kernel, x, state, row, noise):
        weights = _Weights(*(getattr(self, f.name) for f in dataclasses.fields(self))).step(kernel, x, state, row, noise)[0]
        x, state, info = super().step(kernel, x, state, row, noise)
        return x, state, info | {"weights": weights}

    def choose(self, weights, given):
        drawn, near = given.astype(int)
        return self.ordered(self.copies(weights, near, len(drawn)), drawn, len(drawn))

    def copies(self, weights, near, n):
        share = n * weights
        whole = jnp.round(share)
        tie = (whole > 0) & (jnp.abs(share - whole) < NEAR_TIE * whole) & (near >= 0)
        return jnp.where(tie, near, jnp.floor(share).astype(int))

    def ordered(self, copies, drawn, n):
        place, certain = jnp.arange(n), copies.sum()
        repeated = jnp.minimum(jnp.searchsorted(jnp.cumsum(copies), place, side="right"), len(copies) - 1)
        return jnp.where(place < certain, repeated, drawn.astype(int)[jnp.maximum(place - certain, 0)])

    def keep_chosen(self, before, after, chosen):
        return before[chosen]

    def finish(self, kernel, x, state):
        weights = self.weights(x, self.measurement.y)
        drawn, near = self.final
        chosen = self.ordered(self.copies(weights, near, self.keep), drawn, self.keep)
        return jnp.clip(x[chosen], -1, 1), {"weights": weights}


@pytree
class _Weights(BrokenResampling):
    """Its step returns the weights of the choice in place of x."""

    def step(self, kernel, x, state, row, noise):
        return dj.methods.Resampling.step(self, kernel, x, state, row, noise)

    def choose(self, weights, given):
        return weights

    def keep_chosen(self, before, after, chosen):
        return chosen
