"""experiments.fruits on a tiny repository laid out like the real one, its list of sources, and the images that ship."""

import io
import shutil
import urllib.error
import zipfile

import numpy as np
import pytest

from diffjax.cli import images
from diffjax.zoo import bundled
from experiments import fruits
from experiments.configs.fruits32 import config

Image = pytest.importorskip("PIL.Image")
NAMES = (
    "Training/Tomato/Tomato 2/r0_0_100.jpg",
    "Training/Apple/Apple 1/r0_90_100.jpg",
    "Training/Apple/Apple 1/r0_0_100.jpg",
    "Test/Cherry/Cherry 3/7_100.jpg",
)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A clone of it, with one file more than the list asks for."""
    rng = np.random.default_rng(0)
    for n, name in enumerate((*NAMES, "Test/Cherry/Cherry 3/8_100.jpg")):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((100, 100))
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.save(path, quality=80 + n)
    listed = tmp_path / "list.txt"
    listed.write_text("# a comment\n" + "\n".join(NAMES) + "\n")
    monkeypatch.setattr(fruits, "SOURCES", listed)
    return tmp_path / "clone"


def as_zip(repository):
    return shutil.make_archive(str(repository), "zip", repository.parent, repository.name)  # one folder at its top


def read(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["fruits32.npz", "fruits64.npz"]
    return [dict(np.load(folder / f"fruits{size}.npz", allow_pickle=False)) for size in (32, 64)]


def test_the_arrays(repository, tmp_path, capsys):
    assert fruits.main(["--source", str(repository), "--out", str(tmp_path / "new" / "data")]) == 0
    small, large = read(tmp_path / "new" / "data")
    for data in (small, large):
        assert data["y_train"].tolist() == [2, 0, 0] and data["y_test"].tolist() == [1]
        assert data["varieties"].tolist() == ["Apple 1", "Cherry 3", "Tomato 2"]
        assert data["variety_train"].tolist() == [2, 0, 0] and data["variety_test"].tolist() == [1]
    images = np.concatenate([large["x_train"], large["x_test"]])
    for name, image in zip(NAMES, images, strict=True):
        np.testing.assert_array_equal(image, Image.open(repository / name).resize((64, 64), Image.Resampling.LANCZOS))
    means = images[:, ::2, ::2] / 4 + images[:, 1::2, ::2] / 4 + images[:, ::2, 1::2] / 4 + images[:, 1::2, 1::2] / 4
    halved = np.concatenate([small["x_train"], small["x_test"]])
    assert halved.dtype == np.uint8 and np.abs(halved - means).max() == 0.5  # quarters: a half is rounded somewhere
    assert "not quite those" in capsys.readouterr().out


def test_a_zip_gives_the_same(repository, tmp_path, monkeypatch, capsys):
    packed = as_zip(repository)
    fruits.main(["--source", str(repository), "--out", str(tmp_path / "a")])
    assert fruits.main(["--source", packed, "--out", str(tmp_path / "b")]) == 0
    answer = lambda url, timeout: open(packed, "rb") if fruits.COMMIT in url else None
    monkeypatch.setattr("urllib.request.urlopen", answer)
    assert fruits.main(["--out", str(tmp_path / "c")]) == 0
    assert "downloading https://github.com" in capsys.readouterr().out
    for other in "bc":
        for one, two in zip(read(tmp_path / "a"), read(tmp_path / other)):
            assert one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


def spoil(kind, repository):
    """-> the source given, after something was broken."""
    file = repository / NAMES[1]
    if kind == "missing":
        file.unlink()
    if kind in ("cut", "cut in a zip"):
        file.write_bytes(file.read_bytes()[:600])
    if kind == "text":
        file.write_text("<html>404</html>")
    if kind == "small":
        Image.new("RGB", (50, 100)).save(file)
    if kind == "elsewhere":
        (repository / "Training").rename(repository / "Validation")
    if kind == "cut in a zip":
        return as_zip(repository)
    if kind in ("no zip", "half a zip"):
        packed = as_zip(repository)
        whole = open(packed, "rb").read()
        with open(packed, "wb") as out:
            out.write(whole[: len(whole) // 2] if kind == "half a zip" else b"hello")
        return packed
    return str(repository / "nowhere") if kind == "nowhere" else str(repository)


@pytest.mark.parametrize(
    "kind, said",
    [
        ("missing", f"lacks 1 of 4 files, the first {NAMES[1]}"),
        ("cut", f"{NAMES[1]} cannot be read"),
        ("cut in a zip", f"{NAMES[1]} cannot be read"),
        ("text", f"{NAMES[1]} cannot be read"),
        ("small", "50x100, not 100x100"),
        ("elsewhere", "no folders Training and Test"),
        ("no zip", "not a whole zip"),
        ("half a zip", "not a whole zip"),
        ("nowhere", "does not exist"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(kind, said, repository, tmp_path, capsys):
    given, out = spoil(kind, repository), tmp_path / "out"
    out.mkdir()
    (out / "fruits32.npz").write_bytes(b"an older one")
    capsys.readouterr()
    assert fruits.main(["--source", given, "--out", str(out)]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("reading")]
    assert len(error) == 1 and said in error[0] and "https://github.com" in error[0]
    assert [p.name for p in out.iterdir()] == ["fruits32.npz"] and (out / "fruits32.npz").read_bytes() == b"an older one"


def test_no_network(tmp_path, monkeypatch, capsys):
    def refuse(url, timeout):
        raise urllib.error.URLError("Name or service not known")

    def break_off(url, timeout):
        class Answer(io.BytesIO):
            def read(self, *_):
                raise TimeoutError("timed out")

        return Answer()

    for answer, said in ((refuse, "Name or service"), (break_off, "timed out")):
        monkeypatch.setattr("urllib.request.urlopen", answer)
        assert fruits.main(["--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert said in error and "--source" in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written(repository, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("kept")
    assert fruits.main(["--source", str(repository), "--out", str(tmp_path / "file")]) == 2

    def full(file, **arrays):
        file.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez_compressed", full)
    assert fruits.main(["--source", str(repository), "--out", str(tmp_path / "out")]) == 2
    assert "No space left" in capsys.readouterr().err and not list((tmp_path / "out").iterdir())


def test_the_list_of_sources():
    """Counts as the data's description states them; no variety is in both parts, nor are the two that leak."""
    names = [line.split("/") for line in fruits.SOURCES.read_text().splitlines() if not line.startswith("#")]
    assert len({tuple(n) for n in names}) == len(names) == 1666 + 128
    counts = {
        (part, kind): sum(n[:2] == [part, kind] for n in names) for part in ("Training", "Test") for kind in fruits.CLASSES
    }
    assert list(counts.values()) == [782, 408, 476, 56, 32, 40]
    train, test = ({n[2] for n in names if n[0] == part} for part in ("Training", "Test"))
    assert (len(train), len(test)) == (49, 16) and not train & test
    assert not {"Apple 21", "Apple 22"} & test
    assert config.data == "data/fruits32.npz" and (config.size, config.channels, config.classes) == (32, 3, 3)


def test_bundled_images_are_those_that_fit_the_prior():
    x, labels = bundled.images("fruits")
    found = images.load("bundled", size=32, channels=3, limit=4)
    np.testing.assert_array_equal(found.images, x[:4])
    assert found.labels == labels[:4].tolist() and found.names[0] == "fruits-00" and not found.notes
    assert images.load("bundled", size=32, channels=1, limit=1).names == ["fashion-00"]
    assert images.load("bundled:fruits", size=32, channels=1, limit=1).notes == ["bundled fruits: RGB -> grey"]


def test_the_images_that_ship_are_test_images():
    x, labels = bundled.images("fruits")
    assert x.shape == (16, 32, 32, 3) and x.dtype == np.float32 and x.min() >= -1 and x.max() == 1
    with zipfile.ZipFile(bundled._FOLDER / "fruits.npz") as archive:
        file = np.load(io.BytesIO(archive.read("sources.npy"))), np.load(io.BytesIO(archive.read("indices.npy")))
    listed = [line for line in fruits.SOURCES.read_text().splitlines() if line.startswith("Test/")]
    assert [listed[n] for n in file[1]] == file[0].tolist()
    _, kinds, varieties, _ = zip(*(str(name).split("/") for name in file[0]))
    assert [bundled.FRUITS_CLASSES[k] for k in labels] == [kind.lower() for kind in kinds] and len(set(varieties)) == 16
    assert labels[:4].tolist() == [0, 1, 2, 0]
    assert np.median(x[:, [0, 0, -1, -1], [0, -1, 0, -1]]) > 0.95  # corners are white: upright, RGB, not shifted
    credits = (bundled._FOLDER / "CREDITS.md").read_text()
    assert all(word in credits for word in ("fruits.npz", "Mihai Oltean", "CC BY-SA 4.0", "Changes made", fruits.COMMIT))
    assert "CC BY-SA 4.0" in (bundled._FOLDER / "LICENSE-fruits.txt").read_text()
