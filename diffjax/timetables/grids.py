"""Descents: the spacings of the papers and the house's own.

All but ``respaced``, ``diffpir`` and ``ddnm`` take formulas as well as tables. Parameters of a schedule and bounds may be
traced, numbers of steps may not.
"""

from __future__ import annotations

import numpy as np

from ..base import a_schedule, in_range, is_concrete, namespace
from .table import Timetable, from_times


def whole(name: str, value, low: int = 1, most: int | None = None) -> None:
    """Raise unless ``value`` is a whole number from ``low`` to ``most``."""
    number = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not (number and value >= low and (most is None or value <= most)):
        reach = f">= {low}" if most is None else f"from {low} to {most}"
        raise ValueError(f"{name} {value} is out of range: choose a whole number {reach}")


def _check_steps(n, schedule) -> None:
    a_schedule(schedule)
    whole("steps", n, most=schedule.T if schedule.discrete else 10**6)


def _entries(schedule, who: str) -> int:
    """T of a table."""
    a_schedule(schedule)
    if not schedule.discrete:
        raise ValueError(
            f"{who} counts entries of a table, but {type(schedule).__name__} is a formula: use timetables.log_snr or uniform"
        )
    return schedule.T


def _lowest(schedule) -> float:
    """The last time before the clean image: a network trained on a table knows no index below t = 1."""
    return 1.0 if schedule.discrete else 1e-5 * float(schedule.T)


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
        whole(f"steps of section {section} of {text!r}:", count, most=length)
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
    whole("steps", n)
    kept = (
        (np.linspace(0, np.sqrt(0.8 * T), n) ** 2).astype(int) if quadratic else np.round(np.arange(n) * (T / n)).astype(int)
    )
    return np.unique(kept)


def respaced(schedule, steps) -> Timetable:
    """Descend through the ADM-respaced times of a table, then to 0. ``steps`` as in :func:`space`."""
    return from_times(np.concatenate([space(_entries(schedule, "respaced"), steps)[::-1] + 1, [0]]), schedule)


def uniform(schedule, n: int) -> Timetable:
    """n equal steps of t from T to 0 (fractional times where n does not divide T)."""
    _check_steps(n, schedule)
    return from_times(np.linspace(schedule.T, 0, n + 1), schedule)


def quadratic(schedule, n: int, top: float = 1.0) -> Timetable:
    """Steps that shrink towards 0: t = T top (k / n)^2.

    On a table, where the last of them would lie below t = 1, the steps of sqrt(t) are equal from T top to 1, and one more goes
    to 0. ``top``: where to start, a share of T in (0, 1].
    """
    _check_steps(n, schedule)
    first = schedule.T * top
    least = _lowest(schedule) / schedule.T
    if is_concrete(top) and not least <= top <= 1:
        raise ValueError(f"top {top} is out of range: choose a share of T = {schedule.T:g}, from {least:g} to 1")
    xp = namespace(top)
    times = first * xp.linspace(1.0, 0.0, n + 1) ** 2
    if schedule.discrete and n > 1:
        ending_at_1 = xp.concatenate([xp.linspace(xp.sqrt(first), 1.0, n) ** 2, xp.zeros(1)])
        times = xp.where(times[-2] < 1, ending_at_1, times)
    return from_times(times, schedule)


def log_snr(schedule, n: int, t_max=None, t_min=None) -> Timetable:
    """n steps: equal in log-SNR from t_max to t_min, the last one to 0. The house's default grid.

    ``t_max`` defaults to T, or to where log-SNR is -9.2 (sigma / alpha = 100) if the table goes beyond: steps in pure
    noise buy nothing; the walk still begins at T. ``t_min`` defaults to t = 1 of a table, or log-SNR 12.4
    (sigma / alpha = 0.002) of a formula. Raises ValueError for n out of range, more steps than a table has, or bounds out of
    order.
    """
    _check_steps(n, schedule)
    T = float(schedule.T)
    first = T if t_max is None else t_max
    # a formula may stop short of such a clean image (VE at sigma_min): t stays above 0
    clean = lambda: namespace(schedule).maximum(schedule.time(12.4), 1e-5 * T)
    low = t_min if t_min is not None else 1.0 if schedule.discrete else clean()
    if is_concrete(first, low) and not 0 < float(low) <= float(first) <= T * (1 + 1e-12):
        raise ValueError(f"t_max {float(first):g} and t_min {float(low):g}: choose times with 0 < t_min < t_max <= {T:g}")
    if n == 1:
        return from_times([first, 0.0], schedule)
    xp = namespace(schedule, first, low)
    start = first
    if t_max is None:
        start = xp.where(schedule.log_snr(T) < -9.2, schedule.time(-9.2), T)
    times = schedule.time(xp.linspace(schedule.log_snr(start), schedule.log_snr(low), n))
    ends = lambda a: xp.reshape(xp.asarray(a, times.dtype), (1,))
    return from_times(xp.concatenate([ends(first), times[1:-1], ends(low), ends(0.0)]), schedule)


def karras(schedule, n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Timetable:
    """Karras et al. 2022, eq. 5, in sigma / alpha, the last step to 0.

    Between the two sigmas, or the ends of the schedule where these are nearer (t = 1 of a table). Raises ValueError unless
    sigma_min < sigma_max.
    """
    _check_steps(n, schedule)
    if is_concrete(sigma_min, sigma_max) and not 0 < float(sigma_min) < float(sigma_max):
        raise ValueError(f"sigma_min {sigma_min} and sigma_max {sigma_max}: choose 0 < sigma_min < sigma_max")
    in_range("rho", rho, 1e-3, 1e6, remedy="choose a number > 0 (Karras et al.: 7)")
    xp = namespace(schedule, sigma_min, sigma_max, rho)
    T, lowest = float(schedule.T), _lowest(schedule)
    ratio = lambda t: xp.exp(-0.5 * schedule.log_snr(t))
    high, low = xp.minimum(sigma_max, ratio(T)) ** (1 / rho), xp.maximum(sigma_min, ratio(lowest)) ** (1 / rho)
    times = schedule.time(-2 * rho * xp.log(high + xp.linspace(0.0, 1.0, n) * (low - high)))
    return from_times(xp.append(xp.clip(times, lowest, T), 0.0), schedule)


def diffpir(schedule, n: int) -> Timetable:
    """DiffPIR's "quad": n rows at the official indices T - 1 - floor(T sqrt(k / (n - 1))), dense near 0, the last step to 0.

    Needs a table, 2 <= n. Where n is large, steps that would repeat a time are left out. The official run drops the last row's
    network call and returns its x at t = 1: ``diffpir(schedule, n)[:-1]``.
    """
    T = _entries(schedule, "diffpir")
    whole("steps", n, low=2, most=T)
    down = np.sqrt(np.linspace(0, T**2, n)).astype(int)
    down[-1] = T - 1
    return from_times(np.append(T - np.unique(down), 0), schedule)


def ddnm_times(schedule, n: int) -> np.ndarray:
    """DDNM's n levels of a table, ascending: the official indices k (T // n), whose stride is rounded down. They start at 0
    and stop short of T - 1: 12 of 1000 end at 913, where "ddim12" ends at 924."""
    T = _entries(schedule, "ddnm")
    whole("steps", n, most=T)
    return np.arange(n) * (T // n) + 1


def dpir(schedule, noise_std: float, n: int = 8, top: float = 98 / 255) -> Timetable:
    """DPIR's n levels: sigma / alpha log-even from ``top`` (49 grey levels, in [-1, 1] units) to the data's ``noise_std``, at
    least 0.02 (2.55 grey levels); the last row ends at 0. The paper takes 8, for super-resolution 24.

    ``noise_std``: one number >= 0, known or traced. Raises ValueError for others.
    """
    _check_steps(n, schedule)
    if np.size(noise_std) != 1:
        raise ValueError(f"noise_std of shape {np.shape(noise_std)} is not one number: DPIR walks down to one noise level")
    in_range("noise_std", noise_std, 0, top, remedy=f"DPIR walks down to it from top = {top}: pass a larger top")
    xp = namespace(schedule, noise_std, top)
    low = xp.clip(xp.reshape(xp.asarray(noise_std), ()), 0.02, top)
    times = schedule.time(-2 * xp.linspace(xp.log(top), xp.log(low), n))
    return from_times(xp.append(times, 0.0), schedule)
