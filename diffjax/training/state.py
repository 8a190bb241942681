"""The state of a run, the optimiser, and the average of the weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..base import pytree


@pytree
class TrainState:
    """step: steps taken (int32 scalar); params; opt_state (Optax); ema: averaged params, the ones to sample with."""

    step: Any
    params: Any
    opt_state: Any
    ema: Any


def create(params, optimizer) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), params)


def warmup_stable_decay(peak: float, steps: int, warmup: int, cooldown: int):
    """Learning rate by step n = 0, 1, ...: linear warm-up to ``peak``, constant, linear to 0 over the last ``cooldown``.

    Only the end depends on ``steps``: a run may be resumed with another number of them (Hu et al. 2024,
    arXiv:2404.06395). Raises ValueError where the parts do not fit.
    """
    if steps < 1 or warmup < 0 or cooldown < 0:
        raise ValueError(f"steps {steps}, warmup {warmup}, cooldown {cooldown}: use steps >= 1 and the others >= 0")
    if warmup + cooldown > steps:
        raise ValueError(f"warmup {warmup} and cooldown {cooldown} do not fit into {steps} steps: shorten them")

    def rate(n):
        return peak * jnp.clip(jnp.minimum((n + 1) / max(warmup, 1), (steps - n) / max(cooldown, 1)), 0.0, 1.0)

    return rate


def adam(rate, *, b1=0.9, b2=0.99, weight_decay=0.0, clip=1.0):
    """Clipping of the global gradient norm, then Adam with decoupled weight decay. ``rate``: number or schedule."""
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay))


def average(ema, params, step, decay: float):
    """One step of the exponential average after ``step`` (0, 1, ...), with decay min(decay, (1 + n) / (10 + n)): the
    random start is forgotten at once."""
    n = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda old, new: old + (1 - d).astype(old.dtype) * (new - old), ema, params)
