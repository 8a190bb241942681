"""Pages whose tables and numbers are rendered from result files, so that none is typed.

A page is markdown with marks that do not show. ``refresh`` fills in what stands between them:

    <!-- table: NAME [view VIEW] [where COLUMN=A or B; COLUMN=C] [of COLUMN; COLUMN] --> ... <!-- end table -->
    <!-- run: NAME --> ... <!-- end run -->       the command, how long it takes, device, date, commit, what to know
    <!-- number: SOURCE | WHAT --> ... <!-- end -->
    <!-- contents --> ... <!-- end contents -->    a link to each heading
    <!-- methods --> ... <!-- end methods -->      what ``diffjax.registry`` says of each method

A number's SOURCE is NAME [view VIEW] [where ...] as above, or a JSON file of the checkout. WHAT is a column of the one row
that is left, ``count`` of the rows, ``least`` or ``largest`` COLUMN; of a JSON file keys joined by `` > ``. A last ``| .1f``
is a format. In ``where`` values are compared as they are shown ("-": none).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from . import provenance, records, views
from .study import UserError, as_text, render, unknown

SPAN = re.compile(r"(<!-- (table|run|number): (.*?) -->)(.*?)(<!-- end(?: table| run|) -->)", re.S)
METHODS = re.compile(r"(<!-- methods -->).*?(<!-- end methods -->)", re.S)
CONTENTS = re.compile(r"(<!-- contents -->).*?(<!-- end contents -->)", re.S)
SOURCE = re.compile(r"([\w-]+)(?: view (.+?))?(?: where (.+?))?(?: of (.+))?")


def refresh(text: str, folder=None) -> str:
    """The page with everything rendered anew from the results in ``folder``. Raises UserError for a mark that fits none."""

    def fill(match):
        mark, kind, words, _, end = match.groups()
        try:
            return mark + {"table": table, "run": run, "number": number}[kind](words, folder) + end
        except UserError as error:
            raise UserError(f"<!-- {kind}: {words} -->: {error}") from None

    text = SPAN.sub(fill, text)
    text = METHODS.sub(lambda match: f"{match[1]}\n{methods()}\n{match[2]}", text)
    return CONTENTS.sub(lambda match: f"{match[1]}\n{contents(text)}\n{match[2]}", text)


def methods() -> str:
    """The registry as a table."""
    from diffjax import registry

    yes = {True: "yes", False: "no"}
    rows = [
        {"method": r["name"], "paper": r["paper"], "needs": r["needs"], "noise": r["noise"],
         "gives": r["gives"], "calls": r["calls"], "products": r["products"], "gradients": yes[r["differentiable"]]}
        for r in registry.rows()
    ]  # fmt: skip
    lines = [list(rows[0]), ["---"] * 5 + ["---:"] * 2 + ["---"], *([str(v) for v in r.values()] for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def chosen(words: str, folder=None):
    """(rows, columns or None) of ``NAME view VIEW where ... of ...``."""
    match = SOURCE.fullmatch(words.strip())
    if match is None:
        raise UserError("give NAME, and after it view, where, of, in this order")
    name, view, where, columns = match.groups()
    rows = views.rows(records.read(name, folder), view)
    known = list(dict.fromkeys(key for row in rows for key in row))
    for condition in where.split(";") if where else ():
        column, _, value = (part.strip() for part in condition.partition("="))
        if column not in known:
            raise unknown("column", column, known)
        allowed = [v.strip() for v in value.split(" or ")]
        rows = [row for row in rows if as_text(row.get(column)) in allowed]
    columns = columns and [c.strip() for c in columns.split(";")]
    for column in columns or ():
        if column not in known:
            raise unknown("column", column, known)
    if not rows:
        raise UserError("no row is left")
    return rows, columns


def table(words: str, folder=None) -> str:
    return f"\n{render(*chosen(words, folder), padded=False)}\n"


def number(words: str, folder=None) -> str:
    source, *what = (part.strip() for part in words.split(" | "))
    form = what.pop() if len(what) > 1 and re.fullmatch(r"[,+]?\.?\d*[dfg%]", what[-1]) else None
    if len(what) != 1:
        raise UserError("give SOURCE | WHAT, and a format if need be")
    value = _of_file(source, what[0]) if source.endswith(".json") else _of_rows(source, what[0], folder)
    return format(value, form) if form else as_text(value)


def _of_file(source, what):
    value = json.loads((provenance.ROOT / source).read_text())
    for key in what.split(" > "):
        if not isinstance(value, dict) or key not in value:
            raise UserError(f"{source} has no {what}")
        value = value[key]
    return value


def _of_rows(source, what, folder):
    rows, _ = chosen(source, folder)
    if what == "count":
        return len(rows)
    word, _, column = what.partition(" ")
    if word in ("least", "largest"):
        return (min if word == "least" else max)(row[column] for row in rows if row.get(column) is not None)
    if len(rows) != 1:
        raise UserError(f"{len(rows)} rows are left, not one")
    if what not in rows[0]:
        raise unknown("column", what, rows[0])
    return rows[0][what]


def run(name: str, folder=None) -> str:
    """What a reader must know of a result before its numbers: one paragraph."""
    record = records.read(name, folder)
    origin = records.origin(record)
    took = record.get("took") or (f"{_clock(record['seconds'])} on this device" if "seconds" in record else "")
    images = [f"{record['images']} images"] if "images" in record else []
    words = [origin["device"], *images, origin["date"], f"commit {origin['commit']}"]
    stale = f"{len(record['stale'])} cells are of other code or settings than these." if record.get("stale") else ""
    note = " ".join(["", *filter(None, [stale, record.get("note")])])
    return f"\n`{record['command']}`{f' ({took})' * bool(took)}: {', '.join(words)}.{note}\n"


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def contents(text: str) -> str:
    """A line for each heading of the second level, linked as GitHub does."""
    heads = re.findall(r"^## (.+)$", text, re.M)
    anchor = lambda head: re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")
    return "\n".join(f"* [{head}](#{anchor(head)})" for head in heads)


def shown(text: str) -> set[str]:
    """The names of the results that a page shows."""
    return {SOURCE.match(words.strip())[1] for _, kind, words, *_ in SPAN.findall(text) if kind in ("table", "run")}


def written() -> list[Path]:
    """The checkout's pages. Raises UserError where there is no checkout."""
    root = provenance.checkout()
    if root is None:
        raise UserError("there is no checkout, and so no page to write: run this from a clone of the repository")
    return [root / "README.md", root / "experiments" / "results" / "README.md"]
