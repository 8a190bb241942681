"""The variational bound of one image, in bits per dimension (Ho et al. 2020, section 3; Nichol & Dhariwal 2021).

    -log2 p(x_0) / D  <=  KL(q(x_T | x_0) || p(x_T))  +  sum over rows (t, s) of
                              KL(q(x_s | x_t, x_0) || p(x_s | x_t))     s > 0
                              -log p(x_0 | x_t)                         s = 0: the decoder

A row's term is whatever kernel (``DDPM``, its four variances) and prediction say, so that any descending table has a
bound: a respaced one bounds the respaced model. The decoder, for the last row, is one of

    "discretised"  the mass of an 8-bit pixel's bin under N(mean, var): probabilities of images, as DDPM reports them
    "density"      N(x_0; mean, var) itself: for data that are not rounded
    "forward"      N(x_0; alpha_t x_t, sigma_t^2), no network: the reversed forward step of Sohl-Dickstein et al. 2015 (A.2)

Official code (guided-diffusion, ``calc_bpd_loop``) draws one new noise per row and uses the clamped x0 of a clipped denoiser;
training uses the unclamped one. Its decoder takes the difference of two approximate cdfs, which loses one percent of the term
in float32, and never gives a pixel less than 1e-12, so that it may undercut -log p: ``cdf="tanh"`` is that approximation
formed without the difference, floor and all. The default is the Gaussian's own cdf, without a floor: a bound always.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from ..base import clip, expand, is_concrete, namespace, nearest, normal, numbers, pytree, whole
from ..doors import check_table
from ..method import Method, as_method
from ..process import kl_gaussian, q_sample
from ..sample import bind, coefficients
from ..timetables import from_times

DECODERS = ("discretised", "density", "forward")
CDFS = ("exact", "tanh")
LOG_TINY = float(np.log(1e-12))  # official floor of a pixel's probability
LOG_STD_MIN = -14.0  # a deviation of 1e-6 already is a point for bins of 1/127.5; below, float32 overflows
NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)


def log_cdf_argument(z):
    """u with Phi(z) = 0.5 (1 + tanh u) to 3e-4: guided-diffusion's approximation of the Gaussian cdf."""
    return (2 / np.pi) ** 0.5 * (z + 0.044715 * z**3)


def _log_bin(z, half):
    """log of (Phi(z + half) - Phi(z - half), Phi(z + half), 1 - Phi(z - half)). Small bins as phi times an integral by
    Gauss-Legendre, a sum of positive terms; wide ones as the difference of two cdfs of the lower tail, of which the smaller
    then is at most a fifth of the other."""
    signed = z
    z = jnp.abs(z)
    small = half * jnp.maximum(z, 1) < 2
    h, at = jnp.where(small, half, 1.0), jnp.where(small, z, 0.0)
    nodes, weights = (jnp.asarray(a, z.dtype).reshape(-1, *[1] * z.ndim) for a in (NODES, WEIGHTS))
    u = h * nodes
    inside = jnp.log(h) + jax.nn.logsumexp(-u * (at + 0.5 * u), 0, b=weights) - 0.5 * at**2 - 0.5 * np.log(2 * np.pi)
    h, at = jnp.where(small, 2.0, half), jnp.where(small, 0.0, z)
    cdfs = jnp.stack([h - at, -h - at, signed + half, half - signed])  # at once: the function is long
    upper, lower, below, above = log_ndtr(cdfs, series_order=6)
    return jnp.where(small, inside, upper + jnp.log1p(-jnp.exp(lower - upper))), below, above


def discretised_log_likelihood(x, mean, log_std, cdf="exact"):
    """Log-probability, in nats per pixel, of 8-bit values under N(mean, exp(log_std)^2).

    x: values k / 127.5 - 1 in [-1, 1]; a bin reaches 1/255 to both sides, the first and last are open outwards.
    cdf: "exact", or "tanh": guided-diffusion's approximation, each probability at least 1e-12. With Phi(z) = sigmoid(2 u(z)),
    a bin's mass then is sigmoid(2 u_+) sigmoid(-2 u_-) (1 - exp(-2 (u_+ - u_-))), a product without cancellation.
    Raises ValueError for another cdf.
    """
    if cdf not in CDFS:
        raise ValueError(f"unknown cdf {cdf!r}: {nearest(cdf, CDFS)}")
    inverse_std = jnp.exp(-jnp.maximum(log_std, jnp.asarray(LOG_STD_MIN, log_std.dtype)))
    z, half = (x - mean) * inverse_std, jnp.broadcast_to(inverse_std / 255, x.shape)
    if cdf == "exact":
        log_inside, log_below, log_above = _log_bin(z, half)
        return jnp.where(x < -0.999, log_below, jnp.where(x > 0.999, log_above, log_inside))
    log_below = jax.nn.log_sigmoid(2 * log_cdf_argument(z + half))
    log_above = jax.nn.log_sigmoid(-2 * log_cdf_argument(z - half))
    width = 2 * (2 / np.pi) ** 0.5 * half * (1 + 0.044715 * (3 * z**2 + half**2))  # u_+ - u_-
    log_inside = log_below + log_above + jnp.log(-jnp.expm1(-2 * width))
    log_p = jnp.where(x < -0.999, log_below, jnp.where(x > 0.999, log_above, log_inside))
    return clip(log_p, LOG_TINY, np.inf)


def log_normal(x, mean, log_var):
    """log N(x; mean, exp(log_var)) per coordinate, in nats."""
    return -0.5 * (np.log(2 * np.pi) + log_var + (x - mean) ** 2 * jnp.exp(-log_var))


def log_decoder(p, x_0, mean, log_var, decoder="discretised", cdf="exact"):
    """log p(x_0 | x_t) per coordinate, in nats, for the last row's prediction ``p`` and the kernel's (mean, log_var)."""
    if decoder == "discretised":
        return discretised_log_likelihood(x_0, mean, 0.5 * log_var, cdf)
    if decoder == "forward":
        mean, log_var = expand(p.alpha, p.x) * p.x, expand(2 * jnp.log(p.sigma), p.x)
    return log_normal(x_0, mean, log_var)


def _bits(nats):
    return jnp.mean(nats) / np.log(2.0).astype(nats.dtype)


def gaussians(kernel, p, x_0, row):
    """((mean, log_var) of q(x_s | x_t, x_0), (mean, log_var) of p(x_s | x_t)) for the prediction ``p`` at p.x = x_t."""
    k, x_t = row.k.move, p.x
    mean, _ = kernel.transition(p, x_t, row)
    log_var = jnp.broadcast_to(kernel.log_variance(p, x_t, row), x_t.shape)
    return (expand(k.c_0, x_t) * x_0 + expand(k.c_t, x_t) * x_t, expand(k.small, x_t)), (mean, log_var)


def term(kernel, p, x_0, row, *, decoder="discretised", cdf="exact"):
    """One row's term in bits per dimension: a KL, or where row.s = 0 the decoder's negative log-likelihood.

    kernel: ``DDPM`` (any kernel with ``transition`` and ``log_variance`` and DDPM's coefficients)
    p:      the prediction at p.x = x_t and row.t;  x_0: the clean image
    row:    a planned row: :func:`rows` or :func:`row_at`
    decoder, cdf: see above; "discretised" takes x_0 to be on the 8-bit grid in [-1, 1]
    """
    (true_mean, true_log_var), (mean, log_var) = gaussians(kernel, p, x_0, row)
    kl = kl_gaussian(true_mean, true_log_var, mean, log_var)
    return _bits(jnp.where(row.s == 0, -log_decoder(p, x_0, mean, log_var, decoder, cdf), kl))


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


def on_grid(x_0):
    """Raise ValueError unless known values are 8-bit ones, k / 127.5 - 1 with a whole k from 0 to 255."""
    a = numbers(x_0)
    if a is None or not a.size:
        return
    k = (np.asarray(a, np.float64) + 1) * 127.5
    low, high = float(a.min()), float(a.max())
    if not (low > -1.001 and high < 1.001):
        remedy = "divide an 8-bit image by 127.5 and subtract 1" if high > 2 else "scale it to [-1, 1]"
        raise ValueError(f"x_0 spans [{low:.4g}, {high:.4g}], outside [-1, 1]: {remedy}")
    off = np.abs(k - np.round(k)) > 0.02
    if off.any():
        hint = "if it is in [0, 1], take 2 x - 1; " if low >= 0 else ""
        raise ValueError(
            f"x_0 has the value {float(a[off][0]):.7g}, which is no 8-bit one, k / 127.5 - 1: {hint}round it, or use "
            "decoder='density' for data that are not rounded"
        )


def check(kernel, table, x_0, decoder, cdf) -> None:
    """Raise ValueError, as :func:`bound` says, for what has no bound."""
    _check(kernel)
    for name, value, valid in (("decoder", decoder, DECODERS), ("cdf", cdf, CDFS)):
        if value not in valid:
            raise ValueError(f"unknown {name} {value!r}: {nearest(value, valid)}")
    if decoder == "forward" and not kernel.schedule.variance_preserving:
        who = type(kernel.schedule).__name__
        raise ValueError(f"decoder 'forward' reverses a step that keeps N(0, 1), which {who} does not: use 'density'")
    check_table(table, kernel.schedule)
    if table.jumps or (is_concrete(table) and table.s[-1] != 0):
        raise ValueError(
            "the bound is a sum over a plain descent to 0: use a table without jumps that ends there, "
            "for example timetables.respaced(schedule, 250)"
        )
    if decoder == "discretised":
        on_grid(x_0)


@pytree
class Bound:
    """In bits per dimension: ``total`` = ``prior`` + sum of ``terms`` (rows,). ``x0_error``, ``eps_error`` (rows,): mean
    squared errors of the predictions on the way."""

    total: Any
    prior: Any
    terms: Any
    x0_error: Any
    eps_error: Any


def _of_row(denoise, kernel, x_0, how):
    """(row, unit noise) -> (term, mean squared errors of x0 and eps) with x_t drawn by that noise."""
    predict = as_method(denoise).predict

    def one(row, noise):
        p = predict(q_sample(kernel.schedule, x_0, row.t, noise), row.t)
        return term(kernel, p, x_0, row, **how), jnp.mean((p.x0 - x_0) ** 2), jnp.mean((p.eps - noise) ** 2)

    return one


def bound(key, denoise, kernel, table, x_0, *, recorded=None, decoder="discretised", cdf="exact") -> Bound:
    """A one-draw-per-row estimate of the bound on -log2 p(x_0) of one image. More draws: ``vmap`` over keys.

    x_0:       (H, W, C) or any shape; on the 8-bit grid in [-1, 1] unless another decoder is chosen
    kernel:    ``DDPM``, with a schedule of its own or the denoiser's
    table:     a descent without jumps from T to 0; its first time is where the prior is compared
    recorded:  unit noise (rows, H, W, C) in place of the key's
    decoder, cdf: of the last row, see above
    Raises ValueError for a kernel without a log-variance, a table that jumps or does not end at 0, an unknown decoder or cdf,
    "forward" on a schedule that does not preserve variance, and values that are no 8-bit ones where they must be.
    """
    kernel = bind(as_method(denoise), kernel)
    check(kernel, table, x_0, decoder, cdf)
    planned = jax.tree.map(jnp.asarray, rows(kernel, table, x_0.dtype))
    return _bound(key, as_method(denoise), kernel, planned, jnp.asarray(x_0), recorded, decoder, cdf)


@functools.partial(jax.jit, static_argnames=("decoder", "cdf"), inline=True)
def _bound(key, method, kernel, planned, x_0, recorded, decoder, cdf) -> Bound:
    one = _of_row(method, kernel, x_0, {"decoder": decoder, "cdf": cdf})

    def with_noise(inputs):
        row, noise = inputs
        if recorded is None:
            noise = normal(jax.random.fold_in(key, row.i), x_0.shape, x_0.dtype)
        return one(row, noise)

    terms, x0_error, eps_error = jax.lax.map(with_noise, (planned, recorded))
    prior = prior_term(kernel.schedule, x_0, planned.t[0])
    return Bound(prior + terms.sum(), prior, terms, x0_error, eps_error)


@pytree
class Estimate:
    """In bits per dimension: ``total`` = ``prior`` + ``decoder`` + ``steps``, each unbiased, and the ``standard_error`` of the
    total, of what was drawn."""

    total: Any
    standard_error: Any
    prior: Any
    decoder: Any
    steps: Any


def estimate(
    key, denoise, kernel, table, x_0, steps: int, *, decoder_draws: int = 4, decoder="discretised", cdf="exact"
) -> Estimate:
    """The bound from a part of its rows: its mean over keys is that of :func:`bound`.

    steps:          rows with s > 0 that are drawn (uniformly, with replacement), at least 2, each with its own noise
    decoder_draws:  noises for the last row, which is the largest and always taken; at least 2
    The rest, and errors, as :func:`bound`. A mean over few rows says little about rows it did not meet: where the largest
    terms are rare, the standard error of a small ``steps`` is too small as often as not.
    """
    steps, draws = whole("steps", steps, 2), whole("decoder_draws", decoder_draws, 2)
    kernel = bind(as_method(denoise), kernel)
    check(kernel, table, x_0, decoder, cdf)
    planned = jax.tree.map(jnp.asarray, rows(kernel, table, x_0.dtype))
    return _estimate(key, as_method(denoise), kernel, planned, jnp.asarray(x_0), steps, draws, decoder, cdf)


@functools.partial(jax.jit, static_argnames=("steps", "draws", "decoder", "cdf"), inline=True)
def _estimate(key, method, kernel, planned, x_0, steps, draws, decoder, cdf) -> Estimate:
    one, others = _of_row(method, kernel, x_0, {"decoder": decoder, "cdf": cdf}), planned.t.shape[0] - 1
    key_rows, key_noise = jax.random.split(key)
    drawn = jax.random.randint(key_rows, (steps,), 0, max(others, 1))
    chosen = jnp.concatenate([drawn, jnp.full(draws, others)])

    def with_noise(inputs):
        i, key = inputs
        row = jax.tree.map(lambda a: a[i], planned)
        return one(row, normal(key, x_0.shape, x_0.dtype))[0]

    terms = jax.lax.map(with_noise, (chosen, jax.random.split(key_noise, steps + draws)))
    inner, last = others * terms[:steps], terms[steps:]
    variance = inner.var(ddof=1) / steps + last.var(ddof=1) / draws
    prior = prior_term(kernel.schedule, x_0, planned.t[0])
    return Estimate(prior + last.mean() + inner.mean(), jnp.sqrt(variance), prior, last.mean(), inner.mean())
