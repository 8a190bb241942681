"""A walk through time as data, and the ways to make one from known times."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..base import Row, is_concrete, namespace, pytree, replace, static, whole

FIELDS = ("t", "s", "r", "up", "level", "i", "fresh", "log_snr")
TOLERANCE = 0.05  # in log-SNR: far above what float32 does to a time, far below what two schedules differ by


@pytree
class Timetable:
    """Rows stacked: t, s, r, up, level, i, fresh, each of shape (rows,) (see :class:`diffjax.base.Row`).

    log_snr:  (rows,) log-SNR at t by the schedule that the table was built from, NaN where none is known. Only :meth:`check`
              looks at it
    jumps:    static: whether any row climbs (without it no jump noise is drawn)
    ``len(table)`` = kernel steps.
    """

    t: Any
    s: Any
    r: Any
    up: Any
    level: Any
    i: Any
    fresh: Any
    log_snr: Any
    jumps: bool = static(default=False)

    def __len__(self) -> int:
        return self.t.shape[0]

    def __getitem__(self, rows: slice) -> Timetable:
        """A part of the walk; rows keep their numbers, so that a resumed walk draws the same noise."""
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError("a timetable is sliced by a contiguous range: table[:10], table[10:]")
        return Timetable(*(getattr(self, name)[rows] for name in FIELDS), jumps=self.jumps)

    def rows(self, k=None, m=None) -> Row:
        """All rows as one :class:`Row` with a leading axis."""
        return Row(self.t, self.s, self.r, self.up, self.level, self.i, self.fresh, k, m)

    def with_jumps(self) -> Timetable:
        """The same walk as a table that may jump, so that it can be stacked with one that does. Same result; jump noise is
        drawn and multiplied by 0."""
        return replace(self, jumps=True)

    def check(self, schedule) -> None:
        """Raises ValueError where known times lie beyond the schedule's, or the table was built from another schedule."""
        remedy = "build both from one schedule (timetables.from_times(times) makes a table that belongs to none)"
        if not is_concrete(self.t, self.s, self.r, schedule.T):
            return
        T, worst = float(np.max(schedule.T)), float(np.max([self.t, self.s, self.r]))
        if worst > T * (1 + 1e-12):
            raise ValueError(f"the timetable reaches t = {worst:g}, beyond the schedule's {T:g}: {remedy}")
        if not is_concrete(self.log_snr, schedule):
            return
        t, own = np.asarray(self.t, np.float64), np.asarray(self.log_snr, np.float64)
        theirs = _log_snr(schedule, t)
        other = ~np.isnan(own) & ~np.isclose(own, theirs, rtol=0, atol=TOLERANCE)
        if other.any():
            n = int(np.argmax(other))
            raise ValueError(
                f"the timetable was built from another schedule: at t = {t[n]:g} log-SNR is {own[n]:.2f} there and "
                f"{theirs[n]:.2f} here: {remedy}"
            )

    def __str__(self) -> str:
        if not is_concrete(self):
            return f"Timetable({len(self)} traced rows)"
        lines = [f"{len(self)} rows, t {self.t[0]:g} -> {self.r[-1]:g}, {int((self.r > self.s).sum())} jumps"]
        lines += [
            f"{int(i):5d}  {t:9.4f} -> {s:9.4f}" + (f"  up to {r:9.4f}" if r > s else "")
            for i, t, s, r in zip(self.i, self.t, self.s, self.r)
        ]
        return "\n".join(lines if len(lines) <= 41 else lines[:21] + ["  ..."] + lines[-20:])


def known(who: str, *arrays) -> None:
    """Raise where the number of rows would depend on traced values."""
    if not is_concrete(*arrays):
        raise ValueError(f"the rows of {who} depend on times that are traced here: build the timetable outside jit")


def from_rows(rows, schedule=None) -> Timetable:
    """A table from an iterable of (t, s, r), or an array (rows, 3).

    ``schedule``: the one it is meant for; :meth:`Timetable.check` then refuses another. Traced times make a traced table,
    taken to jump. Raises ValueError where a row does not start where the last ended, or climbs to a time below s.
    """
    rows = rows if hasattr(rows, "shape") else list(rows)
    concrete = is_concrete(rows)
    rows = np.asarray(rows, np.float64) if concrete else _floats(rows)
    if rows.ndim != 2 or rows.shape[1] != 3 or len(rows) == 0:
        raise ValueError(f"rows have shape {rows.shape}: give at least one (t, s, r)")
    t, s, r = rows.T
    if not concrete:
        return _stack(t, s, r, schedule, jumps=True)
    if not np.isfinite(rows).all() or (rows < 0).any():
        raise ValueError("rows hold a negative or non-finite time")
    broken = np.flatnonzero(t[1:] != r[:-1])
    if len(broken):
        n = broken[0] + 1
        raise ValueError(f"row {n} starts at t = {t[n]:g}, but row {n - 1} ended at {r[n - 1]:g}")
    if (r < s).any():
        n = int(np.argmax(r < s))
        raise ValueError(f"row {n} jumps down from {s[n]:g} to {r[n]:g}: a jump climbs (r >= s)")
    return _stack(t, s, r, schedule, jumps=bool((r > s).any()))


def _log_snr(schedule, t):
    with jax.ensure_compile_time_eval():  # a schedule of one's own may compute in JAX, within a trace too
        return np.asarray(schedule.log_snr(t), np.float64)


def _floats(a):
    a = jnp.asarray(a)
    return a if jnp.issubdtype(a.dtype, jnp.floating) else a.astype(float)


def _stack(t, s, r, schedule, jumps) -> Timetable:
    """The rest of the fields. ``level``: moves of the walk's grid made down to each row's t, climbs undone: 0 at the first row
    (CoPaint's rate and weight grow with it). ``up``: the next time of the grid above t, the top's own at the top."""
    xp = namespace(t, s, r)
    grid = xp.sort(xp.concatenate([t, s, r]))
    rank = xp.concatenate([xp.zeros(1, int), xp.cumsum(xp.diff(grid) > 0)])
    place = rank[xp.searchsorted(grid, t, side="left")]
    up = grid[xp.minimum(xp.searchsorted(grid, t, side="right"), len(grid) - 1)]
    fresh = xp.concatenate([xp.ones(1, bool), (r > s)[:-1]])
    belongs = schedule is not None and is_concrete(schedule, t)
    log_snr = _log_snr(schedule, t) if belongs else np.full(t.shape, np.nan)
    return Timetable(t, s, r, up, place[0] - place, np.arange(len(t)), fresh, log_snr, jumps=jumps)


def from_times(times, schedule=None) -> Timetable:
    """A plain descent (or ascent) through ``times``, no jumps. Traced times make a traced table. ``schedule``: as for
    :func:`from_rows`."""
    times = times if hasattr(times, "shape") else list(times)
    times = np.asarray(times, np.float64) if is_concrete(times) else _floats(times)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"times have shape {times.shape}: give at least two times, for example [1000, 500, 0]")
    if not is_concrete(times):
        return _stack(times[:-1], times[1:], times[1:], schedule, jumps=False)
    return from_rows(zip(times[:-1], times[1:], times[1:]), schedule)


def from_walk(walk, before_jump: bool = False, schedule=None) -> Timetable:
    """Fold a published list of times into rows: successive climbs become one exact Gaussian jump.

    ``before_jump``: insert the row (s, s, r) before each jump (CoPaint optimises once more before travelling), unless
    the walk begins with the climb. ``schedule``: as for :func:`from_rows`.
    """
    known("from_walk", walk)
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
    return from_rows(rows, schedule)


def start_at(table: Timetable, t: float) -> Timetable:
    """The part of a plain descent at and below ``t`` (late start: CCDF, PartDiff). The walk begins at exactly t."""
    known("start_at", table.t, t)
    times = np.append(table.t, table.r[-1])
    if table.jumps:
        raise ValueError("start_at takes a table without jumps: shorten the schedule before adding them")
    if not times[-1] < t <= times[0]:
        raise ValueError(f"t = {t:g} lies outside the table's ({times[-1]:g}, {times[0]:g}]")
    below = times < t
    at_t = table.log_snr[table.t == t][:1] if (table.t == t).any() else [np.nan]
    late = from_times(np.concatenate([[t], times[below]]))
    return replace(late, log_snr=np.concatenate([at_t, table.log_snr[below[:-1]]]))


def padded(table: Timetable, rows: int) -> Timetable:
    """``table`` as one of ``rows`` rows: the missing ones stay at its last time (s = t), where a kernel returns x itself.

    Tables of one length are one program: a sweep over the start (``start_at``) or the number of steps compiles once, and a
    stack of them can be mapped. The draws and the result are the unpadded walk's. ``sample(..., part=(0, len(table)))`` does
    not walk the rows added: no network calls there, and no data steps of methods that act wherever they stand.
    Raises ValueError where the table is longer than ``rows``.
    """
    missing = whole("rows", rows) - len(table)
    if missing < 0:
        raise ValueError(f"a table of {len(table)} rows cannot be padded to {rows}: give at least {len(table)}")
    xp = namespace(*(getattr(table, name) for name in FIELDS))
    last = xp.asarray(table.r)[-1]
    level = xp.asarray(table.level)[-1] + 1
    stay = {"level": level, "fresh": True, "log_snr": xp.nan, "up": xp.asarray(table.t)[-1]}
    fields = []
    for name in FIELDS:
        a = xp.asarray(getattr(table, name))
        more = a[-1] + 1 + xp.arange(missing) if name == "i" else xp.full(missing, stay.get(name, last))
        fields.append(xp.concatenate([a, more.astype(a.dtype)]))
    return Timetable(*fields, jumps=table.jumps)
