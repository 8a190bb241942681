"""A list of dicts as one aligned table that reads well on a terminal and is valid markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real


def _text(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool | str):
        return str(value).replace("|", "\\|").replace("\n", " ")
    if isinstance(value, Integral):
        return f"{value:,}" if abs(value) >= 10_000 else str(int(value))
    if isinstance(value, Real):
        value = float(value)
        if not math.isfinite(value):
            return str(value)
        if value != 0 and not 1e-3 <= abs(value) < 1e5:
            return f"{value:.3g}"
        return f"{value:.{2 if abs(value) >= 10 else 3 if abs(value) >= 1 else 4}f}"
    return str(value).replace("|", "\\|")


def _number(value) -> bool:
    return value is None or (isinstance(value, Real) and not isinstance(value, bool))


def render(rows: Sequence[dict], columns: Sequence[str] | None = None, *, padded: bool = True) -> str:
    """The rows as a markdown table, columns padded to one width (if ``padded``), numbers to the right.

    rows: one dict per line; a missing key or None is shown as "-". columns: which keys, in which order
    (default: every key in order of first appearance). Floats show 2 decimals from 10 on, 3 from 1 on, 4
    below. "" for no columns at all.
    """
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return ""
    cells = [[_text(row.get(c)) for c in columns] for row in rows]
    right = [bool(rows) and all(_number(row.get(c)) for row in rows) for c in columns]
    heads = [_text(str(c)) for c in columns]
    width = [max([3, len(h)] + [len(line[i]) for line in cells]) if padded else 0 for i, h in enumerate(heads)]

    def line(texts):
        return "| " + " | ".join(t.rjust(w) if r else t.ljust(w) for t, w, r in zip(texts, width, right, strict=True)) + " |"

    dashes = [max(w, 3) for w in width]
    rule = "| " + " | ".join("-" * (w - 1) + ":" if r else "-" * w for w, r in zip(dashes, right, strict=True)) + " |"
    return "\n".join([line(heads), rule, *map(line, cells)])
