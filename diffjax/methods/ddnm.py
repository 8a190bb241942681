"""DDNM, denoising diffusion null-space models (Wang et al., ICLR 2023), and DDNM+ for noisy measurements.

    DDNM     x0 <- x0 - A^+ (A x0 - y):  the range of A^T is y's, the null space the network's
    DDNM+    x0 <- x0 - V diag(lambda) V^T A^+ (A x0 - y), and noise as much less as y already brings along:

        x_s = alpha x0 + V (d1 V^T z + d2 V^T eps),
        lambda = 1, d1 = sqrt(sigma^2 - (alpha std / s)^2), d2 = 0                        where s sigma >= alpha std,
        lambda = s sigma sqrt(1 - eta^2) / (alpha std), d1 = sigma eta, d2 = 0            where 0 < s sigma < alpha std,
        d1 = sigma eta, d2 = sigma sqrt(1 - eta^2)                                        where s = 0,

which is, written out, the step of DDRM with eta_b = 1 (``ddrm.py``), from a start in pure noise. The simplified form knows no
singular values: one lambda = min(1, sigma / (alpha std)) for all directions, and the noise shrunk by
sqrt(1 - (lambda alpha std / sigma)^2). Right where all s are 1 (denoising); elsewhere the null space gets too little noise
too, and directions with s < 1 bring along more than is taken off, so that they end in y's noise.

Official code and paper differ. DDNM moves by ``kernels.DDIM(schedule, zeta=0.85**2)`` with the network's own eps in the code,
by ``kernels.DDPM``, which does not look at eps, in the paper's algorithm 1: run either. Travelling back, the code draws
q(x_r | x0) from the network's x0 before its correction (``travel="x0"``, default), the paper q(x_r | x_s) (``travel="x"``).
DDNM+ as released weighs eps without transforming it by V^T, finds the lambda of its blurs with singular values that are not
those of A^+, and in the simplified form has abar where sqrt(abar) belongs (too little noise even for std = 0): here all
three are the paper's.

Biased by design as DDRM is: zeta = eta^2 of fresh noise in each step keeps (1 + sqrt(1 - eta^2)) / 2 of the variance of what y
hides. With ``kernels.DDPM``, DDNM is exact in the limit where that is independent of what y sees.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import process, timetables
from ..base import Measurement, Prediction, expand, namespace, nearest, pytree, safe_divide, safe_sqrt, static
from ..kernels import DDIM, Marginal
from ..method import Method
from ..operators import Mask
from .common import Setup, cast
from .ddrm import DDRM

FORMS = ("svd", "simplified")
TRAVELS = ("x0", "x")
ETA = 0.85  # share of fresh noise, in standard deviations


@pytree
class Travel:
    """Per row: alpha and sigma of r."""

    alpha: Any
    sigma: Any


class Traveller(Method):
    """What both share: the state carries the network's own x0, from which ``jump`` climbs."""

    paper = "Wang et al. 2023"
    link = "arxiv.org/abs/2212.00490"

    def __post_init__(self):
        super().__post_init__()
        if self.travel not in TRAVELS:
            raise ValueError(f"unknown travel {self.travel!r}: {nearest(self.travel, TRAVELS)}")

    def init(self, kernel, x):
        return kernel.init(x), jnp.zeros_like(x)

    def plan(self, kernel, table):
        return Travel(*process.marginal(kernel.schedule, table.r))

    def jump(self, kernel, x, state, row, noise):
        if self.travel == "x":
            return super().jump(kernel, x, state, row, noise)
        climbed = expand(row.m.alpha, x) * state[1] + expand(row.m.sigma, x) * noise
        return jnp.where(row.r > row.s, climbed, x), state


@pytree
class DDNM(Traveller):
    """denoise: the prior. measurement: y without noise, with an operator that has ``A.pinv``.

    keep_eps: move by the network's own eps (official); False: eps follows the corrected x0, as Heun's second order wants
    travel:   where a jump climbs from: the network's "x0" (official) or "x" (paper)
    A correction of the prediction: any kernel runs it; published with ``kernels.DDIM(schedule, zeta=0.85**2)`` on
    ``timetables.published("ddnm", schedule)``, or "ddnm-travel". The result fits y exactly.
    Raises ValueError for an operator without pinv, or a noise_std above 0, which is for DDNMPlus.
    """

    measurement: Measurement = None
    keep_eps: bool = static(default=True)
    travel: str = static(default="x0")

    requires = ("pinv",)
    noise = "refused"
    instead_of_noise = "DDNMPlus"

    def default_kernel(self):
        return DDIM(zeta=ETA**2)

    def corrected(self, p) -> Prediction:
        A, y = self.measurement.A, cast(self.measurement.y, p.x0.dtype)
        return p.with_x0(p.x0 - A.pinv(A.residual(p.x0, y)), self.keep_eps)

    def predict(self, x, t) -> Prediction:
        return self.corrected(self.denoise(x, t))

    def step(self, kernel, x, state, row, noise):
        p = self.denoise(x, row.t)
        x, inner = kernel.step(self.predict, x, state[0], row, noise, first=self.corrected(p))
        return x, (inner, p.x0), {}


@pytree
class PlusPlan(Travel):
    """lam, shrink: of the simplified form, where noise_std is one number."""

    lam: Any = None
    shrink: Any = None


@pytree
class DDNMPlus(Traveller):
    """denoise: the prior. measurement: y with noise_std in y's units, and an operator that has ``A.svd`` ("svd") or ``A.pinv``
    ("simplified").

    eta:    share of fresh noise, in standard deviations
    form:   "svd" (each singular direction by its own noise) or "simplified" (one for all)
    travel: as for :class:`DDNM`
    Run it with ``kernels.Marginal`` on ``timetables.published("ddnm", schedule)``, or "ddnm-travel".
    Raises ValueError for an operator that lacks them, other kernels, unknown forms, or eta outside [0, 1].
    """

    measurement: Measurement = None
    eta: Any = ETA
    form: str = static(default="svd")
    travel: str = static(default="x0")

    moves = (Marginal,)
    ranges = {"eta": (0, 1)}

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(f"unknown form {self.form!r}: {nearest(self.form, FORMS)}")
        super().__post_init__()

    def requirements(self):
        return ("svd",) if self.form == "svd" else ("pinv",)

    def plan(self, kernel, table) -> PlusPlan:
        lam, shrink, std = None, None, self.measurement.noise_std
        if self.form == "simplified" and np.size(std) == 1:
            one = std.reshape(()) if np.ndim(std) else std
            lam, shrink = self.weights(*process.marginal(kernel.schedule, table.s), one)
        elif self.form == "simplified" and not isinstance(self.measurement.A, Mask):
            name = type(self.measurement.A).__name__
            raise ValueError(
                f"DDNMPlus, simplified, takes one noise_std with {name}, not an array of shape {np.shape(std)}: use MMPS, or "
                'form="svd" where its spectrum keeps the entries of y apart'
            )
        return PlusPlan(*process.marginal(kernel.schedule, table.r), lam, shrink)

    def weights(self, alpha, sigma, std=None):
        """(lambda, factor of the noise) of the simplified form; ``std``: noise_std in another form."""
        brought = alpha * (self.measurement.noise_std if std is None else std)
        xp = namespace(brought, sigma)
        enough = sigma >= brought
        lam = xp.where(enough, 1.0, safe_divide(sigma, brought))
        return lam, safe_sqrt(xp.where(enough, 1 - safe_divide(brought, sigma) ** 2, 0.0))

    def simplified(self, p, noise, row):
        """-> (prediction, unit noise) for the kernel's move."""
        x0, eta = p.x0, jnp.asarray(self.eta).astype(noise.dtype)
        A, y = self.measurement.A, cast(self.measurement.y, x0.dtype)
        mixed = eta * noise + safe_sqrt(1 - eta**2) * p.eps
        if row.m.lam is None:  # one for each pixel: not planned, as the rows' would fill the memory
            std = jnp.asarray(self.measurement.noise_std).astype(x0.dtype)
            lam, shrink = self.weights(row.k.move.alpha, row.k.move.sigma, std)
        else:
            lam, shrink = expand(row.m.lam, x0), expand(row.m.shrink, x0)
        corrected = p.with_x0(x0 - lam * A.pinv(A.residual(x0, y)), keep_eps=True)
        return corrected, shrink * mixed

    def shaped(self, p, noise, row):
        """-> (prediction, unit noise) for the kernel's move."""
        if self.form == "simplified":
            return self.simplified(p, noise, row)
        return DDRM(self.denoise, self.measurement, self.eta).shaped(p, noise, row)

    def step(self, kernel, x, state, row, noise):
        p = self.denoise(x, row.t)
        first, noise = self.shaped(p, noise, row)
        x, inner = kernel.step(self.predict, x, state[0], row, noise, first=first)
        return x, (inner, p.x0), {}


def published(denoise, measurement, steps=None, *, table=None, eta=ETA) -> Setup:
    """DDNM on 100 levels, 1000 / 100 apart."""
    table = timetables.ddnm(denoise.schedule, steps or 100) if table is None else table
    return Setup(DDNM(denoise, measurement), DDIM(zeta=eta**2), table)


def published_plus(denoise, measurement, steps=None, *, table=None, eta=ETA) -> Setup:
    """DDNM+, by singular values, on the same levels."""
    table = timetables.ddnm(denoise.schedule, steps or 100) if table is None else table
    return Setup(DDNMPlus(denoise, measurement, eta=eta), Marginal(), table)
