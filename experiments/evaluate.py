"""Methods against each other on held-out images: ``python -m experiments.evaluate [--prior NAME] [--methods ...]``.

Every method restores the same bundled images behind the same masks, one restoration each. Columns of the first table: hole
PSNR (dB, peak 2 on [-1, 1], mean over images, at most 48.1: an error of one grey level), lpips@64 of the whole image,
network calls and seconds per image of the compiled program. The second table has paired differences between methods, each
with a 95 % interval over the images. A cell (mask, method) is kept in --cells as soon as it is done, so an interrupted run
goes on; --fresh computes all again.
Writes inpainting_PRIOR and inpainting_PRIOR_differences, .json and .md, into experiments/results.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

import numpy as np

from . import record
from .errors import run
from .options import Parser

MASKS = ("half", "wide", "expand")
CEILING = 20 * np.log10(255)  # a hole of pure background can be filled exactly: one such image must not rule the mean
# what the papers lead one to expect to be positive in PSNR and negative in lpips
PAIRS = (
    ("repaint", "biharmonic"),
    ("copaint-fast", "repaint"),
    ("copaint", "repaint"),
    ("copaint-tt", "repaint"),
    ("copaint-tt", "copaint"),
)


def scores(x, truth, masks):
    """Per image: hole PSNR (100 where exact) and lpips@64. x, truth: (N, H, W, C); masks: (N, H, W)."""
    import jax
    import jax.numpy as jnp

    from diffjax import metrics, zoo

    hole = jax.jit(jax.vmap(metrics.psnr_hole))(x, truth, masks)
    weights = zoo.lpips_weights()
    perceptual = jax.jit(lambda a, b: jax.lax.map(lambda ab: metrics.lpips(*ab, weights), (a, b)))
    return np.minimum(hole, 100.0), np.asarray(perceptual(jnp.asarray(x), jnp.asarray(truth)))


def interval(differences):
    """(mean, half width of the 95 % interval) of paired differences, normal approximation."""
    d = np.asarray(differences, np.float64)
    return float(d.mean()), float(1.96 * d.std(ddof=1) / np.sqrt(len(d)))


def cell(prior, name, truth, masks, options) -> dict:
    """Scores per image, network calls and seconds per image of one method behind one kind of mask."""
    from .baselines import biharmonic
    from .methods import METHODS
    from .solve import inpaint

    ys = np.where(masks[..., None] > 0, truth, 0).astype(np.float32)
    start = time.perf_counter()
    if name == "biharmonic":
        x, calls = np.stack([biharmonic(y, mask) for y, mask in zip(ys, masks)]), 0
        seconds = time.perf_counter() - start
    else:
        done = inpaint(prior, METHODS[name], ys, masks, steps=options.steps, seed=options.seed, batch=options.batch)
        x, calls, seconds = done.x[:, 0], done.network_calls, done.seconds_run
    psnr, perceptual = scores(x, truth, masks)
    return {
        "psnr_hole": psnr.round(3).tolist(),
        "lpips": perceptual.round(5).tolist(),
        "network_calls": calls,
        "seconds": round(seconds / len(ys), 3),
    }


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


def tables(cells: dict, masks, methods):
    """(rows of the scores, rows of the paired differences) from {(mask, method): cell}."""
    found, differences = [], []
    cells = {k: c | {"psnr_hole": np.minimum(c["psnr_hole"], CEILING)} for k, c in cells.items()}
    for mask in masks:
        for method in methods:
            c = cells[mask, method]
            found.append({"mask": mask, "method": method, "hole PSNR": float(np.mean(c["psnr_hole"])),
                          "lpips@64": float(np.mean(c["lpips"])), "network calls": c["network_calls"],
                          "s / image": c["seconds"]})  # fmt: skip
        for a, b in PAIRS:
            if a in methods and b in methods:
                row = {"mask": mask, "difference": f"{a} - {b}"}
                for key, label, form in (("psnr_hole", "hole PSNR", "+.2f"), ("lpips", "lpips@64", "+.4f")):
                    mean, half = interval(np.subtract(cells[mask, a][key], cells[mask, b][key]))
                    row[label] = f"{mean:{form}} ± {half:{form[1:]}}"
                differences.append(row)
    return found, differences


def main(argv=None) -> int:
    from .errors import UserError, library_errors, unknown
    from .methods import METHODS

    parser = Parser("experiments.evaluate", __doc__)
    parser.add_argument("--prior", default="fashion32", help="a prior for 32 x 32 images: the bundled ones are its test")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="of: " + ", ".join(METHODS))
    parser.add_argument("--masks", nargs="+", default=list(MASKS))
    parser.add_argument("--count", type=int, default=32, help="images per cell, at most those bundled (default 32)")
    parser.add_argument("--steps", type=int, default=None, help="levels of the timetable (default: the method's)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(record.FOLDER), help="folder of the result files")
    parser.add_argument("--cells", default="runs/evaluate", help="folder where finished cells are kept")
    parser.add_argument("--fresh", action="store_true", help="compute finished cells again")
    options = parser.parse(argv)
    for name in options.methods:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    if options.count < 2:
        raise UserError(f"--count {options.count} is too small: an interval needs at least 2 images")

    from diffjax import zoo

    from .masks import make

    with library_errors():
        prior = zoo.load(options.prior)
        truth, _ = zoo.bundled.images(zoo.bundled.for_channels(prior.shape[-1]))
    truth = np.asarray(truth[: options.count])
    if truth.shape[1:] != prior.shape:
        raise UserError(f"prior {options.prior} takes images of shape {prior.shape}, the bundled ones are {truth.shape[1:]}")
    cells, methods = {}, ["biharmonic", *options.methods]
    for mask in options.masks:
        masks = np.stack([make(mask, truth.shape[1:3], seed=n) for n in range(len(truth))])
        for method in methods:
            steps = f"{options.steps or 'default'}_{options.seed}_{len(truth)}"
            file = Path(options.cells) / prior.name / f"{mask}_{method}_{steps}.json"
            cells[mask, method] = kept(file, lambda: cell(prior, method, truth, masks, options), options.fresh)  # noqa: B023
            print(f"{mask} {method}: {cells[mask, method]['seconds']} s per image", file=sys.stderr, flush=True)
    found, differences = tables(cells, options.masks, methods)
    given = [a for a in (sys.argv[1:] if argv is None else argv) if a != "--fresh"]
    command = shlex.join(["python", "-m", "experiments.evaluate", *given])
    per_image = {f"{mask}/{method}": c for (mask, method), c in cells.items()}
    name = f"inpainting_{prior.name}"
    print(record.write(name, command, found, options.out, images=len(truth), cells=per_image))
    print(record.write(f"{name}_differences", command, differences, options.out, images=len(truth)))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
