"""Trajectories, model probabilities and bounds of Sohl-Dickstein et al. 2015 (arXiv:1503.03585), for any denoiser.

The model is the chain that ``variational`` bounds: rows (t, s) of a descent, p(x_s | x_t) the kernel's Gaussian, the last row
a ``decoder``. Its probability is an average over forward trajectories (eq. 9; annealed importance sampling, Jarzynski),

    p(x_0) = E_q(x_{1..T} | x_0) [w],     w = p(x_T) prod p(x_s | x_t) / q(x_t | x_s)

By Bayes' rule w = p(x_T) / q(x_T | x_0) prod_{s > 0} p(x_s | x_t) / q(x_s | x_t, x_0) p(x_0 | x_t): the same number, as
factors that are near 1 if the model is good. Their logarithms are what is summed. The mean of log w is the lower bound K
(eqs. 10 to 14), whose steps are KL divergences; ``variational.bound`` is minus that, in bits per dimension.

Paper and released code differ: the code takes one t of 1 ... T - 1 for a minibatch and multiplies its KL by T, where the sum
has T - 1 terms. It overstates every KL by T / (T - 1): for exact standard-normal data, whose K is that of the null model, its
expectation is -0.111 bits at T = 20, where the sum is 0. Here the sum is the sum.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import process
from ..base import expand, in_range, namespace, normal, pytree, static, whole
from ..denoisers import from_previous
from ..denoisers.adapters import _by_value
from ..method import as_method
from ..sample import bind, sample
from ..schedules import discrete
from . import variational

FORWARD, WEIGHTS = range(2)  # streams of a key


# --- trajectories ---------------------------------------------------------------------------------------------------


def forward(key, schedule, table, x_0):
    """A forward trajectory, q(x_t | x_s) from x_0 up through the times of ``table``: (rows + 1, *x_0.shape), x_0 first.

    table: a descent without jumps to 0; its times are those of the trajectory, from the last row's to the first's.
    """
    a, std = process.transition(schedule, table.t, table.s)
    up = [jnp.asarray(c)[::-1].astype(x_0.dtype) for c in (a, std)]

    def climb(x, inputs):
        a, std, i = inputs
        z = normal(jax.random.fold_in(jax.random.fold_in(key, FORWARD), i), x.shape, x.dtype)
        x = a * x + std * z
        return x, x

    _, states = jax.lax.scan(climb, x_0, (*up, jnp.asarray(table.i)[::-1]))
    return jnp.concatenate([x_0[None], states])


def _state(x, row, info):
    return x


def reverse(key, denoise, kernel, table, shape_or_x, dtype=None):
    """A trajectory of the model from x_T down, (rows + 1, *shape), x_T first: ``sample`` with every state kept. The last row
    gives the decoder's mean, as a sampler's does."""
    if not hasattr(shape_or_x, "shape"):
        key, key_start = jax.random.split(key)
        method = as_method(denoise)
        bound_kernel = bind(method, kernel)
        noise = normal(key_start, tuple(shape_or_x), jnp.float32 if dtype is None else dtype)
        shape_or_x = method.start(bound_kernel, jax.tree.map(lambda a: a[0], table.rows()), noise)
    states = sample(key, denoise, table, shape_or_x, kernel=kernel, trace=_state).trace
    return jnp.concatenate([shape_or_x[None], states])


# --- the model's probability ----------------------------------------------------------------------------------------


@pytree
class Annealed:
    """An estimate of p(x_0) and what it was made of.

    log_p:           log of the mean weight, in nats: unbiased for p itself. Its mean lies below log p, by half the variance of
                     the mean weight where that is small
    standard_error:  of the mean weight, relative to it, and so of log_p in nats
    effective:       effective number of trajectories, (sum w)^2 / sum w^2. Below a few, neither the estimate nor its
                     error says more than the lower bound: too few of the trajectories that matter were met
    lower, lower_error: mean of log w, the bound K, in nats, and its standard error
    log_weights:     (trajectories,)
    steps:           (rows,) mean log factor of each row; ``prior`` that of x_T: they sum to ``lower``
    """

    log_p: Any
    standard_error: Any
    effective: Any
    lower: Any
    lower_error: Any
    log_weights: Any
    steps: Any
    prior: Any
    size: int = static(default=1)

    @property
    def bits(self):
        """-log2 p(x_0) per dimension."""
        return -self.log_p / (self.size * math.log(2))


def summary(log_w):
    """(log mean w, relative standard error of the mean, effective number) of log-weights (n,), n >= 2."""
    n = log_w.shape[0]
    top = jax.lax.stop_gradient(log_w.max())
    w = jnp.exp(log_w - top)
    mean = w.mean()
    error = jnp.sqrt(((w / mean - 1) ** 2).sum() / (n * (n - 1.0)))
    return jnp.log(mean) + top, error, w.sum() ** 2 / (w**2).sum()


def log_factors(key, denoise, kernel, table, x_0, *, decoder="discretised", cdf="exact"):
    """(log factor of x_T, log factors (rows,)) of one forward trajectory, in nats: log w is their sum. Arguments and errors as
    for :func:`annealed`."""
    method = as_method(denoise)
    kernel = bind(method, kernel)
    variational.check(kernel, table, x_0, decoder, cdf)
    schedule, planned = kernel.schedule, variational.rows(kernel, table, x_0.dtype)
    noise = lambda i: normal(jax.random.fold_in(jax.random.fold_in(key, WEIGHTS), i), x_0.shape, x_0.dtype)

    def step(x_t, row):
        z, p = noise(row.i + 1), method.predict(x_t, row.t)
        (true_mean, true_log_var), (mean, log_var) = variational.gaussians(kernel, p, x_0, row)
        std = jnp.exp(0.5 * true_log_var)
        off = (true_mean - mean + std * z) * jnp.exp(-0.5 * log_var)
        ratio = 0.5 * (true_log_var - log_var + (z - off) * (z + off))
        last = row.s == 0
        ratio = jnp.where(last, variational.log_decoder(p, x_0, mean, log_var, decoder, cdf), ratio)
        return jnp.where(last, x_0, true_mean + std * z), ratio.sum()

    i = jnp.asarray(planned.i)[0]
    alpha, sigma = (expand(c, x_0) for c in process.marginal(schedule, planned.t[0]))
    z = noise(i)
    x = alpha * x_0 + sigma * z
    if schedule.variance_preserving:
        first = 0.5 * (z - x) * (z + x) + jnp.log(sigma)
    else:  # p(x_T) = N(0, sigma_T^2)
        first = -0.5 * (alpha * x_0 / sigma) * (alpha * x_0 / sigma + 2 * z)
    _, factors = jax.lax.scan(step, x, planned)
    return first.sum(), factors


def annealed(
    key, denoise, kernel, table, x_0, trajectories: int = 64, *, batch=None, decoder="discretised", cdf="exact"
) -> Annealed:
    """The probability of one image under the model, from forward trajectories.

    x_0:           one image; on the 8-bit grid in [-1, 1] unless another decoder is chosen (then p is a density)
    kernel, table: the chain: ``DDPM``, and a descent without jumps to 0
    trajectories:  at least 2, walked together (memory of as many images), or ``batch`` at a time
    decoder, cdf:  of ``variational``
    Raises ValueError as ``variational.bound`` does, and for too few trajectories.
    """
    whole("trajectories", trajectories, 2)
    variational.check(bind(as_method(denoise), kernel), table, x_0, decoder, cdf)
    one = lambda key: log_factors(key, denoise, kernel, table, x_0, decoder=decoder, cdf=cdf)
    keys = jax.random.split(key, trajectories)
    first, factors = jax.vmap(one)(keys) if batch is None else jax.lax.map(one, keys, batch_size=whole("batch", batch))
    log_w = first + factors.sum(1)
    lower_error = log_w.std(ddof=1) / trajectories**0.5
    return Annealed(*summary(log_w), log_w.mean(), lower_error, log_w, factors.mean(0), first.mean(), x_0.size)


# --- the lower bound and its entropies ------------------------------------------------------------------------------


@pytree
class LowerBound:
    """In nats of the whole image.

    total:      the bound on log p(x_0): -``prior`` - sum of ``steps``
    steps:      (rows,) KL(q(x_s | x_t, x_0) || p(x_s | x_t)); last: -log p(x_0 | x_t)
    prior:      KL(q(x_T | x_0) || p(x_T))
    paper:      K as eq. 14 has it: -sum of the KLs + H_q(X_T | X_0) - H_q(X_1 | X_0) - H_p(X_T). It equals ``total`` with the
                decoder "forward" for data of mean square 1, and on average over such data
    null:       log-likelihood of such data under N(0, 1), the paper's null model
    """

    total: Any
    steps: Any
    prior: Any
    paper: Any
    null: Any


def lower_bound(key, denoise, kernel, table, x_0, *, decoder="forward", cdf="exact") -> LowerBound:
    """A one-draw-per-row estimate of K. Arguments and errors as for ``variational.bound``; for schedules that preserve
    variance, as ``paper`` compares with N(0, 1)."""
    kernel = bind(as_method(denoise), kernel)
    found = variational.bound(key, denoise, kernel, table, x_0, decoder=decoder, cdf=cdf)
    nats, schedule = x_0.size * math.log(2), kernel.schedule
    steps = nats * found.terms
    of = lambda sigma: x_0.size * process.entropy(sigma**2)
    edge = of(schedule.sigma(table.t[0])) - of(schedule.sigma(table.t[-1])) - of(np.ones(()))
    return LowerBound(-nats * found.total, steps, nats * found.prior, edge - steps[:-1].sum(), -of(np.ones(())))


def entropy_bounds(schedule, table, variance=None):
    """(lower, upper) bounds on H_q(X_s | X_t), the entropy of each reverse step, (rows,) in nats per dimension
    (section 2.6 of the paper):

        H_q(X_t | X_s) + H_q(X_s | X_0) - H_q(X_t | X_0)  <=  H_q(X_s | X_t)  <=  H_q(X_t | X_s)

    They depend on the forward process alone. The upper one holds as entropy grows from s to t. That is so on VE always, and
    on a schedule that preserves variance for data whose variance, a mean over dimensions, is at most 1: for all in [-1, 1].

    variance: that of the data, if known: then the upper bound is that of a Gaussian with as much, which holds for any data
              and is the lower of the two where variance grows. 1 on a variance-preserving schedule gives the same
    At s = 0 the lower bound is -inf. Raises ValueError for a negative variance.
    """
    step = process.transition(schedule, table.t, table.s)[1] ** 2
    sigma_s, sigma_t = schedule.sigma(table.s), schedule.sigma(table.t)
    xp = namespace(step, sigma_s, sigma_t, variance)
    log = lambda v: 0.5 * (1 + xp.log(2 * xp.pi * xp.where(v > 0, v, 1.0)))
    lower = xp.where(sigma_s > 0, log(step * sigma_s**2 / sigma_t**2), -xp.inf)
    if variance is None:
        return lower, log(step)
    in_range("variance", variance, 0)
    v_s, v_t = (schedule.alpha(t) ** 2 * variance + schedule.sigma(t) ** 2 for t in (table.s, table.t))
    return lower, log(step * v_s / v_t)


# --- the paper's own model ------------------------------------------------------------------------------------------


def temporal_basis(T: int, bumps: int = 10):
    """(bumps, T): Gaussian bumps over the official index 0 ... T - 1, centres equally spaced, half a spacing wide, that sum to
    1 at each time. Raises ValueError for fewer than 2 bumps or steps."""
    T, bumps = whole("T", T, 2), whole("bumps", bumps, 2)
    centres = np.linspace(-1, 1, bumps)
    width = 0.5 * (centres[1] - centres[0])
    basis = np.exp(-((np.linspace(-1, 1, T) - centres[:, None]) ** 2) / (2 * width**2))
    return basis / basis.sum(0)


def learned_betas(coefficients, T: int, min_beta=1e-6, first_beta=1e-3):
    """betas (T,) of a schedule that is learned: b_t = low_t + sigmoid(logit(1 / (T - t + 1)) + coefficients . basis_t)
    (1 - low_t - 1e-5).

    coefficients: (bumps,), zeros give ``schedules.nonequilibrium_betas(T)``. Released code leaves them at zero, as they are
    never updated; the paper learns them by gradient ascent on K. Differentiable.
    low_t: ``min_beta``, and at the first step ``first_beta`` more, which the paper holds up against overfitting.
    """
    bumps = coefficients.shape[0]
    base = 1 / np.linspace(T, 2, T)
    low = np.full(T, min_beta)
    low[0] += first_beta
    xp = namespace(coefficients)
    moved = np.log(base / (1 - base)) + xp.matmul(coefficients, xp.asarray(temporal_basis(T, bumps)))
    return low + (1 - low - 1e-5) / (1 + xp.exp(-moved))


def reverse_gaussian(coefficients, x, beta, T: int):
    """(mean, log-variance) of p(x_{t-1} | x_t) as released code has it:

        mean = x sqrt(1 - beta) + mu sqrt(beta),      variance = sigmoid(logit(beta) + b / sqrt(T))

    coefficients: (mu, b), each of x's shape; beta: of this step, T: number of steps.
    """
    mu, b = coefficients
    beta = expand(beta, x)
    moved = jnp.log(beta) - jnp.log1p(-beta) + b / T**0.5
    return x * jnp.sqrt(1 - beta) + mu * jnp.sqrt(beta), jax.nn.log_sigmoid(moved)


def denoiser(apply, params, betas, basis=None):
    """The paper's model as a denoiser: with ``kernels.DDPM(variance="learned")`` and a table of unit steps it is that chain.

    apply:  (params, x, basis_t) -> (mu, b), or one array with both along a new last axis; x one image, basis_t (bumps,)
    params: its parameters; betas: (T,), of ``learned_betas`` for example; both are leaves: gradients reach them
    basis:  (bumps, T), default ``temporal_basis(T)``. Between whole times it is interpolated, and so is beta
    """
    T = betas.shape[0]
    basis = temporal_basis(T) if basis is None else basis
    return from_previous(_Coefficients(_by_value(apply)), (betas, jnp.asarray(basis), params), discrete(betas))


@dataclasses.dataclass(frozen=True)
class _Coefficients:
    """(params, x, i) -> (mean, log-variance); equal for equal networks, so that the same one built again costs no retrace."""

    apply: Callable

    def __call__(self, params, x, i):
        betas, basis, inner = params
        T = betas.shape[0]
        weight = jnp.maximum(0, 1 - jnp.abs(i - jnp.arange(T))).astype(x.dtype)
        out = self.apply(inner, x, (basis.astype(x.dtype) * weight).sum(-1))
        pair = out if isinstance(out, tuple) else (out[..., 0], out[..., 1])
        return reverse_gaussian(pair, x, (jnp.asarray(betas).astype(x.dtype) * weight).sum(), T)
