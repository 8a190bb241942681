"""RED-diff (Mardani, Song, Kautz & Vahdat, ICLR 2024, arXiv 2305.04391): a variational fit with the diffusion as regulariser.

    mu <- Adam step on   |y - A mu|^2 / (2 m)  +  weight sigma_t / alpha_t (eps_hat(x_t) - eps)^T mu / n,
    x_t = alpha_t mu + sigma_t eps,   t falling through the table,   no gradient through the network

m measurements, n pixels. One network call and one Adam step per row, mu starts at A^+ y, the result is mu: a point
estimate, whose spread over seeds is far below the posterior's.

Paper and code: the paper's objective has sums, the code means over each of the two vectors, and its weights (0.25, Adam with
rate 0.1 and betas 0.9, 0.99) belong to those; we follow the code. Weights sigma / alpha of the eps term ("linear") are both's
choice. The paper's rows are t = 1000 ... 1, or 100 of them. In latents, which neither has, mu starts at encode(A^+ y).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..base import Measurement, expand, pytree, safe_divide, safe_sqrt
from ..kernels import Marginal
from ..method import NOT_NEGATIVE, Method
from ..operators import Mask
from .common import Setup, cast, grid, inner
from .psld import in_pictures, of_the_picture

BETAS = (0.9, 0.99)


@pytree
class Walk:
    """The estimate, Adam's two means and its step count, and the kernel's state."""

    mu: Any
    mean: Any
    square: Any
    steps: Any
    kernel: Any


@pytree
class REDDiff(Method):
    """denoise: the prior. measurement: y with any differentiable operator; it has A.pinv, or ``guess`` is given.

    weight: of the regulariser (0.25 in the code; the paper tunes it per task)
    lr:     Adam's rate
    guess:  where mu starts, an image; default A^+ y (of latents encoded)
    Moves by ``kernels.Marginal``: x_s = alpha_s mu + sigma_s z. Raises ValueError for other kernels.
    """

    measurement: Measurement = None
    weight: Any = 0.25
    lr: Any = 0.1
    guess: Any = None

    paper = "Mardani et al. 2024"
    link = "arxiv.org/abs/2305.04391"
    requires = ("pinv",)
    moves = (Marginal,)
    noise = "ignored"
    gives = "estimate"
    ranges = {"weight": NOT_NEGATIVE, "lr": NOT_NEGATIVE}

    def requirements(self):
        return () if self.guess is not None else of_the_picture(self)

    def starts_anywhere(self):
        return True

    def estimate(self, dtype):
        """mu before the first row."""
        if self.guess is not None:
            return jnp.asarray(self.guess).astype(dtype)
        _, encode, A = in_pictures(self.measurement.A)
        return encode(A.pinv(cast(self.measurement.y, dtype)))

    def start(self, kernel, row, noise):
        alpha, sigma = kernel.schedule.alpha(row.t), kernel.schedule.sigma(row.t)
        return expand(alpha, noise) * self.estimate(noise.dtype) + expand(sigma, noise) * noise

    def init(self, kernel, x) -> Walk:
        return Walk(self.estimate(x.dtype), jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros((), x.dtype), kernel.init(x))

    def data_loss(self, mu):
        """Half the mean square of y - A mu, over what is measured."""
        r = self.measurement.A.residual(mu, cast(self.measurement.y, mu.dtype))
        _, _, A = in_pictures(self.measurement.A)
        known = jnp.broadcast_to(A.weights(r) > 0, r.shape).sum() if isinstance(A, Mask) else None
        count = sum(leaf.size for leaf in jax.tree.leaves(r)) if known is None else known.astype(mu.dtype)
        return 0.5 * inner(r, r) / count

    def step(self, kernel, x, state, row, noise):
        p = self.denoise(x, row.t)
        alpha, sigma = expand(p.alpha, x), expand(p.sigma, x)
        eps = safe_divide(x - alpha * state.mu, sigma)
        loss, gradient = jax.value_and_grad(self.data_loss)(state.mu)
        gradient = gradient + expand(self.weight, x) * safe_divide(sigma, alpha) * (p.eps - eps) / x.size
        steps = state.steps + 1
        mean = BETAS[0] * state.mean + (1 - BETAS[0]) * gradient
        square = BETAS[1] * state.square + (1 - BETAS[1]) * gradient**2
        size = safe_sqrt(square / (1 - BETAS[1] ** steps)) + 1e-8
        mu = state.mu - expand(self.lr, x) * mean / (1 - BETAS[0] ** steps) / size
        x, inner_state = kernel.step(self.predict, x, state.kernel, row, noise, first=p.with_x0(mu, keep_eps=True))
        return x, Walk(mu, mean, square, steps, inner_state), {"loss": loss}

    def jump(self, kernel, x, state, row, noise):
        x, inner_state = super().jump(kernel, x, state.kernel, row, noise)
        return x, Walk(state.mu, state.mean, state.square, state.steps, inner_state)


def published(denoise, measurement, steps=None, *, table=None, weight=0.25, lr=0.1) -> Setup:
    """1000 levels, t = 1000 ... 1."""
    table = grid(denoise.schedule, steps) if table is None else table
    return Setup(REDDiff(denoise, measurement, weight, lr), Marginal(), table)
