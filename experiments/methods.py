"""The methods that programs know by name. A new one: its function here, and one line in METHODS."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Entry(NamedTuple):
    """build(denoise, measurement, schedule, steps) -> (method, kernel, table); steps: the default; about: one line;
    tasks: what it can restore."""

    build: Callable
    steps: int
    about: str
    tasks: tuple = ("inpainting",)


def repaint(denoise, measurement, schedule, steps):
    """RePaint on ``steps`` levels equal in log-SNR, every stretch of five walked five times: 280 calls for 60."""
    from diffjax import kernels, methods, timetables

    table = timetables.repaint(schedule, jump=5, times=5, grid=timetables.log_snr(schedule, steps))
    return methods.RePaint(denoise, measurement), kernels.DDPM(schedule), table


METHODS = {
    "repaint": Entry(
        repaint, 60, "RePaint (Lugmayr et al. 2022): pastes the known pixels at each level, walks back and forth"
    ),
}
