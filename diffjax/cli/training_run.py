"""One training run in one folder; ``zoo.load(folder)`` makes a prior of it."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from .. import denoisers
from ..base import nearest
from ..nets import init
from ..training import data, latents, losses, state, step, times
from ..zoo import beside, first_stage, network, prior
from . import samples
from .config import TrainConfig
from .loop import QUICK, Loop
from .progress import Progress

LATENTS = first_stage.LATENTS
SIMPLE = ("v", "x0", "eps", "velocity")  # losses that are one error: its norm and log-variance can be chosen


def build(config: TrainConfig):
    """-> (net, schedule) of a configuration. Raises ValueError for names and sizes that do not exist."""
    return prior.build(dataclasses.asdict(config))


def optimiser(config):
    rate = state.warmup_stable_decay(config.lr, config.steps, config.warmup, config.cooldown)
    return state.adam(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, clip=config.clip)


def start(config, net, optimizer, key) -> state.TrainState:
    params = dict(init(net, key, (config.size, config.size, config.channels)))
    if config.learn_log_var:  # beside the network's own: what samples does not ask for it
        params["log_var"] = {"rows": jnp.zeros(config.T)}
    return state.init_state(params, optimizer)


class Run(Loop):
    """One training run. Building it raises ValueError, in one line, for all that can be known before the first step."""

    def __init__(self, config: TrainConfig):
        self.config = c = config
        if c.loss not in step.LOSSES:
            raise ValueError(f"unknown loss {c.loss!r}: {nearest(c.loss, step.LOSSES)}")
        if c.times not in times.RULES:
            raise ValueError(f"unknown times {c.times!r}: {nearest(c.times, times.RULES)}")
        losses.weight(c.weighting, "v", 0.0)
        if (c.norm != "l2" or c.learn_log_var) and c.loss not in SIMPLE:
            raise ValueError(f"norm {c.norm} and learn_log_var {c.learn_log_var} are of the losses {', '.join(SIMPLE)}, not "
                             f"of {c.loss}: use --loss v, or leave them out")  # fmt: skip
        if c.norm not in losses.NORMS:
            raise ValueError(f"norm {c.norm!r} is unknown: {nearest(c.norm, losses.NORMS)}")
        for name in "batch log_every eval_images checkpoint_every sample_every sample_steps keep T".split():
            if getattr(c, name) < 1:
                raise ValueError(f"{name} {getattr(c, name)} is too small: use at least 1")
        if c.batch % jax.device_count():
            raise ValueError(f"batch {c.batch} is not divisible by {jax.device_count()} devices: use a multiple")
        if (c.network in network.BESIDE) != bool(c.condition):
            raise ValueError(f"network {c.network} with condition {c.condition!r}: concat or sr3 go together with a "
                             "condition, sr4 or inpaint")  # fmt: skip
        self.net, self.schedule = build(c)
        self.rate = state.warmup_stable_decay(c.lr, c.steps, c.warmup, c.cooldown)
        optimizer = optimiser(c)
        hosts = jax.process_index(), jax.process_count()
        self.chief = hosts[0] == 0
        self.whole, self.sharded = step.shardings()

        key_init, key_steps = jax.random.split(jax.random.key(c.seed))
        loss, more = step.LOSSES[c.loss], {"norm": c.norm} if c.loss in SIMPLE else {}
        weighted = lambda *a, **learned: loss(*a, weighting=c.weighting, gamma=c.gamma, **more, **learned)
        self.null = prior.null_of(dataclasses.asdict(c))
        options = {} if self.null is None else {"null": self.null, "dropout": c.label_dropout}
        options |= {"decode": self._decode} if c.autoencoder or c.part_dropout or c.network in network.BESIDE else {}
        options |= {"learned": lambda params: {"log_var": params["log_var"]["rows"]}} if c.learn_log_var else {}
        options |= {"time": denoisers.NoiseLevel()} if c.network == "sr3" else {}
        example = lambda f: step.example_loss(self.net, self.schedule, f, **options)
        rule = times.Uniform(whole=True) if c.loss == "hybrid" else times.RULES[c.times]()
        batch_loss = step.mean_loss(example(weighted), self.schedule, rule=rule, sharded=self.sharded)
        self.step = step.train_step(batch_loss, optimizer, ema=c.ema, key=key_steps)
        plain = lambda *a, log_var=None, **told: loss(*a, **told, **more)
        self.held_out = step.held_out(example(plain), self.schedule, sharded=self.sharded)
        begin = jax.jit(lambda key: start(c, self.net, optimizer, key), out_shardings=self.whole, compiler_options=QUICK)
        self.start = lambda: begin(key_init)
        self.shapes = jax.eval_shape(begin, key_init)  # builds the network: sizes that do not fit are said here
        images = self._images()
        self.notes = () if images is None else images.notes
        with self.claimed():
            self.data = self._latents(images) if c.autoencoder else images
        flip = latents.mirrored if c.autoencoder and c.flip else c.flip
        if c.autoencoder and c.network in network.BESIDE:  # moments encoded once; what is beside is made of the picture
            self.data = dataclasses.replace(self.data, train_cond=images.train, test_cond=images.test)
            flip = c.flip and (lambda batch: {**latents.mirrored(batch), "cond": batch["cond"][:, :, ::-1]})
        self.held_out_count = len(jax.tree.leaves(self.data.examples("test"))[0])
        stored = self.data.examples(**({"flipped": True} if c.autoencoder and c.flip else {}))
        self.stream = data.Stream(stored, c.batch, c.seed, flip, *hosts)
        untrained = prior.from_config(dataclasses.asdict(c), None, autoencoder=self.autoencoder)
        examples = self.data.examples("test", slice(samples.ROWS))
        if c.network in network.BESIDE:
            keys = jax.random.split(jax.random.key(0), len(examples["cond" if c.autoencoder else "x"]))
            examples = jax.jit(jax.vmap(self._decode), compiler_options=QUICK)(examples, keys)
        self.sampler = samples.make_sampler(untrained, c.sample_steps, (self.whole, self.sharded), conds=examples.get("cond"))

    def _decode(self, example, key):
        """What is stored of an example to what is learned."""
        k_draw, k_parts = jax.random.split(key)
        if self.config.network in network.BESIDE:
            c, picture = self.config, data.scale(example["cond" if self.config.autoencoder else "x"])
            measured = beside.draw(c.condition, k_parts, picture)
            cond = beside.condition(c.condition, measured, self.autoencoder, (c.size, c.size, c.channels))
            return {"x": latents.decode(example, k_draw)["x"] if c.autoencoder else picture, "cond": cond}
        example = latents.decode(example, k_draw) if self.config.autoencoder else data.decode(example)
        return data.drop_parts(example, k_parts, self.config.part_dropout) if self.config.part_dropout else example

    def _images(self):
        """The pictures of the data, or None where their latents lie in the folder. Sets ``autoencoder``."""
        c, self.autoencoder = self.config, None
        size, channels = c.size, c.channels
        if c.autoencoder:
            self.autoencoder, about = first_stage.load(c.autoencoder)
            size, channels = about["size"], about["channels"]
            h, w, made = self.autoencoder.latent_shape((size, size, channels))
            if (h, made) != (c.size, c.channels):
                raise ValueError(f"latents of {c.autoencoder} are {h}x{w}x{made}, the network is made for {c.size}x{c.size}x"
                                 f"{c.channels}: use --size {h} --channels {made}")  # fmt: skip
            if (pathlib.Path(c.out) / LATENTS).is_file() and c.network not in network.BESIDE:
                return None
        if c.network in network.BESIDE:
            if size % (beside.factor(c.condition) or 1):
                raise ValueError(f"condition {c.condition} does not divide the size {size}: use another, or --size")
            wanted = beside.channels(c.condition, channels, c.channels if c.autoencoder else None)
            if wanted != c.condition_channels:
                raise ValueError(f"condition {c.condition} has {wanted} channels, not {c.condition_channels}: use "
                                 f"--condition-channels {wanted}")  # fmt: skip
        return data.load(c.data, size=size, channels=channels, fit=c.fit, classes=c.classes, tokens=c.network == "latent")

    def _latents(self, images):
        """The moments of the data: those in the folder, or encoded now. Gives ``autoencoder`` its shift and scale."""
        c, file, now = self.config, self.folder / LATENTS, latents.fingerprint(self.autoencoder)
        if file.is_file():
            found = latents.load(file, autoencoder=now)
        else:
            total = (len(images.train) + len(images.test)) * (2 if c.flip else 1)
            with Progress(total, label="encoding", unit="images") as bar:
                found = latents.encode(self.autoencoder, images, flip=c.flip, scale=c.latent_scale or None, report=bar.update,
                                       about={"autoencoder": now, "data": c.data})  # fmt: skip
            if self.chief:
                latents.save(file, found)
        self.autoencoder = found.normalise(self.autoencoder)
        return found

    def sign(self):
        if self.config.network == "latent":
            prior.write_vocabulary(self.folder, data.vocabulary(self.config.data))
        prior.sign(self.folder, dataclasses.asdict(self.config), self.shapes.params)

    def picture(self, now, file):
        grid = self.sampler(now.ema)
        if self.chief:
            samples.save(file, grid)

    def evaluate(self, now, done):
        """Held-out loss of the averaged weights: its mean over the noise levels, and each term at each level."""
        total, devices = self.held_out_count, jax.device_count()
        count = min(self.config.eval_images, total)
        count -= count % devices if count > devices else 0  # an even share each
        chosen = np.random.default_rng(0).permutation(total)[:count]
        terms = self.held_out(now.ema, self.data.examples("test", chosen))
        terms = {k: [round(float(v), 6) for v in values] for k, values in terms.items()}
        return float(np.mean(terms["loss"])), {"levels": step.LEVELS, **terms}
