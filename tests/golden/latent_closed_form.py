"""The prior of the recorded latent loops, the exact network of a mixture of Gaussians, and what the official loops do that the
library does not."""

import jax
import jax.numpy as jnp
import numpy as np
from official_quirks import Shares

import diffjax as dj
from diffjax.base import pytree, static
from diffjax.methods.repaint import Plan

BETAS = {  # latent diffusion's names
    "linear": dj.schedules.scaled_linear_betas,
    "sqrt_linear": lambda T, low, high: dj.schedules.linear_betas(T, low, high, rescale=False),
    "sqrt": dj.schedules.sqrt_betas,
    "cosine": lambda T, low, high: dj.schedules.cosine_betas(T),
}
DIFFUSERS_BETAS = {"linear": BETAS["sqrt_linear"], "scaled_linear": BETAS["linear"], "squaredcos_cap_v2": BETAS["cosine"]}


def network(params, x, i, cond=None):
    """eps of the recorded batch x (B, C, H, W) at index i, in float64, rounded to x's type. Section 1 of the fact sheet."""
    w, mu, sd, bar, shift = params
    z = x.astype(jnp.float64)
    A = bar[jnp.round(i).astype(int)]
    a, s = jnp.sqrt(A), jnp.sqrt(1 - A)
    means = mu[:, None] + (0 if cond is None else shift * cond.astype(z.dtype))
    d = z - a * means
    var = (A * sd**2 + 1 - A).reshape(-1, 1, 1, 1, 1)
    size = z[0].size
    log_r = jnp.log(w)[:, None] - 0.5 * ((d**2 / var).sum((2, 3, 4)) + size * jnp.log(var[..., 0, 0, 0]))
    r = jax.nn.softmax(log_r, 0)[..., None, None, None]
    return (s * (r * d / var).sum(0)).astype(x.dtype)


def v_network(params, x, i):
    """alpha eps - sigma x0 of the same prior."""
    eps, A = network(params, x, i).astype(jnp.float64), params[3][jnp.round(i).astype(int)]
    a, s = jnp.sqrt(A), jnp.sqrt(1 - A)
    return (a * eps - s * (x - s * eps) / a).astype(x.dtype)


def parameters(run, alphas_cumprod):
    """Of :func:`network`, float64; a and s from the float32 table."""
    table = np.asarray(alphas_cumprod, np.float32)
    named = [run[f"gmm_{name}"] for name in ("w", "mu", "sd")]
    return tuple(jnp.asarray(a, jnp.float64) for a in (*named, table, run["gmm_cond_shift"]))


def nearest_code(codebook, x0):
    """x0 (B, C, H, W), each pixel's channels moved to the nearest row of the codebook (codes, C)."""
    far = ((x0[:, None] - codebook[:, :, None, None].astype(x0.dtype)) ** 2).sum(2)
    return jnp.moveaxis(codebook.astype(x0.dtype)[far.argmin(1)], -1, 1)


@pytree
class Masked(Shares):
    """The official loops of latent diffusion: known latents, at the level of the step's start, are merged in before every
    step, the first too, or, in the ancestral loop, after it, one level noisier than x then is. ``merges``: whether each row
    does."""

    merges: object = None
    after: bool = static(default=False)

    def plan(self, kernel, table):
        return Plan(kernel.schedule.alpha(table.t), kernel.schedule.sigma(table.t), self.merges)

    def step(self, kernel, x, state, row, noise):
        merge = lambda x: self.merge(x, row.m, noise["known"])
        x, state = kernel.step(self.predict, x if self.after else merge(x), state, row, noise["move"])
        return merge(x) if self.after else x, state, {}


def loose(table, stride, end):
    """diffusers steps by ``stride`` indices, whatever the next one is."""
    s = np.where(table.t - stride >= 1, table.t - stride, end)
    return dj.replace(table, s=s, r=s)
