"""The downward half of the ADM UNet with a pooling head: guided-diffusion's noisy-image classifiers.

Source: Dhariwal and Nichol 2021, arXiv:2105.05233, section 4 (classifier guidance).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from .layers import GroupNorm, attend, wide
from .unet import ADM

POOLS = ("adaptive", "attention", "spatial", "spatial_v2")


class AttentionPool(nn.Module):
    """(..., H, W, C) -> (..., out): the mean token attends to all pixels (Radford et al. 2021, CLIP)."""

    heads: int
    out_channels: int

    @nn.compact
    def __call__(self, x):
        *lead, height, width, channels = x.shape
        tokens = x.reshape(*lead, height * width, channels)
        tokens = jnp.concatenate([tokens.mean(-2, keepdims=True), tokens], axis=-2)
        shape = (height * width + 1, channels)
        if self.has_variable("params", "position"):
            pixels = self.get_variable("params", "position").shape[0] - 1
            if pixels != height * width:
                raise ValueError(f"this encoder pools {pixels} pixels at its end, x has {height * width} there")
        position = self.param("position", nn.initializers.normal(channels**-0.5), shape)
        qkv = nn.Dense(3 * channels, name="qkv")(tokens + position.astype(tokens.dtype))
        return nn.Dense(self.out_channels, name="proj")(attend(qkv, self.heads, "new")[..., 0, :])


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
            means.append(wide(h).mean((-3, -2)))
        if self.pool.startswith("spatial"):
            h = nn.Dense(2048, name="dense_out")(jnp.concatenate(means, axis=-1))
            if self.pool == "spatial":
                h = jax.nn.relu(h)
            else:
                norm = GroupNorm(self.groups, name="norm_out")
                h = jax.nn.silu(norm(h[..., None, None, :])[..., 0, 0, :])
            return nn.Dense(self.out_channels, name="logits")(h)
        h = jax.nn.silu(GroupNorm(self.groups, name="norm_out")(h))
        if self.pool == "adaptive":
            return nn.Dense(self.out_channels, name="logits")(h.mean((-3, -2)))
        return AttentionPool(self.heads_of(h.shape[-1], self.heads), self.out_channels, name="pool")(h)
