"""What every operator promises, against its dense matrix. A new operator is one line of ``CASES``.

The matrix is A applied to each unit image (complex measurements as real and imaginary part, tuples side by side); numpy
then says what adjoint, pseudo-inverse, proximal map and singular values must be.
"""

import dataclasses
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj

O = dj.operators
rng = np.random.default_rng(0)
SOFT = rng.random((4, 4, 1)) * (rng.random((4, 4, 1)) < 0.6)
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


def cropped_sum(x, w):
    return {"a": jnp.cumsum(w.astype(x.dtype) * x[1:], 0)}["a"]


CASES = [
    case("mask", lambda: O.Mask(np.round(SOFT)), (4, 4, 2)),
    case("mask-soft", lambda: O.Mask(SOFT), (4, 4, 2)),
    case("downsample", lambda: O.Downsample(2), (4, 6, 2)),
    case("blur", lambda: O.Blur(CROOKED), (4, 5, 2)),
    case("blur-larger-than-image", lambda: O.Blur(rng.random((7, 7))), (4, 5, 1)),
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
    case("matrix", lambda: O.matrix(DENSE, (2, 2, 2)), (2, 2, 2)),
    case("matrix-tall", lambda: O.matrix(WIDE, (2, 4, 1)), (2, 4, 1)),
    case("matrix-low-rank", lambda: O.matrix(LOW_RANK @ DENSE[:2], (8, 1, 1)), (8, 1, 1)),
    case("separable", lambda: O.separable(LEFT, RIGHT), (4, 3, 2)),
    adjoint_only(
        "from-function", lambda: O.from_function(cropped_sum, (4, 3, 1), jnp.asarray(LEFT.T[:3, :1, None])), (4, 3, 1)
    ),
    adjoint_only("from-function-fft", lambda: O.from_function(lambda x: jnp.fft.rfft(x, axis=0), (4, 3, 1)), (4, 3, 1)),
    adjoint_only("compose", lambda: O.Blur(COLOURED, border="reflect") @ O.Mask(SOFT), (4, 4, 2)),
    adjoint_only("stack", lambda: O.stack(O.Downsample(2), O.Mask(SOFT), O.Fourier(SOFT)), (4, 4, 2)),
    case("cg", lambda: O.cg_prox(O.Blur(CROOKED, border="zero"), 40), (4, 4, 1), {"T", "prox"}),
    case("cg-stack", lambda: O.cg_prox(O.stack(O.Downsample(2), O.Mask(SOFT)), 30), (4, 4, 1), {"T", "prox"}),
    case("phase", lambda: O.PhaseRetrieval(2.0), (4, 8, 1), set(), linear=False),
]
by_name = {c.name: c for c in CASES}


def flat(y):
    """A measurement as one real float64 vector."""
    leaves = [np.asarray(a) for a in jax.tree.leaves(y)]
    parts = [[a.real, a.imag] if np.iscomplexobj(a) else [a] for a in leaves]
    return np.concatenate([p.astype(np.float64).reshape(-1) for ps in parts for p in ps])


def shaped(v, like):
    """The inverse of ``flat``: ``v`` as arrays like ``like``."""
    leaves, structure = jax.tree.flatten(like)
    out = []
    for a in leaves:
        n = int(np.prod(a.shape))
        real, v = v[:n], v[n:]
        if jnp.issubdtype(a.dtype, jnp.complexfloating):
            real, v = real + 1j * v[:n], v[n:]
        out.append(jnp.asarray(real.reshape(a.shape), a.dtype))
    return jax.tree.unflatten(structure, out)


def columns(f, shape):
    """The matrix of a linear f on arrays of ``shape``, float64."""
    units = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    out = jax.vmap(f)(jnp.asarray(units))
    return np.stack([flat(jax.tree.map(lambda a: a[n], out)) for n in range(len(units))], 1)


class Dense:
    """An operator, its matrix, and random arrays, in float64 (use within ``enable_x64``)."""

    def __init__(self, case, A=None):
        self.A, self.shape = case.make() if A is None else A, case.shape
        random = np.random.default_rng(1)
        self.x, self.z = (jnp.asarray(random.standard_normal(case.shape)) for _ in range(2))
        self.like = jax.eval_shape(self.A, self.x)
        self.M = columns(self.A, case.shape)
        self.v = random.standard_normal(len(self.M))  # a measurement, flat
        self.y = shaped(self.v, self.like)


@cache
def dense(name):
    return Dense(by_name[name])


def close(got, expected, tolerance=1e-10):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-3)


# --- the promises ---


def check_linear(d):
    close(flat(d.A(d.x)), d.M @ flat(d.x))
    assert np.abs(d.M).max() > 1e-3


def check_adjoint(d):
    close(flat(d.A.T(d.y)), d.M.T @ d.v)


def check_pinv(d):
    close(flat(d.A.pinv(d.y)), np.linalg.pinv(d.M, 1e-10) @ d.v, 1e-9)


def check_prox(d):
    """Equal to the least-squares solution: the gradient of |y - A x|^2 + rho |x - z|^2 vanishes."""
    y = shaped(d.v, d.like)
    for rho in (1e-6, 0.3, 40.0) if not isinstance(d.A, O.base.CGProx) else (0.03, 0.3, 40.0):
        x = flat(d.A.prox(d.z, rho, y))
        r, z = d.M @ x - d.v, flat(d.z)
        gradient = d.M.T @ r + rho * (x - z)
        assert np.abs(gradient).max() < 1e-9 * (np.abs(d.M.T @ d.v).max() + np.abs(d.M.T @ d.M @ z).max()) + 1e-12


def check_svd(d):
    A = d.A.svd
    c = A.Vt(d.x)
    assert c.size == d.x.size and c.dtype == d.x.dtype
    Vt, V = columns(A.Vt, d.shape), columns(A.V, c.shape)
    close(Vt @ Vt.T, np.eye(c.size))
    close(V, Vt.T)
    s = np.broadcast_to(A.singular(c), c.shape).reshape(-1)
    assert (s >= 0).all()
    exact = np.linalg.svd(d.M, compute_uv=False)
    close(np.sort(s)[::-1][: len(exact)], np.append(exact, np.zeros(c.size))[: min(len(exact), c.size)], 1e-7)
    U = columns(A.U, c.shape)
    close(U @ (s[:, None] * Vt), d.M)  # A = U diag(s) V^T
    kept = s > 1e-9
    close(U[:, kept].T @ U[:, kept], np.eye(kept.sum()), 1e-9)
    Ut = np.stack([flat(A.Ut(shaped(e, d.like))) for e in np.eye(len(d.M))], 1)
    close(Ut, np.where(kept[:, None], U.T, 0), 1e-9)  # 0 where s = 0


CHECKS = {"T": check_adjoint, "pinv": check_pinv, "prox": check_prox, "svd": check_svd}


@pytest.mark.parametrize("name", [c.name for c in CASES if c.linear])
def test_linear(name):
    with jax.enable_x64(True):
        check_linear(dense(name))


@pytest.mark.parametrize("name, what", [(c.name, w) for c in CASES for w in sorted(c.has)])
def test_capability_equals_the_matrix(name, what):
    with jax.enable_x64(True):
        CHECKS[what](dense(name))


@pytest.mark.parametrize("name", by_name)
def test_says_what_it_has(name):
    A, like = by_name[name].make(), None
    assert {w for w in ALL if A.has(w)} == by_name[name].has
    x = jnp.zeros(by_name[name].shape)
    for what in ALL - by_name[name].has:
        with pytest.raises(ValueError, match=f"has no {what}.*use"):
            like = like or jax.tree.map(jnp.zeros_like, A(x))
            getattr(A, what) if what == "svd" else {"T": A.T, "pinv": A.pinv, "prox": lambda y: A.prox(x, 1.0, y)}[what](like)


def program(A, x, z, rho, y):
    """All an operator can do."""
    out = [A(x), A.residual(x, y)]
    out += [A.T(y)] if A.has("T") else []
    out += [A.pinv(y)] if A.has("pinv") else []
    out += list(A.prox_info(z, rho, y)) if A.has("prox") else []
    if A.has("svd"):
        S = A.svd
        c = S.Vt(x)
        out += [c, S.V(c), S.Ut(y), S.U(c), S.singular(c) * c]
    return out


def arguments(case, dtype, seed=2):
    random = np.random.default_rng(seed)
    x, z = (jnp.asarray(random.standard_normal(case.shape), dtype) for _ in range(2))
    like = jax.eval_shape(case.make(), x)
    y = shaped(random.standard_normal(2 * sum(int(np.prod(a.shape)) for a in jax.tree.leaves(like))), like)
    return x, z, jnp.asarray(0.3, dtype), y


@pytest.mark.parametrize("name", by_name)
def test_dtype_is_kept_under_strict_promotion(name):
    case = by_name[name]
    for x64, dtype in ((False, jnp.float32), (True, jnp.float64), (True, jnp.float32)):
        with jax.numpy_dtype_promotion("strict"), jax.enable_x64(x64):
            out = jax.eval_shape(program, case.make(), *arguments(case, dtype))
            assert {jnp.finfo(a.dtype).dtype for a in jax.tree.leaves(out)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("name", by_name)
def test_frozen_pytree_one_trace_and_vmap_over_its_leaves(name):
    """As an argument of jit: new leaves do not retrace; a batch of operators is a loop over them; float32 near float64."""
    case = by_name[name]
    A = case.make()
    leaves, structure = jax.tree.flatten(A)
    assert jax.tree.structure(jax.tree.unflatten(structure, leaves)) == structure
    with pytest.raises(dataclasses.FrozenInstanceError):
        A.anything = 1
    traces = []

    @jax.jit
    def run(A, args):
        traces.append(1)
        return jax.vmap(lambda A, args: program(A, *args))(A, args)

    f32 = [jnp.asarray(a, jnp.float32) for a in leaves]
    two = jax.tree.unflatten(structure, [jnp.stack([a, 0.9 * a]) for a in f32])
    args = [arguments(case, jnp.float32, seed) for seed in (2, 3)]
    batch = jax.tree.map(lambda *a: jnp.stack(a), *args)
    out = run(two, batch)
    run(jax.tree.map(lambda a: 0.8 * a, two), batch)
    assert len(traces) == 1
    if name == "cg":
        return  # 40 iterations on 16 unknowns: the last ones are rounding
    scale = [1.0, 0.9] if leaves else [1.0, 1.0]
    with jax.enable_x64(True):
        for n in range(2):
            one = jax.tree.unflatten(
                structure, [jnp.asarray(scale[n] * np.asarray(a, np.float32), jnp.float64) for a in leaves]
            )
            expected = program(one, *jax.tree.map(lambda a: a.astype(jnp.result_type(a.dtype, jnp.float64)), args[n]))
            got = jax.tree.map(lambda a: a[n], out)
            if case.has >= {"svd"}:  # bases are unique up to signs and rotations: V, Vt, U are tested elsewhere
                got, expected = got[:-5], expected[:-5]
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
                close(flat(a), flat(b), 2e-5)


@pytest.mark.parametrize("name", by_name)
def test_differentiable_in_everything(name):
    """Gradients with respect to leaves, x, z, rho and y are finite and equal finite differences."""
    case = by_name[name]
    if "matrix" in name or name == "separable":
        pytest.skip("its leaves are a decomposition: orthonormal, so they cannot move freely")
    with jax.enable_x64(True):
        A = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), case.make())
        args = arguments(case, jnp.float64)
        structure = jax.tree.structure(A)

        @jax.jit
        def loss(leaves, args):
            A = jax.tree.unflatten(structure, leaves)
            out = [A(args[0])] + ([A.prox(*args[1:])] if A.has("prox") else []) + ([A.pinv(args[3])] if A.has("pinv") else [])
            parts = jax.tree.leaves(out)
            return sum((jnp.cos(3 * a.real) * jnp.arange(a.size).reshape(a.shape)).sum() for a in parts)

        at = (jax.tree.leaves(A), args)
        interior = [(a > 0) & (a < 1) if "mask" in name or "fourier" in name else jnp.ones(a.shape, bool) for a in at[0]]
        random = np.random.default_rng(4)

        def draw(a):
            z = random.standard_normal(a.shape)
            return jnp.asarray(z + 1j * random.standard_normal(a.shape) if jnp.iscomplexobj(a) else z, a.dtype)

        direction = jax.tree.map(draw, at)
        moved = [d * keep for d, keep in zip(direction[0], interior)]  # what is 0 is hidden: a kink
        if name in ("blur-singular", "hadamard"):
            moved = [0 * d for d in moved]
        direction = (moved, direction[1])
        gradient = jax.grad(loss, argnums=(0, 1))(*at)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
        shift = lambda h: loss(*jax.tree.map(lambda a, d: a + h * d, at, direction))
        h = 1e-6
        numeric = (shift(h) - shift(-h)) / (2 * h)
        exact = sum((g * d).real.sum() for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction)))
        np.testing.assert_allclose(numeric, exact, rtol=1e-5)


# --- teeth: a mutant of each capability fails its check ---


@dj.base.pytree
class Mutant(O.Blur):
    wrong: str = dj.base.static(default="")

    def T(self, y):
        return (
            super().T(y) if self.wrong != "T" else O.Blur.T(dataclasses.replace(self, kernel=self.kernel[::-1], wrong=""), y)
        )

    def pinv(self, y):
        return super().pinv(y) * (1.001 if self.wrong == "pinv" else 1)

    def prox(self, z, rho, y):
        return super().prox(z, rho / 2 if self.wrong == "prox" else rho, y)

    def V(self, c):
        c = super().V(c)
        return -c if self.wrong == "V" else c

    def Ut(self, y):
        return jnp.roll(super().Ut(y), 1, 1) if self.wrong == "Ut" else super().Ut(y)

    def singular(self, c):
        return super().singular(c) * (1.001 if self.wrong == "s" else 1)


@pytest.mark.parametrize(
    "wrong, what", [("T", "T"), ("pinv", "pinv"), ("prox", "prox"), *[(w, "svd") for w in ("V", "Ut", "s")]]
)
def test_teeth(wrong, what):
    case = by_name["blur-subsample"]
    with jax.enable_x64(True):
        good, bad = (Dense(case, Mutant(CROOKED, factor=2, wrong=w)) for w in ("", wrong))
        CHECKS[what](good)
        with pytest.raises(AssertionError):
            CHECKS[what](bad)


# --- what is particular ---


@pytest.mark.parametrize("border, mode", [("wrap", "wrap"), ("reflect", "mirror"), ("zero", "constant")])
def test_blur_is_scipys_convolution(border, mode):
    from scipy.ndimage import convolve

    x = np.random.default_rng(0).standard_normal((9, 8, 2))
    for k in (rng.random((5, 3)), rng.random((4, 6)), rng.random((1, 7))):
        with jax.enable_x64(True):
            got = O.Blur(k, border=border)(jnp.asarray(x))
            close(got, np.stack([convolve(x[..., c], k, mode=mode) for c in range(2)], -1), 1e-12)
            close(O.Blur(k, border=border, factor=1)(jnp.asarray(x))[::3, ::4], np.asarray(got)[::3, ::4])


def test_a_bright_pixel_becomes_the_kernel():
    k = O.motion_kernel(5, 0.3, seed=1)
    x = np.zeros((9, 9, 1))
    x[4, 4] = 1
    with jax.enable_x64(True):
        for border in ("wrap", "reflect", "zero"):
            close(O.Blur(k, border=border)(jnp.asarray(x))[2:7, 2:7, 0], k, 1e-12)


def test_composition_of_blur_and_block_mean_is_closed_form():
    x = jnp.asarray(rng.standard_normal((12, 24, 2)))
    for k in (CROOKED, COLOURED):
        blur = O.Blur(k, factor=2)
        both = O.Downsample(3) @ blur
        assert isinstance(both, O.Blur) and both.factor == 6
        np.testing.assert_allclose(both(x), O.Downsample(3)(blur(x)), atol=1e-5)
    assert not (O.Downsample(2) @ O.Blur(k, border="zero")).has("prox")


def test_cutoff_hides_small_singular_values():
    k = O.gaussian_kernel(7, 1.2)
    sharp, blunt = O.Blur(k), O.Blur(k, cutoff=0.03)
    x = jnp.asarray(rng.standard_normal((8, 8, 1)), jnp.float32)
    c = blunt.Vt(x)
    s, t = sharp.singular(c), blunt.singular(c)
    np.testing.assert_array_equal(t, np.where(s > 0.03 * s.max(), s, 0))
    assert 0 < (t == 0).sum() < t.size
    np.testing.assert_array_equal(sharp(x), blunt(x))  # what is measured does not change
    y = sharp(x)
    np.testing.assert_allclose(blunt.pinv(y), blunt.V(jnp.where(t > 0, c, 0)), atol=1e-4)


def test_cg_reports_what_is_left():
    A = by_name["cg"].make()
    x, z, rho, y = arguments(by_name["cg"], jnp.float32)
    left = [float(O.cg_prox(A.A, n).prox_info(z, rho, y)[1]["prox_residual"]) for n in (1, 5, 15)]
    assert 1 > left[0] > left[1] > left[2] and left[2] < 1e-3
    with pytest.raises(ValueError, match="needs A.T"):
        O.cg_prox(O.PhaseRetrieval())


def test_hidden_measurements_are_not_looked_at():
    for name in ("mask", "hadamard", "fourier-random"):
        A = by_name[name].make()
        x, z, rho, y = arguments(by_name[name], jnp.float32)
        other = y + (1 - A.mask.astype(np.float32)) * 7
        for a, b in zip(jax.tree.leaves(program(A, x, z, rho, y)), jax.tree.leaves(program(A, x, z, rho, other))):
            np.testing.assert_allclose(a, b, atol=2e-6)


def test_motion_kernels():
    kernels = [O.motion_kernel(31, 0.5, seed) for seed in range(8)]
    np.testing.assert_array_equal(kernels[3], O.motion_kernel(31, 0.5, 3))
    i = np.arange(31) - 15
    for k in kernels:
        assert k.shape == (31, 31) and (k >= 0).all() and k.sum() == pytest.approx(1)
        assert abs((k.sum(1) * i).sum()) < 4 and abs((k.sum(0) * i).sum()) < 4  # the path's centre of mass is the middle
    assert len({k.tobytes() for k in kernels}) == 8
    spread = lambda k: (k.sum(1) * i**2).sum() + (k.sum(0) * i**2).sum()
    assert np.mean([spread(k) for k in kernels]) > 4
    assert np.isfinite(O.motion_kernel(7, 0.5, 0)).all()


def test_noise_has_the_standard_deviation_asked_for():
    """5 standard errors; Poisson: mean v and variance v / (255 rate) in [0, 1]."""
    n, key = 20_000, jax.random.key(0)
    y = jnp.zeros(n)
    real = O.noise.gaussian(key, {"a": y, "b": y.astype(jnp.complex64)}, 0.3)
    for part in (real["a"], real["b"].real, real["b"].imag):
        assert abs(np.std(part) / 0.3 - 1) < 5 / np.sqrt(2 * n)
    assert abs(np.corrcoef(real["b"].real, real["b"].imag)[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(real["a"], real["b"].real)[0, 1]) < 5 / np.sqrt(n)
    for level, rate in ((0.0, 0.1), (-0.5, 1.0)):
        v, got = (level + 1) / 2, (O.noise.poisson(key, jnp.full(n, level), rate) + 1) / 2
        assert abs(got.mean() - v) < 5 * np.sqrt(v / (255 * rate) / n)
        assert abs(got.var() / (v / (255 * rate)) - 1) < 5 * np.sqrt(2.2 / n)
    A = O.Fourier(COLUMNS)
    measured = O.measure(key, A, jnp.zeros((4, 6, 1)), 0.2)
    assert measured.noise_std == 0.2 and measured.A is A and jnp.iscomplexobj(measured.y)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: O.Blur(CROOKED, border="wrapped"), "did you mean 'wrap'"),
        (lambda: O.Blur(np.ones(3)), "kernel has shape"),
        (lambda: O.Blur(CROOKED, factor=0), "factor 0"),
        (lambda: O.Blur(CROOKED, factor=2)(jnp.zeros((5, 4, 1))), "does not divide the image's 5x4: crop it to 4x4"),
        (lambda: O.Resize(3)(jnp.zeros((6, 8, 1))), "crop it to 6x6"),
        (lambda: O.Resize(2, "bicubic"), "did you mean 'cubic'"),
        (lambda: O.Hadamard(np.ones((6, 6, 1)))(jnp.zeros((6, 6, 1))), "power of two"),
        (lambda: O.Fourier(255 * np.ones((4, 4, 1))), "mask / 255"),
        (lambda: O.Grey().svd.Vt(jnp.zeros((2, 2, 4))), "one weight per channel"),
        (lambda: O.matrix(np.ones((2, 5)), (2, 2, 1)), "give"),
        (lambda: O.SliceAverage(2)(jnp.zeros((3, 2, 2, 1))), "keep 2"),
        (lambda: O.motion_kernel(9, 1.5), "intensity 1.5"),
        (lambda: O.gaussian_kernel(9, 0), "std 0"),
        (lambda: O.random_mask((4, 4), 1.2), "fraction 1.2"),
        (lambda: O.PhaseRetrieval(-1.0), "oversample -1"),
        (lambda: O.cg_prox(O.Downsample(2), 0), "iterations 0"),
    ],
)
def test_errors_name_the_value_and_the_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()
