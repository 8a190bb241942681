"""The state of a run, the optimiser, and the average of the weights.

A run trains one or more *players*, each with its own parameters, optimiser and average: one network for most priors, two
that take turns for an autoencoder with a discriminator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..base import nearest, pytree

ONLY = "net"  # the name of a player that is alone


@pytree
class Player:
    """params; opt_state (Optax); ema: averaged params, the ones to sample with, or None where no average is kept."""

    params: Any
    opt_state: Any
    ema: Any


@pytree
class TrainState:
    """step: steps taken (int32 scalar); players: {name: :class:`Player`}.

    ``params``, ``opt_state`` and ``ema`` are those of the only player; ValueError where there are several.
    """

    step: Any
    players: dict

    def _only(self) -> Player:
        if len(self.players) != 1:
            names = ", ".join(self.players)
            raise ValueError(f"this run has players {names}: ask one of them, state.players[name].params")
        return next(iter(self.players.values()))

    @property
    def params(self):
        return self._only().params

    @property
    def opt_state(self):
        return self._only().opt_state

    @property
    def ema(self):
        return self._only().ema


def by_player(value, names) -> dict:
    """{name: value}: ``value`` for each name, or, if it is a mapping, its entries. ValueError if these are not the names."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    if set(value) != set(names):
        odd = next(iter(set(value) ^ set(names)))
        raise ValueError(f"players {', '.join(names)} and {', '.join(value)} differ in {odd!r}: {nearest(odd, names)}")
    return {name: value[name] for name in names}


def init_state(params, optimizer, ema=True) -> TrainState:
    """The state before the first step.

    params, optimizer:  of one network; or dicts by the players' names, with a mapping as ``optimizer``
    ema:                whether an average is kept; a bool, or a dict by name
    """
    alone = not isinstance(optimizer, Mapping)
    optimizers = {ONLY: optimizer} if alone else dict(optimizer)
    strong = lambda a: jax.lax.convert_element_type(a, jnp.result_type(a))  # jnp.array(0.5) is weak: a second trace
    everyone = jax.tree.map(strong, by_player({ONLY: params} if alone else params, list(optimizers)))
    kept = by_player(ema, list(optimizers))
    players = {n: Player(p, optimizers[n].init(p), p if kept[n] else None) for n, p in everyone.items()}
    return TrainState(jnp.zeros((), jnp.int32), players)


def to_items(state: TrainState) -> dict:
    """The state as the items of a checkpoint: "ema", which readers of a trained network want alone, and "state", the rest."""
    rest = {name: {"params": p.params, "opt_state": p.opt_state} for name, p in state.players.items()}
    ema = {name: p.ema for name, p in state.players.items() if p.ema is not None}
    return {"state": {"step": state.step, "players": rest}, **({"ema": ema} if ema else {})}


def from_items(items: Mapping) -> TrainState:
    """The way back."""
    rest, ema = items["state"], items.get("ema", {})
    players = {name: Player(p["params"], p["opt_state"], ema.get(name)) for name, p in rest["players"].items()}
    return TrainState(rest["step"], players)


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
