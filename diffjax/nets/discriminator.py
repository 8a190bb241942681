"""The patch discriminator of VQGAN and latent diffusion: one logit for each overlapping patch of a picture.

Sources: Isola et al. 2017, arXiv:1611.07004 (PatchGAN); Esser, Rombach and Ommer 2021, arXiv:2012.09841; Ioffe and Szegedy
2015, arXiv:1502.03167 (batch norm); Kingma and Dhariwal 2018, arXiv:1807.03039 (ActNorm).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from .convolution import convolution
from .layers import wide, zeros

SLOPE = 0.2  # of the leaky ReLU
MOMENTUM = 0.1  # share of a new batch in the running statistics


def _about(one):
    return lambda key, shape, dtype=jnp.float32: one + 0.02 * jax.random.normal(key, shape, dtype)


def _moments(x):
    """Mean and biased variance of each channel over everything else, and the number of values."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.square(x - mean).mean(axes), x.size // x.shape[-1]


class BatchNorm(nn.Module):
    """In training by the moments of the batch, else by the running ones, the collection "stats": ``mean`` and ``var``."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x, train):
        x, shape = wide(x), x.shape[-1:]
        gain = self.param("scale", _about(1.0), shape)
        bias = self.param("bias", zeros, shape)
        kept = self.is_mutable_collection("stats")
        if kept or not train:
            mean = self.variable("stats", "mean", jnp.zeros, shape)
            var = self.variable("stats", "var", jnp.ones, shape)
        if not train:
            m, v = mean.value, var.value
        else:
            m, v, count = _moments(x)
            if kept and not self.is_initializing():
                mean.value = mean.value + MOMENTUM * (m - mean.value)
                var.value = var.value + MOMENTUM * (v * count / max(count - 1, 1) - var.value)  # the unbiased one
        return (x - m) * jax.lax.rsqrt(v + self.epsilon) * gain + bias


class ActNorm(nn.Module):
    """scale (x + loc), both learned. Where "params" is mutable they are first set to make this batch standard."""

    @nn.compact
    def __call__(self, x, train):
        x, shape = wide(x), x.shape[-1:]
        loc, scale = self.param("loc", zeros, shape), self.param("scale", nn.initializers.ones, shape)
        if train and self.is_mutable_collection("params") and not self.is_initializing():
            m, v, count = _moments(jax.lax.stop_gradient(x))
            loc, scale = -m, 1 / (jnp.sqrt(v * count / max(count - 1, 1)) + 1e-6)
            self.put_variable("params", "loc", loc)
            self.put_variable("params", "scale", scale)
        return scale * (x + loc)


class PatchDiscriminator(nn.Module):
    """Logits (B, h, w, 1) of pictures x (B, H, W, C): large where a patch looks real.

    width    channels of the first layer; they double up to 8 times as many
    layers   strided convolutions; a logit sees 16, 34, 70, 142 ... pixels for 1, 2, 3, 4
    norm     "batch" or "act"

    `net.apply(params, x, train=True)` normalises by the batch, which couples its pictures, alone in this house. The running
    moments are a state of their own: `logits, new = net.apply({**params, "stats": stats}, x, train=True, mutable=["stats"])`;
    without `train` they are used. With norm="act" :func:`standardise` is called once on a first batch.
    """

    width: int = 64
    layers: int = 3
    norm: str = "batch"

    def __post_init__(self):
        super().__post_init__()
        if self.norm not in ("batch", "act"):
            raise ValueError(f'norm={self.norm!r}: use "batch" or "act"')

    @nn.compact
    def __call__(self, x, train=False):
        if x.ndim != 4:
            raise ValueError(f"x must be a batch (B, H, W, C), got shape {x.shape}")
        normed = BatchNorm if self.norm == "batch" else ActNorm
        h = jax.nn.leaky_relu(self._conv(x, self.width, 2, 0, bias=True), SLOPE)
        for n in range(1, self.layers + 1):
            stride = 2 if n < self.layers else 1
            h = self._conv(h, self.width * min(2**n, 8), stride, n, bias=self.norm == "act")
            h = jax.nn.leaky_relu(normed(name=f"norm_{n}")(h, train), SLOPE)
        return self._conv(h, 1, 1, self.layers + 1, bias=True)

    def _conv(self, x, features, stride, n, bias):
        if min(x.shape[-3:-1]) < 2:
            raise ValueError(f"x is too small for {self.layers} layers: enlarge it, or use layers={max(1, self.layers - 1)}")
        how = {"padding": ((1, 1), (1, 1)), "use_bias": bias, "kernel_init": _about(0.0), "conv_general_dilated": convolution}
        return nn.Conv(features, (4, 4), (stride, stride), **how, name=f"conv_{n}")(x)


def standardise(net, params, x):
    """Parameters with which every ActNorm gives the batch x mean 0 and standard deviation 1: before the first step."""
    _, new = net.apply(params, x, train=True, mutable=["params"])
    return {**params, "params": new["params"]}
