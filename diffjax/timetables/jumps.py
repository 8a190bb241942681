"""Walks that climb: RePaint's resampling and time travel, over the levels of any descending table."""

from __future__ import annotations

import numpy as np

from ..base import is_concrete, namespace, replace, short
from .grids import ddnm_times, respaced, whole
from .table import Timetable, from_times, from_walk


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
    inner jumps whose counters refill when an outer one fires; none above ``start_resampling``. Raises ValueError unless all
    are whole numbers >= 1.
    """
    lengths = dict(n=n, jump=jump, times=times, n_sample=n_sample, jump2=jump2, times2=times2, jump3=jump3, times3=times3)
    for name, value in lengths.items():
        whole(name, value)

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


def _over(grid: Timetable, walk, before_jump: bool = False) -> Timetable:
    """``walk``, indices of the grid's levels counted from its end, on the grid's times, which may be traced."""
    xp = namespace(grid.t, grid.r)
    times = xp.concatenate([grid.t, grid.r[-1:]])[::-1]
    noted = np.concatenate([grid.log_snr, [np.nan]])[::-1] if is_concrete(grid.log_snr) else np.full(len(grid) + 1, np.nan)
    places = from_walk(walk, before_jump)
    at = lambda index: times[index.astype(int)]
    return replace(
        places, t=at(places.t), s=at(places.s), r=at(places.r), up=at(places.up), log_snr=noted[places.t.astype(int)]
    )


def _plain(grid: Timetable, who: str) -> None:
    if not isinstance(grid, Timetable):
        raise ValueError(f"{who} walks a timetable, not {short(grid)}: pass one, timetables.log_snr(schedule, 50)")
    if grid.jumps:
        raise ValueError(f"grid must descend without jumps: {who} adds them")
    if is_concrete(grid.t, grid.s) and not (grid.s < grid.t).all():
        n = int(np.argmax(~(grid.s < grid.t)))
        raise ValueError(f"grid must descend: its row {n} goes from {grid.t[n]:g} to {grid.s[n]:g}")


def _fitting(name: str, jump: int, times: int, levels: int, shorten: bool) -> int:
    """``jump``, or the longest that happens at all on so many levels."""
    whole(name, jump)
    if times == 1 or jump < levels:
        return jump
    if shorten:
        return max(levels - 1, 1)
    most = f"at most {levels - 1}" if levels > 1 else "more levels"
    raise ValueError(f"{name} {jump} is longer than a walk of {levels} levels allows: choose {most}, times=1 or shorten=True")


def repaint(
    schedule, steps: int = 250, jump: int = 10, times: int = 10, grid=None, shorten: bool = False, **inner
) -> Timetable:
    """RePaint's walk over ``steps`` levels: ``jump`` steps down, up again, ``times`` times in all (:func:`jump_walk`, which
    takes the arguments ``inner``).

    ``grid``: a descending table whose times are the levels (its length replaces ``steps``); default: ADM
    respacing of the schedule, as published. (250, 10, 10) is the paper's: 2410 rows.
    ``shorten``: cut jumps that are too long for so few levels to levels - 1 (one level is walked once). Otherwise ValueError,
    as such a walk would resample nowhere; also for numbers out of range and a grid that does not descend.
    """
    grid = respaced(schedule, steps) if grid is None else grid
    _plain(grid, "repaint")
    grid.check(schedule)
    whole("times", times)
    jump = _fitting("jump", jump, times, len(grid), shorten)
    for n in "23":
        repeats = inner.get(f"times{n}", 1)
        whole(f"times{n}", repeats)
        if f"jump{n}" in inner or repeats != 1:
            inner[f"jump{n}"] = _fitting(f"jump{n}", inner.get(f"jump{n}", 1), repeats, len(grid), shorten)
    table = _over(grid, np.array(jump_walk(len(grid), jump, times, **inner)) + 1)
    wanted = max(times, *(inner.get(name, 1) for name in ("n_sample", "times2", "times3"))) > 1
    if wanted and not table.jumps and not shorten:
        raise ValueError(
            f"no stretch of the {len(grid)} levels would be walked again: choose more levels, start_resampling >= {jump}, or "
            "shorten=True"
        )
    return table


def travel(
    grid: Timetable, length: int = 10, times: int = 2, keep=None, before_jump: bool = False, shorten: bool = False
) -> Timetable:
    """Time travel (CoPaint, DDNM): RePaint's rule on the steps of ``grid``, whose end stays the end.

    ``keep``: a function of the jump points (grid steps above the end) that says where to travel;
    ``before_jump``: insert the row (s, s, r) of CoPaint's extra optimisation; ``shorten``: cut a length that is too long for
    the grid, which otherwise is a ValueError.
    """
    _plain(grid, "travel")
    whole("times", times)
    n = len(grid) + 1
    length = _fitting("length", length, times, n, shorten)
    left = {j: times - 1 for j in range(0, n - length, length) if keep is None or keep(j)}
    t, walk = n, []
    while t >= 1:
        t -= 1
        walk.append(t)
        if left.get(t, 0) > 0:
            left[t] -= 1
            walk += range(t + 1, t + length + 1)
            t += length
    return _over(grid, walk, before_jump)


def ddnm(schedule, steps: int = 100, length: int = 1, times: int = 1) -> Timetable:
    """DDNM's walk over ``steps`` levels of a table, T // steps apart (:func:`ddnm_times`), with time travel over ``length`` of
    them, ``times`` times in all, by RePaint's rule. The paper's are (100, 1, 1) and, with travel, (100, 10, 3)."""
    grid = from_times(np.append(ddnm_times(schedule, steps)[::-1], 0), schedule)
    return repaint(schedule, jump=length, times=times, grid=grid)
