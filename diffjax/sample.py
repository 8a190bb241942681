"""The verb: one ``lax.scan`` over the rows of a timetable, with no branch in the loop."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .base import Measurement, as_method, is_concrete, nearest, pytree, replace, time_dtype
from .kernels import DDIM

START, ROWS, JUMPS = range(3)  # streams of a key: fold_in(fold_in(key, stream), row)
REMAT = ("none", "row", "sqrt")


@pytree
class Draws:
    """All noise of a run: ``start`` (or None), ``rows`` (a pytree, leading axis = rows), ``jumps`` (or None)."""

    start: Any = None
    rows: Any = None
    jumps: Any = None


@pytree
class State:
    """Where a walk stands: pass it as ``state=`` together with the rest of the table to go on."""

    x: Any
    inner: Any


@pytree
class Info:
    """``rows``: dict of arrays, one entry per row ("finite" always); ``final``: what ``finish`` reported."""

    rows: Any
    final: Any

    @property
    def finite(self):
        """(rows,) bool: whether x was finite after each row. The first False is where it began."""
        return self.rows["finite"]


@pytree
class Result:
    x: Any
    state: Any
    info: Any
    trace: Any


def _fold(key, stream, i):
    return jax.random.fold_in(jax.random.fold_in(key, stream), i)


def _cast(tree, dtype):
    """Coefficients, planned in float64 where possible, in the dtype of x; integers and booleans stay."""

    def one(a):
        a = jnp.asarray(a)
        return a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a

    return jax.tree.map(one, tree)


def _plan(method, kernel, table, dtype):
    """Rows with everything planned."""
    rows = _cast(table.rows(), time_dtype(dtype))
    k, m = _cast((kernel.plan(table), method.plan(kernel, table)), dtype)
    return replace(rows, k=k, m=m)


def bind(method, kernel=None):
    """``kernel`` (default: the method's own) with the denoiser's schedule where it has none."""
    if kernel is None:
        kernel = method.default_kernel() or DDIM()
    if kernel.schedule is not None:
        return kernel
    schedule = getattr(method.denoise, "schedule", None)
    if schedule is None:
        raise ValueError(
            f"neither the denoiser nor {type(kernel).__name__} has a schedule: pass kernels.{type(kernel).__name__}(schedule)"
        )
    return replace(kernel, schedule=schedule)


def _check_times(kernel, table):
    T = kernel.schedule.T
    if is_concrete(table, T):
        worst = float(np.max([table.t, table.s, table.r]))
        if worst > float(np.max(T)) * (1 + 1e-12):
            raise ValueError(
                f"the timetable reaches t = {worst:g}, beyond the schedule's {float(np.max(T)):g}: build both "
                "from one schedule"
            )


def _check_measurement(method, shape, dtype):
    """Shapes only: ValueError where the method's measurement is missing or not one of an image of this shape."""
    if "measurement" not in {f.name for f in dataclasses.fields(method)}:
        return
    m, who = method.measurement, type(method).__name__
    if not isinstance(m, Measurement):
        raise ValueError(f"{who} has no measurement: pass diffjax.Measurement(y, A) as its second argument")
    image = jax.ShapeDtypeStruct(tuple(shape), dtype)
    size = lambda tree: ", ".join(str(tuple(a.shape)) for a in jax.tree.leaves(tree))
    try:
        measured = jax.eval_shape(m.A, image)
    except (TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{type(m.A).__name__} does not accept an image of shape {image.shape}: {first}") from error
    if size(measured) != size(m.y):
        raise ValueError(f"y has shape {size(m.y)}, but A of an image {image.shape} gives {size(measured)}: correct one")


def draws(key, denoiser_or_method, table, shape_or_x, dtype=jnp.float32, *, kernel=None) -> Draws:
    """The noise that ``sample`` would draw from ``key``, stacked: ``sample(None, ..., recorded=draws(key, ...))``
    equals ``sample(key, ...)``. Takes memory for all rows; for tests and for editing noise by hand."""
    method = as_method(denoiser_or_method)
    kernel = bind(method, kernel)
    given = hasattr(shape_or_x, "shape")
    start = None if given else method.draw_start(kernel, _fold(key, START, 0), tuple(shape_or_x), dtype)
    if given:
        x = jnp.asarray(shape_or_x)
    else:  # a method's state may have another shape than its start's noise (particles, candidates)
        first = jax.tree.map(lambda a: a[0], _plan(method, kernel, table, dtype))
        x = jax.eval_shape(lambda noise: method.start(kernel, first, noise), start)
    x_like = jnp.zeros(x.shape, x.dtype)
    i = jnp.asarray(table.i)
    rows = jax.vmap(lambda n: method.draw(kernel, _fold(key, ROWS, n), x_like))(i)
    jumps = jax.vmap(lambda n: jax.random.normal(_fold(key, JUMPS, n), x.shape, x.dtype))(i) if table.jumps else None
    return Draws(start, rows, jumps)


def sample(
    key,
    denoiser_or_method,
    table,
    shape_or_x,
    *,
    kernel=None,
    recorded=None,
    state=None,
    part=None,
    remat="row",
    trace=None,
    dtype=jnp.float32,
) -> Result:
    """Walk one image through ``table``. Batches, sweeps and devices: ``jax.vmap``, ``diffjax.parallel``.

    key:           PRNG key, or None when ``recorded`` holds every draw
    denoiser_or_method: (x, t) -> Prediction, or a method wrapping one
    table:         a Timetable; may be traced (another one of the same length costs no retrace)
    shape_or_x:    shape to draw the start from, or an array that already is at the first row's t
    kernel:        how to move; default the method's own (``Method.default_kernel``). Without a schedule of its own it takes
                   the denoiser's
    recorded:      ``Draws`` to use in place of the key's
    state:         ``Result.state`` of the rows before: then ``table[:n]`` and ``table[n:]`` equal one call
    part:          (first, last): walk rows first to last - 1 of the table only. The numbers may be traced, so that one program
                   walks any part. From row 1 on it starts from ``state`` (at row 0 from its own start, whatever ``state`` is).
                   ``info`` and ``trace`` keep a place for every row of the table, zero for those not walked. No reverse mode
    remat:         memory of reverse mode: "none" keeps every row's activations, "row" one state per row, "sqrt" about
                   2 sqrt(rows) states at twice the forward cost
    trace:         None, or a function (x, row, info) -> pytree, stacked over the rows
    Returns ``Result(x, state, info, trace)``.
    Raises ValueError for an unknown remat, times beyond the schedule, or a combination the method refuses.
    """
    if remat not in REMAT:
        raise ValueError(f"unknown remat {remat!r}: {nearest(remat, REMAT)}")
    if key is None and recorded is None:
        raise ValueError("no key and no recorded draws: pass a jax.random.key(seed)")
    method = as_method(denoiser_or_method)
    kernel = bind(method, kernel)
    _check_times(kernel, table)
    method.check(kernel, table)

    given = hasattr(shape_or_x, "shape")
    dtype = jnp.asarray(shape_or_x).dtype if given else dtype
    _check_measurement(method, method.image_shape(shape_or_x.shape) if given else shape_or_x, dtype)
    rows = _plan(method, kernel, table, dtype)
    if state is None or part is not None:
        noise = None if recorded is None else recorded.start
        begun = _begin(key, method, kernel, rows, shape_or_x, dtype, noise)
        going_on = lambda a, b: jnp.where(part[0] > 0, a, b)
        state = begun if state is None else jax.tree.map(going_on, state, begun)
    x, inner = state.x, state.inner

    def body(carry, inputs):
        x, inner = carry
        row, rec = inputs
        noise = rec.rows if recorded is not None else method.draw(kernel, _fold(key, ROWS, row.i), x)
        x, inner, info = method.step(kernel, x, inner, row, noise)
        if table.jumps:
            up = rec.jumps if recorded is not None else jax.random.normal(_fold(key, JUMPS, row.i), x.shape, x.dtype)
            x, inner = method.jump(kernel, x, inner, row, up)
        info = {**info, "finite": jnp.isfinite(x).all()}
        return (x, inner), (info, None if trace is None else trace(x, row, info))

    rec = None if recorded is None else Draws(None, recorded.rows, recorded.jumps)
    if part is None:
        (x, inner), (info, traced) = _scan(body, (x, inner), (rows, rec), len(table), remat)
    else:
        (x, inner), (info, traced) = _walk_part(body, (x, inner), (rows, rec), len(table), part)
    final, final_info = method.finish(kernel, x, inner)
    return Result(final, State(x, inner), Info(info, final_info), traced)


def _begin(key, method, kernel, rows, shape_or_x, dtype, noise=None) -> State:
    if hasattr(shape_or_x, "shape"):
        x = jnp.asarray(shape_or_x)
    else:
        if noise is None:
            noise = method.draw_start(kernel, _fold(key, START, 0), tuple(shape_or_x), dtype)
        x = method.start(kernel, jax.tree.map(lambda a: a[0], rows), noise)
    return State(x, method.init(kernel, x))


def begin(key, denoiser_or_method, table, shape_or_x, *, kernel=None, dtype=jnp.float32) -> State:
    """The state that ``sample`` starts from; by ``jax.eval_shape``, what ``state=`` beside ``part=`` must look like."""
    method = as_method(denoiser_or_method)
    kernel = bind(method, kernel)
    dtype = jnp.asarray(shape_or_x).dtype if hasattr(shape_or_x, "shape") else dtype
    return _begin(key, method, kernel, _plan(method, kernel, table, dtype), shape_or_x, dtype)


def _walk_part(body, carry, xs, n, part):
    """Rows part[0] to part[1] - 1 of ``n``, as ``_scan`` walks them; what comes out of the others is zero."""
    body = jax.jit(body)  # traced once for both of its uses
    row = lambda i: jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(jnp.asarray(a), i, keepdims=False), xs)
    out = jax.eval_shape(body, carry, row(0))[1]
    out = jax.tree.map(lambda a: jnp.zeros((n, *a.shape), a.dtype), out)

    def one(i, walk):
        carry, out = walk
        carry, new = body(carry, row(i))
        put = lambda whole, a: jax.lax.dynamic_update_index_in_dim(whole, a, i, 0)
        return carry, jax.tree.map(put, out, new)

    return jax.lax.fori_loop(*part, one, (carry, out))


def _segment(n: int) -> int:
    """A length near sqrt(n): a divisor if one is close, so that the body is compiled once."""
    root = math.isqrt(n)
    divisors = [d for d in range(1, n + 1) if n % d == 0 and root / 3 <= d <= 3 * root]
    return min(divisors, key=lambda d: abs(d - root)) if divisors else max(root, 1)


def _scan(body, carry, xs, n, remat):
    if remat == "none":
        return jax.lax.scan(body, carry, xs)
    body = jax.checkpoint(body, prevent_cse=False)
    if remat == "row" or n < 4:
        return jax.lax.scan(body, carry, xs)

    length = _segment(n)
    whole = n // length * length

    def segment(carry, xs):
        return jax.lax.scan(body, carry, xs)

    head = jax.tree.map(lambda a: a[:whole].reshape(whole // length, length, *a.shape[1:]), xs)
    carry, out = jax.lax.scan(jax.checkpoint(segment, prevent_cse=False), carry, head)
    out = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), out)
    if whole < n:
        carry, rest = segment(carry, jax.tree.map(lambda a: a[whole:], xs))
        out = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, rest)
    return carry, out
