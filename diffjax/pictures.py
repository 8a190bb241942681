"""The one reader of pictures: a file to its pixels (8 bits, upright, sRGB), and a sentence for each thing that was done to it.

A file is data. Which decoder reads it is chosen from ``FORMATS``: all of them run inside this process, and none starts
another program (PostScript would). What is assumed about the numbers (the range of floats, the profile of colours) is said.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import stat
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
              ".pbm", ".pnm")  # fmt: skip
LARGEST = 112_000_000  # pixels: a telephone's 108 million pass, and the work stays within about 1 GB
SURELY, PER_BYTE = 16_000_000, 2000  # pixels: more than that need a byte for so many, which all but blank pictures have
_TOO_LARGE = f"too large: make it smaller first, {LARGEST:,} pixels are the most"
HINTS = {  # how other files begin, and what they are
    b"%!PS": "is PostScript, which is a program: save it as PNG",
    b"\xc5\xd0\xd3\xc6": "is PostScript, which is a program: save it as PNG",
    b"%PDF": "is a PDF: save its page as PNG",
    b"<": "is HTML, SVG or XML text: save it as PNG, or download the picture itself",
    b"version https://git-lfs": "is a pointer of git-lfs: git lfs pull fetches the picture",
    b"\x93NUMPY": "is a numpy array: give it as --images FILE.npy",
    b"PK": "is a zip archive: unpack it",
    b"SIMPLE  =": "is a FITS file: save it as TIFF",
}
# what each EXIF orientation needs to stand upright: quarter turns to the left, after a mirror from left to right
TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (1, True), 6: (3, False), 7: (3, True), 8: (1, False)}


class Picture(NamedTuple):
    """pixels: uint8 (H, W, C), C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; notes: a sentence for each thing to know."""

    pixels: np.ndarray
    notes: list


def one_line(text, most: int = 200) -> str:
    """Text of strangers as one printable line of at most so many letters."""
    folded = "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))
    return folded if len(folded) <= most else folded[: most - 3] + "..."


def read(path: str | os.PathLike, kind: str = "image") -> Picture:
    """The picture in a file. ``kind``: what it is called in messages.

    8 bits are taken as they are, 16 as out of 65535, floats and whole numbers of 32 bits by the first that fits of [0, 1],
    [-1, 1], 0..255, 0..65535, which is said. Of an animation or a file of several pages the first is read, which is said.
    Raises ValueError, in one line, for a file that is missing, no regular file, no picture of ``FORMATS``, damaged, larger
    than ``LARGEST`` or than its bytes can show, or that has values which are not finite.
    """
    path = Path(path)
    name = f"{kind} {one_line(path)}"
    _is_file(path, name)
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ValueError("reading pictures needs Pillow: pip install pillow") from None
    notes: list[str] = []
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # it would say of damaged files what is said below
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # LARGEST is asked instead
        try:
            # by handle, not by name: Pillow maps a named TIFF into memory, and then mistakes its rows if it lies on its side
            with path.open("rb") as file, opened(file) as image:
                _check_size(image, path, name)
                raw = str(image.tile[0].args if image.tile else "")  # how the samples are stored, before decoding
                pages = _pages(image)
                with _complaints(notes) if image.format == "TIFF" else contextlib.nullcontext():
                    image.load()
                quarters, mirror = _orientation(image, notes)
                pixels = _upright(_pixels(image, raw, name, notes), quarters, mirror)
        except UnidentifiedImageError:
            raise ValueError(f"{name} {_what(path)}") from None
        except Image.DecompressionBombError:  # of Pillow itself, at once for the very largest
            raise ValueError(f"{name} is {_TOO_LARGE}") from None
        except _Refused as error:
            raise ValueError(str(error)) from None
        except PermissionError as error:
            raise ValueError(f"{name} cannot be read ({error.strerror}): you lack the permission") from None
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError, ...
            raise ValueError(f"{name} cannot be read ({one_line(error)}): the file is damaged or cut off") from None
    if pages > 1:
        notes.append(f"the first of {pages} pages or frames is read, the others are left out")
    notes += dict.fromkeys(f"its decoder says: {one_line(w.message)}" for w in said if issubclass(w.category, UserWarning))
    return Picture(pixels, notes)


def opened(file):
    """Pillow's image of a file that is open for reading, by one of the decoders of ``FORMATS`` or none. Nothing is decoded."""
    from PIL import Image

    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


@contextlib.contextmanager
def _complaints(notes):
    """libtiff writes what is wrong with a file straight to the process's stderr, and goes on: it becomes notes."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            lines = dict.fromkeys(said.read(10_000).decode(errors="replace").splitlines())
            notes += [f"its decoder says: {one_line(line.removeprefix('tempfile.tif: '), 100)}" for line in list(lines)[:3]]


class _Refused(Exception):
    """A picture that was decoded, and whose numbers mean nothing."""


def _is_file(path, name):
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise ValueError(f"{name} does not exist: give a file that does, or see --help") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror})") from None
    except ValueError as error:  # a name with a zero in it
        raise ValueError(f"{name} is no name of a file ({one_line(error)})") from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"{name} is a folder: give one file")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{name} is a pipe or a device, no file: give a picture")


def _check_size(image, path, name):
    count, size = image.width * image.height, os.stat(path).st_size
    if count > LARGEST:
        raise _Refused(f"{name} is {_TOO_LARGE}")
    if count > max(SURELY, PER_BYTE * size):
        raise _Refused(f"{name} promises {image.width}x{image.height} pixels in {size:,} bytes: it is blank, damaged, or made "
                       "to fill the memory")  # fmt: skip


def _what(path) -> str:
    """Why an unidentified file is none of ours, from its beginning."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "is not an image that can be read: it is empty"
    for start, text in HINTS.items():
        if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(start):
            return f"is not an image that can be read: it {text}"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return "is HEIC or AVIF, which is not read here: export it as JPEG or PNG"
    return "is not an image that can be read: use PNG or JPEG"


def _pages(image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # further pages are damaged; whether the first is, its decoder says
        return 1


# --- modes ------------------------------------------------------------------------------------------------------------


def _pixels(image, raw, name, notes):
    """uint8 (H, W, C) of a decoded image of any mode."""
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        return _numbers(image, name, notes)
    keyed = image.info.get("transparency") if image.mode in ("1", "L", "RGB") else None
    if image.mode == "1":
        image = _converted(image, "L")
    elif image.mode in ("PA", "RGBa") or (image.mode == "P" and image.has_transparency_data):
        image = _converted(image, "RGBA")
    elif image.mode == "La":
        image = _converted(image, "LA")
    image = _to_srgb(image, notes)
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        if image.mode != "P":
            notes.append(f"{image.mode} without a usable colour profile: converted to RGB by the plain formula")
        image = _converted(image, "RGB")
    channels = len(image.getbands())
    pixels = np.empty((image.height, image.width, channels + (keyed is not None)), np.uint8)
    for at in _strips(*pixels.shape[:2]):
        some = np.asarray(image.crop((0, at.start, image.width, at.stop)))
        pixels[at, :, :channels] = some.reshape(*some.shape[:2], channels)
        if keyed is not None:
            pixels[at, :, channels] = _opaque(pixels[at, :, :channels], keyed, raw)
    return pixels


def _strips(height, width):
    """Slices of rows of about a million pixels: what is made on the way is a small part of the picture."""
    rows = max(2**20 // max(width, 1), 1)
    return [slice(start, min(start + rows, height)) for start in range(0, height, rows)]


def _converted(image, mode):
    """In another mode; the memory of what it was is given back."""
    changed = image.convert(mode)
    image.close()
    return changed


def _opaque(pixels, key, raw):
    """An alpha channel that is 0 where the pixels have the one colour that stands for nothing (PNG's tRNS)."""
    key = np.atleast_1d(np.asarray(key if not isinstance(key, bytes) else list(key)))
    if "16" in raw:
        key = key >> 8  # Pillow keeps the upper byte of 16 bits
    for stored, step in (("1", 255), ("L;2", 85), ("L;4", 17)):
        key = key * step if stored == raw and key.max() <= 255 // step else key
    clear = np.logical_and.reduce([pixels[..., c] == key[c % len(key)] for c in range(pixels.shape[-1])])
    return np.where(clear, np.uint8(0), np.uint8(255))


def _numbers(image, name, notes):
    """16-bit, 32-bit and floating grey: 8 bits by the range that the numbers have."""
    pixels = np.asarray(image)
    if image.mode == "F" and not np.isfinite(pixels).all():
        bad = np.argwhere(~np.isfinite(pixels))
        row, column = bad[0]
        raise _Refused(f"{name} has {len(bad)} values that are not finite, the first ({pixels[row, column]}) at row {row}, "
                       f"column {column}: replace them first")  # fmt: skip
    low, high = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
    # 16-bit files are I;16, or I where the format knows no 32 bits
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if sixteen:
        bottom, top = 0, 65535
        if 0 < high < 8192:
            bits = max(int(high).bit_length(), 8)
            notes.append(f"its 16 bits are taken as 0..65535, and its largest value is {high:g}: it is dark; if {bits} bits "
                         f"were meant, multiply by {65535 // (2**bits - 1)}")  # fmt: skip
    else:
        ranges = [(0, 255), (0, 65535)] if image.mode == "I" else [(0, 1), (-1, 1), (0, 255), (0, 65535)]
        fits = [r for r in ranges if low >= r[0] - 1e-3 * (r[1] == 1) and high <= r[1] * (1 + 1e-3)]
        if not fits or (image.mode == "F" and 1.001 < high <= 2):
            raise _Refused(f"{name} has values from {low:g} to {high:g}, neither [0, 1] nor [-1, 1] nor 0..255 nor 0..65535: "
                           "scale it to one of them")  # fmt: skip
        bottom, top = fits[0]
        text = f"[{bottom}, {top}]" if top == 1 else f"{bottom}..{top}"
        notes.append(f"its numbers ({low:g} to {high:g}) are taken as {text}")
    out = np.empty((*pixels.shape, 1), np.uint8)
    for at in _strips(*pixels.shape):  # the float64 of all of it would be eight times as much
        out[at, :, 0] = np.clip(np.rint((pixels[at].astype(np.float64) - bottom) * (255 / (top - bottom))), 0, 255)
    key = image.info.get("transparency")
    if isinstance(key, int):
        out = np.concatenate([out, np.where(pixels == key, 0, 255).astype(np.uint8)[..., None]], -1)
    if image.info.get("icc_profile"):
        notes.append("its colour profile is not looked at: more than 8 bits are taken as they are")
    return out


# --- colours ----------------------------------------------------------------------------------------------------------


def _to_srgb(image, notes):
    """The image in sRGB, where it brings a profile that is another colour space."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode == "P":
        return image
    try:
        from PIL import Image, ImageCms

        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        alpha = image.getchannel("A") if image.mode == "LA" else None
        image_in = image.getchannel("L") if image.mode == "LA" else image
        mode = image_in.mode if image_in.mode in ("RGB", "RGBA") else "RGB"
        change = ImageCms.buildTransform(source, target, image_in.mode, mode)
        what = one_line(ImageCms.getProfileDescription(source), 60)
        grid = np.stack(np.meshgrid(*[np.arange(0, 256, 17)] * 3), -1).reshape(1, -1, 3).astype(np.uint8)
        if image_in.mode in ("RGB", "RGBA", "L"):  # a profile that moves no colour by more than rounding is sRGB
            probe = Image.fromarray(grid).convert(image_in.mode)
            rgb = lambda image: np.asarray(image.convert("RGB"), int)
            if np.abs(rgb(ImageCms.applyTransform(probe, change)) - rgb(probe)).max() <= 3:
                return image
        if image_in.mode == mode:
            ImageCms.applyTransform(image_in, change, inPlace=True)
            done = image_in
        else:
            done = ImageCms.applyTransform(image_in, change)
            image_in.close()
        if image_in.mode == "L":  # grey stays grey
            done = done.getchannel("G")
            if alpha is not None:
                done = Image.merge("LA", (done, alpha))
    except Exception as error:  # a profile is an extra, and the pixels are whole: ImageCms raises PyCMSError, OSError, ...
        notes.append(f"its colour profile cannot be used ({one_line(error, 80)}): taken as sRGB")
        return image
    notes.append(f"colours converted from {what or 'its profile'} to sRGB")
    return done


def over_white(pixels):
    """Pixels without alpha, laid over white, and whether anything showed through."""
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    if (alpha == 255).all():
        return colour, False
    out = np.empty(colour.shape, np.uint8)
    for at in _strips(*pixels.shape[:2]):
        a = alpha[at].astype(np.float64) / 255
        out[at] = np.rint(colour[at] * a + 255 * (1 - a))
    return out, True


# --- upright ----------------------------------------------------------------------------------------------------------


def _orientation(image, notes):
    """(quarter turns to the left, mirrored before) as its EXIF tag says; a damaged tag is said and the pixels stay."""
    try:
        return TURNS.get(image.getexif().get(0x0112, 1), (0, False))
    except Exception as error:  # EXIF is an extra, and the pixels are whole: Pillow raises SyntaxError, struct.error, ...
        notes.append(f"its EXIF cannot be read ({one_line(error, 80)}): taken as upright")
        return 0, False


def _upright(pixels, quarters, mirror):
    if not quarters and not mirror:
        return pixels
    turned = np.rot90(pixels[:, ::-1] if mirror else pixels, quarters)
    out = np.empty(turned.shape, np.uint8)
    for start in range(0, len(out), 64):  # a few rows at a time, which the processor's cache holds
        out[start : start + 64] = turned[start : start + 64]
    return out


# --- folders ----------------------------------------------------------------------------------------------------------


def hidden(name: str) -> bool:
    """Names that other programs leave behind: .DS_Store, ._x.png, .ipynb_checkpoints, __MACOSX, Thumbs.db."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def is_picture(path: Path) -> bool:
    """Whether a path is, or links to, a file whose name ends like a picture's."""
    return path.suffix.lower() in EXTENSIONS and not hidden(path.name) and os.path.isfile(path)
