"""The probability flow of exact priors: latents, adaptive steps, log-densities and their stated errors, in 8 dimensions."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimised import LEVEL_1

import diffjax as dj
from diffjax.adaptive import Adaptive
from diffjax.base import pytree
from diffjax.likelihood import flow

D = 8
RNG = np.random.default_rng(0)
MODES = dj.priors.mixture(np.ones(25) / 25, RNG.uniform(-1, 1, (25, D)), np.full((25, D), 0.1))
GAUSSIAN = dj.priors.gaussian(RNG.uniform(-0.5, 0.5, D), np.geomspace(0.01, 1, D))
SAME = dj.priors.mixture(
    np.ones(25) / 25, *(np.repeat(a, 25, 0) for a in (GAUSSIAN.means, GAUSSIAN.eigenvalues))
)  # in MODES' program
SCHEDULES = {
    "VE": dj.schedules.VE(),
    "VP": dj.schedules.VP(),
    "EDM": dj.schedules.EDM(80),
    "cosine": dj.schedules.discrete(dj.schedules.cosine_betas(1000)),
}


def images(prior, schedule, eps, n, seed=1):
    """n draws of the marginal at eps, and their exact log-density there."""
    rng = np.random.default_rng(seed)
    a, s = (float(c) for c in dj.process.marginal(schedule, eps))
    k = rng.integers(len(prior.weights), size=n)
    x = a * (prior.centres[k] + np.sqrt(prior.eigenvalues[k]) * rng.standard_normal((n, D))) + s * rng.standard_normal((n, D))
    return x, np.asarray(jax.jit(jax.vmap(lambda x: prior.log_density(x, a, s)))(x))


def batch(walk, options=None, **settings):
    """(denoise, images, key) -> their log-densities: one program for all denoisers of a kind"""
    one = lambda denoise, x, key: flow.log_prob(denoise, walk, x, key=key, **settings)
    many = jax.jit(jax.vmap(one, (None, 0, 0)), compiler_options=options)
    return lambda denoise, x, key=0: many(denoise, x, jax.random.split(jax.random.key(key), len(x)))


@pytest.mark.parametrize("name", SCHEDULES)
def test_density_and_its_error(name):
    """1e-3 nats, and the stated error covers the truth, the marginal's density at eps, for 95 % of 200 images."""
    schedule = SCHEDULES[name]
    walk = dj.timetables.log_snr(schedule, 33)
    many = batch(walk, LEVEL_1)  # these run for longer than they take to compile
    with jax.enable_x64(True):
        for prior in (SAME, MODES) if name in ("VP", "VE") else (MODES,):
            x, truth = images(prior, schedule, walk.t[-1], 200)
            found = many(prior.denoiser(schedule), x)
            error = np.abs(found.nats - truth)
            assert error.max() < 1e-3, error.max()
            assert (error <= found.error).mean() >= 0.95
            assert np.median(found.error) < 0.02 and found.calls[0] == 12 * 32 + 1
        if name == "VP":
            alone = jax.jit(lambda x: flow.log_prob(prior.denoiser(schedule), walk, x).nats)(x[7])
            assert abs(alone - found.nats[7]) < 1e-6


def gaussian_flow(schedule, eps):
    """(mean, deviation) of GAUSSIAN at eps and at T: its flow keeps (x - mean) / deviation."""
    levels = [dj.process.marginal(schedule, t) for t in (eps, float(schedule.T))]
    mean, variance = GAUSSIAN.centres[0], GAUSSIAN.eigenvalues[0]
    return [(a * mean, np.sqrt(a**2 * variance + s**2)) for a, s in levels]


def test_normal_end_bits_and_one_probe_in_float32():
    """A model that starts from N(0, sigma_T^2) has another density than the data, in closed form. Pixels are independent, so
    that signs are exact probes; but one alone knows no error."""
    schedule = dj.schedules.SubVP()
    walk = dj.timetables.log_snr(schedule, 17)
    with jax.enable_x64(True):
        x, truth = images(GAUSSIAN, schedule, walk.t[-1], 50)
    (mean, deviation), (mean_T, deviation_T) = gaussian_flow(schedule, walk.t[-1])
    x_T = mean_T + deviation_T / deviation * (x - mean)
    std = float(schedule.sigma(1.0))
    exact = (np.log(deviation_T / deviation / std) - 0.5 * np.log(2 * np.pi) - 0.5 * (x_T / std) ** 2).sum(1)
    assert np.abs(exact - truth).max() > 5e-3
    many = batch(walk, end="normal", data_range=(-8, 8), probes=1)
    found = many(GAUSSIAN.denoiser(schedule), jnp.asarray(x, jnp.float32))
    error = np.abs(found.nats - exact)
    assert found.nats.dtype == jnp.float32 and error.max() < 1e-3 and (error <= found.solver_error).mean() >= 0.95
    assert np.isinf(found.error).all() and (found.products == found.calls).all()
    np.testing.assert_allclose(found.latent, x_T, atol=1e-3)  # of 34 steps, not extrapolated
    np.testing.assert_allclose(found.bits, -exact / (D * np.log(2)) - np.log2(16 / 256), atol=1e-4)


def test_probes():
    """Unbiased over the images; the error covers the truth."""
    schedule = SCHEDULES["VP"]
    walk, denoise = dj.timetables.log_snr(schedule, 17), GAUSSIAN.denoiser(schedule)
    with jax.enable_x64(True):
        x, truth = images(GAUSSIAN, schedule, walk.t[-1], 200)
        found = batch(walk, probes=8, kind="gaussian")(denoise, x, 4)
    error = np.asarray(found.nats - truth)
    assert 0.9 <= (np.abs(error) <= found.error).mean() < 1 and (np.abs(error) <= found.probe_error).mean() < 0.8
    assert abs(error.mean()) < 3 * error.std() / np.sqrt(len(x)) and found.products[0] == 8 * found.calls[0]


def test_the_gradient_is_the_score():
    schedule = SCHEDULES["VP"]
    walk, denoise = dj.timetables.log_snr(schedule, 33), GAUSSIAN.denoiser(schedule)
    with jax.enable_x64(True):
        x, _ = images(GAUSSIAN, schedule, walk.t[-1], 1)
        gradient = jax.jit(jax.grad(lambda x: flow.log_prob(denoise, walk, x).nats))(x[0])
        score = GAUSSIAN.score(x[0], *dj.process.marginal(schedule, walk.t[-1]))
    np.testing.assert_allclose(gradient, score, rtol=1e-3, atol=1e-3)


def test_adaptive_density():
    schedule, how = SCHEDULES["VP"], Adaptive(1e-6, 1e-6)
    with jax.enable_x64(True):
        x, truth = images(MODES, schedule, dj.flow.lowest(schedule), 20)
        run = jax.jit(jax.vmap(lambda x: flow.log_prob(MODES.denoiser(schedule), how, x)))
        found, again = run(x), run(np.concatenate([x[:1], x[:0:-1]]))
    error = np.abs(found.nats - truth)
    assert error.max() < 1e-3 and (error <= found.error).all() and found.reached.all()
    assert len(set(np.asarray(found.calls).tolist())) > 1  # each image its own steps
    np.testing.assert_allclose(again.nats[0], found.nats[0], atol=1e-6)


def test_latents_round_trip_and_gradient():
    """x_T and back; by the closed form, and so is the derivative through the adaptive steps."""
    schedule, how = SCHEDULES["EDM"], Adaptive(1e-7, 1e-7, eps=0.01)
    denoise = GAUSSIAN.denoiser(schedule)
    (mean, deviation), (mean_T, deviation_T) = gaussian_flow(schedule, 0.01)
    with jax.enable_x64(True):
        x, _ = images(GAUSSIAN, schedule, 0.01, 1)
        found = dj.flow.encode(denoise, x[0], how)
        slope = jax.jit(jax.grad(lambda z: dj.flow.decode(denoise, z, how).x.sum()))(found.x)
    np.testing.assert_allclose(found.x, mean_T + deviation_T / deviation * (x[0] - mean), rtol=1e-5)
    assert found.round_trip < 1e-6 and found.reached and found.calls == 6 * found.steps + 6
    np.testing.assert_allclose(slope, deviation / deviation_T, rtol=1e-4)


def test_slerp_keeps_the_norm():
    slerp = jax.jit(dj.flow.slerp)
    a, b = np.array([3.0, 0.0], np.float32), np.array([0.0, 3.0], np.float32)
    np.testing.assert_allclose(slerp(a, b, 1 / 3), 3 * np.array([np.cos(np.pi / 6), 0.5]), rtol=1e-6)
    np.testing.assert_allclose(slerp(a, 2 * a, 0.25), 1.25 * a, rtol=1e-6)
    assert np.isfinite(jax.jit(jax.grad(lambda a, b: dj.flow.slerp(a, b, 0.5).sum()))(a, a)).all()


def test_dequantised_levels():
    image = np.arange(256).reshape(16, 16) / 127.5 - 1
    x = flow.dequantise(jax.random.key(0), image.astype(np.float32))
    k = (x + 1) * 128
    assert (np.abs(k - np.arange(256).reshape(16, 16) - 0.5) <= 0.5 + 1e-4).all() and np.std(k - np.floor(k)) > 0.2
    assert flow.bits_per_dimension(0.0, 1) == 7 and flow.bits_per_dimension(0.0, 1, (0, 1)) == 8


@pytree
class NoDerivative(dj.schedules.VP):
    smooth = None


@pytree
class NoInverse(dj.schedules.VP):
    time = None


X = np.zeros(D, np.float32)
VP = SCHEDULES["VP"]
WALK = dj.timetables.log_snr(VP, 2)
with_schedule = lambda schedule, f=lambda x, i: x: dj.denoisers.from_eps(f, None, schedule)
DENOISE = with_schedule(VP)
LOG = functools.partial(flow.log_prob, DENOISE, WALK)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: flow.log_prob(lambda x, t: x, WALK, X), "Plain has no schedule, whose flow"),
        (lambda: flow.log_prob(with_schedule(NoInverse()), WALK, X), r"NoInverse has no time\("),
        (lambda: dj.flow.solve(with_schedule(NoDerivative()), X, 0.1, 1, Adaptive(by="t")), r"no smooth\(t\), .*by='nu'"),
        (lambda: flow.log_prob(DENOISE, 50, X), "the walk is int, not a Timetable or flow"),
        (lambda: flow.log_prob(DENOISE, dj.timetables.from_times([0.1, 0.5]), X), "straight down, but this walk of 1 rows"),
        (lambda: flow.log_prob(DENOISE, dj.timetables.from_times([0.5, 0.0]), X), "straight down, but this walk of 1 rows"),
        (lambda: LOG(X, probes=0), "probes 0 is out of range"),
        (lambda: LOG(X, probes=2), "2 probes without a key"),
        (lambda: LOG(X, probes=np.ones((2, 3))), r"probes of shape \(2, 3\) do not fit"),
        (lambda: LOG(X, kind="rademacker"), "unknown kind 'rademacker'.*did you mean 'rademacher'"),
        (lambda: LOG(X, end="normed"), "unknown end 'normed'.*did you mean 'normal'"),
        (lambda: LOG(X + 255, data_range=(-1, 1)), r"a pixel 255 .*: give the data's own data_range, not \(-1, 1\)"),
        (lambda: LOG(X, data_range=(1, -1)), "data_range .* is empty"),
        (lambda: flow.dequantise(None, X + 0.1234), "0.1234 is none of 256 levels from -1 to 1"),
        (lambda: flow.log_prob(with_schedule(VP, lambda x, i: x / 0), WALK, X), "log p is nan: the denoiser or its"),
        (lambda: dj.flow.solve(DENOISE, X, 0.0, 1.0), "the flow's start 0 is out of range"),
        (lambda: dj.flow.solve(DENOISE, X, 0.1, 2.0), "the flow's end 2 is out of range"),
        (lambda: dj.flow.encode(DENOISE, X + 1, Adaptive(1e-6, 1e-6, max_steps=2)), "rtol 1e-06, .* not reached in 2 steps"),
        (lambda: Adaptive(rtol=-1), "rtol -1 is out of range"),
        (lambda: Adaptive(by="x"), "the variable 'x' of the flow is none"),
        (lambda: dj.kernels.UniPC(order=4), "order 4 of UniPC is none of 2 and 3"),
    ],
)  # fmt: skip
def test_errors_name_value_and_remedy(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_without_diffrax(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ValueError, match=r"not installed: pip install diffjax\[ode\]"):
        dj.flow.decode(DENOISE, X)
