"""Are there seams? ``python -m experiments.tiled``: pictures larger than the prior's, enlarged 4 times.

A canvas is held-out fruits of 64x64 side by side, moved round by a random number of pixels, so that the borders of tiles may
lie anywhere. It is made 4 times smaller and restored

tiles       by overlapping tiles in every call of the network, one picture throughout (``restore --tiles``; ``cli.tiles``)
side by side  by squares of the prior's size, each for itself: where seams are to be expected

by a prior of latents that is told the small picture beside its input (25 levels of DPM-Solver++ 2M), and by DiffPIR with a
prior of pixels; and by bicubic interpolation, which knows no tiles. The truth through the autoencoder and back, as a whole, is
what latents can reach.

PSNR     of 8-bit range; lpips: of the canvas
seams    how much the error (restored - truth) jumps from one pixel to the next, root mean square, where a tile begins or
         ends, over the same everywhere else: 1 where borders cannot be seen. With a 95 % interval over the canvases
seconds  of CPU for a canvas, its share of compiling included

Writes tiled.json, and tiled.png with the first canvas.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import diffjax as dj
from diffjax import batch, registry
from diffjax.cli import tiles
from diffjax.training import data

from .beside import held_out
from .tools import provenance, records
from .tools.comparisons import interval
from .tools.scores import score
from .tools.study import Parser, UserError, command, grid, library_errors, made, run, use_cores, whole

FACTOR = 4


def main(argv=None) -> int:
    use_cores()
    p = Parser("experiments.tiled", __doc__)
    p.add_argument("--sr", default="runs/fruits64_sr4", help="the prior that is told a small picture")
    p.add_argument("--pixels", default="runs/fruits64_pixel", help="a prior of pixels that is told nothing")
    p.add_argument("--data", default="data/fruits64.npz", help="python -m experiments.fruits makes it")
    p.add_argument("--canvases", type=whole(2), default=8, help="default: 8")
    p.add_argument("--rows", type=whole(1), default=2, help="of fruits in one (default: 2)")
    p.add_argument("--columns", type=whole(1), default=3, help="default: 3")
    p.add_argument("--steps", type=whole(1), help="levels in place of each method's own, to try the program out")
    p.add_argument("--seed", type=whole(0, 2**32 - 1), default=0)
    p.add_argument("--out", **provenance.OUT)
    o = p.parse(argv)
    begin, folder = time.perf_counter(), made(o.out)
    with library_errors():
        told, pixels = dj.zoo.load(o.sr), dj.zoo.load(o.pixels)
        side, _, channels = told.image_shape
        if pixels.image_shape != told.image_shape:
            raise UserError(f"--sr is of pictures {told.image_shape}, --pixels {pixels.image_shape}: give priors of one size")
        images = data.load(o.data, size=side, channels=channels)
    truth = canvases(held_out(images.test, o.canvases * o.rows * o.columns, o.seed), o.rows, o.columns, o.seed)
    small = np.stack([np.asarray(dj.operators.Resize(FACTOR)(x)) for x in truth])
    shown, rows = [("measured", small[:1])], []
    for prior, method in ((told, registry.CONDITIONAL), (pixels, registry.METHODS["diffpir"])):
        for way, restore in (("tiles", by_tiles), ("side by side", side_by_side)):
            start = time.process_time()
            with library_errors():
                x = restore(prior, method, small, o)
            seconds = (time.process_time() - start) / len(truth)
            rows.append({"prior": prior.name, "method": method.name, "way": way, **scored(x, truth, prior),
                         "seconds": round(seconds, 1)})  # fmt: skip
            print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
            shown.append((f"{prior.name}: {way}", x[:1]))
    free = {"bicubic": np.stack([np.asarray(dj.operators.resize(y, FACTOR)) for y in small])}
    if (auto := told.autoencoder) is not None:
        free["truth, encoded and decoded"] = np.stack([np.asarray(auto.decode(auto.encode(x))) for x in truth])
    for name, x in free.items():
        rows.append({"prior": "-", "method": name, "way": "whole", **scored(x, truth, told), "seconds": None})
        shown.append((name, x[:1]))
    grid([*shown, ("truth", truth[:1])], folder / "tiled.png", [""])
    print(records.write("tiled", command("experiments.tiled", argv), rows, o.out, canvases=len(truth),
                        priors={prior.name: prior.card.get("training") for prior in (told, pixels)},
                        seconds=round(time.perf_counter() - begin, 1)))  # fmt: skip
    return 0


def canvases(pictures, rows, columns, seed):
    """(N, H, W, C) of pictures (N rows columns, h, w, C), side by side, each canvas moved round."""
    _, height, width, channels = pictures.shape
    x = pictures.reshape(-1, rows, columns, height, width, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(-1, rows * height, columns * width, channels)
    moves = np.random.default_rng(seed).integers(0, (height, width), (len(x), 2))
    return np.stack([np.roll(canvas, move, (0, 1)) for canvas, move in zip(x, moves)])


def by_tiles(prior, method, small, o):
    shape = (FACTOR * small.shape[1], FACTOR * small.shape[2], small.shape[3])
    wide = tiles.widen(prior, shape)
    done = batch.restore(wide, method, small, dj.operators.Resize(FACTOR), steps=o.steps, seed=o.seed, batch=1)
    return np.clip(done.x[:, 0], -1, 1)


def side_by_side(prior, method, small, o):
    n, height, width, channels = small.shape
    cut = prior.image_shape[0] // FACTOR
    parts = small.reshape(n, height // cut, cut, width // cut, cut, channels).transpose(0, 1, 3, 2, 4, 5)
    parts = parts.reshape(-1, cut, cut, channels)
    done = batch.restore(prior, method, parts, dj.operators.Resize(FACTOR), steps=o.steps, seed=o.seed)
    x = done.x[:, 0].reshape(n, height // cut, width // cut, *prior.image_shape).transpose(0, 1, 3, 2, 4, 5)
    return np.clip(x.reshape(n, FACTOR * height, FACTOR * width, channels), -1, 1)


def scored(x, truth, prior) -> dict:
    mean, reach = interval([seams(a - b, prior) for a, b in zip(x, truth)])
    return {"PSNR": round(float(score("psnr", x, truth).mean()), 2), "lpips": round(float(score("lpips", x, truth).mean()), 4),
            "seams": f"{mean:.2f} ± {reach:.2f}"}  # fmt: skip


def seams(error, prior) -> float:
    """Root mean square jump of an error (H, W, C) across the borders of both kinds of tiles, over that elsewhere."""
    at, elsewhere, side = [], [], prior.image_shape[0]
    f = side // prior.shape[0]  # tiles are of latents
    for axis in (0, 1):
        jumps = np.square(np.diff(error, axis=axis)).mean((1 - axis, 2))  # jumps[n]: from n to n + 1
        begins = f * tiles.starts(error.shape[axis] // f, side // f, side // f // 4)
        borders = {*begins, *(begins + side), *range(0, error.shape[axis], side)} - {0, error.shape[axis]}
        here = np.isin(np.arange(len(jumps)) + 1, sorted(borders))
        at.append(jumps[here])
        elsewhere.append(jumps[~here])
    mean = lambda parts: np.concatenate(parts).mean()
    return float(np.sqrt(mean(at) / mean(elsewhere)))


if __name__ == "__main__":
    sys.exit(run(main))
