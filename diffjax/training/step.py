"""One training step and the held-out loss, for any number of devices: the batch is sharded, the state replicated.

All randomness of step n comes from ``fold_in(key, n)``, so that a resumed run draws what the undisturbed one did.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..base import replace
from . import losses
from .data import scale
from .state import average

LOSSES = {"v": losses.v_loss, "eps": losses.eps_loss, "hybrid": losses.hybrid_loss}


def shardings(devices=None):
    """(replicated, over the leading axis): shardings on all devices, or on those given."""
    mesh = Mesh(np.array(jax.devices() if devices is None else devices), ("data",))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def stratified_times(key, count: int, T: int, whole: bool = False):
    """(count,) times in [1, T], one in each of ``count`` equal parts, all with the same random offset: each alone is
    uniform, but the mean loss over a batch varies less. whole: 1..T, each equally likely."""
    u = (jax.random.uniform(key) + jnp.arange(count) / count) % 1.0
    return 1 + jnp.minimum(jnp.floor(u * T), T - 1) if whole else 1 + (T - 1) * u


def example_loss(net, schedule, loss, *, null_label=None, label_dropout=0.0):
    """-> f(params, key, x_0, y, t, train) -> (loss, terms) for one image. ``loss``: net, schedule, x_0, t, noise -> same.

    y is replaced by ``null_label`` with probability ``label_dropout`` when training; y None: unconditional.
    """

    def f(params, key, x_0, y, t, train):
        k_noise, k_label, k_dropout = jax.random.split(key, 3)
        if y is not None and train:
            y = jnp.where(jax.random.bernoulli(k_label, label_dropout), null_label, y)
        apply = lambda x, i: net.apply(params, x, i, y, train=train, rngs={"dropout": k_dropout})
        return loss(apply, schedule, x_0, t, jax.random.normal(k_noise, x_0.shape, x_0.dtype))

    return f


def train_step(example, optimizer, schedule, *, ema: float, key, sharded=None, whole_times=False):
    """-> jitted step(state, images, labels) -> (state, metrics).

    images: (B, H, W, C) uint8; labels: (B,) or None; metrics: scalars ``loss``, ``grad_norm`` and the loss's terms
    sharded: the sharding of the leading axis (:func:`shardings`), to keep the draws where their images are
    """

    def step(state, images, labels):
        batch = images.shape[0]
        k_times, k_images = jax.random.split(jax.random.fold_in(key, state.step))
        times = stratified_times(k_times, batch, schedule.T, whole_times)
        keys = jax.random.split(k_images, batch)
        if sharded is not None:
            times, keys = jax.lax.with_sharding_constraint((times, keys), sharded)

        def mean_loss(params):
            f = jax.vmap(lambda k, x, y, t: example(params, k, x, y, t, True))
            values, terms = f(keys, scale(images), labels, times)
            return values.mean(), jax.tree.map(jnp.mean, terms)

        (loss, terms), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = average(state.ema, params, state.step, ema)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **terms}
        return replace(state, step=state.step + 1, params=params, opt_state=opt_state, ema=averaged), metrics

    # An asynchronous save still reads the old state. On accelerators it has copied it to the host before it returns;
    # on CPU host memory is the array itself, which must not be overwritten.
    donate = () if jax.default_backend() == "cpu" else (0,)
    return jax.jit(step, donate_argnums=donate)


def held_out(example, schedule, *, levels=(0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95), seed=0, sharded=None):
    """-> jitted f(params, images, labels) -> {term: (levels,)}: mean loss terms at t = level x T, the same noise each time.

    images: (N, H, W, C) uint8
    """
    times = np.maximum(1, np.round(np.asarray(levels) * schedule.T)).astype(np.float32)

    def f(params, images, labels):
        keys = jax.random.split(jax.random.key(seed), images.shape[0])
        x = scale(images)
        if sharded is not None and images.shape[0] % sharded.num_devices == 0:
            x, keys = jax.lax.with_sharding_constraint((x, keys), sharded)

        def level(t):
            loss, terms = jax.vmap(lambda k, x, y: example(params, k, x, y, t, False))(keys, x, labels)
            return jax.tree.map(jnp.mean, {"loss": loss, **terms})

        return jax.lax.map(level, jnp.asarray(times))

    return jax.jit(f)
