"""DDRM, denoising diffusion restoration models (Kawar et al., NeurIPS 2022).

In the singular basis of A = U diag(s) V^T, with c = V^T x0_hat(x_t), e = V^T eps_hat(x_t), u = U^T y, z fresh unit noise and
std = noise_std, each coefficient of x_s is, by what the measurement still knows at the level of s (eqs. 7 and 8),

    nothing, s = 0:                        alpha c + sigma (sqrt(1 - eta^2) e + eta z)
    less than x_s, s sigma < alpha std:    alpha c + sigma (sqrt(1 - eta^2) (u - s c) / std + eta z)
    more, s sigma >= alpha std:            alpha ((1 - eta_b) c + eta_b u / s) + sqrt(sigma^2 - (alpha eta_b std / s)^2) z

and the start is N(alpha u / s, sigma^2 - (alpha std / s)^2) where it is known better than the noise, else N(0, sigma^2).

Official code and paper differ, and we follow the paper: the code divides its start by sigma instead of multiplying it by
alpha, as if both were 1 at the top (a late start is wrong), and reads the start's noise as a spectrum; its comparisons are
both strict, so that the last step of a noiseless problem is the network's x0 and does not fit y (ours does); the singular
values of its blurs belong to other coefficients (those of ``operators`` are right).

Biased by design. Each step's share eta of fresh noise narrows what y hides: even where it is independent of what y sees, the
limit of many steps keeps (1 + sqrt(1 - eta^2)) / 2 of its variance, 0.76 at the default, and all of it, so that DDRM is
exact, only for eta = 0 and std = 0. What y sees with noise takes too little notice of the prior: on a Gaussian prior the
default has less than the posterior's variance, the less the more rows of low noise the table has.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from .. import timetables
from ..base import Measurement, expand, pytree, safe_divide, safe_sqrt
from ..kernels import Marginal
from ..method import Method
from .common import Setup, cast


def restore_spectrum(c, e, z, u, s, *, alpha, sigma, std, eta, eta_b=1.0):
    """The three cases above, entry by entry: -> (coefficients of x0, of unit noise) such that alpha x0 + sigma noise are the
    new state's. c, e, z, u: spectra; s: their singular values; alpha, sigma, eta: scalars; std: of y's noise, one number or
    one of each entry. All in the dtype of s."""
    seen = s > 0
    more = seen & (s * sigma >= alpha * std)
    s_more = jnp.where(more, s, 0)  # keeps tiny singular values out of the divisions
    x0 = jnp.where(more, (1 - eta_b) * c + eta_b * safe_divide(u, s_more), c)
    share = safe_divide(alpha * std * eta_b, s_more * sigma)
    rest = jnp.where(seen, safe_divide(u - s * c, std), e)
    return x0, jnp.where(more, safe_sqrt(1 - share**2) * z, safe_sqrt(1 - eta**2) * rest + eta * z)


@pytree
class DDRM(Method):
    """denoise: the prior, not clipped. measurement: y with an operator that has ``A.svd``; noise_std in y's units.

    eta:    share of fresh noise, in standard deviations, where x_s knows more than the measurement
    eta_b:  share of the measurement where it knows more
    Run it with ``kernels.Marginal``; ``timetables.published("ddrm", schedule)`` are the paper's 20 steps.
    Raises ValueError for an operator without svd, another kernel, or shares outside [0, 1].
    """

    measurement: Measurement = None
    eta: Any = 0.85
    eta_b: Any = 1.0

    paper = "Kawar et al. 2022"
    link = "arxiv.org/abs/2201.11793"
    requires = ("svd",)
    moves = (Marginal,)
    ranges = {"eta": (0, 1), "eta_b": (0, 1)}

    def starts_anywhere(self):
        return True

    def observed(self, x):
        """(spectral operator, U^T y, singular values, noise_std of each entry or of all) in the dtype of ``x``."""
        A = self.measurement.A.svd
        u = A.Ut(cast(self.measurement.y, x.dtype))
        return A, u, A.singular(u), A.spread(self.measurement.noise_std).astype(x.dtype)

    def start(self, kernel, row, noise):
        A, u, s, std = self.observed(noise)
        alpha, sigma = (expand(f(row.t), noise).reshape(()) for f in (kernel.schedule.alpha, kernel.schedule.sigma))
        z, one = A.Vt(noise), jnp.ones_like(alpha)
        nothing = jnp.zeros_like(z)
        x0, z = restore_spectrum(nothing, nothing, z, u, s, alpha=alpha, sigma=sigma, std=std, eta=one)
        return alpha * A.V(x0) + sigma * A.V(z)

    def spectrum(self, c, e, z, u, s, std, move):
        """-> (coefficients of x0, of unit noise) of the new state."""
        eta, eta_b = (jnp.asarray(a).astype(s.dtype) for a in (self.eta, self.eta_b))
        return restore_spectrum(c, e, z, u, s, alpha=move.alpha, sigma=move.sigma, std=std, eta=eta, eta_b=eta_b)

    def shaped(self, p, noise, row):
        """-> (prediction, unit noise) for the kernel's move."""
        A, u, s, std = self.observed(p.x0)
        c, z = self.spectrum(A.Vt(p.x0), A.Vt(p.eps), A.Vt(noise), u, s, std, row.k.move)
        return p.with_x0(A.V(c), keep_eps=True), A.V(z)

    def step(self, kernel, x, state, row, noise):
        p, noise = self.shaped(self.predict(x, row.t), noise, row)
        x, state = kernel.step(self.predict, x, state, row, noise, first=p)
        return x, state, {}


def published(denoise, measurement, steps=None, *, table=None, eta=0.85, eta_b=1.0) -> Setup:
    """20 levels, 1000 / 20 apart."""
    table = timetables.respaced(denoise.schedule, f"ddim{20 if steps is None else steps}") if table is None else table
    return Setup(DDRM(denoise, measurement, eta, eta_b), Marginal(), table)
