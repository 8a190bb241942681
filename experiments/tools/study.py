"""The one place from which the studies take what is not theirs: errors, command lines, cores, tables and pictures."""

import shlex
import sys

from experiments.errors import UserError, library_errors, run, unknown
from experiments.figures import INK, PAPER, grid, load_font
from experiments.options import Parser, setting, use_cores, whole
from experiments.tables import _text as as_text
from experiments.tables import render

__all__ = ["INK", "PAPER", "Parser", "UserError", "as_text", "command", "grid", "library_errors", "load_font", "render", "run",
           "setting", "unknown", "use_cores", "whole"]  # fmt: skip

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
