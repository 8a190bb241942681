"""nets.convolution equals JAX's own under every transformation, and its derivative compiles to the fast form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nets.convolution import LAYOUT, convolution

FORMS = [  # (strides, padding, taps, side)
    ((1, 1), ((1, 1), (1, 1)), 3, 8),
    ((1, 1), ((0, 0), (0, 0)), 1, 8),
    ((2, 2), ((1, 1), (1, 1)), 3, 9),
    ((2, 2), ((0, 1), (0, 1)), 3, 8),
    ((2, 1), ((2, 1), (1, 2)), 4, 9),
]
TRANSFORMATIONS = {
    "value": lambda f, x, k: f(x, k),
    "jvp": lambda f, x, k: jax.jvp(f, (x, k), (k.sum() * x, x.sum() * k)),
    "grad": lambda f, x, k: jax.grad(lambda x, k: (f(x, k) ** 3).sum(), (0, 1))(x, k),
    "grad of grad": lambda f, x, k: jax.grad(lambda x: (jax.grad(lambda x: (f(x, k) ** 3).sum())(x) ** 2).sum())(x),
    "hessian": lambda f, x, k: jax.hessian(lambda k: (f(x, k) ** 2).sum())(k),
    "vmap": lambda f, x, k: jax.vmap(jax.grad(lambda x, k: (f(x, k) ** 3).sum()), (0, None))(jnp.stack([x, 2 * x]), k),
    "vmap last": lambda f, x, k: jax.vmap(f, (4, None))(jnp.stack([x, 2 * x], 4), k),
    "vmap of kernels": lambda f, x, k: jax.vmap(jax.grad(lambda k: (f(x, k) ** 3).sum()))(jnp.stack([k, 3 * k])),
}


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
def test_equals_jax(form, transformation):
    strides, padding, taps, side = form
    ours = lambda x, k: convolution(x, k, strides, padding)
    theirs = lambda x, k: jax.lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=LAYOUT)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, k = jnp.asarray(rng.normal(size=(2, side, side, 3))), jnp.asarray(rng.normal(size=(taps, taps, 3, 2)))
        pairs = [jax.tree.leaves(TRANSFORMATIONS[transformation](f, x, k)) for f in (ours, theirs)]
        for a, b in zip(*pairs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())


def test_derivative_in_a_loop_keeps_the_layout_cpus_are_fast_at():
    x, k = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
    theirs = lambda x, k, *how: jax.lax.conv_general_dilated(x, k, *how, dimension_numbers=LAYOUT)

    def exchanged(f):
        """Convolutions with the kernel's channels exchanged in place, in ten steps of gradient descent."""
        step = lambda _, x, k: x - jax.grad(lambda x: (f(x, k, (1, 1), ((1, 1), (1, 1))) ** 2).sum())(x)
        loop = jax.jit(lambda x, k: jax.lax.fori_loop(0, 10, lambda n, x: step(n, x, k), x))
        return loop.lower(x, k).compile().as_text().count("01oi")

    assert exchanged(convolution) == 0
    if jax.default_backend() == "cpu":
        assert exchanged(theirs) > 0, "XLA no longer needs our convolution: take jax.lax's"


def test_refuses_what_it_cannot():
    x, k = jnp.ones((1, 8, 8, 1)), jnp.ones((3, 3, 1, 1))
    with pytest.raises(NotImplementedError, match="dilation"):
        convolution(x, k, (1, 1), ((1, 1), (1, 1)), rhs_dilation=(2, 2))
