"""A training run in one folder, of either phase: steps, checkpoints, log, pictures, and how it goes on after a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time

import jax
import numpy as np

from ..training import checkpoints, state
from ..zoo import prior
from .config import CHANGEABLE
from .config import read as read_config
from .errors import UserError
from .lock import Lock
from .progress import Progress

QUICK = {"xla_backend_optimization_level": 0}  # of the many small draws of parameters, which run once


class Loop:
    """What runs of both phases share. A run sets, before ``claimed()``:

    config, chief (this process writes), rate (learning rate by step), stream (batch by step), step, whole and sharded
    (shardings), start() -> state, shapes (its shapes), loss_name (the metric to show), and defines ``sign()``,
    ``evaluate(state, step) -> (number, terms)`` and ``picture(state, file)``.
    """

    loss_name = "loss"
    notes = ()

    @contextlib.contextmanager
    def claimed(self):
        """The folder is this run's within the block and after it; where the block fails it is given back."""
        self.folder = pathlib.Path(self.config.out)
        self.lock = Lock(self.folder)
        try:
            self._claim_folder()
            yield
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
            if type(old) is not type(self.config):
                raise ValueError(f"{self.folder} holds a run of another phase: use another --out")
            for name in (f.name for f in dataclasses.fields(old) if f.name not in CHANGEABLE):
                before, now = getattr(old, name), getattr(self.config, name)
                if before != now:
                    raise ValueError(f"{self.folder} holds a run with {name} {before}, not {now}: use that, or another --out")
        if self.chief:
            write(file, json.dumps(dataclasses.asdict(self.config), indent=1) + "\n")
            self.sign()

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
        sizes = [sum(a.size for a in jax.tree.leaves(p.params)) for p in now.players.values()]
        parameters = f"{' + '.join(f'{n:,}' for n in sizes)} parameters"
        devices = jax.device_count()
        self.say(f"{c.name}: {parameters}, {self.stream.count:,} images, {devices} device{'s' * (devices > 1)}, into {c.out}")
        for note in self.notes:
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
                    shown["loss"] = float(recent[-2][self.loss_name])
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
                    shown["held_out"], terms = self.evaluate(now, done)
                    log.write("held_out", done, mean=shown["held_out"], **terms)
                    store.save(done, state.to_items(now), shown["held_out"])
                if done == c.steps or done % c.sample_every == 0:
                    self.picture(now, self.folder / f"samples_{done:07d}.png")
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


class Log:
    """JSON lines {"kind", "step", "seconds", "core_seconds", ...}: of the clock, and of all cores by this process. Lines after
    the step at which a run is resumed are dropped, and the seconds go on from there."""

    def __init__(self, file, begin, chief):
        kept = []
        for line in file.read_text().splitlines() if file.is_file() else ():
            try:
                kept.append(json.loads(line))
            except json.JSONDecodeError:  # the kill cut the last line
                continue
        kept = [record for record in kept if record["step"] <= begin]
        before = lambda name: max((r.get(name, 0.0) for r in kept), default=0.0)
        self.chief, self.begun = chief, time.monotonic() - before("seconds")
        self.used = time.process_time() - before("core_seconds")
        if chief:
            write(file, "".join(json.dumps(record) + "\n" for record in kept))
            self.file = file.open("a")

    def write(self, kind, step, **values):
        if self.chief:
            seconds = {"seconds": time.monotonic() - self.begun, "core_seconds": time.process_time() - self.used}
            seconds = {name: round(value, 2) for name, value in seconds.items()}
            self.file.write(json.dumps({"kind": kind, "step": step, **seconds, **values}) + "\n")
            self.file.flush()


def write(file, text):
    """Whole or not at all."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(file)
