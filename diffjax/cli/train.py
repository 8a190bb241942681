"""Train a prior: ``diffjax train CONFIG [--data FOLDER --steps N --out FOLDER ...]``.

CONFIG is the name of a prior that ships (it is trained as that one was), "default", a JSON file, or the folder of a run. Every
field of it is an option: ``diffjax train default --name mine --data photos/ --channels 3 --fit resize``. The run is in one
folder (runs/NAME): the same command continues it where it stopped, also after a kill. Interrupt it (Ctrl-C) and it saves
first. With another --steps it goes on for longer, or begins to cool down at once.

Latent diffusion is trained in two phases. The first is a configuration of its own: an autoencoder against a discriminator
(``diffjax train first_stage --name mine_kl --data photos/``). The second is any prior with --autoencoder runs/mine_kl: it
encodes the data once to moments of latents, which stay in its folder, and learns those.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

from . import config as configuration
from . import errors, interrupt, options, ranges
from .config import FirstStageConfig, TrainConfig
from .errors import UserError

PHASES = ("first", "second")


def main(argv=None, configs: dict | None = None) -> int:
    """``configs``: by name, what CONFIG can be besides the priors that ship."""
    return interrupt.run(lambda stop: _main(argv, configs, stop))


def _main(argv, configs, stop) -> int:
    config, o = parse(argv, configs)
    if o.distributed:  # the processes find each other before jax looks for devices
        import jax

        jax.distributed.initialize()
    options.start(o, _devices(config.batch))
    with errors.needs("training", 'pip install "diffjax[train]"'):
        from .first_stage_run import FirstStageRun
        from .training_run import Run

    with errors.library_errors():
        of_phase = FirstStageRun if isinstance(config, FirstStageConfig) else Run
        run = of_phase(config)  # checks all that can be known before the first step
    stop.cleanup = run.lock.release
    try:
        return run.train(stop)
    finally:
        run.lock.release()


def _devices(batch: int) -> int:
    """As many of the cores as share a batch evenly."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return next(n for n in range(max(min(cores, batch), 1), 0, -1) if batch % n == 0)


def parse(argv=None, configs: dict | None = None) -> tuple[TrainConfig | FirstStageConfig, argparse.Namespace]:
    """-> the configuration with the options put in, and the options that belong to the machine."""
    known = configuration.bundled() | (configs or {})
    parser = options.Parser("train", __doc__)
    parser.add_argument("config", metavar="CONFIG", help=f"{', '.join(known)}, a JSON file, or the folder of a run")
    parser.add_machine("split the host into N devices (default: one per core, as far as they share a batch evenly)")
    parser.add_argument("--distributed", action="store_true", help="one process of several (a pod); they find each other")
    parser.add_argument("--phase", metavar="PHASE", help="first: the autoencoder of CONFIG; second: CONFIG (default)")
    group = parser.add_argument_group("fields of the configuration, explained in diffjax/cli/config.py")
    fields = {f.name: f for kind in (FirstStageConfig, TrainConfig) for f in dataclasses.fields(kind) if f.name != "phase"}
    for field in fields.values():
        default = "CONFIG's" if field.default is dataclasses.MISSING else field.default
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=field.name,
            metavar=field.type.split("[")[0].upper(),
            help=f"(default {default!r})",
        )
    o = parser.parse(argv)
    config = phase(find(o.config, known), o.phase, known)
    given = {k: convert(k, text, field.type) for k, field in fields.items() if (text := getattr(o, k)) is not None}
    own = {f.name for f in dataclasses.fields(config)}
    if strange := next((name for name in given if name not in own), None):
        which = "first" if isinstance(config, FirstStageConfig) else "second"
        raise UserError(f"--{strange.replace('_', '-')} is no field of {config.name}, which is phase {which}: leave it out")
    config = dataclasses.replace(config, **given)
    ranges.check(config)
    if not config.data:
        raise UserError("--data is needed: a folder of images, a folder with idx files, or an .npz file")
    if not given.get("out") and (not config.out or o.config in known):
        config = dataclasses.replace(config, out=f"runs/{config.name}")
    return config, o


def phase(config, name: str | None, known: dict):
    """The configuration of that phase: ``config``, or that of its autoencoder. Raises UserError."""
    if name is not None and name not in PHASES:
        raise errors.unknown("phase", name, PHASES)
    if name == "first" and isinstance(config, TrainConfig):
        if not config.autoencoder:
            raise UserError(f"{config.name} learns pixels and has no first phase: leave out --phase, or give --autoencoder")
        stem = Path(config.autoencoder).name
        config = known[stem] if stem in known else find(config.autoencoder, known)
        if not isinstance(config, FirstStageConfig):
            raise UserError(f"{config.name} is no first phase: train its autoencoder by its own configuration")
    if name == "second" and isinstance(config, FirstStageConfig):
        raise UserError(f"{config.name} is an autoencoder: phase second is a prior with --autoencoder runs/{config.name}")
    return config


def find(name: str, known: dict):
    """The configuration that CONFIG means. Raises UserError."""
    if name in known:
        return known[name]
    path = Path(name)
    if path.is_dir():
        file = next((path / n for n in ("config.json", "card.json") if (path / n).is_file()), None)
        if file is None:
            raise UserError(f"{name} is not the folder of a training run: it has no config.json")
        config = configuration.read(file)
        return dataclasses.replace(config, out=name) if file.name == "config.json" else config  # that run goes on
    if path.suffix == ".json" or path.exists():
        return configuration.read(path)
    raise errors.unknown("config", name, known)


def convert(name, text, kind):
    """The value of a field from the text of its option. UserError if it is not one."""
    try:
        if kind == "bool":
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if kind.startswith("tuple"):
            item = float if "float" in kind else int
            return tuple(item(part) for part in text.replace(",", " ").split())
        return {"int": int, "float": float, "str": str}[kind](text)
    except (ValueError, KeyError):
        example = {"bool": "true or false", "int": "a whole number", "float": "a number"}.get(kind, "numbers like 1,2,4")
        raise UserError(f"--{name.replace('_', '-')} {text!r} is not {example}") from None
