"""DDRM and DDNM: what they refuse, and that neither the choice of singular vectors nor std = 0 matters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quirks_spectral import Stored

import diffjax as dj
from diffjax.operators import Downsample, Mask, from_function

SHAPE = (4, 4, 1)
VP = dj.schedules.discrete(dj.schedules.linear_betas(100))
TABLE = dj.timetables.log_snr(VP, 6)
PRIOR = dj.priors.gaussian(np.zeros(SHAPE), np.linspace(0.1, 0.5, 16).reshape(SHAPE)).denoiser(VP)
Y = jnp.asarray(np.random.default_rng(0).uniform(-0.5, 0.5, (2, 2, 1)), jnp.float32)
M = dj.methods


def test_singular_vectors_do_not_matter():
    dense = np.asarray(jax.vmap(Downsample(2))(jnp.eye(16).reshape(16, *SHAPE))).reshape(16, 4).T
    U, s, Vt = np.linalg.svd(dense)
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))[0]
    Vt[4:] = rotation @ Vt[4:]
    other = Stored(Vt.T, U, np.pad(s, (0, 12)), SHAPE)

    def run(A, y):
        method = M.DDRM(PRIOR, dj.Measurement(y, A, 0.3))
        return dj.sample(jax.random.key(0), method, TABLE, SHAPE, kernel=dj.kernels.Marginal(VP)).x

    np.testing.assert_allclose(run(other, Y.reshape(-1)), run(Downsample(2), Y), atol=1e-5)


@pytest.mark.parametrize("method", [M.DDRM, M.DDNMPlus, lambda d, m: M.DDNMPlus(d, m, form="simplified")])
def test_gradients_are_finite_without_noise(method):
    def end(std, y):
        walk = method(PRIOR, dj.Measurement(y, Downsample(2), std))
        return dj.sample(jax.random.key(0), walk, TABLE, SHAPE, kernel=dj.kernels.Marginal(VP)).x.sum()

    value, gradients = jax.jit(jax.value_and_grad(end, (0, 1)))(jnp.zeros(()), Y)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


def test_noiseless_simplified_is_ddnm_by_ddim():
    def run(method, kernel):
        return dj.sample(jax.random.key(0), method, TABLE, SHAPE, kernel=kernel).x

    measured = dj.Measurement(Y, Downsample(2))
    plus = run(M.DDNMPlus(PRIOR, measured, form="simplified"), dj.kernels.Marginal(VP))
    np.testing.assert_allclose(plus, run(M.DDNM(PRIOR, measured), dj.kernels.DDIM(VP, zeta=0.85**2)), atol=1e-5)


def test_refusals_name_the_remedy():
    known = dj.Measurement(Y, Downsample(2), 0.1)
    bare = dj.Measurement(Y, from_function(lambda x: x, SHAPE))
    for make, said in (
        (lambda: M.DDRM(PRIOR, bare), "DDRM works on singular values, but FromFunction has no svd"),
        (lambda: M.DDNMPlus(PRIOR, bare), "no svd"),
        (lambda: M.DDNM(PRIOR, bare), "DDNM needs A.pinv, which FromFunction lacks: use"),
        (lambda: M.DDNMPlus(PRIOR, bare, form="simplified"), "needs A.pinv"),
        (lambda: M.DDNM(PRIOR, known), "noise_std 0.1 .*use DDNMPlus"),
        (lambda: M.DDNMPlus(PRIOR, known, form="svd+"), "did you mean 'svd'"),
        (lambda: M.DDNM(PRIOR, dj.Measurement(Y, Mask(np.ones((2, 2, 1)))), travel="y"), "unknown travel 'y'"),
        (lambda: M.DDRM(PRIOR, known, eta=1.5), "eta 1.5 is out of range"),
        (lambda: M.DDRM(PRIOR, known).check(dj.kernels.DDIM(VP), TABLE), "use kernels.Marginal"),
        (lambda: M.DDNMPlus(PRIOR, known).check(dj.kernels.DDPM(VP), TABLE), "use kernels.Marginal"),
    ):
        with pytest.raises(ValueError, match=said):
            make()


def test_published_tables():
    schedule = dj.schedules.discrete(dj.schedules.linear_betas(1000))
    calls = {name: len(dj.timetables.published(name, schedule)) for name in ("ddrm", "ddnm", "ddnm-travel")}
    assert calls == {"ddrm": 20, "ddnm": 100, "ddnm-travel": 280}  # as counted in the official runs
    assert dj.timetables.published("ddrm", schedule).t[0] == 951
