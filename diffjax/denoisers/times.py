"""What a network is told of the time: small pytrees, called with the denoiser's schedule and the house time t.

Their fields are leaves: ``vmap`` sweeps them, gradients reach them, and one that is built anew with other values costs
no retrace. The schedule is the denoiser's own, so that gradients reach its leaves through the time as well.

Sources: Ho et al. 2020 (the index); Nichol and Dhariwal 2021 (the scaled index of tables longer than 1000); Saharia et
al. 2021, arXiv:2104.07636, section 2.4 (SR3: sqrt(abar)); Karras et al. 2022, table 1 (the logarithm of sigma).
"""

from __future__ import annotations

from typing import Any

import jax

from ..base import namespace, pytree


class Time:
    """``time(schedule, t)`` -> what the network is told, of the shape of t."""


@pytree
class IndexTime(Time):
    """``schedule.network_time(t)``: the official index t - 1 of a table. The default."""

    def __call__(self, schedule, t):
        return schedule.network_time(t)


@pytree
class Scaled(Time):
    """``factor`` times the index: 0.25 for a table of 4000 steps whose network was told 0 to 1000."""

    factor: Any

    def __call__(self, schedule, t):
        return self.factor * schedule.network_time(t)


@pytree
class NoiseLevel(Time):
    """alpha(t) = sqrt(abar_t), in [0, 1] (SR3, WaveGrad)."""

    def __call__(self, schedule, t):
        return schedule.alpha(t)


@pytree
class Sigma(Time):
    """``factor`` times sigma / alpha, the standard deviation of the noise on x / alpha; alpha is held above 1e-20."""

    factor: Any = 1.0

    def __call__(self, schedule, t):
        alpha = schedule.alpha(t)
        return self.factor * schedule.sigma(t) / namespace(alpha).maximum(alpha, 1e-20)


@pytree
class LogSNR(Time):
    """``factor`` times 2 log(alpha / sigma), with alpha and sigma held above 1e-20: finite at both ends.

    Factor -1/8 is Karras et al.'s c_noise = log(sigma / alpha) / 4.
    """

    factor: Any = 1.0

    def __call__(self, schedule, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        xp = namespace(alpha, sigma)
        return self.factor * 2 * (xp.log(xp.maximum(alpha, 1e-20)) - xp.log(xp.maximum(sigma, 1e-20)))


@pytree
class FromNoise(Time):
    """T - t: rows of a table counted from the noisiest, 0 (the score-SDE code's variance-exploding networks trained on
    discrete levels)."""

    def __call__(self, schedule, t):
        return schedule.T - t


@pytree
class _Given(Time):
    """A function of t alone, as a pytree."""

    function: Any

    def __call__(self, schedule, t):
        return self.function(t)


def as_time(time) -> Time:
    """None: :class:`IndexTime`. A function of t becomes a pytree; ``jax.tree_util.Partial(f, array)`` keeps its leaves."""
    if time is None:
        return IndexTime()
    return time if isinstance(time, Time) else _Given(as_tree(time))


def as_tree(function):
    """A callable as a pytree. One that already is (a ``jax.tree_util.Partial``, a pytree class) keeps its leaves."""
    is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(function))
    return jax.tree_util.Partial(function) if is_leaf else function
