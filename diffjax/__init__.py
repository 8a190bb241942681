"""diffjax: restoring images with diffusion models, written as pure functions.

Four words: a *schedule* (x_t = alpha x_0 + sigma eps), a *denoiser* (``denoise(x, t) -> Prediction``), a *timetable*
(the walk through time as rows), and the verb *sample*. Then kernels, operators, measurements and methods.
"""

import importlib as _importlib
import sys as _sys
import types as _types
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from . import (
        autoencoder,
        batch,
        convert,
        denoisers,
        flow,
        kernels,
        likelihood,
        methods,
        metrics,
        nets,
        operators,
        parallel,
        priors,
        process,
        registry,
        schedules,
        tiles,
        timetables,
        training,
        volumes,
        zoo,
    )  # fmt: skip
    from .base import Measurement, Prediction, replace
    from .method import Method
    from .sample import Draws, Result, Walk, draws, plan, run, sample

__version__ = "0.1.0"

__all__ = [
    "Draws",
    "Measurement",
    "Method",
    "Prediction",
    "Result",
    "Walk",
    "autoencoder",
    "batch",
    "convert",
    "denoisers",
    "draws",
    "flow",
    "kernels",
    "likelihood",
    "methods",
    "metrics",
    "nets",
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
    "tiles",
    "timetables",
    "training",
    "volumes",
    "zoo",
]

# Everything is imported when it is first asked for: the command line answers --help without starting jax.
_BASE, _METHOD = ("Measurement", "Prediction", "replace"), ("Method",)
_SAMPLE = ("Draws", "Result", "Walk", "draws", "plan", "run", "sample")


def __getattr__(name):
    for module, names in (("base", _BASE), ("method", _METHOD), ("sample", _SAMPLE)):
        if name in names:
            value = getattr(_importlib.import_module(f".{module}", __name__), name)
            globals()[name] = value
            return value
    if name in __all__ or name in ("base", "method"):
        return _importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'diffjax' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})


class _Package(_types.ModuleType):
    """``diffjax.sample`` is the verb, although the module it stands in has the same name and Python would put that there."""

    def __setattr__(self, name, value):
        if name == "sample" and isinstance(value, _types.ModuleType):
            value = value.sample
        super().__setattr__(name, value)


_sys.modules[__name__].__class__ = _Package
