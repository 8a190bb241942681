"""Foreign text: one line that a terminal may show, whatever was in it; and JSON. Imports nothing that takes time."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path

MOST_JSON = 2**25  # bytes: no configuration, card or index has more


def printable(text, most: int = 300) -> str:
    """``text`` on one line of at most ``most`` characters: control characters, which could steer a terminal, and what no file
    could hold become "?"; the middle of long ones is left out."""
    text = str(text)
    if len(text) > 4 * most:
        text = f"{text[: 2 * most]} ... {text[-most:]}"
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    end = most // 4
    return text if len(text) <= most else f"{text[: max(most - end - 5, 1)]} ... {text[-end:]}"


@contextlib.contextmanager
def reading():
    """Around questions about files, also as a decorator. pathlib's raise where a folder above may not be read, or where a name
    is too long: that becomes a ValueError, one line that names the file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise ValueError(f"{printable(error.filename)} cannot be read ({error.strerror})") from error


def some(names, most: int = 8, width: int = 80) -> str:
    """The first names of many, each cut to ``width``: a, b, c and 12 more."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name, width) for name in names[:most]) + more


def read_json(file):
    """What a JSON file holds. ValueError, one line that names it, whatever is wrong: missing, not UTF-8, not JSON, nested
    deeper than Python goes, numbers of many digits."""
    file = Path(file)
    try:
        found = os.stat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_JSON:
            raise ValueError(f"it is no file of at most {MOST_JSON >> 20} MB")
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except Exception as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{printable(file)} cannot be read ({printable(text, 120)}): copy it again") from error
