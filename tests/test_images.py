"""experiments.images, outputs, errors, tables, baselines and the bundled images: what goes in and what is
left behind."""

import sys

import numpy as np
import pytest

from diffjax.cli import errors, images, outputs, tables
from diffjax.cli.errors import UserError
from diffjax.zoo import bundled
from experiments import baselines

Image = pytest.importorskip("PIL.Image")


def _save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def _ramp(h, w, channels=None):
    x = np.add.outer(np.arange(h) * 3, np.arange(w) * 2) % 256
    return np.stack([x + 10 * c for c in range(channels)], -1).astype(np.uint8) if channels else x.astype(np.uint8)


def test_save_rounds_and_a_round_trip_is_exact(tmp_path):
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image, done = images.fit(images.decode(_save(tmp_path / "a.png", every)), 16, 1)
    assert done == "" and image.dtype == np.float32 and image.min() == -1 and image.max() == 1
    images.save_png(tmp_path / "b.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), every)
    assert images.to_uint8(np.array([0.9999, 1.7, -3.0])).tolist() == [255, 255, 0]
    with pytest.raises(UserError, match="finite"):
        images.save_png(tmp_path / "c.png", np.full((4, 4), np.nan))
    assert not (tmp_path / "c.png").exists()


def test_a_rectangle_is_cropped_in_the_middle_then_resized_with_antialiasing(tmp_path):
    pixels = np.zeros((48, 64), np.uint8)
    pixels[:, 8:56] = np.indices((48, 48)).sum(0) % 2 * 255  # a checkerboard, only inside the central square
    pixels[:, :8] = pixels[:, 56:] = 255
    image, done = images.fit(images.decode(_save(tmp_path / "x.png", pixels)), 16, 1)
    assert image.shape == (16, 16, 1)
    assert done == "64x48 -> centre crop 48x48 -> resized to 16x16"
    assert np.abs(image[2:-2, 2:-2]).max() < 0.1  # averaged to grey; taking every third pixel would leave -1 and 1


def test_28_is_padded_to_32_in_the_middle(tmp_path):
    image, done = images.fit(images.decode(_save(tmp_path / "x.png", _ramp(28, 28))), 32, 1, pad=True)
    assert "padded" in done
    assert np.array_equal(images.to_uint8(image)[2:30, 2:30, 0], _ramp(28, 28))
    image[2:30, 2:30] = -1
    assert np.all(image == -1)


def test_channels_are_converted_and_said(tmp_path):
    rgb = _save(tmp_path / "rgb.png", _ramp(16, 16, 3))
    grey = _save(tmp_path / "grey.png", _ramp(16, 16))
    image, done = images.fit(images.decode(rgb), 16, 1)
    assert image.shape == (16, 16, 1) and "RGB -> grey" in done
    luma = _ramp(16, 16, 3) @ [0.299, 0.587, 0.114]
    assert np.abs(images.to_uint8(image)[..., 0] - luma).max() <= 1
    image, done = images.fit(images.decode(grey), 16, 3)
    assert image.shape == (16, 16, 3) and "grey -> RGB" in done and np.all(image == image[..., :1])
    clear = np.concatenate([_ramp(16, 16, 3), np.zeros((16, 16, 1), np.uint8)], axis=-1)
    image, done = images.fit(images.decode(_save(tmp_path / "clear.png", clear)), 16, 3)
    assert np.all(image == 1) and "white" in done


def test_sixteen_bits_and_exif_rotation(tmp_path):
    deep = _ramp(8, 8).astype(np.uint16) * 257
    assert np.array_equal(images.decode(_save(tmp_path / "deep.png", deep))[..., 0], _ramp(8, 8))
    tag = Image.Exif()
    tag[0x0112] = 6  # the camera was held sideways
    turned = images.decode(_save(tmp_path / "turned.png", _ramp(6, 10), exif=tag))
    assert np.array_equal(turned[..., 0], np.rot90(_ramp(6, 10), -1))


def test_a_folder_of_mixed_sizes(tmp_path):
    for name, h, w in (("b.png", 40, 30), ("a.jpg", 20, 20), ("A.PNG", 16, 16)):
        _save(tmp_path / name, _ramp(h, w, 3))
    _save(tmp_path / ".hidden.png", _ramp(5, 5))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "below").mkdir()
    got = images.load(tmp_path, size=16, channels=3)
    assert got.names == ["A", "a", "b"] and [x.shape for x in got.images] == [(16, 16, 3)] * 3
    assert any("notes.txt" in n and "below" in n for n in got.notes)
    assert any(n.startswith("b.png: 30x40 -> centre crop 30x30") for n in got.notes)
    assert not any("A.PNG" in n or "hidden" in n for n in got.notes)
    assert len(images.load(tmp_path, size=16, channels=3, limit=2)) == 2


def test_names_stay_unique(tmp_path):
    _save(tmp_path / "a.png", _ramp(8, 8))
    _save(tmp_path / "a.bmp", _ramp(8, 8))
    assert images.load(tmp_path, size=8, channels=1).names == ["a", "a-2"]


def test_bad_files_are_one_line_errors_that_name_them(tmp_path):
    whole = _save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).read_bytes()
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not\nan image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "nothing").mkdir()
    cases = [
        (tmp_path / "absent.png", "does not exist", "absent.png"),
        (folder / "cut.png", "cannot be read", "cut.png"),
        (folder, "cannot be read", "cut.png"),
        (tmp_path / "text.jpg", "not an image", "text.jpg"),
        (tmp_path / "empty.png", "not an image", "empty.png"),
        (tmp_path / "nothing", "no images", "nothing"),
        ("bundled:fasion", "did you mean 'fashion'", "fasion"),
    ]
    for source, message, name in cases:
        with pytest.raises(UserError, match=message) as error:
            images.load(source, size=16, channels=3)
        assert "\n" not in str(error.value) and name in str(error.value)


def test_bundled_images():
    x, labels = bundled.images("fashion")
    assert x.shape == (32, 32, 32, 1) and x.dtype == np.float32 and x.min() == -1 and x.max() == 1
    assert labels.tolist() == [j % 10 for j in range(32)]
    assert np.all(x[:, :2] == -1) and np.all(x[:, 30:] == -1) and np.all(x[:, :, :2] == -1)
    assert np.array_equal(images.load("bundled", size=32, channels=1, limit=4).images, x[:4])
    colour = images.load("bundled", size=48, channels=3, limit=1)
    assert colour.images[0].shape == (48, 48, 3) and len(colour.notes) == 1 and colour.labels == [0]
    with pytest.raises(ValueError, match="'fashion'"):
        bundled.images("fashoin")


def test_an_output_folder_is_whole_or_absent(tmp_path):
    target = tmp_path / "deep" / "out"
    outputs.check_writable(target)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), outputs.output_folder(target) as folder:
        (folder / "half.txt").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    for text in ("first", "second"):  # our own earlier output is replaced
        with outputs.output_folder(target) as folder:
            (folder / f"{text}.txt").write_text(text)
            assert not (target / f"{text}.txt").exists()
        assert [p.name for p in target.iterdir() if p.name[0] != "."] == [f"{text}.txt"]
    with pytest.raises(RuntimeError), outputs.output_folder(target):
        raise RuntimeError
    assert (target / "second.txt").read_text() == "second"
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def test_folders_of_others_files_and_impossible_places_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for path, message in ((tmp_path, "other files"), (tmp_path / "thesis.tex", "is a file"),
                          (tmp_path / "thesis.tex" / "out", "cannot be written")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            outputs.check_writable(path)
        with pytest.raises(UserError, match=message), outputs.output_folder(path):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_programs_end_with_one_line_and_code_2(capsys):
    def bad():
        raise UserError("first\nsecond")

    assert errors.run(bad) == 2
    assert capsys.readouterr().err == "error: first second\n"
    assert errors.run(lambda: None) == 0
    with pytest.raises(ValueError):  # a bug is not the user's fault: it keeps its traceback
        errors.run(lambda: int("x"))
    with pytest.raises(ValueError) as bug, errors.library_errors():
        int("x")
    assert not isinstance(bug.value, UserError)
    unknown = lambda: bundled.images("nothing")  # a ValueError of the library is one line about what it was given
    with pytest.raises(UserError, match="method: unknown bundled"), errors.library_errors("method: "):
        unknown()
    assert errors.run(unknown) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: unknown bundled image set 'nothing'") and said.count("\n") == 1


def test_a_package_that_is_missing(monkeypatch, tmp_path):
    """Said in one line with what to install; another error of an import is a bug."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match="needs PIL, which is not installed: pip install pillow"):
        images.save_png(tmp_path / "a.png", np.zeros((4, 4)))
    with pytest.raises(ImportError) as bug, errors.needs("x", "y"):
        from diffjax.zoo import not_there  # noqa: F401
    assert not isinstance(bug.value, UserError)


def test_table_is_aligned_markdown():
    text = tables.render(
        [
            {"method": "repaint", "psnr": 15.321, "calls": 28000},
            {"method": "a|b", "psnr": None, "lpips": 0.0123},
        ]
    )
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split("|")[1:-1] == [" method  ", "  psnr ", "  calls ", "  lpips "]
    assert "15.32" in lines[2] and "28,000" in lines[2] and "a\\|b" in lines[3] and "0.0123" in lines[3]
    assert tables.render([{"b": 1, "a": 2}], ["a", "b"]).splitlines()[2].split() == ["|", "2", "|", "1", "|"]


def test_biharmonic_keeps_known_pixels_and_continues_a_plane():
    pytest.importorskip("skimage")
    y = (np.add.outer(np.linspace(-0.5, 0.5, 20), np.linspace(-0.4, 0.4, 20))[..., None] * [1, -1, 0.5]).astype(np.float32)
    mask = np.ones((20, 20), np.float32)
    mask[6:13, 5:14] = 0
    filled = baselines.biharmonic(np.where(mask[..., None] == 1, y, 9.0), mask)  # what is hidden is never looked at
    assert filled.dtype == np.float32 and np.array_equal(filled[mask == 1], y[mask == 1])
    assert np.abs(filled - y).max() < 1e-3
    with pytest.raises(ValueError, match="biharmonic"):
        baselines.biharmonic(y, mask[:10])


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_output_folder_is_readable_by_others_as_the_umask_says(tmp_path):
    (tmp_path / "usual").mkdir()
    with outputs.output_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


# --- masks in files -------------------------------------------------------------------------------------------------


def test_png_white_is_known_threshold_128(tmp_path):
    grey = np.array([[0, 127], [128, 255]], np.uint8)
    path = _save(tmp_path / "m.png", grey)
    assert np.array_equal(images.mask(path, (2, 2)), [[0, 0], [1, 1]])
    assert np.array_equal(images.mask(path, (2, 2), invert=True), [[1, 1], [0, 0]])
    assert np.array_equal(images.mask(_save(tmp_path / "rgb.png", np.stack([grey] * 3, -1)), (2, 2)), [[0, 0], [1, 1]])
    rgba = np.stack([grey] * 3 + [np.full_like(grey, 255)], -1)
    assert np.array_equal(images.mask(_save(tmp_path / "rgba.png", rgba), (2, 2)), [[0, 0], [1, 1]])
    assert np.array_equal(images.mask(_save(tmp_path / "bit.png", grey > 127), (2, 2)), [[0, 0], [1, 1]])


def test_bad_mask_files_are_one_line_errors(tmp_path):
    grey = np.array([[0, 255, 0], [255, 0, 255]], np.uint8)
    good = _save(tmp_path / "good.png", grey)
    cases = {
        "does not exist": (tmp_path / "none.png", (2, 3)),
        "3x2 but the images are 2x2": (good, (2, 2)),
        "has colours": (_save(tmp_path / "rgb.png", np.stack([grey, grey, 255 - grey], -1)), (2, 3)),
        "transparent": (_save(tmp_path / "a.png", np.stack([grey, grey, grey, grey], -1)), (2, 3)),
        "nothing known": (_save(tmp_path / "black.png", 0 * grey), (2, 3)),
        "nothing to fill": (_save(tmp_path / "white.png", 0 * grey + 255), (2, 3)),
    }
    cases["largest value is 1 of 255.*multiply it by 255"] = (_save(tmp_path / "01.png", grey // 255), (2, 3))
    (tmp_path / "text.png").write_text("hello")
    cases["not an image"] = (tmp_path / "text.png", (2, 3))
    for message, (path, shape) in cases.items():
        with pytest.raises(UserError, match=message) as error:
            images.mask(path, shape)
        assert "\n" not in str(error.value) and path.name in str(error.value)
