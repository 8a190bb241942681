"""Convolution whose derivatives are as fast as itself, on CPUs too.

JAX writes both derivatives of a convolution as convolutions of another layout: by the input with the kernel's input and output
channels exchanged in place, by the kernel with batch and channels exchanged in place. XLA's CPU compiler leaves that so inside
loops, where all of a sampler is, and then has no fast code for it. Here the arrays are transposed, which costs next to
nothing, and the same fast code runs (the ratios: experiments.benchmark).

The convolutions written here are closed under differentiation: the derivatives of

    y[h] = sum_a x[stride h + dilation a - low] k[a]

by x and by k are sums of the same kind; by k with stride and dilation exchanged.
"""

import functools

import jax
import jax.numpy as jnp


def layout(spatial):
    """Dimension numbers of images with `spatial` axes between the batch and the channels: for 2 ("NHWC", "HWIO", "NHWC")."""
    if not 1 <= spatial <= 3:
        raise NotImplementedError(f"convolution over {spatial} axes: it is written for 1, 2 and 3")
    axes = "DHW"[3 - spatial :]
    return f"N{axes}C", f"{axes}IO", f"N{axes}C"


def _convolve(x, kernel, *, strides, padding, dilation):
    how = {"rhs_dilation": dilation, "dimension_numbers": layout(len(strides))}
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **how)


def _spread(x, axis, stride):
    """Zeros after each entry along an axis; XLA's CPU compiler has no fast code for `lhs_dilation` either."""
    if stride == 1:
        return x
    widths = [(0, stride - 1, stride - 1) if n == axis else (0, 0, 0) for n in range(x.ndim)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), widths)


def _by_input(ct, x, kernel, *, strides, padding, dilation):
    """The cotangent of x: a convolution of ct, zeros between its entries, with the kernel turned and transposed."""
    pads = []
    for axis, (stride, apart, (low, _)) in enumerate(zip(strides, dilation, padding), start=1):
        reach = apart * (kernel.shape[axis - 1] - 1)
        ct = _spread(ct, axis, stride)
        pads.append((reach - low, x.aval.shape[axis] + low - ct.shape[axis]))
    spatial = tuple(range(len(strides)))
    turned = jnp.swapaxes(jnp.flip(kernel, spatial), -2, -1)
    return _primitive.bind(ct, turned, strides=(1,) * len(strides), padding=tuple(pads), dilation=dilation)


def _by_kernel(ct, x, kernel, *, strides, padding, dilation):
    """The cotangent of the kernel: x, its channels as the batch, is convolved with ct, its batch as the input channels."""
    pads = []
    for axis, (stride, apart, (low, _)) in enumerate(zip(strides, dilation, padding), start=1):
        reach = apart * (kernel.aval.shape[axis - 1] - 1) + stride * (ct.shape[axis] - 1) + 1
        pads.append((low, reach - x.shape[axis] - low))
    spatial = tuple(range(1, 1 + len(strides)))
    x = jnp.transpose(x, (x.ndim - 1, *spatial, 0))
    ct = jnp.transpose(ct, (*spatial, 0, ct.ndim - 1))
    y = _primitive.bind(x, ct, strides=dilation, padding=tuple(pads), dilation=strides)
    return jnp.transpose(y, (*spatial, 0, y.ndim - 1))


def _batched(args, axes, **how):
    x, kernel = args
    if axes[1] is not None:  # one kernel each
        return jax.vmap(functools.partial(_convolve, **how), axes)(x, kernel), 0
    x = jnp.moveaxis(x, axes[0], 0)
    y = _primitive.bind(x.reshape(-1, *x.shape[2:]), kernel, **how)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


def _abstract(x, kernel, **how):
    """Shape, type and what JAX knows of the devices (explicit axes of a mesh, manual ones of shard_map): those of its own."""
    return jax.make_jaxpr(functools.partial(_convolve, **how))(x, kernel).out_avals[0]


def _registered():
    """The primitive with these derivatives, or None where this version of JAX has other doors for one."""
    try:
        from jax.extend.core import Primitive
        from jax.interpreters import ad, batching, mlir

        primitive = Primitive("diffjax_convolution")
        primitive.def_impl(jax.jit(_convolve, static_argnames=("strides", "padding", "dilation")))
        primitive.def_abstract_eval(_abstract)
        mlir.register_lowering(primitive, mlir.lower_fun(_convolve, multiple_results=False))
        ad.defbilinear(primitive, _by_input, _by_kernel)
        batching.primitive_batchers[primitive] = _batched
    except (ImportError, AttributeError, TypeError):
        return None
    return primitive


_primitive = _registered()


def convolution(x, kernel, strides, padding, *, lhs_dilation=None, rhs_dilation=None, dimension_numbers=None,
                feature_group_count=1, precision=None):  # fmt: skip
    """What ``flax.linen.Conv(conv_general_dilated=...)`` calls: x (N, ..., C), kernel (..., C, features), padding as pairs,
    with 1, 2 or 3 axes for the dots.

    Where the primitive could not be registered (another version of JAX) it is ``jax.lax.conv_general_dilated``: the same
    numbers, slow derivatives on CPUs. Raises NotImplementedError for transposed or grouped convolutions and a precision,
    which no network here has.
    """
    ones = (1,) * len(strides)
    if tuple(lhs_dilation or ones) != ones or feature_group_count != 1 or isinstance(padding, str) or precision is not None:
        raise NotImplementedError("no lhs_dilation, groups, precision or named padding here: use jax.lax.conv_general_dilated")
    how = {"strides": tuple(strides), "padding": tuple(map(tuple, padding)), "dilation": tuple(rhs_dilation or ones)}
    return _convolve(x, kernel, **how) if _primitive is None else _primitive.bind(x, kernel, **how)
