"""What is checked at the door of ``sample``, before anything is planned: one line that names the value and the remedy."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from .base import Measurement, is_concrete
from .method import Method
from .operators import check_image
from .timetables import Timetable

LATE = 0.1  # largest alpha / sigma of a first row whose start may be drawn as pure noise: 1 % of the variance is missing


def check_method(method):
    """A method, or a bare denoiser as one, that can be called."""
    denoise = method.denoise
    if isinstance(denoise, Method):
        raise ValueError(f"{type(method).__name__} wraps {type(denoise).__name__}: methods wrap a denoiser, not each other")
    if hasattr(denoise, "denoiser") and not callable(denoise):
        raise ValueError(f"{type(denoise).__name__} is no denoiser yet: call its .denoiser()")
    if isinstance(denoise, type) or not callable(denoise):
        what = f"the class {denoise.__name__}" if isinstance(denoise, type) else f"{type(denoise).__name__} {_short(denoise)}"
        raise ValueError(
            f"{what} is neither a denoiser nor a method: pass denoisers.from_eps(f, None, schedule), or "
            "methods.DPS(denoise, measurement) and its like"
        )


def check_table(table, schedule=None):
    """A timetable whose times the schedule has."""
    if not isinstance(table, Timetable):
        hint = (
            f"for {table} steps timetables.log_snr(schedule, {table})"
            if isinstance(table, int)
            else "timetables.log_snr(schedule, 50)"
        )
        raise ValueError(f"the table is {type(table).__name__} {_short(table)}, not a Timetable: pass one, {hint}")
    if schedule is not None:
        table.check(schedule)


def check_state(shape_or_x, state, dtype):
    """(shape, dtype, the start or None) of what was given."""
    if state is not None:
        if not hasattr(state, "x") or not hasattr(state, "inner"):
            raise ValueError(f"state is {type(state).__name__}: pass the .state of a Result")
        shape_or_x = state.x
    if hasattr(shape_or_x, "shape"):
        x = jnp.asarray(shape_or_x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"the start is {x.dtype}: give floating numbers in [-1, 1], for example image / 127.5 - 1")
        return x.shape, x.dtype, x
    try:
        shape = tuple(int(n) for n in shape_or_x)
    except TypeError:
        raise ValueError(
            f"{type(shape_or_x).__name__} {_short(shape_or_x)} is no start: give a shape, (height, width, channels), or an "
            "array"
        ) from None
    dtype = jnp.dtype(jnp.float32 if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype {dtype} cannot hold an image: choose a floating one, for example float32")
    return shape, dtype, None


def check_late_start(method, kernel, table):
    """The start is drawn as pure noise: ValueError where the first row is not near it."""
    t, schedule = table.t[0], kernel.schedule
    if method.starts_anywhere() or not is_concrete(t, schedule):
        return
    alpha, sigma = float(np.max(schedule.alpha(t))), float(np.min(schedule.sigma(t)))
    if alpha > LATE * sigma * (1 + 1e-6):
        raise ValueError(
            f"the walk starts at t = {float(t):g}, where alpha is {alpha:.3g} and sigma {sigma:.3g}: pure noise is no image "
            "of that level. Pass an array instead of a shape, or a table that starts higher"
        )


def check_measurement(method, shape, dtype):
    """Shapes only: ValueError where the method's measurement is missing or not one of an image of this shape."""
    if "measurement" not in {f.name for f in dataclasses.fields(method)}:
        return
    m, who = method.measurement, type(method).__name__
    if not isinstance(m, Measurement):
        raise ValueError(f"{who} has no measurement: pass diffjax.Measurement(y, A) as its second argument")
    check_image(m.A, m.y, shape, dtype, m.noise_std)


def _short(value) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else text[:37] + "..."
