"""What the networks of the score-SDE code are told and what they give, by the schedule they were trained on.

Source: Song et al. 2021, arXiv:2011.13456, and its code (models/utils.py):

    VE                  told sigma(t)            gives the score
    VP, sub-VP          told 999 t               gives -sigma times the score, which is eps
    a table, alpha = 1  told T - t, the row counted from the noisiest        gives the score
    another table       told t - 1               gives eps
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from ..base import is_concrete
from ..schedules import VE, VP
from .adapters import _by_value, from_eps, from_score
from .times import FromNoise, Sigma


@dataclasses.dataclass(frozen=True)
class _UnitRange:
    """A network of scores of images u in [0, 1] as one of x = 2 u - 1: d log p / dx is half of d log p / du."""

    apply: Callable

    def __call__(self, params, x, *told):
        return self.apply(params, (x + 1) / 2, *told) / 2


def from_score_sde(apply, params, schedule, *, unit_range=False, cond=None):
    """A denoiser from a network of that code (``convert.score_sde``), with the conventions above.

    schedule:    ``VE``, ``VP``, ``SubVP`` or a table, in the units of the images given to the denoiser
    unit_range:  True for a network trained on images in [0, 1] (the official variance-exploding ones), which then denoises
                 images in [-1, 1]: the schedule has twice the official sigmas, ``VE(0.02, 100.0)`` for 0.01 and 50
    Raises ValueError for other schedules, and for unit_range under a schedule that shrinks images: those were trained on
    [-1, 1].
    """
    table = getattr(schedule, "discrete", False)
    if not table and not isinstance(schedule, (VE, VP)):
        raise ValueError(f"{type(schedule).__name__} is no schedule of the score-SDE code: give VE, VP, SubVP or a table")
    if table and not is_concrete(schedule.alphas):
        raise ValueError("whether a traced table keeps alpha = 1 cannot be seen: build the denoiser outside jit")
    exploding = isinstance(schedule, VE) or (table and bool((np.asarray(schedule.alphas) == 1).all()))
    if not exploding:
        if unit_range:
            raise ValueError(f"unit_range=True under {type(schedule).__name__}: only variance-exploding networks know [0, 1]")
        return from_eps(apply, params, schedule, cond=cond)
    time = FromNoise() if table else Sigma(0.5) if unit_range else None
    apply = _UnitRange(_by_value(apply)) if unit_range else apply
    return from_score(apply, params, schedule, cond=cond, time=time)
