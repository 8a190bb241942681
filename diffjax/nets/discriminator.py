"""The patch discriminator of phase one of latent diffusion (Isola et al. 2017, arXiv:1611.07004)."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class PatchDiscriminator(nn.Module):
    """Logits (..., h, w, 1) of the patches of images (B, H, W, C): convolutions 4x4, `layers` of them halve the sides.

    `net.apply(variables, x, train=True, mutable=["batch_stats"])` normalises by the batch; train=False by running averages.
    """

    width: int = 64
    layers: int = 3

    @nn.compact
    def __call__(self, x, train=False):
        def conv(features, stride, name, bias=True):
            init = nn.initializers.normal(0.02)
            return nn.Conv(features, (4, 4), (stride, stride), [(1, 1)] * 2, use_bias=bias, kernel_init=init, name=name)

        x = nn.leaky_relu(conv(self.width, 2, "conv_0")(x), 0.2)
        for n in range(1, self.layers + 1):
            x = conv(self.width * min(2**n, 8), 2 if n < self.layers else 1, f"conv_{n}", bias=False)(x)
            start = lambda key, shape, dtype=jnp.float32: 1 + 0.02 * jax.random.normal(key, shape, dtype)
            x = nn.BatchNorm(not train, momentum=0.9, scale_init=start, name=f"norm_{n}")(x)
            x = nn.leaky_relu(x, 0.2)
        return conv(1, 1, "logits")(x)
