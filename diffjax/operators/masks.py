"""Inpainting masks by name: float32 numpy arrays, 1 = known, 0 = to be filled, repeatable by seed.

    A = diffjax.operators.Mask(masks.named("wide", (32, 32), seed=3))

``named`` makes what ``Mask`` takes, (H, W, 1); ``make`` and the functions below draw one plane, (H, W).

`half`, `altern`, `sr2` and `expand` are those of RePaint and CoPaint, exactly. `narrow` and `wide` are drawn
by the stroke generator of LaMa (Suvorov et al., WACV 2022) with its published numbers, which are in pixels of
a 256-pixel image: every length and width is scaled by min(H, W) / 256, so one seed draws nearly the same at
every size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..base import nearest, whole

Shape = tuple[int, int]

_GLYPHS = """
A     C     D     E     F     G     H     I     L     M     N     O     P     R     S     T     U
.###. .#### ####. ##### ##### .#### #...# ##### #.... #...# #...# .###. ####. ####. .#### ##### #...#
#...# #.... #...# #.... #.... #.... #...# ..#.. #.... ##.## ##..# #...# #...# #...# #.... ..#.. #...#
#...# #.... #...# #.... #.... #.... #...# ..#.. #.... #.#.# #.#.# #...# #...# #...# #.... ..#.. #...#
##### #.... #...# ####. ####. #.### ##### ..#.. #.... #.#.# #..## #...# ####. ####. .###. ..#.. #...#
#...# #.... #...# #.... #.... #...# #...# ..#.. #.... #...# #...# #...# #.... #.#.. ....# ..#.. #...#
#...# #.... #...# #.... #.... #...# #...# ..#.. #.... #...# #...# #...# #.... #..#. ....# ..#.. #...#
#...# .#### ####. ##### #.... .#### #...# ##### ##### #...# #...# .###. #.... #...# ####. ..#.. .###.
"""
_WORDS = "NOISE GOES IN AND OUT COMES A PICTURE OF THE SAME SHOE OR DRESS THAT LOST ITS LEFT SIDE".split()


def half(shape: Shape, seed: int = 0) -> np.ndarray:
    """The left half is known."""
    return np.broadcast_to(np.arange(shape[1]) < shape[1] / 2, shape).astype(np.float32)


def altern(shape: Shape, seed: int = 0) -> np.ndarray:
    """Odd rows are known (index 1, 3, ...), even rows are filled."""
    return np.broadcast_to((np.arange(shape[0]) % 2 == 1)[:, None], shape).astype(np.float32)


def sr2(shape: Shape, seed: int = 0) -> np.ndarray:
    """Pixels with odd row and odd column are known: one in four."""
    rows, columns = (np.arange(n) % 2 == 1 for n in shape)
    return (rows[:, None] & columns).astype(np.float32)


def expand(shape: Shape, seed: int = 0) -> np.ndarray:
    """A central square of a quarter of the height is known, the rest is invented."""
    # both axes from H alone, as in the official code: off-centre unless the image is square
    centre, reach = shape[0] // 2, (shape[0] // 4) // 2
    mask = np.zeros(shape, np.float32)
    mask[centre - reach : centre + reach, centre - reach : centre + reach] = 1
    return mask


def box(shape: Shape, seed: int = 0) -> np.ndarray:
    """A square hole of half the size at a random place, by seed."""
    side = max(1, min(shape) // 2)
    margin = min(round(min(shape) / 16), (min(shape) - side) // 2)
    rng = np.random.default_rng(seed)
    top, left = (int(rng.integers(margin, n - side - margin + 1)) for n in shape)
    mask = np.ones(shape, np.float32)
    mask[top : top + side, left : left + side] = 0
    return mask


def random(shape: Shape, seed: int = 0) -> np.ndarray:
    """A fair coin for each pixel, by seed."""
    return (np.random.default_rng(seed).random(shape) < 0.5).astype(np.float32)


def _glyphs() -> dict[str, np.ndarray]:
    names, *rows = _GLYPHS.strip("\n").splitlines()
    rows = [row.split() for row in rows]
    return {name: np.array([[c == "#" for c in row[k]] for row in rows]) for k, name in enumerate(names.split())}


def text(shape: Shape, seed: int = 0) -> np.ndarray:
    """Lines of letters are filled, the page around them (about 86 %) is known."""
    dot = max(1, round(min(shape) / 80))  # pixels per dot of the 5x7 letters
    columns = max(1, (shape[1] // dot + 1) // 6)
    most = max(1, (shape[0] // dot + 1) // 8)
    glyphs = _glyphs()

    words, lines = 0, [""]
    while len(lines) <= most:  # greedy word wrap, the text starting again when it is used up
        word = _WORDS[words % len(_WORDS)]
        joined = f"{lines[-1]} {word}".strip()
        if len(joined) <= columns:
            lines[-1] = joined
        else:
            pieces = [word[i : i + columns] for i in range(0, len(word), columns)]
            lines = [line for line in lines + pieces if line]
        words += 1

    ink = [sum(glyphs[c].sum() for c in line if c != " ") * dot**2 for line in lines[:most]]
    hidden = np.cumsum(ink) / (shape[0] * shape[1])
    count = int(np.argmin(np.abs(hidden - 0.14))) + 1  # the number of lines that comes nearest to 86 % known
    page = np.ones(shape, np.float32)
    pitch = shape[0] / count
    for n, line in enumerate(lines[:count]):
        top = round((n + 0.5) * pitch - 3.5 * dot)
        left = (shape[1] - (6 * len(line) - 1) * dot) // 2
        for k, letter in enumerate(line):
            if letter != " ":
                drawn = np.kron(glyphs[letter], np.ones((dot, dot), bool))
                y, x = max(top, 0), max(left + 6 * dot * k, 0)
                area = page[y : y + 7 * dot, x : x + 5 * dot]
                area[drawn[: area.shape[0], : area.shape[1]]] = 0
    return page


def _stroke(hidden: np.ndarray, start: np.ndarray, end: np.ndarray, width: float) -> None:
    """Hide the pixels whose centre lies within width / 2 of the segment start to end, (x, y) in pixels."""
    y, x = np.ogrid[: hidden.shape[0], : hidden.shape[1]]
    along = end - start
    length2 = max(float(along @ along), 1e-12)
    u = np.clip(((x + 0.5 - start[0]) * along[0] + (y + 0.5 - start[1]) * along[1]) / length2, 0, 1)
    distance2 = (x + 0.5 - start[0] - u * along[0]) ** 2 + (y + 0.5 - start[1] - u * along[1]) ** 2
    # a stroke thinner than a pixel is drawn one pixel wide, else it would come out dotted
    hidden |= distance2 <= (max(width, 1.0) / 2) ** 2


def _strokes(rng, hidden, times: tuple[int, int], max_width: int, max_length: int, max_angle: int = 4) -> None:
    """LaMa's irregular strokes: each is a chain of one to five straight pieces in one of `max_angle`
    directions (0.01, 1.01, ... radians from the vertical, mirrored on every other stroke), of length 10 +
    U{0..max_length - 1} and width 5 + U{0..max_width - 1}; joints are kept inside the image."""
    size = np.array(hidden.shape[::-1], float)
    scale = min(hidden.shape) / 256
    for n in range(rng.integers(times[0], times[1] + 1)):
        start = rng.random(2) * size
        for _ in range(rng.integers(1, 6)):
            angle = (0.01 + rng.integers(max_angle)) * (-1 if n % 2 == 0 else 1)
            length, width = 10 + rng.integers(max_length), 5 + rng.integers(max_width)
            end = np.clip(start + length * scale * np.array([np.sin(angle), np.cos(angle)]), 0, size)
            _stroke(hidden, start, end, width * scale)
            start = end


def _boxes(rng, hidden, times: tuple[int, int], sides: tuple[int, int], margin: int) -> None:
    """LaMa's random rectangles: sides U{sides}, at least `margin` from the border, in 256ths of the image."""
    scale = min(hidden.shape) / 256
    for _ in range(rng.integers(times[0], times[1] + 1)):
        extent = rng.integers(*sides, size=2) * scale
        corner = margin * scale + rng.random(2) * (np.array(hidden.shape) - 2 * margin * scale - extent)
        top, left = np.round(corner).astype(int)
        bottom, right = np.round(corner + extent).astype(int)
        hidden[top : max(bottom, top + 1), left : max(right, left + 1)] = True


def _lama(shape: Shape, seed: int, draw: Callable) -> np.ndarray:
    # LaMa's mask sets keep a drawing only if at most half of the image is hidden: draw again from the same
    # stream until that holds. On a few pixels it may never: then the last drawing with both kinds, or a dot.
    rng = np.random.default_rng(seed)
    usable = np.zeros(shape, bool)
    usable[shape[0] // 2, shape[1] // 2] = True
    for _ in range(100):
        hidden = np.zeros(shape, bool)
        draw(rng, hidden)
        share = hidden.mean()
        if 0 < share < 1:
            usable = hidden
            if share <= 0.5:
                break
    return (~usable).astype(np.float32)


def narrow(shape: Shape, seed: int = 0) -> np.ndarray:
    """Many thin strokes, by seed (LaMa's thin masks)."""
    return _lama(shape, seed, lambda rng, hidden: _strokes(rng, hidden, (4, 50), max_width=10, max_length=40))


def wide(shape: Shape, seed: int = 0) -> np.ndarray:
    """A few thick strokes and sometimes boxes, by seed (LaMa's thick masks)."""
    # with probability 0.3 boxes come on top of the strokes; LaMa's own code draws either, 1 : 0.3

    def draw(rng, hidden):
        _strokes(rng, hidden, (1, 5), max_width=100, max_length=200)
        if rng.random() < 0.3:
            _boxes(rng, hidden, (1, 3), sides=(30, 150), margin=10)

    return _lama(shape, seed, draw)


MASKS: dict[str, tuple[Callable[[Shape, int], np.ndarray], str]] = {
    f.__name__: (f, (f.__doc__ or f.__name__).strip().splitlines()[0])
    for f in (half, altern, sr2, expand, box, random, text, narrow, wide)
}
# the names other papers and their files use
ALIASES = {
    "line": "altern",
    "lines": "altern",
    "ev2li": "altern",
    "nn2": "sr2",
    "genhalf": "half",
    "ex64": "expand",
    "thin": "narrow",
    "thick": "wide",
}


def check(mask: np.ndarray, name: str) -> np.ndarray:
    """The mask itself, or ValueError if nothing in it is known or nothing is left to fill."""
    at = f"at {mask.shape[1]}x{mask.shape[0]}"
    if not np.any(mask):
        raise ValueError(f"mask {name} has nothing known (all black) {at}: white marks the pixels to keep")
    if np.all(mask):
        raise ValueError(f"mask {name} has nothing to fill (all white) {at}: black marks the pixels to fill")
    return mask


def make(name: str, shape: Shape, seed: int = 0) -> np.ndarray:
    """The mask `name` for an image of `shape` (H, W): float32 (H, W), 1 = known.

    Raises ValueError for an unknown name (with the nearest valid ones), or if at this shape nothing is known
    or hidden.
    """
    name = ALIASES.get(name, name)
    if name not in MASKS:
        raise ValueError(f"unknown mask {name!r}: {nearest(name, MASKS)}")
    return check(MASKS[name][0](tuple(shape), seed), name)


def named(name: str, shape: tuple, seed: int = 0) -> np.ndarray:
    """What ``Mask`` takes: ``make`` for images of `shape` (H, W) or (H, W, C), as float32 (H, W, 1).

    Raises ValueError for another shape, and as ``make`` does.
    """
    if len(shape) not in (2, 3):
        raise ValueError(f"shape {tuple(shape)} is not that of an image: give (H, W) or (H, W, C)")
    return make(name, tuple(whole("a side", n) for n in shape[:2]), seed)[:, :, None]
