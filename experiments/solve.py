"""Restorations of many images as one compiled program: ``vmap`` over images and samples, shared out over the devices."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass

import numpy as np

from diffjax.registry import Entry
from experiments.errors import UserError, library_errors, unknown
from experiments.progress import Progress


@dataclass(frozen=True)
class Restored:
    """x: (images, samples, H, W, C) in about [-1, 1], with ``sweep`` (settings, images, ...); table: the timetable walked;
    network_calls: forward calls per restoration, their mean where the method's number varies (an int where it is whole), with
    ``sweep`` a list of them; each_calls: (images, samples) of them, with ``sweep`` (settings, images, samples);
    seconds_compile, seconds_run; devices, batch: how many, and how many restorations at a time."""

    x: np.ndarray
    table: object
    network_calls: float
    each_calls: np.ndarray
    seconds_compile: float
    seconds_run: float
    devices: int
    batch: int


class Programs(dict):
    """Compiled programs by what they depend on: hand one to many calls, and each program is compiled once. What differs only
    in images, measurements, the values in operators, seed or names is one program."""


class _Ticker:
    """What the rows of the running program report to; outlives one call where the program does."""

    def __init__(self):
        self.progress, self.before = None, 0

    def __call__(self, row):
        done = self.before + int(row) + 1
        if self.progress is not None and done > self.progress.done:
            self.progress.update(done)


def inpaint(prior, entry: Entry, ys, masks, **options) -> Restored:
    """:func:`restore` for masks (N, H, W), 1 = known; ys: (N, H, W, C), what the masks hide is never looked at."""
    from diffjax.operators import Mask

    masks = np.asarray(masks, np.float32)[..., None]
    ys = np.where(masks > 0, ys, 0).astype(np.float32)
    return restore(prior, entry, ys, [Mask(mask) for mask in masks], **options)


def restore(prior, entry: Entry, ys, operators, *, noise_std=0.0, labels=None, cfg=1.0, samples=1, steps=None, seed=0,
            batch=16, devices=None, names=None, numbers=None, stream=None, announce=lambda: None, classifier=None,
            classifier_scale=1.0, sweep=None, programs=None) -> Restored:  # fmt: skip
    """Restore images from measurements with one method.

    ys:      (N, ...) measurements of images in [-1, 1]
    operators: one for all images, or a list of one for each, which differ in the values of their arrays only
    noise_std: of the measurements, in their units: 0.05 on [0, 1] is 0.1
    labels:  N labels (None: no condition), for a prior that has classes; cfg: guidance scale, needs labels
    samples: restorations of each image; the one with number s of image n has the key fold_in(fold_in(key(seed), n), s),
             so it does not depend on ``batch`` (restorations at a time) or ``devices`` (default: all of jax)
    steps:   levels of the method's timetable (default: the method's)
    names:   of the images, for messages; numbers: of the images, for their keys (default 0, 1, ...)
    stream:  where the progress bar goes (default: stderr; False: nowhere, and the program calls nothing back)
    announce: called when all is found to be in order, before the first program is compiled
    classifier: a ``zoo.public.Classifier`` to guide towards the labels: the kernel's mean as in RePaint's ImageNet runs
             where the kernel is DDPM, else the score; classifier_scale: how much
    sweep:   {hyper-parameter of the method's entry: values}, as many of each: every image is restored with each setting, by
             one program, from the same noise. Values: numbers, or pytrees of one structure (timetables of one length)
    programs: ``Programs`` to look the compiled program up in, and to leave it in
    Raises UserError for what the library refuses, before anything is compiled, and for a result that is not finite.
    """
    import jax
    import jax.numpy as jnp

    import diffjax as dj
    from diffjax.base import as_method

    steps = entry.steps if steps is None else steps
    names = names or [f"image {n}" for n in range(len(ys))]
    ys = np.asarray(ys, np.float32)
    each = isinstance(operators, (list, tuple))
    of_image = (lambda n: operators[n]) if each else (lambda n: operators)
    stacked = _stack(operators) if each else operators
    guided = cfg != 1

    def given_to_method(params, y, A, label):
        denoise = dj.replace(prior, params=params).denoiser(label if prior.classes else None, cfg, clip=entry.clip)
        return denoise, dj.Measurement(y, A, noise_std)

    def problem(params, y, A, label, setting):
        params, guide = params
        denoise, measurement = given_to_method(params, y, A, label)
        method, kernel, table = entry.build(denoise, measurement, steps, **setting)
        if guide is None:
            return method, kernel, table
        gradient = guide.gradient(label, prior.schedule)
        if isinstance(kernel, dj.kernels.DDPM):
            return method, dj.kernels.guided(kernel, gradient, classifier_scale), table
        denoise = dj.denoisers.classifier(denoise, gradient, classifier_scale)
        return entry.build(denoise, measurement, steps, **setting)

    with library_errors():
        labelled = labels is not None and None not in labels
        if (guided or classifier is not None) and not labelled:
            raise UserError(f"{f'--cfg {cfg:g}' if guided else '--classifier'} guides towards a label: give one with --label")
        if classifier is not None:
            classifier.check(prior)
            if entry.whole is not None:
                raise UserError("--classifier guides a walk, and this method is none: take another one")
        who = prior if prior.classes or classifier is None else classifier
        indices = np.array([who.label(label) for label in labels or [None] * len(ys)], np.int32)
        settings = _settings(sweep, entry)
        count_settings = len(jax.tree.leaves(settings)[0]) if settings else 1
        first = jax.tree.map(lambda a: a[0], settings)
        label = int(indices[0]) if labelled else None
        build = lambda y, A: problem((prior.params, classifier), y, A, label, first)
        build(np.zeros_like(ys[0]), of_image(0))  # what is wrong whatever the image is
        for n, name in enumerate(names):
            with library_errors(f"{name}: "):
                method, kernel, table = build(ys[n], of_image(n))
        method = as_method(method)
        method.check(kernel, table)

    announce()
    total = len(ys) * samples * count_settings
    available = jax.devices()[:devices]
    mesh = dj.parallel.mesh(available[: min(len(available), total)])
    count = mesh.devices.size
    batch = min(batch, total)
    batch += -batch % count  # every call has this size, so that one program serves all

    image, sample = np.divmod(np.arange(total + -total % batch) % total, samples)
    setting, image = np.divmod(image, len(ys))
    key, numbers = jax.random.key(seed), np.arange(len(ys)) if numbers is None else np.asarray(numbers)
    keys = jax.jit(jax.vmap(lambda n, s: jax.random.fold_in(jax.random.fold_in(key, n), s)))(numbers[image], sample)
    chunks = len(image) // batch
    ticker = _Ticker()

    def one(params, key, y, A, label, setting):
        if entry.whole is not None:
            given = *given_to_method(params[0], y, A, label), steps, prior.shape
            x, calls = entry.whole(key, *given, **setting)
            return x, jnp.isfinite(x).all()[None], jnp.int32(calls * (2 if guided else 1))
        method, kernel, table = problem(params, y, A, label, setting)
        # the row's number is the same for the whole batch, so vmap leaves one callback per row and device
        trace = lambda x, row, info: jax.debug.callback(ticker, row.i)
        watched = {} if stream is False else {"trace": trace}
        result = dj.sample(key, method, table, prior.shape, kernel=kernel, remat="none", **watched)
        calls = result.info.rows["calls"].sum() if "calls" in result.info.rows else method.calls(kernel) * len(table)
        return result.x, result.info.finite, jnp.int32(calls * (2 if guided else 1))

    spec = jax.sharding.PartitionSpec
    whole, split = (jax.sharding.NamedSharding(mesh, s) for s in (spec(), spec(mesh.axis_names)))
    params = jax.device_put((prior.params, classifier), whole)
    shared = None if each else jax.device_put(stacked, whole)

    def arguments(chunk):
        at = slice(chunk * batch, (chunk + 1) * batch)
        pick = lambda tree, n: jax.tree.map(lambda a: np.asarray(a)[n], tree)
        A = jax.device_put(pick(stacked, image[at]), split) if each else shared
        label, chosen = jnp.asarray(indices[image[at]]), pick(settings, setting[at])
        rest = jax.device_put((keys[at], ys[image[at]], label, chosen), split)
        return params, *rest[:2], A, *rest[2:]

    programs = Programs() if programs is None else programs
    start, given = time.perf_counter(), arguments(0)
    shapes = jax.tree.structure(given), tuple((a.shape, str(a.dtype)) for a in jax.tree.leaves(given))
    signature = prior.name, entry, steps, stream is False, repr(noise_std), cfg, repr(classifier_scale), mesh, shapes
    if signature not in programs:
        axes = (None, 0, 0, 0 if each else None, 0, 0)
        programs[signature] = dj.parallel.shard(one, mesh, in_axes=axes).lower(*given).compile(), ticker
    compiled, ticker = programs[signature]
    seconds_compile = time.perf_counter() - start

    ticker.progress = Progress(chunks * len(table), label="restoring", stream=io.StringIO() if stream is False else stream)
    results, counts, start = [], [], time.perf_counter()
    with ticker.progress as progress:
        for chunk in range(chunks):
            ticker.before = chunk * len(table)
            x, finite, calls = (np.asarray(a) for a in compiled(*arguments(chunk)))
            jax.effects_barrier()
            _check_finite(x, finite, table, [names[n] for n in image[chunk * batch :]])
            results.append(x)
            counts.append(calls)
        progress.done = progress.total
    seconds_run = time.perf_counter() - start
    x = np.concatenate(results)[:total].reshape(*((-1,) if sweep else ()), len(ys), samples, *prior.shape)
    counts = np.concatenate(counts)[:total].reshape(-1, len(ys), samples)
    calls = [int(c) if c == int(c) else float(c) for c in counts.mean((1, 2)).round(1)]
    each, calls = (counts, calls) if sweep else (counts[0], calls[0])
    return Restored(x, table, calls, each, seconds_compile, seconds_run, count, batch)


def _settings(sweep, entry) -> dict:
    """{name: stacked values, all of one length}, checked against what ``entry.build`` takes."""
    if not sweep:
        return {}
    names = entry.settings()
    for name in sweep:
        if name not in names:
            raise unknown("hyper-parameter", name, names)
    if len({len(values) for values in sweep.values()}) != 1:
        raise UserError(f"the values of {', '.join(sweep)} differ in number: give one setting after the other")
    return {name: _stack(values) for name, values in sweep.items()}


def _stack(trees):
    """Pytrees of one structure as one with a leading axis; floats as float32."""
    import jax

    structures = {jax.tree.structure(tree) for tree in trees}
    if len(structures) != 1:
        raise UserError("the operators or values are of different kinds: restore one kind after the other")
    single = lambda a: a.astype(np.float32) if np.issubdtype(a.dtype, np.floating) else a
    return jax.tree.map(lambda *leaves: single(np.stack([np.asarray(a) for a in leaves])), *trees)


def _check_finite(x, finite, table, names):
    for n, rows in enumerate(finite):
        if not rows.all():
            first = int(np.argmin(rows))
            raise UserError(
                f"the restoration of {names[n]} is not finite from row {first} of {len(rows)} on "
                f"(t = {float(table.t[first]):g}): the prior or the method diverges, try more --steps or another prior"
            )
        if not np.isfinite(x[n]).all():
            raise UserError(
                f"the restoration of {names[n]} is not finite at the end, although every row was: report this as a bug"
            )
