"""What every operator promises, against its dense matrix. A new operator is one line of ``CASES``.

The matrix is A applied to each unit image (complex measurements as real and imaginary part, tuples side by side); numpy
then says what adjoint, pseudo-inverse, proximal map and singular values must be.
"""

import dataclasses
import functools
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj

O = dj.operators
QUICK = {"xla_backend_optimization_level": 0}  # these programs take longer to compile than to run
rng = np.random.default_rng(0)
SOFT = (0.3 + 0.7 * rng.random((4, 4, 1))) * (rng.random((4, 4, 1)) < 0.6)
LARGE = rng.random((7, 7))
CROOKED = rng.random((3, 4))  # even and odd, no symmetry
COLOURED = rng.random((3, 3, 2))
COLUMNS = np.array([1, 1, 0, 0.5, 0, 0])[None, :, None]  # not symmetric: frequency 3 of 6 is its own negative
DENSE, WIDE, LOW_RANK = rng.standard_normal((5, 8)), rng.standard_normal((11, 8)), rng.standard_normal((6, 2))
LEFT, RIGHT = rng.standard_normal((2, 4)), rng.standard_normal((5, 3))
ALL = {"T", "pinv", "prox", "svd"}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    make: Callable  # () -> operator
    shape: tuple
    has: frozenset = frozenset(ALL)
    linear: bool = True


def case(name, make, shape, has=ALL, linear=True):
    return Case(name, make, shape, frozenset(has), linear)


def adjoint_only(name, make, shape):
    return case(name, make, shape, {"T"})


def weighted_sums(x, w):
    return jnp.cumsum(w.astype(x.dtype) * x[1:], 0)


CASES = [
    case("mask", lambda: O.Mask(np.round(SOFT)), (4, 4, 2)),
    case("mask-soft", lambda: O.Mask(SOFT), (4, 4, 2)),
    case("downsample", lambda: O.Downsample(2), (4, 6, 2)),
    case("blur", lambda: O.Blur(CROOKED), (4, 5, 2)),
    case("blur-larger-than-image", lambda: O.Blur(LARGE), (4, 5, 1)),
    case("blur-per-channel", lambda: O.Blur(COLOURED), (4, 4, 2)),
    case("blur-singular", lambda: O.Blur(np.full((2, 2), 0.25)), (4, 6, 2)),
    case("blur-subsample", lambda: O.Blur(CROOKED, factor=2), (4, 6, 2)),
    case("blur-subsample3-per-channel", lambda: O.Blur(COLOURED, factor=3), (6, 3, 2)),
    case("downsample@blur", lambda: O.Downsample(2) @ O.Blur(CROOKED), (4, 6, 1)),
    adjoint_only("blur-reflect", lambda: O.Blur(CROOKED, border="reflect"), (4, 5, 2)),
    adjoint_only("blur-zero-subsample", lambda: O.Blur(COLOURED, border="zero", factor=2), (4, 4, 2)),
    case("resize2", lambda: O.Resize(2), (4, 6, 2)),
    case("resize3-lanczos", lambda: O.Resize(3, "lanczos3"), (6, 9, 1)),
    case("grey", O.Grey, (2, 3, 3)),
    case("grey-weights", lambda: O.Grey(np.array([0.0, -0.7, 0.4, 0.1])), (2, 2, 4)),
    case("hadamard", lambda: O.Hadamard(O.random_mask((4, 8), 0.4)), (4, 8, 2)),
    case("fourier", lambda: O.Fourier(COLUMNS), (4, 6, 2)),
    case("fourier-random", lambda: O.Fourier(O.random_mask((5, 6), 0.5, seed=1)), (5, 6, 1)),
    case("slices", lambda: O.SliceAverage(2), (4, 2, 2, 1)),
    case("slices-axis", lambda: O.SliceAverage(3, axis=2), (1, 2, 6, 2)),
    case("thick-slices", lambda: O.ThickSlices(2, 0, "gaussian", 1.2), (6, 2, 1, 1)),
    case("thick-slices-axis", lambda: O.ThickSlices(3, axis=2), (1, 2, 6, 2)),
    case("resize2-fourier", lambda: O.Resize(2, "fourier"), (4, 6, 1)),
    case("matrix", lambda: O.matrix(DENSE, (2, 2, 2)), (2, 2, 2)),
    case("matrix-tall", lambda: O.matrix(WIDE, (2, 4, 1)), (2, 4, 1)),
    case("matrix-low-rank", lambda: O.matrix(LOW_RANK @ DENSE[:2], (8, 1, 1)), (8, 1, 1)),
    case("separable", lambda: O.separable(LEFT, RIGHT), (4, 3, 2)),
    adjoint_only("from-function", lambda: O.from_function(weighted_sums, (4, 3, 1), LEFT.T[:3, :1, None]), (4, 3, 1)),
    adjoint_only("from-function-fft", lambda: O.from_function(lambda x: jnp.fft.rfft(x, axis=0), (4, 3, 1)), (4, 3, 1)),
    adjoint_only("compose", lambda: O.Blur(COLOURED, border="reflect") @ O.Mask(SOFT), (4, 4, 2)),
    adjoint_only("stack", lambda: O.stack(O.Downsample(2), O.Mask(SOFT), O.Fourier(SOFT)), (4, 4, 2)),
    case("cg", lambda: O.cg_prox(O.Blur(CROOKED, border="zero"), 40), (4, 4, 1), {"T", "prox"}),
    case("cg-stack", lambda: O.cg_prox(O.stack(O.Downsample(2), O.Mask(SOFT)), 30), (4, 4, 1), {"T", "prox"}),
    case("phase", lambda: O.PhaseRetrieval(2.0), (4, 8, 1), set(), linear=False),
]
by_name = {c.name: c for c in CASES}
VARIANTS = {
    "blur-larger-than-image",
    "blur-per-channel",
    "blur-subsample3-per-channel",
    "downsample@blur",
    "resize3-lanczos",
    "resize2-fourier",
}
VARIANTS |= {
    "mask",
    "fourier-random",
    "grey",
    "slices-axis",
    "thick-slices-axis",
    "matrix-low-rank",
    "matrix-tall",
    "from-function",
    "cg-stack",
}
FAMILIES = [name for name in by_name if name not in VARIANTS]  # one or two cases for what depends on the code path alone


def xp_of(*arrays):
    return np if all(isinstance(a, np.ndarray | np.generic) for a in arrays) else jnp


def flat(y):
    """A measurement as one real vector: complex arrays as real and imaginary part, the parts of a tuple side by side."""
    leaves = jax.tree.leaves(y)
    parts = [[a.real, a.imag] if jnp.iscomplexobj(a) else [a] for a in leaves]
    return xp_of(*leaves).concatenate([part.reshape(-1) for pair in parts for part in pair])


def shaped(v, like):
    """The inverse of ``flat``: ``v`` as arrays like ``like``."""
    leaves, structure = jax.tree.flatten(like)
    out = []
    for a in leaves:
        n = int(np.prod(a.shape))
        part, v = v[:n], v[n:]
        if jnp.issubdtype(a.dtype, jnp.complexfloating):
            part, v = (part + 1j * v[:n]).astype(a.dtype), v[n:]
        out.append(part.reshape(a.shape))
    return jax.tree.unflatten(structure, out)


def matrix_of(f, like):
    """The matrix of a linear f, one column per entry of ``like``."""
    size = flat(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), like)).size
    return jax.vmap(lambda e: flat(f(shaped(e, like))))(jnp.eye(size)).T


def program(A, x, z, rho, y):
    """All an operator can do for one image."""
    out = {"A": A(x), "residual": A.residual(x, y)}
    if A.has("T"):
        out["T"] = A.T(y)
    if A.has("pinv"):
        out["pinv"] = A.pinv(y)
    if A.has("prox"):
        out["prox"], out["prox_info"] = A.prox_info(z, rho, y)
    return out


def spectral(A, x, y):
    c = A.svd.Vt(x)
    return {"Vt": c, "V": A.svd.V(c), "Ut": A.svd.Ut(y), "U": A.svd.U(c), "s": jnp.broadcast_to(A.svd.singular(c), c.shape)}


def arguments(case, dtype, seed=2):
    """(x, z, rho, y) on the host, the same numbers in every dtype."""
    random = np.random.default_rng(seed)
    normal = lambda shape: random.standard_normal(shape).astype(np.float32).astype(dtype)
    x, z = normal(case.shape), normal(case.shape)
    like = jax.eval_shape(case.make(), x)
    return x, z, np.asarray(0.3, dtype), shaped(normal(2 * sum(int(np.prod(a.shape)) for a in jax.tree.leaves(like))), like)


def in_dtype(A, dtype):
    return jax.tree.map(lambda a: np.asarray(a, dtype), A)


@dataclasses.dataclass(frozen=True)
class Dense:
    """What one operator does in float64: ``got`` = program (with prox at three rho), its matrix M, and those of its parts."""

    got: dict
    parts: dict
    M: np.ndarray
    args: tuple
    rhos: tuple


@functools.partial(jax.jit, compiler_options=QUICK, static_argnames="linear")
def all_of_it(A, x, z, rho, y, rhos, linear):
    got, parts = program(A, x, z, rho, y), {}
    if A.has("prox"):
        got["proxes"] = jax.vmap(lambda r: A.prox(z, r, y))(rhos)
    if A.has("svd"):
        c = jax.eval_shape(A.svd.Vt, x)
        parts = {name: matrix_of(getattr(A.svd, name), at) for name, at in (("Vt", x), ("V", c), ("U", c), ("Ut", y))}
        parts["s"] = flat(spectral(A, x, y)["s"])
    return got, parts, matrix_of(A, x) if linear else None


def evaluate(case, A) -> Dense:
    rhos = (0.03, 0.3, 40.0) if isinstance(A, O.base.CGProx) else (1e-6, 0.3, 40.0)
    with jax.enable_x64(True):
        args = arguments(case, jnp.float64)
        got, parts, M = jax.device_get(all_of_it(in_dtype(A, jnp.float64), *args, np.array(rhos), case.linear))
        return Dense(got, parts, M, args, rhos)


@cache
def dense(name):
    return evaluate(by_name[name], by_name[name].make())


def close(got, expected, tolerance=1e-10):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-3)


# --- the promises ---


def check_linear(d):
    close(flat(d.got["A"]), d.M @ flat(d.args[0]))
    assert np.abs(d.M).max() > 1e-3


def check_adjoint(d):
    close(flat(d.got["T"]), d.M.T @ flat(d.args[3]))


def check_pinv(d):
    close(flat(d.got["pinv"]), np.linalg.pinv(d.M, 1e-10) @ flat(d.args[3]), 1e-8)


def check_prox(d):
    """The gradient of |y - A x|^2 + rho |x - z|^2 vanishes."""
    _, z, _, y = (flat(a) for a in d.args)
    size = np.abs(d.M.T @ y).max() + np.abs(d.M.T @ d.M @ z).max()
    for x, rho in zip(d.got["proxes"], d.rhos):
        gradient = d.M.T @ (d.M @ flat(x) - y) + rho * (flat(x) - z)
        assert np.abs(gradient).max() < 1e-9 * size


def check_svd(d):
    p, n = d.parts, d.M.shape[1]
    s, kept = p["s"], p["s"] > 1e-9
    assert p["Vt"].shape == (n, n) and (s >= 0).all()
    close(p["Vt"] @ p["Vt"].T, np.eye(n))
    close(p["V"], p["Vt"].T)
    close(np.sort(s)[::-1], np.append(np.linalg.svd(d.M, compute_uv=False), np.zeros(n))[:n], 1e-7)
    close(p["U"] @ (s[:, None] * p["Vt"]), d.M)
    close(p["U"][:, kept].T @ p["U"][:, kept], np.eye(kept.sum()), 1e-9)
    close(p["Ut"], np.where(kept[:, None], p["U"].T, 0), 1e-9)


CHECKS = {"T": check_adjoint, "pinv": check_pinv, "prox": check_prox, "svd": check_svd}


@pytest.mark.parametrize("name", by_name)
def test_equals_its_matrix(name):
    d = dense(name)
    looked_at = flat(hidden(by_name[name].make(), d.args[3])) == 0
    close(flat(d.got["residual"]), flat(d.got["A"]) - looked_at * flat(d.args[3]))
    if by_name[name].linear:
        check_linear(d)
    for what in by_name[name].has:
        CHECKS[what](d)


def hidden(A, y):
    """Entries of y that masks do not look at."""
    A = getattr(A, "A", A)
    if isinstance(A, O.base.Stack):
        return jax.tree.map(hidden, A.parts, y, is_leaf=lambda p: isinstance(p, O.Operator))
    gone = np.broadcast_to(np.asarray(A.mask) == 0 if hasattr(A, "mask") else False, y.shape)
    return gone + 1j * gone if np.iscomplexobj(y) else gone


@pytest.mark.parametrize("name", by_name)
def test_says_what_it_has(name):
    A = by_name[name].make()
    assert {w for w in ALL if A.has(w)} == by_name[name].has
    x = jnp.zeros(by_name[name].shape)
    like = jax.eval_shape(A, x)
    for what in ALL - by_name[name].has:
        with pytest.raises(ValueError, match=f"has no {what}.*use"):
            if what == "svd":
                _ = A.svd
            else:
                jax.eval_shape(getattr(A, what), *((x, 1.0, like) if what == "prox" else (like,)))


@pytest.mark.parametrize("name", by_name)
def test_dtype_is_kept_under_strict_promotion(name):
    case = by_name[name]
    for dtype in (jnp.float64, jnp.float32):
        with jax.numpy_dtype_promotion("strict"), jax.enable_x64(True):
            x, z, rho, y = arguments(case, dtype)
            A = case.make()
            out = jax.eval_shape(program, A, x, z, rho, y), jax.eval_shape(spectral, A, x, y) if A.has("svd") else []
            assert {jnp.finfo(a.dtype).dtype for a in jax.tree.leaves(out)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("name", FAMILIES)
def test_frozen_pytree_one_trace_and_vmap_over_its_leaves(name):
    """As an argument of jit: new leaves do not retrace; a batch of two operators in float32 is each of them, as in float64."""
    case = by_name[name]
    A = in_dtype(case.make(), jnp.float32)
    leaves, structure = jax.tree.flatten(A)
    assert jax.tree.structure(jax.tree.unflatten(structure, leaves)) == structure
    with pytest.raises(dataclasses.FrozenInstanceError):
        A.anything = 1
    traces = []

    def counted(A, args):
        traces.append(1)
        return jax.vmap(lambda A, args: program(A, *args))(A, args)

    compiled = jax.jit(counted, compiler_options=QUICK)
    run = lambda *args: jax.device_get(compiled(*args))
    pair = lambda a, b: jax.tree.map(lambda a, b: np.stack([a, b]), a, b)
    args, other = arguments(case, jnp.float32), arguments(case, jnp.float32, seed=3)
    dim = jax.tree.map(lambda a: (0.9 * a).astype(a.dtype), A)
    out = run(pair(A, dim), pair(args, other))
    swapped = run(pair(dim, A), pair(other, args))
    assert len(traces) == 1
    if name == "cg":
        return  # 40 iterations for 16 unknowns: the last ones are rounding
    for key, expected in dense(name).got.items():
        if key not in ("proxes", "prox_info"):
            first = flat(jax.tree.map(lambda a: a[0], out[key]))
            close(first, flat(expected), 2e-5)
            close(flat(jax.tree.map(lambda a: a[1], swapped[key])), first, 1e-6)
            close(*(flat(jax.tree.map(lambda a: a[n], o[key])) for n, o in ((0, swapped), (1, out))), 1e-6)


KINKS = ("blur-singular", "hadamard")  # at a singular value or a mask of 0


@pytest.mark.parametrize("name", [n for n in FAMILIES if not n.startswith(("matrix", "separable"))])
def test_differentiable_in_everything(name):
    """Gradients with respect to leaves, x, z, rho and y are finite and equal finite differences. (The leaves of matrices are
    decompositions, which cannot move freely.)"""
    case = by_name[name]
    with jax.enable_x64(True):
        at = in_dtype(case.make(), jnp.float64), arguments(case, jnp.float64)

        def loss(A, args):
            parts = [a for a in jax.tree.leaves(program(A, *args)) if a.size > 1]
            return sum((jnp.cos(3 * a.real + a.imag) * jnp.arange(a.size).reshape(a.shape)).sum() for a in parts)

        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), compiler_options=QUICK)
        run = lambda *args: jax.device_get(compiled(*args))
        random = np.random.default_rng(4)

        def along(a):
            z = random.standard_normal(a.shape)
            return np.asarray(z + 1j * random.standard_normal(a.shape) if jnp.iscomplexobj(a) else z, a.dtype)

        inside = lambda a: along(a) * (0 if name in KINKS else (a != 0))  # a mask's 0 is where y is not looked at
        direction = jax.tree.map(inside, at[0]), jax.tree.map(along, at[1])
        gradient = run(*at)[1]
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
        shift = lambda h: run(*jax.tree.map(lambda a, d: a + h * d, at, direction))[0]
        h = 1e-6
        exact = sum((g * d).real.sum() for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction)))
        np.testing.assert_allclose((shift(h) - shift(-h)) / (2 * h), exact, rtol=1e-5)


# --- teeth: a mutant of each capability fails its check ---


WRONG = ("none", "T", "pinv", "prox", "V", "Ut", "s")


@dj.base.pytree
class Mutant(O.Blur):
    """A blur with the mistake WRONG[wrong]; a leaf, so that one program serves all."""

    wrong: Any = 0

    def either(self, name, bad, good):
        return jnp.where(self.wrong == WRONG.index(name), bad, good)

    def T(self, y):
        return O.Blur.T(dataclasses.replace(self, kernel=self.either("T", self.kernel[::-1], self.kernel)), y)

    def pinv(self, y):
        return super().pinv(y) * self.either("pinv", 1.001, 1)

    def prox(self, z, rho, y):
        return super().prox(z, self.either("prox", rho / 2, rho), y)

    def V(self, c):
        return super().V(c) * self.either("V", -1, 1)

    def Ut(self, y):
        found = super().Ut(y)
        return self.either("Ut", jnp.roll(found, 1, 1), found)

    def singular(self, c):
        return super().singular(c) * self.either("s", 1.001, 1)


@pytest.mark.parametrize("wrong", WRONG)
def test_teeth(wrong):
    found = evaluate(by_name["blur-subsample"], Mutant(CROOKED, factor=2, wrong=WRONG.index(wrong)))
    if wrong == "none":
        for check in CHECKS.values():
            check(found)
        return
    with pytest.raises(AssertionError):
        CHECKS[wrong if wrong in CHECKS else "svd"](found)
