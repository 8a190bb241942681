"""Importance sampling of training times (Nichol & Dhariwal 2021, section 3.3): t with probability proportional to the
root of the mean squared loss seen there lately, which lowers the variance of the bound's gradient.

Official code (improved-diffusion, ``LossSecondMomentResampler``) keeps ten losses per time, starts when every time has
ten, and mixes in a thousandth of uniform sampling. Here the history is a pytree that goes through ``jit`` and into
checkpoints; on several hosts update it with the losses of all of them, so that the copies agree.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..base import pytree, replace


@pytree
class LossSecondMoment:
    """history: (T, length) losses, oldest overwritten. counts: (T,) losses seen. uniform: share of uniform sampling.
    Build it with :func:`loss_second_moment`."""

    history: Any
    counts: Any
    uniform: Any

    @property
    def warmed_up(self):
        """Whether every time has a full history; until then times are uniform."""
        return (self.counts >= self.history.shape[1]).all()

    def probabilities(self):
        """(T,) probabilities of t = 1 ... T."""
        T = self.history.shape[0]
        root = jnp.sqrt(jnp.mean(self.history**2, axis=-1))
        total = root.sum()
        p = jnp.where(total > 0, root / jnp.where(total > 0, total, 1), 1 / T)  # all losses 0: uniform
        p = (1 - self.uniform) * p + self.uniform / T
        return jnp.where(self.warmed_up, p, 1 / T)

    def weights(self, t):
        """Importance weights 1 / (T p_t): the weighted mean loss has the expectation of the uniform one."""
        return 1 / (self.history.shape[0] * self.probabilities()[jnp.asarray(t) - 1])

    def draw(self, key, count: int):
        """-> (t, weights), both (count,): whole times 1 ... T and the factors for their losses."""
        i = jax.random.choice(key, self.history.shape[0], (count,), p=self.probabilities())
        return i + 1, self.weights(i + 1)

    def update(self, t, losses):
        """The sampler after seeing unweighted ``losses`` (count,) at times ``t`` (count,), in this order."""

        def one(carry, seen):
            history, counts = carry
            i, loss = seen
            history = history.at[i, counts[i] % history.shape[1]].set(loss)
            return (history, counts.at[i].add(1)), None

        losses = jax.lax.stop_gradient(jnp.asarray(losses)).astype(self.history.dtype)
        start = (jnp.asarray(self.history), jnp.asarray(self.counts))
        (history, counts), _ = jax.lax.scan(one, start, (jnp.asarray(t).astype(jnp.int32) - 1, losses))
        return replace(self, history=history, counts=counts)


def loss_second_moment(T: int, length: int = 10, uniform=0.001, dtype=jnp.float32) -> LossSecondMoment:
    """An empty history for times 1 ... T. Raises ValueError unless T and ``length`` are at least 1."""
    for name, value in (("T", T), ("length", length)):
        if value < 1:
            raise ValueError(f"{name} = {value}: choose a whole number >= 1")
    return LossSecondMoment(jnp.zeros((T, length), dtype), jnp.zeros((T,), jnp.int32), jnp.asarray(uniform, dtype))
