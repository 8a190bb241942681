"""What programs do with bad input: one line on the error stream, exit code 2, nothing half-written."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Iterator

from ..wording import printable

EXIT_CODES = """exit codes: 0 done; 1 failed on the way, what is finished stays; 2 something given cannot be used, said in one
line; 130 interrupted (Ctrl-C); 143 terminated (SIGTERM)"""


class UserError(ValueError):
    """Something the person who ran the program can put right, in one line: value, remedy, nearest choice."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """The error for a name not in `valid`: unknown mask 'wied': did you mean 'wide'? (valid: box, ...)"""
    valid = sorted(valid)
    close = difflib.get_close_matches(str(name).lower(), valid, n=3, cutoff=0.5)
    guess = "did you mean " + " or ".join(repr(c) for c in close) + "? " if close else ""
    return UserError(f"unknown {kind} {str(name)!r}: {guess}(valid: {', '.join(valid)})")


def of_library(error: BaseException) -> bool:
    """Whether the library itself raised this ValueError: then it is about what it was given, one line with the remedy. One
    that comes from jax or numpy is a bug."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    return isinstance(error, ValueError) and name.partition(".")[0] == __name__.partition(".")[0]


@contextlib.contextmanager
def library_errors(prefix: str = "") -> Iterator[None]:
    """Turn a ValueError of the library into a UserError with ``prefix``."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        if not of_library(error):
            raise
        raise UserError(prefix + str(error)) from error


def one_line(error: BaseException) -> str:
    """The error's text as one line that a terminal may show, whatever was in it."""
    return printable(error, 1500)


@contextlib.contextmanager
def needs(what: str, install: str) -> Iterator[None]:
    """Around imports of packages that may be missing: one line that says how to install them."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == __name__.partition(".")[0]:
            raise
        raise UserError(f"{what} needs {package}, which is not installed: {install}") from None


def run(main: Callable[[], int | None]) -> int:
    """Run a program: its exit code, 2 after a UserError, a ValueError of the library or an OSError that names a file (said in
    one line on stderr), 130 after Ctrl-C.

    `if __name__ == "__main__": sys.exit(errors.run(main))`. Any other exception is a bug and keeps its
    traceback.
    """
    try:
        code = int(main() or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `diffjax list | head`: whoever read this has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ValueError as error:
        if not (isinstance(error, UserError) or of_library(error)):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:  # a question about a file that may not be asked: no permission, a name too long, a full disk
        if error.filename is None:
            raise
        print(f"error: {one_line(ValueError(error.filename))} cannot be used ({error.strerror})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
