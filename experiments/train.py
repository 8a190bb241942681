"""Train a prior: ``python -m experiments.train CONFIG [--data DIR --steps N --out DIR ...]``.

CONFIG is a file of experiments/configs. Every field of it is an option. The run is in one folder (runs/CONFIG): the
same command continues it where it stopped, also after a kill. Interrupt it (Ctrl-C) and it saves first.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import pathlib
import pkgutil
import signal
import sys
import time

from .configs.base import CHANGEABLE, TrainConfig

# --- command line: nothing here may import jax, the number of host devices is set first ----------------------------


def main(argv=None) -> int:
    try:
        config, options = parse(sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        return fail(error)
    if options.devices:
        flag = f"--xla_force_host_platform_device_count={options.devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    if options.distributed:
        import jax

        jax.distributed.initialize()
    try:
        run = Run(config)
    except ValueError as error:
        return fail(error)
    return run.train()


def fail(error) -> int:
    print(f"train: error: {error}", file=sys.stderr)
    return 2


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(message)


def names() -> list[str]:
    from . import configs

    return sorted(m.name for m in pkgutil.iter_modules(configs.__path__) if m.name != "base")


def parse(argv) -> tuple[TrainConfig, argparse.Namespace]:
    """-> the configuration with the options put in, and the options that belong to the machine."""
    parser = Parser(prog="python -m experiments.train", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("config", metavar="CONFIG", help=" or ".join(names()))
    parser.add_argument("--devices", type=int, default=0, help="split the host into N devices (one per core on a CPU)")
    parser.add_argument("--distributed", action="store_true", help="one process of several (a pod): finds the others itself")
    group = parser.add_argument_group("fields of the configuration (defaults are CONFIG's)")
    fields = {f.name: f for f in dataclasses.fields(TrainConfig) if f.name != "name"}
    for field in fields.values():
        group.add_argument(f"--{field.name.replace('_', '-')}", dest=field.name, type=str, metavar=str(field.type).split("[")[0].upper())
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ValueError(f"option {unknown[0]} is unknown: {_nearest(unknown[0], parser._option_string_actions)}")
    if options.config not in names():
        raise ValueError(f"config {options.config!r} is unknown: {_nearest(options.config, names())}")
    if options.devices < 0:
        raise ValueError(f"--devices {options.devices} is negative: give the number of host devices")
    config = importlib.import_module(f"experiments.configs.{options.config}").config
    given = {k: convert(k, v, fields[k].type) for k in fields if (v := getattr(options, k)) is not None}
    config = dataclasses.replace(config, **given)
    return dataclasses.replace(config, out=config.out or f"runs/{config.name}"), options


def convert(name, text, kind):
    """The value of a field from the text of its option."""
    try:
        if kind == "bool":
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if kind.startswith("tuple"):
            item = float if "float" in kind else int
            return tuple(item(part) for part in text.replace(",", " ").split())
        return {"int": int, "float": float, "str": str}[kind](text)
    except (ValueError, KeyError):
        raise ValueError(f"--{name.replace('_', '-')} {text!r} is not of type {kind}") from None


def _nearest(name, valid):
    import difflib

    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "see --help" if str(name).startswith("-") else f"choose one of {', '.join(valid)}"


# --- building blocks, also for whoever uses a run afterwards --------------------------------------------------------


def build(config: TrainConfig):
    """-> (net, schedule) of a configuration. Raises ValueError for names and sizes that do not exist."""
    import jax.numpy as jnp

    from diffjax import schedules
    from diffjax.base import nearest
    from diffjax.nets import UNet

    betas = {"cosine": schedules.cosine_betas, "linear": schedules.linear_betas, "scaled_linear": schedules.scaled_linear_betas}
    if config.schedule not in betas:
        raise ValueError(f"schedule {config.schedule!r} is unknown: {nearest(config.schedule, betas)}")
    copied = "width multipliers blocks attention heads groups patch scale_shift resblock_updown dropout remat".split()
    net = UNet(
        out_channels=config.channels * (2 if config.loss == "hybrid" else 1),
        classes=config.classes or None,
        null_label=bool(config.classes),
        dtype=jnp.bfloat16 if config.bfloat16 else None,
        **{name: getattr(config, name) for name in copied},
    )
    return net, schedules.discrete(betas[config.schedule](config.T))


def load(folder, which="best"):
    """-> (config, net, schedule, averaged params, step) of a run; ``which``: "best", "last" or a step number."""
    import jax

    from diffjax.nets import init
    from diffjax.training import checkpoints, state

    file = pathlib.Path(folder) / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} is not the folder of a training run: it has no config.json")
    config = read_config(file)
    net, schedule = build(config)
    optimizer = make_optimizer(config)
    make = lambda: state.create(init(net, jax.random.key(0), (config.size, config.size, config.channels)), optimizer)  # noqa: E731
    with checkpoints.Checkpoints(pathlib.Path(folder) / "checkpoints", read_only=True) as store:
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        restored = store.restore(checkpoints.abstract(jax.eval_shape(make), one), which)
    return config, net, schedule, restored.ema, int(restored.step)


def read_config(file) -> TrainConfig:
    values = json.loads(pathlib.Path(file).read_text())
    return TrainConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def make_optimizer(config):
    from diffjax.training import state

    rate = state.warmup_stable_decay(config.lr, config.steps, config.warmup, config.cooldown)
    return state.adam(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, clip=config.clip)


class Run:
    """One training run. Building it checks everything that can be known before the first step."""

    def __init__(self, config: TrainConfig):
        import jax

        from diffjax.base import nearest
        from diffjax.nets import init
        from diffjax.training import data, losses, state, step

        from . import samples

        self.config, c = config, config
        if c.loss not in step.LOSSES:
            raise ValueError(f"loss {c.loss!r} is unknown: {nearest(c.loss, step.LOSSES)}")
        losses.weight(c.weighting, "v", 0.0)
        for name in ("batch", "log_every", "eval_images", "checkpoint_every", "sample_every", "sample_steps", "keep"):
            if getattr(c, name) < 1:
                raise ValueError(f"{name} {getattr(c, name)} must be at least 1")
        if c.batch % jax.device_count():
            raise ValueError(f"batch {c.batch} is not divisible by {jax.device_count()} devices: use a multiple")
        self.net, self.schedule = build(c)
        self.rate = state.warmup_stable_decay(c.lr, c.steps, c.warmup, c.cooldown)
        optimizer = make_optimizer(c)
        self.images = data.load(c.data, size=c.size, channels=c.channels, fit=c.fit, classes=c.classes)
        self.stream = data.Stream(self.images.train, self.images.train_labels, c.batch, c.seed, c.flip,
                                  jax.process_index(), jax.process_count())  # fmt: skip
        self.whole, self.sharded = step.shardings()
        self.folder = pathlib.Path(c.out)
        self.chief = jax.process_index() == 0
        self._claim_folder()

        loss = step.LOSSES[c.loss]
        one = lambda *a: loss(*a, weighting=c.weighting, gamma=c.gamma)  # noqa: E731
        plain = lambda *a: loss(*a)  # noqa: E731
        options = dict(null_label=c.classes, label_dropout=c.label_dropout)
        key_init, key_steps = jax.random.split(jax.random.key(c.seed))
        self.step = step.train_step(step.example_loss(self.net, self.schedule, one, **options), optimizer, self.schedule,
                                    ema=c.ema, key=key_steps, sharded=self.sharded, whole_times=c.loss == "hybrid")  # fmt: skip
        self.held_out = step.held_out(step.example_loss(self.net, self.schedule, plain, **options), self.schedule, sharded=self.sharded)
        make = lambda: state.create(init(self.net, key_init, (c.size, c.size, c.channels)), optimizer)  # noqa: E731
        self.make = jax.jit(make, out_shardings=self.whole)
        self.abstract = jax.eval_shape(make)
        self.sampler = samples.make_sampler(self.net, self.schedule, c, (self.whole, self.sharded))
        self.save_grid = samples.save

    def _claim_folder(self):
        """Make the folder, or check that what is there belongs to this configuration; write config.json."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise OSError("not writable")
        except OSError as error:
            raise ValueError(f"output folder {self.folder} cannot be written ({error}): use --out") from None
        file = self.folder / "config.json"
        if file.is_file() and (self.folder / "checkpoints").is_dir():
            old = read_config(file)
            for field in dataclasses.fields(TrainConfig):
                before, now = getattr(old, field.name), getattr(self.config, field.name)
                if before != now and field.name not in CHANGEABLE:
                    raise ValueError(f"{self.folder} holds a run with {field.name}={before}, not {now}: use another --out, or the same value")
        if self.chief:
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(dataclasses.asdict(self.config), indent=1) + "\n")
            temporary.replace(file)

    def train(self) -> int:
        import jax

        from diffjax.training import checkpoints

        from .progress import Progress

        c = self.config
        stop = []
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: stop.append(True))
        with checkpoints.Checkpoints(self.folder / "checkpoints", c.keep) as store:
            begin = store.last() or 0
            if begin:
                state = store.restore(checkpoints.abstract(self.abstract, self.whole))
                self.say(f"resuming at step {begin} of {c.steps}")
            else:
                state = self.make()
            if begin >= c.steps:
                self.say(f"{self.folder} already has {begin} steps: give --steps above that to go on")
                return 0
            self.log = Log(self.folder / "log.jsonl", begin, self.chief)
            size = sum(a.size for a in jax.tree.leaves(state.params))
            self.say(f"{c.name}: {size:,} parameters, {len(self.images.train):,} images, {jax.device_count()} devices, into {self.folder}")
            recent, shown, saved = [], {}, begin
            with Progress(c.steps, start=begin, label=c.name, unit="images", per_step=c.batch) as bar:
                for n in range(begin, c.steps):
                    state, metrics = self.step(state, *self.put(self.stream(n)))
                    done = n + 1
                    recent.append(metrics)
                    if len(recent) > 1:  # one step behind, so that the host prepares while the device computes
                        shown["loss"] = float(recent[-2]["loss"])
                    bar.update(done, **shown)
                    last = done == c.steps or bool(stop)
                    if last or done % c.log_every == 0 or done % c.checkpoint_every == 0:
                        recent = self.record(done, recent, bar)
                        if recent is None:
                            return 1
                    if last or done % c.checkpoint_every == 0:
                        shown["held_out"] = self.evaluate(state, done)
                        store.save(state, shown["held_out"])
                        saved = done
                    if done == c.steps or done % c.sample_every == 0:
                        self.sample(state, done)
                    if stop:
                        break
            store.wait()
        self.say(f"saved step {saved} in {self.folder}" + (": the same command goes on from there" if saved < c.steps else ""))
        return 0

    def say(self, text):
        if self.chief:
            print(text, file=sys.stderr, flush=True)

    def put(self, batch):
        """This host's part of the batch onto its devices."""
        import jax

        return jax.tree.map(lambda a: jax.make_array_from_process_local_data(self.sharded, a), batch)

    def record(self, done, recent, bar):
        """Log the means of the steps since the last record; None if they are not finite."""
        import numpy as np

        means = {k: float(np.mean([float(m[k]) for m in recent])) for k in recent[0]} if recent else {}
        if not all(np.isfinite(v) for v in means.values()):
            first = done - len(recent) + 1 + next(i for i, m in enumerate(recent) if not all(np.isfinite(float(v)) for v in m.values()))
            print(f"\ntrain: error: the loss is not finite from step {first} on: lower --lr and run again, the last good "
                  f"checkpoint is kept", file=sys.stderr)  # fmt: skip
            return None
        if means:
            self.log.write("train", done, images=done * self.config.batch, lr=float(self.rate(done - 1)),
                           images_per_s=round(bar.rate() * self.config.batch, 2), **means)  # fmt: skip
        return []

    def evaluate(self, state, done) -> float:
        """Held-out loss of the averaged weights at each noise level; -> its mean (of the unweighted loss)."""
        import jax
        import numpy as np

        x, y = self.images.test, self.images.test_labels
        chosen = np.random.default_rng(0).permutation(len(x))
        chosen = chosen[: max(1, min(self.config.eval_images, len(x)) // jax.device_count()) * jax.device_count()]
        terms = self.held_out(state.ema, x[chosen], None if y is None else y[chosen])
        terms = {k: [round(float(v), 6) for v in values] for k, values in terms.items()}
        mean = float(np.mean(terms["loss"]))
        self.log.write("held_out", done, mean=mean, levels=[0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95], **terms)
        return mean

    def sample(self, state, done):
        """A PNG of samples of the averaged weights: one class per row."""
        grid = self.sampler(state.ema)
        if self.chief:
            self.save_grid(self.folder / f"samples_{done:07d}.png", grid)


class Log:
    """JSON lines: {"kind", "step", "seconds", ...}. Lines after the step a run is resumed at are dropped."""

    def __init__(self, file, begin, chief):
        kept = []
        if file.is_file():
            for line in file.read_text().splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:  # the kill cut the last line
                    continue
                if record["step"] <= begin:
                    kept.append(record)
        self.chief, self.begun = chief, time.monotonic() - max((r["seconds"] for r in kept), default=0.0)
        if chief:
            temporary = file.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
            temporary.replace(file)
            self.file = file.open("a")

    def write(self, kind, step, **values):
        if self.chief:
            record = {"kind": kind, "step": step, "seconds": round(time.monotonic() - self.begun, 2), **values}
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()


if __name__ == "__main__":
    sys.exit(main())
