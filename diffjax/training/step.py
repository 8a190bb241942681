"""One training step and the held-out loss, for any number of devices: the batch is sharded, the state replicated.

An *example* is a dict: "x", what the prior is of (an image, a volume, a latent), and, for a conditional network, "cond", a
pytree. A batch is the same dict with one more leading axis. Losses are written for one example.

All randomness of step n comes from ``fold_in(key, n)``, so that a resumed run draws what the undisturbed one did.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from .. import parallel
from ..denoisers import null_like
from . import losses, times
from .data import decode as decode_images
from .state import ONLY, Player, TrainState, average, by_player

LOSSES = {"v": losses.v_loss, "x0": losses.x0_loss, "eps": losses.eps_loss, "hybrid": losses.hybrid_loss,
          "score": losses.score_loss, "velocity": losses.velocity_loss}  # fmt: skip
LEVELS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)  # t / T at which a held-out loss is measured


def shardings(devices=None):
    """(replicated, over the leading axis): shardings on all devices, or on those given."""
    mesh = parallel.mesh(devices)
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def example_loss(net, schedule, loss, *, null=None, dropout=0.0, decode=decode_images, time=None, learned=None):
    """-> f(params, key, example, t, train) -> (loss, terms) for one example.

    net:      ``net.apply(params, x, i, train=..., rngs={"dropout": key})``, with the condition after i where there is one
    loss:     net, schedule, x_0, t, noise -> (loss, terms): one of :data:`LOSSES`; takes ``time=`` if one is given here
    null, dropout:  when training, the whole condition becomes ``null`` (a pytree of its structure, whose leaves may
              broadcast) with probability ``dropout``: one coin for each example
    decode:   (example, key) -> example, on the device: what is stored to what is trained on. The key is for those that
              draw (a latent from its stored moments). Default: 8-bit images to [-1, 1], see ``data.decode``
    time:     what the network is told of t (``denoisers.times``), as it will be when sampling
    learned:  params -> {name: value}, what the loss is told of them besides the network (a learned ``log_var``)
    Raises ValueError for a dropout outside [0, 1] or without a null.
    """
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout {dropout} is a probability: choose it in [0, 1]")
    if dropout and null is None:
        raise ValueError(f"dropout {dropout} of the condition needs a null to put in its place: pass null=, or dropout=0")

    def f(params, key, example, t, train):
        k_noise, k_cond, k_dropout, k_decode = jax.random.split(key, 4)
        x_0, cond = _parts(decode(example, k_decode))
        if train and cond is not None and dropout:
            lost = jax.random.bernoulli(k_cond, dropout)
            cond = jax.tree.map(lambda n, c: jnp.where(lost, n, c), null_like(cond, null), cond)
        given = () if cond is None else (cond,)
        apply = lambda x, i: net.apply(params, x, i, *given, train=train, rngs={"dropout": k_dropout})
        noise = jax.random.normal(k_noise, x_0.shape, x_0.dtype)
        told = ({} if time is None else {"time": time}) | ({} if learned is None else learned(params))
        return loss(apply, schedule, x_0, t, noise, **told)

    return f


def _parts(example):
    """(x, cond or None)"""
    names = set(example) if isinstance(example, Mapping) else set()
    if "x" not in names or names - {"x", "cond"}:
        got = f"entries {', '.join(sorted(names))}" if names else f"a {type(example).__name__}"
        raise ValueError(f'an example is {{"x": array, "cond": pytree}}, the second where there is a condition: got {got}')
    return example["x"], example.get("cond")


def mean_loss(example, schedule, *, rule=None, sharded=None):
    """-> f(params, key, batch, step) -> (loss, terms): the mean over a batch at random times.

    example:  of :func:`example_loss`
    rule:     how times are drawn (``training.times``); default ``Uniform()``; ``Uniform(whole=True)`` for the hybrid loss,
              which wants rows
    sharded:  the sharding of the leading axis (:func:`shardings`), to keep the draws where their examples are
    """
    rule = times.Uniform() if rule is None else rule

    def f(params, key, batch, step):
        count = jax.tree.leaves(batch)[0].shape[0]
        k_times, k_examples = jax.random.split(key)
        drawn = rule.draw(k_times, count, schedule)
        keys = jax.random.split(k_examples, count)
        if sharded is not None:
            drawn, keys = jax.lax.with_sharding_constraint((drawn, keys), sharded)
        t, weights = drawn
        values, terms = jax.vmap(lambda k, one, t: example(params, k, one, t, True))(keys, batch, t)
        return (weights * values).mean(), jax.tree.map(jnp.mean, terms)

    return f


def train_step(loss, optimizer, *, ema, key):
    """-> jitted step(state, batch) -> (state, metrics).

    loss:       f(params, key, batch, step) -> (loss, terms), for example :func:`mean_loss`; or {player: f}, where params is
                then {player: its parameters}. Players move in the order of this dict, each by the gradient with respect to
                its own parameters; the later ones see what the earlier ones have become in this step
    optimizer:  Optax, or {player: Optax}; ema: decay of the average, or {player: decay}, where the state keeps one
    metrics:    scalars "loss", "grad_norm" and the loss's terms; of several players each under "player.loss" ...
    Raises ValueError if losses, optimisers and the state's players have different names.
    """
    alone = not isinstance(loss, Mapping)
    losses_of = {ONLY: lambda params, *given: loss(params[ONLY], *given)} if alone else dict(loss)
    names = list(losses_of)
    optimizers, decays = by_player(optimizer, names), by_player(ema, names)

    def step(state: TrainState, batch):
        players, metrics = by_player(state.players, names), {}
        key_now = jax.random.fold_in(key, state.step)
        for n, name in enumerate(names):
            player = players[name]

            def own(params, n=n, name=name):
                everyone = {other: p.params for other, p in players.items()} | {name: params}
                return losses_of[name](everyone, jax.random.fold_in(key_now, n), batch, state.step)

            (value, terms), grads = jax.value_and_grad(own, has_aux=True)(player.params)
            updates, opt_state = optimizers[name].update(grads, player.opt_state, player.params)
            params = optax.apply_updates(player.params, updates)
            averaged = player.ema
            if averaged is not None:
                if decays[name] is None:
                    raise ValueError(f"player {name!r} keeps an average: give ema= a decay, or init_state(..., ema=False)")
                averaged = average(averaged, params, state.step, decays[name])
            players[name] = Player(params, opt_state, averaged)
            told = {"loss": value, "grad_norm": optax.tree.norm(grads), **terms}
            metrics |= told if alone else {f"{name}.{term}": a for term, a in told.items()}
        return TrainState(state.step + 1, players), metrics

    # An asynchronous save still reads the old state. On accelerators it has copied it to the host before it returns;
    # on CPU host memory is the array itself, which must not be overwritten.
    donate = () if jax.default_backend() == "cpu" else (0,)
    return jax.jit(step, donate_argnums=donate)


def held_out(example, schedule, *, levels=LEVELS, seed=0, sharded=None):
    """-> jitted f(params, batch) -> {term: (levels,)}: mean loss terms at t = level x T, the same noise each time."""
    moments = np.asarray(levels) * schedule.T
    if schedule.discrete:
        moments = np.maximum(1, np.round(moments))

    def f(params, batch):
        count = jax.tree.leaves(batch)[0].shape[0]
        keys = jax.random.split(jax.random.key(seed), count)
        if sharded is not None and count % sharded.num_devices == 0:
            batch, keys = jax.lax.with_sharding_constraint((batch, keys), sharded)

        def level(t):
            loss, terms = jax.vmap(lambda k, one: example(params, k, one, t, False))(keys, batch)
            return jax.tree.map(jnp.mean, {"loss": loss, **terms})

        return jax.lax.map(level, jnp.asarray(moments, jnp.float32))

    return jax.jit(f)
