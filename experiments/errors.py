"""What programs do with bad input: one line on the error stream, exit code 2, nothing half-written."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterable, Iterator


class UserError(ValueError):
    """Something the person who ran the program can put right, in one line: value, remedy, nearest choice."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """The error for a name not in `valid`: unknown mask 'wied': did you mean 'wide'? (valid: box, ...)"""
    valid = sorted(valid)
    close = difflib.get_close_matches(str(name).lower(), valid, n=3, cutoff=0.5)
    guess = "did you mean " + " or ".join(repr(c) for c in close) + "? " if close else ""
    return UserError(f"unknown {kind} {str(name)!r}: {guess}(valid: {', '.join(valid)})")


@contextlib.contextmanager
def library_errors(prefix: str = "") -> Iterator[None]:
    """Turn a ValueError of the library (already one line that names the remedy) into a UserError.

    Wrap only the construction of methods, measurements and tables: there a ValueError is about what the user
    asked for.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(prefix + str(error)) from error


def one_line(error: BaseException) -> str:
    """The error's text with line breaks folded, so that it stays one line whatever was in it."""
    return " ".join(str(error).split())


def run(main: Callable[[], int | None]) -> int:
    """Run a program: its exit code, 2 after a UserError (said in one line on stderr), 130 after Ctrl-C.

    `if __name__ == "__main__": sys.exit(errors.run(main))`. Any other exception is a bug and keeps its
    traceback.
    """
    try:
        return int(main() or 0)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
