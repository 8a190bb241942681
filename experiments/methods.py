"""The methods that programs know by name. A new one: its function here, and one line in METHODS."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Entry(NamedTuple):
    """build(denoise, measurement, schedule, steps, **settings) -> (method, kernel, table), settings: hyper-parameters that
    may be traced, their defaults in its signature; steps: the default; about: one line;
    tasks: what it can restore; clip: whether ``denoise`` comes with x0 clamped to [-1, 1] (False: the method does it)."""

    build: Callable
    steps: int
    about: str
    tasks: tuple = ("inpainting",)
    clip: bool = True


def repaint(denoise, measurement, schedule, steps):
    """RePaint on ``steps`` levels equal in log-SNR, every stretch of five walked five times: 280 calls for 60."""
    from diffjax import kernels, methods, timetables

    table = timetables.repaint(schedule, jump=5, times=5, grid=timetables.log_snr(schedule, steps))
    return methods.RePaint(denoise, measurement), kernels.DDPM(schedule), table


# Not the paper's (lr 0.02, growing by 1.012 to 1.03 a level): how much x0 moves with x at high noise grows with the number of
# pixels, and those rates were tuned on 256x256x3. At 32x32 they leave the high levels, where the layout is decided, unfitted,
# and the halves do not match. Chosen among seven on validation images (results/tune_copaint_fast_fashion32.md): 2 is no better
# and costs half as many calls again, as most of its steps are shortened.
COPAINT = {"lr": 1.0, "lr_decay": 1.0}


def copaint(name):
    """A row of the paper's table (its timetable, iterations and weights for CelebA-HQ) with the rate ``COPAINT``."""

    def build(denoise, measurement, schedule, steps, lr=COPAINT["lr"], lr_decay=COPAINT["lr_decay"]):
        from diffjax import kernels, methods

        settings, table = methods.copaint.published(name, schedule, steps)
        settings = {**settings, "lr": lr, "lr_decay": lr_decay}
        return methods.CoPaint(denoise, measurement, **settings), kernels.DDIM(schedule), table

    return build


METHODS = {
    "repaint": Entry(
        repaint, 60, "RePaint (Lugmayr et al. 2022): pastes the known pixels at each level, walks back and forth"
    ),
    "copaint-fast": Entry(
        copaint("copaint-fast"),
        100,
        "CoPaint (Zhang et al. 2023): fits x_t to the known pixels before each step, 1 gradient step each",
        clip=False,
    ),
    "copaint": Entry(copaint("copaint"), 250, "CoPaint, 2 gradient steps at each of 250 levels", clip=False),
    "copaint-tt": Entry(copaint("copaint-tt"), 250, "CoPaint with time travel: every stretch of 10 walked twice", clip=False),
}
