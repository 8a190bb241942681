"""The grids of latent diffusion (Rombach et al. 2022) and of diffusers, as rows.

Official times are indices i = t - 1. Latent diffusion adds one to its indices and goes to index 0 in the end, not to the clean
image: its result keeps noise of deviation sigma(1). That is a walk from t = i + 1 down to t = 1, not to 0.
"""

from __future__ import annotations

import numpy as np

from ..base import namespace, nearest, replace, short
from .grids import _entries, whole
from .table import Timetable, from_times

SPACINGS = ("uniform", "quad")
COUNTS = ("exact", "published")
DIFFUSERS = ("leading", "trailing", "linspace")


def _choice(name, value, valid):
    if value not in valid:
        raise ValueError(f"unknown {name} {value!r}: {nearest(value, valid)}")


def _kept_apart(indices, low, high):
    """Ascending ``indices``, moved as little as needed to be distinct and from ``low`` to ``high``."""
    n = np.arange(len(indices))
    up = np.maximum.accumulate(np.maximum(indices, low) - n) + n
    return np.minimum(up, high - n[::-1])


def space_ldm(T: int, n: int, spacing: str = "uniform", count: str = "exact") -> np.ndarray:
    """Latent diffusion's ascending official indices, its offset of 1 included.

    spacing: "uniform": k (T // n) + 1;  "quad": floor(linspace(0, sqrt(0.8 T), n)^2) + 1
    count:   "exact": n different indices from 1 to T - 1. Where n divides T they are the published ones (T = n, which has no
             room for the offset, takes 0 to T - 1); elsewhere floor(k T / n) + 1, and "quad" without repetitions.
             "published": as released. Uniform ones are T / (T // n) rounded up, not n (n = 7: 8; 30: 31; 350 of 1000: 500),
             and may reach T, which is no index; "quad" repeats small ones
    Raises ValueError for n out of range and other words.
    """
    whole("steps", n, most=T)
    _choice("spacing", spacing, SPACINGS)
    _choice("count", count, COUNTS)
    quad = lambda: (np.linspace(0, np.sqrt(T * 0.8), n) ** 2).astype(int) + 1
    if count == "published":
        return np.arange(0, T, T // n) + 1 if spacing == "uniform" else quad()
    if n == T:
        return np.arange(T)
    return _kept_apart(np.arange(n) * T // n + 1 if spacing == "uniform" else quad(), 1, T - 1)


def ldm(schedule, n: int, spacing: str = "uniform", count: str = "exact") -> Timetable:
    """Latent diffusion's walk over ``n`` indices of :func:`space_ldm`, the last step to t = 1 (index 0), as released.

    n = T with count "exact" takes every entry, t = T ... 1, and ends at 0. The released code has 50 or 200 uniform steps, and
    for text 50 with PLMS (:func:`plms`). Raises ValueError for what :func:`space_ldm` refuses, and for a published grid that
    leaves the table, where the released code fails with an index error.
    """
    T = _entries(schedule, "ldm")
    indices = space_ldm(T, n, spacing, count)
    if indices[-1] >= T:
        raise ValueError(
            f"the published grid of {n} steps reaches index {indices[-1]}, beyond the table's {T - 1}: use count='exact'"
        )
    return from_times(np.append(indices[::-1] + 1, 0 if indices[0] == 0 else 1), schedule)


def diffusers(schedule, n: int, spacing: str = "leading", offset: int = 0, end: int = 0) -> Timetable:
    """The n indices of diffusers' schedulers (``timestep_spacing``, ``steps_offset``), the last step to t = ``end``.

    spacing: "leading": k (T // n) + offset;  "trailing": T - k T / n - 1, rounded, from the top;  "linspace": from 0 to T - 1
    end:     0, the clean image (``set_alpha_to_one``), or 1, index 0
    Where n does not divide T, and for "linspace", the released code steps by T // n whatever the next index is, so that its x
    is not of the level that the network is told of; here a row ends where the next begins. Raises ValueError for other words
    and numbers, and an offset that leaves the table.
    """
    T = _entries(schedule, "diffusers")
    whole("steps", n, most=T)
    _choice("spacing", spacing, DIFFUSERS)
    whole("offset", offset, low=0, most=T - 1)
    whole("end", end, low=0, most=1)
    down = indices_diffusers(T, n, spacing, offset)
    if down[0] >= T:
        raise ValueError(f"offset {offset} takes {n} steps to index {down[0]}, beyond the table's {T - 1}: use a smaller one")
    return from_times(np.append(down + 1, end), schedule)


def indices_diffusers(T: int, n: int, spacing: str = "leading", offset: int = 0) -> np.ndarray:
    """The descending indices of :func:`diffusers`, as its schedulers list them in ``timesteps``."""
    if spacing == "linspace":
        return np.linspace(0, T - 1, n).round()[::-1].astype(int)
    if spacing == "trailing":
        return np.round(np.arange(T, 0, -T / n)).astype(int) - 1
    return (np.arange(n) * (T // n)).round()[::-1].astype(int) + offset


def plms(grid: Timetable) -> Timetable:
    """``grid`` with the row (s, s, s) after its first, the second call that ``kernels.PLMS`` starts with: one row more. Raises
    ValueError for what is no descent of two rows or more."""
    if not isinstance(grid, Timetable):
        raise ValueError(f"plms takes a timetable, not {short(grid)}: pass one, timetables.ldm(schedule, 50)")
    if grid.jumps or len(grid) < 2:
        raise ValueError("plms takes a descent of at least two rows, without jumps: it starts with two calls")
    xp = namespace(grid.t, grid.s)
    times = xp.concatenate([grid.t, grid.s[-1:]])
    times = xp.concatenate([times[:2], times[1:]])
    table = from_times(times)
    return replace(table, log_snr=xp.concatenate([grid.log_snr[:2], grid.log_snr[1:]]))
