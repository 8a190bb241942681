"""What a method is: where predictions come from, what happens around the move, what it asks of operator, kernel and noise."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from .base import Measurement, Prediction, expand, in_order, in_range, like, normal, numbers, pytree


@pytree
class Plain:
    """A function (x, t) -> Prediction as a denoiser: a leaf no more, so that whatever holds it may be an argument of ``jit``.

    f: ``jax.tree_util.Partial``; schedule: the function's own attribute of that name, or None
    """

    f: Any
    schedule: Any = None

    def __call__(self, x, t) -> Prediction:
        p = self.f(x, t)
        if not isinstance(p, Prediction):
            raise ValueError(
                f"the denoiser returned {type(p).__name__}, not a Prediction: wrap the network, "
                "denoisers.from_eps(f, None, schedule) or from_x0, from_v, ..."
            )
        for name in ("x0", "eps"):
            like(x, getattr(p, name), f"{name} of the denoiser's prediction")
        return p


def as_denoiser(denoise):
    """``denoise``, or a plain function as a pytree (:class:`Plain`). What is no function is left for ``sample`` to refuse."""
    if isinstance(denoise, jax.tree_util.Partial):
        return Plain(denoise)
    if not callable(denoise) or isinstance(denoise, type) or not jax.tree_util.all_leaves([denoise]):
        return denoise
    return Plain(jax.tree_util.Partial(denoise), getattr(denoise, "schedule", None))


INSTEAD = {  # what a method that lacks a capability of the operator may be replaced by
    "mask": "it pastes known pixels; use DDNM or DPS",
    "T": "use operators.from_function(f, shape) if A is linear, or DPS, which needs only A",
    "pinv": "use MMPS, which needs A.T, or DPS, which needs only A",
    "svd": "use MMPS, which needs A.T, or DPS, which needs only A",
    "prox": "use operators.cg_prox(A, iterations) if A is linear, or DPS, which needs only A",
}
NOISE = ("modelled", "ignored", "refused", "needed")
GIVES = ("posterior", "picture", "estimate")
NOT_NEGATIVE = (0, float("inf"))


@pytree
class Method:
    """Where predictions come from and what happens around the move. Every hook but ``step`` has a default;
    a bare denoiser wrapped in this class is the trivial method: plain sampling.

    What a method is stands in its class, where ``diffjax.registry``, refusals and tests read it:

    paper, link    authors and year; where to read it
    requires       what the operator must have, of ``INSTEAD`` (``requirements()`` where that depends on the settings)
    moves          kernels it moves by; (): any
    noise          what it makes of ``noise_std``: "modelled", "ignored", "refused" (must be 0), "needed" (must not be 0)
    gives          "posterior" (samples whose spread is meant to be right), "picture" or "estimate" (one answer)
    differentiable whether gradients flow from the result to y, weights and hyper-parameters
    ranges         name -> (low, high) of hyper-parameters; NaN is refused in all of them
    instead_of_noise  what to use where the noise is refused or missing
    """

    denoise: Any

    paper = ""
    link = ""
    requires = ()
    moves = ()
    noise = "modelled"
    gives = "picture"
    differentiable = True
    ranges = {}
    instead_of_noise = "DPS, which ignores noise_std, or MMPS, which models it"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            word = isinstance(value, str) and isinstance(field.default, str)
            if field.name not in ("denoise", "measurement") and not word:
                in_range(field.name, value, *self.ranges.get(field.name, ()))
            if field.name == "bounds" and isinstance(value, (tuple, list)):
                in_order("bounds", *value)
        object.__setattr__(self, "denoise", as_denoiser(self.denoise))
        measurement = getattr(self, "measurement", None)
        if isinstance(measurement, Measurement):
            check_operator(type(self).__name__, measurement.A, self.requirements())
            check_noise(self, measurement)

    def requirements(self) -> tuple:
        """The capabilities that this instance needs of its operator."""
        return self.requires

    def default_kernel(self):
        """The kernel, without a schedule, that ``sample`` takes where none is given; None: DDIM."""
        return self.moves[0]() if self.moves else None

    def image_shape(self, shape):
        """The shape of one image, given that of the state (methods with particles: without their axis)."""
        return shape

    def starts_anywhere(self) -> bool:
        """Whether ``start`` gives an image of any level, so that a table may begin late."""
        return False

    def check(self, kernel, table):
        """Raise ValueError for combinations the paper does not allow."""
        if self.moves and not isinstance(kernel, self.moves):
            who, names = type(self).__name__, [k.__name__ for k in self.moves]
            use = " or ".join(f"kernels.{name}()" for name in names)
            raise ValueError(f"{who} moves by {' or '.join(names)}, not by {type(kernel).__name__}: use {use}")

    def plan(self, kernel, table):
        """Coefficients per row (leading axis = rows), computed once before the loop, or None."""
        return None

    def draw_start(self, kernel, key, shape, dtype):
        """Unit noise for ``start``."""
        return normal(key, shape, dtype)

    def start(self, kernel, row, noise):
        """The state at the first row's t from unit noise: N(0, I) for variance-preserving schedules, else
        N(0, sigma(t)^2)."""
        return noise if kernel.schedule.variance_preserving else expand(kernel.schedule.sigma(row.t), noise) * noise

    def init(self, kernel, x):
        """The carried state; contains the kernel's."""
        return kernel.init(x)

    def draw(self, kernel, key, x):
        """All noise of one row as a pytree."""
        return kernel.draw(key, x)

    def step(self, kernel, x, state, row, noise):
        """-> (x at s, state, info)"""
        x, state = kernel.step(self.predict, x, state, row, noise)
        return x, state, {}

    def predict(self, x, t) -> Prediction:
        return self.denoise(x, t)

    def jump(self, kernel, x, state, row, noise):
        """Climb from s to r by q(x_r | x_s), with coefficients ``row.k.jump``; identity where r = s."""
        a, std = (expand(c, x) for c in row.k.jump)
        return a * x + std * noise, state

    def finish(self, kernel, x, state):
        """-> (result, info), outside the loop: clamp, paste known pixels, close weights."""
        return x, {}

    def calls(self, kernel) -> int:
        """Network calls per row (an upper bound where ``info['calls']`` counts them)."""
        return kernel.calls

    def least_calls(self, kernel) -> int:
        """The same where nothing is tried twice."""
        return self.calls(kernel)

    def products(self, kernel) -> int:
        """Products with the network's Jacobian per row."""
        return 0


def check_operator(who, A, capabilities):
    """Raise ValueError, naming the fallback, where the concrete operator ``A`` lacks one of ``capabilities``."""
    if not callable(A):  # a placeholder
        return
    has = getattr(A, "has", None)
    instead = lambda name: getattr(A, "instead", INSTEAD[name])  # an operator may know better
    for name in capabilities:
        if name == "mask":
            if not callable(getattr(type(A), "weights", None)):
                raise ValueError(f"{who} needs a Mask, not {type(A).__name__}: {instead(name)}")
            continue
        if name == "svd" and has is not None:
            try:
                _ = A.svd
            except ValueError as error:  # the operator knows best what gives it one
                raise ValueError(f"{who} works on singular values, but {error}") from None
            continue
        if has(name) if has is not None else hasattr(type(A), name):
            continue
        raise ValueError(f"{who} needs A.{name}, which {type(A).__name__} lacks: {instead(name)}")


def check_noise(method, measurement):
    """Raise ValueError for a known noise_std that the method refuses, or cannot do without."""
    a = numbers(measurement.noise_std)
    who = type(method).__name__
    if a is None:
        return
    if method.noise == "refused" and (a > 0).any():
        level = f"{a.max():.4g}" if a.size == 1 else f"of up to {a.max():.4g}"
        raise ValueError(f"{who} fits y exactly, noise_std {level} and all: use {method.instead_of_noise}")
    if method.noise == "needed" and (a == 0).any():
        raise ValueError(f"{who} weighs by the likelihood of y, which noise_std 0 has none of: use {method.instead_of_noise}")


def as_method(denoiser_or_method) -> Method:
    return denoiser_or_method if isinstance(denoiser_or_method, Method) else Method(denoiser_or_method)
