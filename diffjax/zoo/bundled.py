"""Real test images that ship with the library (licences and credits lie beside them in `images/`)."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np

_FOLDER = Path(__file__).parent / "images"
NAMES = ("fashion", "fruits", "fruits64")
FASHION_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"
)  # fmt: skip
FRUITS_CLASSES = ("apple", "cherry", "tomato")


def images(name: str = "fashion") -> tuple[np.ndarray, np.ndarray]:
    """A bundled set: (images float32 (N, H, W, C) in [-1, 1], 32x32 but for "fruits64", labels int64 (N,)). No shipped
    prior has seen them.

    "fashion": 32 grey images of the Fashion-MNIST test split. Image j is the (j // 10)-th test image of class
    j % 10, so the first four are a T-shirt, trousers, a pullover and a dress. Stored as 28x28 bytes; padded
    here with black to 32x32, as for training.
    "fruits": 16 colour images of Fruits-360, one of each variety kept apart for testing, on white: apple, cherry,
    tomato, apple, ... "fruits64": the same 16 at 64x64.
    Raises ValueError for another name.
    """
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)
        raise ValueError(f"unknown bundled image set {name!r}: the nearest is {close[0]!r} (valid: {', '.join(NAMES)})")
    with np.load(_FOLDER / f"{name}.npz", allow_pickle=False) as file:
        pixels, labels = file["images"], file["labels"]
    if pixels.ndim == 3:
        pixels = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))[..., None]
    return (pixels.astype(np.float32) / 127.5 - 1).astype(np.float32), labels.astype(np.int64)


def photograph() -> np.ndarray:
    """The bundled grey photograph: "Cameraman" by Lav Varshney (CC0), float32 (256, 256, 1) in [-1, 1]."""
    with np.load(_FOLDER / "cameraman.npz", allow_pickle=False) as file:
        return (file["image"][..., None].astype(np.float32) / 127.5 - 1).astype(np.float32)


def for_channels(channels: int, size: int | None = 32) -> str:
    """The set that fits a prior by its number of channels and the side of its images: "fruits" for colour, from 64 on
    "fruits64", "fashion" for grey."""
    if channels != 3:
        return "fashion"
    return "fruits64" if (size or 0) >= 64 else "fruits"
