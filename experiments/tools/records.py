"""Result files: one JSON per run, with where its numbers come from.

{"command":  what makes it from a fresh clone,
 "seconds":  what that took, "took": the same in words where it was not measured,
 "commit", "dirty", "date", "device", "versions": of the run that wrote the file,
 "note":     what else one must know to trust it,
 "kind":     how tables are made of it (``tools.views``), settings of the run, ...
 "rows":     [{column: value}], or
 "cells":    {name: scores per image, and "made": where this cell comes from}}
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from . import provenance
from .study import UserError, render, unknown


def write(name: str, command: str, rows: list[dict] | None = None, folder=None, **more) -> str:
    """Write NAME.json; returns the table of its rows, or "" where there are none. folder: default ``provenance.results()``."""
    made = provenance.made()
    record = {"command": command, **made, "versions": provenance.versions(), **more}
    if rows is not None:
        record["rows"] = rows
    save(name, record, folder)
    return "" if rows is None else render(rows)


def save(name: str, record: dict, folder=None) -> None:
    """Put the record in its place, whole or not at all."""
    folder = provenance.results() if folder is None else Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{name}.tmp"
        temporary.write_text(_text(record))
        temporary.replace(folder / f"{name}.json")
    except OSError as error:
        raise UserError(f"output folder {folder} cannot be written ({error.strerror}): give another with --out") from None


def _text(record) -> str:
    """JSON, a line for each entry, lists of numbers on one line."""
    inner = re.compile(r"\[\s+(-?[\d.][^\[\]{}\"]*?)\s+\]")
    lines = lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]"
    return inner.sub(lines, json.dumps(record, indent=1, ensure_ascii=False)) + "\n"


def read(name: str, folder=None) -> dict:
    """The record NAME. Raises UserError where there is none."""
    folder = provenance.results() if folder is None else Path(folder)
    file = folder / f"{name}.json"
    if not file.is_file():
        raise unknown("result", name, (f.stem for f in folder.glob("*.json")))
    return json.loads(file.read_text())


def origin(record: dict) -> dict:
    """{"commit", "date", "device"} in words: of the cells where they know, else of the record."""
    made = [cell["made"] for cell in record.get("cells", {}).values() if "made" in cell]
    commits = {(m["commit"], m.get("dirty")) for m in made if m.get("commit")} or {(record["commit"], record.get("dirty"))}
    dates = sorted({m["date"] for m in made if m.get("date")} or {record["date"]})
    devices = sorted({m["device"] for m in made if m.get("device")} or {record["device"]})
    words = sorted((commit or "none: no git")[:7] + " with changes" * bool(dirty) for commit, dirty in commits)
    span = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return {"commit": ", ".join(words), "date": span, "device": ", ".join(devices)}
