"""What the recorded decoder terms are worth.

Official code (guided-diffusion, ``discretized_gaussian_log_likelihood``) forms a bin's mass as the difference of two cdfs in
float64. Each is rounded to 2^-53, so that the mass has an error of 2^-52, be it as small as 1e-12; the derivative of a cdf,
(1 - tanh^2) u' / 2, has one of 2^-53 u'. Ours forms the mass as a product: ``test_gd_rounding.py`` shows which side is off.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.base import replace
from diffjax.likelihood import variational

ROUNDING = 2.0**-52


def rounding(kernel, p, x_0, row):
    """Bits per dimension by which a recorded decoder term may be off, a scalar; 0 where row.s > 0."""
    mean, log_std = _gaussian(kernel, p, row)
    log_p = variational.discretised_log_likelihood(x_0, mean, log_std, "tanh")
    return jnp.where(row.s == 0, ROUNDING * jnp.exp(-log_p).mean() / np.log(2), 0.0)


def gradient_rounding(kernel, p, x_0, row):
    """The same for its gradient to (p.x0, p.mix), per entry."""

    def of(x0, mix):
        return _gaussian(kernel, replace(p, x0=x0, mix=mix), row)

    (mean, log_std), pull = jax.vjp(of, p.x0, p.mix)
    slack = entry_rounding(x_0, mean, log_std)
    scale = jnp.where(row.s == 0, 1 / (x_0.size * np.log(2)), 0.0)
    return jax.tree.map(lambda a: scale * jnp.abs(a), pull(slack))


def entry_rounding(x, mean, log_std):
    """By how much the recorded derivatives of a pixel's log-mass to (mean, log_std) may be off, each of the pixel's shape.

    d log p = (f_+ dz_+ - f_- dz_-) / mass, f = (1 - tanh^2) u' / 2. A mass within its rounding of the official floor, 1e-12,
    may have been cut or not."""
    each = lambda x, mean, log_std: variational.discretised_log_likelihood(x, mean, log_std, "tanh").sum()
    gradients = jax.grad(each, (1, 2))(x, mean, log_std)
    mass = jnp.exp(variational.discretised_log_likelihood(x, mean, log_std, "tanh"))
    inverse_std = jnp.exp(-log_std)
    z_up, z_down = (inverse_std * (x - mean + side) for side in (1 / 255, -1 / 255))
    slope = lambda z: (2 / np.pi) ** 0.5 * (1 + 3 * 0.044715 * z**2)
    up, down = jnp.where(x > 0.999, 0, slope(z_up)), jnp.where(x < -0.999, 0, slope(z_down))  # the open bins have one side
    sides = (inverse_std * (up + down), jnp.abs(z_up) * up + jnp.abs(z_down) * down)
    floor = jnp.abs(mass - 1e-12) <= ROUNDING
    return tuple(
        (0.5 * ROUNDING * side + ROUNDING * jnp.abs(g)) / mass + jnp.where(floor, jnp.abs(g), 0)
        for side, g in zip(sides, gradients)
    )


def _gaussian(kernel, p, row):
    """(mean, log of the standard deviation) of p(x_s | x_t), both of the image's shape."""
    mean, _ = kernel.transition(p, p.x, row)
    return mean, 0.5 * kernel.log_variance(p, p.x, row) + 0 * mean
