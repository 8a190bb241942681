"""PiGDM, pseudo-inverse guided diffusion (Song, Vahdat, Mardani & Kautz, ICLR 2023).

    p(x_0 | x_t) ~ N(x0_hat, r_t^2 I),     r_t^2 = sigma_t^2 / (alpha_t^2 + sigma_t^2 / prior_std^2)
    g = J^T d,   d = r_t^2 A^T (r_t^2 A A^T + noise_std^2 I)^{-1} (y - A x0_hat),   J = d x0_hat / d x_t

d is what the proximal map of y with rho = (noise_std / r_t)^2 adds to x0_hat; without noise it is A^+ (y - A x0_hat).

    adaptive (default): x0 <- x0_hat + alpha_t g with the network's own eps kept, in DDIM alpha_s alpha_t g on top of x_s
    bayes:              x0 <- x0_hat + sigma_t^2 / (alpha_t r_t^2) g, and eps follows

"bayes" is the score of the assumed Gaussian, exact for white Gaussian priors of that deviation (and the masks, block means ...
that go with it). The paper gives up the factor for its adaptive weights, after which the guidance is no score; official code
(NVlabs/RED-diff) does as the default here, for r_t^2 A^T(...)^{-1} = A^+, noise-free. The paper's algorithm has no alpha_s,
which is nearly 1 where it matters. Neither the paper's data of standard deviation 1 nor its start from the noised A^+ y is
asked for: pass ``prior_std``, start where you like.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .. import timetables
from ..base import Measurement, Prediction, expand, nearest, pytree, safe_divide, static
from ..kernels import DDIM
from ..method import NOT_NEGATIVE, Method
from .common import Setup, cast, each

WEIGHTS = ("adaptive", "bayes")
NOISE_FREE = 1e-8  # rho where noise_std is 0: keeps 0 / 0 away from unmeasured directions


@pytree
class PiGDM(Method):
    """denoise: the prior. measurement: y with a linear operator that has its proximal map (all with A.svd do,
    ``operators.cg_prox`` gives any other one).

    prior_std: standard deviation of the data that r_t assumes; the paper's is 1
    scale:     factor of the correction
    weight:    "adaptive" or "bayes"
    A correction of the prediction: any kernel runs it. Raises ValueError for an operator without prox, an unknown weight.
    """

    measurement: Measurement = None
    prior_std: Any = 1.0
    scale: Any = 1.0
    weight: str = static(default="adaptive")

    paper = "Song et al. 2023"
    link = "openreview.net/forum?id=9_gsMA8MRKQ"
    requires = ("prox",)
    ranges = {"prior_std": NOT_NEGATIVE, "scale": NOT_NEGATIVE}

    def __post_init__(self):
        super().__post_init__()
        if self.weight not in WEIGHTS:
            raise ValueError(f"unknown weight {self.weight!r}: {nearest(self.weight, WEIGHTS)}")

    def default_kernel(self):
        return DDIM(eta=1.0)

    def predict(self, x, t) -> Prediction:
        _, pull, p = jax.vjp(lambda x: (lambda p: (p.x0, p))(self.denoise(x, t)), x, has_aux=True)
        alpha, sigma = (jnp.asarray(a).astype(x.dtype) for a in (p.alpha, p.sigma))
        typed = lambda a: jnp.asarray(a).astype(x.dtype)
        r2 = sigma**2 / (alpha**2 + (sigma / typed(self.prior_std)) ** 2)
        share = lambda std: jnp.maximum(safe_divide(typed(std) ** 2, r2), typed(NOISE_FREE))
        rho = each(share, self.measurement.noise_std)
        d = self.measurement.A.prox(p.x0, rho, cast(self.measurement.y, x.dtype)) - p.x0
        adaptive = self.weight == "adaptive"
        factor = alpha if adaptive else safe_divide(sigma**2, alpha * r2)
        return p.with_x0(p.x0 + expand(self.scale, x) * factor * pull(d)[0], keep_eps=adaptive)

    def products(self, kernel) -> int:
        return kernel.calls


def published(denoise, measurement, steps=None, *, table=None, scale=1.0, prior_std=1.0, eta=1.0) -> Setup:
    """100 levels by DDIM with eta 1."""
    table = timetables.respaced(denoise.schedule, f"ddim{100 if steps is None else steps}") if table is None else table
    return Setup(PiGDM(denoise, measurement, prior_std, scale), DDIM(eta=eta), table)
