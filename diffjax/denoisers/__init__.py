"""Adapters that hide what a network predicts and which time it wants. ``denoise(x, t) -> Prediction``.

Any function becomes a denoiser: ``from_eps(f, None, schedule)`` for f(x, i), ``from_eps(net.apply, params, schedule)``
for apply(params, x, i), where i is ``schedule.network_time(t)``: the official index t - 1 of a table.
"""

from .adapters import Denoiser, from_edm, from_eps, from_previous, from_score, from_v, from_velocity, from_x0
from .clipping import clipped
from .guidance import classifier, classifier_free

__all__ = [
    "Denoiser",
    "classifier",
    "classifier_free",
    "clipped",
    "from_edm",
    "from_eps",
    "from_previous",
    "from_score",
    "from_v",
    "from_velocity",
    "from_x0",
]
