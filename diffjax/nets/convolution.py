"""2-D convolution whose derivative is as fast as itself, on CPUs too.

JAX writes the derivative of a convolution by its input as a convolution with input and output channels of the kernel exchanged
in place. XLA's CPU compiler leaves that so inside loops, where all of a sampler is, and then has no fast code for it. Here the
kernel is transposed, which costs next to nothing, and the same fast code runs (the ratio: experiments.benchmark).
"""

import functools

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

LAYOUT = ("NHWC", "HWIO", "NHWC")


def _convolve(x, kernel, *, strides, padding):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)


def _by_input(ct, x, kernel, *, strides, padding):
    """The cotangent of x: a convolution of ct, zeros between its entries, with the kernel turned and transposed."""
    pads = []
    for axis, (stride, (low, _)) in enumerate(zip(strides, padding), start=1):
        size, taps = x.aval.shape[axis], kernel.shape[axis - 1]
        if stride > 1:
            shape = ct.shape[: axis + 1] + (stride - 1,) + ct.shape[axis + 1 :]
            ct = jnp.concatenate([jnp.expand_dims(ct, axis + 1), jnp.zeros(shape, ct.dtype)], axis + 1)
            ct = ct.reshape(*ct.shape[:axis], -1, *ct.shape[axis + 2 :])
        low = taps - 1 - low
        pads.append((low, size + taps - 1 - ct.shape[axis] - low))
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    return _primitive.bind(ct, turned, strides=(1, 1), padding=tuple(pads))


def _by_kernel(ct, x, kernel, **how):
    return jax.linear_transpose(functools.partial(_convolve, x, **how), kernel.aval)(ct)[0]


def _batched(args, axes, **how):
    x, kernel = args
    if axes[1] is not None:  # one kernel each
        return jax.vmap(functools.partial(_convolve, **how), axes)(x, kernel), 0
    x = jnp.moveaxis(x, axes[0], 0)
    y = _primitive.bind(x.reshape(-1, *x.shape[2:]), kernel, **how)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


_primitive = Primitive("diffjax_convolution")
_primitive.def_impl(jax.jit(_convolve, static_argnames=("strides", "padding")))
_primitive.def_abstract_eval(
    lambda x, kernel, **how: jax.core.ShapedArray(
        (s := jax.eval_shape(functools.partial(_convolve, **how), x, kernel)).shape, s.dtype
    )
)
mlir.register_lowering(_primitive, mlir.lower_fun(_convolve, multiple_results=False))
ad.defbilinear(_primitive, _by_input, _by_kernel)
batching.primitive_batchers[_primitive] = _batched


def convolution(x, kernel, strides, padding, *, lhs_dilation=None, rhs_dilation=None, dimension_numbers=None,
                feature_group_count=1, precision=None):  # fmt: skip
    """What ``flax.linen.Conv(conv_general_dilated=...)`` calls: x (N, H, W, C), kernel (h, w, C, features), padding as pairs.

    Raises NotImplementedError for dilation or groups, which no network here has.
    """
    dilated = any(n != 1 for n in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    if dilated or feature_group_count != 1 or isinstance(padding, str) or precision is not None:
        raise NotImplementedError("convolution has no dilation, groups or named padding: use jax.lax.conv_general_dilated")
    return _primitive.bind(x, kernel, strides=tuple(strides), padding=tuple(map(tuple, padding)))
