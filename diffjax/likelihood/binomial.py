"""Binomial diffusion of binary data (Sohl-Dickstein et al. 2015, appendix B.2 and table 1), one sequence or image of bits.

    q(x_t | x_s)      = B(x_t; x_s (1 - beta) + beta / 2)           a bit is kept, or replaced by a fair coin
    q(x_t | x_0)      = B(x_t; x_0 keep_t + (1 - keep_t) / 2)       keep_t = prod_{j <= t} (1 - beta_j)
    p(x_s | x_t)      = B(x_s; f_b(x_t, t))                         p(x_T) = B(1 / 2)

with beta_t = 1 / (T - t + 1) (``schedules.harmonic_betas``), which erases as many bits at each step and all by the last.
There is no official code. Bits are numbers 0 and 1 of a floating type. Times are whole: s = t - 1, t = 1 ... T.

A reverse process is ``reverse(x_t, t) -> logits`` of x_{t-1} = 1, of x_t's shape. :func:`from_clean` makes one of a network
that guesses the clean bits, by the exact posterior of each bit: the best there is if the guess is right.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..base import is_concrete, numbers, pytree, whole
from .nonequilibrium import summary

TINY = 1e-30


def check_bits(x_0):
    """Raise ValueError unless known values are all 0 or 1."""
    a = numbers(x_0)
    if a is None:
        return
    wrong = a[(a != 0) & (a != 1)]
    if wrong.size:
        raise ValueError(f"x_0 has the value {float(wrong.ravel()[0]):.7g}: binomial diffusion takes bits, 0 and 1")


@pytree
class Binomial:
    """The forward process. betas: (T,), in (0, 1]; may be traced. Raises ValueError for others that are known."""

    betas: Any

    def __post_init__(self):
        a = numbers(self.betas)
        if a is None:
            return
        if a.ndim != 1 or not a.size:
            raise ValueError(f"betas have shape {a.shape}: give one axis of T >= 1 values")
        wrong = a[~((a > 0) & (a <= 1))]
        if wrong.size:
            raise ValueError(f"beta {float(wrong[0]):.4g} is outside (0, 1]: use schedules.harmonic_betas(T)")

    @property
    def T(self) -> int:
        return self.betas.shape[0]

    def keep(self):
        """(T + 1,): the share of bits that are still those of x_0, keep_0 = 1."""
        xp = np if is_concrete(self.betas) else jnp
        return xp.concatenate([xp.ones(1), xp.cumprod(1 - xp.asarray(self.betas))])

    def marginal(self, x_0, t):
        """P(x_t = 1 | x_0)."""
        keep = jnp.asarray(self.keep()).astype(x_0.dtype)[t]
        return x_0 * keep + 0.5 * (1 - keep)

    def transition(self, x_s, t):
        """P(x_t = 1 | x_{t-1} = x_s)."""
        beta = jnp.asarray(self.betas).astype(x_s.dtype)[t - 1]
        return x_s * (1 - beta) + 0.5 * beta

    def posterior(self, x_t, x_0, t):
        """P(x_{t-1} = 1 | x_t, x_0)."""
        before = self.marginal(x_0, t - 1)
        one, zero = (self.transition(jnp.full_like(x_t, bit), t) for bit in (1.0, 0.0))
        likelihood = lambda p: jnp.where(x_t > 0.5, p, 1 - p)
        up, down = before * likelihood(one), (1 - before) * likelihood(zero)
        return up / (up + down)

    def forward(self, key, x_0):
        """A forward trajectory, (T + 1, *x_0.shape), x_0 first. Raises ValueError for what is no bit."""
        check_bits(x_0)

        def climb(x, t):
            x = _bernoulli(jax.random.fold_in(key, t), self.transition(x, t))
            return x, x

        return jnp.concatenate([x_0[None], jax.lax.scan(climb, x_0, jnp.arange(1, self.T + 1))[1]])


def _bernoulli(key, p):
    return jax.random.bernoulli(key, p).astype(p.dtype)


def _kl(p, logits):
    """KL(B(p) || B(sigmoid(logits))) per bit, in nats."""
    entropy = jax.scipy.special.entr(p) + jax.scipy.special.entr(1 - p)
    return -p * jax.nn.log_sigmoid(logits) - (1 - p) * jax.nn.log_sigmoid(-logits) - entropy


def _log_mass(x, logits):
    return jax.nn.log_sigmoid(jnp.where(x > 0.5, logits, -logits))


def from_clean(process: Binomial, guess):
    """A reverse process from ``guess(x_t, t) -> logits`` of x_0 = 1: P(x_{t-1} = 1 | x_t) = sum over x_0 of the posterior."""

    def logits_of(x_t, t):
        p_0 = jax.nn.sigmoid(guess(x_t, t))
        one, zero = (process.posterior(x_t, jnp.full_like(x_t, bit), t) for bit in (1.0, 0.0))
        p = p_0 * one + (1 - p_0) * zero
        other = p_0 * (1 - one) + (1 - p_0) * (1 - zero)
        return jnp.log(jnp.maximum(p, TINY)) - jnp.log(jnp.maximum(other, TINY))

    return logits_of


def sample(key, process: Binomial, reverse, shape, dtype=jnp.float32):
    """A trajectory of the model from x_T down to x_0, (T + 1, *shape)."""
    x_T = _bernoulli(jax.random.fold_in(key, 0), jnp.full(shape, 0.5, dtype))

    def descend(x, t):
        x = _bernoulli(jax.random.fold_in(key, t), jax.nn.sigmoid(reverse(x, t)))
        return x, x

    return jnp.concatenate([x_T[None], jax.lax.scan(descend, x_T, jnp.arange(process.T, 0, -1))[1]])


@pytree
class BinomialBound:
    """In bits of the whole sequence: ``total`` = ``prior`` + sum of ``steps`` (T,), first that of t = T: KLs, and last
    -log2 p(x_0 | x_1). Its mean over draws is at least -log2 p(x_0)."""

    total: Any
    steps: Any
    prior: Any


def term(process: Binomial, reverse, x_0, x_t, t):
    """One step's term in bits: KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), at t = 1 -log2 p(x_0 | x_1)."""
    logits = reverse(x_t, t)
    kl, nll = _kl(process.posterior(x_t, x_0, t), logits), -_log_mass(x_0, logits)
    return jnp.where(t == 1, nll, kl).sum() / math.log(2)


def prior_term(process: Binomial, x_0):
    """KL(q(x_T | x_0) || B(1 / 2)) in bits."""
    return _kl(process.marginal(x_0, process.T), jnp.zeros_like(x_0)).sum() / math.log(2)


def bound(key, process: Binomial, reverse, x_0) -> BinomialBound:
    """A one-draw-per-step estimate of the bound on -log2 p(x_0): of -K (eq. 14). Raises ValueError for what is no bit."""
    check_bits(x_0)

    def one(t):
        x_t = _bernoulli(jax.random.fold_in(key, t), process.marginal(x_0, t))
        return term(process, reverse, x_0, x_t, t)

    steps = jax.lax.map(one, jnp.arange(process.T, 0, -1))
    prior = prior_term(process, x_0)
    return BinomialBound(prior + steps.sum(), steps, prior)


def annealed(key, process: Binomial, reverse, x_0, trajectories: int = 64):
    """(log p(x_0) in nats, standard error, effective number, log-weights (trajectories,)) from forward trajectories (eq. 9):
    the mean weight, unbiased for p. Raises ValueError for what is no bit, and fewer than 2 trajectories."""
    check_bits(x_0)
    whole("trajectories", trajectories, 2)

    def log_weight(key):
        x_T = _bernoulli(jax.random.fold_in(key, 0), process.marginal(x_0, process.T))
        p_T = process.marginal(x_0, process.T)
        first = (math.log(0.5) - jnp.log(jnp.where(x_T > 0.5, p_T, 1 - p_T))).sum()

        def step(x_t, t):
            q, logits = process.posterior(x_t, x_0, t), reverse(x_t, t)
            x_s = jnp.where(t == 1, x_0, _bernoulli(jax.random.fold_in(key, t), q))
            mass = jnp.where(t == 1, 1.0, jnp.where(x_s > 0.5, q, 1 - q))
            return x_s, (_log_mass(x_s, logits) - jnp.log(mass)).sum()

        return first + jax.lax.scan(step, x_T, jnp.arange(process.T, 0, -1))[1].sum()

    log_w = jax.vmap(log_weight)(jax.random.split(key, trajectories))
    return *summary(log_w), log_w


def entropy_bounds(process: Binomial):
    """(lower, upper) bounds on H_q(X_{t-1} | X_t), t = T ... 1, (T,) in bits per bit of a sequence (section 2.6):
    H_q(X_t | X_s) + H_q(X_s | X_0) - H_q(X_t | X_0), and H_q(X_t | X_s), which holds as a step towards fair coins never lowers
    entropy."""
    keep, betas = process.keep(), np.asarray(process.betas)
    entropy = lambda p: -sum(np.where(a > 0, a * np.log2(np.where(a > 0, a, 1)), 0) for a in (p, 1 - p))
    of_keep, of_step = entropy(0.5 * (1 - keep)), entropy(0.5 * betas)
    return (of_step + of_keep[:-1] - of_keep[1:])[::-1], of_step[::-1]
