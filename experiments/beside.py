"""Told or guided? ``python -m experiments.beside``: networks that are told what was measured, beside priors that are not.

Held-out fruits of 64x64 are restored from pictures made 4 times smaller, from their left half, and from behind LaMa's thick
strokes, by

told    fruits64_sr4 and fruits64_inpaint, which see the measurement beside their input (Rombach et al. 2022, sections 4.4
        and 4.5): 25 levels of DPM-Solver++ 2M, or 50 of DDIM
latents the unconditional prior of the same latents, guided through the decoder
pixels  an unconditional prior of pixels, guided

and by nothing learned, bicubic interpolation or the smoothest surface. Of all latents known pixels are pasted into the decoded
picture, as the official inpainting script does. The truth through the autoencoder and back is what latents can reach.

PSNR     of 8-bit range; behind a mask that of what it hides
lpips    lpips@64 of the whole picture; ``from told`` its difference from the first told row, of the same pictures, with a
         95 % interval
misfit   root mean square of A x - y on [0, 1]: what is told is not enforced
spread   root mean square deviation among the restorations of one picture, on [0, 1], where there are several
seconds  of CPU for one picture, all cores together, without compiling: what else the machine does hardly counts

Writes beside.json, and beside.png with two pictures of each task.
"""

from __future__ import annotations

import dataclasses
import sys
import time

import numpy as np

import diffjax as dj
from diffjax import batch, registry
from diffjax.cli import tasks
from diffjax.training import data

from . import baselines
from .tools import provenance, records
from .tools.comparisons import difference
from .tools.scores import holes, scores
from .tools.study import Parser, command, grid, library_errors, made, run, use_cores, whole

TASKS = ("sr4", "half", "wide")
SHOWN = 2
NAMES = {"sr4": "4 times smaller", "half": "left half", "wide": "strokes"}


def ddim(denoise, measurement, steps=None, *, table):
    return registry.Setup(registry.Conditional(denoise), dj.kernels.DDIM(), table)


TOLD = {
    "25 levels, 2M": registry.CONDITIONAL,
    "50 levels, DDIM": dataclasses.replace(registry.CONDITIONAL, name="ddim", published=ddim, steps=50),
}
LATENTS = ("dps", "psld", "resample")
PIXELS = ("ddnm", "diffpir", "dps", "repaint")


def main(argv=None) -> int:
    use_cores()
    p = Parser("experiments.beside", __doc__)
    p.add_argument("--sr", default="runs/fruits64_sr4", help="the prior that is told a small picture")
    p.add_argument("--inpaint", default="runs/fruits64_inpaint", help="the prior that is told a picture with a hole")
    p.add_argument("--latents", default="fruits64", help="the prior that is told nothing, of latents")
    p.add_argument("--pixels", default="runs/fruits64_pixel", help="of pixels")
    p.add_argument("--data", default="data/fruits64.npz", help="python -m experiments.fruits makes it")
    p.add_argument("--images", type=whole(SHOWN), default=16, help="held-out pictures (default: 16)")
    p.add_argument("--samples", type=whole(1), default=4, help="restorations of each by what is told (default: 4)")
    p.add_argument("--steps", type=whole(1), help="levels in place of each method's own, to try the program out")
    p.add_argument("--batch", type=whole(1), default=16)
    p.add_argument("--seed", type=whole(0, 2**32 - 1), default=0)
    p.add_argument("--out", **provenance.OUT)
    o = p.parse(argv)
    begin, folder = time.perf_counter(), made(o.out)
    with library_errors():
        priors = {name: dj.zoo.load(name) for name in (o.sr, o.inpaint, o.latents, o.pixels)}
        latents, pixels = priors[o.latents], priors[o.pixels]
        images = data.load(o.data, size=pixels.image_shape[0], channels=pixels.image_shape[2])
    truth = held_out(images.test, o.images, o.seed)
    rows, shown, programs = [], {}, batch.Programs()
    for task in TASKS:
        ys, operators = tasks.measure(task, truth, seed=1000)
        told = priors[o.sr if task == "sr4" else o.inpaint]
        judged = Judge(task, truth, ys, operators)
        rest = {"ys": ys, "operators": operators, "o": o, "programs": programs}
        for name, entry in TOLD.items():
            judged("told", name, *restored(told, entry, samples=o.samples, **rest))
        for space, prior, methods in (("latents", latents, LATENTS), ("pixels", pixels, PIXELS)):
            for name in methods:
                if task != "sr4" or name != "repaint":
                    judged(space, name, *restored(prior, registry.METHODS[name], **rest))
        judged("-", *nothing_learned(ys, operators))
        judged("-", "truth, encoded and decoded", through(told, truth, ys, operators))
        rows += judged.rows
        shown[task] = [("measured", ys[:SHOWN]), *judged.shown, ("truth", truth[:SHOWN])]
    picture(shown, folder / "beside.png")
    print(records.write("beside", command("experiments.beside", argv), rows, o.out, images=len(truth),
                        priors={prior.name: prior.card.get("signature", prior.card.get("training")) for prior in
                                priors.values()},
                        seconds=round(time.perf_counter() - begin, 1)))  # fmt: skip
    return 0


def held_out(test, count, seed):
    """``count`` pictures of the test part, float32 in [-1, 1]: drawn evenly from all of it, as neighbours look alike."""
    chosen = np.linspace(0, len(test) - 1, count).round().astype(int)
    return data.scale(test[np.random.default_rng(seed).permutation(chosen)])


def restored(prior, entry, ys, operators, o, programs, samples=1):
    """(restorations (images, samples, H, W, C), network calls, CPU seconds of one) by the house's settings."""
    paste = prior.autoencoder is not None and holes(operators) is not None
    with library_errors():
        job = batch.check(prior, entry, ys, operators, steps=o.steps, paste=paste)
    order = batch.index(job, samples, o.seed, o.batch)
    program = batch.compiled(job, order, programs)
    start = time.process_time()
    x, calls = batch.run(job, order, program)
    seconds = (time.process_time() - start) / (order.chunks * order.batch)
    return x.reshape(len(ys), samples, *x.shape[1:]), float(np.mean(calls)), seconds


def nothing_learned(ys, operators):
    """(name, restorations (images, 1, H, W, C))"""
    masks = holes(operators)
    if masks is None:
        return "bicubic", np.stack([np.asarray(dj.operators.resize(y, A.factor)) for y, A in zip(ys, operators)])[:, None]
    return "smoothest surface", np.stack([baselines.biharmonic(y, mask) for y, mask in zip(ys, masks)])[:, None]


def through(prior, truth, ys, operators):
    """The truth by the autoencoder of the prior, what is known pasted as for the restorations."""
    import jax

    auto = prior.autoencoder
    back = np.asarray(jax.jit(lambda auto, x: jax.lax.map(lambda x: auto.decode(auto.encode(x)), x))(auto, truth))
    masks = holes(operators)
    return (back if masks is None else np.where(masks[..., None] > 0, ys, back))[:, None]


@dataclasses.dataclass
class Judge:
    """Collects the rows of one task: ``judge(prior, method, x (images, samples, H, W, C), calls, seconds)``."""

    task: str
    truth: np.ndarray
    ys: np.ndarray
    operators: list
    rows: list = dataclasses.field(default_factory=list)
    shown: list = dataclasses.field(default_factory=list)
    first: np.ndarray | None = None  # lpips of the first row

    def __call__(self, prior, method, x, calls=0, seconds=None):
        x, masks = np.clip(x, -1, 1), holes(self.operators)
        each = [scores(x[:, s], self.truth, masks) for s in range(x.shape[1])]
        psnr, perceptual = np.mean(each, 0)
        misfit = [tasks.misfit(A, one, y, 0.0) / 2 for A, some, y in zip(self.operators, x, self.ys) for one in some]
        row = {"task": NAMES[self.task], "prior": prior, "method": method, "calls": round(calls, 1),
               "seconds": None if seconds is None else round(seconds, 2), "PSNR": round(float(psnr.mean()), 2),
               "lpips": round(float(perceptual.mean()), 4),
               "from told": None if self.first is None else difference(perceptual, self.first, "+.4f"),
               "misfit": round(float(np.mean(misfit)), 4),
               "spread": round(float(np.sqrt(x.var(1, ddof=1).mean()) / 2), 4) if x.shape[1] > 1 else None}  # fmt: skip
        self.first = perceptual if self.first is None else self.first
        self.rows.append(row)
        self.shown.append((f"{prior}: {method}" if prior != "-" else method, x[:SHOWN, 0]))
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)


def picture(shown, file):
    """A row for each of SHOWN pictures of each task, a column for each way; white where a task has none."""
    names = list(dict.fromkeys(name for columns in shown.values() for name, _ in columns if name != "truth")) + ["truth"]
    blank = np.ones((SHOWN, 1, 1, 3), np.float32)
    columns = [(name, [x for of in shown.values() for x in dict(of).get(name, blank)]) for name in names]
    grid(columns, file, [NAMES[task] for task in shown for _ in range(SHOWN)])


if __name__ == "__main__":
    sys.exit(run(main))
