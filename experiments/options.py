"""The command line of a program: errors are UserErrors, an unknown option names the nearest valid one."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys

from experiments.errors import UserError


class Parser(argparse.ArgumentParser):
    """``argparse`` that raises UserError instead of exiting; ``description`` and ``epilog`` are shown as written."""

    def __init__(self, module, description, epilog=None):
        super().__init__(prog=f"python -m {module}", description=description, epilog=epilog, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip

    def error(self, message):
        raise UserError(f"{message}: see --help")

    def parse(self, argv=None) -> argparse.Namespace:
        """``parse_args`` with the nearest valid option named for an unknown one."""
        given, unknown = self.parse_known_args(argv)
        for word in unknown:
            if not word.startswith("-"):
                raise UserError(f"unexpected argument {word!r}: options start with --, see --help")
            name = word.split("=")[0]
            close = difflib.get_close_matches(
                name, [o for o in self._option_string_actions if o.startswith("--")], n=1, cutoff=0.5
            )
            raise UserError(f"unknown option {name!r}: " + (f"did you mean {close[0]!r}?" if close else "see --help"))
        return given


def whole(low: int, high: int | None = None):
    """An argparse type: a whole number in [low, high]."""

    def convert(text):
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            most = f"to {high}" if high is not None else "or more"
            raise argparse.ArgumentTypeError(f"{value} is out of range, choose {low} {most}")
        return value

    return convert


def setting(text: str) -> tuple:
    """An argparse type: KEY=VALUE, the value a number, a list, true, false or a word."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def use_cores(count: int | None = None) -> None:
    """Make every CPU core (or ``count`` of them) one JAX device, so that a batch is spread over the cores.

    One device alone leaves a core idle: convolutions inside a compiled loop run on about one thread. Must come before
    jax is imported; does nothing afterwards, where the user has set the number, or for other platforms.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "jax" in sys.modules or "host_platform_device_count" in flags:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count or min(cores, 8)}".strip()
