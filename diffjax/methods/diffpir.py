"""DiffPIR (Zhu et al., CVPRW 2023): plug-and-play restoration, half-quadratic splitting around a diffusion sampler.

    x0     = the denoiser's clean image at (x_t, t)
    x0_hat = argmin_x |y - A x|^2 + rho_t |x - x0|^2,    rho_t = lam noise_std^2 / r_t^2,    r_t = sigma_t / alpha_t
    x_s    = alpha_s x0_hat + sigma_s (sqrt(1 - zeta) eps_hat + sqrt(zeta) z),    eps_hat = (x_t - alpha_t x0_hat) / sigma_t

The second line corrects the prediction, so any kernel runs it; the third is ``kernels.DDIM(schedule, zeta=...)``. It is the
mean of p(x0 | x_t, y) if p(x0 | x_t) were N(x0, r_t^2 / lam): the spread of the samples is zeta's, not the posterior's.
``data`` says how the minimum is found:

    "prox"             in closed form, or whatever ``A.prox`` does
    "gradient"         x <- x - (A^T (A x - y) + rho (x - x0)) / (rho + lipschitz), any differentiable A
    "back_projection"  x <- x + gamma A^+ (y - A x) / (1 + rho)

``splitting="admm"`` carries a dual image w (paper, appendix; formula ours: ADMM with the penalty rho_t of the row):
v = argmin at x0 + w / rho in place of x0,  w <- w + rho (x0 - v),  and v - w / rho is what moves; the result is the last v.

We differ from the paper in one default: x0 is never off by more than the prior's spread, so 1 / r_t^2 has
1 / ``prior_std``^2 added. Without it (``prior_std=jnp.inf``, what :func:`published` gives) a blur is inverted outright at high
noise, the noise so amplified becomes part of eps_hat, and where zeta < 1 it stays there: harmless on DDPM's linear schedule,
ruinous on a cosine one.

Official code and paper differ, and we follow the paper:
* the code mixes units (noise in [0, 1], sigma_t / alpha_t in [-1, 1]): its lambda is 4 of ours (``published`` divides),
  except in its first-order deblurring;
* it evaluates the network once more after the last move and drops the result, returning x at t = 1 with zeta's noise still
  in it; ``timetables.diffpir`` walks on to t = 0, so that the same number of calls is used in full;
* it starts from y plus noise; the paper, and we, from pure noise (``guess`` for a late start);
* its first-order step is 1 / rho, which diverges where rho < |A|^2 / 2, at all high noise levels (``lipschitz=0``);
* it back-projects by nearest neighbours, we by A^+;
* its ``eta`` has the noise of one step of the full chain; use zeta alone.
It clamps x0: pass ``denoisers.clipped(denoise)``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .. import process, timetables
from ..base import Measurement, nearest, pytree, static, whole
from ..kernels import DDIM
from ..method import NOT_NEGATIVE, Method
from ..operators.checks import by_part, least
from .common import Setup, by_kind, each, inner, kind, level

DATA = ("prox", "gradient", "back_projection")
SPLITTINGS = ("hqs", "admm")


@pytree
class DiffPIR(Method):
    """denoise: the prior. measurement: y with any operator that has what ``data`` needs.

    prior_std:    standard deviation of a pixel under the prior; inf as in the paper
    lam:          weight of the prior; the paper's deblurring by default, 1 would be Bayes' if x0 were off by r_t
    guidance:     share of the data step that is taken
    noise_floor:  least noise_std that rho is computed with: noiseless data leave the data step well-posed
    gamma:        step of "back_projection";  lipschitz: |A|^2 of "gradient";  iterations: steps of either
    guess:        image to start from when the table begins late (``timetables.start_at``): alpha_t guess + sigma_t z
    Any kernel; the paper's is ``DDIM(schedule, zeta=...)``, zeta 0.3 (deblurring), 0.25 (super-resolution), 1 (inpainting).
    Raises ValueError for unknown names, or an operator without ``prox`` or ``pinv`` where they are needed.
    """

    measurement: Measurement = None
    lam: Any = 1.75
    guidance: Any = 1.0
    noise_floor: Any = 0.002
    gamma: Any = 0.1
    lipschitz: Any = 1.0
    guess: Any = None
    prior_std: Any = 1.0
    data: str = static(default="prox")
    splitting: str = static(default="hqs")
    iterations: int = static(default=1)

    paper = "Zhu et al. 2023"
    link = "arxiv.org/abs/2305.08995"
    ranges = {"guidance": (0, 2)} | {name: NOT_NEGATIVE for name in ("lam", "noise_floor", "gamma", "lipschitz", "prior_std")}

    def __post_init__(self):
        for name, valid in (("data", DATA), ("splitting", SPLITTINGS)):
            if getattr(self, name) not in valid:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: {nearest(getattr(self, name), valid)}")
        whole("iterations", self.iterations)
        super().__post_init__()

    def requirements(self):
        return {"prox": ("prox",), "back_projection": ("pinv",)}.get(self.data, ())

    def default_kernel(self):
        return DDIM(zeta=0.3)

    def starts_anywhere(self):
        return self.guess is not None

    # --- the data step ---

    def rho(self, p):
        """The penalty at a prediction's time, an array where noise_std is one. Not below 1e-12, so that nothing unmeasured is
        divided by 0."""
        cast = lambda a: jnp.asarray(a, p.x0.dtype)
        alpha, sigma = level(p.alpha, p.x0), jnp.maximum(level(p.sigma, p.x0), cast(1e-10))
        precision = (alpha / sigma) ** 2 + 1 / cast(self.prior_std) ** 2
        noise = lambda std: jnp.maximum(cast(std), cast(self.noise_floor))
        penalty = lambda std: jnp.maximum(cast(self.lam) * noise(std) ** 2 * precision, cast(1e-12))
        return each(penalty, self.measurement.noise_std)

    def solve(self, z, rho):
        """(argmin_x |y - A x|^2 + rho |x - z|^2, or, of an array rho, sum (y - A x)^2 / rho + |x - z|^2, as ``data`` finds it,
        info)"""
        A, cast = self.measurement.A, lambda a: jnp.asarray(a, z.dtype)
        y = jax.tree.map(lambda a: a if jnp.iscomplexobj(a) else a.astype(z.dtype), self.measurement.y)
        if self.data == "prox":
            found = A.prox_info(z, rho, y) if hasattr(A, "prox_info") else (A.prox(z, rho, y), {})
            return z + cast(self.guidance) * (found[0] - z), found[1]

        low = least(rho)

        def misfit(x):
            r = A.residual(x, y)
            return 0.5 * inner(r, by_part(lambda rho, r: r * (low / rho), rho, r))

        def turn(x, _):
            if self.data == "gradient":
                return x - (jax.grad(misfit)(x) + low * (x - z)) / (low + cast(self.lipschitz)), None
            return x - cast(self.gamma) * A.pinv(by_part(lambda rho, r: r / (1 + rho), rho, A.residual(x, y))), None

        x, _ = jax.lax.scan(turn, z, None, length=self.iterations)
        return z + cast(self.guidance) * (x - z), {}

    def correct(self, p, dual=None):
        """(prediction with the data step taken, minimiser, dual, info)"""
        rho = self.rho(p)
        if dual is None:
            v, info = self.solve(p.x0, rho)
            return p.with_x0(v), v, None, info
        low = least(rho)
        v, info = self.solve(p.x0 + dual / low, rho)
        dual = dual + low * (p.x0 - v)
        return p.with_x0(v - dual / low), v, dual, info

    # --- the walk ---

    def predict(self, x, t):
        return self.correct(self.denoise(x, t))[0]

    def start(self, kernel, row, noise):
        if self.guess is None:
            return super().start(kernel, row, noise)
        return process.q_sample(kernel.schedule, self.guess.astype(noise.dtype), row.t, noise)

    def init(self, kernel, x):
        if self.splitting == "hqs":
            return kernel.init(x)
        return kernel.init(x), jnp.zeros_like(x), x  # the kernel's, the dual, the minimiser

    def step(self, kernel, x, state, row, noise):
        admm = self.splitting == "admm"
        of_kernel, dual = (state[0], state[1]) if admm else (state, None)
        p, v, new_dual, info = self.correct(self.denoise(x, row.t), dual)
        again = lambda x, t: self.correct(self.denoise(x, t), dual)[0]
        x, of_kernel = kernel.step(again, x, of_kernel, row, noise, first=p)
        return x, (of_kernel, new_dual, v) if admm else of_kernel, info

    def finish(self, kernel, x, state):
        return (state[2] if self.splitting == "admm" else x), {}


LAM = {
    "deblurring": 7.0,
    "inpainting": 1.0,
    "super-resolution": 6.0,
}  # the official code's, which is four times ours; the last
# is the middle of the published scan
ZETA = {"deblurring": 0.3, "inpainting": 1.0, "super-resolution": 0.25}


def published(
    denoise,
    measurement,
    steps=None,
    *,
    table=None,
    lam=None,
    zeta=None,
    prior_std=jnp.inf,
    data="prox",
    lipschitz=1.0,
    iterations=1,
) -> Setup:
    """The official configurations for the measurement's kind: 100 network calls, for inpainting 20 (``steps=100`` there too in
    the paper's table)."""
    if table is None:
        default = 20 if kind(measurement.A) == "inpainting" else 100
        table = timetables.diffpir(denoise.schedule, default if steps is None else steps)
    lam = by_kind(None, measurement, LAM) / 4 if lam is None else lam
    method = DiffPIR(denoise, measurement, lam=lam, prior_std=prior_std, data=data, lipschitz=lipschitz, iterations=iterations)
    return Setup(method, DDIM(zeta=by_kind(zeta, measurement, ZETA)), table)
