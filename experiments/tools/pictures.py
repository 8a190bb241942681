"""The picture of a table: what its cells look like."""

from __future__ import annotations

import numpy as np

from .study import grid

SHOWN = 2  # images of a cell that are kept for it


def bytes_of(x) -> list:
    """The first images of x (N, H, W, C) as lists of bytes."""
    from diffjax.cli.images import to_uint8

    return np.stack([to_uint8(image) for image in np.clip(x[:SHOWN], -1, 1)]).tolist()


def picture(cells, whats, methods, seen, truth, path):
    """PNG of what the cells {(what, method): cell} show: SHOWN rows for each of ``whats``, a column for each method. seen:
    {what: measured images}. Methods without pictures are left out."""
    has = [m for m in methods if any("shown" in cells[what, m] for what in whats)]
    blank = [np.ones_like(truth[0])] * SHOWN
    image = lambda a: np.asarray(a, np.float32).reshape(truth[0].shape) / 127.5 - 1
    of = lambda c: [image(a) for a in c["shown"]] if "shown" in c else blank
    columns = [("measured", [x for what in whats for x in np.clip(seen[what][:SHOWN], -1, 1)])]
    columns += [(m, [x for what in whats for x in of(cells[what, m])]) for m in has]
    columns.append(("truth", list(truth[:SHOWN]) * len(whats)))
    grid(columns, path, [what for what in whats for _ in range(SHOWN)])
    greyed(path)


def greyed(path):
    """Keeps one channel of a PNG whose three are equal: half the file."""
    from PIL import Image

    with Image.open(path) as page:
        page.load()
    pixels = np.asarray(page)
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        page.convert("L").save(path, optimize=True)
