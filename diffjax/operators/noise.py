"""Measurements with noise: y = A(x) + noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ..base import Measurement, clip, in_range, normal
from .checks import by_part, check_level


def gaussian(key, y, std):
    """y + std * unit Gaussian noise: an array, complex (``std`` for the real and for the imaginary part), or a tuple.

    std: one number, an array that broadcasts to y, or for a tuple y a tuple of them. Raises ValueError for one that does not,
    or is negative."""
    in_range("std", std, 0, np.finfo(np.float64).max, remedy="give a standard deviation >= 0")
    check_level(std, y)
    leaves, structure = jax.tree.flatten(y)

    def noisy(std, key, a):
        real = jnp.finfo(a.dtype).dtype
        scale = jnp.asarray(std).astype(real)
        if not jnp.iscomplexobj(a):
            return a + scale * normal(key, a.shape, real)
        z = normal(key, (2, *a.shape), real)
        return a + jax.lax.complex(scale * z[0], scale * z[1])

    keys = jax.tree.unflatten(structure, list(jax.random.split(key, len(leaves))))
    return by_part(noisy, std, keys, y)


def poisson(key, y, rate=1.0, levels: float = 255.0):
    """Photon counts, in the convention of DPS: y in [-1, 1] (clamped) becomes v = (y + 1) / 2, Poisson(levels rate v) /
    (levels rate), and that on [-1, 1] again, clamped. rate: 1.0 is the paper's; a lower one is noisier. ValueError unless rate
    and levels are > 0."""
    for name, value in (("rate", rate), ("levels", levels)):
        in_range(name, value, np.nextafter(0, 1), np.finfo(np.float64).max, remedy="give a number > 0")
    v = clip((y + 1) / 2, 0.0, 1.0)
    photons = levels * jnp.asarray(rate).astype(y.dtype)
    counts = jax.random.poisson(key, photons * v).astype(y.dtype)
    return clip(2 * counts / photons - 1, -1.0, 1.0)


def measure(key, A, x, noise_std=0.0, value_range=(-1.0, 1.0)) -> Measurement:
    """y = A(x) + noise_std * unit Gaussian noise, as the ``Measurement`` a method takes. ``noise_std`` in the units of y: one
    number, an array that broadcasts to y, or for the tuple of a ``stack`` a tuple of them."""
    return Measurement(gaussian(key, A(x), noise_std), A, noise_std, value_range)
