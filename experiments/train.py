"""Train a prior: ``python -m experiments.train CONFIG [--data DIR --steps N --out DIR ...]``.

CONFIG is a file of experiments/configs. Every field of it is an option. The run is in one folder (runs/CONFIG): the
same command continues it where it stopped, also after a kill. Interrupt it (Ctrl-C) and it saves first.
With another --steps it goes on for longer, or begins to cool down at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import os
import pkgutil
import sys

from . import configs, errors
from .configs.base import TrainConfig

# Nothing here imports jax at the top: the number of host devices is set first.


def main(argv=None) -> int:
    try:
        config, options = parse(sys.argv[1:] if argv is None else argv)
        if options.devices:
            flag = f"--xla_force_host_platform_device_count={options.devices}"
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        from .training_run import Run  # imports jax

        if options.distributed:
            import jax

            jax.distributed.initialize()
        run = Run(config)  # checks all that can be known before the first step
    except ValueError as error:
        print(f"error: {errors.one_line(error)}", file=sys.stderr)
        return 2
    return run.train()


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(message)


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(configs.__path__) if m.name != "base")


def parse(argv) -> tuple[TrainConfig, argparse.Namespace]:
    """-> the configuration with the options put in, and the options that belong to the machine."""
    parser = Parser(
        prog="python -m experiments.train",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help=" or ".join(names()))
    parser.add_argument("--devices", type=int, default=0, metavar="N", help="split the host into N devices (one per core)")
    parser.add_argument("--distributed", action="store_true", help="one process of several (a pod); they find each other")
    group = parser.add_argument_group("fields of the configuration, explained in experiments/configs/base.py")
    fields = {f.name: f for f in dataclasses.fields(TrainConfig) if f.name != "name"}
    for field in fields.values():
        default = "needed" if field.default is dataclasses.MISSING else field.default
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=field.name,
            metavar=field.type.split("[")[0].upper(),
            help=f"(default {default!r})",
        )
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        option = unknown[0].split("=")[0]
        close = difflib.get_close_matches(option, list(parser._option_string_actions), n=1, cutoff=0.5)
        raise ValueError(f"unknown option {option}: " + (f"did you mean {close[0]}?" if close else "see --help"))
    if options.config not in names():
        raise errors.unknown("config", options.config, names())
    if options.devices < 0:
        raise ValueError(f"--devices {options.devices} is negative: give the number of host devices")
    config = importlib.import_module(f"experiments.configs.{options.config}").config
    given = {k: convert(k, text, field.type) for k, field in fields.items() if (text := getattr(options, k)) is not None}
    config = dataclasses.replace(config, **given)
    return dataclasses.replace(config, out=config.out or f"runs/{config.name}"), options


def convert(name, text, kind):
    """The value of a field from the text of its option. ValueError if it is not one."""
    try:
        if kind == "bool":
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if kind.startswith("tuple"):
            item = float if "float" in kind else int
            return tuple(item(part) for part in text.replace(",", " ").split())
        return {"int": int, "float": float, "str": str}[kind](text)
    except (ValueError, KeyError):
        example = {"bool": "true or false", "int": "a whole number", "float": "a number"}.get(kind, "numbers like 1,2,4")
        raise ValueError(f"--{name.replace('_', '-')} {text!r} is not {example}") from None


if __name__ == "__main__":
    sys.exit(main())
