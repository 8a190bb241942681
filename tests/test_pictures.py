"""Pictures of strangers: every mode and depth right, what is done said, no program started, masks that go with them."""

import struct
import zlib

import numpy as np
import pytest

from diffjax import pictures
from diffjax.cli import images
from diffjax.cli.errors import UserError
from diffjax.training import data

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")

RAMP = (np.arange(12 * 20).reshape(12, 20) % 256).astype(np.uint8)
RGB = np.stack([RAMP, RAMP // 2, 255 - RAMP], -1)


def save(path, pixels, mode=None, **options):
    image = pixels if hasattr(pixels, "save") else Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def png(path, pixels, depth, colour, **chunks):
    """A PNG from its specification: big-endian samples of ``depth`` bits, further chunks as bytes."""
    chunk = lambda name, body: struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    rows = pixels.astype(">u2" if depth == 16 else np.uint8).reshape(len(pixels), -1)
    rows = np.packbits(rows, axis=1) if depth == 1 else rows
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, colour, 0, 0, 0)
    extra = b"".join(chunk(name.encode(), text) for name, text in chunks.items())
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    )
    return path


def pgm(path, pixels):
    path.write_bytes(b"P5 %d %d 65535\n" % pixels.shape[::-1] + pixels.astype(">u2").tobytes())
    return path


# --- modes: (how the file is made, its right pixels, a word of the note or None, by how many levels they may differ) -------

WIDE = lambda a: a.astype(np.uint16) * 257
KEY = np.where(RAMP == 7, 0, 255).astype(np.uint8)
MODES = {
    "8-bit grey": (lambda p: save(p / "a.png", RAMP), RAMP, None, 0),
    "RGB": (lambda p: save(p / "a.bmp", RGB), RGB, None, 0),
    "16-bit grey": (lambda p: save(p / "a.png", WIDE(RAMP)), RAMP, None, 0),
    "16-bit, big-endian": (lambda p: pgm(p / "a.pgm", WIDE(RAMP)), RAMP, None, 0),
    "16-bit RGB": (lambda p: png(p / "a.png", WIDE(RGB), 16, 2), RGB, None, 1),
    "12 bits in 16": (
        lambda p: save(p / "a.png", RAMP.astype(np.uint16) * 16), RAMP.astype(int) * 16 / 257, "multiply by 16", 1),
    "float [0, 1]": (lambda p: save(p / "a.tif", RAMP.astype(np.float32) / 255), RAMP, "taken as [0, 1]", 0),
    "float [-1, 1]": (lambda p: save(p / "a.tif", RAMP.astype(np.float32) / 127.5 - 1), RAMP, "taken as [-1, 1]", 0),
    "float 0..200": (lambda p: save(p / "a.tif", np.float32(RAMP % 200)), RAMP % 200, "taken as 0..255", 0),
    "32-bit": (lambda p: save(p / "a.tif", RAMP.astype(np.int32)), RAMP, "taken as 0..255", 0),
    "CMYK": (lambda p: save(p / "a.tif", Image.fromarray(RGB).convert("CMYK")), RGB, "CMYK without a", 2),
    "1-bit": (lambda p: save(p / "a.png", RAMP > 99), (RAMP > 99) * 255, None, 0),
    "palette": (
        lambda p: save(p / "a.gif", Image.fromarray(RAMP // 64 * 64).convert("P")),
        np.stack([RAMP // 64 * 64] * 3, -1), None, 0),
    "RGB, colour for nothing": (
        lambda p: png(p / "a.png", RGB, 8, 2, tRNS=struct.pack(">HHH", 7, 3, 248)), np.dstack([RGB, KEY]), None, 0),
    "grey, value for nothing": (
        lambda p: png(p / "a.png", RAMP, 8, 0, tRNS=struct.pack(">H", 7)), np.dstack([RAMP, KEY]), None, 0),
    "16-bit, value for nothing": (
        lambda p: png(p / "a.png", WIDE(RAMP), 16, 0, tRNS=struct.pack(">H", 7 * 257)), np.dstack([RAMP, KEY]), None, 0),
    "16-bit RGB, colour for nothing": (
        lambda p: png(p / "a.png", WIDE(RGB), 16, 2, tRNS=struct.pack(">HHH", 7 * 257, 3 * 257, 248 * 257)),
        np.dstack([RGB, KEY]), None, 1),
    "1-bit, black for nothing": (
        lambda p: png(p / "a.png", RAMP[:, :16] > 99, 1, 0, tRNS=struct.pack(">H", 0)),
        np.stack([(RAMP[:, :16] > 99) * 255] * 2, -1), None, 0),
    "RGBA": (lambda p: save(p / "a.webp", np.dstack([RGB, KEY]), lossless=True, exact=True), np.dstack([RGB, KEY]), None, 0),
    "three pages": (
        lambda p: save(p / "a.tif", Image.fromarray(RAMP), save_all=True, append_images=[Image.fromarray(255 - RAMP)] * 2),
        RAMP, "first of 3 pages", 0),
    "EXIF that is none": (lambda p: png(p / "a.png", RAMP, 8, 0, eXIf=b"junk, and more"), RAMP, "taken as upright", 0),
    "profile that is none": (lambda p: save(p / "a.png", RGB, icc_profile=b"junk" * 50), RGB, "taken as sRGB", 0),
}  # fmt: skip


@pytest.mark.parametrize("make, right, word, most", MODES.values(), ids=MODES)
def test_every_mode_is_right_and_what_is_assumed_is_said(tmp_path, make, right, word, most):
    """And training reads the same: it has no reader of its own."""
    path = make(tmp_path)
    pixels, notes = pictures.read(path)
    right = np.asarray(right)
    right = right[..., None] if right.ndim == 2 else right
    assert pixels.dtype == np.uint8 and pixels.shape == right.shape
    assert np.abs(pixels.astype(float) - np.rint(right)).max() <= most
    assert (word is None and not notes) or any(word in note for note in notes), notes
    for n in "bc":
        (tmp_path / f"{n}{path.suffix}").write_bytes(path.read_bytes())
    size, channels = 12, 3 if pixels.shape[-1] > 2 else 1
    trained = data.load(tmp_path, size=size, channels=channels, fit="resize", holdout=1)
    restored = images.load(tmp_path, size=size, channels=channels, limit=1)
    np.testing.assert_array_equal(trained.train[0], images.to_uint8(restored.images[0]))
    assert word is None or any(word in note for note in trained.notes)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_upright_as_pillow_turns_it(tmp_path, orientation, kind):
    tag = Image.Exif()
    tag[0x0112] = orientation
    path = save(tmp_path / f"a.{kind}", RAMP, **({"tiffinfo": {0x0112: orientation}} if kind == "tif" else {"exif": tag}))
    with Image.open(path) as image:
        right = np.asarray(ImageOps.exif_transpose(image)) if kind != "tif" else None
    if kind == "tif":  # Pillow garbles an uncompressed TIFF that lies on its side
        tag[0x0112] = orientation
        image = Image.fromarray(RAMP)
        image.getexif()[0x0112] = orientation
        right = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(pictures.read(path).pixels[..., 0], right)
    assert right.shape == ((20, 12) if orientation > 4 else (12, 20))


def profile(red, green, blue):
    """An ICC profile of these primaries (XYZ under D50) and a gamma of 2.2, from its specification."""
    fixed = lambda v: struct.pack(">i", round(v * 65536))
    xyz = lambda v: b"XYZ \0\0\0\0" + b"".join(map(fixed, v))
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, 0x0233) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"Test\0" + bytes(78) + b"\0"
    parts = {b"desc": text, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz((0.9642, 1, 0.8249)),
             b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue),
             b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}  # fmt: skip
    table, body, at = b"", b"", 128 + 4 + 12 * len(parts)
    for name, part in parts.items():
        part += b"\0" * (-len(part) % 4)
        table += name + struct.pack(">II", at + len(body), len(part))
        body += part
    body = struct.pack(">I", len(parts)) + table + body
    head = struct.pack(">I4sI4s4s4s", 128 + len(body), b"\0" * 4, 0x02100000, b"mntr", b"RGB ", b"XYZ ") + bytes(12)
    head += b"acsp" + bytes(28) + b"".join(map(fixed, (0.9642, 1, 0.8249)))
    return head + bytes(128 - len(head)) + body


def test_what_libtiff_complains_of_is_a_note(tmp_path, capfd):
    """A fax with a bad code is read as far as it goes, and that is said; nothing but our own line reaches the terminal."""
    page = Image.fromarray(np.random.default_rng(0).integers(0, 2, (14, 20)).astype(bool))
    page.save(tmp_path / "a.tif", compression="group4")
    assert pictures.read(tmp_path / "a.tif").notes == []
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[20:22] = b"\xff\0"  # within the first strip
    (tmp_path / "a.tif").write_bytes(data)
    assert "its decoder says: Fax4Decode: Bad code word" in pictures.read(tmp_path / "a.tif").notes[0]
    assert capfd.readouterr().err == ""


def test_a_colour_profile_is_converted_and_srgb_is_left_alone(tmp_path):
    """sRGB's primaries in another order: red becomes green, green blue, blue red."""
    from PIL import ImageCms

    red, green, blue = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [128, 128, 128]]] * 2, np.uint8)
    got, notes = pictures.read(save(tmp_path / "a.png", pixels, icc_profile=profile(green, blue, red)))
    assert np.abs(got.astype(int) - pixels[..., [2, 0, 1]]).max() <= 6 and "from Test to sRGB" in notes[0]
    clear = np.dstack([pixels, np.full((2, 5), 9, np.uint8)])
    got, _ = pictures.read(save(tmp_path / "b.png", clear, icc_profile=profile(green, blue, red)))
    assert np.abs(got[..., :3].astype(int) - pixels[..., [2, 0, 1]]).max() <= 6 and (got[..., 3] == 9).all()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    got, notes = pictures.read(save(tmp_path / "c.png", RGB, icc_profile=srgb))
    np.testing.assert_array_equal(got, RGB)
    assert not notes


def test_what_is_no_picture_is_one_line_and_no_program_is_started(tmp_path, monkeypatch):
    log = tmp_path / "started"
    for name in ("gs", "gswin64c"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho x >> {log}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n0 0 32 32 rectfill\nshowpage\n%%EOF\n"
    noise = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    nan = RAMP.astype(np.float32) / 255
    nan[3, 5], nan[4, 4] = np.nan, np.inf
    cases = {
        "is PostScript": eps, "is a PDF": b"%PDF-1.7", "is HTML": b"<!doctype html>",
        "git lfs pull": b"version https://git-lfs x", "is empty": b"", "is HEIC": b"\0\0\0\x18ftypheic",
        "damaged or cut off": save(tmp_path / "x.png", noise).read_bytes()[:300],
        "2 values that are not finite, the first (nan) at row 3, column 5": save(tmp_path / "n.tif", nan).read_bytes(),
        "neither [0, 1] nor": save(tmp_path / "r.tif", np.float32(RAMP) - 100).read_bytes(),
    }  # fmt: skip
    folder = tmp_path / "set"
    folder.mkdir()
    path = folder / "photo.png"
    for word, content in cases.items():
        path.write_bytes(content)
        for read in (lambda: images.load(folder, size=8, channels=3), lambda: images.mask(path, (8, 8)),
                     lambda: data.load(folder, size=8, channels=3)):  # fmt: skip
            with pytest.raises(ValueError) as error:
                read()
            print(word)
            assert word in str(error.value) and "photo.png" in str(error.value) and "\n" not in str(error.value)
    assert not log.exists()
    Image.new("1", (6000, 6000)).save(path)  # few bytes for many pixels
    with pytest.raises(ValueError, match="promises 6000x6000 pixels"):
        images.decode(path)
    with pytest.raises(ValueError, match="112,000,000 pixels are the most"):
        huge = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
        head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + huge + struct.pack(">I", zlib.crc32(b"IHDR" + huge))
        path.write_bytes(head + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
        pictures.read(path)
    import os

    os.mkfifo(folder / "pipe.png")
    with pytest.raises(ValueError, match="a pipe or a device"):
        pictures.read(folder / "pipe.png")


# --- what belongs to a picture ------------------------------------------------------------------------------------------


def test_a_mask_of_the_picture_s_size_goes_its_way(tmp_path):
    """The hole lies where the object is, after crop and reduction, although both are drawn on the whole picture."""
    picture, known = np.zeros((48, 64), np.uint8), np.full((48, 64), 255, np.uint8)
    picture[10:23, 20:33], known[10:23, 20:33] = 255, 0
    x, done = images.fit(picture[..., None], 16, 1)
    notes = []
    mask = images.mask(save(tmp_path / "m.png", known), (16, 16), own=(48, 64), notes=notes)
    touched = picture[:, 8:56].reshape(16, 3, 16, 3).max((1, 3)) > 0  # what a pixel of the small picture is a mean of
    np.testing.assert_array_equal(mask == 0, touched)
    assert done.split("; ")[-1] in notes[0]
    inside = picture[:, 8:56].reshape(16, 3, 16, 3).min((1, 3)) > 0
    assert x[..., 0][inside].min() > 0.5 and (mask[inside] == 0).all()
    padded = images.mask(save(tmp_path / "p.png", known[:28, :28]), (32, 32), own=(28, 28), pad=True)
    np.testing.assert_array_equal(padded[2:30, 2:30] == 0, known[:28, :28] == 0)
    assert padded[:2].all()
    with pytest.raises(UserError, match=r"64x48 but the images are 16x16.*or draw it on the picture of 50x40"):
        images.mask(tmp_path / "m.png", (16, 16), own=(40, 50))
    soft = known.copy()
    soft[0, :5] = 100
    images.mask(save(tmp_path / "s.png", soft), (48, 64), notes=notes)
    assert "5 pixels are neither black nor white" in notes[-1]


# --- class folders and labels -------------------------------------------------------------------------------------------


def test_which_files_are_training_pictures_and_of_which_class(tmp_path):
    root, other = tmp_path / "set", tmp_path / "elsewhere"
    for folder, level in ((root / "a", 10), (root / "b" / "deep", 20), (other, 30), (root / ".ipynb_checkpoints", 40),
                          (root / "__MACOSX" / "a", 50)):  # fmt: skip
        folder.mkdir(parents=True)
        for n in range(3):
            save(folder / f"{n}.png", np.full((8, 8), level, np.uint8))
    (root / "c").symlink_to(other)
    save(root / "a" / "._0.png", RAMP)
    (root / "a" / "x.png").mkdir()
    (root / "a" / "dead.png").symlink_to(tmp_path / "nowhere")
    (root / "notes.txt").touch()
    found = data.load(root, size=8, holdout=1, classes=3)
    assert found.names == ("a", "b", "c") and len(found.train) == 8 and "notes.txt" in found.notes[0]
    np.testing.assert_array_equal(found.train[:, 0, 0, 0], 10 * (found.train_labels + 1))
    with pytest.raises(ValueError, match=r"3 class folders \(a, b, c\): classes=2"):
        data.load(root, size=8, holdout=1, classes=2)
    (root / "d").mkdir()
    with pytest.raises(ValueError, match="d has no pictures"):
        data.load(root, size=8, holdout=1, classes=4)
    (root / "e").symlink_to(root)
    with pytest.raises(ValueError, match="link to the folder that it lies in"):
        data.load(root, size=8, holdout=1)


LABELS = {
    "too many": (np.arange(30) % 2, "shape (30,) for 20 images"),
    "too few": (np.arange(10) % 2, "shape (10,) for 20 images"),
    "one-hot": (np.eye(2)[np.arange(20) % 2], "take argmax(1)"),
    "a number": (np.int64(1), "shape () for 20"),
    "halves": (np.arange(20) / 2, "no whole numbers"),
    "NaN": (np.full(20, np.nan), "no whole numbers"),
    "text": (np.array(["a", "b"] * 10), "no whole numbers"),
}


@pytest.mark.parametrize("labels, word", LABELS.values(), ids=LABELS)
def test_labels_are_whole_numbers_one_for_each_image(tmp_path, labels, word):
    x = np.zeros((20, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=labels)
    with pytest.raises(ValueError) as error:
        data.load(tmp_path / "a.npz", size=4, classes=2, holdout=4)
    assert word in str(error.value) and "\n" not in str(error.value)
    np.savez(tmp_path / "a.npz", x=x, y=(np.arange(20) % 2).astype(float))
    assert data.load(tmp_path / "a.npz", size=4, classes=2, holdout=4).train_labels.dtype == np.int32
    for more, said in ({"x_test": x[:0]}, "no test images"), ({"x": x[:, :0]}, "no pixels"):
        np.savez(tmp_path / "a.npz", **({"x": x} | more))
        with pytest.raises(ValueError, match=said):
            data.load(tmp_path / "a.npz", size=4, holdout=4)
