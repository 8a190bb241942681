"""Replacement (Song et al., ICLR 2021, appendix I.2): what was measured is replaced by a noisy copy of the measurement.

    x <- x + A^+ (y_t - A x),    y_t = alpha_t y + sigma_t A z       (inpainting: known pixels <- alpha_t y + sigma_t z)

after every inner update of the kernel (predictor, corrector), with fresh z. The paper's colourisation is the same in an
orthogonal basis; here any operator with a pseudo-inverse is. An approximation: the rest of the image is conditioned on one
noisy copy at a time, so that it agrees with the measurement less than the posterior does (RePaint's reason to climb back).

Official code and paper: the code mixes y in at the level of the step's *start*, one step noisier than x; we at x's own.
The paper has no noise model; with ``noise_std`` > 0 the noise that y has is taken off y_t's, per singular value (``A.svd``),
and where it has more than the level allows, y_t is alpha_t y. At t = 0 that is y itself, noise included.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..base import Measurement, is_concrete, normal, numbers, pytree, safe_sqrt
from ..kernels import DDPM
from ..method import Method
from .common import Setup, cast, grid, level


@pytree
class Replacement(Method):
    """denoise: the prior. measurement: y and an operator with ``pinv``; with noise, with ``svd`` too (else ValueError).

    strength: share of the replacement, 1 as published
    Any kernel and table; a table that ends at t = 0 gives A(result) = y for operators with A A^+ = 1.
    """

    measurement: Measurement = None
    strength: Any = 1.0

    paper = "Song et al. 2021"
    link = "arxiv.org/abs/2011.13456"
    requires = ("pinv",)
    noise = "ignored"  # what y has of it ends up in the result
    ranges = {"strength": (0, 1)}

    def requirements(self):
        noise = self.measurement.noise_std
        known = numbers(noise)
        noisy = not is_concrete(noise) or (known is not None and (known > 0).any())
        return ("pinv", "svd") if noisy else ("pinv",)

    def default_kernel(self):
        return DDPM()

    def noisy_measurement(self, x, alpha, sigma, z):
        """y_t for unit noise z of the image's shape."""
        A, y = self.measurement.A, cast(self.measurement.y, x.dtype)
        alpha, sigma = level(alpha, x), level(sigma, x)
        if not A.has("svd"):  # then y has no noise
            return jax.tree.map(lambda y, z: alpha * y + sigma * z, y, A(z))
        D = A.svd
        c = D.Vt(z)
        s = D.singular(c)
        own = alpha * D.spread(self.measurement.noise_std).astype(x.dtype)
        return alpha * y + D.U(safe_sqrt((sigma * s) ** 2 - own**2) * c)

    def replaced(self, x, alpha, sigma, z):
        """x with its measured part replaced at the level (alpha, sigma)."""
        A = self.measurement.A
        correction = A.pinv(jax.tree.map(jnp.negative, A.residual(x, self.noisy_measurement(x, alpha, sigma, z))))
        return x + jnp.asarray(self.strength, x.dtype) * correction

    def draw(self, kernel, key, x):
        key_move, key_known = jax.random.split(key)
        known = normal(key_known, (kernel.updates, *x.shape), x.dtype)
        return {"move": kernel.draw(key_move, x), "known": known}

    def step(self, kernel, x, state, row, noise):
        schedule = kernel.schedule
        edit = lambda x, t, j: self.replaced(x, schedule.alpha(t), schedule.sigma(t), noise["known"][j])
        x, state = kernel.step(self.predict, x, state, row, noise["move"], edit=edit)
        return x, state, {}


def published(denoise, measurement, steps=None, *, table=None, strength=1.0) -> Setup:
    """1000 levels of ancestral sampling."""
    table = grid(denoise.schedule, steps) if table is None else table
    return Setup(Replacement(denoise, measurement, strength), DDPM(), table)
