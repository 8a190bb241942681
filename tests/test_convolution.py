"""nets.convolution equals JAX's own under every transformation, and its derivatives are as fast as itself inside loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nets.convolution import convolution, layout

FORMS = {  # (strides, dilation, padding, taps, side)
    "3x3": ((1, 1), (1, 1), ((1, 1), (1, 1)), 3, 8),
    "1x1": ((1, 1), (1, 1), ((0, 0), (0, 0)), 1, 8),
    "1x1 strided": ((2, 2), (1, 1), ((0, 0), (0, 0)), 1, 8),
    "strided, odd side": ((2, 2), (1, 1), ((1, 1), (1, 1)), 3, 9),
    "strided, padded after": ((2, 2), (1, 1), ((0, 1), (0, 1)), 3, 8),
    "even kernel": ((2, 1), (1, 1), ((2, 1), (1, 2)), 4, 9),
    "strided, entries unused": ((3, 2), (1, 1), ((0, 0), (1, 0)), 2, 9),
    "dilated and strided": ((2, 1), (1, 2), ((1, 0), (2, 2)), 3, 9),
    "one axis": ((2,), (1,), ((1, 2),), 3, 8),
    "three axes": ((1, 2, 1), (1, 1, 1), ((1, 1), (0, 1), (1, 0)), 3, 5),
}
TRANSFORMATIONS = {
    "value": lambda f, x, k: f(x, k),
    "jvp": lambda f, x, k: jax.jvp(f, (x, k), (k.sum() * x, x.sum() * k)),
    "grad": lambda f, x, k: jax.grad(lambda x, k: (f(x, k) ** 3).sum(), (0, 1))(x, k),
    "grad of grad": lambda f, x, k: jax.grad(lambda x: (jax.grad(lambda x: (f(x, k) ** 3).sum())(x) ** 2).sum())(x),
    "grad of grad by the kernel": lambda f, x, k: jax.grad(
        lambda x, k: (jax.grad(lambda k: (f(x, k) ** 3).sum())(k) ** 2).sum(), (0, 1)
    )(x, k),
    "jvp of grad by the kernel": lambda f, x, k: jax.jvp(
        lambda x: jax.grad(lambda k: (f(x, k) ** 3).sum())(k), (x,), (x[::-1],)
    ),
    "hessian": lambda f, x, k: jax.hessian(lambda k: (f(x, k) ** 2).sum())(k),
    "vmap": lambda f, x, k: jax.vmap(jax.grad(lambda x, k: (f(x, k) ** 3).sum()), (0, None))(jnp.stack([x, 2 * x]), k),
    "vmap last": lambda f, x, k: jax.vmap(f, (-1, None))(jnp.stack([x, 2 * x], -1), k),
    "vmap of kernels": lambda f, x, k: jax.vmap(jax.grad(lambda k: (f(x, k) ** 3).sum()))(jnp.stack([k, 3 * k])),
    "vmap of gradients by one kernel": lambda f, x, k: jax.vmap(jax.grad(lambda k, x: (f(x, k) ** 3).sum()), (None, 0))(
        k, jnp.stack([x, 2 * x])
    ),
}
AS_JAX = "jax.lax.conv_general_dilated"


def lax(x, k, strides, padding, dilation=None):
    numbers = layout(len(strides))
    return jax.lax.conv_general_dilated(x, k, strides, padding, rhs_dilation=dilation, dimension_numbers=numbers)


def equal(ours, theirs, name, form):
    strides, dilation, padding, taps, side = FORMS[form]
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        spatial = len(strides)
        x = jnp.asarray(rng.normal(size=(2, *(side,) * spatial, 3)))
        k = jnp.asarray(rng.normal(size=(*(taps,) * spatial, 3, 2)))
        how = (strides, padding)
        pair = [lambda x, k: ours(x, k, *how, rhs_dilation=dilation), lambda x, k: theirs(x, k, *how, dilation)]
        results = [jax.tree.leaves(jax.jit(TRANSFORMATIONS[name], static_argnums=0)(f, x, k)) for f in pair]
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
def test_equals_jax(form, transformation):
    equal(convolution, lax, transformation, form)
