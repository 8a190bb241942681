"""The methods of ``experiments.calibrate``, one named method per entry, each for any number of network calls.

An entry walks one image to one sample. It is given a function ``denoise(x, t)``, a measurement and a budget of calls, and
nothing of the problem behind them. Grids are equal in log-SNR from sigma / alpha = 80 (100 for VP) to 0.002 and 0, unless the
entry has its own: methods that put the data in step by step have no use for rows in pure noise or far below the measurement's,
and walk from 20 to 0.02 and 0 (``SHORT``). Such choices were made on the tuning problems of ``experiments.calibrate`` and from
the papers; those of ``dps``, ``pigdm-bayes`` and ``mmps``' sweep once more after their scores on the core had been seen.
Nothing is clamped: the priors are Gaussian.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import kernels, methods, timetables

EDM = dj.schedules.EDM(80.0)
VP = dj.schedules.VP()
TABLE = dj.schedules.discrete(dj.schedules.linear_betas(1000))
UNBOUNDED = (-float("inf"), float("inf"))
SHORT = {"top": 20.0, "bottom": 0.02}


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """build(denoise, measurement, calls, **settings) -> (method, kernel, table) that spend at most ``calls``

    schedule: whose times ``denoise`` takes
    setting:  what is said of it in the table
    sweep:    {hyper-parameter: values}, every combination of which is tried; leaves only
    peers:    how libraries' methods of the same kind begin in experiments/peers.json
    whole:    of what is no walk: (key, denoise, measurement, shape, dtype, calls, settings) -> (x, network calls, Jacobian
              products)
    """

    build: Callable | None
    schedule: Any = VP
    setting: str = ""
    sweep: dict = dataclasses.field(default_factory=dict)
    peers: tuple = ()
    whole: Callable | None = None

    def run(self, key, denoise, measurement, shape, dtype, calls, settings):
        """(x, network calls, Jacobian products) of one sample."""
        if self.whole is not None:
            return self.whole(key, denoise, measurement, shape, dtype, calls, settings)
        method, kernel, table = self.build(denoise, measurement, calls, **settings)
        result = dj.sample(key, method, table, shape, kernel=kernel, dtype=dtype, remat="none")
        return result.x, spent(method, kernel, table, result), products(method, kernel) * len(table)


def spent(method, kernel, table, result):
    """Network calls of a walk: as it counted them, where their number varies."""
    rows = result.info.rows
    return rows["calls"].sum() if "calls" in rows else method.calls(kernel) * len(table)


def products(method, kernel) -> int:
    """Products with the network's Jacobian in each row."""
    if isinstance(method, methods.CoPaint):
        return method.iterations
    return getattr(method, "products", lambda kernel: 0)(kernel)


# --- grids, whose settings may be traced ---


def between(schedule, rows, top, bottom):
    """Equal in log-SNR from sigma / alpha = ``top`` to ``bottom``, the last row to 0."""
    share = jnp.linspace(0, 1, rows)
    times = schedule.time(-2 * ((1 - share) * jnp.log(top) + share * jnp.log(bottom)))
    return timetables.from_times(jnp.append(jnp.minimum(times, schedule.T), 0.0))


def power(schedule, rows, bend):
    """t = T u^bend, u equally spaced."""
    return timetables.from_times(schedule.T * jnp.linspace(1, 0, rows + 1) ** bend)


GRIDS = {("top", "bottom"): between, ("bend",): power}


def walk(make, kernel, schedule=VP, grid=None, **defaults):
    """``build`` of a plain walk. make(denoise, measurement, **settings) -> method; kernel(schedule, settings), which may take
    its own settings out; grid(schedule, rows), or the one of ``GRIDS`` that the settings have the names of."""

    def build(denoise, measurement, calls, **settings):
        settings = defaults | settings
        chosen, named = grid or timetables.log_snr, {}
        for names, place in GRIDS.items():
            if names[0] in settings:
                chosen, named = place, {name: settings.pop(name) for name in names}
        moves = kernel(schedule, settings)
        method = make(denoise, measurement, **settings)
        return method, moves, chosen(schedule, max(calls // method.calls(moves), 2), **named)

    return build


def two_stage(key, denoise, measurement, shape, dtype, calls, settings):
    plan = methods.twisted.for_calls(calls) | settings
    result = methods.twisted.two_stage(key, denoise, measurement, shape, schedule=EDM, dtype=dtype, **plan)
    spent = plan["particles"] * plan["rows"][0] + plan["rows"][1]
    return result.x, spent, spent * methods.MMPS(denoise, measurement).products(kernels.DDPM(EDM))


def jumping(schedule, rows):
    """RePaint's walk on as many ``SHORT`` levels as ``rows`` allow: each stretch of a tenth of them (2 at least) 3 times."""
    best = None
    top, bottom = (float(schedule.time(-2 * np.log(ratio))) for ratio in SHORT.values())
    for levels in range(4, rows):
        grid = timetables.log_snr(schedule, levels, t_max=top, t_min=bottom)
        table = timetables.repaint(schedule, jump=max(2, levels // 10), times=3, grid=grid)
        if len(table) > rows:
            break
        best = table
    return best if best is not None else timetables.log_snr(schedule, rows)


def late(schedule, rows):
    """All rows below sigma / alpha = 1, where CCDF starts."""
    return timetables.log_snr(schedule, rows, t_max=float(schedule.time(0.0)))


def noise_free(make):
    """``make`` without the measurement's noise level, for methods that know none."""
    return lambda denoise, m, **settings: make(denoise, dj.base.replace(m, noise_std=0.0), **settings)


def dps(denoise, measurement, calls, **settings):
    """Steps of a fixed length add up like noise: the paper's ``scale``, for 1000 calls, times sqrt(1000 / calls). Below the
    noise of the data they only jitter: the paper's grid, equal in t, has few rows there."""
    settings = {"scale": 0.3} | ({} if "top" in settings else {"bend": 1.0}) | settings
    settings["scale"] *= (1000 / calls) ** 0.5
    return walk(methods.DPS, ancestral)(denoise, measurement, calls, **settings)


def pigdm_bayes(denoise, measurement, **settings):
    return methods.PiGDM(denoise, measurement, weight="bayes", **settings)


def copaint(denoise, measurement, calls, **settings):
    table = methods.copaint.walk("copaint-fast", TABLE, max(2, min(calls // 3, 250)))
    chosen = {"bounds": UNBOUNDED, "exact": False, **methods.copaint.VARIANTS["copaint-fast"], **settings}
    return methods.CoPaint(denoise, measurement, **chosen), kernels.DDIM(TABLE), table


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


def fresh(value):
    """DDIM with ``value`` for its eta: 1 is DDPM."""
    return lambda schedule, settings: kernels.DDIM(schedule, eta=settings.pop("eta", value))


def share(value):
    """DDIM with a share zeta of fresh noise."""
    return lambda schedule, settings: kernels.DDIM(schedule, zeta=settings.pop("zeta", value))


def euler_maruyama(schedule, settings):
    return kernels.DDPM(schedule, variance="large")  # the same on a VE schedule


def second_order(schedule, settings):
    return kernels.DPMSolverPP2M(schedule)


def marginal(schedule, settings):
    return kernels.Marginal(schedule)


MM = ("azula-mmps", "deepinv-mm")
ETA = (0.0, 0.5, 1.0)
METHODS = {
    "twisted": Entry(None, EDM, "twisted SMC, then MMPS (twisted.for_calls)", {"threshold": (0.2, 0.5, 0.8)},
                     ("azula-tds",), two_stage),
    "mmps": Entry(walk(methods.MMPS, second_order, EDM), EDM, "10 solver steps, DPM-Solver++ 2M",
                  {"top": (20.0, 40.0, 80.0), "bottom": (0.002,)}, MM),
    "mmps-ddpm": Entry(walk(methods.MMPS, fresh(1.0), EDM, top=20.0, bottom=0.002), EDM,
                       "10 solver steps, DDPM from sigma / alpha = 20",
                       {"eta": (0.0, 0.25, 0.5, 1.0), "top": (20.0, 80.0), "bottom": (0.002,)}, MM),
    "pigdm": Entry(walk(methods.PiGDM, fresh(1.0), bend=2.0), VP, "DDIM, eta 1 as in the paper, t quadratic",
                   {"scale": (0.5, 0.7, 1.0), "eta": ETA, "bend": (1.0, 1.5, 2.0)}, ("azula-pgdm", "deepinv-pigdm")),
    # a prior_std below the data's largest deviation overshoots, and diverges where rows are few: none below the paper's 1
    "pigdm-bayes": Entry(walk(pigdm_bayes, fresh(1.0), **SHORT), VP, "DDPM from 20 to 0.02",
                         {"prior_std": (1.0, 2.0, 4.0), "scale": (0.7, 1.0), "eta": ETA, "bottom": (0.002, 0.02)},
                         ("azula-pgdm", "deepinv-pigdm")),
    "dps": Entry(dps, VP, "DDPM, equal steps of t, scale 0.3 sqrt(1000 / calls)",
                 {"scale": (0.03, 0.1, 0.15, 0.2, 0.3, 0.4), "top": (20.0, 100.0), "bottom": (0.02, 0.1, 0.14, 0.2)},
                 ("azula-dps", "deepinv-dps")),
    "mcg": Entry(walk(methods.MCG, ancestral), VP, "DDPM", {"scale": (0.0, 0.1, 0.3, 1.0, 3.0)}),
    "diffpir": Entry(walk(methods.DiffPIR, share(0.3), **SHORT), VP, "DDIM from 20 to 0.02, zeta 0.3",
                     {"lam": (0.5, 1.0, 1.75), "zeta": (0.1, 0.3, 0.5, 1.0), "top": (20.0, 100.0), "bottom": (0.002, 0.02)},
                     ("azula-diffpir", "deepinv-diffpir")),
    "ddrm": Entry(walk(methods.DDRM, marginal, **SHORT), VP, "from 20 to 0.02",
                  {"eta": (0.5, 0.7, 0.85, 0.95, 1.0), "eta_b": (0.5, 1.0), "top": (20.0, 100.0), "bottom": (0.002, 0.02)},
                  ("deepinv-ddrm",)),
    "ddnm+": Entry(walk(methods.DDNMPlus, marginal, **SHORT), VP, "svd, from 20 to 0.02",
                   {"eta": (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)}),
    "ddnm": Entry(walk(noise_free(methods.DDNM), share(0.85**2), **SHORT), VP,
                  "DDIM from 20 to 0.02, zeta 0.85^2; y taken for exact", {"zeta": (0.1, 0.3, 0.5, 0.7225, 1.0)}),
    "score-sde": Entry(walk(methods.Replacement, ancestral, **SHORT), VP, "DDPM from 20 to 0.02",
                       {"strength": (0.3, 0.5, 0.8, 1.0)}, ("deepinv-scoresde",)),
    "ilvr": Entry(walk(noise_free(methods.CCDF), euler_maruyama, EDM, **SHORT), EDM,
                  "Euler-Maruyama, VE from 20 to 0.02; y taken for exact",
                  {"strength": (0.3, 0.5, 0.8, 1.0)}, ("deepinv-ilvr",)),
    "ccdf": Entry(walk(methods.CCDF, ancestral, grid=late), VP, "DDPM from sigma / alpha = 1",
                  {"strength": (0.3, 0.5, 0.8, 1.0)}),
    "repaint": Entry(walk(methods.RePaint, fresh(0.0), grid=jumping), VP, "DDIM from 20 to 0.02, 3 walks per stretch",
                     {"eta": ETA}, ("azula-repaint",)),
    "blended": Entry(walk(lambda d, m, **k: methods.Blended(d, m, bounds=UNBOUNDED, **k), ddim), VP, "DDIM"),
    "resampling": Entry(walk(lambda d, m, **k: methods.Resampling(d, m, bounds=UNBOUNDED, particles=5, **k), ddim), VP,
                        "DDIM, 5 particles", {"scale": (1.0, 10.0, 100.0)}),
    "copaint": Entry(copaint, TABLE, "CoPaint-Fast, DDIM on the DDPM table", {"lr": (0.01, 0.02, 0.05, 0.1, 0.25)}),
    "red-diff": Entry(walk(methods.REDDiff, marginal), VP, "a point estimate",
                      {"weight": (0.1, 0.25, 1.0), "lr": (0.03, 0.1, 0.3)}),
    "dpir": Entry(walk(methods.DPIR, marginal, grid=lambda s, n: timetables.dpir(s, 0.02, n)), VP, "a point estimate",
                  {"lam": (0.1, 0.23, 0.5, 1.0)}),
    "optimise-start": Entry(None, VP, "5 DDIM rows, Adam; a point estimate", {"lr": (0.02, 0.05, 0.2)}, whole=optimise_start),
}  # fmt: skip
BEST = "twisted"
