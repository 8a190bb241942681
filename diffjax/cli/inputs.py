"""What a person names on the command line, found: images, masks, measurements, priors, labels."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import pictures, zoo
from ..operators import masks
from . import errors, images, latents, tasks, tiles, told
from .errors import UserError


def is_bundled(name):
    return str(name).partition(":")[0] == "bundled"


def is_file(name) -> bool:
    """Whether --mask is a path and not a name: it has a slash or a suffix, or exists."""
    return os.sep in name or Path(name).suffix != "" or (name not in masks.MASKS and Path(name).exists())


def say(note):
    print(f"note: {pictures.one_line(note, 500)}")


def pads(prior) -> bool:
    """Whether the prior was trained on small grey images padded with black, as Fashion-MNIST's."""
    return prior.card.get("config", {}).get("fit") == "pad" and prior.shape[-1] == 1


def load(o, prior, shape=None) -> images.Pictures:
    """The images of --images, fitted to the shape of the prior's."""
    shape = prior.image_shape if shape is None else shape
    if Path(o.images).suffix == ".npy" and Path(o.images).is_file():
        return load_array(o.images, shape, o.limit)
    limit = o.limit or (4 if is_bundled(o.images) else None)
    return images.load(o.images, size=shape[0], channels=shape[-1], limit=limit, pad=pads(prior), keep_going=True)


def measured(o, prior):
    """(pictures, what is measured of each, operators, (H, W) of each result) of --task; with --degraded the pictures are
    what is measured. Pictures keep their size with --degraded or --tiles; all others have the prior's."""
    task = masks.ALIASES.get(o.task, o.task)
    make = lambda shape, n: tasks.operators(task, shape[:2], 1, o.seed + n, o.border, o.blur)[0]
    with errors.library_errors(f"--task {task}: "):
        shape = prior.image_shape
        factor = shape[0] // make(shape, 0)(np.zeros(shape, np.float32)).shape[0]
    if not o.degraded:
        found = whole_or_fitted(o, prior, factor) if o.tiles else load(o, prior)
        operators = [make(x.shape, n) for n, x in enumerate(found.images)]
        ys = [np.asarray(A(np.asarray(x, np.float32))) for A, x in zip(operators, found.images)]
        ys = [tasks.hide(A, y + tasks.noise(y.shape, 2 * o.noise, o.seed, n)) for n, (A, y) in enumerate(zip(operators, ys))]
        return found, [np.asarray(y, np.float32) for y in ys], operators, [x.shape[:2] for x in found.images]
    found = _large_enough(images.load(o.images, size=None, channels=shape[-1], limit=o.limit, keep_going=True),
                          prior, shape[0] // factor)  # fmt: skip
    operators, shapes = [], []
    for n, (stem, y) in enumerate(zip(found.stems, found.images)):
        h, w = (factor * k for k in y.shape[:2])
        operators.append(make((h, w), n))
        shapes.append((h, w))
        latents.check_sides(prior, stem, h, w)
        found.notes.extend([tiles.about(stem, (h, w), shape[0])] * ((h, w) != shape[:2]))
    return found, [tasks.hide(A, y) for A, y in zip(operators, found.images)], operators, shapes


def _large_enough(found, prior, least) -> images.Pictures:
    """The pictures of at least ``least`` pixels either way; the others are lost. UserError where these are all."""
    small = [n for n, y in enumerate(found.images) if min(y.shape[:2]) < least]
    for n in small:
        y = found.images[n]
        found.lost.append(f"{found.stems[n]} is {y.shape[1]}x{y.shape[0]}, and with --degraded what was measured is not "
                          f"resized: prior {prior.name} needs at least {least}x{least}")  # fmt: skip
    if len(small) == len(found.images):
        raise UserError(found.lost[-1])
    keep = lambda values: [value for n, value in enumerate(values) if n not in small]
    fields = ("images", "names", "labels", "sizes", "stems")
    return replace(found, **{name: keep(getattr(found, name)) for name in fields})


def whole_or_fitted(o, prior, factor=1) -> images.Pictures:
    """For --tiles: pictures at their own size, cropped to a multiple of ``factor``, where that is at least the prior's."""
    fitted, size = load(o, prior), prior.image_shape[0]
    factor = latents.multiple(prior, factor)
    if not fitted.stems or is_bundled(o.images):
        return fitted
    own = images.load(o.images, size=None, channels=prior.image_shape[-1], limit=o.limit, keep_going=True)
    for n, x in enumerate(own.images):
        h, w = (k // factor * factor for k in x.shape[:2])
        if min(h, w) < size:
            own.images[n] = fitted.images[n]
            own.notes.append(f"{own.stems[n]}: {w}x{h} is smaller than the prior's {size}x{size}, and enlarged")
            continue
        own.images[n] = x[:h, :w]
        cropped = f", {x.shape[1] - w} columns and {x.shape[0] - h} rows left out" if x.shape[:2] != (h, w) else ""
        own.notes.extend([tiles.about(own.stems[n], (h, w), size) + cropped] * ((h, w) != (size, size)))
    return own


def load_array(path, shape, limit=None) -> images.Pictures:
    """Images (N, H, W, C), (H, W, C) or (H, W) of an .npy file, which must have the prior's shape and be in [-1, 1]."""
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy: OSError, ValueError, EOFError, TokenError, MemoryError of a head that asks too much
        raise UserError(f"images {path} cannot be read ({errors.one_line(error)}): give an .npy file of numbers") from None
    if array.dtype.kind not in "fiu" or array.dtype == np.uint8:
        raise UserError(f"images {path} are {array.dtype}: give floating numbers in [-1, 1] (bytes / 127.5 - 1)")
    found = array.shape
    array = array[..., None] if array.shape[-2:] == shape[:2] and shape[-1] == 1 else array
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[1:] != shape or not len(array):
        raise UserError(f"images {path} have shape {found}: the prior needs (N, {', '.join(map(str, shape))})")
    array = array[:limit].astype(np.float32)
    if not (np.abs(array) <= 1.001).all():  # also false for what is not a number
        low, high = np.min(array), np.max(array)
        raise UserError(f"images {path} span [{low:g}, {high:g}]: give finite numbers in [-1, 1] (bytes / 127.5 - 1)")
    notes = []
    if array.min() >= 0:
        notes.append(f"the values of {Path(path).name} lie in [{array.min():g}, {array.max():g}] and are taken as [-1, 1]: "
                     "if [0, 1] was meant, give 2 x - 1")  # fmt: skip
    return images.Pictures(list(array), [f"{Path(path).stem}-{n:02d}" for n in range(len(array))], [None] * len(array), notes)


def mask_of(o, prior, number, found):
    """The mask of image ``number``: drawn masks differ from image to image, by seed + number; of a folder of masks it is the
    one with the picture's name. Notes are added to ``found``'s."""
    shape = found.images[number].shape[:2]
    if is_file(o.mask):
        path = Path(o.mask)
        if os.path.isdir(path):
            stem = found.stems[number] if found.stems else found.names[number]
            ends = ("", "_mask", "-mask")
            fits = sorted(p for p in path.iterdir() if pictures.is_picture(p) and p.stem in [stem + end for end in ends])
            if len(fits) != 1:
                what = f"{len(fits)} masks" if fits else "no mask"
                raise UserError(f"folder {path} has {what} called {stem} (or {stem}_mask): give each picture one")
            path = fits[0]
        own = found.sizes[number] if found.sizes else None
        own = None if own is None or shape[0] != shape[1] else own
        return images.mask(path, shape, o.invert_mask, own=own, pad=pads(prior), notes=found.notes)
    with errors.library_errors():
        mask = masks.make(o.mask, shape, o.seed + number)
    return 1 - mask if o.invert_mask else mask


def networks(o):
    """(prior, classifier or None) of the options; what had to be assumed about them is said."""
    with errors.library_errors(), warnings.catch_warnings():
        warnings.simplefilter("ignore", zoo.Assumed)  # said below
        prior = zoo.load(o.prior, dict(o.prior_config)) if o.prior_config else zoo.load(o.prior)
        classifier = zoo.load_classifier(o.classifier) if o.classifier else None
        if classifier is not None:
            classifier.check(prior)
    if prior.card.get("assumed"):
        say(prior.card["assumed"])
    return prior, classifier


def labels_of(o, prior, found):
    if getattr(prior, "beside", ""):
        return None
    if getattr(prior, "conditional", False):
        ((condition, _),) = told.conditions(o, prior)
        return None if condition is None else [condition] * len(found)
    if o.label is None:
        return None
    if o.label == "random":
        if not prior.classes:
            prior_label(prior, o.label)  # says that there are no labels
        return [int(np.random.default_rng([o.seed, n]).integers(prior.classes)) for n in range(len(found))]
    if o.label == "true":
        if None in found.labels:
            raise UserError("--label true needs images with labels, as the bundled ones: give a class name or number")
        fruits = found.names[0].startswith("fruits")
        of_set = zoo.bundled.FRUITS_CLASSES if fruits else zoo.bundled.FASHION_CLASSES
        return [prior_label(prior, of_set[n]) for n in found.labels]
    return [prior_label(prior, o.label)] * len(found)


def prior_label(prior, label):
    with errors.library_errors():
        return prior.label(label)
