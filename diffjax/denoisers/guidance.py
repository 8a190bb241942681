"""Guidance as a denoiser around a denoiser: it runs under every kernel and method.

Sources: Dhariwal & Nichol 2021, algorithm 2 (classifier, in the score), Ho & Salimans 2022 (classifier-free).
For guidance of the mean (their algorithm 1) see ``kernels.Guided``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..base import Prediction, expand, pytree, replace


def as_gradient(gradient):
    """A function (x, t) -> array as a pytree; one that already is (``jax.tree_util.Partial``) keeps its leaves."""
    return gradient if isinstance(gradient, jax.tree_util.Partial) else jax.tree_util.Partial(gradient)


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
        eps = p.eps - expand(p.sigma * self.scale, x) * self.gradient(x, t)
        return replace(p, eps=eps, x0=(x - expand(p.sigma, x) * eps) / expand(p.alpha, x))


def classifier(denoise, gradient, scale=1.0) -> Classifier:
    """eps - scale sigma_t grad_x log p(y | x_t); x0 follows and is not clamped again.

    gradient: (x, t) -> array of x's shape, for example ``jax.grad(log_prob)``; pass trained parameters through
              ``jax.tree_util.Partial(f, params)`` so that they stay leaves.
    """
    return Classifier(denoise, as_gradient(gradient), scale)


@pytree
class ClassifierFree:
    denoise: Any
    args: tuple
    null_args: tuple
    scale: Any

    @property
    def schedule(self):
        return self.denoise.schedule

    def __call__(self, x, t) -> Prediction:
        both = jax.tree.map(lambda a, b: jnp.stack([jnp.asarray(a), jnp.asarray(b)]), self.args, self.null_args)
        p = jax.vmap(lambda args: replace(self.denoise, args=args)(x, t))(both)
        w = jnp.asarray(self.scale, x.dtype)
        mixed = lambda a: a[1] + w * (a[0] - a[1])
        first = jax.tree.map(lambda a: a[0], p)
        return replace(first, x0=mixed(p.x0), eps=mixed(p.eps))


def classifier_free(denoise, args, null_args, scale=1.0) -> ClassifierFree:
    """null + scale (conditional - null): 1 is the conditional network, 0 the unconditional one, above 1 sharpens.

    denoise: a ``Denoiser``; args, null_args: its further arguments with and without the condition, for example
    ``(label,)`` and ``(null_label,)``. Both run as one network call on a batch of two.
    """
    return ClassifierFree(denoise, tuple(args), tuple(null_args), scale)
