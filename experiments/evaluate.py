"""Methods against each other on held-out images: ``python -m experiments.evaluate [--masks half wide] [--methods ...]``.

Every method restores the same bundled images behind the same masks. Columns: hole PSNR (dB, peak 2 on [-1, 1], mean over
images), lpips@64 of the whole image, network calls and seconds per image; then hole PSNR and lpips minus biharmonic's with
a paired 95 % interval. Writes experiments/results/inpainting_PRIOR.json and .md.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from . import record
from .errors import run

MASKS = ("half", "wide", "expand")


def scores(x, truth, masks):
    """Per image: hole PSNR and lpips@64. x, truth: (N, H, W, C); masks: (N, H, W)."""
    import jax
    import jax.numpy as jnp

    from diffjax import metrics, zoo

    hole = jax.jit(jax.vmap(metrics.psnr_hole))(x, truth, masks)
    weights = zoo.lpips_weights()
    perceptual = jax.jit(lambda a, b: jax.lax.map(lambda ab: metrics.lpips(*ab, weights), (a, b)))
    return np.asarray(hole), np.asarray(perceptual(jnp.asarray(x), jnp.asarray(truth)))


def interval(differences):
    """(mean, half width of the 95 % interval) of paired differences, normal approximation."""
    d = np.asarray(differences, np.float64)
    return float(d.mean()), float(1.96 * d.std(ddof=1) / np.sqrt(len(d)))


def cell(prior, name, ys, masks, options):
    """(restorations, network calls, seconds per image) of one method."""
    import time

    from .baselines import biharmonic
    from .methods import METHODS
    from .solve import inpaint

    if name == "biharmonic":
        start = time.perf_counter()
        x = np.stack([biharmonic(y, mask) for y, mask in zip(ys, masks)])
        return x, 0, (time.perf_counter() - start) / len(ys)
    done = inpaint(prior, METHODS[name], ys, masks, steps=options.steps, seed=options.seed, batch=options.batch)
    return done.x[:, 0], done.network_calls, done.seconds_run / len(ys)


def main(argv=None) -> int:
    from .errors import library_errors, unknown
    from .methods import METHODS

    parser = argparse.ArgumentParser(prog="python -m experiments.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--prior", default="fashion32", help="a prior that ships and has bundled images")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="of: " + ", ".join(METHODS))
    parser.add_argument("--masks", nargs="+", default=list(MASKS))
    parser.add_argument("--count", type=int, default=32, help="images per cell")
    parser.add_argument("--steps", type=int, default=None, help="levels of the timetable (default: the method's)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(record.FOLDER), help="folder of the result files")
    options = parser.parse_args(argv)
    for name in options.methods:
        if name not in METHODS:
            raise unknown("method", name, METHODS)

    from diffjax import zoo

    from .masks import make

    with library_errors():
        prior = zoo.load(options.prior)
        truth, _ = zoo.bundled.images(options.prior.rstrip("0123456789"))
    truth = np.asarray(truth[: options.count])
    rows, per_image = [], {}
    for mask_name in options.masks:
        masks = np.stack([make(mask_name, truth.shape[1:3], seed=n) for n in range(len(truth))])
        ys = np.where(masks[..., None] > 0, truth, 0).astype(np.float32)
        reference = None
        for method in ["biharmonic", *options.methods]:
            x, calls, seconds = cell(prior, method, ys, masks, options)
            psnr, perceptual = scores(x, truth, masks)
            psnr = np.minimum(psnr, 100.0)  # a hole of pure background is filled exactly: infinite
            row = {"mask": mask_name, "method": method, "images": len(truth), "hole PSNR": float(psnr.mean()),
                   "lpips@64": float(perceptual.mean()), "network calls": calls, "s / image": seconds}  # fmt: skip
            if reference is not None:
                (gain, gain_ci), (better, better_ci) = interval(psnr - reference[0]), interval(perceptual - reference[1])
                row |= {
                    "PSNR - biharmonic": f"{gain:+.2f} ± {gain_ci:.2f}",
                    "lpips - biharmonic": f"{better:+.4f} ± {better_ci:.4f}",
                }
            else:
                reference = psnr, perceptual
            rows.append(row)
            per_image[f"{mask_name}/{method}"] = {"psnr_hole": psnr.round(3).tolist(), "lpips": perceptual.round(5).tolist()}
    command = "python -m experiments.evaluate" + "".join(f" {a}" for a in (argv if argv is not None else sys.argv[1:]))
    print(record.write(f"inpainting_{options.prior}", command, rows, options.out, per_image=per_image))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
