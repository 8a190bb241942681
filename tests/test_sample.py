"""The verb: traces, finiteness, errors, and what ``Result`` says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import MASK, SCHEDULE, SHAPE, arguments, gaussian

import diffjax as dj

TABLE = dj.timetables.log_snr(SCHEDULE, 8)
KERNEL = dj.kernels.DDIM(SCHEDULE)


def denoiser(network=gaussian, schedule=SCHEDULE):
    return dj.denoisers.from_x0(network, arguments()[0], schedule)


def test_one_trace_for_masks_images_noise_levels_tables_and_hyper_parameters():
    traces = []

    @jax.jit
    def paint(key, y, mask, noise_std, eta, table):
        traces.append(1)
        method = dj.methods.RePaint(denoiser(), dj.Measurement(y, dj.operators.Mask(mask), noise_std))
        return dj.sample(key, method, table, SHAPE, kernel=dj.kernels.DDIM(SCHEDULE, eta=eta)).x

    y = arguments()[1]
    jumping = [
        dj.timetables.repaint(SCHEDULE, jump=2, times=2, grid=grid(SCHEDULE, 8))
        for grid in (dj.timetables.log_snr, dj.timetables.uniform)
    ]
    results = [
        paint(jax.random.key(0), y, MASK, 0.0, 0.0, jumping[0]),
        paint(jax.random.key(1), y, MASK, 0.0, 0.0, jumping[0]),
        paint(jax.random.key(0), 0.5 * y, MASK, 0.0, 0.0, jumping[0]),
        paint(jax.random.key(0), y, MASK[:, ::-1].copy(), 0.0, 0.0, jumping[0]),
        paint(jax.random.key(0), y, MASK, 0.1, 0.0, jumping[0]),
        paint(jax.random.key(0), y, MASK, 0.0, 0.7, jumping[0]),
        paint(jax.random.key(0), y, MASK, 0.0, 0.0, jumping[1]),
    ]
    assert len(traces) == 1
    for other in results[1:]:
        assert np.abs(other - results[0]).max() > 1e-4


def test_traced_table_gives_the_concrete_tables_result():
    """Coefficients planned in float32 inside jit agree with those planned in float64 on the host."""
    start = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), jnp.float32)
    for kernel in (KERNEL, dj.kernels.DDPM(SCHEDULE), dj.kernels.DPMSolverPP2M(SCHEDULE), dj.kernels.Heun(SCHEDULE)):
        concrete = dj.sample(jax.random.key(0), denoiser(), TABLE, start, kernel=kernel).x
        traced = jax.jit(lambda table: dj.sample(jax.random.key(0), denoiser(), table, start, kernel=kernel).x)(TABLE)
        np.testing.assert_allclose(traced, concrete, atol=2e-5)


def test_sweep_over_a_schedule_and_gradient_into_it():
    betas = dj.schedules.linear_betas(100)
    free = dj.timetables.from_times(np.append(TABLE.t, 0.0))  # belongs to no schedule

    def final(scale):
        schedule = dj.schedules.discrete(scale * jnp.asarray(betas, jnp.float32))
        return (dj.sample(jax.random.key(0), denoiser(schedule=schedule), free, SHAPE).x ** 2).sum()

    values = jax.vmap(final)(jnp.array([0.5, 0.8, 1.0]))
    assert np.unique(np.round(values, 4)).size == 3
    gradient, h = jax.grad(final)(0.8), 1e-2
    np.testing.assert_allclose(gradient, (final(0.8 + h) - final(0.8 - h)) / (2 * h), rtol=0.02)


def test_trace_sees_every_row_and_info_where_it_went_wrong():
    def bad_below_40(params, x, i):
        x0, mix = gaussian(params, x, i)
        return jnp.where(i < 40, jnp.nan, x0), mix

    result = dj.sample(
        jax.random.key(0), denoiser(bad_below_40), TABLE, SHAPE, kernel=KERNEL, trace=lambda x, row, info: (row.s, x)
    )
    times, states = result.trace
    np.testing.assert_allclose(times, TABLE.s, rtol=1e-6)
    assert states.shape == (8, *SHAPE)
    first_bad = int(np.argmin(result.info.finite))
    assert first_bad == int(np.argmax(TABLE.t - 1 < 40)) > 0
    good = dj.sample(jax.random.key(0), denoiser(), TABLE, SHAPE, kernel=KERNEL, trace=lambda x, row, info: x)
    assert good.info.finite.all()
    np.testing.assert_array_equal(good.trace[-1], good.x)


def test_a_start_array_is_taken_as_it_is_and_variance_exploding_starts_are_scaled():
    x = jnp.full(SHAPE, 0.25)
    table = dj.timetables.from_rows([(40, 40, 40)])
    np.testing.assert_array_equal(dj.sample(jax.random.key(0), denoiser(), table, x, kernel=KERNEL).x, x)
    ve = dj.schedules.VE(0.01, 50.0)
    still = dj.timetables.from_rows([(1.0, 1.0, 1.0)])
    start = dj.sample(
        jax.random.key(0), lambda x, t: dj.Prediction(x, x, None, x, 1.0, 1.0), still, (64, 64, 1), kernel=dj.kernels.DDIM(ve)
    ).x
    np.testing.assert_allclose(start.std(), 50.0, rtol=0.05)  # 4096 draws: 4.5 standard errors


def test_conditional_guidance_runs_both_labels_in_one_call():
    def network(params, x, i, label):
        return params[0] + label * 0.1 + 0 * x

    plain = dj.denoisers.from_x0(network, arguments()[0], SCHEDULE, cond=1.0)
    guided = dj.denoisers.classifier_free(plain, 1.0, 0.0, 3.0)
    x, mean = jnp.zeros(SHAPE), arguments()[0][0]
    p = guided(x, 50.0)
    np.testing.assert_allclose(p.x0, mean + 0.3, rtol=1e-5)
    np.testing.assert_allclose(p.alpha * p.x0 + p.sigma * p.eps, x, atol=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: dj.sample(jax.random.key(0), denoiser(), TABLE, SHAPE, kernel=KERNEL, remat="rows"), "did you mean 'row'"),
        (lambda: dj.sample(None, denoiser(), TABLE, SHAPE, kernel=KERNEL), "no key"),
        (
            lambda: dj.sample(jax.random.key(0), denoiser(), dj.timetables.from_times([1000, 0]), SHAPE, kernel=KERNEL),
            "beyond the schedule's 100",
        ),
        (
            lambda: dj.sample(
                jax.random.key(0), denoiser(), dj.timetables.from_times([10, 20]), MASK, kernel=dj.kernels.DDPM(SCHEDULE)
            ),
            "DDIM",
        ),
        (lambda: dj.kernels.DDPM(SCHEDULE, variance="smal"), "did you mean 'small'"),
        (lambda: dj.methods.RePaint(denoiser(), dj.Measurement(jnp.zeros(SHAPE), dj.operators.Downsample(2))), "needs a Mask"),
        (
            lambda: dj.methods.RePaint(denoiser(), dj.Measurement(jnp.zeros(SHAPE), dj.operators.Mask(MASK)), order="papers"),
            "'paper'",
        ),
        (lambda: dj.Measurement(200 * np.ones(SHAPE), dj.operators.Mask(MASK)), "far outside"),
        (
            lambda: dj.Measurement(np.zeros(SHAPE), dj.operators.Mask(MASK), noise_std=-0.1),
            "noise_std -0.1 is out of range: give a standard deviation",
        ),
        (lambda: dj.Measurement(np.full(SHAPE, np.nan), dj.operators.Mask(MASK)), "non-finite"),
        (lambda: dj.operators.Mask(255 * MASK), "mask / 255"),
        (
            lambda: dj.sample(
                jax.random.key(0),
                dj.denoisers.from_eps(lambda x, i: x, None, SCHEDULE),
                TABLE,
                SHAPE,
                kernel=dj.kernels.DDPM(SCHEDULE, variance="learned"),
            ),
            "learned_variance=True",
        ),
        (
            lambda: dj.sample(
                jax.random.key(0),
                dj.denoisers.from_eps(lambda x, i: jnp.concatenate([x, x], -1), None, SCHEDULE),
                TABLE,
                SHAPE,
                kernel=KERNEL,
            ),
            "learned_variance=True",
        ),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "schedule",
    [SCHEDULE, dj.schedules.VP(), dj.schedules.SubVP(), dj.schedules.VE(), dj.schedules.EDM(), dj.schedules.RectifiedFlow()],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("kind", ["eps", "x0", "v", "velocity", "score"])
def test_every_parameterisation_on_every_schedule(schedule, kind):
    """The truth, turned into what the network predicts by its definition, comes back."""
    t, x0, eps = 0.4 * float(np.max(schedule.T)), np.float32(0.3), np.float32(-0.7)
    a, s = (np.float32(c(t)) for c in (schedule.alpha, schedule.sigma))
    out = {"eps": eps, "x0": x0, "v": a * eps - s * x0, "velocity": eps - x0, "score": -eps / s}[kind]
    make = getattr(dj.denoisers, f"from_{kind}")
    p = make(lambda x, i: jnp.full(x.shape, out), None, schedule)(jnp.full((1, 1, 1), a * x0 + s * eps), t)
    np.testing.assert_allclose(p.x0.item(), x0, atol=2e-5 * max(1, s / a))
    np.testing.assert_allclose(p.eps.item(), eps, atol=2e-5 * max(1, a / s))


@pytest.mark.parametrize(
    "y, mask, message",
    [
        (np.zeros((4, 4, 3)), MASK, r"y has shape \(4, 4, 3\), but Mask of an image \(4, 4, 1\) gives \(4, 4, 1\)"),
        (np.zeros(SHAPE), np.ones((4, 4, 3)), r"mask of shape \(4, 4, 3\), which does not fit an image of shape \(4, 4, 1\)"),
        (np.zeros(SHAPE), np.ones((3, 4, 1)), "Mask does not accept an image of shape"),
    ],
)
def test_measurements_of_another_shape_are_refused(y, mask, message):
    method = dj.methods.RePaint(denoiser(), dj.Measurement(y, dj.operators.Mask(mask)))
    with pytest.raises(ValueError, match=message):
        dj.sample(jax.random.key(0), method, TABLE, SHAPE, kernel=dj.kernels.DDPM(SCHEDULE))


def test_a_method_without_its_measurement_is_refused():
    with pytest.raises(ValueError, match="RePaint has no measurement"):
        dj.sample(jax.random.key(0), dj.methods.RePaint(denoiser()), TABLE, SHAPE, kernel=dj.kernels.DDPM(SCHEDULE))
