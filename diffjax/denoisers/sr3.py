"""What SR3's network is told and gives: eps, of the image x_t, the signal's share sqrt(abar_t) and a condition.

Source: Saharia et al. 2021, arXiv:2104.07636, section 2; Chen et al. 2020, arXiv:2009.00713 (noise levels instead of indices).
"""

from __future__ import annotations

from ..base import in_order
from .adapters import from_eps
from .clipping import Clipped
from .times import NoiseLevel


def from_sr3(apply, params, schedule, cond=None, *, clip=1.0):
    """A denoiser from a network ``apply(params, x, level, cond)`` that predicts eps; level = alpha(t) = sqrt(abar_t).

    Because it is told the level and no index, any ``schedule`` that keeps alpha^2 + sigma^2 = 1 is as good as the one of its
    training; steps are a timetable, and any kernel walks it. ``schedules.sr3_betas(100, low, high)`` are the inference
    schedules among which the paper searches: schedule and condition are leaves, so that ``jax.vmap`` over ``low`` and
    ``high`` is that search in one program.

    cond:  (H, W, C) in [-1, 1]: the small image enlarged to the size of x (``training.low_resolution.enlarged`` as the public
           code does it in 8 bits, ``operators.resize`` in floats); None where the network takes none
    clip:  x0 is clamped to [-clip, clip]; None: as it is. The public code clamps at 1
    Raises ValueError for a schedule that does not keep alpha^2 + sigma^2 = 1, whose levels the network does not know.
    """
    if not getattr(schedule, "variance_preserving", True):
        raise ValueError(f"{type(schedule).__name__} does not keep alpha^2 + sigma^2 = 1, as the levels that SR3 is told do: "
                         "use a table, VP or another such schedule")  # fmt: skip
    denoise = from_eps(apply, params, schedule, cond=cond, time=NoiseLevel())
    if clip is None:
        return denoise
    in_order("bounds", -clip, clip)
    return Clipped(denoise, -clip, clip)
