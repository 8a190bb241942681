"""The networks of Sohl-Dickstein et al. 2015 (arXiv:1503.03585, appendix D.2): they are told the time at their end alone.

A network gives `bumps` numbers for each output and the time picks among them: output = numbers . basis, where `basis` (bumps,)
says how near the time is to each of `bumps` centres. One pass serves every time. The outputs are (mu, b), each of x's shape,
which `likelihood.nonequilibrium.denoiser` makes a mean and a variance of.

The paper has softplus after its convolutions and tanh after its dense layers; released code has a leaky ReLU (0.05)
everywhere, within each scale of a multi-scale convolution, where the paper has one behind their sum.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from .layers import average_pool, conv, nearest


def leaky(x):
    return jnp.where(x > 0, x, 0.05 * x)


class MultiScale(nn.Module):
    """The mean over scales of a 3 x 3 convolution of x pooled by 2^scale, put back by repeating pixels; sides divide by the
    coarsest."""

    features: int
    scales: int = 1
    paper: bool = False

    @nn.compact
    def __call__(self, x):
        coarse = max(self.scales - 1, 0)
        if x.shape[-3] % 2**coarse or x.shape[-2] % 2**coarse:
            raise ValueError(f"{self.scales} scales do not divide images of {x.shape[-3]}x{x.shape[-2]}: use fewer")
        pooled = [x]
        for _ in range(coarse):
            pooled.append(average_pool(pooled[-1]))
        total = 0.0
        for scale in reversed(range(self.scales)):
            h = conv(self.features, name=f"scale{scale}")(pooled[scale])
            total = total + (h if self.paper else leaky(h))
            total = nearest(total) if scale else total
        total = total / self.scales
        return jax.nn.softplus(total) if self.paper else total


class MLP(nn.Module):
    """Dense layers of `widths`, an activation after each; `last`: after the last one too."""

    widths: tuple
    paper: bool = False
    last: bool = True

    @nn.compact
    def __call__(self, x):
        for n, width in enumerate(self.widths):
            x = nn.Dense(width, name=f"linear{n}")(x)
            if self.last or n < len(self.widths) - 1:
                x = jnp.tanh(x) if self.paper else leaky(x)
        return x


def read_out(numbers, basis, shape):
    """(mu, b), each of `shape` (..., C), at the time of `basis` from `numbers` (..., C * 2 * bumps)."""
    z = numbers.reshape(*shape, 2, basis.shape[-1]) @ basis.astype(numbers.dtype)
    return z[..., 0], z[..., 1]


class MultiScaleNet(nn.Module):
    """x (..., H, W, C), basis (bumps,) -> (mu, b), each of x's shape: multi-scale convolutions, beside them (optional) a dense
    network on the whole image, then the same dense network at every pixel.

    conv_width, conv_layers, scales    of the convolutions
    dense_width, dense_features        of the network on the whole image, `conv_layers` deep as released; 0 features: none
    upper                              hidden widths of the network at every pixel
    paper                              the paper's activations instead of the code's
    """

    bumps: int = 10
    conv_width: int = 20
    conv_layers: int = 4
    scales: int = 1
    dense_width: int = 100
    dense_features: int = 0
    upper: tuple = (20,)
    paper: bool = False

    @nn.compact
    def __call__(self, x, basis):
        lead, (height, width, channels) = x.shape[:-3], x.shape[-3:]
        h = x
        for n in range(self.conv_layers):
            h = MultiScale(self.conv_width, self.scales, self.paper, name=f"layer{n}")(h)
        if self.dense_features:  # each part is scaled where there are two
            h = h / math.sqrt(self.conv_width)
            pixels = height * width * self.dense_features
            widths = (self.dense_width,) * (self.conv_layers - 1) + (pixels,)
            flat = MLP(widths, self.paper, name="lower")(x.reshape(*lead, height * width * channels))
            flat = flat.reshape(*lead, height, width, self.dense_features) / math.sqrt(self.dense_features)
            h = jnp.concatenate([h, flat], -1)
        numbers = MLP((*self.upper, channels * 2 * self.bumps), self.paper, last=False, name="upper")(h)
        return read_out(numbers, basis, x.shape)


class RadialNet(nn.Module):
    """The paper's network for the Swiss roll: x (D,), basis (bumps,) -> (mu, b), each (D,), by one hidden layer of radial
    basis functions exp(-|x - c|^2 / (2 w^2)), normalised to sum 1, or with `hidden` layers by an MLP of tanh instead."""

    bumps: int = 10
    centres: int = 16
    hidden: tuple = ()

    @nn.compact
    def __call__(self, x, basis):
        if self.hidden:
            h = MLP(self.hidden, True, name="hidden")(x)
        else:
            centres = self.param("centres", nn.initializers.normal(1.0), (self.centres, x.shape[-1]))
            log_width = self.param("log_width", nn.initializers.constant(math.log(0.5)), (self.centres,))
            off = ((x[..., None, :] - centres.astype(x.dtype)) ** 2).sum(-1)
            h = jax.nn.softmax(-0.5 * off * jnp.exp(-2 * log_width).astype(x.dtype), axis=-1)
        return read_out(nn.Dense(x.shape[-1] * 2 * self.bumps, name="read")(h), basis, x.shape)
