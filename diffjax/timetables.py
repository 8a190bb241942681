"""The whole walk through time as data: rows (t, s, r), made on the host.

A row goes down from t to s with the kernel, then jumps up from s to r by q(x_r | x_s); r = s means no jump. A row
(s, s, r) only climbs, after whatever the method does at s. Uniform grids, ADM respacing, RePaint's jumps and time travel
are all tables; print them, plot them, slice them, or pass them to one compiled sampler (same length: no retrace).

Sources: Nichol & Dhariwal 2021 (respacing), Song et al. 2021 (DDIM spacings), Karras et al. 2022 eq. 5, Lugmayr et al.
2022 (RePaint), Zhang et al. 2023 (CoPaint), Lu et al. 2022 (log-SNR), Zhu et al. 2023 (DiffPIR), Zhang et al. 2021 (DPIR).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import Row, is_concrete, nearest, pytree, static


@pytree
class Timetable:
    """Rows stacked: t, s, r, up, level, i, fresh, each of shape (rows,) (see :class:`diffjax.base.Row`), and static
    ``jumps``: whether any row climbs (without it no jump noise is drawn). ``len(table)`` = kernel steps."""

    t: Any
    s: Any
    r: Any
    up: Any
    level: Any
    i: Any
    fresh: Any
    jumps: bool = static(default=False)

    def __len__(self) -> int:
        return self.t.shape[0]

    def __getitem__(self, rows: slice) -> Timetable:
        """A part of the walk; rows keep their numbers, so that a resumed walk draws the same noise."""
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError("a timetable is sliced by a contiguous range: table[:10], table[10:]")
        return Timetable(*(getattr(self, f)[rows] for f in ("t", "s", "r", "up", "level", "i", "fresh")), jumps=self.jumps)

    def rows(self, k=None, m=None) -> Row:
        """All rows as one :class:`Row` with a leading axis."""
        return Row(self.t, self.s, self.r, self.up, self.level, self.i, self.fresh, k, m)

    def __str__(self) -> str:
        if not is_concrete(self):
            return f"Timetable({len(self)} traced rows)"
        lines = [f"{len(self)} rows, t {self.t[0]:g} -> {self.r[-1]:g}, {int((self.r > self.s).sum())} jumps"]
        lines += [
            f"{int(i):5d}  {t:9.4f} -> {s:9.4f}" + (f"  up to {r:9.4f}" if r > s else "")
            for i, t, s, r in zip(self.i, self.t, self.s, self.r)
        ]
        return "\n".join(lines if len(lines) <= 41 else lines[:21] + ["  ..."] + lines[-20:])


def from_rows(rows) -> Timetable:
    """A table from an iterable of (t, s, r). Raises ValueError where a row does not start where the last ended, or
    climbs to a time below s."""
    rows = np.asarray(list(rows), np.float64)
    if rows.ndim != 2 or rows.shape[1] != 3 or len(rows) == 0:
        raise ValueError(f"rows have shape {rows.shape}: give at least one (t, s, r)")
    t, s, r = rows.T
    if not np.isfinite(rows).all() or (rows < 0).any():
        raise ValueError("rows hold a negative or non-finite time")
    broken = np.flatnonzero(t[1:] != r[:-1])
    if len(broken):
        n = broken[0] + 1
        raise ValueError(f"row {n} starts at t = {t[n]:g}, but row {n - 1} ended at {r[n - 1]:g}")
    if (r < s).any():
        n = int(np.argmax(r < s))
        raise ValueError(f"row {n} jumps down from {s[n]:g} to {r[n]:g}: a jump climbs (r >= s)")
    grid = np.unique(rows)
    up = grid[np.minimum(np.searchsorted(grid, t, side="right"), len(grid) - 1)]
    jumps = r > s
    fresh = np.concatenate([[True], jumps[:-1]])
    return Timetable(t, s, r, up, _levels(grid, t, s, r), np.arange(len(t)), fresh, jumps=bool(jumps.any()))


def _levels(grid, t, s, r):
    """Moves of the grid made down to each row's t, climbs undone: 0 at the first row. CoPaint's rate and weight grow
    with it."""
    place = {time: n for n, time in enumerate(grid)}
    return np.array([place[t[0]] - place[a] for a in t])


def levels(table: Timetable):
    """How many grid steps below its start each row begins (climbs undone)."""
    return table.level


def from_times(times) -> Timetable:
    """A plain descent (or ascent) through ``times``, no jumps."""
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"times have shape {times.shape}: give at least two times, for example [1000, 500, 0]")
    return from_rows(zip(times[:-1], times[1:], times[1:]))


def from_walk(walk, before_jump: bool = False) -> Timetable:
    """Fold a published list of times into rows: successive climbs become one exact Gaussian jump.

    ``before_jump``: insert the row (s, s, r) before each jump (CoPaint optimises once more before travelling), unless
    the walk begins with the climb.
    """
    walk = np.asarray(walk, np.float64)
    if walk.ndim != 1 or len(walk) < 2:
        raise ValueError(f"a walk of shape {walk.shape}: give at least two times")
    if walk[1] > walk[0]:
        raise ValueError(f"the walk starts by climbing from {walk[0]:g} to {walk[1]:g}: start with a step down")
    rows, n = [], 0
    while n + 1 < len(walk):
        t, s = walk[n], walk[n + 1]
        top = n + 1
        while top + 1 < len(walk) and walk[top + 1] > walk[top]:
            top += 1
        if top > n + 1 and before_jump:
            rows += [(t, s, s), (s, s, walk[top])]
        else:
            rows.append((t, s, walk[top]))
        n = top
    return from_rows(rows)


def _check_steps(steps, most, what="steps"):
    if not isinstance(steps, (int, np.integer)) or not 1 <= steps <= most:
        raise ValueError(f"{what} {steps} is out of range: choose a whole number from 1 to {most}")


def space(T: int, steps) -> np.ndarray:
    """ADM respacing: the ascending official indices (0 ... T - 1) that are kept.

    ``steps``: a number, "a,b,c" or a list (that many from each equal section, both ends included, half-even rounding of
    an accumulated stride), or "ddimN" (the first whole stride that gives N indices; it starts at 0 and need not reach
    the end). Raises ValueError when a section is asked for more than it has.
    """
    text = ",".join(map(str, steps)) if isinstance(steps, (list, tuple)) else str(steps)
    ddim = text.startswith("ddim")
    try:
        counts = [int(c) for c in text.removeprefix("ddim").split(",")]
    except ValueError:
        counts = []
    if not counts or (ddim and len(counts) > 1):
        raise ValueError(f"steps {text!r} is not understood: give a number, one per section as in '10,15,20', or 'ddim50'")
    if ddim:
        n = counts[0]
        for stride in range(1, T):
            if len(range(0, T, stride)) == n:
                return np.arange(0, T, stride)
        valid = sorted({len(range(0, T, stride)) for stride in range(1, T)})
        near = min(valid, key=lambda v: abs(v - n))
        raise ValueError(f"no whole stride gives {n} of {T} steps: the nearest is ddim{near}, or use steps={n}")
    size, extra = divmod(T, len(counts))
    kept, start = [], 0
    for section, count in enumerate(counts):
        length = size + (section < extra)
        _check_steps(count, length, f"steps of section {section} of {text!r}:")
        stride, at = (1.0 if count == 1 else (length - 1) / (count - 1)), 0.0
        for _ in range(count):
            kept.append(start + round(at))  # the accumulated float and half-even rounding are the official ones
            at += stride
        start += length
    return np.array(sorted(set(kept)))


def space_rounded(T: int, n: int, quadratic: bool = False) -> np.ndarray:
    """CoPaint's spacing: the ascending official indices that are kept, k T / n for k < n, rounded half to even.

    It starts at 0 and stops short of T - 1. ``quadratic``: (linspace(0, sqrt(0.8 T), n))^2 truncated. Duplicates are
    dropped, so that n > T keeps every index. Raises ValueError unless n is a whole number >= 1.
    """
    _check_steps(n, max(T, n) if isinstance(n, (int, np.integer)) else T)
    kept = (
        (np.linspace(0, np.sqrt(0.8 * T), n) ** 2).astype(int) if quadratic else np.round(np.arange(n) * (T / n)).astype(int)
    )
    return np.unique(kept)


def respaced(schedule, steps) -> Timetable:
    """Descend through the ADM-respaced times of a table, then to 0. ``steps`` as in :func:`space`."""
    return from_times(np.concatenate([space(schedule.T, steps)[::-1] + 1, [0]]))


def uniform(schedule, n: int) -> Timetable:
    """n equal steps of t from T to 0 (fractional times where n does not divide T)."""
    if isinstance(schedule.T, int):
        _check_steps(n, schedule.T)
    return from_times(np.linspace(schedule.T, 0, n + 1))


def quadratic(schedule, n: int, top: float = 1.0) -> Timetable:
    """Steps that shrink towards 0: t = T top (k / n)^2."""
    _check_steps(n, schedule.T if isinstance(schedule.T, int) else 10**6)
    return from_times(schedule.T * top * np.linspace(1, 0, n + 1) ** 2)


def log_snr(schedule, n: int, t_max=None, t_min=None) -> Timetable:
    """n steps: equal in log-SNR from t_max to t_min, the last one to 0. The house's default grid.

    ``t_max`` defaults to T, or to where log-SNR is -9.2 (sigma / alpha = 100) if the table goes beyond: steps in pure
    noise buy nothing; the walk still begins at T. ``t_min`` defaults to t = 1 of a table, or log-SNR 12.4
    (sigma / alpha = 0.002) of a formula. Raises ValueError for n out of range, or more steps than a table has.
    """
    is_table = isinstance(schedule.T, int)
    _check_steps(n, schedule.T if is_table else 10**6)
    if n == 1:
        return from_times([schedule.T, 0])
    t_top = schedule.T if t_max is None else t_max
    if t_max is None and float(schedule.log_snr(float(schedule.T))) < -9.2:
        t_top = float(schedule.time(-9.2))
    # a formula may stop short of such a clean image (VE at sigma_min): t stays above 0
    t_low = (1.0 if is_table else max(float(schedule.time(12.4)), 1e-5 * schedule.T)) if t_min is None else t_min
    lam = np.linspace(float(schedule.log_snr(float(t_top))), float(schedule.log_snr(float(t_low))), n)
    times = np.asarray(schedule.time(lam), np.float64)
    times[0], times[-1] = (schedule.T if t_max is None else t_top), t_low
    return from_times(np.append(times, 0.0))


def karras(schedule, n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Timetable:
    """Karras et al. 2022, eq. 5, in sigma / alpha, the last step to 0; clipped to what the schedule covers."""
    _check_steps(n, schedule.T if isinstance(schedule.T, int) else 10**6)
    ramp = np.linspace(0, 1, n)
    ratio = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    times = np.clip(np.asarray(schedule.time(-2 * np.log(ratio)), np.float64), 1e-5 * schedule.T, schedule.T)
    times = np.unique(times)[::-1]
    return from_times(np.append(times, 0.0))


def diffpir(schedule, n: int) -> Timetable:
    """DiffPIR's "quad": n rows at the official indices T - 1 - floor(T sqrt(k / (n - 1))), dense near 0, the last step to 0.

    Needs a table, 2 <= n. Where n is large, steps that would repeat a time are left out. The official run drops the last row's
    network call and returns its x at t = 1: ``diffpir(schedule, n)[:-1]``.
    """
    _check_steps(n, schedule.T)
    if n < 2:
        raise ValueError(f"steps {n} is out of range: choose a whole number from 2 to {schedule.T}")
    down = np.sqrt(np.linspace(0, schedule.T**2, n)).astype(int)
    down[-1] = schedule.T - 1
    return from_times(np.append(schedule.T - np.unique(down), 0))


def dpir(schedule, noise_std: float, n: int = 8, top: float = 98 / 255) -> Timetable:
    """DPIR's n levels: sigma / alpha log-even from ``top`` (49 grey levels, in [-1, 1] units) to the data's ``noise_std``, at
    least 0.02 (2.55 grey levels); the last row ends at 0. The paper takes 8, for super-resolution 24."""
    _check_steps(n, 10**6)
    ratio = np.geomspace(top, min(max(float(noise_std), 0.02), top), n)
    return from_times(np.append(np.asarray(schedule.time(-2 * np.log(ratio)), np.float64), 0.0))


def start_at(table: Timetable, t: float) -> Timetable:
    """The part of a plain descent at and below ``t`` (late start: CCDF, PartDiff). The walk begins at exactly t."""
    times = np.append(table.t, table.r[-1])
    if table.jumps:
        raise ValueError("start_at takes a table without jumps: shorten the schedule before adding them")
    if not times[-1] < t <= times[0]:
        raise ValueError(f"t = {t:g} lies outside the table's ({times[-1]:g}, {times[0]:g}]")
    return from_times(np.concatenate([[t], times[times < t]]))


def jump_walk(
    n: int,
    jump: int = 10,
    times: int = 10,
    start_resampling: float = 1e8,
    n_sample: int = 1,
    jump2: int = 1,
    times2: int = 1,
    jump3: int = 1,
    times3: int = 1,
) -> list[int]:
    """RePaint's list of indices n - 1 ... -1 (``get_schedule_jump``): after each ``jump`` steps climb back, so that
    every stretch is walked ``times`` times.

    The jump points are range(0, n - jump, jump), its end excluded. ``n_sample`` repeats single steps; ``jump2``, ``jump3`` are
    inner jumps whose counters refill when an outer one fires; none above ``start_resampling``.
    """

    def counters(length, repeats):
        return {j: repeats - 1 for j in range(0, n - length, length)}

    left, left2, left3 = counters(jump, times), counters(jump2, times2), counters(jump3, times3)
    t, walk = n, []
    while t >= 1:
        t -= 1
        walk.append(t)
        if t + 1 < n - 1 and t <= start_resampling:
            for _ in range(n_sample - 1):
                walk += [t + 1, t]
        if left3.get(t, 0) > 0 and t <= start_resampling - jump3:
            left3[t] -= 1
            walk += range(t + 1, t + jump3 + 1)
            t += jump3
        if left2.get(t, 0) > 0 and t <= start_resampling - jump2:
            left2[t] -= 1
            walk += range(t + 1, t + jump2 + 1)
            t += jump2
            left3 = counters(jump3, times3)
        if left.get(t, 0) > 0 and t <= start_resampling - jump:
            left[t] -= 1
            walk += range(t + 1, t + jump + 1)
            t += jump
            left2, left3 = counters(jump2, times2), counters(jump3, times3)
    return walk + [-1]


def repaint(schedule, steps: int = 250, jump: int = 10, times: int = 10, grid=None, **inner) -> Timetable:
    """RePaint's walk over ``steps`` levels: ``jump`` steps down, up again, ``times`` times in all (:func:`jump_walk`).

    ``grid``: a descending table whose times are the levels (its length replaces ``steps``); default: ADM
    respacing of the schedule, as published. (250, 10, 10) is the paper's: 2410 rows.
    """
    grid = respaced(schedule, steps) if grid is None else grid
    if grid.jumps:
        raise ValueError("grid must descend without jumps: repaint adds them")
    for value, name in ((jump, "jump"), (times, "times")):
        if not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name} {value} is out of range: choose a whole number >= 1")
    down = np.append(grid.t, grid.r[-1])[::-1]  # index i of the walk is level i + 1; -1 is the end
    return from_walk(down[np.array(jump_walk(len(grid), jump, times, **inner)) + 1])


def travel(grid: Timetable, length: int = 10, times: int = 2, keep=None, before_jump: bool = False) -> Timetable:
    """Time travel (CoPaint, DDNM): RePaint's rule on the steps of ``grid``, whose end stays the end.

    ``keep``: a function of the jump points (grid steps above the end) that says where to travel;
    ``before_jump``: insert the row (s, s, r) of CoPaint's extra optimisation.
    """
    if grid.jumps:
        raise ValueError("grid must descend without jumps: travel adds them")
    down = np.append(grid.t, grid.r[-1])[::-1]
    n = len(down)
    left = {j: times - 1 for j in range(0, n - length, length) if keep is None or keep(j)}
    t, walk = n, []
    while t >= 1:
        t -= 1
        walk.append(t)
        if left.get(t, 0) > 0:
            left[t] -= 1
            walk += range(t + 1, t + length + 1)
            t += length
    return from_walk(down[np.array(walk)], before_jump)


_PUBLISHED = {
    "repaint": lambda schedule: repaint(schedule, 250, 10, 10),
    "ddpm": lambda schedule: respaced(schedule, schedule.T),
    "adm-250": lambda schedule: respaced(schedule, 250),
    "adm-ddim25": lambda schedule: respaced(schedule, "ddim25"),
    "ddrm": lambda schedule: respaced(schedule, "ddim20"),
    "ddnm": lambda schedule: respaced(schedule, "ddim100"),
    "ddnm-travel": lambda schedule: repaint(schedule, jump=10, times=3, grid=respaced(schedule, "ddim100")),
    "diffpir-20": lambda schedule: diffpir(schedule, 20),
    "diffpir-100": lambda schedule: diffpir(schedule, 100),
}


def published(name: str, schedule) -> Timetable:
    """The timetable of a paper. Raises ValueError for an unknown name."""
    if name not in _PUBLISHED:
        raise ValueError(f"unknown timetable {name!r}: {nearest(name, _PUBLISHED)}")
    return _PUBLISHED[name](schedule)
