"""A small UNet of convolutions alone, told an enlarged image: what it gives at a pixel depends on pixels near it only.

    (x_t, condition) -> space to depth -> residual blocks at two or more sizes -> depth to space

Its norms look at the channels of one pixel (layer norm), and it has no attention. So no number of it is about the image as a
whole: trained on small cuts it is the same function on a large one, and tiles that overlap by its ``reach`` give exactly what
the whole image gives. Group norms and attention (SR3's network) do not: there the edges of tiles have to be hidden.

Sources: the idea of SR3, Saharia et al. 2021, arXiv:2104.07636 (condition beside x_t, told sqrt(abar)); layer norm in image
networks: Liu et al. 2022, arXiv:2201.03545; the space-to-depth stem: Shi et al. 2016, arXiv:1609.05158 (its inverse).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from .layers import Down, Up, conv, depth_to_space, over_image, sinusoid, space_to_depth, wide


class _Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), the second norm scaled and shifted by the embedding ``e``."""

    features: int
    dtype: Any = None
    spatial: int = 2

    @nn.compact
    def __call__(self, x, e):
        norm = lambda name: nn.LayerNorm(epsilon=1e-5, name=name)
        h = conv(self.features, dtype=self.dtype, name="conv_1", spatial=self.spatial)(jax.nn.silu(norm("norm_1")(x)))
        scale, shift = jnp.split(over_image(nn.Dense(2 * self.features, name="embedding")(e), self.spatial), 2, axis=-1)
        h = jax.nn.silu(norm("norm_2")(wide(h)) * (1 + scale) + shift)
        h = conv(self.features, dtype=self.dtype, zero=True, name="conv_2", spatial=self.spatial)(h)
        x = x if x.shape[-1] == self.features else nn.Dense(self.features, name="skip")(x)
        return x + h.astype(x.dtype)


class LocalUNet(nn.Module):
    """(..., H, W, out_channels) from x (..., H, W, C), its time t and a condition (..., H, W, C').

    ``net.apply(params, x, t, cond, train=False, rngs=None)``: t and cond have the leading axes of x, or t is one number; t is
    whatever the denoiser's ``time`` tells, times ``time_scale`` in the sinusoids. Nothing is drawn.

    width, multipliers  channels of each level, the first after the stem; blocks: residual blocks per level and way
    patch               pixels of patch x patch become channels before the first layer and pixels again after the last
    time_scale          1000 for noise levels in [0, 1]
    spatial             2; 1 or 3 for signals (..., L, C) and volumes (..., D, H, W, C)

    Raises ValueError for sides that patch and levels do not divide, and a condition of other sides than x.
    """

    out_channels: int = 1
    width: int = 32
    multipliers: Sequence[int] = (1, 2)
    blocks: int = 1
    patch: int = 2
    time_scale: float = 1000.0
    dtype: Any = None
    spatial: int = 2

    @property
    def multiple(self) -> int:
        """What the sides of an image must be multiples of."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def reach(self) -> int:
        """How far, in pixels along an axis, what it gives at a pixel may look: a multiple of ``multiple``."""
        levels = len(self.multipliers)
        convs = [4 * self.blocks + 2 * (n > 0) + (n + 1 < levels) + 2 * (n == 0) for n in range(levels)]
        pixels = self.patch * sum(c * 2**n for n, c in enumerate(convs))
        return -(-pixels // self.multiple) * self.multiple + self.multiple

    @nn.compact
    def __call__(self, x, t, cond, train=False):
        self._check(x, cond)
        e = sinusoid(self.time_scale * jnp.asarray(t).astype(wide(x).dtype), 2 * self.width)
        e = jax.nn.silu(nn.Dense(2 * self.width, name="time_1")(jax.nn.silu(nn.Dense(2 * self.width, name="time_0")(e))))
        how = {"dtype": self.dtype, "spatial": self.spatial}
        h = space_to_depth(jnp.concatenate([cond.astype(x.dtype), x], axis=-1), self.patch, self.spatial)
        widths, skips = [m * self.width for m in self.multipliers], []
        h = conv(widths[0], name="conv_in", **how)(h)
        for level, width in enumerate(widths):
            if level:
                h = Down(features=width, name=f"down_{level}", **how)(h)
            for n in range(self.blocks):
                h = _Block(width, name=f"down_{level}_{n}", **how)(h, e)
            skips.append(h)
        for level, width in reversed(list(enumerate(widths))):
            if level + 1 < len(widths):
                h = jnp.concatenate([Up(features=width, name=f"up_{level}", **how)(h), skips[level]], axis=-1)
            for n in range(self.blocks):
                h = _Block(width, name=f"up_{level}_{n}", **how)(h, e)
        h = jax.nn.silu(nn.LayerNorm(epsilon=1e-5, name="norm_out")(wide(h)))
        h = conv(self.out_channels * self.patch**self.spatial, zero=True, name="conv_out", spatial=self.spatial)(h)
        return depth_to_space(h, self.patch, self.spatial)

    def _check(self, x, cond):
        sides = x.shape[-1 - self.spatial : -1]
        if len(sides) < self.spatial or any(side % self.multiple for side in sides):
            raise ValueError(f"sides {sides} of x must be multiples of {self.multiple}: pad or resize")
        if cond.shape[:-1] != x.shape[:-1]:
            raise ValueError(f"the condition has shape {cond.shape} beside x of {x.shape}: enlarge it to the same sides")
