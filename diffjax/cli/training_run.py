"""One training run in one folder; ``zoo.load(folder)`` makes a prior of it."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
import time

import jax
import numpy as np

from ..base import nearest
from ..nets import init
from ..training import checkpoints, data, losses, state, step, times
from ..zoo import prior
from . import samples
from .config import CHANGEABLE, TrainConfig
from .config import read as read_config
from .errors import UserError
from .lock import Lock
from .progress import Progress


def build(config: TrainConfig):
    """-> (net, schedule) of a configuration. Raises ValueError for names and sizes that do not exist."""
    return prior.build(dataclasses.asdict(config))


def optimiser(config):
    rate = state.warmup_stable_decay(config.lr, config.steps, config.warmup, config.cooldown)
    return state.adam(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, clip=config.clip)


def start(config, net, optimizer, key) -> state.TrainState:
    return state.init_state(init(net, key, (config.size, config.size, config.channels)), optimizer)


class Run:
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
        self.folder = pathlib.Path(c.out)
        self.lock = Lock(self.folder)
        try:
            self._claim_folder()
        except BaseException:
            self.lock.release()
            raise

    def _claim_folder(self):
        """Make the folder, or check that what is there belongs to this configuration; write config.json."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise OSError("not writable")
        except OSError as error:
            raise ValueError(f"output folder {self.folder} cannot be written ({error.strerror or error}): use --out") from None
        file = self.folder / "config.json"
        place = self.folder / "checkpoints"
        if place.is_dir() and any(place.iterdir()) and not file.is_file():
            raise ValueError(f"{self.folder} holds checkpoints and no config.json, which says of what run: put it back, or "
                             "use another --out")  # fmt: skip
        strangers = [n for n in ("config.json", "log.jsonl") if (self.folder / n).exists()]
        strangers += sorted(p.name for p in self.folder.glob("samples_*.png"))
        if strangers and not (self.folder / prior.SIGNATURE).is_file() and not place.is_dir():
            raise ValueError(f"{self.folder} has a {strangers[0]} that no training run wrote: use another --out")
        if self.chief:
            self.lock.take()
        if place.is_dir() and file.is_file():
            old = read_config(file)
            for name in (f.name for f in dataclasses.fields(TrainConfig) if f.name not in CHANGEABLE):
                before, now = getattr(old, name), getattr(self.config, name)
                if before != now:
                    raise ValueError(f"{self.folder} holds a run with {name} {before}, not {now}: use that, or another --out")
        if self.chief:
            write(file, json.dumps(dataclasses.asdict(self.config), indent=1) + "\n")
            prior.sign(self.folder, dataclasses.asdict(self.config), self.shapes.params)

    def train(self, stop) -> int:
        """Run to the end, or until ``stop`` (``interrupt.guard``'s) says so; -> exit code."""
        try:
            with checkpoints.Checkpoints(self.folder / "checkpoints", self.config.keep) as store:
                return self._train(self.config, store, stop)
        except checkpoints.SaveError as error:
            self.say(f"\nerror: {error}: make room or rights, the same command goes on from the step before")
            return 1
        except (OSError, UserError) as error:  # of the log or of samples: a full disk
            self.say(f"\nerror: {self.folder} cannot be written ({getattr(error, 'strerror', None) or error}): make room or "
                     "rights, the same command goes on from the last checkpoint")  # fmt: skip
            return 1

    def _train(self, c, store, stop) -> int:
        kept, begin = store.resume(checkpoints.abstract(state.to_items(self.shapes), self.whole), self.say)
        now = self.start() if kept is None else state.from_items(kept)
        if begin >= c.steps:
            self.say(f"{self.folder} already has {begin} steps: give --steps above that to go on")
            return 0
        if begin:
            self.say(f"resuming at step {begin} of {c.steps}")
        size = sum(a.size for a in jax.tree.leaves(now.params))
        images, devices = len(self.images.train), jax.device_count()
        self.say(f"{c.name}: {size:,} parameters, {images:,} images, {devices} device{'s' * (devices > 1)}, into {c.out}")
        for note in self.images.notes:
            self.say(f"note: {note}")
        log = Log(self.folder / "log.jsonl", begin, self.chief)
        recent, shown, done = [], {}, begin
        with Progress(c.steps, start=begin, label=c.name, unit="images", per_step=c.batch) as bar:
            while done < c.steps and not stop:
                now, metrics = self.step(now, self.put(self.stream(done)))
                done += 1
                stop.patience = None  # there is something to save from now on
                recent.append(metrics)
                if len(recent) > 1:  # one step behind: the host prepares the next batch while the devices compute
                    shown["loss"] = float(recent[-2]["loss"])
                bar.update(done, **shown)
                save = done == c.steps or done % c.checkpoint_every == 0 or bool(stop)
                if save or done % c.log_every == 0:
                    means = self.means(done, recent)
                    if means is None:
                        return 1
                    log.write(
                        "train",
                        done,
                        images=done * c.batch,
                        lr=float(self.rate(done - 1)),
                        images_per_s=round(bar.rate() * c.batch, 2),
                        **means,
                    )
                    recent = []
                if save:
                    shown["held_out"], terms = self.evaluate(now)
                    log.write("held_out", done, mean=shown["held_out"], levels=step.LEVELS, **terms)
                    store.save(done, state.to_items(now), shown["held_out"])
                if done == c.steps or done % c.sample_every == 0:
                    grid = self.sampler(now.ema)
                    if self.chief:
                        samples.save(self.folder / f"samples_{done:07d}.png", grid)
        store.wait()
        left = ": the same command goes on from there" if done < c.steps else ""
        self.say((f"saved step {done} in {c.out}" if done > begin else f"nothing new to save in {c.out}") + left)
        return stop.code if done < c.steps else 0

    def say(self, text):
        if self.chief:
            print(text, file=sys.stderr, flush=True)

    def put(self, batch):
        """This host's part of the batch onto its devices."""
        return jax.tree.map(lambda a: jax.make_array_from_process_local_data(self.sharded, a), batch)

    def means(self, done, recent):
        """The means of the steps since the last record; None, said aloud, if they are not finite."""
        values = {k: np.array([float(m[k]) for m in recent]) for k in recent[0]}
        bad = ~np.isfinite(np.stack(list(values.values()))).all(0)
        if bad.any():
            first = done - len(recent) + 1 + int(np.argmax(bad))
            self.say(f"\nerror: the loss is not finite from step {first} on: use a smaller --lr; the last checkpoint is kept")
            return None
        return {k: float(v.mean()) for k, v in values.items()}

    def evaluate(self, now):
        """Held-out loss of the averaged weights: its mean over the noise levels, and each term at each level."""
        total, devices = len(self.images.test), jax.device_count()
        count = min(self.config.eval_images, total)
        count -= count % devices if count > devices else 0  # an even share each
        chosen = np.random.default_rng(0).permutation(total)[:count]
        terms = self.held_out(now.ema, self.images.examples("test", chosen))
        terms = {k: [round(float(v), 6) for v in values] for k, values in terms.items()}
        return float(np.mean(terms["loss"])), terms


class Log:
    """JSON lines {"kind", "step", "seconds", ...}. Lines after the step at which a run is resumed are dropped, and the
    seconds go on from there."""

    def __init__(self, file, begin, chief):
        kept = []
        for line in file.read_text().splitlines() if file.is_file() else ():
            try:
                kept.append(json.loads(line))
            except json.JSONDecodeError:  # the kill cut the last line
                continue
        kept = [record for record in kept if record["step"] <= begin]
        self.chief, self.begun = chief, time.monotonic() - max((r["seconds"] for r in kept), default=0.0)
        if chief:
            write(file, "".join(json.dumps(record) + "\n" for record in kept))
            self.file = file.open("a")

    def write(self, kind, step, **values):
        if self.chief:
            seconds = round(time.monotonic() - self.begun, 2)
            self.file.write(json.dumps({"kind": kind, "step": step, "seconds": seconds, **values}) + "\n")
            self.file.flush()


def write(file, text):
    """Whole or not at all."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(file)
