"""Methods against each other on held-out images: ``python -m experiments.evaluate [--tasks] [--prior NAME] [--methods ...]``.

Every method restores the same bundled images from the same measurements, one restoration each, clamped to [-1, 1].
Without --tasks: inpainting behind the papers' seven masks. Columns: hole PSNR (dB, peak 2 on [-1, 1], mean over images, at
most 48.1: an error of one grey level), lpips@64 of the whole image, network calls per image (seconds: experiments.seconds).
Writes inpainting_PRIOR.
With --tasks: what plug-and-play papers report, with noise (0.05 on [0, 1]) and without. Columns: PSNR, SSIM, lpips@64, misfit
|A x - y| / (noise_std sqrt m) (the truth's is 1; without noise |A x - y| / sqrt m), and the difference in lpips from the best
method with its paired 95 % interval. Writes plug_and_play_PRIOR.
Each is a .json file in experiments/results with the scores of every image, from which all tables follow (``python -m
experiments.record NAME VIEW`` shows one); with --picture there is a .png of the first two images of each cell beside it. A
cell without a number says why. A cell is kept in --cells as soon as it is done, so an interrupted run goes on; one whose code
or settings have changed since is computed again (with --tables, which computes nothing, it is refused). --quick runs a little
of everything in minutes; --paper runs the papers' own settings (``registry.papers``), on 8 images, and writes
inpainting_PRIOR_paper and plug_and_play_PRIOR_paper.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from .tools import code, provenance, records, views
from .tools.cells import Cells
from .tools.comparisons import MASKS
from .tools.study import Parser, UserError, command, library_errors, render, run, unknown, use_cores

TASKS = ("deblur", "motion", "sr4", "box", "random")
NOISE = (0.05, 0.0)


# --- cells: scores per image and network calls of one method on one measurement -----------------------------------------


def registry(options) -> dict:
    """The methods by name: ours, or the papers'."""
    from diffjax import registry as methods

    return methods.papers() if options.paper else methods.METHODS


def steps_of(name, options):
    """Levels of the timetable; None: the method's own."""
    entry = registry(options).get(name)
    if options.steps is not None or entry is None:
        return options.steps
    if options.quick:
        return min(entry.steps or 8, 8)
    return options.at_most if (entry.steps or 1000) > (options.at_most or np.inf) else None


def cell(prior, name, truth, ys, operators, noise_std, options, programs=None) -> dict:
    """One method on measurements ys behind operators (a list, one for each)."""
    from diffjax.batch import restore

    from .tools import scores
    from .tools.pictures import bytes_of

    masks, tasks = scores.holes(operators), options.by_task
    if name in baselines():
        x, calls, seconds = np.stack([baselines()[name](y, A, noise_std) for y, A in zip(ys, operators)]), 0, 0.0
    else:
        if why := cannot(name, operators[0], options):
            return {"reason": why}
        try:
            done = restore(prior, registry(options)[name], ys, operators, noise_std=noise_std, steps=steps_of(name, options),
                           seed=options.seed, batch=options.batch, programs=programs)  # fmt: skip
        except ValueError as error:  # the library's refusals: one line each
            return {"reason": str(error)}
        x, calls, seconds = done.x[:, 0], done.network_calls, round(done.seconds_compile + done.seconds_run, 2)
    found = scores.restored(x, truth, ys, operators, noise_std) if tasks else scores.inpainted(x, truth, masks)
    return {**found, "network_calls": calls, "seconds": seconds, "shown": bytes_of(x)}


def baselines() -> dict:
    """{name: restoration of y behind A} that no prior knows of."""
    from .baselines import biharmonic
    from .tools.scores import regularised

    return {"biharmonic": lambda y, A, noise_std: biharmonic(y, np.asarray(A.mask)[..., 0]), "regularised": regularised}


def cannot(name, A, options) -> str:
    """Why a method is not for the operator; "" where it is."""
    from diffjax.registry import kind

    tasks = registry(options)[name].tasks
    return "" if kind(A) in tasks else f"{name} is for {' and '.join(tasks)} only"


def asked(prior, name, truth, ys, operators, noise_std, options) -> dict:
    """The fingerprints of a cell as it would be computed now."""
    from . import baselines as module
    from .tools.restorations import BESIDES, ENGINE, fingerprints

    if name in baselines():
        modules = code.behind(operators[0]) | {*ENGINE[1:], module.__name__}
        files = code.fingerprint(*sorted(modules), besides=BESIDES)
        return {"code": files, "settings": provenance.values(ys, operators, truth)}
    return fingerprints(prior, registry(options)[name], steps_of(name, options), noise_std, ys, operators, truth,
                        seed=options.seed)  # fmt: skip


# --- the program -------------------------------------------------------------------------------------------------------


def parser():
    from diffjax.registry import METHODS

    p = Parser("experiments.evaluate", __doc__)
    p.add_argument("--prior", default="fashion32", help="a prior for 32 x 32 images: the bundled ones are its test")
    p.add_argument(
        "--methods", nargs="+", help="of: " + ", ".join(METHODS) + " (default: all, with --tasks those of all tasks)"
    )
    p.add_argument("--masks", nargs="+", help=f"default: {' '.join(MASKS)}")
    p.add_argument("--tasks", nargs="*", help=f"other measurements than masks (alone: {' '.join(TASKS)})")
    p.add_argument("--noise", nargs="+", type=float, default=list(NOISE), help="with --tasks, on [0, 1] (default: 0.05 0)")
    p.add_argument("--baseline", default="diffpir", help="with --tasks, what the differences are from (default: diffpir)")
    p.add_argument("--count", type=int, help="images per cell, at most those bundled (default 32, with --paper 8)")
    p.add_argument("--steps", type=int, default=None, help="levels of the timetable (default: the method's)")
    p.add_argument("--at-most", type=int, metavar="N", help="N levels for methods that have more")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", help="folder of the result files (default: the checkout's experiments/results, else ./results; "
                                 "--quick: runs/quick)")  # fmt: skip
    p.add_argument("--cells", default="runs/evaluate", help="folder where finished cells are kept")
    p.add_argument("--fresh", action="store_true", help="compute finished cells again")
    p.add_argument("--tables", action="store_true", help="take the kept cells, compute nothing")
    p.add_argument("--allow-stale", action="store_true", help="take cells of other code or settings as they are")
    p.add_argument("--picture", action="store_true", help="a .png of the first images of each cell")
    p.add_argument("--quick", action="store_true", help="masks and tasks, four images, at most eight levels")
    p.add_argument("--paper", action="store_true", help="the papers' settings: masks, or with --tasks tasks, eight images")
    return p


def main(argv=None) -> int:
    use_cores()

    from diffjax.cli.tasks import TASKS as KNOWN
    from diffjax.operators.masks import ALIASES
    from diffjax.operators.masks import MASKS as KNOWN_MASKS
    from diffjax.registry import ANY

    options = parser().parse(argv)
    methods = registry(options)
    for name in options.methods or ():
        if name not in methods:
            raise unknown("method", name, methods)
    for name in options.masks or ():
        if ALIASES.get(name, name) not in KNOWN_MASKS:
            raise unknown("mask", name, KNOWN_MASKS)
    for name in options.tasks or ():
        if ALIASES.get(name, name) not in KNOWN:
            raise unknown("task", name, KNOWN)
    options.count = (8 if options.paper else 32) if options.count is None else options.count
    if options.quick:
        options.count = min(options.count, 4)
    if options.count < 2:
        raise UserError(f"--count {options.count} is too small: an interval needs at least 2 images")
    if min(options.noise) < 0:
        raise UserError(f"--noise {min(options.noise):g} is negative: give standard deviations >= 0, on [0, 1]")
    options.out = options.out or ("runs/quick" if options.quick else provenance.results())
    options.command = command("experiments.evaluate", argv)

    from diffjax import zoo

    with library_errors():
        prior = zoo.load(options.prior)
        shape = prior.image_shape
        truth, _ = zoo.bundled.images(zoo.bundled.for_channels(shape[-1], shape[0]))
    truth = np.asarray(truth[: options.count])
    if truth.shape[1:] != shape:
        raise UserError(f"prior {options.prior} takes images of shape {shape}, the bundled ones are {truth.shape[1:]}")
    if prior.autoencoder is not None:
        methods = {name: entry for name, entry in methods.items() if entry.latents is not None}
    if options.tasks is None or (options.quick and options.masks):
        inpainting(prior, truth, options.methods or list(methods), options)
    if options.tasks is not None or (options.quick and options.masks is None):
        every = [name for name, e in methods.items() if e.tasks == ANY and not e.long]
        plug_and_play(prior, truth, options.methods or every, options)
    return 0


def cell_name(prior, what, name, truth, options):
    steps = steps_of(name, options) or ("paper" if options.paper else "default")
    return f"{prior.name}/{what}_{name}_{steps}_{options.seed}_{len(truth)}"


def say(what, name, found):
    lpips = f"lpips {np.mean(found.get('lpips', np.nan)):.4f}"
    print(f"{what} {name}: {found.get('reason', lpips)}", file=sys.stderr, flush=True)


def run_cells(prior, truth, whats, methods, options):
    """({(what, method): cell}, what the record says of them). whats: {what: (place of cells, ys, operators, noise_std)}."""
    from diffjax.batch import Programs

    kept = Cells(options.cells, options.command, options.fresh, options.tables, options.allow_stale)
    cells, programs = {}, {}
    for what, (place, ys, operators, noise_std) in whats.items():
        for method in methods:
            given = prior, method, truth, ys, operators, noise_std, options
            shared = programs.setdefault((method, noise_std), Programs())
            name = cell_name(prior, place, method, truth, options)
            found = kept.get(name, lambda: asked(*given), lambda: cell(*given, shared))  # noqa: B023
            if found is None:
                raise UserError(f"no cell {name} is kept in {options.cells}: run {options.command}")
            cells[what, method] = found
            say(place, method, found)
    return cells, kept.about(cells.values())


def finish(name, kind, cells, about, whats, methods, truth, options, **more):
    """Write the record of {(what, method): cell}, its picture if there is to be one, and show its tables."""
    from .tools.pictures import picture

    bare = {f"{what}/{method}": {k: v for k, v in c.items() if k != "shown"} for (what, method), c in cells.items()}
    records.write(name, options.command, None, options.out, kind=kind, images=len(truth), **about, **more, cells=bare)
    for view in views.names(record := records.read(name, options.out)):
        if rows := views.rows(record, view):
            print(f"\n{name}: {view}\n{render(rows)}")
    if options.picture:
        seen = {what: ys for what, (_, ys, *_) in whats.items()}
        picture(cells, list(whats), methods, seen, truth, Path(options.out) / f"{name}.png")


def inpainting(prior, truth, methods, options):
    """The masks' part."""
    from diffjax.cli.tasks import measure

    options.by_task = False
    masks, methods = options.masks or (MASKS[:2] if options.quick else MASKS), ["biharmonic", *methods]
    whats = {mask: (mask, *measure(mask, truth), 0.0) for mask in masks}
    cells, about = run_cells(prior, truth, whats, methods, options)
    name = f"inpainting_{prior.name}" + "_paper" * options.paper + (f"_at_most_{options.at_most}" if options.at_most else "")
    finish(name, "inpainting", cells, about, whats, methods, truth, options)


def plug_and_play(prior, truth, methods, options):
    """The tasks' part."""
    from diffjax.cli.tasks import measure

    options.by_task = True
    tasks = options.tasks or (("deblur", "box") if options.quick else TASKS)
    noises, methods = options.noise[:1] if options.quick else options.noise, ["regularised", *methods]
    whats = {f"{task}/{noise:g}": (f"tasks/{task}_{noise:g}", *measure(task, truth, 2 * noise, options.seed), 2 * noise)
             for noise in noises for task in tasks}  # fmt: skip
    cells, about = run_cells(prior, truth, whats, methods, options)
    name = f"plug_and_play_{prior.name}" + "_paper" * options.paper
    finish(name, "tasks", cells, about, whats, methods, truth, options, baseline=options.baseline)


if __name__ == "__main__":
    sys.exit(run(main))
