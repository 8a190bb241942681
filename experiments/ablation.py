"""DiffPIR's ablation as four curves: ``python -m experiments.ablation [--task deblur] [--noise 0.05] [--prior NAME]``.

One of steps, t_start, lambda and zeta is varied at a time, the others stay at 100 steps from pure noise and the values that
``experiments.methods`` has. Each curve is one compiled program: ``vmap`` over its settings and the validation images of
``experiments.tune``. That holds for steps and t_start too, since a timetable is data: shorter ones are filled up at the top
with rows that stay where they are (s = t), which move nothing. Columns: PSNR, lpips@64, the misfit |A x - y| / (noise_std
sqrt m) (1 for the truth), network calls that move. Writes ablation_TASK_PRIOR.json and .png.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from .tools import provenance, records
from .tools.study import INK, PAPER, Parser, UserError, command, library_errors, load_font, run, use_cores

STEPS = 100
VALUES = {
    "steps": (5, 10, 20, 35, 50, 75, 100),
    "t_start": (1000, 800, 600, 500, 400, 300, 200, 100),
    "lambda": (0.02, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 20.0),
    "zeta": (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0),
}
QUICK = {"steps": (3, 6), "t_start": (1000, 400), "lambda": (0.5, 2.0), "zeta": (0.3, 1.0)}


def padded(table, rows: int):
    """``table`` as one of ``rows`` rows: those missing stay at its start."""
    from diffjax import timetables

    start = float(table.t[0])
    walk = [(start, start, start)] * (rows - len(table)) + list(zip(table.t, table.s, table.r))
    return timetables.from_rows(walk)


def guess(measurement):
    """Where a late start begins: argmin |A x - y|^2 / noise_std^2 + |x|^2."""
    import jax.numpy as jnp

    A, y = measurement.A, measurement.y
    return A.prox(jnp.zeros_like(A.T(y)), jnp.maximum(measurement.noise_std, 0.02) ** 2, y)


def entry(late: bool):
    """DiffPIR whose timetable is a setting too; late: it starts from :func:`guess` plus the noise of its first level."""
    import dataclasses

    from diffjax.registry import DIFFPIR, Setup, by_kind, get

    def published(denoise, measurement, steps, *, lam=None, zeta=None, table=None):
        from diffjax import kernels, methods, timetables

        lam, zeta = (by_kind(v, measurement, DIFFPIR[name]) for v, name in ((lam, "lam"), (zeta, "zeta")))
        method = methods.DiffPIR(denoise, measurement, lam=lam, guess=guess(measurement) if late else None)
        table = timetables.diffpir(denoise.schedule, steps) if table is None else table
        return Setup(method, kernels.DDIM(zeta=zeta), table)

    return dataclasses.replace(get("diffpir"), published=published, house={}, steps=STEPS)


def curves(prior, ys, operators, noise_std, values, steps, **options):
    """Yields (name, its values, network calls that move of each, restorations (values, N, H, W, C)), one for each curve."""
    from diffjax import timetables
    from diffjax.batch import restore

    schedule = prior.schedule
    full = timetables.diffpir(schedule, steps)
    tables = {
        "steps": lambda n: timetables.diffpir(schedule, n),
        "t_start": lambda t: full if t >= full.t[0] else timetables.start_at(full, t),
    }
    for name, of in values.items():
        if name in tables:
            made = [tables[name](v) for v in of]
            sweep = {"table": [padded(table, max(map(len, made))) for table in made]}
            calls = [len(table) for table in made]
        else:
            sweep, calls = {{"lambda": "lam", "zeta": "zeta"}[name]: list(of)}, [len(full)] * len(of)
        done = restore(
            prior, entry(name == "t_start"), ys, operators, noise_std=noise_std, steps=steps, sweep=sweep, **options
        )
        yield name, of, calls, done.x[:, :, 0]


def draw(rows, path):
    """A panel for each curve: PSNR (left axis, solid) and lpips@64 (right axis, open marks)."""
    from PIL import Image, ImageDraw

    blue, orange, faint, font = (31, 90, 180), (215, 100, 20), (225, 225, 225), load_font()
    names = list(dict.fromkeys(r["varied"] for r in rows))
    width, height, left, top, right, bottom = 380, 300, 60, 44, 66, 48
    page = Image.new("RGB", (width * len(names), height), PAPER)
    pen = ImageDraw.Draw(page)
    scores = (("PSNR", blue), ("lpips@64", orange))
    spans = {}
    for key, _ in scores:
        low, high = min(r[key] for r in rows), max(r[key] for r in rows)
        pad = 0.08 * (high - low or 1)
        spans[key] = low - pad, high + pad
    for panel, name in enumerate(names):
        mine = [r for r in rows if r["varied"] == name]
        x0, x1 = panel * width + left, (panel + 1) * width - right
        y0, y1 = top, height - bottom
        pen.rectangle([x0, y0, x1, y1], outline=(150, 150, 150))
        pen.text((x0, 6), f"{name}:", fill=INK, font=font)
        pen.text((x0 + 80, 6), "PSNR, dB", fill=blue, font=font)
        pen.text((x0 + 160, 6), "lpips@64", fill=orange, font=font)
        at = lambda n: x0 + 12 + (x1 - x0 - 24) * n / max(len(mine) - 1, 1)  # noqa: B023
        for n, row in enumerate(mine):
            text = f"{row['value']:g}"
            pen.line([(at(n), y0 + 1), (at(n), y1 - 1)], fill=faint)
            pen.text((at(n) - font.getlength(text) / 2, y1 + 4 + 15 * (n % 2)), text, fill=INK, font=font)
        for key, color in scores:
            low, high = spans[key]
            place = lambda v: y1 - (y1 - y0) * (v - low) / (high - low)  # noqa: B023
            points = [(at(n), place(row[key])) for n, row in enumerate(mine)]
            pen.line(points, fill=color, width=2)
            for x, y in points:
                filled = color if key == "PSNR" else PAPER
                pen.ellipse([x - 4, y - 4, x + 4, y + 4], fill=filled, outline=color, width=2)
            for share in (0.1, 0.5, 0.9):
                v = low + share * (high - low)
                text = f"{v:.1f}" if key == "PSNR" else f"{v:.3f}"
                x = x0 - 6 - font.getlength(text) if key == "PSNR" else x1 + 6
                pen.text((x, place(v) - 8), text, fill=color, font=font)
    page.save(path, format="PNG")


def main(argv=None) -> int:
    use_cores()

    from diffjax.cli.tasks import TASKS

    parser = Parser("experiments.ablation", __doc__)
    parser.add_argument("--prior", default="fashion32")
    parser.add_argument("--data", help="the data set the prior was trained on (default: the path in its card)")
    parser.add_argument("--task", default="deblur", help="of: " + ", ".join(TASKS))
    parser.add_argument("--noise", type=float, default=0.05, help="standard deviation for images in [0, 1] (default 0.05)")
    parser.add_argument("--count", type=int, default=16, help="validation images (default 16)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", **provenance.OUT)
    parser.add_argument("--quick", action="store_true", help="two points a curve, few steps, to try the program")
    options = parser.parse(argv)
    if options.noise < 0:
        raise UserError(f"--noise {options.noise:g} is negative: give a standard deviation >= 0, on [0, 1]")

    from diffjax import zoo
    from diffjax.cli.tasks import measure, misfit

    from .tools.restorations import fingerprints
    from .tools.scores import scores
    from .tune import validation

    with library_errors():
        prior = zoo.load(options.prior)
    if not isinstance(prior.schedule.T, int):
        raise UserError(f"prior {prior.name} has no table of steps, which DiffPIR's timetable needs: take another prior")
    truth, std = validation(prior, options.data, options.count), 2 * options.noise
    ys, operators = measure(options.task, truth, std, seed=1000)
    start, made = time.perf_counter(), fingerprints(prior, entry(False), None, std, ys, operators, truth, seed=options.seed)
    rows, values, steps = [], QUICK if options.quick else VALUES, 6 if options.quick else STEPS
    for name, of, calls, restored in curves(prior, ys, operators, std, values, steps, seed=options.seed, batch=options.batch):
        for value, count, x in zip(of, calls, np.clip(restored, -1, 1)):
            psnr, perceptual = scores(x, truth)
            fit = np.mean([misfit(A, image, y, std) for A, image, y in zip(operators, x, ys)])
            rows.append({"varied": name, "value": value, "PSNR": float(psnr.mean()), "lpips@64": float(perceptual.mean()),
                         "misfit": float(fit), "network calls": count})  # fmt: skip
    name = f"ablation_{options.task}_{prior.name}".replace("-", "_")
    print(records.write(name, command("experiments.ablation", argv), rows, options.out, images=len(truth), made=made,
                        seconds=round(time.perf_counter() - start, 1)))  # fmt: skip
    draw(rows, Path(options.out) / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
