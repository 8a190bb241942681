"""Any method with any operator: it runs, or it says at construction what to use instead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj

O, M, K = dj.operators, dj.methods, dj.kernels
SHAPE = (8, 8, 3)
SCHEDULE = dj.schedules.discrete(dj.schedules.linear_betas(100))
PRIOR = dj.denoisers.from_x0(lambda x, i: 0.5 * x, None, SCHEDULE)
HALF = np.arange(64).reshape(8, 8, 1) % 2 == 0
METHODS = {
    "repaint": (M.RePaint, K.DDPM),
    "copaint": (M.CoPaint, K.DDIM),
    "blended": (M.Blended, K.DDIM),
    "resampling": (lambda *a: M.Resampling(*a, particles=2), K.DDIM),
    "replacement": (M.Replacement, K.DDPM),
    "ccdf": (M.CCDF, K.DDPM),
    "ddrm": (M.DDRM, K.Marginal),
    "ddnm": (M.DDNM, K.DDIM),
    "ddnm+": (M.DDNMPlus, K.Marginal),
    "ddnm+ simplified": (lambda *a: M.DDNMPlus(*a, form="simplified"), K.Marginal),
    "pigdm": (M.PiGDM, K.DDIM),
    "dps": (M.DPS, K.DDPM),
    "dps poisson": (lambda *a: M.DPS(*a, loss="poisson"), K.DDPM),
    "mcg": (M.MCG, K.DDPM),
    "psld": (M.PSLD, K.DDIM),
    "resample": (lambda *a: M.ReSample(*a, every=2, iterations=2), K.DDIM),
    "mmps": (lambda *a: M.MMPS(*a, iterations=2), K.DDIM),
    "twisted": (lambda *a: M.TwistedSMC(*a, iterations=2, particles=2), K.DDPM),
    "red-diff": (M.REDDiff, K.Marginal),
    "diffpir": (M.DiffPIR, K.DDIM),
    "diffpir gradient": (lambda *a: M.DiffPIR(*a, data="gradient"), K.DDIM),
    "diffpir back projection": (lambda *a: M.DiffPIR(*a, data="back_projection"), K.DDIM),
    "dpir": (M.DPIR, K.Marginal),
}
BLUR = O.gaussian_kernel(5, 1.0)
OPERATORS = {
    "mask": O.Mask(jnp.asarray(HALF, float)),
    "means": O.Downsample(2),
    "bicubic": O.Resize(2),
    "blur": O.Blur(BLUR),
    "reflected blur": O.Blur(BLUR, border="reflect"),
    "grey": O.Grey(),
    "hadamard": O.Hadamard(jnp.asarray(HALF, float)),
    "fourier": O.Fourier(jnp.asarray(HALF, float)),
    "phase": O.PhaseRetrieval(),
    "matrix": O.matrix(np.random.default_rng(0).normal(size=(9, 192)) / 14, SHAPE),
    "stack": O.stack(O.Grey(), O.Downsample(2)),
    "stack with fourier": O.stack(O.Grey(), O.Fourier(jnp.asarray(HALF, float))),
    "composition": O.Grey() @ O.Blur(BLUR),
    "composition by cg": O.cg_prox(O.Grey() @ O.Blur(BLUR), 5),
    "stack by cg": O.cg_prox(O.stack(O.Grey(), O.Downsample(2)), 5),
    "function": O.from_function(lambda x: x[::2], SHAPE),
    "two functions": O.from_function(lambda x: (x[::2], x[:, ::2]), SHAPE),
    "curved function": O.from_function(lambda x: jnp.tanh(3 * x), SHAPE),
}
ALWAYS = ("copaint", "dps", "dps poisson", "diffpir gradient")  # they need A alone
TABLE = dj.timetables.log_snr(SCHEDULE, 3)


@pytest.mark.parametrize("noise_std", [0.0, 0.1])
@pytest.mark.parametrize("name", list(OPERATORS))
def test_runs_or_names_what_does(name, noise_std):
    A = OPERATORS[name]
    m = dj.Measurement(A(0.3 * jnp.ones(SHAPE)), A, noise_std, (-100.0, 100.0))
    refused = set()
    for method, (build, kernel) in METHODS.items():
        try:
            built = build(PRIOR, m)
        except ValueError as error:
            if name == "function":  # what is advised is not what it already is
                assert "use operators.from_function" not in str(error), (method, error)
            assert "use " in str(error), (method, error)
            refused.add(method)
            continue
        walk = lambda key: dj.sample(key, built, TABLE, SHAPE, kernel=kernel(SCHEDULE)).x
        assert jax.eval_shape(walk, jax.random.key(0)).shape == SHAPE, method
    assert not refused & set(ALWAYS)
    assert name != "mask" or refused == ({"ddnm"} if noise_std else {"twisted"})
    assert name != "curved function" or {"mmps", "twisted", "diffpir", "pigdm"} <= refused
    start = lambda key: M.optimise_start(key, PRIOR, m, TABLE, SHAPE, iterations=2).x
    assert jax.eval_shape(start, jax.random.key(0)).shape == SHAPE


def test_a_mere_function_is_sent_to_from_function():
    for f in (lambda x: x[::2], jax.jit(lambda x: x[::2])):
        with pytest.raises(ValueError, match=r"operators.from_function"):
            dj.Measurement(jnp.zeros((4, 8, 3)), f)
    with pytest.raises(ValueError, match="use a method that needs only A"):
        O.cg_prox(OPERATORS["curved function"])


def test_copaint_fits_complex_measurements():
    """Its objective at a given x is the squared distance in the complex plane."""
    A = OPERATORS["fourier"]
    x = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)
    method = M.CoPaint(PRIOR, dj.Measurement(A(x), A, 0.0, (-100.0, 100.0)))
    np.testing.assert_allclose(method.misfit(0 * x), np.sum(np.abs(np.asarray(A(x))) ** 2), rtol=1e-5)
    assert method.misfit(x) < 1e-8
