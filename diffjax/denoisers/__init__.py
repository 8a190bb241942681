"""Adapters that hide what a network predicts and which time it wants. ``denoise(x, t) -> Prediction``.

Any function becomes a denoiser: ``from_eps(f, None, schedule)`` for f(x, i), ``from_eps(net.apply, params, schedule)``
for apply(params, x, i), with ``cond=c`` for apply(params, x, i, c). i is what the network is told of the time: by default
``schedule.network_time(t)``, the official index t - 1 of a table; ``time=NoiseLevel()`` and the others say otherwise.
"""

from .adapters import Denoiser, from_edm, from_eps, from_previous, from_score, from_v, from_velocity, from_x0
from .clipping import clipped
from .codes import quantised, thresholded
from .conditions import null_like, with_cond
from .guidance import classifier, classifier_free
from .score_sde import from_score_sde
from .slicewise import Slicewise
from .sr3 import from_sr3
from .times import FromNoise, IndexTime, LogSNR, NoiseLevel, Scaled, Sigma, as_time

__all__ = [
    "Denoiser",
    "FromNoise",
    "IndexTime",
    "LogSNR",
    "NoiseLevel",
    "Scaled",
    "Sigma",
    "Slicewise",
    "as_time",
    "classifier",
    "classifier_free",
    "clipped",
    "from_edm",
    "from_eps",
    "from_previous",
    "from_score",
    "from_score_sde",
    "from_sr3",
    "from_v",
    "from_velocity",
    "from_x0",
    "null_like",
    "quantised",
    "thresholded",
    "with_cond",
]
