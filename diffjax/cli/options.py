"""The command line of a program: errors are UserErrors, an unknown option names the nearest valid one."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys

from .errors import EXIT_CODES, UserError, one_line

MOST_DEVICES = 64  # of a CPU: each is a pool of threads, and thousands of them end the process


class Parser(argparse.ArgumentParser):
    """``argparse`` that raises UserError instead of exiting; ``description`` and ``epilog`` are shown as written, and below
    them the exit codes.

    name: a command of ``diffjax``, or (with a dot) a module.
    """

    def __init__(self, name, description, epilog=None):
        prog = f"python -m {name}" if "." in name else f"diffjax {name}"
        super().__init__(prog=prog, description=description, epilog=f"{epilog or ''}\n\n{EXIT_CODES}".strip(),
                         allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip

    def error(self, message):
        raise UserError(f"{message}: see --help")

    def parse(self, argv=None) -> argparse.Namespace:
        """``parse_args`` with the nearest valid option named for an unknown one."""
        words = sys.argv[1:] if argv is None else list(argv)
        for word in words[: words.index("--")] if "--" in words else words:  # before what is missing is complained of
            name = word.split("=")[0]
            if name.startswith("--") and name not in self._option_string_actions:
                self._unknown(name)
        given, unknown = self.parse_known_args(argv)
        for word in unknown:
            if not word.startswith("-"):
                raise UserError(f"unexpected argument {word!r}: options start with --, see --help")
            self._unknown(word.split("=")[0])
        return given

    def _unknown(self, name):
        known = [o for o in self._option_string_actions if o.startswith("--")]
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise UserError(f"unknown option {name!r}: " + (f"did you mean {close[0]!r}?" if close else "see --help"))

    def add_machine(self, devices="devices to use (default: all; a CPU counts as one per core)"):
        """The options that :func:`start` reads."""
        group = self.add_argument_group("the machine")
        group.add_argument("--devices", metavar="N", type=whole(1), help=devices)
        group.add_argument(
            "--cache",
            metavar="FOLDER",
            help="where compiled programs are kept, so that the second start is quick (default: ~/.cache/diffjax)",
        )
        group.add_argument("--no-cache", action="store_true", help="compile anew and keep nothing")


def start(o, cores: int | None = None) -> None:
    """Settle the number of devices and the cache of compiled programs, before jax computes anything.

    cores: devices of a CPU where none are asked for. UserError for devices, or a platform (JAX_PLATFORMS), that do not exist.
    """
    import jax

    from ..parallel import use_cores
    from .cache import use_cache

    if o.cache is not None and o.no_cache:
        raise UserError("--cache and --no-cache are opposites: give one of them")
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what the terminal's encoding lacks
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    most = max(os.cpu_count() or 1, MOST_DEVICES)
    if (o.devices or 0) > most:
        raise UserError(f"--devices {o.devices} is more than there can be here: give {most} or less")
    use_cores(o.devices or cores)
    if not o.no_cache:
        use_cache(o.cache)
    try:
        there = len(jax.devices())
    except RuntimeError as error:
        raise UserError(f"jax finds no devices ({one_line(error)[:200]}): see JAX_PLATFORMS") from None
    if (o.devices or 0) > there:
        raise UserError(f"--devices {o.devices}: there {'is' if there == 1 else 'are'} only {there} "
                        f"({jax.devices()[0].platform}), give {there} or leave it out")  # fmt: skip


def whole(low: int, high: int | None = None):
    """An argparse type: a whole number in [low, high]."""

    def convert(text: str) -> int:
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
