"""The methods of ``experiments.calibrate``, one named method per entry, each for any number of network calls.

An entry walks one image to one sample. It is given a function ``denoise(x, t)``, a measurement and a budget of calls, and
nothing of the problem behind them. Grids are equal in log-SNR from sigma / alpha = 80 (100 for VP) to 0.002 and 0, unless the
method brings its own. Nothing is clamped: the priors are Gaussian.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

import diffjax as dj
from diffjax import kernels, methods, timetables

EDM = dj.schedules.EDM(80.0)
VP = dj.schedules.VP()
TABLE = dj.schedules.discrete(dj.schedules.linear_betas(1000))
UNBOUNDED = (-float("inf"), float("inf"))


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """run(key, denoise, measurement, shape, dtype, calls, settings) -> (x, network calls, Jacobian products) of one sample

    schedule: whose times ``denoise`` takes
    setting:  what is said of it in the table
    sweep:    {hyper-parameter: values}, every combination of which is tried; leaves only
    peers:    how libraries' methods of the same kind begin in experiments/peers.json
    """

    run: Callable
    schedule: Any = VP
    setting: str = ""
    sweep: dict = dataclasses.field(default_factory=dict)
    peers: tuple = ()


def cost(method, kernel, table) -> tuple[int, int]:
    """(network calls, Jacobian products) of a walk."""
    products = getattr(method, "products", lambda kernel: 0)
    return len(table) * method.calls(kernel), len(table) * products(kernel)


def walk(build, kernel, schedule=VP, grid=None):
    """``run`` of a plain walk. build(denoise, measurement, **settings); kernel(schedule, settings), which may take its own
    settings out; grid(schedule, calls)."""

    def run(key, denoise, measurement, shape, dtype, calls, settings):
        settings = dict(settings)
        moves = kernel(schedule, settings)
        method = build(denoise, measurement, **settings)
        per_row = method.calls(moves)
        table = (grid or timetables.log_snr)(schedule, max(calls // per_row, 2))
        return dj.sample(key, method, moves, table, shape, dtype=dtype, remat="none").x, *cost(method, moves, table)

    return run


def two_stage(key, denoise, measurement, shape, dtype, calls, settings):
    plan = methods.twisted.for_calls(calls) | settings
    result = methods.twisted.two_stage(key, denoise, measurement, EDM, shape, dtype=dtype, **plan)
    spent = plan["particles"] * plan["rows"][0] + plan["rows"][1]
    return result.x, spent, spent * methods.MMPS(denoise, measurement).products(kernels.DDPM(EDM))


def jumping(schedule, rows):
    """RePaint's walk with as many levels as ``rows`` allow: each stretch of a tenth of them (2 at least) walked 3 times."""
    best = None
    for levels in range(4, rows):
        table = timetables.repaint(schedule, jump=max(2, levels // 10), times=3, grid=timetables.log_snr(schedule, levels))
        if len(table) > rows:
            break
        best = table
    return best if best is not None else timetables.log_snr(schedule, rows)


def late(schedule, rows):
    """All rows below sigma / alpha = 1, where CCDF starts."""
    return timetables.log_snr(schedule, rows, t_max=float(schedule.time(0.0)))


def noise_free(build):
    """``build`` without the measurement's noise level, for methods that know none."""
    return lambda denoise, m, **settings: build(denoise, dj.base.replace(m, noise_std=0.0), **settings)


def copaint(key, denoise, measurement, shape, dtype, calls, settings):
    published, table = methods.copaint.published("copaint-fast", TABLE, max(2, min(calls // 3, 250)))
    chosen = {"bounds": UNBOUNDED, "exact": False, **published, **settings}
    result = dj.sample(key, methods.CoPaint(denoise, measurement, **chosen), kernels.DDIM(TABLE), table, shape, dtype=dtype)
    return result.x, result.info.rows["calls"].sum(), len(table)


def optimise_start(key, denoise, measurement, shape, dtype, calls, settings):
    rows = 5
    turns = max(calls // rows - 1, 1)
    noise = jax.random.normal(key, shape, dtype)
    found = methods.optimise_start(
        key, denoise, measurement, timetables.log_snr(VP, rows), noise, iterations=turns, kernel=kernels.DDIM(VP), **settings
    )
    return found.x, rows * (turns + 1), rows * turns


def ancestral(schedule, settings):
    return kernels.DDPM(schedule)


def ddim(schedule, settings):
    return kernels.DDIM(schedule)


def share(value):
    """DDIM with a share zeta of fresh noise."""
    return lambda schedule, settings: kernels.DDIM(schedule, zeta=settings.pop("zeta", value))


def second_order(schedule, settings):
    return kernels.DPMSolverPP2M(schedule)


def marginal(schedule, settings):
    return kernels.Marginal(schedule)


MM = ("azula-mmps", "deepinv-mm")
METHODS = {
    "twisted": Entry(two_stage, EDM, "twisted SMC, then MMPS (twisted.for_calls)", {"threshold": (0.2, 0.5, 0.8)},
                     ("azula-tds",)),
    "mmps": Entry(walk(methods.MMPS, second_order, EDM), EDM, "10 CG steps, DPM-Solver++ 2M", peers=MM),
    "mmps-ddpm": Entry(walk(methods.MMPS, ancestral, EDM), EDM, "10 CG steps, DDPM", peers=MM),
    "pigdm": Entry(walk(methods.PiGDM, ddim), VP, "DDIM",
                   {"scale": (0.5, 1.0), "prior_std": (0.25, 0.5, 1.0, 2.0)}, ("azula-pgdm", "deepinv-pigdm")),
    "pigdm-bayes": Entry(walk(lambda d, m, **k: methods.PiGDM(d, m, weight="bayes", **k), second_order), VP,
                         "DPM-Solver++ 2M", {"prior_std": (0.1, 0.25, 0.5, 1.0, 2.0)}, ("azula-pgdm", "deepinv-pigdm")),
    "dps": Entry(walk(methods.DPS, ancestral), VP, "DDPM", {"scale": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)},
                 ("azula-dps", "deepinv-dps")),
    "mcg": Entry(walk(methods.MCG, ancestral), VP, "DDPM", {"scale": (0.0, 0.1, 0.3, 1.0, 3.0)}),
    "diffpir": Entry(walk(methods.DiffPIR, share(0.3)), VP, "DDIM, zeta 0.3",
                     {"lam": (0.25, 0.5, 1.0, 1.75, 4.0), "zeta": (0.1, 0.3, 0.5, 1.0)}, ("azula-diffpir", "deepinv-diffpir")),
    "ddrm": Entry(walk(methods.DDRM, marginal), VP, "", {"eta": (0.0, 0.5, 0.85, 1.0), "eta_b": (0.5, 1.0)},
                  ("deepinv-ddrm",)),
    "ddnm+": Entry(walk(methods.DDNMPlus, marginal), VP, "svd", {"eta": (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)}),
    "ddnm": Entry(walk(noise_free(methods.DDNM), share(0.85**2)), VP, "DDIM, zeta 0.85^2; y taken for exact",
                  {"zeta": (0.1, 0.3, 0.5, 0.7225, 1.0)}),
    "score-sde": Entry(walk(methods.Replacement, ancestral), VP, "DDPM", {"strength": (0.3, 0.5, 0.8, 1.0)},
                       ("deepinv-scoresde",)),
    "ilvr": Entry(walk(noise_free(methods.CCDF), ancestral), VP, "DDPM; y taken for exact",
                  {"strength": (0.3, 0.5, 0.8, 1.0)}, ("deepinv-ilvr",)),
    "ccdf": Entry(walk(methods.CCDF, ancestral, grid=late), VP, "DDPM from sigma / alpha = 1",
                  {"strength": (0.3, 0.5, 0.8, 1.0)}),
    "repaint": Entry(walk(methods.RePaint, ancestral, grid=jumping), VP, "DDPM, 3 walks per stretch",
                     peers=("azula-repaint",)),
    "blended": Entry(walk(lambda d, m, **k: methods.Blended(d, m, bounds=UNBOUNDED, **k), ddim), VP, "DDIM"),
    "resampling": Entry(walk(lambda d, m, **k: methods.Resampling(d, m, bounds=UNBOUNDED, particles=5, **k), ddim), VP,
                        "DDIM, 5 particles", {"scale": (1.0, 10.0, 100.0)}),
    "copaint": Entry(copaint, TABLE, "CoPaint-Fast, DDIM on the DDPM table", {"lr": (0.01, 0.02, 0.05, 0.1, 0.25)}),
    "red-diff": Entry(walk(methods.REDDiff, marginal), VP, "a point estimate",
                      {"weight": (0.1, 0.25, 1.0), "lr": (0.03, 0.1, 0.3)}),
    "dpir": Entry(walk(methods.DPIR, marginal, grid=lambda s, n: timetables.dpir(s, 0.02, n)), VP, "a point estimate",
                  {"lam": (0.1, 0.23, 0.5, 1.0)}),
    "optimise-start": Entry(optimise_start, VP, "5 DDIM rows, Adam; a point estimate", {"lr": (0.02, 0.05, 0.2)}),
}  # fmt: skip
BEST = "twisted"
