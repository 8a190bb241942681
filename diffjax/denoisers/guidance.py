"""Guidance as a denoiser around a denoiser: it runs under every kernel and method.

Sources: Dhariwal & Nichol 2021, algorithm 2 (classifier, in the score), Ho & Salimans 2022 (classifier-free).
For guidance of the mean (their algorithm 1) see ``kernels.Guided``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..base import Prediction, expand, in_range, like, pytree, replace, safe_divide
from .conditions import null_like, with_cond
from .times import as_tree as as_gradient


@pytree
class Classifier:
    denoise: Any
    gradient: Any
    scale: Any

    @property
    def schedule(self):
        return self.denoise.schedule

    def __call__(self, x, t) -> Prediction:
        p = self.denoise(x, t)
        eps = p.eps - expand(p.sigma * self.scale, x) * like(x, self.gradient(x, t), "the guiding gradient")
        return replace(p, eps=eps, x0=safe_divide(x - expand(p.sigma, x) * eps, expand(p.alpha, x)))


def classifier(denoise, gradient, scale=1.0) -> Classifier:
    """eps - scale sigma_t grad_x log p(y | x_t); x0 follows (0 where alpha is 0) and is not clamped again.

    gradient: (x, t) -> array of x's shape, for example ``jax.grad(log_prob)``; pass trained parameters through
              ``jax.tree_util.Partial(f, params)`` so that they stay leaves.
    """
    in_range("scale", scale)
    return Classifier(denoise, as_gradient(gradient), scale)


@pytree
class ClassifierFree:
    denoise: Any
    cond: Any
    null: Any
    scale: Any

    @property
    def schedule(self):
        return self.denoise.schedule

    def __call__(self, x, t) -> Prediction:
        stack = lambda c, n: jnp.stack([jnp.asarray(c), n])
        both = jax.tree.map(stack, self.cond, null_like(self.cond, self.null))
        p = jax.vmap(lambda cond: with_cond(self.denoise, cond)(x, t))(both)
        w = jnp.asarray(self.scale, x.dtype)
        mixed = lambda a: a[1] + w * (a[0] - a[1])
        first = jax.tree.map(lambda a: a[0], p)
        return replace(first, x0=mixed(p.x0), eps=mixed(p.eps))


def classifier_free(denoise, cond, null, scale=1.0) -> ClassifierFree:
    """null + scale (conditional - null): 1 is the conditional network, 0 the unconditional one, above 1 sharpens.

    denoise:     a denoiser whose network takes a condition (``from_eps(..., cond=...)``)
    cond, null:  pytrees of one structure: a label and the null label, tokens and empty text, an image and a black one.
                 Leaves of ``null`` may broadcast to those of ``cond``
    Both run as one network call on a batch of two. Raises ValueError where cond and null do not fit each other.
    """
    in_range("scale", scale)
    null_like(cond, null)
    with_cond(denoise, cond)
    return ClassifierFree(denoise, cond, null, scale)
