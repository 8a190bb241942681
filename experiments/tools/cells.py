"""Finished cells of a table, kept on disk with where they come from: what is stale is never shown.

A cell is one JSON file, {..., "made": {"commit", "dirty", "date", "device", "code", "settings"}}. ``code`` and ``settings``
are fingerprints (``tools.provenance``) of what Python ran and of the numbers it was given; a cell that has others than those
asked for is stale.
"""

from __future__ import annotations

import json
from pathlib import Path

from . import provenance
from .study import UserError


def read(file: Path, asked: dict, remedy: str, allow_stale: bool = False) -> dict | None:
    """The cell in ``file``, or None where there is none. asked: {"code", "settings"} as they are now; remedy: the command that
    computes it again. Raises UserError for a stale one, unless ``allow_stale``."""
    if not file.is_file():
        return None
    cell = json.loads(file.read_text())
    if not allow_stale and (why := stale(cell, asked)):
        raise UserError(f"{file} is stale ({why}): run {remedy}, or give --allow-stale to show it all the same")
    return cell


def kept(file: Path, asked: dict, make, fresh: bool = False) -> dict:
    """The cell in ``file``; where there is none, or a stale one, the result of ``make()``, which is written there."""
    if file.is_file() and not fresh:
        cell = json.loads(file.read_text())
        if not stale(cell, asked):
            return cell
    cell = {**make(), "made": {**provenance.made(), **asked}}
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(cell))
    temporary.replace(file)
    return cell


def stale(cell: dict, asked: dict) -> str:
    """What has changed since the cell was computed; "" where nothing has."""
    made = cell.get("made", {})
    return " and ".join(f"other {name}" for name, now in asked.items() if made.get(name) != now)


def bare(cell: dict, *without: str) -> dict:
    """The cell without the keys ``without``, its origin in one line."""
    return {key: value for key, value in cell.items() if key not in without}
