"""The one place from which the studies take what is not theirs: errors, command lines, cores, tables and pictures."""

import shlex
import sys
from pathlib import Path

from diffjax.cli.errors import UserError, library_errors, run, unknown
from diffjax.cli.figures import INK, PAPER, grid, load_font
from diffjax.cli.options import Parser, setting, whole
from diffjax.cli.tables import _text as as_text
from diffjax.cli.tables import render


def use_cores():
    """Every core a device (:func:`diffjax.parallel.use_cores`); jax is imported when this is called, not before."""
    from diffjax.parallel import use_cores

    use_cores()


def one_of(commands: dict, doc: str, argv=None) -> int:
    """Run the one of ``commands``, {name: function of the words after it}, that the first word names; its exit code. Raises
    UserError for none or an unknown one."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("-h", "--help"):
        print(doc)
        return 0
    if not words or words[0] not in commands:
        raise unknown("command", words[0], commands) if words else UserError(f"give {', '.join(commands)}, or --help")
    return commands[words[0]](words[1:])


def made(folder) -> Path:
    """The output folder, made where it is not there: known before anything is computed. UserError where it cannot be."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {folder} cannot be written ({error.strerror}): give another with --out") from None
    return folder


__all__ = ["INK", "PAPER", "Parser", "UserError", "as_text", "command", "grid", "library_errors", "load_font", "made",
           "one_of", "render", "run", "setting", "unknown", "use_cores", "whole"]  # fmt: skip

PLACES = ("--out", "--cells")  # with a value
WAYS = ("--fresh", "--tables", "--allow-stale")


def command(module: str, argv=None, extra=()) -> str:
    """The command that makes a result from a fresh clone: the words given, but for those that only say where files are and
    what is not computed again. extra: other options, with a value each, to leave out."""
    words, found = list(sys.argv[1:] if argv is None else argv), []
    while words:
        word = words.pop(0)
        name = word.split("=")[0]
        if name in (*PLACES, *extra):
            if "=" not in word and words:
                words.pop(0)
        elif name not in WAYS:
            found.append(word)
    return shlex.join(["python", "-m", module, *found])
