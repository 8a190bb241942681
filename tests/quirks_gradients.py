"""What recorded runs of DPS and MCG need and the library does not do, each with the reason.

The recorded batch is one array (B, C, H, W), so that a norm "of the image" is the official norm over the batch. DPS measures
residuals of pixels that nobody knows too (``AllPixels``): its y has noise there. Its "poisson" weighs all residuals alike
(``poisson_scale``). MCG noises y to the level above the state's (``NoisedAbove``), and DPS's copy of it draws noise of y's
shape and projects with what it takes for adjoints (``Projected``).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax.base import pytree, static
from diffjax.methods.dps import gradient_of

BASE = {"linear": dj.schedules.linear_betas(1000), "cosine": dj.schedules.cosine_betas(1000)}


def network(params, x, i):
    """(eps of a recorded batch under a mixture of Gaussians per image, variance channels)."""
    w, mu, var, bar = params
    a = bar[i.astype(int)]
    spread = (a * var + 1 - a).reshape(var.shape + (1,) * (mu.ndim - var.ndim)) * jnp.ones_like(mu)

    def one(x):
        d = x - jnp.sqrt(a) * mu
        r = jax.nn.softmax(jnp.log(w) - 0.5 * (d**2 / spread + jnp.log(spread)).sum((1, 2, 3)))
        return jnp.sqrt(1 - a) * jnp.einsum("k,kchw->chw", r, d / spread)

    return jax.vmap(one)(x), 0.5 * jnp.tanh(x)


@pytree
class DynamicThreshold:
    """DPS's "dynamic threshold": x0 is multiplied (not divided) by the 95 % quantile of its modulus over the batch."""

    denoise: Any

    def __call__(self, x, t):
        p = self.denoise(x, t)
        return p.with_x0(p.x0 * jnp.quantile(jnp.abs(p.x0), 0.95))


def denoiser(run, meta, dtype):
    """(schedule of the sampler, clipped denoiser). The network always knows the linear table; a run with cosine betas is told
    their alphas all the same."""
    base = dj.schedules.discrete(BASE[meta.get("schedule", "linear")])
    bar = np.cumprod(1 - BASE["linear"])
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), (run["gmm_w"], run["gmm_mu"], run["gmm_var"], bar))
    denoise = dj.denoisers.from_eps(network, params, base)
    if meta.get("dynamic_threshold"):
        denoise = DynamicThreshold(denoise)
    return base, dj.denoisers.clipped(denoise) if meta.get("clip_denoised", True) else denoise


@pytree
class AllPixels(dj.operators.Operator):
    """A mask whose residual is A x - y everywhere."""

    mask: Any

    def __call__(self, x):
        return self.mask * x

    def pinv(self, y):
        return y


@pytree
class Blur(dj.operators.Operator):
    """Correlation of each channel of a batch (B, C, H, W) with reflected borders."""

    kernel: Any

    def __call__(self, x):
        k = self.kernel
        h, w = (n // 2 for n in k.shape)
        x = jnp.pad(x, ((0, 0), (0, 0), (h, h), (w, w)), mode="reflect")
        batch, channels = x.shape[:2]
        x = x.reshape(-1, 1, *x.shape[2:])
        out = jax.lax.conv_general_dilated(x, k[None, None].astype(x.dtype), (1, 1), "VALID", precision="highest")
        return out.reshape(batch, channels, *out.shape[2:])


@pytree
class Resizer(dj.operators.Operator):
    """Antialiased cubic downsampling of the two last axes, from the recorded fields of view and weights."""

    rows: Any
    columns: Any
    factor: int = static(default=4)

    def __call__(self, x):
        return jnp.einsum("ih,jw,bchw->bcij", self.rows.astype(x.dtype), self.columns.astype(x.dtype), x, precision="highest")

    def pinv(self, y):
        """What DPS takes for the adjoint: each pixel repeated."""
        return jnp.repeat(jnp.repeat(y, self.factor, 2), self.factor, 3)


def resize_rows(view, weights, n):
    """(m, n) matrix of the recorded (n taps, m) or (m, taps) fields of view."""
    view, weights = (a.T if a.shape[0] > a.shape[1] else a for a in (view, weights))
    matrix = np.zeros((view.shape[0], n))
    np.add.at(matrix, (np.arange(len(view))[:, None], view), weights)
    return matrix


@pytree
class Phase(dj.operators.Operator):
    """DPS's phase retrieval of a batch: PhaseRetrieval on the two last axes, padded as for 256 pixels whatever the size."""

    pad: int = static(default=0)

    def __call__(self, x):
        p = self.pad
        x = jnp.fft.ifftshift(jnp.pad(x, ((0, 0), (0, 0), (p, p), (p, p))), axes=(2, 3))
        return jnp.abs(jnp.fft.fftshift(jnp.fft.fft2(x, norm="ortho"), axes=(2, 3)))


def operator(run, meta, dtype):
    """The measurement of a DPS run."""
    kind = meta["operator"]
    if kind == "inpainting":
        return AllPixels(jnp.asarray(run["mask"], dtype))
    if "blur" in kind:
        return Blur(jnp.asarray(run["kernel"], dtype))
    if kind == "super_resolution":
        n = meta["image"][-2:]
        axes = [resize_rows(run[f"resizer_fov_{a}"], run[f"resizer_w_{a}"], n[a]) for a in (0, 1)]
        return Resizer(*(jnp.asarray(a, dtype) for a in axes), meta["operator_kw"]["scale_factor"])
    if kind == "phase_retrieval":
        return Phase(int(meta["operator_kw"]["oversample"] / 8 * 256))
    raise ValueError(f"no operator for a recorded run of {kind!r}")


def poisson_scale(run, meta):
    """The code's Poisson loss is the norm times the mean of 1 / |y|."""
    return meta["scale"] * (float(np.mean(1 / np.abs(run["y"]))) if meta["noise"]["name"] == "poisson" else 1.0)


@pytree
class Jittered(dj.methods.DPS):
    """ "ps+": the mean norm at x0 + 0.05 u for five uniform u (positive only), part of the row's noise."""

    def step(self, kernel, x, state, row, noise):
        loss = lambda x0: jnp.mean(jnp.stack([self.objective(x0 + 0.05 * u) for u in noise["uniform"]]))
        value, p, gradient = gradient_of(loss, self.denoise, x, row.t)
        moved, state = kernel.step(self.predict, x, state, row, noise["move"], first=p)
        return moved - self.scale * gradient, state, {"loss": value}


@pytree
class NoisedAbove(dj.methods.MCG):
    """y noised to the level of t in the state at s: the official index."""

    def plan(self, kernel, table):
        return dj.methods.mcg.Plan(kernel.schedule.alpha(table.t), kernel.schedule.sigma(table.t))


@pytree
class Projected(NoisedAbove):
    """MCG as in DPS's repository: noise of y's shape, A^T in place of A^+, and for masks (I - M) y_t - M x', no projection."""

    def noised(self, plan, noise):
        y = self.measurement.y.astype(noise.dtype)
        return plan.alpha * y + plan.sigma * noise

    def project(self, x, y_s):
        A = self.measurement.A
        return (y_s - A(y_s)) - A(x) if isinstance(A, AllPixels) else super().project(x, y_s)
