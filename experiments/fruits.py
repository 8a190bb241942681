"""Build the colour data set from its public repository: ``python -m experiments.fruits``.

Fruits-360, "3-body problem" edition (Mihai Oltean, CC BY-SA 4.0): 1,666 training and 128 test images of apples, cherries
and tomatoes, no variety in both parts. The source files are listed, in order, in experiments/fruits_sources.txt. Leaves

  fruits64.npz  100x100 JPEG reduced to 64x64 (Lanczos), uint8
  fruits32.npz  2x2 averages of that, rounded: what the prior fruits32 is trained on

each with x_train, x_test (N, H, W, 3), y_train, y_test (0 apple, 1 cherry, 2 tomato), variety_train, variety_test
(indices into varieties). The licence is share-alike: it goes with the files.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import shutil
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

import numpy as np

from diffjax import pictures
from diffjax.cli import errors, options
from diffjax.cli.errors import UserError
from diffjax.cli.progress import Progress

COMMIT = "f0f029370699ac3317e66d09878cf537af67a3ae"
URL = f"https://github.com/fruits-360/fruits-360-3-body-problem/archive/{COMMIT}.zip"
SOURCES = Path(__file__).with_name("fruits_sources.txt")
CLASSES = ("Apple", "Cherry", "Tomato")
PARTS = {"train": "Training", "test": "Test"}
# SHA-256 of x_train and x_test, one after the other. JPEG decoders may differ by a grey level, hence said, not demanded.
KNOWN = {
    32: "7576140e17fb1f908bf94b7f0928716a5406b393ef86c25721abb2dce65cdf5e",
    64: "71c1e7503141904e722def2dea4adf75b29f27ac5de631b4d661752be98bb21a",
}


def main(argv=None) -> int:
    return errors.run(lambda: _main(argv))


def _main(argv) -> int:
    p = options.Parser("experiments.fruits", __doc__)
    p.add_argument("--source", metavar="PATH", help=f"the repository as a folder or zip (default: downloads {URL})")
    p.add_argument("--out", metavar="FOLDER", default="data", help="where the two files go (default: data)")
    o = p.parse(argv)
    names = [line for line in SOURCES.read_text().splitlines() if line and not line.startswith("#")]
    out = Path(o.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")
    with open_source(o.source) as source:
        large = build(source, names)
    small = {k: halve(v) if k.startswith("x_") else v for k, v in large.items()}
    for file in write(out, {"fruits64.npz": large, "fruits32.npz": small}):
        print(f"wrote {file}")
    same = all(digest(part) == KNOWN[size] for size, part in ((64, large), (32, small)))
    other = "not quite those the shipped prior was trained on: another JPEG decoder, or another list of sources"
    print("pixels: " + ("those the shipped prior was trained on" if same else other))
    return 0


# --- the repository -----------------------------------------------------------------------------------------------


class open_source:
    """A context manager: the repository's folder with Training/ and Test/, as a Path or zipfile.Path."""

    def __init__(self, source: str | None):
        self.source, self.open = source, []

    def __enter__(self):
        if self.source is None:
            folder = self._zip(self._download(), URL)
        elif (path := Path(self.source)).is_dir():
            folder = path
        elif path.is_file():
            folder = self._zip(path, path)
        else:
            raise UserError(f"--source {path} does not exist: give the repository as a folder or zip, from {URL}")
        inside = [folder, *sorted((p for p in folder.iterdir() if p.is_dir()), key=str)]  # a zip of GitHub has one folder
        for root in inside:
            if all((root / part).is_dir() for part in PARTS.values()):
                return root
        raise UserError(f"source {self.source or URL} has no folders Training and Test: get the repository from {URL}")

    def __exit__(self, *_):
        for file in self.open:
            file.close()

    def _zip(self, file, name):
        try:
            archive = zipfile.ZipFile(file)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"source {name} is not a whole zip ({errors.one_line(error)}): download {URL} again") from None
        archive.filename = str(name)  # what messages call it: a temporary file has none
        self.open.append(archive)
        return zipfile.Path(archive)

    def _download(self):
        print(f"downloading {URL}", flush=True)
        file = tempfile.TemporaryFile()
        self.open.append(file)
        try:
            with urllib.request.urlopen(URL, timeout=60) as answer:
                shutil.copyfileobj(answer, file, 1 << 20)
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and resets are OSErrors
            reason = getattr(error, "reason", error)
            raise UserError(f"no download from {URL} ({reason}): get it elsewhere and give the zip by --source") from None
        return file


# --- the images ---------------------------------------------------------------------------------------------------


def build(root, names) -> dict:
    """The arrays of fruits64.npz from the files ``names`` under ``root``. Raises UserError for any that does not fit."""
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise UserError(f"source {root} lacks {len(missing)} of {len(names)} files, the first {missing[0]}: get it from {URL}")
    labels = {name: name.split("/") for name in names}
    varieties = sorted({parts[2] for parts in labels.values()})
    data = {"varieties": np.array(varieties)}
    with Progress(len(names), label="reading", unit="images") as bar:
        for part, folder in PARTS.items():
            chosen = [name for name in names if labels[name][0] == folder]
            images = []
            for name in chosen:
                images.append(reduce(root / name))
                bar.update()
            data[f"x_{part}"] = np.stack(images)
            data[f"y_{part}"] = np.array([CLASSES.index(labels[name][1]) for name in chosen], np.uint8)
            data[f"variety_{part}"] = np.array([varieties.index(labels[name][2]) for name in chosen], np.uint8)
    return data


def reduce(path) -> np.ndarray:
    """uint8 (64, 64, 3) from a JPEG of 100x100."""
    from PIL import Image

    try:
        with pictures.opened(io.BytesIO(path.read_bytes())) as image:
            image = image.convert("RGB")
    except Exception as error:  # Pillow's decoders and zipfile raise OSError, SyntaxError, BadZipFile, zlib.error, ...
        raise UserError(f"{path} cannot be read ({errors.one_line(error)}): download the repository again, {URL}") from None
    if image.size != (100, 100):
        raise UserError(f"{path} is {image.width}x{image.height}, not 100x100: get the 100x100 edition, {URL}")
    return np.asarray(image.resize((64, 64), Image.Resampling.LANCZOS))


def halve(x: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, C) -> uint8 (N, H/2, W/2, C): 2x2 averages, halves rounded to even."""
    n, height, width, channels = x.shape
    return np.rint(x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))).astype(np.uint8)


def digest(data) -> str:
    return hashlib.sha256(data["x_train"].tobytes() + data["x_test"].tobytes()).hexdigest()


def write(folder: Path, files: dict) -> list[Path]:
    """Each {name: arrays} as a compressed .npz: all files are written before the first is put in its place."""
    ready = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, arrays in files.items():
            ready.append((folder / (name + ".tmp"), folder / name))
            with open(ready[-1][0], "wb") as file:
                np.savez_compressed(file, **arrays)
        return [temporary.replace(target) for temporary, target in ready]
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written ({error.strerror}): give another folder") from None
    finally:
        for temporary, _ in ready:
            temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
