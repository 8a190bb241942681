"""Changed pictures for ``experiments.fuzz``: small whole ones of every format, and what is done to them.

Checksums and lengths of PNG's chunks are right again afterwards, and what is packed is packed again, so that the decoders
behind them see what was changed.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np

from diffjax import pictures
from diffjax.cli import images


def wholes() -> dict[str, bytes]:
    """{name: bytes} of pictures of 20x14: modes, depths, animations, profiles, EXIF."""
    from PIL import Image, ImageCms

    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (14, 20, 3), np.uint8))
    frames = [Image.fromarray(rng.integers(0, 256, (14, 20, 3), np.uint8)) for _ in range(2)]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    sixteen = Image.fromarray(rng.integers(0, 65536, (14, 20), np.uint16))
    whole, real = (Image.fromarray(rng.integers(0, 256, (14, 20)).astype(t)) for t in (np.int32, np.float32))
    p, many = rgb.quantize(16), {"save_all": True, "append_images": frames}
    made = {
        "rgb.png": (rgb, {"icc_profile": profile, "exif": exif}), "palette.png": (p, {"transparency": b"\0\xff\x80"}),
        "key.png": (rgb, {"transparency": (1, 2, 3)}), "grey16.png": (sixteen, {}), "one.png": (rgb.convert("1"), {}),
        "la.png": (rgb.convert("LA"), {}), "moving.png": (rgb, many), "rgb.jpg": (rgb, {"icc_profile": profile, "exif": exif}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}), "progressive.jpg": (rgb, {"progressive": True, "quality": 95}),
        "lossy.webp": (rgb, {"exif": exif}),
        "lossless.webp": (rgb.convert("RGBA"), {"lossless": True, "icc_profile": profile}),
        "moving.webp": (rgb, many), "rgb.bmp": (rgb, {}), "palette.bmp": (p, {}), "one.bmp": (rgb.convert("1"), {}),
        "a.dib": (rgb, {}), "moving.gif": (rgb, many), "clear.gif": (p, {"transparency": 3}), "rgb.tif": (rgb, {}),
        "lzw.tif": (rgb, {"compression": "tiff_lzw", "icc_profile": profile}), "pages.tif": (rgb, many),
        "jpeg.tif": (rgb, {"compression": "jpeg"}), "float.tif": (real, {}), "whole.tif": (whole, {}),
        "deflate16.tif": (sixteen, {"compression": "tiff_adobe_deflate"}), "cmyk.tif": (rgb.convert("CMYK"), {}),
        "fax.tif": (rgb.convert("1"), {"compression": "group4"}), "a.ppm": (rgb, {}), "a.pgm": (sixteen, {}),
        "a.pbm": (rgb.convert("1"), {}),
    }  # fmt: skip
    kinds = {}
    for name, (image, options) in made.items():
        image.save(file := io.BytesIO(), format={"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM", "pbm": "PPM"}.get(
            name[-3:], name.rsplit(".", 1)[-1].upper()), **options)  # fmt: skip
        kinds[name] = file.getvalue()
    return kinds


def case(kinds: dict, rng, changed) -> tuple[str, bytes]:
    """(name, bytes) of a changed picture; changed(data, rng): of the bytes alone."""
    name = list(kinds)[int(rng.integers(len(kinds)))]
    data = kinds[name]
    if rng.integers(3) and name.endswith(".png"):
        return name, _chunks(data, rng, changed)
    if rng.integers(2) and name.endswith(".tif"):
        return name, _entries(data, rng)
    if rng.integers(2):  # mostly the head
        return name, changed(data[:120], rng) + data[120:]
    return name, changed(data, rng)


def _chunks(data, rng, changed):
    """A PNG with one chunk's content changed, doubled, moved or left out."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    n = int(rng.integers(len(chunks)))
    kind, inside = chunks[n]
    way = rng.integers(8)
    if way == 0:
        chunks.insert(int(rng.integers(len(chunks))), chunks.pop(n))
    elif way == 1:
        chunks.insert(n, chunks[n])
    elif way == 2:
        del chunks[n]
    elif kind in (b"IDAT", b"iCCP", b"zTXt") and way < 6:
        start = inside.find(b"\0") + 2 if kind != b"IDAT" else 0
        chunks[n] = kind, inside[:start] + zlib.compress(changed(zlib.decompress(inside[start:]), rng))
    else:
        chunks[n] = kind, changed(inside or b"\0", rng)
    packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return data[:8] + b"".join(packed)


def _entries(data, rng):
    """A TIFF with a few numbers of its directory replaced: sizes, depths, offsets, counts."""
    data = bytearray(data)
    (at,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[at : at + 2])
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        entry = at + 2 + 12 * int(rng.integers(count))
        field, size = ((0, 2), (2, 2), (4, 4), (8, 4), (8, 4), (8, 4))[int(rng.integers(6))]
        number = int(rng.choice([0, 1, 2, 3, 4, 8, 12, 16, 32, 255, 256, 1000, 65535, 2**20, 2**31 - 1, 2**32 - 1]))
        data[entry + field : entry + field + size] = (number % 256**size).to_bytes(size, "little")
    return bytes(data)


def read(file: Path):
    """As the programs do: the picture, fitted to a prior, and as a mask."""
    pixels, notes = pictures.read(file)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[-1] in (1, 2, 3, 4), (pixels.dtype, pixels.shape)
    assert all(note.isprintable() and len(note) < 1000 for note in notes), notes
    x, _ = images.fit(pixels, 16, 3)
    assert x.shape == (16, 16, 3) and np.abs(x).max() <= 1
    images.mask(file, (16, 16), own=pixels.shape[:2], notes=[])
