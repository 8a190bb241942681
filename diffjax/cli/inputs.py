"""What a person names on the command line, found: images, masks, measurements, priors, labels."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np

from .. import zoo
from ..operators import masks
from . import errors, images, tasks
from .errors import UserError


def is_bundled(name):
    return str(name).partition(":")[0] == "bundled"


def is_file(name) -> bool:
    """Whether --mask is a path and not a name: it has a slash or a suffix, or exists."""
    return os.sep in name or Path(name).suffix != "" or (name not in masks.MASKS and Path(name).exists())


def load(o, shape) -> images.Pictures:
    """The images of --images, fitted to the prior's shape."""
    if Path(o.images).suffix == ".npy" and Path(o.images).is_file():
        return load_array(o.images, shape, o.limit)
    limit = o.limit or (4 if is_bundled(o.images) else None)
    return images.load(o.images, size=shape[0], channels=shape[-1], limit=limit)


def measured(o, shape):
    """(pictures, what is measured of each, operators) of --task; with --degraded the pictures are what is measured."""
    task = masks.ALIASES.get(o.task, o.task)
    if not o.degraded:
        pictures = load(o, shape)
        return pictures, *tasks.measure(task, np.stack(pictures.images), 2 * o.noise, o.seed)
    A = tasks.operators(task, shape[:2], 1)[0]
    with errors.library_errors(f"--task {task}: "):
        pictures = load(o, A(np.zeros(shape, np.float32)).shape)
    ys = np.stack([tasks.hide(A, y) for y in pictures.images])
    return pictures, ys, [A] * len(pictures)


def load_array(path, shape, limit=None) -> images.Pictures:
    """Images (N, H, W, C), (H, W, C) or (H, W) of an .npy file, which must have the prior's shape and be in [-1, 1]."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
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
    return images.Pictures(list(array), [f"{Path(path).stem}-{n:02d}" for n in range(len(array))], [None] * len(array), [])


def mask_of(o, shape, number):
    """The mask of image ``number``: drawn masks differ from image to image, by seed + number."""
    if is_file(o.mask):
        return images.mask(o.mask, shape, o.invert_mask)
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
        print(f"note: {prior.card['assumed']}")
    return prior, classifier


def labels_of(o, prior, pictures):
    if o.label is None:
        return None
    if o.label == "random":
        if not prior.classes:
            prior_label(prior, o.label)  # says that there are no labels
        return [int(np.random.default_rng([o.seed, n]).integers(prior.classes)) for n in range(len(pictures))]
    if o.label == "true":
        if None in pictures.labels:
            raise UserError("--label true needs images with labels, as the bundled ones: give a class name or number")
        fruits = pictures.names[0].startswith("fruits")
        of_set = zoo.bundled.FRUITS_CLASSES if fruits else zoo.bundled.FASHION_CLASSES
        return [prior_label(prior, of_set[n]) for n in pictures.labels]
    return [prior_label(prior, o.label)] * len(pictures)


def prior_label(prior, label):
    with errors.library_errors():
        return prior.label(label)
