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
seconds  of CPU for one restoration, all cores together, without compiling: what else the machine does hardly counts

Guidance through the decoder is slow: ``--decoded`` of the pictures have it. A row is kept in --cells as soon as it is done.

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
from .tools.cells import Cells
from .tools.comparisons import difference
from .tools.pictures import bytes_of
from .tools.restorations import fingerprints
from .tools.scores import holes, scores
from .tools.study import Parser, command, grid, library_errors, made, run, unknown, use_cores, whole

TASKS = ("sr4", "half", "wide")
SHOWN = 2
NAMES = {"sr4": "4 times smaller", "half": "left half", "wide": "strokes"}


def ddim(denoise, measurement, steps=None, *, table):
    return registry.Setup(registry.Conditional(denoise), dj.kernels.DDIM(), table)


TOLD = {
    "25 levels, 2M": registry.CONDITIONAL,
    "50 levels, DDIM": dataclasses.replace(registry.CONDITIONAL, name="ddim", published=ddim, steps=50),
}
LATENTS = ("dps", "psld", "resample", "red-diff")
PIXELS = ("ddnm", "diffpir", "dps", "repaint")


def main(argv=None) -> int:
    use_cores()
    p = Parser("experiments.beside", __doc__)
    p.add_argument("--sr", default="runs/fruits64_sr4", help="the prior that is told a small picture")
    p.add_argument("--inpaint", default="runs/fruits64_inpaint", help="the prior that is told a picture with a hole")
    p.add_argument("--latents", default="fruits64", help="the prior that is told nothing, of latents")
    p.add_argument("--pixels", default="runs/fruits64_pixel", help="of pixels")
    p.add_argument("--data", default="data/fruits64.npz", help="python -m experiments.fruits makes it")
    p.add_argument("--tasks", nargs="+", default=TASKS, metavar="TASK", help=f"of: {', '.join(TASKS)} (default: all)")
    p.add_argument("--methods", nargs="+", default=[*LATENTS, *PIXELS], metavar="METHOD", help="that guide (default: all)")
    p.add_argument("--images", type=whole(SHOWN), default=8, help="held-out pictures (default: 8)")
    p.add_argument(
        "--decoded", type=whole(SHOWN), default=4, help="the first of them, guided through the decoder (default: 4)"
    )
    p.add_argument("--samples", type=whole(1), default=4, help="restorations of each by what is told (default: 4)")
    p.add_argument("--steps", type=whole(1), help="levels in place of each method's own, to try the program out")
    p.add_argument("--batch", type=whole(1), default=16)
    p.add_argument("--seed", type=whole(0, 2**32 - 1), default=0)
    p.add_argument("--cells", default="runs/beside", help="folder where finished rows are kept")
    p.add_argument("--out", **provenance.OUT)
    o = p.parse(argv)
    for what, names, known in (("task", o.tasks, TASKS), ("method", o.methods, {*LATENTS, *PIXELS})):
        for name in names:
            if name not in known:
                raise unknown(what, name, known)
    folder = made(o.out)
    with library_errors():
        told = [o.sr] * ("sr4" in o.tasks) + [o.inpaint] * (set(o.tasks) != {"sr4"})
        priors = {name: dj.zoo.load(name) for name in (*told, o.latents, o.pixels)}
        images = data.load(o.data, size=priors[o.pixels].image_shape[0], channels=priors[o.pixels].image_shape[2])
    truth = held_out(images.test, o.images, o.seed)
    kept = Cells(o.cells, command("experiments.beside", argv))
    rows, shown, cells, programs = [], {}, {}, batch.Programs()
    for task in o.tasks:
        ys, operators = tasks.measure(task, truth, seed=1000)
        ways = of_task(task, o, priors, ys, operators, truth)
        for (space, name), (asked, make) in ways.items():
            first = next((cells[key] for key in cells if key.startswith(f"{task}/")), None)
            key = f"{task}/{space}/{name}"
            cells[key] = kept.get(key, asked, lambda make=make: make(programs)) if asked else make(programs)
            rows.append(row(task, space, name, cells[key], first))
            print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
        shown[task] = [("measured", ys[:SHOWN])]
        shown[task] += [(name if space == "-" else f"{space}: {name}", pictures_of(cells[f"{task}/{space}/{name}"]))
                        for space, name in ways]  # fmt: skip
        shown[task].append(("truth", truth[:SHOWN]))
    picture(shown, folder / "beside.png")
    bare = {name: {k: v for k, v in cell.items() if k != "shown"} for name, cell in cells.items()}
    trained = {prior.name: prior.card.get("training") for prior in priors.values()}
    print(records.write("beside", command("experiments.beside", argv), rows, o.out, images=len(truth), trained=trained,
                        took="the seconds of its rows, and the compiling", cells=bare))  # fmt: skip
    return 0


def of_task(task, o, priors, ys, operators, truth) -> dict:
    """{(prior, method): (asked, make)} of a task: what its cell depends on (None: it is not kept), and how it is computed."""
    ways = {}

    def add(space, prior, name, entry, count, samples=1):
        given = ys[:count], operators[:count]
        asked = lambda: fingerprints(prior, entry, o.steps, 0.0, *given, truth[:count], samples=samples, seed=o.seed,
                                     weights=(prior.params, prior.autoencoder))  # fmt: skip
        make = lambda programs: cell(truth[:count], *given, *restored(prior, entry, *given, o, programs, samples))
        ways[space, name] = asked, make

    def free(name, restore):  # costs nothing
        ways["-", name] = None, lambda programs: cell(truth, ys, operators, restore())

    for name, entry in TOLD.items():
        add("told", priors[o.sr if task == "sr4" else o.inpaint], name, entry, len(truth), o.samples)
    for name in (name for name in LATENTS if name in o.methods):
        add("latents", priors[o.latents], name, registry.METHODS[name], o.decoded)
    for name in (name for name in PIXELS if name in o.methods):
        if task != "sr4" or name != "repaint":
            add("pixels", priors[o.pixels], name, registry.METHODS[name], len(truth))
    free("bicubic" if task == "sr4" else "smoothest surface", lambda: nothing_learned(ys, operators))
    free("truth, encoded and decoded", lambda: through(priors[o.latents], truth, ys, operators))
    return ways


def held_out(test, count, seed):
    """``count`` pictures of the test part, float32 in [-1, 1]: the first of a random order, as neighbours look alike."""
    return data.scale(test[np.random.default_rng(seed).permutation(len(test))[:count]])


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
    """Restorations (images, 1, H, W, C)"""
    masks = holes(operators)
    if masks is None:
        return np.stack([np.asarray(dj.operators.resize(y, A.factor)) for y, A in zip(ys, operators)])[:, None]
    return np.stack([baselines.biharmonic(y, mask) for y, mask in zip(ys, masks)])[:, None]


def through(prior, truth, ys, operators):
    """The truth by the autoencoder of the prior, what is known pasted as for the restorations."""
    import jax

    auto = prior.autoencoder
    back = np.asarray(jax.jit(lambda auto, x: jax.lax.map(lambda x: auto.decode(auto.encode(x)), x))(auto, truth))
    masks = holes(operators)
    return (back if masks is None else np.where(masks[..., None] > 0, ys, back))[:, None]


def cell(truth, ys, operators, x, calls=0.0, seconds=None) -> dict:
    """Scores of each picture, means over its restorations x (images, samples, H, W, C)."""
    x, masks = np.clip(x, -1, 1), holes(operators)
    psnr, perceptual = np.mean([scores(x[:, s], truth, masks) for s in range(x.shape[1])], 0)
    misfit = [np.mean([tasks.misfit(A, one, y, 0.0) / 2 for one in some]) for A, some, y in zip(operators, x, ys)]
    return {"psnr": psnr.round(3).tolist(), "lpips": perceptual.round(5).tolist(), "misfit": np.round(misfit, 5).tolist(),
            "spread": float(np.sqrt(x.var(1, ddof=1).mean()) / 2) if x.shape[1] > 1 else None, "network_calls": calls,
            "seconds": seconds, "shown": bytes_of(x[:, 0])}  # fmt: skip


def row(task, space, name, cell, first) -> dict:
    """The line of a cell; ``first`` is the cell it is compared with, on the pictures that both have."""
    count = len(cell["psnr"])
    mean = lambda key, digits: round(float(np.mean(cell[key])), digits)
    rounded = lambda value, digits: None if value is None else round(value, digits)
    return {"task": NAMES[task], "prior": space, "method": name, "pictures": count, "calls": round(cell["network_calls"], 1),
            "seconds": rounded(cell["seconds"], 2), "PSNR": mean("psnr", 2), "lpips": mean("lpips", 4),
            "from told": None if first is None else difference(cell["lpips"], first["lpips"][:count], "+.4f"),
            "misfit": mean("misfit", 4), "spread": rounded(cell["spread"], 4)}  # fmt: skip


def pictures_of(cell):
    return np.asarray(cell["shown"], np.float32) / 127.5 - 1


def picture(shown, file):
    """A row for each of SHOWN pictures of each task, a column for each way; white where a task has none."""
    names = list(dict.fromkeys(name for columns in shown.values() for name, _ in columns if name != "truth")) + ["truth"]
    blank = np.ones((SHOWN, 1, 1, 3), np.float32)
    columns = [(name, [x for of in shown.values() for x in dict(of).get(name, blank)]) for name in names]
    grid(columns, file, [NAMES[task] for task in shown for _ in range(SHOWN)])


if __name__ == "__main__":
    sys.exit(run(main))
