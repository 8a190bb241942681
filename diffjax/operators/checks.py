"""What operators ask of the arrays they are given. Shapes and dtypes only, so that tracers are checked too."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


def first_line(error) -> str:
    """What an exception says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def fits(shape, of) -> bool:
    """Whether an array of ``shape`` broadcasts to ``of`` and not beyond it. (H, W) alone never does: its rows and columns
    would be taken for columns and channels."""
    if len(shape) == 2 < len(of):
        return False
    try:
        return np.broadcast_shapes(shape, of) == tuple(of)
    except ValueError:
        return False


def check_axes(A, x, axes="HWC"):
    """ValueError unless ``x`` is an array of floats whose last axes are ``axes``. ``A``: an operator, or a function's name."""
    shape, dtype, name = jnp.shape(x), jnp.result_type(x), A if isinstance(A, str) else type(A).__name__
    if len(shape) < len(axes):
        remedy = (
            "give it the channel axis, x[..., None]" if axes == "HWC" and len(shape) == 2 else "give an array of these axes"
        )
        raise ValueError(f"{name} takes ({', '.join(axes)}), not {shape}: {remedy}")
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(f"{name} takes floats, not {dtype}: give x / 127.5 - 1 if that is an 8-bit image")


def check_weights(A, weights, x):
    """ValueError unless a mask broadcasts to the image ``x`` of floats, and not beyond it."""
    check_axes(A, x, "")
    shape, of = jnp.shape(weights), jnp.shape(x)
    if fits(shape, of):
        return
    remedy = f"give one of shape {(*of[-3:-1], 1)}"
    if shape == of[-3:-1]:
        remedy = "give it the channel axis, mask[..., None]"
    elif of == shape[:-1]:
        remedy = "give the image its channel axis, x[..., None]"
    raise ValueError(f"{type(A).__name__} has a mask of shape {shape}, which does not fit an image of shape {of}: {remedy}")


def check_same(A, measured, y):
    """ValueError unless ``y`` has the shape of what ``A`` measures. (Axes in front that only the image has are a batch.)"""
    of, shape = jnp.shape(measured), jnp.shape(y)
    if of[max(len(of) - len(shape), 0) :] != shape:
        raise ValueError(f"y has shape {shape}, but {type(A).__name__} of that image gives {of}: give them alike")


def _kind(tree) -> str:
    """Shapes of a measurement, with what else must agree."""
    one = lambda a: f"{tuple(jnp.shape(a))}{' complex' * jnp.iscomplexobj(a)}"
    return f"{type(tree).__name__}({', '.join(map(one, tree))})" if isinstance(tree, (tuple, list)) else one(tree)


def by_part(f, level, *measurements):
    """f(level, *arrays) for each part of measurements; ``level`` is one for all, or a tuple of one for each."""
    if isinstance(level, (tuple, list)):
        return tuple(f(*part) for part in zip(level, *measurements, strict=True))
    return jax.tree.map(lambda *arrays: f(level, *arrays), *measurements)


def least(level):
    """The smallest entry of a level of noise: of a number, an array, or a tuple of them."""
    return functools.reduce(jnp.minimum, [jnp.min(a) for a in jax.tree.leaves(level)])


def check_level(noise_std, y):
    """ValueError unless ``noise_std`` is one number, an array that broadcasts to ``y`` and not beyond it, or, where y is a
    tuple, a tuple of them."""
    if isinstance(noise_std, (tuple, list)) and isinstance(y, (tuple, list)):
        if len(noise_std) != len(y):
            raise ValueError(f"noise_std has {len(noise_std)} parts, y {len(y)}: give one level for each, or one for all")
        for level, part in zip(noise_std, y):
            check_level(level, part)
        return
    shape = jnp.shape(noise_std)
    for a in jax.tree.leaves(y):
        if shape and not fits(shape, a.shape):
            raise ValueError(f"noise_std has shape {shape}, y {a.shape}: give one number, one per channel, or one per entry")


def check_image(A, y, shape, dtype=jnp.float32, noise_std=0.0):
    """Raise ValueError, in one line, unless ``A``, ``y`` and ``noise_std`` belong to an image of ``shape`` and ``dtype``.

    That is: A accepts it, y is what A gives (shape, real or complex, array or tuple), adjoint and pseudo-inverse lead back to
    the image's shape, and noise_std broadcasts to y. Nothing is computed, and what was found right is remembered.
    """
    leaves, structure = jax.tree.flatten(A)
    args = structure, tuple(map(_like, leaves)), type(A).__name__, _kind(y), tuple(shape), jnp.dtype(dtype)
    try:
        hash(args)
    except TypeError:  # an operator of somebody's own with a field that has no hash
        _check_image.__wrapped__(*args)
    else:
        _check_image(*args)
    check_level(noise_std, y)


def _like(leaf):
    """Shape and dtype of a number or array; anything else as it is."""
    numeric = isinstance(leaf, (bool, int, float, complex, np.generic, np.ndarray, jax.Array, jax.core.Tracer))
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) if numeric else leaf


@functools.lru_cache(maxsize=256)
def _check_image(structure, leaves, name, y, shape, dtype):
    """``check_image`` of an operator of that structure, with such leaves, and a measurement of that kind."""
    arrays = [a for a in leaves if isinstance(a, jax.ShapeDtypeStruct)]

    def shape_of(use, what, argument):
        def call(arrays, argument):
            given = iter(arrays)
            A = jax.tree.unflatten(structure, [next(given) if isinstance(a, jax.ShapeDtypeStruct) else a for a in leaves])
            return use(A)(argument)

        try:
            return jax.eval_shape(call, arrays, argument)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{what} of shape {_kind(argument)}: {first_line(error)}") from error

    A = jax.tree.unflatten(structure, leaves)
    image = jax.ShapeDtypeStruct(shape, dtype)
    measured = shape_of(lambda A: A, f"{name} does not accept an image", image)
    if _kind(measured) != y:
        raise ValueError(f"y has shape {y}, but {name} of an image {shape} gives {_kind(measured)}: correct one")
    for what in ("T", "pinv"):
        if A.has(what) if hasattr(A, "has") else hasattr(type(A), what):
            back = shape_of(lambda A, what=what: getattr(A, what), f"{name}.{what} does not accept a measurement", measured)
            if _kind(back) != _kind(image):
                raise ValueError(f"{name}.{what} gives {_kind(back)} for an image {shape}: correct the operator")
