"""diffjax: restoring images with diffusion models, written as pure functions.

Four words: a *schedule* (x_t = alpha x_0 + sigma eps), a *denoiser* (``denoise(x, t) -> Prediction``), a *timetable*
(the walk through time as rows), and the verb *sample*. Then kernels, operators, measurements and methods.
"""

from . import denoisers, kernels, methods, operators, parallel, process, schedules, timetables
from .base import Measurement, Method, Prediction, replace
from .sample import Draws, Result, Walk, draws, plan, run, sample

__version__ = "0.1.0"

__all__ = [
    "Draws",
    "Measurement",
    "Method",
    "Prediction",
    "Result",
    "Walk",
    "denoisers",
    "draws",
    "kernels",
    "methods",
    "metrics",
    "operators",
    "parallel",
    "plan",
    "priors",
    "process",
    "registry",
    "replace",
    "run",
    "sample",
    "schedules",
    "timetables",
    "zoo",
]


_LATER = (
    "base",
    "convert",
    "likelihood",
    "metrics",
    "nets",
    "priors",
    "registry",
    "training",
    "zoo",
)  # imported when asked for


def __getattr__(name):
    if name in _LATER:
        import importlib

        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'diffjax' has no attribute {name!r}")
