"""MMPS, moment matching posterior sampling (Rozet et al., NeurIPS 2024, "Learning diffusion priors from observations by
expectation maximization", section 4.2).

    p(x_0 | x_t) ~ N(m, V),    m = x0_hat(x_t),    V = sigma_t^2 / alpha_t dm/dx_t     (Tweedie: the exact covariance)
    E[x_0 | x_t, y] = m + V A^T (noise_std^2 I + A V A^T)^{-1} (y - A m)

The linear system is solved by ``iterations`` steps of a Krylov method, each one product with the network's Jacobian.
Exact for a Gaussian prior once they converge; else biased as far as p(x_0 | x_t) is not one Gaussian: samples of separate
modes are right inside each mode, and wrong in how often they choose it.

Paper and code: the paper solves by one to a few conjugate-gradient steps and recommends GMRES where the Jacobian of a trained
network is not symmetric; the authors' library (azula) defaults to one GMRES step. We take 10 steps that minimise the residual
(GMRES's): fewer leave a Gaussian posterior visibly too wide or too narrow. Conjugate gradients do as well with exact denoisers
and diverge with trained ones, whose Jacobian times the large sigma^2 / alpha of high noise is no covariance. The covariance is
held constant when the likelihood is differentiated (all of them).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from .. import timetables
from ..base import Measurement, Prediction, expand, pytree, safe_divide, static, whole
from ..kernels import DDIM
from ..method import Method
from ..operators.checks import by_part
from .common import Setup, cast, each, inner, least_residual


@pytree
class MMPS(Method):
    """denoise: the prior, not clipped (its Jacobian is the covariance). measurement: y with a linear operator that has its
    adjoint A.T (``operators.from_function`` gives any function one); noise_std in y's units.

    iterations: solver steps per network call, no more than y has entries (then they are exact); what is left of the residual
    is ``info["solve_residual"]``
    A correction of the prediction: any kernel runs it. With an exact denoiser DPM-Solver++ 2M on ``timetables.log_snr`` is the
    best we know; with a trained one 3 steps and ``DDIM(eta=1)``.
    Raises ValueError for an operator without adjoint or iterations < 1.
    """

    measurement: Measurement = None
    iterations: int = static(default=10)

    paper = "Rozet et al. 2024"
    link = "arxiv.org/abs/2405.13712"
    requires = ("T",)
    gives = "posterior"

    def __post_init__(self):
        super().__post_init__()
        whole("iterations", self.iterations)

    def default_kernel(self):
        return DDIM(eta=1.0)

    def twist(self, x, t):
        """(the prior's Prediction, what y adds to its x0, log N(y; A m, noise_std^2 I + A V A^T), residual of the solve
        relative to its start). The density is without its log-determinant, a constant for a Gaussian prior."""
        A, noise_std = self.measurement.A, each(lambda a: jnp.asarray(a).astype(x.dtype), self.measurement.noise_std)
        _, pull, p = jax.vjp(lambda x: (lambda p: (p.x0, p))(self.denoise(x, t)), x, has_aux=True)
        share = expand(safe_divide(p.sigma**2, p.alpha), x)

        def system(v):
            Vv = share * pull(A.T(v))[0]
            return by_part(lambda std, v, AVv: std**2 * v + AVv, noise_std, v, A(Vv)), Vv

        b = jax.tree.map(jnp.negative, A.residual(p.x0, cast(self.measurement.y, x.dtype)))
        u, shift, left = least_residual(system, b, self.solves())
        return p, shift, -0.5 * inner(b, u), left

    def solves(self) -> int:
        """Solver steps per network call."""
        return min(self.iterations, sum(math.prod(jnp.shape(a)) for a in jax.tree.leaves(self.measurement.y)))

    def corrected(self, x, t):
        """(Prediction given y, residual of the solve)"""
        p, shift, _, left = self.twist(x, t)
        return p.with_x0(p.x0 + shift), left

    def predict(self, x, t) -> Prediction:
        return self.corrected(x, t)[0]

    def step(self, kernel, x, state, row, noise):
        p, left = self.corrected(x, row.t)
        x, state = kernel.step(self.predict, x, state, row, noise, first=p)
        return x, state, {"solve_residual": left}

    def products(self, kernel) -> int:
        return kernel.calls * self.solves()


def published(denoise, measurement, steps=None, *, table=None, iterations=3) -> Setup:
    """The paper's problems are of another kind; these are ours for trained networks: 3 solver steps, fresh noise, 50 levels
    equal in log-SNR."""
    table = timetables.log_snr(denoise.schedule, 50 if steps is None else steps) if table is None else table
    return Setup(MMPS(denoise, measurement, iterations), DDIM(eta=1.0), table)
