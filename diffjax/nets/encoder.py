"""The downward half of the ADM UNet with a pooling head: guided-diffusion's noisy-image classifiers.

Source: Dhariwal and Nichol 2021, arXiv:2105.05233, section 4 (classifier guidance).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from .attention import attention, split
from .layers import GroupNorm, axes, wide
from .unet import ADM

POOLS = ("adaptive", "attention", "spatial", "spatial_v2")


class AttentionPool(nn.Module):
    """(..., H, W, C) -> (..., out): the mean token attends to all pixels (Radford et al. 2021, CLIP)."""

    heads: int
    out_channels: int
    spatial: int = 2

    @nn.compact
    def __call__(self, x):
        *lead, channels = x.shape
        lead, pixels = lead[: -self.spatial], math.prod(lead[-self.spatial :])
        tokens = x.reshape(*lead, pixels, channels)
        tokens = jnp.concatenate([tokens.mean(-2, keepdims=True), tokens], axis=-2)
        if self.has_variable("params", "position"):
            known = self.get_variable("params", "position").shape[0] - 1
            if known != pixels:
                raise ValueError(f"this encoder pools {known} pixels at its end, x has {pixels} there")
        position = self.param("position", nn.initializers.normal(channels**-0.5), (pixels + 1, channels))
        qkv = nn.Dense(3 * channels, name="qkv")(tokens + position.astype(tokens.dtype))
        q, k, v = split(qkv, self.heads, "new")
        pooled = attention(q[..., :1, :, :], k, v).reshape(*lead, channels)
        return nn.Dense(self.out_channels, name="proj")(pooled)


class Encoder(ADM):
    """Logits (..., out_channels) of x (..., H, W, C) at time t (scalar or the leading axes of x); fields as in `UNet`.

    `pool`: "attention" (ADM's classifiers; images of one size only), "adaptive" (mean of the last features), "spatial"
    and "spatial_v2" (an MLP on the means of all blocks' features).
    """

    pool: str = "attention"

    def __post_init__(self):
        super().__post_init__()
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r}: use one of {', '.join(POOLS)}")

    @nn.compact
    def __call__(self, x, t, y=None, train=False):
        self.check_size(x)
        e = self.embed(t, y, wide(x).dtype)
        h, means = x, []
        for entry in [*self.down_path(), self.middle_path()]:
            for part in entry:
                h = self.run(part, h, e, train)
            means.append(wide(h).mean(axes(self.spatial)))
        if self.pool.startswith("spatial"):
            h = nn.Dense(2048, name="dense_out")(jnp.concatenate(means, axis=-1))
            if self.pool == "spatial":
                h = jax.nn.relu(h)
            else:
                norm = GroupNorm(self.groups, spatial=0, name="norm_out")
                h = jax.nn.silu(norm(h))
            return nn.Dense(self.out_channels, name="logits")(h)
        h = jax.nn.silu(GroupNorm(self.groups, spatial=self.spatial, name="norm_out")(h))
        if self.pool == "adaptive":
            return nn.Dense(self.out_channels, name="logits")(h.mean(axes(self.spatial)))
        heads = self.heads_of(h.shape[-1], self.heads)
        return AttentionPool(heads, self.out_channels, self.spatial, name="pool")(h)
