"""guided-diffusion's own numbers: schedules, one step of every parameterisation, losses, bounds, whole sampling loops.

Everything is read from the files: parameters from their metadata, cases from their field names.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gd_closed_form import (
    FLOAT32,
    FLOAT64,
    SCHEDULES,
    VARIANCES,
    channels_last,
    in_dtype,
    levels,
    quick_jit,
    rebuild,
)
from gd_rounding import gradient_rounding, rounding
from golden_files import check, load
from official_quirks import clipped_mean

import diffjax as dj
from diffjax.base import expand
from diffjax.denoisers import clipped
from diffjax.kernels import DDPM
from diffjax.likelihood import variational
from diffjax.training import losses, resamplers


def rows_at(kernel, index, dtype):
    """The planned rows t -> t - 1 at official indices (a leading axis); computed on the host, like everything else here
    that depends on concrete times."""
    table = dj.timetables.from_times(np.arange(kernel.schedule.T, -1, -1))
    rows = variational.rows(kernel, table, dtype)
    return jax.tree.map(lambda a: a[kernel.schedule.T - 1 - np.asarray(index)], rows)


# --- schedules and respacing ----------------------------------------------------------------------------------------


def derived(schedule):
    """guided-diffusion's tables of a process, by its names, from ours."""
    t = np.arange(1, schedule.T + 1)
    c_0, c_t, std = dj.process.posterior(schedule, t, t - 1)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    kernel = DDPM(schedule)
    log_small = kernel.coefficients(dj.timetables.from_times(np.append(t[::-1], 0))).small[::-1]
    return {
        "alphas_cumprod": alpha**2,
        "alphas_cumprod_prev": schedule.alpha(t - 1) ** 2,
        "posterior_variance": std**2,
        "alphas_cumprod_next": np.append(schedule.alpha(t[1:]) ** 2, 0),
        "posterior_log_variance_clipped": log_small,
        "posterior_mean_coef1": c_0,
        "posterior_mean_coef2": c_t,
        "sqrt_recip_alphas_cumprod": 1 / alpha,
        "sqrt_recipm1_alphas_cumprod": sigma / alpha,
        "log_one_minus_alphas_cumprod": 2 * np.log(sigma),
    }


def check_entries(name, got, expected):
    """Every entry by itself: tables span many decades. Logarithms by their largest."""
    if "log" in name:
        return check(name, got, expected, FLOAT64)
    expected = np.asarray(expected)
    got, zero = np.asarray(got), expected == 0
    np.testing.assert_array_equal(got[zero], 0, err_msg=name)
    check(name, got[~zero] / expected[~zero], np.ones(expected[~zero].shape), FLOAT64)


@pytest.mark.golden("ddpm", "gd_schedules")
def test_schedules(golden_file):
    run, meta = load(golden_file)
    unused = set(run)
    for name in sorted(run):
        kind, _, rest = name.partition("_")
        label = f"{golden_file.stem} {name}"
        if kind == "betas":
            sched, T = rest.split("_")
            if run[name].max() >= 1:  # the official code fails too, when a process is made of them
                with pytest.raises(ValueError, match="not below 1"):
                    SCHEDULES[sched](int(T))
            else:
                check_entries(label, SCHEDULES[sched](int(T)), run[name])
        elif kind in SCHEDULES:
            T, _, table = rest.partition("_")
            check_entries(label, derived(dj.schedules.discrete(SCHEDULES[kind](int(T))))[table], run[name])
        elif kind == "respaced":
            what, sched, T, spec = rest.split("_")
            schedule = dj.schedules.discrete(SCHEDULES[sched](int(T)))
            kept = dj.timetables.space(int(T), spec.replace("-", ","))
            table = dj.timetables.respaced(schedule, spec.replace("-", ","))
            got = {
                "map": kept,
                "betas": dj.process.transition(schedule, table.t, table.s)[1][::-1] ** 2,
                "logvar": DDPM(schedule).coefficients(table).small[::-1],
            }[what]
            check_entries(label, got, run[name])
        else:
            assert kind == "ho", name
            T, low, high = len(run[name]), run["ho_linear"][0], run["ho_linear"][-1]
            got = {
                "quad": lambda: dj.schedules.scaled_linear_betas(T, low, high),
                "jsd": lambda: dj.schedules.harmonic_betas(T),
                "linear": lambda: dj.schedules.linear_betas(T, low, high, rescale=False),
                "const": lambda: dj.schedules.warmup_betas(T, 0.0, low, high),
            }
            fraction = float(rest.removeprefix("warmup") if rest not in got else 0) / 100
            check_entries(label, got.get(rest, lambda: dj.schedules.warmup_betas(T, fraction, low, high))(), run[name])
        unused.remove(name)
    for case in meta.get("space_timesteps", []):
        np.testing.assert_array_equal(dj.timetables.space(case["T"], case["spec"]), case["steps"], err_msg=str(case["spec"]))
    assert not unused


# --- one step: q and every mean and variance type -------------------------------------------------------------------


@pytest.mark.golden("ddpm", "gd_pmv_")
def test_mean_and_variance(golden_file):
    run, meta = load(golden_file)
    cases = {}
    for name in (n for n in run if n.startswith("pmv/")):
        _, case, field = name.split("/")
        mean, *rest = case.split("__")
        variance, clip = rest if len(rest) == 2 else ("FIXED_SMALL", rest[0])
        cases.setdefault((mean, variance, clip), {})[field] = run[name]
    assert cases

    t = run["t"] + 1
    for dtype, tolerance in ((jnp.float64, FLOAT64), (jnp.float32, FLOAT32)):
        with jax.enable_x64(dtype is jnp.float64):
            x_0, noise = in_dtype((channels_last(run["x0"]), channels_last(run["noise"])), dtype)
            schedule = dj.schedules.discrete(SCHEDULES[meta["sched"]](meta["T"]))
            full = lambda c: np.broadcast_to(np.asarray(c).reshape(-1, 1, 1, 1), x_0.shape)
            alpha, sigma = dj.process.marginal(schedule, t)
            _, _, std = dj.process.posterior(schedule, t, t - 1)
            c = rows_at(DDPM(schedule), run["t"], dtype).k.move
            got = {
                "x_t": dj.process.q_sample(schedule, x_0, t, noise),
                "q_mean": expand(alpha, x_0) * x_0,
                "q_variance": full(sigma**2),
                "q_log_variance": full(2 * np.log(sigma)),
                "qpost_variance": full(std**2),
                "qpost_mean": expand(c.c_0, x_0) * x_0 + expand(c.c_t, x_0) * channels_last(run["x_t"]).astype(dtype),
                "qpost_log_variance": full(c.small),
            }
            for name, value in got.items():
                check(f"{golden_file.stem} {name} {dtype.__name__}", value, channels_last(run[name]), tolerance)

            x_t = jnp.asarray(channels_last(run["x_t"]), dtype)
            for (mean, variance, clip), fields in cases.items():
                step = one_step(run, meta, mean, variance, clip, x_t, t)
                for field, expected in fields.items():
                    if field == "pred_xstart" and dtype is jnp.float32:
                        continue  # x0 = (x - sigma eps) / alpha magnifies rounding by 1 / alpha, 2e4 and more
                    check(
                        f"{golden_file.stem} {mean} {variance} {clip} {field} {dtype.__name__}",
                        step[field],
                        channels_last(expected),
                        tolerance,
                    )


def one_step(run, meta, mean, variance, clip, x_t, t):
    """{field: array} of a batch at concrete times t."""
    schedule, denoise, *_ = rebuild(run, meta, mean, variance, x_t.dtype, batch=True)
    kernel = DDPM(schedule, variance=VARIANCES[variance])

    def denoised_fn(x, t):
        p = denoise(x, t)
        return p.with_x0(1.3 * p.x0 - 0.05)

    if clip == "denoised_fn":
        reported, moved = clipped(denoised_fn), denoise if mean == "PREVIOUS_X" else clipped(denoised_fn)
    elif clip == "clip1":
        reported, moved = clipped(denoise), clipped_mean(denoise, mean)
    else:
        reported = moved = denoise
    row = rows_at(kernel, t - 1, x_t.dtype)
    p = moved(x_t, t)
    step_mean, std = kernel.transition(p, x_t, row)
    full = lambda a: np.broadcast_to(a, x_t.shape)
    return {
        "mean": step_mean,
        "pred_xstart": reported(x_t, t).x0,
        "variance": full(std**2),
        "log_variance": full(kernel.log_variance(p, x_t, row)),
    }


# --- losses ---------------------------------------------------------------------------------------------------------


@functools.cache
def bound_terms(variance):
    """(predictions, x_0, rows) of a batch -> vb, its gradient to the predicted (x0, mix), and how far the recorded ones may be
    off."""
    kernel = DDPM(None, variance=VARIANCES[variance])

    def one(p, x_0, row):
        term = lambda x0, mix: variational.term(kernel, dj.replace(p, x0=x0, mix=mix), x_0, row, cdf="tanh")
        off = rounding(kernel, p, x_0, row), gradient_rounding(kernel, p, x_0, row)
        return *jax.value_and_grad(term, (0, 1))(p.x0, p.mix), off

    return quick_jit(jax.vmap(one))


def official_terms(mean, variance, schedule, x_0, t, noise, output, rescaled):
    """{mse, vb, held: (values, gradients to the output, the recorded gradients' rounding)} of a batch, and the rounding of vb.
    "held" is the vb of official MSE losses: the mean is held fixed, so that its gradient reaches the variance only."""
    x_t = dj.process.q_sample(schedule, x_0, t, noise)
    row = rows_at(DDPM(schedule, variance=VARIANCES[variance]), t - 1, x_0.dtype)
    C, c = x_0.shape[-1], row.k.move
    build = {"EPSILON": dj.denoisers.from_eps, "START_X": dj.denoisers.from_x0, "PREVIOUS_X": dj.denoisers.from_previous}[mean]
    time = (lambda t: (t - 1) * (1000 / schedule.T)) if rescaled else None
    learned = variance.startswith("LEARNED")
    predict = lambda out: build(lambda x, i: out, None, schedule, learned_variance=learned, time=time)(x_t, t)
    target = {"EPSILON": noise, "START_X": x_0, "PREVIOUS_X": expand(c.c_0, x_t) * x_0 + expand(c.c_t, x_t) * x_t}[mean]
    mse, pull_mse = jax.vjp(lambda out: jnp.mean((out[..., :C] - target) ** 2, (1, 2, 3)), output)
    (x0, mix), pull = jax.vjp(lambda out: ((p := predict(out)).x0, p.mix), output)
    vb, (to_x0, to_mix), (slack, off) = bound_terms(variance)(dj.replace(predict(output), x0=x0, mix=mix), x_0, row)
    none = jnp.zeros_like(to_x0)
    return {
        "mse": (mse, pull_mse(jnp.ones_like(mse))[0], 0.0),
        "vb": (vb, pull((to_x0, to_mix))[0], jnp.abs(pull(off)[0])),
        "held": (vb, pull((none, to_mix))[0], jnp.abs(pull((none, off[1]))[0])),
    }, slack


def check_bits(label, got, expected, dtype, slack=0.0):
    """float64: 1e-9 of the largest (of 1e-6 bits at least), beyond the recorded run's own rounding. float32: 1e-3 bits; of
    terms above one bit 1e-3 of the term, as they reach thousands of bits where alpha is tiny."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if dtype is jnp.float64:
        got = np.where(np.abs(got - expected) <= slack, expected, got)
        size, tolerance = max(np.abs(expected).max(), 1e-6), FLOAT64
    else:
        size, tolerance = np.maximum(np.abs(expected), 1), 1e-3
    check(label, got / size, expected / size, tolerance, absolute=True)


def check_gradient(label, got, expected, off):
    """2e-6 of the largest, as they are recorded in float32, beyond the rounding ``off`` of the recorded arithmetic."""
    got = np.where(np.abs(got - expected) <= off, expected, got)
    check(label, got, expected, 2e-6)


@pytest.mark.golden("ddpm", "gd_losses_")
def test_losses(golden_file):
    """Every loss is a sum of the terms above: MSE + vb (held mean), times T / 1000 if rescaled; or vb, times T if rescaled."""
    run, meta = load(golden_file)
    schedule = dj.schedules.discrete(SCHEDULES[meta["sched"]](meta["T"]))
    T, C = schedule.T, run["x0"].shape[1]
    names = sorted({name.split("/")[1] for name in run if name.startswith("loss/")})
    cases = sorted({tuple(name.split("__")[1:]) for name in names})
    assert names

    for dtype in (jnp.float64, jnp.float32):
        got = {}
        with jax.enable_x64(dtype is jnp.float64):
            x_0, noise, output = in_dtype([channels_last(run[n]) for n in ("x0", "noise", "model_out")], dtype)
            for mean, variance, *rescaled in cases:
                given = output if variance.startswith("LEARNED") else output[..., :C]
                got[mean, variance, *rescaled] = official_terms(
                    mean, variance, schedule, x_0, run["t"] + 1, noise, given, rescaled
                )
        for name in names:
            kind, *case = name.split("__")
            label = f"{golden_file.stem} {name} {dtype.__name__}"
            terms, slack = jax.tree.map(np.asarray, got[tuple(case)])
            learned = case[1].startswith("LEARNED")
            factor = {"RESCALED_MSE": T / 1000, "RESCALED_KL": T}.get(kind, 1.0)
            weights = {"vb": factor} if kind.endswith("KL") else {"mse": 1.0, "held": factor * learned}
            recorded = {field: run[f"loss/{name}/{field}"] for field in ("loss", "mse", "vb") if f"loss/{name}/{field}" in run}
            mine = {
                "loss": sum(w * terms[k][0] for k, w in weights.items()),
                "mse": terms["mse"][0],
                "vb": factor * terms["held"][0],
            }
            assert ("vb" in recorded) == (learned and not kind.endswith("KL"))
            for field, expected in recorded.items():
                unit = factor if kind.endswith("KL") else 1.0  # judge RESCALED_KL in bits
                check_bits(f"{label} {field}", mine[field] / unit, expected / unit, dtype, max(factor, 1) * slack)
            if f"grad/{name}" in run and dtype is jnp.float64:
                grad, off = (sum(w * terms[k][n] for k, w in weights.items()) for n in (1, 2))
                check_gradient(f"{label} gradient", grad, channels_last(run[f"grad/{name}"]), off)


@pytest.mark.golden("ddpm", "gd_losses_")
def test_hybrid_loss_of_training(golden_file):
    """The loss that ``training`` offers is the official one for eps with a learned share of the log-variance."""
    run, meta = load(golden_file)
    schedule = dj.schedules.discrete(SCHEDULES[meta["sched"]](meta["T"]))
    for kind, weight in (("MSE", 1.0), ("RESCALED_MSE", meta["T"] / 1000)):
        name = f"{kind}__EPSILON__LEARNED_RANGE"
        if f"loss/{name}/loss" not in run:
            continue
        with jax.enable_x64(True):
            x_0, noise, output = in_dtype([channels_last(run[n]) for n in ("x0", "noise", "model_out")], jnp.float64)

            def one(x_0, t, noise, out, weight=weight):
                return losses.hybrid_loss(lambda x, i: out, schedule, x_0, t, noise, vb_weight=weight, cdf="tanh")

            t = run["t"] + 1
            loss, grad = quick_jit(jax.vmap(jax.value_and_grad(one, argnums=3, has_aux=True)))(
                x_0, jnp.asarray(t), noise, output
            )
            terms, _ = official_terms("EPSILON", "LEARNED_RANGE", schedule, x_0, t, noise, output, False)
            check_bits(f"{golden_file.stem} hybrid_loss {kind}", loss[0], run[f"loss/{name}/loss"], jnp.float64)
            expected = channels_last(run[f"grad/{name}"])
            check_gradient(f"{golden_file.stem} hybrid_loss {kind} gradient", grad, expected, weight * terms["held"][2])


@pytest.mark.golden("ddpm", "gd_losses_")
def test_primitives(golden_file):
    """Kullback-Leibler divergence and the likelihood of 8-bit pixels."""
    run, _ = load(golden_file)
    if "kl_in" in run:
        check(f"{golden_file.stem} kl", dj.process.kl_gaussian(*run["kl_in"]), run["kl_out"], FLOAT64)
    if "dgl_out" in run:
        for dtype in (jnp.float64, jnp.float32):
            with jax.enable_x64(dtype is jnp.float64):
                x, mean, log_std = in_dtype((run["dgl_x"], run["dgl_mean"], run["dgl_logscale"]), dtype)
                got = np.asarray(variational.discretised_log_likelihood(x, mean, log_std, "tanh"))
            if dtype is jnp.float64:  # the recorded difference of cdfs has an error of 2^-52
                got = np.where(np.abs(got - run["dgl_out"]) <= 2.0**-52 * np.exp(-run["dgl_out"]), run["dgl_out"], got)
            check(
                f"{golden_file.stem} decoder {dtype.__name__}",
                got,
                run["dgl_out"],
                FLOAT64 if dtype is jnp.float64 else FLOAT32,
            )


@pytest.mark.golden("ddpm", "gd_resampler")
def test_resampler(golden_file):
    run, meta = load(golden_file)
    with jax.enable_x64(True):
        empty = resamplers.loss_second_moment(meta["T"], meta["history_per_term"], meta["uniform_prob"], jnp.float64)
        check(
            f"{golden_file.stem} before", empty.probabilities(), run["weights_before"] / run["weights_before"].sum(), FLOAT64
        )
        seen = quick_jit(lambda s, t, loss: s.update(t, loss))(empty, run["ts"] + 1, run["losses"])
        check(f"{golden_file.stem} weights", seen.probabilities(), run["weights"] / run["weights"].sum(), FLOAT64)
        check(f"{golden_file.stem} importance", seen.weights(run["indices"] + 1), run["importance"], 1e-6)


# --- bits per dimension ---------------------------------------------------------------------------------------------


@pytest.mark.golden("ddpm", "gd_bpd_")
def test_bits_per_dimension(golden_file):
    run, meta = load(golden_file)
    for dtype in (jnp.float64, jnp.float32):
        with jax.enable_x64(dtype is jnp.float64):
            schedule, denoise, *_ = rebuild(run, meta, meta["mean"], meta["var"], dtype)
            denoise = clipped(denoise) if meta["clip_denoised"] else denoise
            kernel = DDPM(schedule, variance=VARIANCES[meta["var"]])
            table = dj.timetables.from_times(np.append(levels(run, meta, meta["mean"])[::-1], 0))
            x_0, noise = in_dtype((channels_last(run["x0"]), channels_last(run["draws"])), dtype)
            last = jax.tree.map(lambda a: a[-1], variational.rows(kernel, table, dtype))

            def one(x_0, noise):
                x_last = dj.process.q_sample(schedule, x_0, last.t, noise[-1])
                slack = rounding(kernel, denoise(x_last, last.t), x_0, last)
                return variational.bound(None, denoise, kernel, table, x_0, recorded=noise, cdf="tanh"), slack

            bound, slack = jax.tree.map(np.asarray, quick_jit(jax.vmap(one, (0, 1)))(x_0, noise))
            of_rows = np.where(np.arange(len(table)) == len(table) - 1, slack[:, None], 0)
            got = {"total_bpd": (bound.total, slack), "prior_bpd": (bound.prior, 0.0), "vb": (bound.terms, of_rows)}
            for name, (value, allowed) in got.items():
                check_bits(f"{golden_file.stem} {name} {dtype.__name__}", value, run[name], dtype, allowed)
            tolerance = FLOAT64 if dtype is jnp.float64 else FLOAT32
            check_bits(f"{golden_file.stem} xstart_mse {dtype.__name__}", bound.x0_error, run["xstart_mse"], dtype)
            check(f"{golden_file.stem} mse {dtype.__name__}", bound.eps_error, run["mse"], tolerance)
