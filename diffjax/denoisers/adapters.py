"""One adapter per parameterisation: eps, x0, v, velocity, score, EDM preconditioning, and the mean of the previous step.

Sources: Ho et al. 2020 (eps, x0, previous mean), Salimans & Ho 2022 (v = alpha eps - sigma x0), Liu et al. 2023
(velocity = eps - x0, of rectified flow), Song et al. 2021 (score), Karras et al. 2022, table 1 (preconditioning).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..base import Prediction, a_schedule, expand, in_range, is_concrete, like, pytree, safe_divide, static, time_dtype
from ..process import posterior
from .times import IndexTime, LogSNR, as_time


def _eps(out, x, alpha, sigma):
    return safe_divide(x - sigma * out, alpha), out


def _x0(out, x, alpha, sigma):
    return out, safe_divide(x - alpha * out, sigma)


def _v(out, x, alpha, sigma):
    power = alpha**2 + sigma**2  # 1 for variance-preserving schedules
    return (alpha * x - sigma * out) / power, (sigma * x + alpha * out) / power


def _velocity(out, x, alpha, sigma):
    return (x - sigma * out) / (alpha + sigma), (x + alpha * out) / (alpha + sigma)


def _score(out, x, alpha, sigma):
    return _eps(-sigma * out, x, alpha, sigma)


_KINDS = {"eps": _eps, "x0": _x0, "v": _v, "velocity": _velocity, "score": _score}


@dataclasses.dataclass(frozen=True)
class _Bound:
    """A bound method that is compared by value: Python compares those of two equal networks as different."""

    owner: Any
    function: Callable

    def __call__(self, *args):
        return self.function(self.owner, *args)


def _by_value(apply):
    """``net.apply`` so that equal networks make equal programs: the same network built again costs no retrace."""
    owner = getattr(apply, "__self__", None)
    if not inspect.ismethod(apply) or isinstance(owner, type):
        return apply
    try:
        hash(owner)
    except TypeError:
        return apply
    return _Bound(owner, apply.__func__)


def call(apply, params, x, i, cond):
    """``apply(params, x, i, cond)`` without what is None: parameters, condition."""
    given = (x, i) if params is None else (params, x, i)
    return apply(*given) if cond is None else apply(*given, cond)


def _one_function(apply, x):
    """``apply``; within a trace as one function of the program, which is traced, batched and differentiated once however
    often a method calls it (CoPaint does three times): half of the time that it takes to trace a program."""
    if is_concrete(x):
        return apply
    try:
        hash(apply)
    except TypeError:  # a closed-over object that jax cannot remember
        return apply
    return jax.jit(apply)


@pytree
class Denoiser:
    """A network seen as ``denoise(x, t) -> Prediction``. Build it with ``from_eps`` and its siblings.

    params, schedule, cond and time are leaves: gradients reach them, another condition or checkpoint costs no retrace.
    cond: what the network is told besides x and its time, a pytree; None: nothing. time: see ``denoisers.times``.
    """

    params: Any
    schedule: Any
    cond: Any = None
    apply: Callable = static(default=None)
    kind: str = static(default="eps")
    learned_variance: bool = static(default=False)
    time: Any = IndexTime()

    def output(self, x, t):
        """(network output, variance output or None) at state ``x`` and house time ``t``."""
        i = jnp.asarray(self.time(self.schedule, t)).astype(time_dtype(x.dtype))
        out = call(_one_function(self.apply, x), self.params, x, i, self.cond)
        mix = None
        if isinstance(out, tuple):
            out, mix = out
        elif self.learned_variance:
            out, mix = jnp.split(out, 2, axis=-1)
        if out.shape != x.shape:
            hint = " (twice the channels: pass learned_variance=True)" if out.shape == (*x.shape[:-1], 2 * x.shape[-1]) else ""
            raise ValueError(f"the network returned shape {out.shape} for a state of shape {x.shape}{hint}")
        cast = lambda a: None if a is None else a.astype(x.dtype)
        return cast(out), cast(mix)

    def __call__(self, x, t) -> Prediction:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        out, mix = self.output(x, t)
        x0, eps = _KINDS[self.kind](out, x, expand(alpha, x), expand(sigma, x))
        return Prediction(x0, eps, mix, x, alpha, sigma)


def _make(kind):
    def build(apply, params, schedule, *, learned_variance=False, cond=None, time=None) -> Denoiser:
        a_schedule(schedule)
        return Denoiser(params, schedule, cond, _by_value(apply), kind, learned_variance, as_time(time))

    build.__name__ = f"from_{kind}"
    meaning = {"v": "v = alpha eps - sigma x0", "velocity": "the velocity eps - x0", "score": "the score, -eps / sigma"}
    build.__doc__ = f"""A denoiser from a network that predicts {meaning.get(kind, kind)}.

    apply:            ``apply(params, x, i)``, or ``apply(params, x, i, cond)`` where there is a condition; without the first
                      argument where ``params=None``. Returns an array of x's shape, or with twice the last axis
                      (``learned_variance``), or a pair (output, variance output). It is part of the program: the same
                      function or ``net.apply`` of an equal network costs no retrace, a new lambda does
    schedule:         the one the network was trained on
    cond:             what it is told besides: a label, or any pytree of arrays; None: nothing
    time:             what it is told of t: an object of ``denoisers.times`` (``Scaled(0.25)``, ``NoiseLevel()``, ...) or a
                      function of t; default ``schedule.network_time`` (i = t - 1 for tables)
    """
    return build


from_eps, from_x0, from_v, from_velocity, from_score = map(_make, ("eps", "x0", "v", "velocity", "score"))


@pytree
class _Previous:
    """x0 from the predicted mean of the step t -> t - 1 on the denoiser's own table (DDPM's ``PREVIOUS_X``)."""

    inner: Denoiser

    @property
    def schedule(self):
        return self.inner.schedule

    def __call__(self, x, t) -> Prediction:
        out, mix = self.inner.output(x, t)
        c_0, c_t, _ = posterior(self.schedule, t, t - 1)
        x0 = safe_divide(out - expand(c_t, x) * x, expand(c_0, x))
        p = Prediction(x0, x0, mix, x, self.schedule.alpha(t), self.schedule.sigma(t))
        return p.with_x0(x0)


def from_previous(apply, params, schedule, *, learned_variance=False, cond=None, time=None):
    """A denoiser from a network that predicts the mean of x_{t-1}; exact for kernels that step t -> t - 1 on
    ``schedule`` (for a respaced walk: the respaced table and ``time`` the map to original indices)."""
    return _Previous(from_eps(apply, params, schedule, learned_variance=learned_variance, cond=cond, time=time))


@pytree
class _EDM:
    params: Any
    schedule: Any
    sigma_data: Any
    cond: Any
    time: Any
    apply: Callable = static(default=None)

    def __call__(self, x, t) -> Prediction:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        a, s, d = expand(alpha, x), expand(sigma, x), jnp.asarray(self.sigma_data, x.dtype)
        norm = jnp.sqrt(s**2 + (a * d) ** 2)  # alpha times Karras et al.'s: nothing is divided by alpha, which may be 0
        i = jnp.asarray(self.time(self.schedule, t)).astype(time_dtype(x.dtype))
        out = like(x, call(self.apply, self.params, x / norm, i, self.cond), "what the network returned")
        x0 = a * (d / norm) ** 2 * x + s * d / norm * out.astype(x.dtype)
        return Prediction(x0, x0, None, x, alpha, sigma).with_x0(x0)


def from_edm(apply, params, schedule, *, sigma_data=0.5, cond=None, time=None):
    """A denoiser from a raw network F in Karras et al.'s preconditioning, on any schedule:
    x0 = c_skip u + c_out F(c_in u, c_noise) at u = x / alpha and noise sigma / alpha, c_noise = log(sigma / alpha) / 4.

    apply, cond, time: as of :func:`from_eps`, but for the default of ``time``, ``LogSNR(-1 / 8)``, which is c_noise.
    """
    a_schedule(schedule)
    in_range("sigma_data", sigma_data, 1e-9, 1e9, remedy="give the standard deviation of the images, for example 0.5")
    time = LogSNR(-0.125) if time is None else as_time(time)
    return _EDM(params, schedule, sigma_data, cond, time, _by_value(apply))
