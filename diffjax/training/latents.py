"""A data set encoded once: the moments of every image's latent, from which training draws anew at each step.

A draw frozen in a file would be noise that the diffusion model learns. With the moments go shift and scale of each channel,
measured over the whole training part so that z = (raw - shift) * scale has mean 0 and deviation 1: mean 0 and deviation 1 of
z itself, the spread of the means and the posteriors' variances together. Mirror images have moments of their own, because an
encoder does not commute with mirroring; crops have none and are refused.

Source: Rombach et al. 2022, arXiv:2112.10752, section D.1 (they measure one number on the first batch; here it is one for each
channel, over all images).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..autoencoder import draw
from ..base import replace

FORMAT = "diffjax latents 1"
DEVIATIONS = (0.5, 2.0)  # of z, between which a scale may be called right


@dataclasses.dataclass(frozen=True)
class Latents:
    """Moments of a data set, of raw latents: before shift and scale.

    train, test:  {"mean": (N, h, w, c), "logvar": the same or missing} of a part, float32
    train_flipped, test_flipped:  the same of the mirror images, or None
    train_cond, test_cond:  the condition of each image, an array or a dict of arrays, or None
    shift, scale: (c,)
    about:        what made them, as JSON can hold it: "autoencoder" (a fingerprint), "data", ...
    """

    train: dict
    test: dict
    train_flipped: dict | None
    test_flipped: dict | None
    train_cond: Any
    test_cond: Any
    shift: np.ndarray
    scale: np.ndarray
    about: dict

    @property
    def shape(self) -> tuple:
        """(h, w, c) of one latent."""
        return self.train["mean"].shape[1:]

    def count(self, part="train") -> int:
        return len(getattr(self, part)["mean"])

    def examples(self, part="train", rows=slice(None), flipped=False) -> dict:
        """{"x": moments of z, "cond": conditions} for :func:`decode`; with ``flipped`` also "flipped", for :func:`mirrored`.

        Raises ValueError if the mirror images are wanted and were not encoded.
        """
        cond = getattr(self, f"{part}_cond")
        out = {"x": self._normal(getattr(self, part), rows)}
        if cond is not None:
            out["cond"] = jax.tree.map(lambda a: a[rows], cond)
        if flipped:
            other = getattr(self, f"{part}_flipped")
            if other is None:
                raise ValueError("these latents were encoded without mirror images: encode with flip=True, or use flip=False")
            out["flipped"] = self._normal(other, rows)
        return out

    def normalise(self, autoencoder):
        """The autoencoder with this shift and scale."""
        return replace(autoencoder, shift=np.asarray(self.shift, np.float32), scale=np.asarray(self.scale, np.float32))

    def _normal(self, raw, rows):
        """Moments of z from those of raw."""
        shift, scale = (np.asarray(a, np.float32) for a in (self.shift, self.scale))
        out = {"mean": (raw["mean"][rows] - shift) * scale}
        if "logvar" in raw:
            out["logvar"] = raw["logvar"][rows] + 2 * np.log(np.abs(scale))
        return out


def decode(example, key):
    """{"x": moments, ...} -> {"x": z, ...}: a draw for one example; the mean where there is no variance. For
    ``step.example_loss(decode=...)``."""
    moments = example["x"]
    z = draw(key, moments["mean"], moments.get("logvar"))
    return {name: value for name, value in {**example, "x": z}.items() if name != "flipped"}


def mirrored(batch: dict) -> dict:
    """A batch of ``Latents.examples(flipped=True)`` with the moments of the mirror images in the first place, for
    ``data.Stream(flip=...)``. ValueError where there are none."""
    if "flipped" not in batch:
        raise ValueError("a mirrored latent is not the latent of the mirror image: take examples(flipped=True)")
    return {**batch, "x": batch["flipped"], "flipped": batch["x"]}


# --- making them --------------------------------------------------------------------------------------------------


def encode(autoencoder, images, *, flip=False, scale=None, batch=64, about=None, report=None) -> Latents:
    """Encode ``images`` (a ``data.Images``) by ``autoencoder``, whose own shift and scale are left aside.

    flip:    also the mirror images: twice the work and the file
    scale:   of all channels, with shift 0 (a published factor, 1 for codebooks); None: measured
    batch:   images at once; devices share it
    report:  called with the number of images done
    Raises ValueError for a given scale that contradicts the data (:func:`check`), and where latents are not finite.
    """
    raw = replace(autoencoder, shift=0.0, scale=1.0)
    run = jax.jit(lambda raw, x: raw.moments(x))
    done = 0

    def part(x):
        nonlocal done
        found = []
        for start in range(0, len(x), batch):
            rows = np.arange(start, start + batch) % len(x)  # the last batch is filled up: one compile
            found.append(jax.tree.map(np.asarray, run(raw, x[rows].astype(np.float32) / 127.5 - 1)))
            done += min(batch, len(x) - start)
            if report:
                report(done)
        joined = [None if a[0] is None else np.concatenate(a)[: len(x)].astype(np.float32) for a in zip(*found)]
        if not all(np.isfinite(a).all() for a in joined if a is not None):
            raise ValueError("the latents are not finite: the autoencoder is damaged or diverged, train it again")
        return {name: a for name, a in zip(("mean", "logvar"), joined) if a is not None}

    train, test = part(images.train), part(images.test)
    mirror = lambda x: part(x[:, :, ::-1]) if flip else None
    if scale is None:
        shift, factor = measure(train)
    else:
        channels = train["mean"].shape[-1]
        shift, factor = np.zeros(channels), np.broadcast_to(np.asarray(scale, np.float64), (channels,)).copy()
    made = Latents(train, test, mirror(images.train), mirror(images.test), images.train_labels, images.test_labels,
                   shift, factor, about or {})  # fmt: skip
    check(made)
    return made


def measure(moments) -> tuple[np.ndarray, np.ndarray]:
    """(shift, scale), each (c,), float64: z of these moments has mean 0 and deviation 1 in every channel.

    Raises ValueError for a channel that never changes.
    """
    mean, std = deviation(moments)
    if np.any(std < 1e-6):
        raise ValueError(f"channels {np.flatnonzero(std < 1e-6).tolist()} of the latents never change: the autoencoder does "
                         "not use them, give it fewer channels or train it longer")  # fmt: skip
    return mean, 1 / std


def deviation(moments) -> tuple[np.ndarray, np.ndarray]:
    """(mean, deviation) of each channel of what is drawn from these moments, float64: the variance is that of the means
    plus the mean of the variances."""
    flat = moments["mean"].reshape(-1, moments["mean"].shape[-1])
    mean, variance = flat.mean(0, dtype=np.float64), flat.var(0, dtype=np.float64)
    if "logvar" in moments:
        variance = variance + np.exp(moments["logvar"].astype(np.float64)).reshape(flat.shape).mean(0)
    return mean, np.sqrt(variance)


def check(latents: Latents) -> None:
    """ValueError, one line, if z of the training part has a deviation far from 1: its scale contradicts the data."""
    _, std = deviation(latents.train)
    z = float(np.sqrt(np.mean((std * np.asarray(latents.scale)) ** 2)))
    if not DEVIATIONS[0] <= z <= DEVIATIONS[1]:
        given = float(np.mean(np.abs(latents.scale)))
        raise ValueError(f"latents have standard deviation {z:.3g} after the scale {given:.4g}, where a prior wants about 1: "
                         f"use scale {given / z:.3g}, or let it be measured (scale=None)")  # fmt: skip


# --- the file -----------------------------------------------------------------------------------------------------

_PARTS = ("train", "test", "train_flipped", "test_flipped")


def save(file, latents: Latents) -> None:
    """Write an .npz, whole or not at all: PART.mean, PART.logvar, cond_PART (or cond_PART.NAME), shift, scale, and "about", a
    JSON text."""
    arrays: dict[str, Any] = {"shift": latents.shift, "scale": latents.scale}
    for part in _PARTS:
        arrays |= {f"{part}.{name}": a for name, a in (getattr(latents, part) or {}).items()}
    for part in ("train", "test"):
        cond = getattr(latents, f"{part}_cond")
        if isinstance(cond, dict):
            arrays |= {f"cond_{part}.{name}": a for name, a in cond.items()}
        elif cond is not None:
            arrays[f"cond_{part}"] = cond
    file = pathlib.Path(file)
    temporary = file.with_name(file.name + ".tmp")
    with open(temporary, "wb") as handle:
        np.savez(handle, about=np.array(json.dumps({"format": FORMAT, **latents.about})), **arrays)
    temporary.replace(file)


def load(file, *, autoencoder=None) -> Latents:
    """Read what :func:`save` wrote. autoencoder: the fingerprint they must be of, or None.

    Raises ValueError, one line, for a file that is missing, damaged, of another kind or another autoencoder, and for a scale
    that contradicts the moments.
    """
    file = pathlib.Path(file)
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {k: archive[k] for k in archive.files}
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise ValueError(f"latents {file} cannot be read ({' '.join(str(error).split())}): encode the data again") from None
    try:
        about = json.loads(str(arrays.get("about", "{}")))
    except ValueError:
        about = {}
    if about.pop("format", None) != FORMAT or not {"train.mean", "test.mean", "shift", "scale"} <= set(arrays):
        raise ValueError(f"{file} holds no latents of ours ({FORMAT!r}): encode the data again")
    if autoencoder is not None and about.get("autoencoder") != autoencoder:
        raise ValueError(f"latents {file} are of another autoencoder: delete the file, and the data is encoded again")
    parts = {part: {n: arrays[f"{part}.{n}"] for n in ("mean", "logvar") if f"{part}.{n}" in arrays} for part in _PARTS}
    conds = []
    for part in ("cond_train", "cond_test"):
        named = {k.removeprefix(part + "."): a for k, a in arrays.items() if k.startswith(part + ".")}
        conds.append(named or arrays.get(part))
    made = Latents(*(parts[p] or None for p in _PARTS), *conds, arrays["shift"], arrays["scale"], about)
    check(made)
    return made


def fingerprint(autoencoder) -> str:
    """Sixteen letters that say which weights an autoencoder has; shift and scale do not count."""
    import hashlib

    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(autoencoder.params):
        found.update(jax.tree_util.keystr(path).encode() + np.asarray(jnp.asarray(leaf, jnp.float32)).tobytes())
    return found.hexdigest()[:16]
