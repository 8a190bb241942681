"""Images in and out: files to float32 (H, W, C) in [-1, 1] and back, every change of an image said aloud."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .. import pictures
from . import outputs
from .errors import UserError, library_errors, needs, one_line, unknown

_PADDED = {(28, 32)}  # (side, size) that a prior trained with fit="pad" pads, as MNIST and its kin are
_LONGEST = 120  # bytes of a name: what is appended to it must fit into the 255 of a file system


@dataclass(frozen=True)
class Pictures:
    """Images for a prior. images: list of float32 (H, W, C) in [-1, 1]; names: unique, fit for file names;
    labels: int or None each; notes: one sentence for each thing that was done to an image or left out; sizes: (height, width)
    of each before it was fitted; stems: of their files; lost: of a folder, a line for each picture that could not be taken."""

    images: list[np.ndarray]
    names: list[str]
    labels: list[int | None]
    notes: list[str]
    sizes: list[tuple[int, int]] = field(default_factory=list)
    stems: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)


def pillow():
    """Pillow's ``Image``, or UserError where it is not installed."""
    with needs("reading and writing pictures", "pip install pillow"):
        from PIL import Image
    return Image


def decode(path: str | os.PathLike, kind: str = "image") -> np.ndarray:
    """The file's pixels, uint8 (H, W, C): ``pictures.read`` without its notes. UserError for what it refuses."""
    with library_errors():
        return pictures.read(path, kind).pixels


def mask(path, shape: tuple[int, int], invert: bool = False, *, own=None, pad: bool = False, notes=None) -> np.ndarray:
    """A mask from an image file, float32 (H, W): white (128 of 255 or more) = known; `invert`: black = known.

    own: (height, width) of the picture that it belongs to, before it was fitted. A mask of that size goes the picture's way:
    the same crop, and made smaller so that a pixel is known where all that it covers is. notes: a list that sentences about
    the file are added to. An RGB file is taken if its three channels are equal, an alpha channel if it is opaque. Raises
    UserError, one line, if the file is missing, not an image, truncated, of another size, coloured, partly transparent, or
    marks nothing as known or nothing to fill.
    """
    from ..operators.masks import check

    notes = [] if notes is None else notes
    with library_errors():
        grey, said = pictures.read(path, kind="mask")
    if grey.shape[-1] in (2, 4):
        if np.any(grey[..., -1] != 255):
            raise UserError(f"mask {path} is partly transparent: save it as plain black and white, without alpha")
        grey = grey[..., :-1]
    if np.any(grey != grey[..., :1]):
        raise UserError(f"mask {path} has colours: save it as black and white (one channel), white = known")
    if 0 < grey.max() < 128:
        raise UserError(
            f"mask {path} has no white: its largest value is {grey.max()} of 255, and 128 or more is known: "
            f"multiply it by {255 // grey.max()}"
        )
    name = pictures.one_line(Path(path).name)
    notes += [f"mask {name}: {note}" for note in said]
    soft = int(np.sum((grey[..., 0] > 25) & (grey[..., 0] < 230)))
    if soft:
        notes.append(f"mask {name}: {soft} pixels are neither black nor white: from 128 of 255 on they are known")
    known = grey[..., 0] >= 128
    known = (~known if invert else known).astype(np.float32)
    if known.shape != tuple(shape):
        if own is None or known.shape != tuple(own):
            found, wanted = (f"{w}x{h}" for h, w in (known.shape, shape))
            also = "" if own in (None, tuple(shape)) else f", or draw it on the picture of {own[1]}x{own[0]}"
            raise UserError(f"mask {path} is {found} but the images are {wanted}: "
                            f"resize the mask to {wanted} (width x height, nearest neighbour){also}")  # fmt: skip
        known, done = _place(known, shape[0], pad)
        notes.append(f"mask {name}, as its picture: {done}")
    with library_errors():
        return check(known, str(path))


def _place(known, size, pad):
    """A mask (H, W) of a picture's own size, as :func:`fit` places the picture; what it pads is known."""
    (top, left, side), padded, done = placed(*known.shape, size, pad)
    known = known[top : top + side, left : left + side]
    if padded:
        before = (size - side) // 2
        return np.pad(known, (before, size - side - before), constant_values=1.0), done
    if side < size:
        at = np.arange(size) * side // size
        return known[at[:, None], at], done
    # a pixel of the smaller picture is a mean: known only where all that it covers is
    edges = np.arange(size + 1) * side / size
    first, last = np.floor(edges[:-1] + 1e-9).astype(int), np.ceil(edges[1:] - 1e-9).astype(int)
    sums = np.pad((known == 0).astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    hidden = sums[np.ix_(last, last)] - sums[np.ix_(first, last)] - sums[np.ix_(last, first)] + sums[np.ix_(first, first)]
    return (hidden == 0).astype(np.float32), done


def placed(h: int, w: int, size: int | None, pad: bool = False):
    """((top, left, side) of the square that is taken, whether it is padded, what is done in words), of a picture."""
    side = min(h, w)
    if size is None or (h, w) == (size, size):
        return (0, 0, side), False, ""
    steps = [f"{w}x{h}"] + [f"centre crop {side}x{side}"] * (h != w)
    padded = pad and h == w and (side, size) in _PADDED
    if padded:
        steps.append(f"padded with black to {size}x{size}")
    elif side != size:
        steps.append(f"{'resized' if side > size else 'enlarged'} to {size}x{size}")
    return ((h - side) // 2, (w - side) // 2, side), padded, " -> ".join(steps)


def fit(pixels: np.ndarray, size: int | None, channels: int, pad: bool = False) -> tuple[np.ndarray, str]:
    """One image for a prior: (float32 (size, size, channels) in [-1, 1], what was done, "" if nothing).

    pixels: uint8 (H, W, C), C as `decode` gives it. Transparency is laid over white; grey and RGB are
    converted; a rectangle is cropped to its central square and resized with antialiasing (down) or bicubic
    interpolation (up), except that 28x28 for a size of 32 is padded with black if ``pad``, as in training on
    Fashion-MNIST. size None keeps the shape.
    """
    Image = pillow()
    done = []
    (top, left, side), padded, moved = placed(*pixels.shape[:2], size, pad)
    if moved:
        pixels = pixels[top : top + side, left : left + side]  # first, so that little is converted
    if pixels.shape[-1] in (2, 4):
        pixels, through = pictures.over_white(pixels)
        done += ["transparency laid over white"] * through
    if pixels.shape[-1] == 3 and channels == 1:
        done.append("RGB -> grey" if np.any(pixels != pixels[..., :1]) else "three equal channels -> grey")
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]
    elif pixels.shape[-1] == 1 and channels == 3:
        done.append("grey -> RGB")
        pixels = np.repeat(pixels, 3, axis=-1)
    if padded:
        before = (size - side) // 2
        pixels = np.pad(pixels, ((before, size - side - before),) * 2 + ((0, 0),))
    elif moved and side != size:
        mode = Image.Resampling.LANCZOS if side > size else Image.Resampling.BICUBIC
        planes = [Image.fromarray(np.ascontiguousarray(pixels[..., c])).resize((size, size), mode) for c in range(channels)]
        pixels = np.stack([np.asarray(p) for p in planes], axis=-1)
    done += [moved] * bool(moved)
    return (pixels.astype(np.float32) / 127.5 - 1).astype(np.float32), "; ".join(done)


def _files(source: Path) -> tuple[list[Path], list[str]]:
    """The image files of a folder in the order of their names, and a note on what was left out."""
    try:
        inside = sorted(p for p in source.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise UserError(f"folder {source} cannot be read ({error.strerror})") from None
    files = [p for p in inside if pictures.is_picture(p)]
    others = [p.name for p in inside if p not in set(files)]
    if not files:
        raise UserError(f"folder {source} has no images: put files ending in {' '.join(pictures.EXTENSIONS)} into it")
    few = ", ".join(pictures.one_line(name, 60) for name in others[:3]) + (", ..." if len(others) > 3 else "")
    return files, [f"left out {len(others)} that are not images: {few}"] if others else []


def _unique(stems: Iterable[str]) -> list[str]:
    """Names fit for files, each once: printable, without a slash, at most ``_LONGEST`` bytes long."""
    names: dict[str, None] = {}
    for stem in stems:
        stem = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in stem) or "_"
        if len(stem.encode()) > _LONGEST:  # cut between two letters
            stem = stem.encode()[:_LONGEST].decode(errors="ignore")
        name, n = stem, 2
        while name in names:
            name, n = f"{stem}-{n}", n + 1
        names[name] = None
    return list(names)


def load(
    source: str | os.PathLike, *, size: int | None, channels: int, limit: int | None = None, pad=False, keep_going=False
) -> Pictures:
    """Images for a prior of `size` x `size` x `channels` (size None: each keeps its own shape).

    source: an image file, a folder of images of any sizes (sub-folders and hidden files are left out), or the
    name of a bundled set ("bundled:fashion", "bundled:fruits"; "bundled" is the one with as many channels).
    limit: take the first so many. pad: see :func:`fit`. Raises UserError for whatever cannot be read; with ``keep_going`` what
    cannot be read of a folder is put into ``lost``, unless that is all of it.
    """
    if limit is not None and limit < 1:
        raise UserError(f"number of images {limit}: must be at least 1")
    if str(source).partition(":")[0] == "bundled":
        return _bundled(str(source).partition(":")[2], size, channels, limit)
    source = Path(source)
    if not os.path.exists(source):  # pathlib's own raises where a folder above may not be read
        raise UserError(f"images {source} does not exist, or may not be read: give an image file, a folder, or 'bundled'")
    files, notes = _files(source) if source.is_dir() else ([source], [])
    files = files[:limit]
    found = Pictures([], [], [], notes)
    for path, name in zip(files, _unique(p.stem for p in files)):
        try:
            with library_errors():
                pixels, said = pictures.read(path)
        except UserError as error:
            found.lost.append(str(error))
            if not keep_going or (len(found.lost) == len(files)):
                raise
            continue
        image, done = fit(pixels, size, channels, pad)
        found.images.append(image)
        found.names.append(name)
        found.labels.append(None)
        found.sizes.append(pixels.shape[:2])
        found.stems.append(path.stem)
        said += [done] * bool(done) + [f"its results are called {name}"] * (name != path.stem)
        notes += [f"{pictures.one_line(path.name, 60)}: {'; '.join(said)}"] * bool(said)
    return found


def _bundled(name: str, size: int | None, channels: int, limit: int | None) -> Pictures:
    from ..zoo import bundled

    name = name or bundled.for_channels(channels, size)
    if name not in bundled.NAMES:
        raise unknown("bundled image set", name, bundled.NAMES)
    stack, labels = bundled.images(name)
    stack, labels = stack[:limit], labels[:limit]
    images, done = [], ""
    for x in stack:
        if x.shape[-1] == channels and size in (None, x.shape[0]):
            images.append(x)
        else:
            image, done = fit(to_uint8(x), size, channels)
            images.append(image)
    names = [f"{name}-{n:02d}" for n in range(len(images))]
    notes = [f"bundled {name}: {done}"] if done else []
    return Pictures(images, names, [int(k) for k in labels], notes, [x.shape[:2] for x in stack], names)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """[-1, 1] to 0..255, rounded to nearest, values outside clipped. Raises UserError if not finite."""
    image = np.asarray(image, np.float64)
    if not np.all(np.isfinite(image)):
        raise UserError(f"an image has {np.sum(~np.isfinite(image))} values that are not finite: it was not saved")
    return np.clip(np.rint((image + 1) * 127.5), 0, 255).astype(np.uint8)


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write one image (H, W), (H, W, 1) or (H, W, 3) in [-1, 1] as PNG.

    Raises UserError if a value is not finite or the file cannot be written.
    """
    Image = pillow()
    pixels = to_uint8(image)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    save_page(Image.fromarray(pixels), path)


def save_page(page, path: str | os.PathLike) -> None:
    """Write a Pillow image as PNG, whole or not at all. Raises UserError if the file cannot be written."""
    data = io.BytesIO()  # a disk that fills up would fail inside Pillow, which then has errors of its own
    page.save(data, format="PNG")
    try:
        outputs.write_bytes(Path(path), data.getvalue())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or one_line(error)})") from None
