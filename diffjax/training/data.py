"""Data for training: images from idx files, .npz or a folder of pictures, in memory as uint8; and any examples as batches,
shuffled by (seed, epoch) alone.

A batch is a function of the step number: nothing has to be saved to resume a run, and every host computes the same
permutation and takes its own rows of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .. import pictures
from ..base import nearest
from ..wording import reading

TOKENS = ("tokens", "boxes", "classes")  # of a condition of words and boxes
IDX_HINT = (
    "Fashion-MNIST's four idx files come with the Debian package dataset-fashion-mnist "
    "(apt-get install dataset-fashion-mnist puts them into /usr/share/datasets/fashion-mnist)"
)


@dataclasses.dataclass(frozen=True)
class Images:
    """train, test: (N, H, W, C) uint8; labels (N,) int32, or None, or another condition, {name: (N, ...)}; names: of the
    classes, or (); notes: a sentence for each thing that was done to pictures or left out."""

    train: np.ndarray
    train_labels: Any
    test: np.ndarray
    test_labels: Any
    names: tuple = ()
    notes: tuple = ()

    def examples(self, part="train", rows=slice(None)) -> dict:
        """{"x": images, "cond": labels} of a part, without "cond" where there are no labels."""
        x, y = (self.train, self.train_labels) if part == "train" else (self.test, self.test_labels)
        return {"x": x[rows]} | ({} if y is None else {"cond": jax.tree.map(lambda a: a[rows], y)})


def scale(images):
    """uint8 0..255 -> float32 [-1, 1] (x / 127.5 - 1); numpy or JAX."""
    return images.astype(np.float32) / 127.5 - 1


def decode(example, key=None):
    """8-bit images of an example (uint8 of three or more axes: (H, W, C), (D, H, W, C)) to float32 in [-1, 1]; all else,
    labels and tokens among it, as it is."""
    return jax.tree.map(lambda a: scale(a) if np.ndim(a) >= 3 and a.dtype == np.uint8 else a, example)


# --- reading ------------------------------------------------------------------------------------------------------


@reading()
def load(path, *, size: int, channels: int = 1, fit: str = "pad", holdout: int = 512, classes: int = 0,
         tokens: bool = False) -> Images:  # fmt: skip
    """Read a data set.

    path:     folder with idx files (``train-images-idx3-ubyte[.gz]`` ...), folder of pictures (``train/`` and
              ``test/`` if there are such; sub-folders, or links to folders, are classes, hidden ones are not), or ``.npz``
              with ``x_train, x_test`` or ``x`` (uint8, (N, H, W[, C]); labels ``y_train, y_test`` or ``y``, whole numbers)
    size:     side of the images returned. ``fit="pad"`` centres smaller images on black; ``fit="resize"`` brings the
              shorter side to ``size`` and crops the centre
    holdout:  images set aside (the same for every run) where the data has no test part
    classes:  labels must exist and lie in 0..classes - 1; 0: labels are dropped
    tokens:   the condition is words and boxes, of an .npz: what it has of ``tokens_train``, ``boxes_train``, ``classes_train``
              and the same of ``test``, in place of labels
    Raises ValueError, in one line, for whatever is missing, unreadable or of the wrong kind.
    """
    if fit not in ("pad", "resize"):
        raise ValueError(f"fit {fit!r} is unknown: {nearest(fit, ('pad', 'resize'))}")
    path = pathlib.Path(path)
    if not path.exists():
        raise ValueError(f"data {path} does not exist: give a folder of idx files or pictures, or an .npz. {IDX_HINT}")
    prepare = functools.partial(_prepare, size=size, channels=channels, fit=fit)
    notes: list[str] = []
    if path.is_dir():
        read = _read_idx if any(path.glob("*-ubyte*")) else functools.partial(_read_pictures, classes=classes, notes=notes)
    elif path.suffix == ".npz":
        read = _read_npz
    else:
        raise ValueError(f"data {path} is neither a folder nor an .npz file")
    train, train_labels, test, test_labels, names = read(path, prepare)
    if tokens:
        return Images(train, *_tokens(path, "train"), test, *_tokens(path, "test"), notes=tuple(notes))
    train_labels = _labels(train_labels, train, "train", path, classes)
    test_labels = None if test is None else _labels(test_labels, test, "test", path, classes)
    if test is None:
        train, train_labels, test, test_labels = _hold_out(train, train_labels, holdout, path)
    return Images(train, train_labels, test, test_labels, names, tuple(notes))


def _labels(labels, images, part, path, classes):
    """(N,) int32 of a part, or None where no classes are asked for. ValueError for what is no label of each image."""
    if not len(images):
        raise ValueError(f"data {path} has no {part} images: leave out x_{part}, or give some")
    if not classes:
        return None
    if labels is None:
        raise ValueError(f"data {path} has no {part} labels: use classes=0, or one sub-folder per class")
    if labels.shape != images.shape[:1]:
        hint = ": of one-hot labels take argmax(1)" if labels.ndim == 2 and labels.shape[0] == len(images) else ""
        raise ValueError(
            f"{path} has {part} labels of shape {labels.shape} for {len(images)} images, one for each is needed{hint}"
        )
    whole = labels.dtype.kind in "iu" or (labels.dtype.kind == "f" and np.all(labels == np.rint(labels)))  # NaN is not
    if not whole:
        raise ValueError(f"{path} has {part} labels of {labels.dtype} that are no whole numbers: number the classes from 0")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{path} has {part} labels from {labels.min()} to {labels.max()}: classes={classes} wants 0..{classes - 1}"
        )
    return labels.astype(np.int32)


def _hold_out(x, y, count, path):
    if not 0 < count < len(x):
        raise ValueError(f"data {path} has {len(x)} images and no test part: holding out {count} leaves none to train on")
    order = np.random.default_rng(0).permutation(len(x))
    test, train = np.sort(order[:count]), np.sort(order[count:])
    return x[train], None if y is None else y[train], x[test], None if y is None else y[test]


def _read_idx_file(path):
    """One idx file: two zero bytes, the type (8 = unsigned byte), the number of axes, big-endian sizes, data."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}). {IDX_HINT}") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of unsigned bytes (magic {raw[:4].hex()}, expected 0000080n). {IDX_HINT}")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", min(raw[3], (len(raw) - 4) // 4), 4))
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape))
    if len(shape) != raw[3] or values.size != np.prod(shape):
        raise ValueError(f"{path} is cut short: its head says {shape}, {values.size} bytes follow: copy the file again")
    return values.reshape(shape)


def _read_idx(folder, prepare):
    def find(stem, needed=True):
        for name in (stem, stem + ".gz", stem.replace("-idx", ".idx"), stem.replace("-idx", ".idx") + ".gz"):
            if (folder / name).is_file():
                return _read_idx_file(folder / name)
        if needed:
            raise ValueError(f"{folder} has no {stem}[.gz]. {IDX_HINT}")
        return None

    parts = []
    for part in ("train", "t10k"):
        x, y = find(f"{part}-images-idx3-ubyte"), find(f"{part}-labels-idx1-ubyte", needed=False)
        if x.ndim != 3 or (y is not None and y.shape != x.shape[:1]):
            raise ValueError(f"{part} of {folder}: images {x.shape} and labels {np.shape(y)} do not belong together")
        parts += [prepare(x[..., None], folder), y]
    return (*parts, ())


def _read_npz(path, prepare):
    try:
        with np.load(path, allow_pickle=False) as archive:
            data = {k: archive[k] for k in archive.files if k in ("x", "y", "x_train", "y_train", "x_test", "y_test")}
    except Exception as error:  # zipfile, zlib, lzma and numpy each have their own
        raise ValueError(f"{path} cannot be read as .npz ({error})") from None
    x = data.get("x_train", data.get("x"))
    if x is None:
        raise ValueError(f"{path} has neither x_train nor x: store uint8 images (N, H, W, C) under one of these names")
    y, test, test_y = data.get("y_train", data.get("y")), data.get("x_test"), data.get("y_test")
    return prepare(x, path), y, None if test is None else prepare(test, path), test_y, ()


def _tokens(path, part):
    """[{name: array}] of words and boxes. Raises ValueError where there are none."""
    with np.load(path, allow_pickle=False) if path.suffix == ".npz" else contextlib.nullcontext() as archive:
        found = {} if archive is None else {
            name: archive[f"{name}_{part}"] for name in TOKENS if f"{name}_{part}" in archive.files
        }  # fmt: skip
    if not found:
        raise ValueError(f"data {path} has no words or boxes (tokens_{part}, boxes_{part}, classes_{part}): use an .npz that "
                         "has them, as experiments/orchard.py makes it")  # fmt: skip
    return [{name: a if name == "boxes" else a.astype(np.int32) for name, a in found.items()}]


def vocabulary(path) -> dict | None:
    """What an .npz of words and boxes says of their numbers ("vocabulary", JSON), or None."""
    if pathlib.Path(path).suffix != ".npz" or not pathlib.Path(path).is_file():
        return None
    with np.load(path, allow_pickle=False) as archive:
        return json.loads(str(archive["vocabulary"])) if "vocabulary" in archive.files else None


def drop_parts(example, key, share):
    """An example told words and boxes, with only the one or only the other in ``share`` of all cases."""
    u, cond = jax.random.uniform(key), dict(example["cond"])
    for name, a in cond.items():
        lost = u < share / 2 if name == "tokens" else (u >= share / 2) & (u < share)
        cond[name] = jax.numpy.where(lost, jax.numpy.zeros_like(a), a)
    return {**example, "cond": cond}


def _read_pictures(folder, prepare, classes, notes):
    tree = functools.partial(_read_tree, prepare=prepare, classes=classes, notes=notes)
    if (folder / "train").is_dir():
        x, y, names = tree(folder / "train")
        if not (folder / "test").is_dir():
            return x, y, None, None, names
        test, test_y, test_names = tree(folder / "test")
        if test_names != names:
            raise ValueError(f"{folder}: the class folders of train/ {names} and test/ {test_names} differ")
        return x, y, test, test_y, names
    x, y, names = tree(folder)
    return x, y, None, None, names


def _read_tree(folder, prepare, classes, notes):
    """The pictures of a folder: all loose, or all in class folders. What is hidden is left out. A class folder may be a link;
    links below it are not followed, so that there is an end."""
    inside = sorted(p for p in folder.iterdir() if not pictures.hidden(p.name))
    loose = [p for p in inside if pictures.is_picture(p)]
    within = {p.name: _below(p) for p in inside if p.is_dir()}
    for p in inside:
        if p.is_symlink() and p.is_dir() and folder.resolve().is_relative_to(p.resolve()):
            raise ValueError(f"class folder {p} is a link to the folder that it lies in: remove it")
    empty = [name for name, files in within.items() if not files]
    names = tuple(name for name in within if within[name])
    if not loose and not names:
        raise ValueError(f"{folder} has no pictures ({' '.join(pictures.EXTENSIONS)}) and no idx files. {IDX_HINT}")
    if names and loose:
        raise ValueError(f"{folder} has class folders and loose pictures such as {loose[0].name}: move these into folders")
    if empty and classes:
        raise ValueError(f"class folder {folder / empty[0]} has no pictures: put some into it, or remove it")
    if classes and names and len(names) != classes:
        few = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
        raise ValueError(f"{folder} has {len(names)} class folders ({few}): classes={classes} wants as many, "
                         f"labels from 0 to {classes - 1}")  # fmt: skip
    other = [p.name for p in inside if not p.is_dir() and p not in set(loose)] + empty
    if other:
        notes.append(f"left out {len(other)} that are no pictures: {', '.join(other[:3])}{', ...' * (len(other) > 3)}")
    images, labels, done = [], [], {}
    for label, files in enumerate([loose] if loose else [within[name] for name in names]):
        for file in files:
            pixels, said = pictures.read(file)
            if pixels.shape[-1] in (2, 4):
                pixels, through = pictures.over_white(pixels)
                said += ["transparency laid over white"] * through
            for note in said:
                done.setdefault(note, []).append(file.name)
            images.append(prepare(pixels[None], file)[0])
            labels.append(label)
    for note, files in done.items():
        notes.append(f"{files[0]}{f' and {len(files) - 1} more' * (len(files) > 1)}: {note}")
    return np.stack(images), np.asarray(labels) if names else None, names


def _below(folder):
    """All pictures in a folder and below, in the order of their paths, without what is hidden."""
    found = []
    for place, folders, files in os.walk(folder):  # links to folders are not walked into
        folders[:] = [name for name in folders if not pictures.hidden(name)]
        found += [path for name in files if pictures.is_picture(path := pathlib.Path(place, name))]
    return sorted(found)


def _prepare(x, path, *, size, channels, fit):
    """uint8 (N, h, w[, c]) -> (N, size, size, channels)."""
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.ndim != 4:
        raise ValueError(f"images of {path} are {x.dtype} {x.shape}: uint8 (N, H, W[, C]) is needed")
    if x.shape[-1] != channels:
        if x.shape[-1] == 3 and channels == 1:
            x = np.rint(x @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None]
        elif x.shape[-1] == 1:
            x = np.repeat(x, channels, -1)
        else:
            raise ValueError(f"images of {path} have {x.shape[-1]} channels: use channels={x.shape[-1]}")
    height, width = x.shape[1:3]
    if not height or not width:
        raise ValueError(f"images of {path} are {height}x{width}: they have no pixels")
    if (height, width) == (size, size):
        return x
    if fit == "resize":
        return _resize(x, size)
    if height > size or width > size:
        raise ValueError(
            f"images of {path} are {height}x{width}, larger than size={size}: use fit=resize or size={max(height, width)}"
        )
    top, left = (size - height) // 2, (size - width) // 2
    return np.pad(x, ((0, 0), (top, size - height - top), (left, size - width - left), (0, 0)))


def _resize(x, size):
    """Shorter side to ``size`` (antialiased), centre crop."""
    from PIL import Image

    height, width = x.shape[1:3]
    factor = size / min(height, width)
    shape = max(size, round(width * factor)), max(size, round(height * factor))
    left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
    out = np.empty((len(x), size, size, x.shape[-1]), np.uint8)
    for i, image in enumerate(x):
        for c in range(x.shape[-1]):
            plane = np.asarray(Image.fromarray(image[..., c]).resize(shape, Image.Resampling.LANCZOS))
            out[i, ..., c] = plane[top : top + size, left : left + size]
    return out


# --- order --------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _permutation(count, seed, epoch):
    return np.random.default_rng((seed, epoch)).permutation(count)


def indices(count: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Which of ``count`` images make the batch of ``step`` (0, 1, ...): (batch,). Every epoch is a permutation of its
    own and shows every image once; a batch may straddle two epochs."""
    epochs, places = np.divmod(step * batch + np.arange(batch), count)
    return np.concatenate([_permutation(count, seed, int(e))[places[epochs == e]] for e in np.unique(epochs)])


def mirrored(batch: dict) -> dict:
    """A batch of images "x" (N, H, W, C) with left and right exchanged. ValueError where "x" has no such axes, or where the
    condition is more than labels or tokens: boxes and images would have to be mirrored too."""
    if np.ndim(batch["x"]) < 4 or any(np.ndim(a) >= 3 for a in jax.tree.leaves(batch.get("cond"))):
        raise ValueError("flip=True mirrors images x and nothing else: pass flip=f, a function that mirrors a whole batch")
    return {**batch, "x": batch["x"][..., ::-1, :]}


@dataclasses.dataclass(frozen=True)
class Stream:
    """Batches of examples by step number; ``batch`` counts the examples of all hosts, each host gets its share.

    examples: a pytree of arrays, one example per row: {"x": images, "cond": labels} as ``Images.examples`` makes it, pairs,
              volumes, tokens, moments of latents. Anything that numpy indexes by rows will do, such as ``np.memmap``. What
              is stored reaches the loss as it is: decoding is the loss's (``step.example_loss``)
    flip:     exchange left and right in half of the examples, chosen by (seed, step): True for images without a condition
              that has a left and a right (:func:`mirrored`), or a function from a batch to its mirror image
    Raises ValueError if the hosts do not divide ``batch``, and for arrays of different lengths or without rows.
    """

    examples: Any
    batch: int
    seed: int = 0
    flip: bool | Callable = False
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self):
        if self.batch < 1 or self.batch % self.process_count:
            raise ValueError(f"batch {self.batch} is not divisible by {self.process_count} hosts: use a positive multiple")
        lengths = {len(a) for a in jax.tree.leaves(self.examples)}
        if len(lengths) > 1:
            raise ValueError(f"the arrays of the examples have {sorted(lengths)} rows: give one row for each example in all")
        if not lengths or not self.count:
            raise ValueError("there are no training examples")

    @property
    def count(self) -> int:
        return len(jax.tree.leaves(self.examples)[0])

    def __call__(self, step: int):
        """-> the examples' pytree with leading axes batch / hosts."""
        share = self.batch // self.process_count
        mine = slice(self.process_index * share, (self.process_index + 1) * share)
        chosen = indices(self.count, self.batch, step, self.seed)[mine]
        batch = jax.tree.map(lambda a: np.asarray(a[chosen]), self.examples)
        if not self.flip:
            return batch
        flipped = np.random.default_rng((self.seed, step, 1)).random(self.batch)[mine] < 0.5
        other = (mirrored if self.flip is True else self.flip)(batch)
        return jax.tree.map(lambda a, b: np.where(flipped.reshape(-1, *(1,) * (a.ndim - 1)), b, a), batch, other)
