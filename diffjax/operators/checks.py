"""What operators ask of the arrays they are given. Shapes and dtypes only, so that tracers are checked too."""

from __future__ import annotations

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
        remedy = "add the channel axis, x[..., None]" if axes == "HWC" and len(shape) == 2 else "give an array of these axes"
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
        remedy = "add the channel axis, mask[..., None]"
    elif of == shape[:-1]:
        remedy = "add the channel axis, x[..., None]"
    raise ValueError(f"{type(A).__name__} has a mask of shape {shape}, which does not fit an image of shape {of}: {remedy}")


def check_same(A, measured, y):
    """ValueError unless ``y`` has the shape of what ``A`` measures. (Axes in front that only the image has are a batch.)"""
    of, shape = jnp.shape(measured), jnp.shape(y)
    if of[max(len(of) - len(shape), 0) :] != shape:
        raise ValueError(f"y has shape {shape}, but {type(A).__name__} of that image gives {of}: correct one")


def _kind(tree) -> str:
    """Shapes of a measurement, with what else must agree."""
    one = lambda a: f"{tuple(jnp.shape(a))}{' complex' * jnp.iscomplexobj(a)}"
    return f"{type(tree).__name__}({', '.join(map(one, tree))})" if isinstance(tree, (tuple, list)) else one(tree)


def check_level(noise_std, y):
    """ValueError unless ``noise_std`` is one number, or an array that broadcasts to the array ``y`` and not beyond it."""
    level = jnp.shape(noise_std)
    for a in jax.tree.leaves(y):
        if level and isinstance(y, (tuple, list)):
            raise ValueError(f"noise_std has shape {level}, y has {len(y)} parts: give one number for all")
        if level and not fits(level, a.shape):
            raise ValueError(
                f"noise_std has shape {level}, y {a.shape}: give one number, one per channel, or one per entry of y"
            )


def check_image(A, y, shape, dtype=jnp.float32, noise_std=0.0):
    """Raise ValueError, in one line, unless ``A``, ``y`` and ``noise_std`` belong to an image of ``shape`` and ``dtype``.

    That is: A accepts it, y is what A gives (shape, real or complex, array or tuple), adjoint and pseudo-inverse lead back to
    the image's shape, and noise_std broadcasts to y. Nothing is computed.
    """
    name, image = type(A).__name__, jax.ShapeDtypeStruct(tuple(shape), dtype)
    try:
        measured = jax.eval_shape(A, image)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} does not accept an image of shape {image.shape}: {first_line(error)}") from error
    if _kind(measured) != _kind(y):
        raise ValueError(f"y has shape {_kind(y)}, but {name} of an image {image.shape} gives {_kind(measured)}: correct one")
    for what in ("T", "pinv"):
        if not (A.has(what) if hasattr(A, "has") else hasattr(type(A), what)):
            continue
        try:
            back = jax.eval_shape(getattr(A, what), measured).shape
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}.{what} does not accept {_kind(measured)}: {first_line(error)}") from error
        if back != image.shape:
            raise ValueError(f"{name}.{what} of a measurement has shape {back}, the image {image.shape}: correct the operator")
    check_level(noise_std, measured)
