"""LPIPS on VGG16, the perceptual distance that first stages of latent diffusion are trained with.

Sources: Zhang et al. 2018, arXiv:1801.03924; Simonyan and Zisserman 2015, arXiv:1409.1556. The weights are not part of
diffjax; convert.first_stage_loss reads them.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from .layers import conv

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]
DEPTHS = (2, 2, 3, 3, 3)  # convolutions between poolings


class VGGDistance(nn.Module):
    """Distances (...,) of images x and y (..., H, W, 1 or 3) in [-1, 1]: 0 for equal ones.

    What five ReLUs give is scaled to unit length over channels; squared differences are weighted by the heads, averaged over
    positions, summed. `widths`: channels of the five parts.
    """

    widths: Sequence[int] = (64, 128, 256, 512, 512)

    @nn.compact
    def __call__(self, x, y):
        if x.shape != y.shape or x.ndim < 3 or x.shape[-1] not in (1, 3) or min(x.shape[-3:-1]) < 16:
            raise ValueError(f"give images of one shape (..., H, W, 1 or 3), sides at least 16: got {x.shape} and {y.shape}")
        h = jnp.stack([x, y])
        h = (h - jnp.asarray(SHIFT, h.dtype)) / jnp.asarray(SCALE, h.dtype)
        total = jnp.zeros(x.shape[:-3], h.dtype)
        for part, (width, depth) in enumerate(zip(self.widths, DEPTHS, strict=True)):
            if part:
                ones = (1,) * (h.ndim - 3)
                h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (*ones, 2, 2, 1), (*ones, 2, 2, 1), "VALID")
            for n in range(depth):
                h = jax.nn.relu(conv(width, name=f"conv_{part}_{n}")(h))
            head = self.param(f"head_{part}", nn.initializers.uniform(1.0), (width,))
            first, second = unit(h)
            total = total + (jnp.square(first - second) * head).sum(-1).mean((-2, -1))
        return total


def unit(h):
    """Features scaled to unit length over channels; the gradient at 0 is 0."""
    square = jnp.square(h).sum(-1, keepdims=True)
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return h / (length + 1e-10)
