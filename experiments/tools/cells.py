"""Finished cells of a table, kept on disk with where they come from: what is stale is never shown unasked.

A cell is one JSON file, {..., "made": {"commit", "dirty", "date", "device", "code", "settings", ...}}. ``code`` and
``settings`` are fingerprints (``tools.code``, ``tools.provenance``) of what Python ran and of the numbers it was given: where
they are not those of now, the cell is stale. It is then computed again, or refused where nothing is to be computed.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from diffjax.wording import read_json

from . import provenance
from .study import UserError


@dataclasses.dataclass
class Cells:
    """folder: where they are; command: what computes them; fresh: compute all again; tables: compute nothing; allow_stale:
    take them as they are"""

    folder: Path
    command: str
    fresh: bool = False
    tables: bool = False
    allow_stale: bool = False
    stale: list = dataclasses.field(default_factory=list)  # those that were taken all the same

    def get(self, name: str, asked, make) -> dict | None:
        """The cell NAME, kept or made; None where it is not there and nothing is to be computed. asked(): {"code", "settings"}
        as they are now. Raises UserError for a stale one that may not be computed."""
        file = Path(self.folder) / f"{name}.json"
        if not file.resolve().is_relative_to(Path(self.folder).resolve()):  # parts of names come from other files
            raise UserError(f"cell {name} would lie outside {self.folder}: give its problem or prior another name")
        cell = read(file) if file.is_file() and not self.fresh else None
        if cell is None and self.tables:
            return None
        asked = asked()
        why = stale(cell, asked) if cell else ""
        if why and self.allow_stale:
            self.stale.append(name)
        elif why and self.tables:
            raise UserError(f"{file} is stale ({why}): run {self.command}, or show it all the same with --allow-stale")
        elif why:
            print(f"{file} is stale ({why}): computed again", file=sys.stderr, flush=True)
            cell = None
        if cell is not None:
            return cell
        cell = {**make(), "made": {**provenance.made(), **asked}}
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(cell))
        temporary.replace(file)
        return cell

    def about(self, cells) -> dict:
        """What a record says of its cells: the seconds they took, and which are stale."""
        seconds = round(sum(cell.get("seconds", 0) for cell in cells), 1)
        return {"seconds": seconds} | ({"stale": sorted(self.stale)} if self.stale else {})


def read(file: Path) -> dict | None:
    """A kept cell; None, said, for one that cannot be read (a full disk, a kill): it is computed again."""
    try:
        cell = read_json(file)
    except ValueError as error:
        print(f"{error}: computed again", file=sys.stderr, flush=True)
        return None
    return cell if isinstance(cell, dict) and isinstance(cell.get("made", {}), dict) else None


def stale(cell: dict, asked: dict) -> str:
    """What has changed since the cell was computed; "" where nothing has."""
    made = cell.get("made", {})
    return " and ".join(f"other {name}" for name in ("code", "settings") if made.get(name) != asked[name])
