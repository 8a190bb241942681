"""Predictors, correctors, churn and the stochastic 2M: their law on Gaussian data by the published recursions; composition."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.base import pytree

K = dj.kernels
VP = dj.schedules.VP()
VARIANCE = np.array([0.01, 0.3, 1.5])
PRIOR = dj.priors.gaussian(np.zeros(3), VARIANCE)
ROWS = (40, 80)
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def grid(n, most=None):
    """n rows of log-SNR, filled up with rows that stay."""
    times = dj.timetables.log_snr(VP, n)
    times = np.append(times.t, times.s[-1])
    return dj.timetables.from_times(np.append(times, np.zeros((most or n) - n)))


@pytree
class Exponential(K.Predictor):
    """A predictor of one's own: DDIM in terms of the score."""

    def update(self, t, s):
        (a_t, s_t), (a_s, s_s) = dj.process.marginal(self.schedule, t), dj.process.marginal(self.schedule, s)
        return a_s / a_t, a_s / a_t * s_t**2 - s_t * s_s, 0 * t


@pytree
class Stay(K.Predictor):
    def update(self, t, s):
        return 1 + 0 * t, 0 * t, 0 * t


# --- the law on Gaussian data: x at the end is linear in all draws, so that their squared factors add up to its variance ---


def law(kernel):
    """Variance of the result for each number of rows, by one program."""
    denoise = PRIOR.denoiser(VP)
    with jax.enable_x64(True):
        tables = [grid(n, max(ROWS)) for n in ROWS]
        start = jnp.zeros(3)
        rows = jax.eval_shape(lambda: dj.draws(jax.random.key(0), denoise, tables[0], start, kernel=kernel).rows)
        none, unravel = jax.flatten_util.ravel_pytree((start, jax.tree.map(lambda a: jnp.zeros(a.shape), rows)))

        def end(draws, table):
            x, rows = unravel(draws)
            return dj.sample(None, denoise, table, x, kernel=kernel, recorded=dj.Draws(None, rows, None)).x

        factors = quick_jit(jax.vmap(end, (0, None)))
        return np.array([(factors(jnp.eye(none.size), table) ** 2).sum(0) for table in tables])


def levels(n):
    """(alpha_t, sigma_t, alpha_s, sigma_s, t, s) of each row, by the formulas of VP."""
    t = np.append(grid(n).t, 0.0)
    alpha = np.exp(-0.25 * t**2 * 19.9 - 0.05 * t)
    sigma = np.sqrt(-np.expm1(2 * np.log(alpha)))
    return zip(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], t[:-1], t[1:])


def forward(a_t, s_t, a_s, s_s):
    """(a, v) of q(x_t | x_s)"""
    return a_t / a_s, s_t**2 - (a_t / a_s) ** 2 * s_s**2


def euler_maruyama(n, eta=1.0):
    var = np.ones(3)
    for a_t, s_t, _, _, t, s in levels(n):
        beta, h = 0.1 + 19.9 * t, t - s
        factor = 1 + 0.5 * beta * h - 0.5 * (1 + eta**2) * beta * h / (a_t**2 * VARIANCE + s_t**2)
        var = factor**2 * var + (s > 0) * eta**2 * beta * h
    return var


def reverse_diffusion(n, eta=1.0, snr=0.0):
    """With ``snr``, after one annealed Langevin step at each time."""
    var = np.ones(3)
    for a_t, s_t, a_s, s_s, _, s in levels(n):
        a, v = forward(a_t, s_t, a_s, s_s)
        marginal = a_t**2 * VARIANCE + s_t**2
        e = 2 * a**2 * (snr * s_t) ** 2
        var = (1 - e / marginal) ** 2 * var + 2 * e
        var = (2 - a - 0.5 * (1 + eta**2) * v / marginal) ** 2 * var + (s > 0) * eta**2 * v
    return var


def sde_2m(n, eta=1.0):
    """State: (x, x0 of the row before)."""
    C, h_prev = np.zeros((3, 2, 2)), None
    C[:, 0, 0] = 1
    for a_t, s_t, a_s, s_s, _, s in levels(n):
        gain = a_t * VARIANCE / (a_t**2 * VARIANCE + s_t**2)
        h = np.log(a_s / a_t * s_t / s_s) if s > 0 else np.inf
        c = h / (2 * h_prev) if s > 0 and h_prev else 0.0
        to_x0 = a_s * (1 - np.exp(-(1 + eta**2) * h))
        step = np.zeros((3, 2, 2))
        step[:, 0, 0] = s_s / s_t * np.exp(-(eta**2) * h if s > 0 else 0) + to_x0 * (1 + c) * gain
        step[:, 0, 1] = -to_x0 * c
        step[:, 1, 0] = gain
        C = step @ C @ step.transpose(0, 2, 1)
        C[:, 0, 0] += s_s**2 * (1 - np.exp(-2 * eta**2 * h)) if s > 0 else 0
        h_prev = h
    return C[:, 0, 0]


def churned_euler(n, gamma=0.1, low=0.05, high=50.0, extra=1.1):
    var = np.ones(3)
    for a_t, s_t, a_s, s_s, _, _ in levels(n):
        ratio = s_t / a_t
        top = np.exp(0.25 * 19.9 + 0.05) * np.sqrt(-np.expm1(-0.5 * 19.9 - 0.1))  # sigma / alpha at T
        up = min((1 + gamma) * ratio, top) if low <= ratio <= high else ratio
        a_up = 1 / np.sqrt(1 + up**2)
        var = (a_up / a_t) ** 2 * var + extra**2 * ((a_up * up) ** 2 - (a_up / a_t) ** 2 * s_t**2)
        s_up = a_up * up
        gain = a_up * VARIANCE / (a_up**2 * VARIANCE + s_up**2)
        var = (a_s * gain + s_s / s_up * (1 - a_up * gain)) ** 2 * var
    return var


LAWS = {
    "euler-maruyama": (K.EulerMaruyama(), euler_maruyama),
    "reverse diffusion, dial": (K.ReverseDiffusion(eta=0.5), functools.partial(reverse_diffusion, eta=0.5)),
    "predictor-corrector": (
        K.PredictorCorrector(predictor=K.ReverseDiffusion(), corrector=K.AnnealedLangevin(snr=0.1)),
        functools.partial(reverse_diffusion, snr=0.1),
    ),
    "sde-2m": (K.SDEDPMSolverPP2M(), sde_2m),
    "sde-2m, dial": (K.SDEDPMSolverPP2M(eta=0.5), functools.partial(sde_2m, eta=0.5)),
    "churn": (K.Churn(kernel=K.Euler(), gamma=0.1, low=0.05, high=50.0, noise=1.1), churned_euler),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_law_of_a_walk_is_the_published_recursion(name):
    kernel, recursion = LAWS[name]
    for found, n in zip(law(kernel), ROWS):
        np.testing.assert_allclose(found, recursion(n), rtol=1e-9)


def test_the_recursions_come_to_the_data():
    """What the walks converge to: twice the rows halve the predictors' error, and quarter that of the stochastic 2M,
    which is a hundredth at 80. Churn converges where its climbs become as short as the rows, without the S_noise of 1.1."""
    error = lambda var: np.abs(var / VARIANCE - 1).max()
    for name, rows, order, most in (
        ("euler-maruyama", 640, 1.9, 0.01),
        ("reverse diffusion, dial", 640, 1.9, 0.05),
        ("sde-2m", 80, 3.7, 0.01),
        ("sde-2m, dial", 80, 3.7, 0.005),
    ):
        coarse, fine = (error(LAWS[name][1](n)) for n in (rows // 2, rows))
        assert coarse > order * fine and fine < most, name
    coarse, fine = (error(churned_euler(n, gamma=8 / n, extra=1.0)) for n in (320, 640))
    assert coarse > 1.9 * fine and fine < 0.02 < 0.1 < error(churned_euler(640))


def test_dials_end_at_the_deterministic_kernels():
    """eta = 0 of the stochastic 2M moves as 2M does, eta = 1 without history by q(x_s | x_t, x0): ancestral sampling."""
    table = dj.timetables.log_snr(VP, 12)
    move, of_2m = K.SDEDPMSolverPP2M(VP, eta=0.0).plan(table).move, K.DPMSolverPP2M(VP).plan(table).move
    np.testing.assert_allclose(move.c_t, of_2m.sigma_ratio, rtol=1e-12)
    np.testing.assert_allclose(move.c_0, of_2m.alpha_s * (1 - of_2m.decay), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(move.h, of_2m.h, rtol=1e-9)
    assert not move.std.any()
    move = K.SDEDPMSolverPP2M(VP).plan(table).move
    for found, expected in zip((move.c_0, move.c_t, move.std), dj.process.posterior(VP, table.t, table.s)):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    for kernel in (K.EulerMaruyama(eta=0.0), K.ReverseDiffusion(eta=0.0)):
        assert kernel.bind(VP).draw(jax.random.key(0), jnp.ones(3)) == ()


# --- correctors ---


def score_prediction(x, alpha, sigma, score):
    return dj.base.Prediction((x + sigma**2 * score) / alpha, -sigma * score, None, x, alpha, sigma)


def test_langevin_is_the_signal_to_noise_rule():
    """Song et al. 2021, algorithms 4 and 5: e = 2 a^2 (snr |z| / |score|)^2, x + e score + sqrt(2 e) z."""
    rng = np.random.default_rng(0)
    x, z, score = (jnp.asarray(rng.standard_normal((4, 4, 2))) for _ in range(3))
    alpha, sigma, share, snr = 0.8, 0.6, 0.9, 0.16
    e = 2 * share * (snr * np.linalg.norm(z) / np.linalg.norm(score)) ** 2
    k = K.predictor_corrector.Level(*(jnp.asarray(c) for c in (alpha, sigma, share)))
    got = K.Langevin(snr).update(score_prediction(x, alpha, sigma, score), x, k, z)
    np.testing.assert_allclose(got, x + e * score + np.sqrt(2 * e) * z, rtol=1e-5, atol=1e-5)
    e = 2 * share * (snr * sigma) ** 2
    got = K.AnnealedLangevin(snr).update(score_prediction(x, alpha, sigma, score), x, k, z)
    np.testing.assert_allclose(got, x + e * score + np.sqrt(2 * e) * z, rtol=1e-5, atol=1e-5)


def test_a_corrector_leaves_the_law_to_first_order_in_its_step():
    """N(0, v) becomes N(0, v + e^2 / v): seen in many dimensions, where the step of the rule by norms hardly varies."""
    v = 0.4
    x, z = (jax.random.normal(k, (200_000,)) for k in jax.random.split(jax.random.key(1)))
    x = x * v**0.5
    k = K.predictor_corrector.Level(*(jnp.float32(c) for c in (0.5, 0.3, 1.0)))
    seen = 5 * v * (2 / len(x)) ** 0.5
    for corrector, e in ((K.AnnealedLangevin(1.0), 2 * 0.3**2), (K.Langevin(0.5), 2 * 0.5**2 * v)):
        after = corrector.update(score_prediction(x, 0.5, 0.3, -x / v), x, k, z)
        assert e**2 / v > 5 * seen and abs(float(after.var()) - (v + e**2 / v)) < seen


def test_norms_averaged_over_a_batch_as_one_array_and_as_a_named_axis():
    """A named axis is that of the ``vmap`` around ``sample``."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((3, 2, 2, 1)) * np.array([0.3, 1, 4])[:, None, None, None], jnp.float32)
    table = dj.timetables.from_times([0.5, 0.4])
    alpha, sigma = VP.alpha(0.5), VP.sigma(0.5)
    k = jax.tree.map(lambda a: jnp.float32(a[0]), K.Langevin().coefficients(VP, table))
    z = jnp.asarray(rng.standard_normal(images.shape), jnp.float32)
    p = score_prediction(images, np.float32(alpha), np.float32(sigma), -images)
    together = K.Langevin(over=0).update(p, images, k, z)
    alone = jnp.stack([K.Langevin().update(jax.tree.map(lambda a, n=n: a[n] if a.ndim else a, p), images[n], k, z[n])
                       for n in range(3)])  # fmt: skip
    assert np.abs(together - alone).max() > 0.05
    prior = dj.priors.gaussian(np.zeros((2, 2, 1)), np.float32((1 - sigma**2) / alpha**2))  # of unit variance at t = 0.5
    kernel = K.PredictorCorrector(predictor=Stay(eta=0.0), corrector=K.Langevin(over="images"))

    def one(x, z):
        noise = dj.Draws(None, {"corrector": z[None, None], "predictor": ()}, None)
        return dj.sample(None, prior.denoiser(VP), table, x, kernel=kernel, recorded=noise).x

    np.testing.assert_allclose(jax.vmap(one, axis_name="images")(images, z), together, rtol=1e-4, atol=1e-5)


# --- composition ---


def test_a_predictor_of_ones_own_is_one_class_and_runs_everywhere():
    """With a corrector of two steps, under the method of colourisation."""
    table = dj.timetables.log_snr(VP, 9)
    kernel = K.PredictorCorrector(predictor=Exponential(), corrector=K.Langevin(steps=2))
    move, ddim = Exponential(VP).plan(table).move, K.DDIM(VP).plan(table).move
    per_eps = ddim.eps / VP.sigma(table.t)
    np.testing.assert_allclose(move.c_t, per_eps, rtol=1e-9)
    np.testing.assert_allclose(move.c_0, ddim.alpha_s - per_eps * VP.alpha(table.t), rtol=1e-9)
    grey = dj.operators.Grey()
    y = grey(jnp.asarray(np.random.default_rng(0).uniform(-0.5, 0.5, (4, 4, 3)), jnp.float32))
    method = dj.methods.Replacement(dj.priors.gaussian(np.zeros((4, 4, 3)), 0.3).denoiser(VP), dj.Measurement(y, grey))
    found = dj.sample(jax.random.key(0), method, table, (4, 4, 3), kernel=kernel)
    np.testing.assert_allclose(grey(found.x), y, atol=1e-5)
    assert method.calls(kernel) == 3 and kernel.updates == 2


def test_changed_values_trace_nothing_again():
    traces = []

    def network(x, i):
        traces.append(1)
        return 0.1 * x

    denoise = dj.denoisers.from_eps(network, None, VP)
    counts = []
    for n, (eta, snr) in enumerate(((1.0, 0.1), (0.5, 0.2), (0.0, 0.3))):
        kernel = K.PredictorCorrector(predictor=K.SDEDPMSolverPP2M(eta=eta), corrector=K.Langevin(snr))
        table = dj.timetables.log_snr(VP, 5, t_max=0.9 + 0.1 * (n == 0))
        dj.sample(jax.random.key(n), denoise, table, jnp.ones(3), kernel=kernel)
        counts.append(len(traces))
    assert counts[0] > 0 and counts[1:] == counts[:1] * 2


SCHEDULES = {
    "linear": dj.schedules.discrete(dj.schedules.linear_betas(1000)),
    "cosine": dj.schedules.discrete(dj.schedules.cosine_betas(1000)),
    "harmonic": dj.schedules.discrete(dj.schedules.harmonic_betas(1000)),
    "VP": VP,
    "SubVP": dj.schedules.SubVP(),
    "VE": dj.schedules.VE(),
    "EDM": dj.schedules.EDM(80),
    "flow": dj.schedules.RectifiedFlow(),
}
STOCHASTIC = [K.EulerMaruyama(), K.ReverseDiffusion(), K.DDPM(), K.SDEDPMSolverPP2M(), K.Churn(), K.PredictorCorrector()]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_schedule_plans_finite_coefficients_or_is_refused_in_one_line(schedule):
    for table in (dj.timetables.log_snr(schedule, 30), dj.timetables.uniform(schedule, 30)):
        for kernel in STOCHASTIC:
            drifts = isinstance(kernel, K.Predictor) and schedule.alpha(float(schedule.T)) == 0
            if drifts:
                with pytest.raises(ValueError, match="where alpha is 0") as error:
                    kernel.bind(schedule).plan(table)
                assert "\n" not in str(error.value)
                kernel.bind(schedule).plan(table[1:])
            else:
                assert all(np.isfinite(a).all() for a in jax.tree.leaves(kernel.bind(schedule).plan(table))), kernel


def test_a_walk_that_ends_at_eps_is_truncated_and_one_that_ends_at_0_denoised():
    """Only the row to t = 0 has no noise; there reverse diffusion gives the mean (2 - a) x + sigma^2 score."""
    for kernel in (K.EulerMaruyama(), K.ReverseDiffusion(), K.SDEDPMSolverPP2M()):
        k = kernel.bind(VP).plan(dj.timetables.log_snr(VP, 6)).move
        std = k.std * getattr(k, "noisy", 1.0)
        assert (std[:-1] > 0).all() and std[-1] == 0


class NoDerivative(dj.schedules.Schedule):
    T = 1.0
    alpha, sigma = (staticmethod(f) for f in (VP.alpha, VP.sigma))
    smooth = property()


REFUSED = {
    "steps 0": (lambda: K.Langevin(steps=0), "steps 0 is out of range"),
    "snr": (lambda: K.Langevin(snr=-0.1), "snr -0.1 is out of range"),
    "eta": (lambda: K.ReverseDiffusion(eta=-1.0), "eta -1 is out of range"),
    "gamma": (lambda: K.Churn(gamma=-0.1), "gamma -0.1 is out of range"),
    "no corrector": (lambda: K.PredictorCorrector(corrector=K.DDPM()), "DDPM is no corrector: give corrector=kernels.Lang"),
    "no predictor": (lambda: K.PredictorCorrector(predictor=K.Langevin()), "kernel is Langevin, not a kernel"),
    "churn of a stochastic kernel": (lambda: K.Churn(kernel=K.DDPM()), "DDPM has noise of its own"),
    "churn of a multistep kernel": (lambda: K.Churn(kernel=K.DPMSolverPP2M()), "DPMSolverPP2M goes by the rows before"),
    "guided": (lambda: K.guided(K.PredictorCorrector(), lambda x, t: x), "PredictorCorrector has no Gaussian transition"),
    "schedule": (lambda: K.EulerMaruyama(NoDerivative()).plan(grid(4)), "needs the derivatives of NoDerivative"),
    "upwards": (
        lambda: K.ReverseDiffusion(VP).plan(dj.timetables.from_times([0.1, 0.5])),
        "ReverseDiffusion cannot move up in time",
    ),
    "churn and DPS": (
        lambda: dj.sample(
            jax.random.key(0),
            dj.methods.DPS(
                dj.denoisers.from_eps(lambda x, i: x, None, VP),
                dj.Measurement(jnp.zeros((2, 2, 1)), dj.operators.Mask(jnp.ones((2, 2, 1)))),
            ),
            grid(4),
            (2, 2, 1),
            kernel=K.Churn(),
        ),
        "Churn climbs before it predicts",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name):
    make, words = REFUSED[name]
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
