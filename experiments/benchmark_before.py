"""What diffjax.nets did before, to be measured against: attention over all tokens at once, JAX's gradient by the kernel."""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
from jax.interpreters import ad

from diffjax.nets import convolution, layers
from diffjax.nets.attention import split


def attend(qkv, heads, order):
    """Attention in the layout of its projection, normalised before the product with v."""
    q, k, v = split(qkv, heads, order)
    scale = q.shape[-1] ** -0.25
    weight = layers.wide(jnp.einsum("...qhd,...khd->...hqk", q * scale, k * scale))
    weight = jax.nn.softmax(weight, axis=-1).astype(v.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weight, v).reshape(*qkv.shape[:-1], qkv.shape[-1] // 3)


def by_kernel(ct, x, kernel, **how):
    """The kernel's cotangent as JAX writes it: batch and channels exchanged in place."""
    return jax.linear_transpose(functools.partial(convolution._convolve, x, **how), kernel.aval)(ct)[0]


@contextlib.contextmanager
def before():
    """Networks traced within are those of before."""
    rule = functools.partial(ad.defbilinear, convolution._primitive, convolution._by_input)
    now = layers.attend
    layers.attend = attend
    rule(by_kernel)
    try:
        yield
    finally:
        layers.attend = now
        rule(convolution._by_kernel)
