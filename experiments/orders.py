"""Does each solver keep its order, from the top of every bundled schedule? ``python -m experiments.orders``.

Walks from the first time of a schedule to where log-SNR is 6, over `timetables.log_snr` grids of 10 to 320 rows, down the
probability flow of a mixture of three Gaussians in 6 dimensions, in float64. The flow is not linear, the denoiser is exact.
The truth is RK4's end after 960 rows.

Each solver's column is its measured order, -log2(error at 320 rows / error at 80) / 2; the error is the largest over the
dimensions, in standard deviations of the noised mixture. The first row of the table is what theory says. UniPC 3 starts with
a corrected row of order 1, whose error is of order 3: where x0 bends at the top, this is what is left.

Writes orders.json, with all errors, and orders.png, error against rows for three schedules.
"""

from __future__ import annotations

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj

from .tools import curves, provenance, records
from .tools.study import Parser, command, made, run, use_cores

K, S = dj.kernels, dj.schedules
SOLVERS = {  # name: (kernel, order)
    "DDIM": (K.DDIM(), 1),
    "Heun": (K.Heun(), 2),
    "2M": (K.DPMSolverPP2M(), 2),
    "3M": (K.DPMSolverPP3M(), 3),
    "UniPC 2": (K.UniPC(order=2), 3),
    "UniPC 3": (K.UniPC(order=3), 4),
    "RK4": (K.RK4(), 4),
}
SCHEDULES = {
    "linear": S.discrete(S.linear_betas(1000)),
    "cosine": S.discrete(S.cosine_betas(1000)),
    "scaled linear": S.discrete(S.scaled_linear_betas(1000)),
    "SR3": S.discrete(S.sr3_betas(2000)),
    "harmonic": S.discrete(S.harmonic_betas(1000)),
    "VP": S.VP(),
    "sub-VP": S.SubVP(),
    "VE": S.VE(),
    "EDM": S.EDM(80),
    "rectified flow": S.RectifiedFlow(),
}
SHOWN = ("linear", "cosine", "VE")
ROWS, TRUTH, END = (10, 20, 40, 80, 160, 320), 960, 6.0

MEAN = np.array([0.3, -0.5, 0.0, 0.8, 0.3, 0.3])
VARIANCE = np.array([0.01, 0.1, 0.4, 2.0, 0.25, 1.0])
MIXTURE = (
    [0.3, 0.5, 0.2],
    np.stack([MEAN, -MEAN[::-1], 0.5 * np.roll(MEAN, 2)]),
    VARIANCE * np.array([[1.0], [0.5], [2.0]]),
)
START = np.array([1.3, -0.9, 0.7, 1.1, -1.6, 0.4])  # in standard deviations of x at the first time


def table_to(schedule, rows, most=None):
    """``rows`` steps, even in log-SNR, from the top to where log-SNR is END; filled up to ``most`` for one program of all."""
    last = float(schedule.time(END))
    times = dj.timetables.log_snr(schedule, rows + 1, t_min=last).t
    return dj.timetables.from_times(np.append(times, np.full((most or rows) - rows, last)))


def ends(kernel, schedule, counts):
    """(counts, 6): where walks of so many rows end."""
    denoise = dj.priors.mixture(*MIXTURE).denoiser(schedule)
    top = float(schedule.T)
    start = jnp.asarray(
        schedule.alpha(top) * MEAN + np.sqrt(schedule.alpha(top) ** 2 * VARIANCE + schedule.sigma(top) ** 2) * START
    )
    walk = jax.jit(lambda table, rows: dj.sample(jax.random.key(0), denoise, table, start, kernel=kernel, part=(0, rows)).x)
    return np.stack([np.asarray(walk(table_to(schedule, n, max(counts)), n)) for n in counts])


def measured(schedule, solvers):
    """{solver: errors for ROWS}"""
    truth = ends(K.RK4(), schedule, (TRUTH,))[0]
    last = float(schedule.time(END))
    spread = np.sqrt(schedule.alpha(last) ** 2 * VARIANCE + schedule.sigma(last) ** 2)
    return {name: np.abs((ends(kernel, schedule, ROWS) - truth) / spread).max(1) for name, (kernel, _) in solvers.items()}


def main(argv=None) -> int:
    use_cores()
    p = Parser("experiments.orders", __doc__)
    p.add_argument("--quick", action="store_true", help="one schedule, three solvers: to try the program")
    p.add_argument("--out", **provenance.OUT)
    options = p.parse(argv)
    out = made(options.out)
    begin, kept, panels = time.perf_counter(), {}, []
    solvers = {n: SOLVERS[n] for n in ("DDIM", "2M", "RK4")} if options.quick else SOLVERS
    rows = [{"schedule": "theory", **{solver: order for solver, (_, order) in solvers.items()}}]
    slope = lambda errors: round(float(np.log2(errors[ROWS.index(80)] / errors[ROWS.index(320)]) / 2), 2)
    with jax.enable_x64(True):
        for name in SHOWN[1:2] if options.quick else SCHEDULES:
            found = measured(SCHEDULES[name], solvers)
            kept[name] = {solver: [float(f"{e:.3e}") for e in errors] for solver, errors in found.items()}
            rows.append({"schedule": name, **{solver: slope(errors) for solver, errors in found.items()}})
            print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
            if name in SHOWN:
                lines = [(solver, np.log2(ROWS), errors) for solver, errors in found.items()]
                panels.append({"title": f"{name}: error", "x": "log2 of rows", "lines": lines, "log": True})
    curves.lines(panels, out / "orders.png")
    seconds = round(time.perf_counter() - begin, 1)
    print(
        records.write(
            "orders", command("experiments.orders", argv), rows, out, errors=kept, numbers=list(ROWS), seconds=seconds
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
