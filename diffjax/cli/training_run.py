"""One training run in one folder; ``zoo.load(folder)`` makes a prior of it."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from ..base import nearest
from ..nets import init
from ..training import data, losses, state, step, times
from ..zoo import prior
from . import samples
from .config import TrainConfig
from .loop import Loop


def build(config: TrainConfig):
    """-> (net, schedule) of a configuration. Raises ValueError for names and sizes that do not exist."""
    return prior.build(dataclasses.asdict(config))


def optimiser(config):
    rate = state.warmup_stable_decay(config.lr, config.steps, config.warmup, config.cooldown)
    return state.adam(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, clip=config.clip)


def start(config, net, optimizer, key) -> state.TrainState:
    return state.init_state(init(net, key, (config.size, config.size, config.channels)), optimizer)


class Run(Loop):
    """One training run. Building it raises ValueError, in one line, for all that can be known before the first step."""

    def __init__(self, config: TrainConfig):
        self.config = c = config
        if c.loss not in step.LOSSES:
            raise ValueError(f"unknown loss {c.loss!r}: {nearest(c.loss, step.LOSSES)}")
        if c.times not in times.RULES:
            raise ValueError(f"unknown times {c.times!r}: {nearest(c.times, times.RULES)}")
        losses.weight(c.weighting, "v", 0.0)
        for name in "batch log_every eval_images checkpoint_every sample_every sample_steps keep T".split():
            if getattr(c, name) < 1:
                raise ValueError(f"{name} {getattr(c, name)} is too small: use at least 1")
        if c.batch % jax.device_count():
            raise ValueError(f"batch {c.batch} is not divisible by {jax.device_count()} devices: use a multiple")
        self.net, self.schedule = build(c)
        self.rate = state.warmup_stable_decay(c.lr, c.steps, c.warmup, c.cooldown)
        optimizer = optimiser(c)
        self.images = data.load(c.data, size=c.size, channels=c.channels, fit=c.fit, classes=c.classes)
        hosts = jax.process_index(), jax.process_count()
        self.chief = hosts[0] == 0
        self.stream = data.Stream(self.images.examples(), c.batch, c.seed, c.flip, *hosts)
        self.whole, self.sharded = step.shardings()

        key_init, key_steps = jax.random.split(jax.random.key(c.seed))
        loss = step.LOSSES[c.loss]
        weighted = lambda *a: loss(*a, weighting=c.weighting, gamma=c.gamma)
        dropped = {"null": c.classes, "dropout": c.label_dropout} if c.classes else {}
        example = lambda f: step.example_loss(self.net, self.schedule, f, **dropped)
        rule = times.Uniform(whole=True) if c.loss == "hybrid" else times.RULES[c.times]()
        batch_loss = step.mean_loss(example(weighted), self.schedule, rule=rule, sharded=self.sharded)
        self.step = step.train_step(batch_loss, optimizer, ema=c.ema, key=key_steps)
        self.held_out = step.held_out(example(loss), self.schedule, sharded=self.sharded)
        untrained = prior.from_config(dataclasses.asdict(c), None)
        self.sampler = samples.make_sampler(untrained, c.sample_steps, (self.whole, self.sharded))
        begin = jax.jit(lambda key: start(c, self.net, optimizer, key), out_shardings=self.whole)
        self.start = lambda: begin(key_init)
        self.shapes = jax.eval_shape(begin, key_init)  # builds the network: sizes that do not fit are said here
        self.claim_folder()

    def sign(self):
        prior.sign(self.folder, dataclasses.asdict(self.config), self.shapes.params)

    def picture(self, now, file):
        grid = self.sampler(now.ema)
        if self.chief:
            samples.save(file, grid)

    def evaluate(self, now, done):
        """Held-out loss of the averaged weights: its mean over the noise levels, and each term at each level."""
        total, devices = len(self.images.test), jax.device_count()
        count = min(self.config.eval_images, total)
        count -= count % devices if count > devices else 0  # an even share each
        chosen = np.random.default_rng(0).permutation(total)[:count]
        terms = self.held_out(now.ema, self.images.examples("test", chosen))
        terms = {k: [round(float(v), 6) for v in values] for k, values in terms.items()}
        return float(np.mean(terms["loss"])), {"levels": step.LEVELS, **terms}
