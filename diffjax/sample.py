"""The verb: one ``lax.scan`` over the rows of a timetable, with no branch in the loop.

``sample`` is ``plan``, on the host (checks, coefficients in float64 where their values are known), and ``run``, one jitted
function for everybody: a second call with other arrays, weights, keys or another table of the same length compiles nothing.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .base import is_concrete, nearest, normal, pytree, replace, short, static, time_dtype
from .doors import check_given, check_key, check_late_start, check_measurement, check_method, check_state, check_table
from .kernels import DDIM, check_kernel
from .method import as_method

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


@pytree
class Walk:
    """A walk with everything planned, ready for :func:`run`; an argument of any program.

    method, kernel: as they will run, the kernel with its schedule
    rows:           a :class:`diffjax.base.Row` with a leading axis and all coefficients
    x:              the start where an array was given, or the state's; None: it is drawn
    shape, dtype:   of the start; jumps: whether any row climbs
    """

    method: Any
    kernel: Any
    rows: Any
    x: Any
    shape: tuple = static(default=())
    dtype: Any = static(default=jnp.float32)
    jumps: bool = static(default=False)

    def __len__(self) -> int:
        return self.rows.t.shape[0]


def _fold(key, stream, i):
    return jax.random.fold_in(jax.random.fold_in(key, stream), i)


def _cast(tree, dtype):
    """Coefficients, planned in float64 where possible, in the dtype of x; integers and booleans stay."""

    def one(a):
        a = np.asarray(a) if is_concrete(a) else jnp.asarray(a)
        return a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a

    return jax.tree.map(one, tree)


def _restarted(table):
    """The first row starts afresh, whatever walk it was cut from: multistep kernels have no history there."""
    if is_concrete(table.fresh):
        return replace(table, fresh=np.concatenate([[True], np.asarray(table.fresh)[1:]]))
    return replace(table, fresh=jnp.asarray(table.fresh).at[0].set(True))


def bind(method, kernel=None):
    """``kernel`` (default: the method's own, else DDIM) with the denoiser's schedule where it has none of its own.

    Raises ValueError for what is no kernel, where there is no schedule, or where the two have different ones.
    """
    kernel = (method.default_kernel() or DDIM()) if kernel is None else kernel
    check_kernel(kernel)
    return kernel.bind(getattr(method.denoise, "schedule", None))


def plan(denoiser_or_method, table, shape_or_x, *, kernel=None, state=None, dtype=None) -> Walk:
    """Check everything that can be known before the walk, and compute its coefficients: on the host, in float64, where their
    values are known. Arguments and errors as for :func:`sample`."""
    method = as_method(denoiser_or_method)
    check_method(method)
    check_table(table)
    kernel = bind(method, kernel)
    check_given(method)
    check_given(kernel)
    check_table(table, kernel.schedule)
    shape, dtype, x = check_state(shape_or_x, state, dtype)
    method.check(kernel, table)
    check_measurement(method, method.image_shape(shape) if x is not None else shape, dtype)
    if state is None:
        if x is None:
            check_late_start(method, kernel, table)
        table = _restarted(table)
    else:
        x = state.x
    walk = Walk(method, kernel, coefficients(method, kernel, table, dtype), x, shape, dtype, table.jumps)
    return jax.tree.map(jnp.asarray, walk)


def coefficients(method, kernel, table, dtype=jnp.float32):
    """The rows of ``table`` with what the kernel (with its schedule) and the method plan for them; leading axis = rows."""
    rows = _cast(table.rows(), time_dtype(dtype))
    k, m = _cast((kernel.plan(table), method.plan(kernel, table)), dtype)
    return replace(rows, k=k, m=m)


def draws(key, denoiser_or_method, table, shape_or_x, dtype=None, *, kernel=None) -> Draws:
    """The noise that ``sample`` would draw from ``key``, stacked: ``sample(None, ..., recorded=draws(key, ...))``
    equals ``sample(key, ...)``. Takes memory for all rows; for tests and for editing noise by hand."""
    walk = plan(denoiser_or_method, table, shape_or_x, kernel=kernel, dtype=dtype)
    method, kernel, i = walk.method, walk.kernel, jnp.asarray(walk.rows.i)
    x, start = walk.x, None
    if x is None:  # a method's state may have another shape than its start's noise (particles, candidates)
        start = method.draw_start(kernel, _fold(key, START, 0), walk.shape, walk.dtype)
        first = jax.tree.map(lambda a: a[0], walk.rows)
        x = jax.eval_shape(lambda noise: method.start(kernel, first, noise), start)
    x_like = jnp.zeros(x.shape, x.dtype)
    rows = jax.vmap(lambda n: method.draw(kernel, _fold(key, ROWS, n), x_like))(i)
    jumps = jax.vmap(lambda n: normal(_fold(key, JUMPS, n), x.shape, x.dtype))(i) if walk.jumps else None
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
    dtype=None,
) -> Result:
    """Walk one image through ``table``. Batches, sweeps and devices: ``jax.vmap``, ``diffjax.parallel``.

    key:           PRNG key, or None when ``recorded`` holds every draw
    denoiser_or_method: (x, t) -> Prediction, or a method wrapping one
    table:         a Timetable; may be traced (another one of the same length costs no retrace)
    shape_or_x:    shape to draw the start from, or an array that already is at the first row's t
    kernel:        how to move; default the method's own (``Method.default_kernel``), for a bare denoiser DDIM. Without a
                   schedule of its own it takes the denoiser's
    recorded:      ``Draws`` to use in place of the key's
    state:         ``Result.state`` of the rows before: then ``table[:n]`` and ``table[n:]`` equal one call
    part:          (first, last): walk rows first to last - 1 of the table only. The numbers may be traced, so that one program
                   walks any part. From row 1 on it starts from ``state`` (at row 0 from its own start, whatever ``state`` is).
                   ``info`` and ``trace`` keep a place for every row of the table, zero for those not walked. No reverse mode
    remat:         memory of reverse mode: "none" keeps every row's activations, "row" (default; costs nothing where no
                   gradient is taken) one state per row, "sqrt" about 2 sqrt(rows) states at twice the forward cost
    trace:         None, or a function (x, row, info) -> pytree, stacked over the rows. Part of the program: hand over the same
                   function again and nothing is compiled again; so it is with a denoiser's ``apply``
    dtype:         of the walk where a shape is given; default float32
    Returns ``Result(x, state, info, trace)``.
    Raises ValueError for arguments of the wrong kind, an unknown remat, times or schedules that do not belong together, a
    start in the middle of the walk without an array, or a combination the method refuses.
    """
    if remat not in REMAT:
        raise ValueError(f"unknown remat {remat!r}: {nearest(remat, REMAT)}")
    if key is None and recorded is None:
        raise ValueError("no key and no recorded draws: pass a jax.random.key(seed)")
    check_key(key)
    for name, value, right, hint in (
        ("recorded", recorded, isinstance(recorded, Draws), "Draws, as diffjax.draws gives them"),
        ("part", part, isinstance(part, (tuple, list)) and len(part) == 2, "(first, last), two numbers of rows"),
        ("trace", trace, callable(trace), "a function (x, row, info) -> pytree"),
    ):
        if value is not None and not right:
            raise ValueError(f"{name} is {short(value)}: pass {hint}")
    goes_on = state if part is None else None  # of a part, row 0 begins anew
    walk = plan(denoiser_or_method, table, shape_or_x, kernel=kernel, state=goes_on, dtype=dtype)
    return run(key, walk, recorded=recorded, state=state, part=part, remat=remat, trace=trace)


def _is_half(walk) -> bool:
    return jnp.finfo(walk.dtype).bits < 32


def begin(key, walk: Walk, recorded=None) -> State:
    """The state that ``walk`` starts from; by ``jax.eval_shape``, what ``state=`` beside ``part=`` must look like."""
    method, kernel, x = walk.method, walk.kernel, walk.x
    if x is None:
        noise = None if recorded is None else recorded.start
        if noise is None:
            noise = method.draw_start(kernel, _fold(key, START, 0), walk.shape, walk.dtype)
        x = method.start(kernel, jax.tree.map(lambda a: a[0], walk.rows), noise)
        x = x.astype(walk.dtype) if _is_half(walk) else x
    return State(x, method.init(kernel, x))


@functools.partial(jax.jit, static_argnames=("remat", "trace"), inline=True)
def run(key, walk: Walk, *, recorded=None, state=None, part=None, remat="row", trace=None) -> Result:
    """Walk as planned: the rest of :func:`sample`, which says what the arguments are."""
    method, kernel, rows = walk.method, walk.kernel, walk.rows
    if state is None or part is not None:
        begun = begin(key, walk, recorded)
        state = begun if state is None else jax.tree.map(lambda a, b: jnp.where(part[0] > 0, a, b), state, begun)
    x, inner = state.x, state.inner
    half = _is_half(walk)

    def body(carry, inputs):
        x, inner = carry
        row, rec = inputs
        noise = rec.rows if recorded is not None else method.draw(kernel, _fold(key, ROWS, row.i), x)
        x, inner, info = method.step(kernel, x, inner, row, noise)
        if walk.jumps:
            up = rec.jumps if recorded is not None else normal(_fold(key, JUMPS, row.i), x.shape, x.dtype)
            x, inner = method.jump(kernel, x, inner, row, up)
        if half:  # FFTs know no half precision: what comes out of them goes on in the walk's dtype
            x, inner = jax.tree.map(lambda new, old: new.astype(old.dtype), (x, inner), carry)
        info = {**info, "finite": jnp.isfinite(x).all()}
        return (x, inner), (info, None if trace is None else trace(x, row, info))

    rec = None if recorded is None else Draws(None, recorded.rows, recorded.jumps)
    if part is None:
        (x, inner), (info, traced) = _scan(body, (x, inner), (rows, rec), len(walk), remat)
    else:
        (x, inner), (info, traced) = _walk_part(body, (x, inner), (rows, rec), len(walk), part)
    final, final_info = method.finish(kernel, x, inner)
    final = final.astype(x.dtype) if half else final
    return Result(final, State(x, inner), Info(info, final_info), traced)


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
