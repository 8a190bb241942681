"""Bits per dimension of quantised images, by uniform dequantisation (Theis et al. 2016, section 3.1).

A density of images with noise uniform within their levels bounds the images' probability: -log2 P / D is at most its bits.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from ..base import numbers, whole


def dequantise(key, image, data_range=(-1.0, 1.0), levels: int = 256):
    """``image`` with uniform noise within each level: low + (high - low) (k + u) / levels, u in [0, 1), where it is
    low + (high - low) k / (levels - 1), like k / 127.5 - 1. Raises ValueError for known values that are no level."""
    low, high = check_range(data_range, levels)
    image = jnp.asarray(image)
    k = (image - low) / (high - low) * (levels - 1)
    values = numbers(image)
    if values is not None and values.size:
        at = (values.astype(np.float64) - low) / (high - low) * (levels - 1)
        wrong = ~((at > -0.02) & (at < levels - 0.98) & (np.abs(at - np.round(at)) < 0.02))
        if wrong.any():
            raise ValueError(
                f"{values[wrong].ravel()[0]:.6g} is none of {levels} levels from {low:g} to {high:g}: give the image's "
                "data_range and levels; what is not quantised needs no noise"
            )
    u = jax.random.uniform(key, k.shape, k.dtype)
    return low + (high - low) * (jnp.round(k) + u) / levels


def check_range(data_range, levels):
    whole("levels", levels, 2)
    if np.shape(data_range) != (2,) or not data_range[0] < data_range[1]:
        raise ValueError(f"data_range {data_range} is empty: give (low, high), for example (-1.0, 1.0)")
    return float(data_range[0]), float(data_range[1])


def bits_per_dimension(nats, size: int, data_range=(-1.0, 1.0), levels: int = 256):
    """-nats / (D ln 2) - log2((high - low) / levels), D = ``size``: of what :func:`dequantise` gives."""
    low, high = check_range(data_range, levels)
    return -nats / (size * math.log(2)) + math.log2(levels / (high - low))
