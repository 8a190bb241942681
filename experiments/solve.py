"""Restorations of many images as one compiled program: ``vmap`` over images and samples, shared out over the devices."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass

import numpy as np

from experiments.errors import UserError, library_errors, unknown
from experiments.methods import Entry
from experiments.progress import Progress


@dataclass(frozen=True)
class Restored:
    """x: (images, samples, H, W, C) in about [-1, 1], with ``sweep`` (settings, images, ...); table: the timetable walked;
    network_calls: forward calls per restoration, their mean where the method's number varies (an int where it is whole), with
    ``sweep`` a list of them; seconds_compile, seconds_run; devices, batch: how many, and how many restorations at a time."""

    x: np.ndarray
    table: object
    network_calls: float
    seconds_compile: float
    seconds_run: float
    devices: int
    batch: int


def inpaint(prior, entry: Entry, ys, masks, *, labels=None, cfg=1.0, samples=1, steps=None, seed=0, batch=16, devices=None,
            names=None, stream=None, announce=lambda: None, classifier=None, classifier_scale=1.0,
            sweep=None) -> Restored:  # fmt: skip
    """Restore images with one method.

    ys:      (N, H, W, C) in [-1, 1]; what the masks hide is never looked at
    masks:   (N, H, W), 1 = known
    labels:  N labels (None: no condition), for a prior that has classes; cfg: guidance scale, needs labels
    samples: restorations of each image; the one with number s of image n has the key fold_in(fold_in(key(seed), n), s),
             so it does not depend on ``batch`` (restorations at a time) or ``devices`` (default: all of jax)
    steps:   levels of the method's timetable (default: the method's)
    names:   of the images, for messages; stream: where the progress bar goes (default: stderr)
    announce: called when all is found to be in order, before the first program is compiled
    classifier: a ``zoo.public.Classifier`` to guide towards the labels: the kernel's mean as in RePaint's ImageNet runs
             where the kernel is DDPM, else the score; classifier_scale: how much
    sweep:   {hyper-parameter of the method's entry: values}, all of one length: every image is restored with each setting, by
             one program, from the same noise
    Raises UserError for what the library refuses, before anything is compiled, and for a result that is not finite.
    """
    import jax
    import jax.numpy as jnp

    import diffjax as dj
    from diffjax.base import as_method

    steps = entry.steps if steps is None else steps
    names = names or [f"image {n}" for n in range(len(ys))]
    masks = np.asarray(masks, np.float32)[..., None]
    ys = np.where(masks > 0, ys, 0).astype(np.float32)
    guided = cfg != 1

    def problem(params, y, mask, label, setting):
        params, guide = params
        denoise = dj.replace(prior, params=params).denoiser(label if prior.classes else None, cfg, clip=entry.clip)
        measurement = dj.Measurement(y, dj.operators.Mask(mask))
        method, kernel, table = entry.build(denoise, measurement, prior.schedule, steps, **setting)
        if guide is None:
            return method, kernel, table
        gradient = guide.gradient(label, prior.schedule)
        if isinstance(kernel, dj.kernels.DDPM):
            return method, dj.kernels.guided(kernel, gradient, classifier_scale), table
        denoise = dj.denoisers.classifier(denoise, gradient, classifier_scale)
        return entry.build(denoise, measurement, prior.schedule, steps, **setting)

    with library_errors():
        labelled = labels is not None and None not in labels
        if (guided or classifier is not None) and not labelled:
            raise UserError(f"{f'--cfg {cfg:g}' if guided else '--classifier'} guides towards a label: give one with --label")
        if classifier is not None:
            classifier.check(prior)
        who = prior if prior.classes or classifier is None else classifier
        indices = np.array([who.label(label) for label in labels or [None] * len(ys)], np.int32)
        settings = _settings(sweep, entry)
        first = {name: values[0] for name, values in settings.items()}
        build = lambda y, mask: problem((prior.params, classifier), y, mask, int(indices[0]) if labelled else None, first)
        build(np.zeros_like(ys[0]), np.ones_like(masks[0]))  # what is wrong whatever the image is
        for name, y, mask in zip(names, ys, masks):
            with library_errors(f"{name}: "):
                method, kernel, table = build(y, mask)
        method = as_method(method)
        method.check(kernel, table)

    announce()
    total = len(ys) * samples
    if sweep:
        total *= len(next(iter(settings.values())))
    available = jax.devices()[:devices]
    mesh = dj.parallel.mesh(available[: min(len(available), total)])
    count = mesh.devices.size
    batch = min(batch, total)
    batch += -batch % count  # every call has this size, so that one program serves all

    image, sample = np.divmod(np.arange(total + -total % batch) % total, samples)
    setting, image = np.divmod(image, len(ys))
    key = jax.random.key(seed)
    keys = jax.jit(jax.vmap(lambda n, s: jax.random.fold_in(jax.random.fold_in(key, n), s)))(image, sample)
    chunks = len(image) // batch
    progress = Progress(chunks * len(table), label="restoring", stream=stream)
    finished = [0]  # rows of the chunks before

    def tick(row):
        done = finished[0] + int(row) + 1
        if done > progress.done:
            progress.update(done)

    def one(params, key, y, mask, label, setting):
        method, kernel, table = problem(params, y, mask, label, setting)
        # the row's number is the same for the whole batch, so vmap leaves one callback per row and device
        trace = lambda x, row, info: jax.debug.callback(tick, row.i)
        result = dj.sample(key, method, kernel, table, y.shape, remat="none", trace=trace)
        calls = result.info.rows["calls"].sum() if "calls" in result.info.rows else method.calls(kernel) * len(table)
        return result.x, result.info.finite, jnp.int32(calls * (2 if guided else 1))

    program = dj.parallel.shard(one, mesh, in_axes=(None, 0, 0, 0, 0, 0))
    spec = jax.sharding.PartitionSpec
    whole, split = (jax.sharding.NamedSharding(mesh, s) for s in (spec(), spec(mesh.axis_names)))
    params = jax.device_put((prior.params, classifier), whole)

    def arguments(chunk):
        at = slice(chunk * batch, (chunk + 1) * batch)
        arrays = keys[at], ys[image[at]], masks[image[at]], jnp.asarray(indices[image[at]])
        arrays += ({name: values[setting[at]] for name, values in settings.items()},)
        return params, *jax.device_put(arrays, split)

    start = time.perf_counter()
    compiled = program.lower(*arguments(0)).compile()
    seconds_compile = time.perf_counter() - start

    results, counts, start = [], [], time.perf_counter()
    with progress:
        for chunk in range(chunks):
            x, finite, calls = (np.asarray(a) for a in compiled(*arguments(chunk)))
            jax.effects_barrier()
            finished[0] = (chunk + 1) * len(table)
            _check_finite(x, finite, table, [names[n] for n in image[chunk * batch :]])
            results.append(x)
            counts.append(calls)
        progress.done = progress.total
    seconds_run = time.perf_counter() - start
    x = np.concatenate(results)[:total].reshape(*((-1,) if sweep else ()), len(ys), samples, *ys.shape[1:])
    counts = np.concatenate(counts)[:total].reshape(-1, len(ys) * samples).mean(1).round(1)
    calls = [int(c) if c == int(c) else float(c) for c in counts]
    calls = calls if sweep else calls[0]
    return Restored(x, table, calls, seconds_compile, seconds_run, count, batch)


def _settings(sweep, entry) -> dict:
    """{name: float32 values, all of one length}, checked against what ``entry.build`` takes."""
    if not sweep:
        return {}
    names = list(inspect.signature(entry.build).parameters)[4:]
    for name in sweep:
        if name not in names:
            raise unknown("hyper-parameter", name, names)
    values = {name: np.atleast_1d(np.asarray(v, np.float32)) for name, v in sweep.items()}
    if len({len(v) for v in values.values()}) != 1:
        raise UserError(f"the values of {', '.join(sweep)} differ in number: give one setting after the other")
    return values


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
