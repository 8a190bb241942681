"""One prior's part of ``diffjax restore``: every image is written as soon as it is done."""

from __future__ import annotations

import difflib
import hashlib
import sys
import warnings
from dataclasses import replace

import numpy as np

from .. import __version__, batch, registry
from ..zoo import beside
from . import inputs, latents, outputs, progress, report, tasks, tiles, told
from .errors import UserError, one_line

LATENT_METHOD = "psld"
NOISE = 0.05


def restore(o, output, stop) -> dict:
    """Restore the images of ``o`` with its prior, into ``output``; -> the content of metrics.json. stop: of a ``guard``."""
    prior, classifier = inputs.networks(o)
    told.check(o, prior, o.label)
    o.method = method_of(o, prior)
    if o.task is not None and o.noise is None:  # a prior that is told what is measured learned it without noise
        o.noise = 0.0 if o.method == registry.CONDITIONAL.name else NOISE
    if o.paste and o.task is not None and o.noise:
        raise UserError(f"--paste puts in what was measured, noise and all, and --noise is {o.noise:g}: leave out --paste")
    height, width, channels = prior.image_shape
    if o.task is None:
        pictures, ys, operators = inputs.whole_or_fitted(o, prior) if o.tiles else inputs.load(o, prior), None, None
        held = [inputs.mask_of(o, prior, n, pictures) for n in range(len(pictures))]
        for name, mask in zip(pictures.names, held):
            if mask.shape != (height, width):
                tiles.check_holes(mask, height, name)
    else:  # nothing is known for sure: all of the image is filled in
        pictures, ys, operators, shapes = inputs.measured(o, prior)
        held = [np.zeros(shape, np.float32) for shape in shapes]
    for note in dict.fromkeys(pictures.notes):
        inputs.say(note)
    latents.check_scale(prior, pictures.images if not o.degraded else [])
    lost = dict(enumerate(pictures.lost, -len(pictures.lost)))  # what cannot be done, by number: below 0 what has none
    for line in lost.values():
        _say_lost(line)
    labels = inputs.labels_of(o, prior if prior.classes or classifier is None else classifier, pictures)
    entry = registry.get(o.method)
    place = outputs.file_name(prior.name)
    folder = output.folder / place
    settings = {k: getattr(o, k) for k in ("cfg", "samples", "steps", "seed", "batch", "devices", "paste")}
    settings["masked"] = o.mask_latents
    settings["paste"] |= prior.beside in beside.HOLES and prior.autoencoder is not None and not o.noise  # as its script blends
    settings |= {"classifier": classifier, "classifier_scale": 1.0 if o.classifier_scale is None else o.classifier_scale}
    if o.task is not None:
        about_noise(o, tiles.widen(prior, (*shapes[0], channels)), entry, ys[0], operators[0])
    raw = sum(m.size for m in held) * channels * (o.samples + (o.samples > 1))  # half of it, packed, is surely needed
    outputs.check_room(o.out, raw // 2, height * width * channels // 2)

    inputs_of = [_digest(*([pictures.images[n], held[n]] if ys is None else [ys[n]])) for n in range(len(pictures))]
    label_of = lambda n: None if labels is None or prior.conditional else labels[n]
    score, kept, done = report.scorer(o, prior), {}, {}

    def begin():
        """Claim the folder, when all is known to be in order; what a stopped run has done is taken over."""
        files = [f"{place}/{name}" for name in report.files(pictures.names, o.samples)]
        for line in output.begin(files, _depends(o, prior, classifier), len(pictures)):
            n = pictures.names.index(line["name"]) if line["name"] in pictures.names else None
            if n is not None and line["input"] == inputs_of[n]:
                done[n] = line
        if done:
            inputs.say(f"{len(done)} of {len(pictures)} images of {place} were done before")

    def finished(n, x, calls, table):
        stop.check()
        found = score(x, pictures.images[n], held[n], pictures.names[n], label_of(n))
        if o.task is not None:
            shown = np.clip(x, -1, 1)
            fit = np.mean([tasks.misfit(operators[n], some, ys[n], 2 * o.noise) for some in shown])
            found["misfit"] = round(float(fit), 5)
        report.write_image(folder, pictures.names[n], x)
        line = {"name": pictures.names[n], "input": inputs_of[n], "calls": float(np.mean(calls)), "rows": len(table)}
        done[n] = line | {"scores": found}
        output.finish(place, done[n])
        if n < report.ROWS:
            kept[n] = x

    def failed(n, why):
        stop.check()
        lost[n] = why
        _say_lost(why)

    if o.resume:
        begin()
    left = [n for n in range(len(pictures)) if n not in done]
    seconds, machine = (0.0, 0.0), (None, None)
    if left:
        what = f"task {o.task}" if o.task else f"mask {o.mask}{' inverted' * o.invert_mask}"
        work = (f"images: {len(left)} of {height}x{width}x{channels}, restorations of each: {o.samples}; {what}, "
                f"prior {prior.name}, {o.method}: compiling")  # fmt: skip

        def announce():
            if not output.begun(place):
                begin()
            if machine[0] is None:
                print(work, flush=True)

        settings["announce"] = announce
        for size in dict.fromkeys(held[n].shape for n in left):  # one program for all pictures of a size
            those = [n for n in left if held[n].shape == size]
            run = _run(o, tiles.widen(prior, (*size, channels)), entry, those, pictures, held, ys, operators, labels, stop,
                       finished, settings | {"failed": failed})  # fmt: skip
            seconds = seconds[0] + run.seconds_compile, seconds[1] + run.seconds_run
            machine = run.batch, run.devices
    stop.check()
    if not done:
        raise UserError(lost[0])
    whole = [n for n in range(len(pictures)) if n in done]
    lines = [done[n] for n in whole]
    content = report.summary(o, prior, lines, [line["scores"] for line in lines], seconds, machine)
    if o.task is not None:
        content["misfit"] = round(float(np.mean([line["scores"]["misfit"] for line in lines])), 5)
        content |= {"noise": o.noise, "degraded": o.degraded}
        if o.degraded:
            _judge(o, content["misfit"])
    if classifier is not None:
        content |= {"classifier": classifier.name, "classifier_scale": settings["classifier_scale"]}
    if lost:
        content["failed"] = list(lost.values())
    first = whole[: report.ROWS]
    shown = [kept[n] if n in kept else report.read_image(folder, pictures.names[n], o.samples) for n in first]
    pick = lambda values: None if values is None else [values[n] for n in first]
    some = replace(pictures, images=pick(pictures.images), names=pick(pictures.names))
    report.write(folder, some, pick(held), shown, content, pick(ys))
    return content


def _say_lost(line):
    print(f"error: {one_line(ValueError(line))}; it is left out", file=sys.stderr, flush=True)


def _run(o, prior, entry, those, pictures, held, ys, operators, labels, stop, finished, settings):
    """Restore the images of these numbers, which have one size."""
    pick = lambda values: None if values is None else [values[n] for n in those]
    settings = settings | {"labels": pick(labels), "names": pick(pictures.names), "numbers": those}
    with progress.watch("restoring") as report_rows:

        def rows(*counted):
            stop.check()
            report_rows(*counted)

        settings |= {"progress": rows, "finished": lambda k, *rest: finished(those[k], *rest)}
        settings |= {"failed": lambda k, why, failed=settings["failed"]: failed(those[k], why)}
        if o.task is None:
            return batch.inpaint(prior, entry, np.stack(pick(pictures.images)), np.stack(pick(held)), **settings)
        return batch.restore(prior, entry, np.stack(pick(ys)), pick(operators), noise_std=2 * o.noise, **settings)


def _judge(o, misfit):
    """What the misfit says of the operator and the noise that were assumed of something measured."""
    if o.noise and misfit > 1.2:
        inputs.say(f"the restorations miss what was measured by {misfit:.2f} times --noise {o.noise:g}, and 1 is right: "
                   "another blur, --border or --noise made it, or --steps are too few")  # fmt: skip
    elif o.noise and misfit < 0.8:
        inputs.say(f"the restorations fit what was measured to {misfit:.2f} times --noise {o.noise:g}, and 1 is right: "
                   "there is less noise in it, give a smaller --noise")  # fmt: skip
    elif not o.noise and misfit > 0.05:
        inputs.say(f"the restorations miss what was measured by {misfit / 2:.3f} of the range, and --noise is 0: "
                   "there is noise in it, or another blur or --border made it")  # fmt: skip


def _digest(*arrays) -> str:
    found = hashlib.sha256()
    for a in arrays:
        found.update(repr((a.shape, a.dtype.str)).encode() + np.ascontiguousarray(a).tobytes())
    return found.hexdigest()[:16]


def _depends(o, prior, classifier) -> dict:
    """What the pictures depend on beside themselves: a resumed run must have the same."""
    import jax

    weights = _digest(*[np.asarray(a) for a in jax.tree.leaves((prior.params, prior.autoencoder, classifier))])
    names = ("task mask invert_mask noise degraded border blur tiles method mask_latents paste label text boxes cfg "
             "classifier_scale samples steps seed")  # fmt: skip
    return {"place": outputs.file_name(prior.name), "prior": prior.name, "weights": weights, "version": __version__,
            "prior_config": dict(o.prior_config or ()), **{name: getattr(o, name) for name in names.split()}}  # fmt: skip


def method_of(o, prior) -> str:
    """--method, or the default; UserError where it cannot restore with a prior of latents, or an option is about latents."""
    usual = "repaint" if o.task is None else "diffpir"
    if o.method == registry.CONDITIONAL.name and not prior.beside:
        raise UserError(
            f"--method {o.method} is for priors that are told what is measured, and {prior.name} is not: leave it out"
        )
    if prior.beside and o.mask_latents:
        raise UserError(f"prior {prior.name} is told what is measured, and --mask-latents is about others: leave it out")
    if prior.beside and o.method in (None, registry.CONDITIONAL.name):
        return registry.CONDITIONAL.name
    if prior.autoencoder is None:
        for given, name in ((o.mask_latents, "--mask-latents"), (o.paste, "--paste")):
            if given:
                raise UserError(f"prior {prior.name} is one of pixels, and {name} is about latents: leave it out")
        return o.method or usual
    if o.mask_latents:
        return o.method or usual
    able = registry.in_latents()
    if o.method is not None and o.method not in able:
        masked = ", or --mask-latents" if o.task is None else ""
        raise UserError(f"--method {o.method} does not restore through a decoder, and prior {prior.name} is one of latents: "
                        f"use {', '.join(able)}{masked}")  # fmt: skip
    return o.method or LATENT_METHOD


def about_noise(o, prior, entry, y, A):
    """Say what a method without a model of the noise makes of it; UserError where it refuses noise."""
    from ..base import Measurement, Units
    from ..operators import Decoded

    if not o.noise:
        return
    told = prior.told(Measurement(y, A)) if prior.beside else 0 if prior.classes else None
    denoise = prior.denoiser(told, clip=entry.clip and prior.autoencoder is None)
    A = A if prior.autoencoder is None else Decoded(A, prior.autoencoder)
    build = lambda std: entry.build(denoise, Measurement(y, A, std), entry.steps if o.steps is None else o.steps)[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Units)  # here all are in [-1, 1]
            method = build(2 * o.noise)
    except ValueError as error:
        try:
            build(0.0)
        except ValueError:
            raise error from None
        others = [name for name, e in registry.METHODS.items() if name != o.method and set(e.tasks) >= set(entry.tasks)]
        near = difflib.get_close_matches(o.method, others, n=1, cutoff=0.6) or ["diffpir"]
        raise UserError(f"--method {o.method} takes no noise, and --noise is {o.noise:g}: give --noise 0, or --method "
                        f"{near[0]}, which knows of noise") from None  # fmt: skip
    if getattr(type(method), "noise", "modelled") == "ignored":
        print(f"note: {o.method} has no model of noise, what --noise {o.noise:g} adds is taken for the picture: "
              f"{'diffpir has' if prior.autoencoder else 'diffpir, ddrm and ddnm+ have'} one")  # fmt: skip
