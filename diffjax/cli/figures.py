"""Pictures of results: labelled comparison grids and sample grids, by Pillow alone."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from .images import pillow, save_page, to_uint8

Column = tuple[str, Sequence[np.ndarray]]
_CELL, _GAP, _TEXT = 128, 6, 15  # cells are enlarged to at least _CELL pixels; all in pixels
INK, PAPER = (30, 30, 30), (255, 255, 255)


def spread(deviations: Sequence[np.ndarray], label: str = "spread") -> Column:
    """The column that shows per-pixel standard deviations: black = 0, white = the largest, said in the label.

    deviations: (H, W, C) or (H, W) each, >= 0, in the units of images in [-1, 1]; channels are averaged (root
    mean square).
    """
    flat = [np.sqrt(np.mean(np.square(d), axis=-1)) if np.ndim(d) == 3 else np.asarray(d) for d in deviations]
    top = max(float(np.max(d)) for d in flat)
    return f"{label} (white = {top:.2f})", [2 * d / (top or 1.0) - 1 for d in flat]


def _cell(image: np.ndarray, height: int, width: int):
    """The image in the middle of a cell, enlarged by a whole factor (nearest neighbour) as far as it fits."""
    Image = pillow()
    pixels = to_uint8(image)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    times = max(1, min(height // pixels.shape[0], width // pixels.shape[1]))
    pixels = pixels.repeat(times, axis=0).repeat(times, axis=1)
    picture = Image.fromarray(pixels).convert("RGB")
    cell = Image.new("RGB", (width, height), PAPER)
    cell.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return cell


def _cell_size(images: Sequence[np.ndarray]) -> tuple[int, int]:
    height, width = (max(x.shape[axis] for x in images) for axis in (0, 1))
    times = max(1, -(-_CELL // max(height, width)))
    return height * times, width * times


def load_font():
    pillow()
    from PIL import ImageFont

    try:
        return ImageFont.load_default(_TEXT)
    except (
        TypeError,
        OSError,
        ImportError,
    ):  # Pillow older than 10.1, or built without FreeType: the small bitmap font
        return ImageFont.load_default()


def _wrap(text: str, font, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(joined) > width:
            lines.append(word)
        else:
            lines[-1] = joined
    return lines


def grid(columns: Sequence[Column], path: str | os.PathLike, rows: Sequence[str] | None = None) -> None:
    """Write a comparison as PNG: one row per image, one labelled column per kind of picture.

    columns: (label, images) from left to right, e.g. degraded, restoration 1, ..., mean, `spread(...)`,
    truth; images (H, W), (H, W, 1) or (H, W, 3) in [-1, 1], as many in each column. rows: a label for each
    row, optional. Small images are enlarged by pixel repetition to cells of about 128 pixels. Raises
    ValueError if the columns differ in length.
    """
    Image = pillow()
    from PIL import ImageDraw

    counts = {label: len(images) for label, images in columns}
    if (
        not columns
        or min(counts.values()) == 0
        or len(set(counts.values())) > 1
        or (rows and len(rows) not in counts.values())
    ):
        raise ValueError(f"grid needs columns of one length, at least 1: got {counts} and {len(rows or [])} row labels")
    font = load_font()
    height, width = _cell_size([x for _, images in columns for x in images])
    heads = [_wrap(label, font, width) for label, _ in columns]
    # a single word wider than its cell widens all columns rather than running into its neighbour
    wide = max(width, *(int(font.getlength(line)) + 2 for head in heads for line in head))
    sides = [_wrap(label, font, 2 * _CELL) for label in rows or []]
    left = max([int(font.getlength(line)) + 2 * _GAP for side in sides for line in side], default=0) + _GAP
    line = _TEXT + 4
    top = max(map(len, heads)) * line + 2 * _GAP
    n = len(columns[0][1])
    page = Image.new("RGB", (left + len(columns) * (wide + _GAP), top + n * (height + _GAP)), PAPER)
    draw = ImageDraw.Draw(page)
    for c, (head, (_, images)) in enumerate(zip(heads, columns, strict=True)):
        x = left + c * (wide + _GAP)
        for k, text in enumerate(head):
            start = x + (wide - font.getlength(text)) / 2
            draw.text((start, top - _GAP - (len(head) - k) * line), text, fill=INK, font=font)
        for r, image in enumerate(images):
            page.paste(_cell(image, height, wide), (x, top + r * (height + _GAP)))
    for r, side in enumerate(sides):
        for k, text in enumerate(side):
            y = top + r * (height + _GAP) + height / 2 + (k - len(side) / 2) * line
            draw.text((_GAP, y), text, fill=INK, font=font)
    save_page(page, path)


def sample_grid(images: Sequence[np.ndarray], path: str | os.PathLike, columns: int | None = None) -> None:
    """Write many images of one kind as PNG, row by row, `columns` in a row (default: as square as it comes).

    images: (H, W), (H, W, 1) or (H, W, 3) each, in [-1, 1]; enlarged by pixel repetition to at least 64
    pixels. Raises ValueError for no images.
    """
    Image = pillow()
    if len(images) == 0:
        raise ValueError("sample_grid needs at least one image: got none")
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    columns = min(columns, len(images))
    gap = 2
    height, width = (max(x.shape[axis] for x in images) for axis in (0, 1))
    times = max(1, -(-64 // max(height, width)))
    height, width = height * times, width * times
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), PAPER)
    for n, image in enumerate(images):
        r, c = divmod(n, columns)
        page.paste(_cell(image, height, width), (gap + c * (width + gap), gap + r * (height + gap)))
    save_page(page, path)
