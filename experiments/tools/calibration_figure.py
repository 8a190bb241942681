"""The picture of ``experiments.calibrate``: H per family and method on a logarithmic axis, other libraries beside."""

from __future__ import annotations

import math
import os

from .study import INK, PAPER, load_font

LOW, HIGH = 0.8, 400.0
SIDE, WIDE, GAP, LINE, TOP, BOTTOM = 130, 250, 14, 22, 46, 64
BLUE, ORANGE, GREY, FAINT = (31, 90, 180), (215, 100, 20), (140, 140, 140), (228, 228, 228)


def _best(rows, prefixes, family, kind, budget):
    """The least H of the solvers whose name begins with one of ``prefixes``, or None."""
    fits = lambda r: r["method"].startswith(prefixes) and (r["family"], r["kind"], r["budget"]) == (family, kind, budget)
    return min((r["H"] for r in rows if fits(r) and "H" in r), default=None)


def draw_figure(rows, peers, families, methods, path: str | os.PathLike) -> None:
    """Write the PNG. rows, peers: as ``calibrate.summary`` makes them, of all budgets: a large mark is 100 calls, small marks
    are the others; methods: {name: Entry}."""
    from PIL import Image, ImageDraw

    font = load_font()
    names = [m for m in methods if any(r["method"] == m for r in rows)]
    budgets = sorted({r["budget"] for r in rows})
    main = 100 if 100 in budgets else budgets[0]
    height = TOP + LINE * len(names) + BOTTOM
    page = Image.new("RGB", (SIDE + len(families) * (WIDE + GAP), height), PAPER)
    pen = ImageDraw.Draw(page)
    floor = TOP + LINE * len(names)

    def place(panel, h):
        share = math.log(min(max(h, LOW), HIGH) / LOW) / math.log(HIGH / LOW)
        return SIDE + panel * (WIDE + GAP) + share * (WIDE - 12) + 6

    def shape(x, y, color, size, filled, diamond):
        look = {"outline": color, "fill": color if filled else None}
        if diamond:
            pen.polygon([(x, y - size), (x + size, y), (x, y + size), (x - size, y)], **look)
        else:
            pen.ellipse([x - size, y - size, x + size, y + size], **look, width=1 if filled else 2)

    def mark(panel, line, h, color, size, filled, diamond=False):
        if h is not None and math.isfinite(h):
            shape(place(panel, h), TOP + LINE * (line + 0.5), color, size, filled, diamond)

    for n in range(len(names)):
        if n % 2 == 0:
            pen.rectangle([0, TOP + n * LINE, page.width, TOP + (n + 1) * LINE], fill=(248, 248, 248))
    for panel, family in enumerate(families):
        pen.text((SIDE + panel * (WIDE + GAP) + 6, 6), f"{family}: H, exact = 1", fill=INK, font=font)
        for tick in (1, 2, 5, 10, 20, 50, 100, 200):
            x = place(panel, tick)
            pen.line([(x, TOP), (x, floor)], fill=GREY if tick == 1 else FAINT)
            if tick in (1, 2, 5, 10, 50, 200):
                pen.text((x - font.getlength(str(tick)) / 2, TOP - 18), str(tick), fill=INK, font=font)
        for n, name in enumerate(names):
            for kind, filled in (("default", True), ("tuned", False)):
                if methods[name].peers:
                    h = _best(peers, methods[name].peers, family, kind, main)
                    mark(panel, n, h, GREY, 6, filled, diamond=True)
                for r in rows:
                    if (r["method"], r["family"], r["kind"]) == (name, family, kind) and "H" in r:
                        large = r["budget"] == main
                        mark(panel, n, r["H"], BLUE if large else ORANGE, 5 if large else 3, filled)
    for n, name in enumerate(names):
        pen.text((8, TOP + n * LINE + 2), name, fill=INK, font=font)
    x, y = 14, floor + 14
    small = ", ".join(str(b) for b in budgets if b != main)
    legend = [(BLUE, 5, True, False, f"default, {main} calls"), (BLUE, 5, False, False, f"tuned, {main} calls")]
    legend += [(ORANGE, 3, True, False, f"{small} calls")] if small else []
    if peers:
        legend += [(GREY, 6, True, True, f"best library, default, {main} calls"), (GREY, 6, False, True, "tuned")]
    for color, size, filled, diamond, text in legend:
        shape(x + 6, y + 8, color, size, filled, diamond)
        pen.text((x + 18, y), text, fill=INK, font=font)
        x += 18 + font.getlength(text) + 26
    pen.text((14, y + 24), f"H beyond {HIGH:g} is drawn at {HIGH:g}; no mark: the method cannot do any operator of the family",
             fill=INK, font=font)  # fmt: skip
    page.save(path, format="PNG")
