"""The variational bound of one image, in bits per dimension (Ho et al. 2020, section 3; Nichol & Dhariwal 2021).

    -log2 p(x_0) / D  <=  KL(q(x_T | x_0) || p(x_T))  +  sum over rows (t, s) of
                              KL(q(x_s | x_t, x_0) || p(x_s | x_t))     s > 0
                              -log p(x_0 | x_t)                         s = 0, 8-bit pixels

A row's term is whatever kernel (``DDPM``, its four variances) and prediction say, so that any descending table has a
bound: a respaced one bounds the respaced model. Official code (guided-diffusion, ``calc_bpd_loop``) draws one new noise
per row and uses the clamped x0 of a clipped denoiser; training uses the unclamped one. Its decoder takes the difference
of two cdfs, which loses one percent of the term in float32; here the same quantity is formed from logarithms.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..base import clip, expand, is_concrete, namespace, pytree
from ..method import Method, as_method
from ..process import kl_gaussian, q_sample
from ..sample import bind, coefficients
from ..timetables import from_times

LOG_TINY = float(np.log(1e-12))  # official floor of a pixel's probability
LOG_STD_MIN = -14.0  # a deviation of 1e-6 already is a point for bins of 1/127.5; below, float32 overflows


def log_cdf_argument(z):
    """u with Phi(z) = 0.5 (1 + tanh u) to 3e-4: guided-diffusion's approximation of the Gaussian cdf."""
    return (2 / np.pi) ** 0.5 * (z + 0.044715 * z**3)


def discretised_log_likelihood(x, mean, log_std):
    """Log-probability, in nats per pixel, of 8-bit values under N(mean, exp(log_std)^2).

    x: values k / 127.5 - 1 in [-1, 1]; a bin reaches 1/255 to both sides, the first and last are open outwards. Each
    probability is at least 1e-12. With Phi(z) = sigmoid(2 u(z)), a bin's mass is
    sigmoid(2 u_+) sigmoid(-2 u_-) (1 - exp(-2 (u_+ - u_-))), a product without cancellation.
    """
    inverse_std = jnp.exp(-jnp.maximum(log_std, jnp.asarray(LOG_STD_MIN, log_std.dtype)))
    z, half = (x - mean) * inverse_std, inverse_std / 255
    log_below = jax.nn.log_sigmoid(2 * log_cdf_argument(z + half))
    log_above = jax.nn.log_sigmoid(-2 * log_cdf_argument(z - half))
    width = 2 * (2 / np.pi) ** 0.5 * half * (1 + 0.044715 * (3 * z**2 + half**2))  # u_+ - u_-
    log_inside = log_below + log_above + jnp.log(-jnp.expm1(-2 * width))
    log_p = jnp.where(x < -0.999, log_below, jnp.where(x > 0.999, log_above, log_inside))
    return clip(log_p, LOG_TINY, np.inf)


def _bits(nats):
    return jnp.mean(nats) / np.log(2.0).astype(nats.dtype)


def term(kernel, p, x_0, row):
    """One row's term in bits per dimension: a KL, or where row.s = 0 the decoder's negative log-likelihood.

    kernel: ``DDPM`` (any kernel with ``transition`` and ``log_variance`` and DDPM's coefficients)
    p:      the prediction at p.x = x_t and row.t;  x_0: the clean image, on the 8-bit grid in [-1, 1]
    row:    a planned row: :func:`rows` or :func:`row_at`
    """
    k, x_t = row.k.move, p.x
    mean, _ = kernel.transition(p, x_t, row)
    log_var = jnp.broadcast_to(kernel.log_variance(p, x_t, row), x_t.shape)
    true_mean = expand(k.c_0, x_t) * x_0 + expand(k.c_t, x_t) * x_t
    kl = kl_gaussian(true_mean, expand(k.small, x_t), mean, log_var)
    nll = -discretised_log_likelihood(x_0, mean, 0.5 * log_var)
    return _bits(jnp.where(row.s == 0, nll, kl))


def _check(kernel) -> None:
    if not hasattr(kernel, "log_variance"):
        raise ValueError(f"{type(kernel).__name__} says no log-variance, which the bound is made of: use kernels.DDPM")
    if kernel.schedule is None:
        raise ValueError(f"{type(kernel).__name__} has no schedule: pass kernels.{type(kernel).__name__}(schedule)")


def rows(kernel, table, dtype=jnp.float32):
    """The rows of ``table`` with the kernel's coefficients (float64 on the host, then ``dtype``), leading axis = rows. Raises
    ValueError for a kernel without a log-variance or a schedule."""
    _check(kernel)
    return coefficients(Method(None), kernel, table, dtype)


def row_at(kernel, t, dtype=jnp.float32):
    """The planned row t -> t - 1 of a table for a whole, possibly traced t in 1 ... T: what training needs. Raises ValueError
    as :func:`rows`, and for a schedule that is a formula."""
    _check(kernel)
    if not kernel.schedule.discrete:
        raise ValueError(f"the bound of training goes through whole times, but {type(kernel.schedule).__name__} is a formula")
    T = kernel.schedule.T
    every = rows(kernel, from_times(np.arange(T, -1, -1)), dtype)
    return jax.tree.map(lambda a: jnp.asarray(a)[T - jnp.asarray(t).astype(int)], every)


def prior_term(schedule, x_0, t):
    """KL(q(x_t | x_0) || N(0, 1)) in bits per dimension; N(0, sigma_t^2) for schedules that do not preserve variance."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    xp = namespace(alpha, sigma)
    if schedule.variance_preserving:
        constant = -(alpha**2) - xp.log1p(-(alpha**2))  # sigma^2 - 1 - log sigma^2, tiny and all rounding otherwise
    else:
        alpha, constant = alpha / sigma, 0.0
    return _bits(0.5 * (expand(alpha, x_0) ** 2 * x_0**2 + expand(constant, x_0)))


@pytree
class Bound:
    """In bits per dimension: ``total`` = ``prior`` + sum of ``terms`` (rows,). ``x0_error``, ``eps_error`` (rows,): mean
    squared errors of the predictions on the way."""

    total: Any
    prior: Any
    terms: Any
    x0_error: Any
    eps_error: Any


def bound(key, denoise, kernel, table, x_0, *, recorded=None) -> Bound:
    """A one-draw-per-row estimate of the bound on -log2 p(x_0) of one image.

    x_0:       (H, W, C), on the 8-bit grid in [-1, 1]
    kernel:    ``DDPM``, with a schedule of its own or the denoiser's
    table:     a descent without jumps from T to 0; its first time is where the prior is compared
    recorded:  unit noise (rows, H, W, C) in place of the key's
    Raises ValueError for a kernel without a log-variance, and a table that jumps or does not end at 0.
    """
    kernel = bind(as_method(denoise), kernel)
    _check(kernel)
    if table.jumps or (is_concrete(table) and table.s[-1] != 0):
        raise ValueError(
            "the bound is a sum over a plain descent to 0: use a table without jumps that ends there, "
            "for example timetables.respaced(schedule, 250)"
        )
    schedule, predict = kernel.schedule, as_method(denoise).predict

    def one(inputs):
        row, noise = inputs
        if recorded is None:
            noise = jax.random.normal(jax.random.fold_in(key, row.i), x_0.shape, x_0.dtype)
        p = predict(q_sample(schedule, x_0, row.t, noise), row.t)
        return term(kernel, p, x_0, row), jnp.mean((p.x0 - x_0) ** 2), jnp.mean((p.eps - noise) ** 2)

    terms, x0_error, eps_error = jax.lax.map(one, (rows(kernel, table, x_0.dtype), recorded))
    prior = prior_term(schedule, x_0, table.t[0])
    return Bound(prior + terms.sum(), prior, terms, x0_error, eps_error)
