"""Pictures enlarged four times by small networks: their data, what each network is trained for, and how its weights are found.

Every network is SR3's UNet of one size, told sqrt(abar) and y, the picture reduced by 4 (MATLAB's bicubic), enlarged. One loss
trains all that diffuse, PartDiff's latent alignment: SR3 is what it becomes for K = infinity, where the latent is the
picture's own. So K is data, and the training program is compiled once.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax.nets import SR3UNet
from diffjax.operators import Resize, resize
from diffjax.training import data, losses, partdiff
from diffjax.training import state as states
from diffjax.training import step as steps
from diffjax.training.checkpoints import Checkpoints, abstract
from diffjax.training.times import between_levels, stratified

from .study import UserError

FACTOR, T, BETAS = 4, 100, (1e-4, 0.12)
NEVER = 1e9  # K of a network that is not aligned
NETWORKS = {"base": NEVER, "regression": None, "sr3": NEVER, "partdiff10": 10.0, "partdiff25": 25.0, "partdiff50": 50.0}
HELD_OUT = 128  # of the training images, for the loss that is watched
EMA = 0.995
QUICK = {"xla_backend_optimization_level": 0}  # what runs once takes longer to compile than to run


@dataclass(frozen=True)
class Study:
    """Where its pictures are, of which size, and how many are tested; the size of its networks."""

    data: str
    size: int
    channels: int
    width: int
    patch: int
    tests: int

    def network(self):
        how = {"width": self.width, "patch": self.patch, "multipliers": (1, 2, 2), "blocks": 1, "groups": 8}
        return SR3UNet(out_channels=self.channels, condition=self.channels, **how)

    def images(self, path=None, labels=False) -> data.Images:
        try:
            return data.load(path or self.data, size=self.size, channels=self.channels, fit="pad",
                             classes=10 * labels)  # fmt: skip
        except ValueError as error:
            raise UserError(str(error)) from None


STUDIES = {
    "fashion": Study("/usr/share/datasets/fashion-mnist", 32, 1, width=24, patch=2, tests=500),
    "fruits": Study("data/fruits64.npz", 64, 3, width=32, patch=2, tests=64),
}


def schedule():
    return dj.schedules.discrete(dj.schedules.sr3_betas(T, *BETAS))


def measured(x):
    """y (h, w, C) of pictures x (..., H, W, C)."""
    return Resize(FACTOR)(x)


def enlarged(x):
    """What the networks are told of pictures x (..., H, W, C): reduced and enlarged again."""
    return resize(measured(x), FACTOR)


def regress(net, params, low):
    """The regression network: what is added to the enlarged picture, at no noise and no x_t."""
    return low + net.apply(params, jnp.zeros_like(low), jnp.zeros(low.shape[:-3]), low)


# --- training -------------------------------------------------------------------------------------------------------


def loss_of(net, regression=False):
    """f(params, key, batch, step) -> (loss, terms) of a batch {"x": pictures, uint8; "K": (batch,)}, for ``step.train_step``.
    Times are drawn between neighbouring levels, up to the smaller of K and T."""
    table = schedule()

    def one(params, key, x, t, K):
        high = data.scale(x)
        low = enlarged(high)
        apply = lambda x_t, level: net.apply(params, x_t, level, low)
        noise = jax.random.normal(key, high.shape)
        if regression:
            return losses.regression_loss(lambda x_t, _: low + apply(x_t, 0.0), table, high, t, noise)[0]
        return partdiff.loss(apply, table, low, high, t, noise, K, time=dj.denoisers.NoiseLevel())[0]

    def mean(params, key, batch, step=None):
        count = len(batch["x"])
        k_row, k_within, k_noise = jax.random.split(key, 3)
        top = jnp.minimum(batch["K"], T)
        row = 1 + jnp.minimum(jnp.floor(stratified(k_row, count) * top), top - 1)
        t = between_levels(table, row, 1 - jax.random.uniform(k_within, (count,)))
        return jax.vmap(one, (None, 0, 0, 0, 0))(
            params, jax.random.split(k_noise, count), batch["x"], t, batch["K"]
        ).mean(), {}

    return mean


def told(name, x):
    """A batch of pictures, and which K the network of this name is aligned to."""
    K = NEVER if NETWORKS[name] is None else NETWORKS[name]
    return {"x": x, "K": np.full(len(x), K, np.float32)}


def train(study: Study, name, images, folder, *, steps_=600, batch=16, rate=1e-3, seed=0, save=200, base=True, stop=None,
          bar=None):  # fmt: skip
    """Train network ``name`` in folder/name, from folder/base where there is a base: ``steps_``, or the first ``stop``
    of them. May be stopped and goes on."""
    net, from_base = study.network(), base and name != "base"
    mean = loss_of(net, NETWORKS[name] is None)
    cooldown = int(0.8 * steps_) if from_base or not base else 0
    optimizer = states.adam(states.warmup_stable_decay(rate, steps_, min(50, steps_ // 10), cooldown))
    if from_base:
        params = weights(folder, "base")[0]
    else:
        blank = np.zeros((study.size, study.size, study.channels), np.float32)
        params = jax.jit(net.init, compiler_options=QUICK)(jax.random.key(seed + 1), blank, np.float32(0), blank)
    state = states.init_state(params, optimizer)
    seed += int(from_base)  # what the base has seen, the others see in another order
    step = steps.train_step(mean, optimizer, ema=EMA, key=jax.random.key(seed))
    pictures, watched = images.train[:-HELD_OUT], told(name, images.train[-HELD_OUT:])
    held = jax.jit(lambda params: mean(params, jax.random.key(7), watched)[0])
    with Checkpoints(Path(folder) / name) as store:
        found, done = store.resume(abstract(states.to_items(state)))
        state = state if found is None else states.from_items(found)
        begun, value = time.process_time(), float("nan")
        for n in range(done, steps_ if stop is None else stop):
            state, terms = step(state, told(name, pictures[data.indices(len(pictures), batch, n, seed)]))
            if (n + 1) % save == 0 or n + 1 in (steps_, stop):
                value = float(held(state.ema))
                store.save(n + 1, states.to_items(state), value)
            if bar is not None:
                bar(n + 1, float(terms["loss"]), value, time.process_time() - begun)
    return value


@functools.cache
def weights(folder, name):
    """(averaged parameters of the last checkpoint, its step). Raises UserError where the network is not trained."""
    if not (Path(folder) / name).is_dir():
        raise UserError(f"{folder} has no network {name}: train it first")
    with Checkpoints(Path(folder) / name, read_only=True) as store:
        found, step = store.read("ema", "last")
    return found[states.ONLY], step
