"""The words of the house: what a prediction, a row, a measurement, a kernel and a method are.

Everything is a frozen dataclass registered as a pytree. Fields are leaves (``vmap`` sweeps them, ``grad`` reaches
them, changing them never recompiles) unless declared with :func:`static`, which is for what changes the program.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import operator
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

replace = dataclasses.replace


def static(**kwargs) -> Any:
    """A dataclass field that is part of the program (compared by ``==``, hashed) and not a leaf."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


def pytree(cls):
    """Class decorator: a frozen, keyword-friendly dataclass registered with JAX.

    ``__post_init__`` may check values, but must let tracers and placeholders pass. JAX rebuilds objects without calling
    it (``register_dataclass`` would): the gradient of a mask is no mask, and is not checked to be one.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)
    meta = [f.name for f in fields if f.metadata.get("static")]
    data = [f.name for f in fields if not f.metadata.get("static")]
    keys = [jax.tree_util.GetAttrKey(name) for name in data]

    def flatten(obj):
        return [getattr(obj, name) for name in data], tuple(getattr(obj, name) for name in meta)

    def flatten_with_keys(obj):
        children, aux = flatten(obj)
        return list(zip(keys, children)), aux

    def unflatten(aux, children):
        obj = object.__new__(cls)
        for name, value in zip((*data, *meta), (*children, *aux)):
            object.__setattr__(obj, name, value)
        return obj

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def is_concrete(*arrays) -> bool:
    """True when no argument is traced, so that its value may be looked at."""
    return not any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves(arrays))


def namespace(*arrays):
    """numpy when every argument is concrete (coefficients in float64 on the host), else ``jax.numpy``."""
    return np if is_concrete(*arrays) else jnp


def host(a):
    """``a`` as float64 numpy if its value is known, else unchanged."""
    return np.asarray(a, np.float64) if is_concrete(a) else a


def safe_sqrt(x):
    """sqrt(max(x, 0)) whose derivative at and below 0 is 0 instead of infinite or NaN."""
    xp = namespace(x)
    x = xp.asarray(x)  # within a trace, comparing a known JAX array would be traced
    positive = x > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, x, 1.0)), 0.0)


def safe_divide(a, b):
    """a / b, and 0 (with derivative 0) where b = 0."""
    xp = namespace(a, b)
    a, b = xp.asarray(a), xp.asarray(b)
    zero = b == 0
    return xp.where(zero, 0.0, a / xp.where(zero, 1.0, b))


def nearest(name, valid) -> str:
    """The end of an error message: the closest valid names, or all of them."""
    close = difflib.get_close_matches(str(name), [str(v) for v in valid], n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"choose one of {', '.join(sorted(map(str, valid)))}"


def clip(x, low, high):
    """Clamp to [low, high]; the gradient is 1 on the closed interval (``jnp.clip`` halves it at ties)."""
    return jnp.where(x < low, jnp.asarray(low, x.dtype), jnp.where(x > high, jnp.asarray(high, x.dtype), x))


def expand(coefficient, x):
    """A scalar, or an array over the leading axes of ``x``, shaped and typed to multiply ``x``."""
    c = jnp.asarray(coefficient)
    c = c.reshape(c.shape + (1,) * (x.ndim - c.ndim))
    return c.astype(x.dtype)


def normal(key, shape, dtype=float):
    """The draws of ``jax.random.normal``, made flat: a last axis of three channels takes a CPU more than twice as long."""
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


def time_dtype(dtype):
    """The dtype of times beside a state of ``dtype``: at least float32, since bfloat16 cannot count to 1000."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def numbers(value):
    """``value`` as a numpy array where it is numbers that are known, else None: traced, or no number at all (JAX puts
    placeholders into pytrees, ``vmap`` axes stand in them)."""
    if isinstance(value, (list, tuple)):
        parts = [numbers(v) for v in value]
        known = bool(parts) and all(p is not None and p.shape == parts[0].shape for p in parts)
    else:
        known = isinstance(value, (bool, int, float, complex, np.generic, np.ndarray, jax.Array)) and is_concrete(value)
    dtype = getattr(value, "dtype", np.dtype(float))
    known = known and (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_))
    # numpy: within a trace, reducing a JAX array would be traced
    return np.asarray(value) if known and getattr(value, "is_fully_addressable", True) else None


def in_range(name: str, value, low=-np.inf, high=np.inf, *, remedy: str = ""):
    """Raise ValueError unless every entry of ``value`` (a number or an array) is in [low, high]; NaN never is.

    What is not known (tracers, placeholders) passes. ``remedy`` ends the message; default: the range.
    """
    a = numbers(value)
    if a is None and isinstance(value, (list, tuple)):
        for part in value:
            in_range(name, part, low, high, remedy=remedy)
    if isinstance(value, str) or np.iscomplexobj(a):
        raise ValueError(f"{name} is {short(value)}: {remedy or 'give a real number'}")
    if a is None or not a.size:
        return
    wrong = a[~((a >= low) & (a <= high))]
    if not wrong.size:
        return
    if not remedy:
        ends = [f"{word} {end:g}" for word, end in ((">=", low), ("<=", high)) if np.isfinite(end)]
        remedy = f"give a number {' and '.join(ends)}" if ends else "give a number"
    among = f" (in an array of shape {a.shape})" if a.ndim else ""
    raise ValueError(f"{name} {float(wrong[0]):.7g}{among} is out of range: {remedy}")


def short(value) -> str:
    """``repr`` in one line of at most 40 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else text[:37] + "..."


def like(x, out, what: str):
    """``out``, in ``x``'s type where it has its shape; ValueError, naming ``what`` it is, where it has another."""
    if jnp.shape(out) != x.shape:
        raise ValueError(f"{what} has shape {jnp.shape(out)} for an image of {x.shape}: it must have the image's")
    return jnp.asarray(out)


def a_schedule(schedule):
    """ValueError for what is no schedule: a prior, betas, a class."""
    if isinstance(schedule, type) or not hasattr(schedule, "alpha"):
        what = f"the class {schedule.__name__}" if isinstance(schedule, type) else short(schedule)
        hint = "its .schedule" if hasattr(schedule, "schedule") else "schedules.discrete(betas), or one of diffjax.schedules"
        raise ValueError(f"{what} is no schedule: pass {hint}")


def in_order(name: str, low, high):
    """Raise ValueError unless ``low`` < ``high`` where both are known."""
    in_range(name, low)
    in_range(name, high)
    low, high = numbers(low), numbers(high)
    if low is not None and high is not None and not np.all(low < high):
        raise ValueError(f"{name} ({low}, {high}) are empty: give (low, high), low < high")


def whole(name: str, value, low: int = 1, high: int | None = None) -> int:
    """``value``, a whole number of Python, numpy or JAX (no bool) from ``low`` to ``high``, as an int; else ValueError."""
    try:
        n = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        n = None
    if n is None or n < low or (high is not None and n > high):
        valid = f">= {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} {value!r} is out of range: choose a whole number {valid}")
    return n


@pytree
class Prediction:
    """What a denoiser says about ``x = alpha x0 + sigma eps``.

    x0, eps:       estimates of the clean image and of the unit noise, shape of ``x``
    mix:           the network's variance output (share v in [-1, 1], or log-variance), or None
    x:             the state the prediction belongs to
    alpha, sigma:  scalars of its time
    """

    x0: Any
    eps: Any
    mix: Any
    x: Any
    alpha: Any
    sigma: Any

    def with_x0(self, x0, keep_eps: bool = False) -> Prediction:
        """Replace the clean image. ``eps`` follows, unless ``keep_eps`` (CoPaint, Blended and DDNM mix a changed
        x0 with the network's own eps)."""
        if keep_eps:
            return replace(self, x0=x0)
        a, s = expand(self.alpha, x0), expand(self.sigma, x0)
        return replace(self, x0=x0, eps=safe_divide(self.x - a * x0, s))

    def score(self):
        """grad_x log p_t(x) = -eps / sigma (Tweedie)."""
        return safe_divide(-self.eps, expand(self.sigma, self.x))


@pytree
class Row:
    """One row of a timetable, as kernels and methods see it inside the loop (scalars).

    t, s, r:  go down from t to s, then jump up from s to r by q(x_r | x_s); r = s means no jump
    up:       the next time above t in the walk's grid (for the variance of the last step)
    level:    how many rows down the walk is, climbs undone
    i:        number of the row in the whole walk
    fresh:    True on the first row and after a jump: multistep kernels drop their history
    k, m:     this row's slice of what the kernel and the method planned
    """

    t: Any
    s: Any
    r: Any
    up: Any
    level: Any
    i: Any
    fresh: Any
    k: Any = None
    m: Any = None


class Units(UserWarning):
    """Numbers that look as if they were in other units than they are taken in."""


@pytree
class Measurement:
    """y = A(x) + noise_std * unit Gaussian noise, with everything in the units of ``value_range``.

    y:            array of the shape ``A`` produces
    A:            operator
    noise_std:    standard deviation of the noise in the units of ``value_range``: 0.05 on images in [0, 1] is 0.1 on
                  [-1, 1]. The two are never converted silently. One number; an array that broadcasts to y: one per
                  channel, or one per entry; or a tuple of these for the parts of ``operators.stack``
    value_range:  (low, high) of clean measurements
    Raises ValueError when a concrete ``y`` lies far outside ``value_range``, and for a function that is no operator. Warns
    (:class:`Units`) when a concrete y for the range (-1, 1) has only values in [0, 1].
    """

    y: Any
    A: Any
    noise_std: Any = 0.0
    value_range: tuple = static(default=(-1.0, 1.0))

    def __post_init__(self):
        if inspect.isfunction(self.A) or isinstance(self.A, (functools.partial, jax.stages.Wrapped)):
            raise ValueError("A is a mere function: make it an operator, operators.from_function(A, shape of the image)")
        if callable(self.A) and jax.tree_util.all_leaves(
            [self.A]
        ):  # a user's own class that is no pytree: part of the program
            jax.tree_util.register_static(type(self.A))
        if isinstance(self.A, (type, np.ndarray, jax.Array)):
            what = f"the class {self.A.__name__}" if isinstance(self.A, type) else "an array"
            hint = "build it" if isinstance(self.A, type) else "Measurement(y, A) takes y first"
            raise ValueError(f"A is {what}, no operator: {hint}, for example Measurement(y, operators.Mask(mask))")
        low, high = self.value_range
        if not low < high:
            raise ValueError(f"value_range {self.value_range} is empty: give (low, high), for example (-1.0, 1.0)")
        most = np.finfo(np.float64).max
        in_range("noise_std", self.noise_std, 0, most, remedy="give a standard deviation, finite and not negative")
        if isinstance(self.noise_std, (list, tuple)) and numbers(self.noise_std) is not None and hasattr(self.y, "shape"):
            object.__setattr__(self, "noise_std", np.asarray(self.noise_std))
        if not isinstance(self.y, (np.ndarray, jax.Array)) or not is_concrete(self.y) or self.y.size == 0:
            return
        std = numbers(self.noise_std)
        if std is None:
            return
        y = np.asarray(self.y)  # within a trace, reducing a JAX array would be traced
        if np.iscomplexobj(y):
            y = np.stack([y.real, y.imag])
        y_min, y_max = float(y.min()), float(y.max())
        slack = 0.5 * (high - low) + 6 * float(np.max(std))
        if not (np.isfinite(y_min) and np.isfinite(y_max)):
            raise ValueError("y has non-finite values: check how it was loaded")
        if y_min < low - slack or y_max > high + slack:
            hint = "divide an 8-bit image by 127.5 and subtract 1, else " if y_max > 2 else ""
            hint += "pass value_range="
            raise ValueError(f"y spans [{y_min:.4g}, {y_max:.4g}], far outside value_range {self.value_range}: {hint}")
        if (low, high) == (-1, 1) and y.size >= 256 and y_min >= 0 and 0.5 < y_max <= 1:  # few pictures have no dark pixel
            warnings.warn(f"y spans [{y_min:.4g}, {y_max:.4g}] and is taken as [-1, 1]: if [0, 1] was meant, give 2 y - 1",
                          Units, stacklevel=3)  # fmt: skip
