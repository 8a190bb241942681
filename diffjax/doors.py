"""What is checked at the door of ``sample``, before anything is planned: one line that names the value and the remedy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from .base import Measurement, in_range, is_concrete, short, whole
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
        what = f"the class {denoise.__name__}" if isinstance(denoise, type) else f"{type(denoise).__name__} {short(denoise)}"
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
        raise ValueError(f"the table is {type(table).__name__} {short(table)}, not a Timetable: pass one, {hint}")
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
        most = float(jnp.finfo(x.dtype).max)
        in_range("the start", x, -most, most, remedy="give finite numbers")
        return x.shape, x.dtype, x
    try:
        shape = tuple(whole("a side of the image", n) for n in shape_or_x)
    except TypeError:
        raise ValueError(
            f"{type(shape_or_x).__name__} {short(shape_or_x)} is no start: give a shape, (height, width, channels), or an "
            "array"
        ) from None
    try:
        dtype = jnp.dtype(jnp.float32 if dtype is None else dtype)
    except TypeError:
        dtype = short(dtype)
    if isinstance(dtype, str) or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype {dtype} cannot hold an image: choose a floating one, for example float32")
    return shape, dtype, None


def check_key(key):
    """A single key, or None."""
    if key is None:
        return
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not hasattr(key, "dtype") or not (typed or key.dtype == jnp.uint32):
        raise ValueError(f"key is {short(key)}, not a PRNG key: pass jax.random.key(0)")
    if key.ndim > (0 if typed else 1):
        raise ValueError(f"keys of shape {key.shape}: one image takes one key, map over keys and images with jax.vmap")


def check_given(thing):
    """ValueError for a field that is None though its default is not."""
    for field in dataclasses.fields(thing):
        if getattr(thing, field.name) is None and field.default not in (None, dataclasses.MISSING):
            raise ValueError(f"{field.name} of {type(thing).__name__} is None: leave it out for {field.default!r}")


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
    if not callable(m.A) or m.noise_std is None:
        what = f"A is {short(m.A)}" if not callable(m.A) else "noise_std is None"
        raise ValueError(f"the measurement of {who} is not complete, {what}: pass diffjax.Measurement(y, A, noise_std=0.1)")
    check_image(m.A, m.y, shape, dtype, m.noise_std)
