"""The predicted clean latent moved to a codebook, and thresholds that follow the image."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ..base import Prediction, clip, in_range, like, pytree, safe_divide, static
from .times import as_tree


def to_codes(codes, x0):
    """x0 moved to its codes, by ``codes.quantise`` (an autoencoder) or ``codes``, a function."""
    moved = codes.quantise(x0) if hasattr(codes, "quantise") else codes(x0)
    return like(x0, moved, "what the codebook gives")


@pytree
class Quantised:
    denoise: Any
    codes: Any

    @property
    def schedule(self):
        return self.denoise.schedule

    def __call__(self, x, t) -> Prediction:
        p = self.denoise(x, t)
        return p.with_x0(to_codes(self.codes, p.x0), keep_eps=True)


def quantised(denoise, codes) -> Quantised:
    """``denoise`` with x0 moved to a codebook, and eps left the network's own, as latent diffusion's ``quantize_denoised``
    does (Rombach et al. 2022). For ``kernels.PLMS`` give the codes to the kernel, which combines the eps of several times
    first.

    codes: an autoencoder, whose ``quantise`` is used, or a function of x0; ``jax.tree_util.Partial(f, array)`` keeps its
           leaves
    """
    return Quantised(denoise, codes if hasattr(codes, "quantise") else as_tree(codes))


@pytree
class Thresholded:
    denoise: Any
    share: Any = 0.995
    most: Any = 1.0
    keep_eps: bool = static(default=True)

    @property
    def schedule(self):
        return self.denoise.schedule

    def __call__(self, x, t) -> Prediction:
        p = self.denoise(x, t)
        bound = clip(jnp.quantile(jnp.abs(p.x0), jnp.asarray(self.share, x.dtype)), 1.0, jnp.asarray(self.most, x.dtype))
        return p.with_x0(safe_divide(clip(p.x0, -bound, bound), bound), self.keep_eps)


def thresholded(denoise, share=0.995, most=1.0, keep_eps=True) -> Thresholded:
    """``denoise`` with dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3): x0 is clamped to [-s, s] and
    divided by s, s the quantile ``share`` of |x0| over the image, from 1 to ``most`` (diffusers' ``sample_max_value``; the
    paper has no upper bound). For images in [-1, 1], not for latents. eps stays the network's own, as in diffusers, or
    follows."""
    in_range("share", share, 0, 1)
    in_range("most", most, 1)
    return Thresholded(denoise, share, most, keep_eps)
