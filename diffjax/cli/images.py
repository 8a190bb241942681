"""Images in and out: files to float32 (H, W, C) in [-1, 1] and back, every change of an image said aloud."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import UserError, library_errors, needs, one_line, unknown

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_PADDED = {(28, 32)}  # (side, size) that is padded, not resized: MNIST and its kin are trained on this way


@dataclass(frozen=True)
class Pictures:
    """Images for a prior. images: list of float32 (H, W, C) in [-1, 1]; names: unique, fit for file names;
    labels: int or None each; notes: one sentence for each thing that was done to an image or left out."""

    images: list[np.ndarray]
    names: list[str]
    labels: list[int | None]
    notes: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> Pictures:
        return Pictures(self.images[part], self.names[part], self.labels[part], self.notes)


def pillow():
    """Pillow's ``Image``, or UserError where it is not installed."""
    with needs("reading and writing pictures", "pip install pillow"):
        from PIL import Image
    return Image


def decode(path: str | os.PathLike, kind: str = "image") -> np.ndarray:
    """The file's pixels, uint8 (H, W, C): C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.

    The image is turned upright by its EXIF tag. 16-bit and floating grey files are reduced to 8 bits; of an
    animation the first frame is read. Raises UserError for a file that is missing, a folder, no image,
    truncated, or too large to be meant.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{kind} {path} does not exist: give a file that does, or see --help")
    if path.is_dir():
        raise UserError(f"{kind} {path} is a folder: give one file")
    Image = pillow()
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                image = ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise UserError(f"{kind} {path} is not an image that can be read: use PNG or JPEG") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(f"{kind} {path} is too large: make it smaller first") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error, ...
        raise UserError(f"{kind} {path} cannot be read ({one_line(error)}): the file is damaged or cut off") from None
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image, np.float64)
        top = 65535 if image.mode != "F" else max(float(pixels.max()), 1.0)
        return np.clip(np.rint(pixels * (255 / top)), 0, 255).astype(np.uint8)[..., None]
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode in ("PA", "RGBa", "La") else "RGB")
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def mask(path: str | os.PathLike, shape: tuple[int, int], invert: bool = False) -> np.ndarray:
    """A mask from an image file, float32 (H, W): white (128 of 255 or more) = known; `invert`: black = known.

    An RGB file is taken if its three channels are equal, an alpha channel if it is opaque. Raises UserError,
    one line, if the file is missing, not an image, truncated, of another size, coloured, partly transparent,
    or marks nothing as known or nothing to fill.
    """
    from ..operators.masks import check

    grey = decode(path, kind="mask")
    if grey.shape[-1] in (2, 4):
        if np.any(grey[..., -1] != 255):
            raise UserError(f"mask {path} is partly transparent: save it as plain black and white, without alpha")
        grey = grey[..., :-1]
    if np.any(grey != grey[..., :1]):
        raise UserError(f"mask {path} has colours: save it as black and white (one channel), white = known")
    if grey.shape[:2] != tuple(shape):
        raise UserError(
            f"mask {path} is {grey.shape[1]}x{grey.shape[0]} but the images are {shape[1]}x{shape[0]}: "
            f"resize the mask to {shape[1]}x{shape[0]} (width x height, nearest neighbour)"
        )
    if 0 < grey.max() < 128:
        raise UserError(
            f"mask {path} has no white: its largest value is {grey.max()} of 255, and 128 or more is known: "
            f"multiply it by {255 // grey.max()}"
        )
    known = grey[..., 0] >= 128
    with library_errors():
        return check((~known if invert else known).astype(np.float32), str(path))


def _crop_to_square(pixels: np.ndarray) -> np.ndarray:
    h, w = pixels.shape[:2]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    return pixels[top : top + side, left : left + side]


def fit(pixels: np.ndarray, size: int | None, channels: int) -> tuple[np.ndarray, str]:
    """One image for a prior: (float32 (size, size, channels) in [-1, 1], what was done, "" if nothing).

    pixels: uint8 (H, W, C), C as `decode` gives it. Transparency is laid over white; grey and RGB are
    converted; a rectangle is cropped to its central square and resized with antialiasing (down) or bicubic
    interpolation (up), except that 28x28 for a size of 32 is padded with black, as in training on
    Fashion-MNIST. size None keeps the shape.
    """
    Image = pillow()
    done = []
    if pixels.shape[-1] in (2, 4):
        alpha = pixels[..., -1:].astype(np.float64) / 255
        if np.any(alpha < 1):
            done.append("transparency laid over white")
        pixels = np.rint(pixels[..., :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    if pixels.shape[-1] == 3 and channels == 1:
        done.append("RGB -> grey" if np.any(pixels != pixels[..., :1]) else "three equal channels -> grey")
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    elif pixels.shape[-1] == 1 and channels == 3:
        done.append("grey -> RGB")
        pixels = np.repeat(pixels, 3, axis=-1)

    h, w = pixels.shape[:2]
    if size is not None and (h, w) != (size, size):
        steps = [f"{w}x{h}"]
        if h != w:
            pixels = _crop_to_square(pixels)
            steps.append(f"centre crop {pixels.shape[1]}x{pixels.shape[0]}")
        side = pixels.shape[0]
        if h == w and (side, size) in _PADDED:
            before = (size - side) // 2
            pixels = np.pad(pixels, ((before, size - side - before),) * 2 + ((0, 0),))
            steps.append(f"padded with black to {size}x{size}")
        elif side != size:
            mode = Image.Resampling.LANCZOS if side > size else Image.Resampling.BICUBIC
            planes = [
                Image.fromarray(np.ascontiguousarray(pixels[..., c])).resize((size, size), mode) for c in range(channels)
            ]
            pixels = np.stack([np.asarray(p) for p in planes], axis=-1)
            steps.append(f"{'resized' if side > size else 'enlarged'} to {size}x{size}")
        done.append(" -> ".join(steps))
    return (pixels.astype(np.float32) / 127.5 - 1).astype(np.float32), "; ".join(done)


def _files(source: Path) -> tuple[list[Path], list[str]]:
    """The image files of a folder in the order of their names, and a note on what was left out."""
    try:
        inside = sorted(p for p in source.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise UserError(f"folder {source} cannot be read ({error.strerror})") from None
    files = [p for p in inside if p.is_file() and p.suffix.lower() in EXTENSIONS]
    others = [p.name for p in inside if p not in set(files)]
    if not files:
        raise UserError(f"folder {source} has no images: put files ending in {' '.join(EXTENSIONS)} into it")
    few = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    return files, [f"left out {len(others)} that are not images: {few}"] if others else []


def _unique(stems: Iterable[str]) -> list[str]:
    names: list[str] = []
    for stem in stems:
        name, n = stem, 2
        while name in names:
            name, n = f"{stem}-{n}", n + 1
        names.append(name)
    return names


def load(source: str | os.PathLike, *, size: int | None, channels: int, limit: int | None = None) -> Pictures:
    """Images for a prior of `size` x `size` x `channels` (size None: each keeps its own shape).

    source: an image file, a folder of images of any sizes (sub-folders and hidden files are left out), or the
    name of a bundled set ("bundled:fashion", "bundled:fruits"; "bundled" is the one with as many channels).
    limit: take the first so many. Raises UserError for whatever cannot be read; no image is skipped without a word.
    """
    if limit is not None and limit < 1:
        raise UserError(f"number of images {limit}: must be at least 1")
    if str(source).partition(":")[0] == "bundled":
        return _bundled(str(source).partition(":")[2], size, channels, limit)
    source = Path(source)
    if not source.exists():
        raise UserError(f"images {source} does not exist: give an image file, a folder of images, or 'bundled'")
    files, notes = _files(source) if source.is_dir() else ([source], [])
    files = files[:limit]
    images = []
    for path in files:
        image, done = fit(decode(path), size, channels)
        images.append(image)
        if done:
            notes.append(f"{path.name}: {done}")
    return Pictures(images, _unique(p.stem for p in files), [None] * len(files), notes)


def _bundled(name: str, size: int | None, channels: int, limit: int | None) -> Pictures:
    from ..zoo import bundled

    name = name or bundled.for_channels(channels)
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
    return Pictures(images, names, [int(k) for k in labels], [f"bundled {name}: {done}"] if done else [])


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
    try:
        Image.fromarray(pixels).save(path, format="PNG")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or one_line(error)})") from None
