"""At which times a network is trained: how they are drawn, and the weights that keep the mean of the loss what it was.

Every rule answers ``draw(key, count, schedule) -> (t, weights)``, both (count,): times of the house, in [1, T] of a table or
(0, T] of a formula, and factors for their losses.

Sources: Song et al. 2021, arXiv:2101.09258, section 4.2 (importance sampling for the likelihood); Kingma et al. 2021,
arXiv:2107.00630, section 5.1 (it is uniform in the log-SNR); Esser et al. 2024, arXiv:2403.03206, section 3.1 (logit-normal).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..base import in_range, pytree, static


def span(schedule, epsilon=1e-5):
    """(lowest, highest) time of training: 1 and T of a table, ``epsilon`` T and T of a formula."""
    return (1.0 if schedule.discrete else epsilon * schedule.T), 1.0 * schedule.T


def stratified(key, count: int):
    """(count,) numbers in [0, 1), one in each of ``count`` equal parts, all with the same random offset: each alone is
    uniform, but the mean loss over a batch varies less."""
    return (jax.random.uniform(key) + jnp.arange(count) / count) % 1.0


@pytree
class Uniform:
    """Uniform times, stratified over the batch; ``whole``: the rows 1..T of a table, each equally likely.

    epsilon: the lowest time of a formula, as a share of T
    top:     the highest time, in (0, T]; None: T (PartDiff trains up to K)
    """

    epsilon: Any = 1e-5
    whole: bool = static(default=False)
    top: Any = None

    def draw(self, key, count, schedule):
        u, (low, high) = stratified(key, count), span(schedule, self.epsilon)
        high = high if self.top is None else 1.0 * self.top
        t = 1 + jnp.minimum(jnp.floor(u * high), high - 1) if self.whole else low + (high - low) * u
        return t, jnp.ones_like(t)


@pytree
class LogitNormal:
    """log(u / (1 - u)) is normal, u the share of the way from the lowest time to the highest. No weights: the emphasis on the
    middle is wanted.

    mean, std: of that normal; std > 0
    """

    mean: Any = 0.0
    std: Any = 1.0
    epsilon: Any = 1e-5

    def __post_init__(self):
        in_range("std", self.std, 1e-6)

    def draw(self, key, count, schedule):
        low, high = span(schedule, self.epsilon)
        normal = jax.scipy.special.ndtri(jnp.clip(stratified(key, count), 1e-6, 1 - 1e-6))
        t = low + (high - low) * jax.nn.sigmoid(self.mean + self.std * normal)
        return t, jnp.ones_like(t)


@pytree
class LogSNR:
    """Times uniform in log-SNR, with the weights of the likelihood: for ``score_loss`` (or ``eps_loss``) *without*
    ``likelihood``, whose weighted mean is then that of the likelihood-weighted loss at uniform times.

    That loss weighs |sigma score + eps|^2 by g^2 / sigma^2 = - d log SNR / dt for every schedule; times of that density leave
    one constant, (log SNR(low) - log SNR(high)) / (high - low). Formulas only: a table has no g at its rows.
    """

    epsilon: Any = 1e-5

    def draw(self, key, count, schedule):
        if schedule.discrete:
            raise ValueError("LogSNR draws the times of a formula, this schedule is a table: use Uniform")
        low, high = span(schedule, self.epsilon)
        ends = jnp.asarray(schedule.log_snr(low)), jnp.asarray(schedule.log_snr(high))
        log_snr = ends[0] + (ends[1] - ends[0]) * stratified(key, count)
        t = jnp.clip(schedule.time(log_snr), low, high)
        return t, jnp.full_like(t, (ends[0] - ends[1]) / (high - low))


@pytree
class Binned:
    """Times of a formula by a ``resamplers.LossSecondMoment``, whose entries are equal parts of the way from the lowest time
    to the highest; uniform within a part. ``rows(t, schedule)`` says which entry a time belongs to, for its ``update``."""

    sampler: Any
    epsilon: Any = 1e-5

    def draw(self, key, count, schedule):
        k_bin, k_within = jax.random.split(key)
        low, high = span(schedule, self.epsilon)
        row, weights = self.sampler.draw(k_bin, count)
        u = (row - 1 + jax.random.uniform(k_within, (count,))) / self.sampler.history.shape[0]
        return low + (high - low) * u, weights

    def rows(self, t, schedule):
        low, high = span(schedule, self.epsilon)
        bins = self.sampler.history.shape[0]
        return 1 + jnp.clip(jnp.floor((t - low) / (high - low) * bins), 0, bins - 1).astype(jnp.int32)


RULES = {"uniform": Uniform, "logit_normal": LogitNormal, "log_snr": LogSNR}
