"""Many images, many restorations of each, all devices: one compiled program, ``vmap`` over images and samples.

    done = batch.restore(prior, registry.METHODS["diffpir"], ys, A, noise_std=0.1, samples=4)
    done.x  # (images, samples, H, W, C)

:func:`check` builds everything for every image on the host, so that what is wrong is said before anything is compiled.
:func:`index` says which restoration is which. :func:`compiled` makes the program, or finds it. :func:`run` walks.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from . import denoisers, kernels, parallel
from .base import Measurement, Units, nearest, replace
from .method import as_method, check_operator
from .operators import Decoded, Mask, masked_latents
from .registry import Entry
from .sample import begin, plan, sample

PIECE = 0.5  # seconds between two reports of progress


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
    in images, measurements, weights, the values in operators, seed or names is one program."""


def inpaint(prior, entry: Entry, ys, masks, **options) -> Restored:
    """:func:`restore` for masks (N, H, W), 1 = known; ys: (N, H, W, C), what the masks hide is never looked at."""
    masks = np.asarray(masks, np.float32)[..., None]
    ys = np.where(masks > 0, ys, 0).astype(np.float32)
    return restore(prior, entry, ys, [Mask(mask) for mask in masks], **options)


def restore(prior, entry: Entry, ys, operators, *, noise_std=0.0, labels=None, cfg=1.0, samples=1, steps=None, seed=0,
            batch=16, devices=None, names=None, numbers=None, progress=None, announce=lambda: None, classifier=None,
            classifier_scale=1.0, sweep=None, programs=None, finished=None, failed=None, masked=False,
            paste=False) -> Restored:  # fmt: skip
    """Restore images from measurements with one method.

    prior:   a ``zoo.Prior``; entry: a method of ``registry.METHODS``. With a latent prior the operators become
             ``operators.Decoded``, and x is decoded
    ys:      (N, ...) measurements of images in [-1, 1]
    operators: one for all images, or a list of one for each, which differ in the values of their arrays only
    noise_std: of the measurements, in their units: 0.05 on [0, 1] is 0.1
    labels:  N labels, for a prior that has classes, or N other conditions, as ``prior.condition`` takes them (None: no
             condition); cfg: guidance scale, needs labels
    samples: restorations of each image; the one with number s of image n has the key fold_in(fold_in(key(seed), n), s),
             so it does not depend on ``batch`` (restorations at a time) or ``devices`` (default: all of jax)
    steps:   levels of the method's timetable (default: the method's)
    names:   of the images, for messages; numbers: of the images, for their keys (default 0, 1, ...)
    progress: called with (rows done, all rows) a few times a second. The walk is then cut into pieces, which are one
             program; the pictures are the same
    announce: called when all is found to be in order, before the first program is compiled
    classifier: a ``zoo.public.Classifier`` to guide towards the labels: the kernel's mean as in RePaint's ImageNet runs
             where the kernel is DDPM, else the score; classifier_scale: how much
    sweep:   {hyper-parameter of the method's entry: values}, as many of each: every image is restored with each setting, by
             one program, from the same noise. Values: numbers, or pytrees of one structure (timetables of one length)
    programs: ``Programs`` to look the compiled program up in, and to leave it in
    masked:  of a latent prior and masks: the latents are masked in place of the picture (``operators.masked_latents``)
    paste:   of a latent prior: what was measured is put into the decoded picture (``Decoded.picture``). Off by default, as it
             hides how well the latent fits
    finished: called with (n, x (samples, H, W, C), calls (samples,), table) as soon as image n is done. The results are then
             not kept, and ``x`` is None. Not with ``sweep``
    failed:  called with (n, why) in place of ``finished`` for an image with a restoration that is not finite: the others are
             done. Without it that is a ValueError
    Raises ValueError for what the library refuses, before anything is compiled, and for a result that is not finite.
    """
    if finished is not None and sweep:
        raise ValueError("finished= is told of whole images, which sweep= has many of: leave one out")
    job = check(prior, entry, ys, operators, noise_std, labels, cfg, steps, names, classifier, classifier_scale, sweep,
                masked, paste)  # fmt: skip
    announce()
    order = index(job, samples, seed, batch, devices, numbers)
    start = time.perf_counter()
    program = compiled(job, order, Programs() if programs is None else programs)
    ready = time.perf_counter()
    x, calls = run(job, order, program, progress, finished, failed)
    end = time.perf_counter()

    settings = (-1,) if sweep else ()
    x = None if x is None else x.reshape(*settings, len(job.ys), samples, *prior.image_shape)
    each = calls.reshape(-1, len(job.ys), samples)
    means = [int(c) if c == int(c) else float(c) for c in each.mean((1, 2)).round(1)]
    each, means = (each, means) if sweep else (each[0], means[0])
    return Restored(x, job.table, means, each, ready - start, end - ready, order.mesh.devices.size, order.batch)


# --- what is to be done ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A task that was found to be in order. labels: of each image its index, or its condition, stacked; settings: {name:
    stacked values}; operators: stacked where ``each`` image has its own; table: the timetable of the last image (all have as
    many rows)."""

    prior: Any
    entry: Entry
    ys: np.ndarray
    operators: Any
    each: bool
    noise_std: Any
    labels: Any
    cfg: float
    steps: int
    names: list
    classifier: Any
    classifier_scale: Any
    settings: dict
    masked: bool = False
    paste: bool = False
    table: Any = None

    @property
    def leaves(self):
        """What of the prior and of guidance is an argument of the program: (weights, autoencoder, classifier, scale)."""
        scale = None if self.cfg == 1 else np.float32(self.cfg)
        return self.prior.params, self.prior.autoencoder, self.classifier, scale

    def operator(self, n):
        return jax.tree.map(lambda a: a[n], self.operators) if self.each else self.operators

    def given(self, leaves, y, A, label):
        """(denoiser, measurement), as ``entry`` takes them."""
        params, autoencoder, _, scale = leaves
        measurement = Measurement(y, A, self.noise_std)
        told = label if self.prior.classes or self.prior.conditional else None
        if self.prior.beside:
            told = self.prior.told(measurement, autoencoder)
        clip = self.entry.clip and autoencoder is None  # latents have no bounds
        denoise = replace(self.prior, params=params).denoiser(told, 1 if scale is None else scale, clip=clip)
        if self.masked:
            measurement = masked_latents(measurement, autoencoder)
        elif autoencoder is not None:
            measurement = replace(measurement, A=Decoded(A, autoencoder))
        return denoise, measurement

    def picture(self, leaves, y, A, x):
        """The picture of a result x: itself, or decoded."""
        if leaves[1] is None:
            return x
        return Decoded(A, leaves[1]).picture(x, y if self.paste else None)

    def build(self, leaves, y, A, label, setting):
        """(method, kernel, timetable) of one image."""
        guide = leaves[2]
        denoise, measurement = self.given(leaves, y, A, label)
        if self.masked and "bounds" in self.entry.settings():
            setting = {"bounds": (-np.inf, np.inf)} | setting
        method, kernel, table = self.entry.build(denoise, measurement, self.steps, **setting)
        if guide is None:
            return as_method(method), kernel, table
        gradient = guide.gradient(label, self.prior.schedule)
        if isinstance(kernel, kernels.DDPM):
            return as_method(method), kernels.guided(kernel, gradient, self.classifier_scale), table
        denoise = denoisers.classifier(denoise, gradient, self.classifier_scale)
        method, kernel, table = self.entry.build(denoise, measurement, self.steps, **setting)
        return as_method(method), kernel, table


def check(prior, entry, ys, operators, noise_std=0.0, labels=None, cfg=1.0, steps=None, names=None, classifier=None,
          classifier_scale=1.0, sweep=None, masked=False, paste=False) -> Job:  # fmt: skip
    """The arguments of :func:`restore` as a :class:`Job`. Raises ValueError for all that can be known beforehand."""
    ys = np.asarray(ys, np.float32)
    names = names or [f"image {n}" for n in range(len(ys))]
    each = isinstance(operators, (list, tuple))
    labelled = labels is not None and None not in labels
    if (cfg != 1 or classifier is not None) and not labelled:
        raise ValueError(f"{f'cfg {cfg:g}' if cfg != 1 else 'the classifier'} guides towards a label: give one for each image")
    if prior.autoencoder is None and (masked or paste):
        raise ValueError(
            f"prior {prior.name!r} is one of pixels: {'masked' if masked else 'paste'}= is about latents, leave it out"
        )
    if classifier is not None:
        classifier.check(prior)
        if entry.whole is not None:
            raise ValueError("a classifier guides a walk, and this method is none: take another one")
    told = labels or [None] * len(ys)
    if prior.conditional and not prior.beside:
        told = _stack([prior.condition(condition) for condition in told])
    else:
        who = prior if prior.classes or classifier is None else classifier
        told = np.array([who.label(label) for label in told], np.int32)
    steps = entry.steps if steps is None else steps
    job = Job(prior, entry, ys, _stack(operators) if each else operators, each, noise_std, told, cfg, steps, names,
              classifier, classifier_scale, _settings(sweep, entry), masked, paste)  # fmt: skip

    first = jax.tree.map(lambda a: a[0], job.settings)
    label = jax.tree.map(lambda a: a[0], told) if labelled or prior.conditional else None
    build = lambda y, A: job.build(job.leaves, y, A, label, first)
    if paste:
        check_operator("paste=", job.operator(0), ("pinv",))
    build(np.zeros_like(ys[0]), job.operator(0))  # what is wrong whatever the image is
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Units)  # here all are in [-1, 1]
        for n, name in enumerate(names):
            try:
                method, kernel, table = build(ys[n], job.operator(n))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    plan(method, table, prior.shape, kernel=kernel)  # the combination, before anything is compiled
    return replace(job, table=table)


def _settings(sweep, entry) -> dict:
    """{name: stacked values, all of one length}, checked against what ``entry.build`` takes."""
    if not sweep:
        return {}
    names = [*entry.settings(), "table"]
    for name in sweep:
        if name not in names:
            raise ValueError(f"unknown hyper-parameter {name!r}: {nearest(name, names)}")
    if len({len(values) for values in sweep.values()}) != 1:
        raise ValueError(f"the values of {', '.join(sweep)} differ in number: give one setting after the other")
    return {name: _stack(values) for name, values in sweep.items()}


def _stack(trees):
    """Pytrees of one structure as one with a leading axis; floats as float32."""
    structures = {jax.tree.structure(tree) for tree in trees}
    if len(structures) != 1:
        raise ValueError("the operators or values are of different kinds: restore one kind after the other")
    single = lambda a: a.astype(np.float32) if np.issubdtype(a.dtype, np.floating) else a
    return jax.tree.map(lambda *leaves: single(np.stack([np.asarray(a) for a in leaves])), *trees)


# --- which restoration is which -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """``total`` restorations, and more to fill up the last of ``chunks`` calls of ``batch``; number k is of image
    ``image[k]``.
    arguments(chunk) -> (params, keys, ys, operators, labels, settings) of one call, on their devices."""

    total: int
    batch: int
    chunks: int
    image: np.ndarray
    mesh: Any
    arguments: Callable


def index(job: Job, samples=1, seed=0, batch=16, devices=None, numbers=None) -> Order:
    """Settings, then images, then samples; the key of a restoration depends on ``seed`` and its two numbers only."""
    count_settings = len(jax.tree.leaves(job.settings)[0]) if job.settings else 1
    total = len(job.ys) * samples * count_settings
    available = jax.devices()[:devices]
    mesh = parallel.mesh(available[: min(len(available), total)])
    batch = min(batch, total)
    batch += -batch % mesh.devices.size  # every call has this size, so that one program serves all

    image, number = np.divmod(np.arange(total + -total % batch) % total, samples)
    setting, image = np.divmod(image, len(job.ys))
    key, numbers = jax.random.key(seed), np.arange(len(job.ys)) if numbers is None else np.asarray(numbers)
    keys = jax.jit(jax.vmap(lambda n, s: jax.random.fold_in(jax.random.fold_in(key, n), s)))(numbers[image], number)

    whole, split = (NamedSharding(mesh, s) for s in (PartitionSpec(), PartitionSpec(mesh.axis_names)))
    params = jax.device_put(job.leaves, whole)
    shared = None if job.each else jax.device_put(job.operators, whole)
    pick = lambda tree, n: jax.tree.map(lambda a: np.asarray(a)[n], tree)

    def arguments(chunk):
        at = slice(chunk * batch, (chunk + 1) * batch)
        A = jax.device_put(pick(job.operators, image[at]), split) if job.each else shared
        rest = keys[at], job.ys[image[at]], pick(job.labels, image[at]), pick(job.settings, setting[at])
        placed = jax.device_put(rest, split)
        return params, *placed[:2], A, *placed[2:]

    return Order(total, batch, len(image) // batch, image, mesh, arguments)


# --- the program ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """call(*arguments, state, first, last) -> (x, state, finite (batch, rows), calls (batch,)); state: to begin with;
    picture(weights and the like, ys, operators, x) -> pictures."""

    call: Callable
    state: Any
    picture: Callable


def compiled(job: Job, order: Order, programs: Programs) -> Program:
    """The program that walks rows first to last - 1 of one batch; found in ``programs``, or made and left there."""
    prior, entry = job.prior, job.entry
    given = order.arguments(0)
    network_calls = 2 if job.cfg != 1 else 1

    def one(params, key, y, A, label, setting, state, first, last):
        if entry.whole is not None:
            x, calls = entry.whole(key, *job.given(params, y, A, label), job.steps, prior.shape, **setting)
            return x, state, jnp.isfinite(x).all()[None], jnp.int32(calls * network_calls)
        method, kernel, table = job.build(params, y, A, label, setting)
        part = {"state": state, "part": (first, last)}
        done = sample(key, method, table, prior.shape, kernel=kernel, remat="none", **part)
        rows = done.info.rows
        calls = rows["calls"].sum() if "calls" in rows else method.calls(kernel) * (last - first)
        return done.x, done.state, done.info.finite, jnp.int32(calls * network_calls)

    def started(params, key, y, A, label, setting):
        if entry.whole is not None:
            return ()
        method, kernel, table = job.build(params, y, A, label, setting)
        return begin(key, plan(method, table, prior.shape, kernel=kernel))

    # All that the program is made of: what the prior is beside its weights (its network, its loss, its schedule's numbers, not
    # its name), and what else is no argument.
    rest = replace(prior, params=None, autoencoder=None, name="", text="{}", class_names=())
    constants = rest, job.noise_std, job.classifier_scale
    constants = tuple((a.shape, a.dtype.str, a.tobytes()) for a in map(np.asarray, jax.tree.leaves(constants)))
    shapes = jax.tree.structure(given), tuple((a.shape, str(a.dtype)) for a in jax.tree.leaves(given))
    signature = jax.tree.structure(rest), constants, entry, job.steps, job.masked, job.paste, order.mesh, shapes
    if signature not in programs:
        axes = (None, 0, 0, 0 if job.each else None, 0, 0)
        state = jax.eval_shape(jax.vmap(started, axes), *given)
        state = jax.device_put(
            jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), state),
            NamedSharding(order.mesh, PartitionSpec(order.mesh.axis_names)),
        )
        walk = parallel.shard(one, order.mesh, in_axes=(*axes, 0, None, None))
        walk = walk.lower(*given, state, np.int32(0), np.int32(1)).compile()
        programs[signature] = Program(walk, state, _pictures(job, order, given, axes))
    return programs[signature]


def _pictures(job, order, given, axes):
    """``Job.picture`` of one batch as a program of its own: the walk is cut into pieces, and decodes once."""
    if job.prior.autoencoder is None:
        return lambda leaves, ys, A, x: x
    axes = (*axes[:1], *axes[2:4], 0)
    x = jax.device_put(np.zeros((order.batch, *job.prior.shape), np.float32),
                       NamedSharding(order.mesh, PartitionSpec(order.mesh.axis_names)))  # fmt: skip
    return parallel.shard(job.picture, order.mesh, in_axes=axes).lower(given[0], *given[2:4], x).compile()


def run(job: Job, order: Order, program: Program, progress=None, finished=None, failed=None):
    """-> (x, network calls) of each restoration, in the order of ``order``; x is None where ``finished`` is told of each
    image. Raises ValueError for what is not finite, unless ``failed`` is told."""
    samples = order.total // len(job.ys)
    rows = 1 if job.entry.whole is not None else len(job.table)
    whole = NamedSharding(order.mesh, PartitionSpec())
    piece, results, counts, told, bad = rows if progress is None else 1, [], [], 0, {}
    for chunk in range(order.chunks):
        given, state, first = order.arguments(chunk), program.state, 0
        finite, calls = np.ones((order.batch, rows), bool), np.zeros(order.batch, int)
        names = [job.names[n] for n in order.image[chunk * order.batch :][: order.batch]]
        while first < rows:
            last, start = min(first + piece, rows), time.perf_counter()
            x, state, found, made = program.call(*given, state, *jax.device_put((np.int32(first), np.int32(last)), whole))
            finite[:, first:last] = np.asarray(found)[:, first:last]
            calls += np.asarray(made)
            if not (finite.all() if failed is None else finite.all(1).any()):
                break  # nothing is left that could become something
            first = last
            if progress is not None:
                progress(chunk * rows + first, order.chunks * rows)
                seconds = max(time.perf_counter() - start, 1e-6)
                piece = int(np.clip(piece * PIECE / seconds, 1, 4 * piece))
        x = program.picture(given[0], *given[2:4], x)
        for k, why in _not_finite(np.asarray(x), finite, job.table, names):
            if failed is None:
                raise ValueError(why)
            bad.setdefault(int(order.image[chunk * order.batch + k]), why)
        results += list(np.asarray(x))
        counts.append(calls)
        while finished is not None and len(results) >= samples and told < len(job.ys):
            each = np.concatenate(counts)[told * samples :][:samples]
            if told in bad:
                failed(told, bad[told])
            else:
                finished(told, np.stack(results[:samples]), each, job.table)
            told, results = told + 1, results[samples:]
    return None if finished is not None else np.stack(results[: order.total]), np.concatenate(counts)[: order.total]


def _not_finite(x, finite, table, names):
    """(number in the batch, what to say of it) of each restoration that is not finite."""
    for n, rows in enumerate(finite):
        if not rows.all():
            first = int(np.argmin(rows))
            begun = f"from row {first} of {len(rows)} on (t = {float(table.t[first]):g})"
            why = f"{begun}: the prior or the method diverges, try more steps or another prior"
        elif not np.isfinite(x[n]).all():
            why = "at the end, although every row was: report this as a bug"
        else:
            continue
        yield n, f"the restoration of {names[n]} is not finite {why}"
