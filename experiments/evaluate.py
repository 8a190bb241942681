"""Methods against each other on held-out images: ``python -m experiments.evaluate [--tasks] [--prior NAME] [--methods ...]``.

Every method restores the same bundled images from the same measurements, one restoration each, clamped to [-1, 1].
Without --tasks: inpainting behind the papers' seven masks. Columns: hole PSNR (dB, peak 2 on [-1, 1], mean over images, at
most 48.1: an error of one grey level), lpips@64 of the whole image, network calls per image (seconds: experiments.seconds).
Writes inpainting_PRIOR; inpainting_PRIOR_lpips and _psnr, a row for each method and a column for each mask;
inpainting_PRIOR_differences (_differences_lpips: a column for each mask), paired differences between methods with a 95 %
interval over the images; inpainting_PRIOR_order, the order of CoPaint's paper beside ours.
With --tasks: what plug-and-play papers report, with noise (0.05 on [0, 1]) and without. Columns: PSNR, SSIM, lpips@64, misfit
|A x - y| / (noise_std sqrt m) (the truth's is 1; without noise |A x - y| / sqrt m), and the difference in lpips from the best
method with its paired 95 % interval. Writes plug_and_play_PRIOR, _noisy, _noiseless and _differences.
Each is a .json and a .md file in experiments/results, and there is a .png with the first two images of each cell. A cell
without a number says why. A cell is kept in --cells as soon as it is done, so an interrupted run goes on; --fresh computes all
again. --quick runs a little of everything in minutes; --paper runs the papers' own settings (experiments.paper_settings), on 8
images, and writes inpainting_PRIOR_paper and plug_and_play_PRIOR_paper.
"""

from __future__ import annotations

import functools
import json
import shlex
import sys
from pathlib import Path

import numpy as np

from diffjax.cli.errors import UserError, library_errors, run, unknown
from diffjax.cli.options import Parser

from . import record
from .comparisons import CEILING, across, layout, order, tables, task_tables

MASKS = ("half", "wide", "expand", "altern", "sr2", "narrow", "text")
TASKS = ("deblur", "motion", "sr4", "box", "random")
NOISE = (0.05, 0.0)
SHOWN = 2  # images of a cell that are kept for the pictures


@functools.cache
def scorers() -> dict:
    """Compiled scores of batches, by name."""
    import jax

    from diffjax import metrics, zoo

    weights = zoo.lpips_weights()
    return {
        "psnr": jax.jit(jax.vmap(metrics.psnr)),
        "psnr_hole": jax.jit(jax.vmap(metrics.psnr_hole)),
        "ssim": jax.jit(jax.vmap(metrics.ssim)),
        "lpips": jax.jit(lambda a, b: jax.lax.map(lambda ab: metrics.lpips(*ab, weights), (a, b))),
    }


def score(name, *arrays):
    """One score per image, float64."""
    return np.asarray(scorers()[name](*(np.asarray(a, np.float32) for a in arrays)), np.float64)


def scores(x, truth, masks=None):
    """Per image: PSNR of the hole (100 where exact), of the image without masks, and lpips@64. x, truth: (N, H, W, C);
    masks: (N, H, W)."""
    psnr = score("psnr", x, truth) if masks is None else score("psnr_hole", x, truth, masks)
    return np.minimum(psnr, 100.0), score("lpips", x, truth)


def holes(operators):
    """(N, H, W) masks of a list of operators that are masks; None for others."""
    masks = [getattr(A, "mask", None) for A in operators]
    return None if masks[0] is None else np.stack([np.asarray(m)[..., 0] for m in masks])


# --- cells: scores per image and network calls of one method on one measurement -----------------------------------------


def registry(options) -> dict:
    """The methods by name: ours, or the papers'."""
    from diffjax import registry as methods

    from . import paper_settings

    return paper_settings.METHODS if options.paper else methods.METHODS


def steps_of(name, options):
    """Levels of the timetable; None: the method's own."""
    entry = registry(options).get(name)
    if options.steps is not None or entry is None:
        return options.steps
    if options.quick:
        return min(entry.steps, 8)
    return options.at_most if entry.steps > (options.at_most or np.inf) else None


def cell(prior, name, truth, masks, options, programs=None) -> dict:
    """One method behind one kind of mask."""
    from diffjax.batch import inpaint

    from .baselines import biharmonic

    ys = np.where(masks[..., None] > 0, truth, 0).astype(np.float32)
    if name == "biharmonic":
        x, calls = np.stack([biharmonic(y, mask) for y, mask in zip(ys, masks)]), 0
    else:
        try:
            done = inpaint(prior, registry(options)[name], ys, masks, steps=steps_of(name, options), seed=options.seed,
                           batch=options.batch, programs=programs)  # fmt: skip
        except UserError as error:
            return {"reason": str(error)}
        x, calls = done.x[:, 0], done.network_calls
    x = np.clip(x, -1, 1)
    return inpainted(x, calls, truth, masks)


def inpainted(x, calls, truth, masks) -> dict:
    """The cell of restorations x (N, H, W, C)."""
    psnr, perceptual = scores(x, truth, masks)
    return {"psnr_hole": psnr.round(3).tolist(), "lpips": perceptual.round(5).tolist(), **about(x, calls)}


def regularised(y, A, noise_std):
    """argmin |A x - y|^2 / noise_std^2 + |x|^2, noise_std at least 0.02: what knows nothing of images but their range."""
    return np.asarray(A.prox(np.zeros(A.T(y).shape, np.float32), max(noise_std, 0.02) ** 2, y))


def task_cell(prior, name, task, truth, noise_std, options, programs=None) -> dict:
    """One method on one task."""
    from diffjax.batch import restore
    from diffjax.cli.tasks import measure
    from diffjax.registry import kind

    ys, operators = measure(task, truth, noise_std, options.seed)
    if name == "regularised":
        x, calls = np.stack([regularised(y, A, noise_std) for y, A in zip(ys, operators)]), 0
    else:
        entry = registry(options)[name]
        if kind(operators[0]) not in entry.tasks:
            return {"reason": f"{name} is for {' and '.join(entry.tasks)} only"}
        try:
            done = restore(prior, entry, ys, operators, noise_std=noise_std, steps=steps_of(name, options), seed=options.seed,
                           batch=options.batch, programs=programs)  # fmt: skip
        except UserError as error:
            return {"reason": str(error)}
        x, calls = done.x[:, 0], done.network_calls
    return restored(np.clip(x, -1, 1), calls, truth, ys, operators, noise_std)


def restored(x, calls, truth, ys, operators, noise_std) -> dict:
    """The cell of restorations x (N, H, W, C)."""
    from diffjax.cli.tasks import misfit

    psnr, perceptual = scores(x, truth)
    return {
        "psnr": psnr.round(3).tolist(),
        "ssim": score("ssim", x, truth).round(4).tolist(),
        "lpips": perceptual.round(5).tolist(),
        "misfit": [round(misfit(A, image, y, noise_std), 4) for A, image, y in zip(operators, x, ys)],
        **about(x, calls),
    }


def about(x, calls) -> dict:
    import jax

    return {"network_calls": calls, "device": jax.devices()[0].device_kind, "shown": bytes_of(x)}


def bytes_of(x) -> list:
    """The first images as lists of bytes."""
    from diffjax.cli.images import to_uint8

    return np.stack([to_uint8(image) for image in x[:SHOWN]]).tolist()


def kept(file: Path, make, fresh: bool):
    """What ``file`` holds, or else the result of ``make()``, which is written there."""
    if file.is_file() and not fresh:
        return json.loads(file.read_text())
    found = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(found))
    temporary.replace(file)
    return found


# --- what is written ---------------------------------------------------------------------------------------------------


def picture(cells, whats, methods, seen, truth, path):
    """PNG of what the cells {(what, method): cell} show: SHOWN rows for each of ``whats``, a column for each method. seen:
    {what: measured images}. Methods without pictures (none, or cells of an earlier version) are left out."""
    from diffjax.cli.figures import grid

    has = [m for m in methods if any("shown" in cells[what, m] for what in whats)]
    blank = [np.ones_like(truth[0])] * SHOWN
    of = lambda c: (
        [np.asarray(a, np.float32).reshape(truth[0].shape) / 127.5 - 1 for a in c["shown"]] if "shown" in c else blank
    )
    columns = [("measured", [image for what in whats for image in np.clip(seen[what][:SHOWN], -1, 1)])]
    columns += [(m, [image for what in whats for image in of(cells[what, m])]) for m in has]
    columns.append(("truth", list(truth[:SHOWN]) * len(whats)))
    grid(columns, path, [what for what in whats for _ in range(SHOWN)])


def without_pictures(c):
    return {key: value for key, value in c.items() if key != "shown"}


def devices(cells) -> str:
    """What the cells were computed on."""
    return ", ".join(sorted({c["device"] for c in cells.values() if "device" in c}))


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
    p.add_argument("--out", help="folder of the result files (default: experiments/results; --quick: runs/quick)")
    p.add_argument("--cells", default="runs/evaluate", help="folder where finished cells are kept")
    p.add_argument("--fresh", action="store_true", help="compute finished cells again")
    p.add_argument("--quick", action="store_true", help="masks and tasks, four images, at most eight levels")
    p.add_argument("--paper", action="store_true", help="the papers' settings: masks, or with --tasks tasks, eight images")
    return p


def main(argv=None) -> int:
    from diffjax.cli.tasks import TASKS as KNOWN
    from diffjax.operators.masks import ALIASES
    from diffjax.registry import ANY

    options = parser().parse(argv)
    methods = registry(options)
    for name in options.methods or ():
        if name not in methods:
            raise unknown("method", name, methods)
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
    options.out = options.out or ("runs/quick" if options.quick else str(record.FOLDER))

    from diffjax import zoo

    with library_errors():
        prior = zoo.load(options.prior)
        truth, _ = zoo.bundled.images(zoo.bundled.for_channels(prior.shape[-1]))
    truth = np.asarray(truth[: options.count])
    if truth.shape[1:] != prior.shape:
        raise UserError(f"prior {options.prior} takes images of shape {prior.shape}, the bundled ones are {truth.shape[1:]}")
    given = [a for a in (sys.argv[1:] if argv is None else argv) if a != "--fresh"]
    command = shlex.join(["python", "-m", "experiments.evaluate", *given])
    if options.tasks is None or (options.quick and options.masks):
        inpainting(prior, truth, options.methods or list(methods), options, command)
    if options.tasks is not None or (options.quick and options.masks is None):
        every = [name for name, e in methods.items() if e.tasks == ANY and not e.long]
        plug_and_play(prior, truth, options.methods or every, options, command)
    return 0


def cell_file(prior, what, name, truth, options):
    steps = steps_of(name, options) or ("paper" if options.paper else "default")
    return Path(options.cells) / prior.name / f"{what}_{name}_{steps}_{options.seed}_{len(truth)}.json"


def say(what, name, found):
    lpips = f"lpips {np.mean(found.get('lpips', np.nan)):.4f}"
    print(f"{what} {name}: {found.get('reason', lpips)}", file=sys.stderr, flush=True)


def inpainting(prior, truth, methods, options, command):
    """The masks' part."""
    from diffjax.batch import Programs
    from diffjax.operators.masks import make

    names, methods = options.masks or (MASKS[:2] if options.quick else MASKS), ["biharmonic", *methods]
    programs, cells = {name: Programs() for name in methods}, {}
    for mask in names:
        masks = np.stack([make(mask, truth.shape[1:3], seed=n) for n in range(len(truth))])
        for method in methods:
            file = cell_file(prior, mask, method, truth, options)
            make_it = lambda: cell(prior, method, truth, masks, options, programs[method])  # noqa: B023
            cells[mask, method] = kept(file, make_it, options.fresh)
            say(mask, method, cells[mask, method])
    found, differences = tables(cells, names, methods)
    on = devices(cells)
    per_image = {f"{mask}/{method}": without_pictures(c) for (mask, method), c in cells.items()}
    name = f"inpainting_{prior.name}" + "_paper" * options.paper + (f"_at_most_{options.at_most}" if options.at_most else "")
    print(record.write(name, command, found, options.out, images=len(truth), device=on, cells=per_image))
    for score, key, most in (("lpips", "lpips", np.inf), ("psnr", "psnr_hole", CEILING)):
        rows = layout(cells, names, methods, key, most)
        print(f"\n{score}\n" + record.write(f"{name}_{score}", command, rows, options.out, images=len(truth), device=on))
    print(record.write(f"{name}_differences", command, differences, options.out, images=len(truth), device=on))
    if set(MASKS) <= set(names) and (rows := order(cells, MASKS, methods)):
        record.write(f"{name}_order", command, rows, options.out, images=len(truth), device=on)
    rows = across(differences, (*names, "average"), "lpips@64")
    record.write(f"{name}_differences_lpips", command, rows, options.out, images=len(truth), device=on)
    seen = {m: [np.where(make(m, x.shape[:2], seed=n)[..., None] > 0, x, 0) for n, x in enumerate(truth)] for m in names}
    picture(cells, names, methods, seen, truth, Path(options.out) / f"{name}.png")


def plug_and_play(prior, truth, methods, options, command):
    """The tasks' part."""
    from diffjax.batch import Programs
    from diffjax.cli.tasks import measure

    names = options.tasks or (("deblur", "box") if options.quick else TASKS)
    noises = options.noise[:1] if options.quick else options.noise
    methods, cells = ["regularised", *methods], {}
    programs = {(name, noise): Programs() for name in methods for noise in noises}
    for noise in noises:
        for task in names:
            for method in methods:
                file = cell_file(prior, f"tasks/{task}_{noise:g}", method, truth, options)
                own = programs[method, noise]
                make_it = lambda: task_cell(prior, method, task, truth, 2 * noise, options, own)  # noqa: B023
                cells[task, noise, method] = kept(file, make_it, options.fresh)
                say(f"{task} {noise:g}", method, cells[task, noise, method])
    found, by_method, differences = task_tables(cells, names, noises, methods, options.baseline)
    on = devices(cells)
    per_image = {f"{task}/{noise:g}/{method}": without_pictures(c) for (task, noise, method), c in cells.items()}
    name = f"plug_and_play_{prior.name}" + "_paper" * options.paper
    print(record.write(name, command, found, options.out, images=len(truth), device=on, cells=per_image))
    for noise, rows in by_method.items():
        suffix = {0.05: "noisy", 0.0: "noiseless"}.get(noise, f"noise_{noise:g}".replace(".", "_"))
        print(f"\n{suffix}\n" + record.write(f"{name}_{suffix}", command, rows, options.out, images=len(truth), device=on))
        here = {(task, method): cells[task, noise, method] for task in names for method in methods}
        seen = {task: measure(task, truth, 2 * noise, options.seed)[0] for task in names}
        picture(here, names, methods, seen, truth, Path(options.out) / f"{name}_{suffix}.png")
    print(record.write(f"{name}_differences", command, differences, options.out, images=len(truth), device=on))


if __name__ == "__main__":
    sys.exit(run(main))
