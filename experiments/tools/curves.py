"""Plots by Pillow alone: lines over a common axis, and clouds of points."""

from __future__ import annotations

import math
import os

import numpy as np

from .study import INK, PAPER, load_font

COLOURS = (
    (31, 90, 180),
    (215, 100, 20),
    (40, 140, 70),
    (150, 60, 150),
    (140, 140, 140),
    (190, 30, 60),
    (0, 150, 170),
    (120, 90, 30),
)
FAINT, LEFT, TOP, BOTTOM = (228, 228, 228), 70, 30, 66


def _ticks(low, high, count=5):
    """About ``count`` round numbers from low to high."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= min((1, 2, 5, 10), key=lambda m: abs((high - low) / (m * step) - count))
    return np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step


def lines(panels, path: str | os.PathLike, width=520, height=300) -> None:
    """Write a PNG of panels side by side. Each: {"title", "x": name of the axis, "lines": [(label, x, y)], "log": whether y is
    logarithmic}. Values that are not finite, or not above 0 on a logarithmic axis, are left out."""
    from PIL import Image, ImageDraw

    font = load_font()
    page = Image.new("RGB", (len(panels) * (LEFT + width + 20), TOP + height + BOTTOM), PAPER)
    pen = ImageDraw.Draw(page)
    for n, panel in enumerate(panels):
        left, log = n * (LEFT + width + 20) + LEFT, panel.get("log", False)
        kept = []
        for label, x, y in panel["lines"]:
            x, y = np.asarray(x, float), np.asarray(y, float)
            good = np.isfinite(y) & (y > 0) if log else np.isfinite(y)
            kept.append((label, x[good], np.log10(y[good]) if log else y[good]))
        xs, ys = (np.concatenate([line[k] for line in kept]) for k in (1, 2))
        (x_low, x_high), (low, high) = (xs.min(), xs.max()), (ys.min(), ys.max())
        low, high = (math.floor(low), math.ceil(high)) if log else (low - 0.05 * (high - low), high + 0.05 * (high - low))
        across = lambda x, left=left, a=x_low, b=x_high: left + (x - a) / (b - a or 1) * width
        up = lambda y, a=low, b=high: TOP + height - (y - a) / (b - a or 1) * height
        for tick in range(int(low), int(high) + 1) if log else _ticks(low, high):
            pen.line([(left, up(tick)), (left + width, up(tick))], fill=FAINT)
            text = f"1e{tick}" if log else f"{tick:g}"
            pen.text((left - font.getlength(text) - 6, up(tick) - 8), text, fill=INK, font=font)
        for tick in _ticks(x_low, x_high):
            text = f"{tick:g}"
            pen.text((across(tick) - font.getlength(text) / 2, TOP + height + 4), text, fill=INK, font=font)
        pen.rectangle([left, TOP, left + width, TOP + height], outline=INK)
        pen.text((left, 6), panel["title"], fill=INK, font=font)
        pen.text((left + width - font.getlength(panel["x"]), TOP + height + 22), panel["x"], fill=INK, font=font)
        at = left
        for colour, (label, x, y) in zip(COLOURS, kept):
            pen.line([(across(a), up(b)) for a, b in zip(x, y)], fill=colour, width=2, joint="curve")
            pen.line([(at, TOP + height + 50), (at + 18, TOP + height + 50)], fill=colour, width=3)
            pen.text((at + 22, TOP + height + 42), label, fill=INK, font=font)
            at += 34 + font.getlength(label)
    page.save(path, optimize=True)


def clouds(grid, columns, rows, path: str | os.PathLike, reach=2.5, side=230) -> None:
    """Write a PNG of points in the plane. grid: a list of rows of arrays (N, 2); columns, rows: their labels; reach: half the
    side of each panel, in units of the points. A panel that is a pair (points, displacements) is drawn as arrows."""
    from PIL import Image, ImageDraw

    font = load_font()
    margin = 8 + int(max(font.getlength(label) for label in rows))
    page = Image.new("RGB", (margin + len(columns) * (side + 8), 26 + len(grid) * (side + 8)), PAPER)
    pen = ImageDraw.Draw(page)
    for c, label in enumerate(columns):
        pen.text((margin + c * (side + 8) + (side - font.getlength(label)) / 2, 4), label, fill=INK, font=font)
    for r, (label, panels) in enumerate(zip(rows, grid)):
        top = 26 + r * (side + 8)
        pen.text((4, top + side / 2 - 8), label, fill=INK, font=font)
        for c, points in enumerate(panels):
            left = margin + c * (side + 8)
            to_page = lambda p, left=left, top=top: (
                left + (p[0] + reach) / (2 * reach) * side,
                top + (reach - p[1]) / (2 * reach) * side,
            )
            inside = lambda p: max(abs(p[0]), abs(p[1])) < reach
            pen.rectangle([left, top, left + side, top + side], outline=FAINT)
            if isinstance(points, tuple):
                for start, move in zip(*points):
                    if inside(start) and inside(start + move):
                        pen.line([to_page(start), to_page(start + move)], fill=COLOURS[0])
                        x, y = to_page(start)
                        pen.ellipse([x - 1, y - 1, x + 1, y + 1], fill=COLOURS[1])
                continue
            for p in filter(inside, points):
                x, y = to_page(p)
                pen.ellipse([x - 1, y - 1, x + 1, y + 1], fill=COLOURS[0])
    page.save(path, optimize=True)
