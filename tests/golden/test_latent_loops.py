"""The samplers of latent diffusion and of diffusers, replayed from their recorded draws; their schedules, grids and tiles.

Everything is read from the files. The recorded network works in float64 and is rounded, the loops are float32: so are ours.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_files import check, load
from latent_closed_form import BETAS, DIFFUSERS_BETAS, Masked, loose, nearest_code, network, parameters, v_network

import diffjax as dj

K = dj.kernels
FLOAT32 = 1e-5
QUICK = {"xla_backend_optimization_level": 0}


def as32(a):
    return jnp.asarray(a, jnp.float32)


def walked(method, table, x, kernel, rows):
    """Result of the recorded batch as one array, with the states as trace."""
    recorded = dj.Draws(None, jax.tree.map(as32, rows))
    states = lambda x, row, info: x

    def run(method, x):  # the kernel stays known: with eta 0 no noise is drawn
        return dj.sample(None, method, table, x, kernel=kernel, recorded=recorded, trace=states)

    return jax.jit(run, compiler_options=QUICK)(method, as32(x))


# --- latent diffusion -----------------------------------------------------------------------------------------------


def ldm_prior(run, meta):
    """(schedule, denoiser without codes)"""
    betas = BETAS[meta["beta_schedule"]](meta["T"], meta["linear_start"], meta["linear_end"])
    check("betas", betas, run["betas"], 1e-6)
    schedule = dj.schedules.discrete(betas)
    cond = as32(run["cond"]) if "cond" in run else None
    denoise = dj.denoisers.from_eps(network, parameters(run, run["alphas_cumprod"]), schedule, cond=cond)
    if meta["guidance"] != 1:
        denoise = dj.denoisers.classifier_free(denoise, cond, as32(run["uncond"]), meta["guidance"])
    return schedule, denoise


def ldm_walk(run, meta, schedule, codes):
    """(table, kernel, number of normal draws in each step beside the one for known latents)"""
    if meta["sampler"] == "ddpm":
        n = meta["start_T"] or meta["T"]
        table = dj.timetables.from_times(np.arange(min(n, meta["T"]), -1, -1), schedule)
        return table, K.DDPM(share=meta["v_posterior"]), np.ones(len(table), int)
    grid = dj.timetables.ldm(schedule, meta["S"], meta["discretize"], "published")
    np.testing.assert_array_equal(grid.t[::-1] - 1, run["ddim_timesteps"])
    one = np.ones(len(grid), int)
    if meta["sampler"] == "plms":
        one[0] = 2
        return dj.timetables.plms(grid), K.PLMS(codes=codes), one
    return grid, K.DDIM(eta=meta["eta"], temperature=meta["temperature"]), one


def by_step(run, meta, counts):
    """(the move's noise, the known latents' noise or None), a draw a step."""
    draws = run["draws"] if "x_T" in run else run["draws"][1:]
    mask = int(meta["mask"])
    first = np.cumsum(counts + mask) - counts - mask
    assert len(draws) == (counts + mask).sum()
    if not mask:
        return draws[first], None
    before = meta["sampler"] != "ddpm"
    return draws[first + before], draws[first if before else first + counts]


def check_tables(run, meta, table, kernel):
    """The coefficients that the run recorded."""
    move = kernel.coefficients(table)
    if meta["sampler"] == "ddpm":
        n = len(table)
        for name, mine in (("posterior_mean_coef1", move.c_0), ("posterior_mean_coef2", move.c_t)):
            check(name, mine[::-1], run[name][:n], 2e-6)
        check("log variance", move.small[:-1][::-1], run["posterior_log_variance_clipped"][1:n], 2e-6)
        return
    schedule, grid = kernel.schedule, dj.timetables.ldm(kernel.schedule, meta["S"], meta["discretize"], "published")
    check("alphas", schedule.alpha(grid.t)[::-1] ** 2, run["ddim_alphas"], 1e-6)
    check("alphas before", schedule.alpha(grid.s)[::-1] ** 2, run["ddim_alphas_prev"], 1e-6)
    if meta["sampler"] == "ddim" and meta["eta"]:
        check("sigmas", move.std[::-1] / meta["temperature"], run["ddim_sigmas"], 1e-5)


@pytest.mark.golden("latent", "ldm_ddim_", "ldm_plms", "ldm_ddpm")
def test_latent_diffusion_replays(golden_file):
    run, meta = load(golden_file)
    with jax.enable_x64(True):
        schedule, denoise = ldm_prior(run, meta)
        codes = jax.tree_util.Partial(nearest_code, as32(run["codebook"])) if meta["quantize_denoised"] else None
        table, kernel, counts = ldm_walk(run, meta, schedule, codes)
        kernel = kernel.bind(schedule)
        if meta["clip_denoised"]:
            denoise = dj.denoisers.clipped(denoise, keep_eps=True)
        if codes is not None and meta["sampler"] != "plms":
            denoise = dj.denoisers.quantised(denoise, codes)
        check_tables(run, meta, table, kernel)
        move, known = by_step(run, meta, counts)
        again = np.arange(len(table)) == 1 if meta["sampler"] == "plms" else np.zeros(len(table), bool)
        np.testing.assert_array_equal(table.t - 1, run["model_calls_t"])
        if meta["sampler"] == "ddpm":
            move = move * meta["temperature"]
        rows = () if kernel.still() else move
        method = denoise
        if known is not None:
            spread = np.zeros((len(table), *known.shape[1:]), np.float32)
            spread[~again] = known
            rows = {"move": rows, "known": spread}
            measured = dj.Measurement(as32(run["x0"]), dj.operators.Mask(as32(run["mask"])), value_range=(-10.0, 10.0))
            method = Masked(denoise, measured, exact=False, merges=1.0 - again, after=meta["sampler"] == "ddpm")
        result = walked(method, table, run["states"][0], kernel, rows)
        assert result.x.dtype == jnp.float32
        ahead = np.append(again[1:], False)  # the step before is made again, and not recorded before
        check(f"{golden_file.stem} states", np.asarray(result.trace)[~ahead], run["states"][1:], FLOAT32)
        check(f"{golden_file.stem} end", result.x, run["end"], FLOAT32)
        if "pred_x0" in run and known is None and meta["sampler"] == "ddim":
            x0 = jax.jit(jax.vmap(lambda x, t: denoise(x, t).x0))(as32(run["states"][:-1]), as32(table.t))
            alpha = schedule.alpha(table.t).reshape(
                -1, 1, 1, 1, 1
            )  # x0 = (x - sigma eps) / alpha magnifies rounding by 1 / alpha
            check(f"{golden_file.stem} x0", alpha * x0, alpha * run["pred_x0"], FLOAT32)


def loss_weights(schedule, kind):
    """Weights of |eps - eps_hat|^2 (of |x0 - x0_hat|^2 with the odd precedence of the code) in the bound, [0] taken from
    [1]."""
    t = np.arange(1, schedule.T + 1)
    if kind == "x0":
        abar = schedule.alpha(t) ** 2
        weights = 0.5 * np.sqrt(abar) / (2.0 * 1 - abar)
    else:
        c_0, _, std = dj.process.posterior(schedule, t, t - 1)
        weights = (c_0 * schedule.sigma(t) / schedule.alpha(t)) ** 2 / (2 * np.maximum(std, 1e-30) ** 2)
    weights[0] = weights[1]
    return weights


@pytest.mark.golden("latent", "ldm_schedules")
def test_schedules_and_grids(golden_file):
    run, meta = load(golden_file)
    schedules = [dj.schedules.discrete(BETAS[name](*rest)) for name, *rest in meta["schedule_cases"]]
    for n, (name, *rest) in enumerate(meta["schedule_cases"]):
        check(f"{name} {rest}", BETAS[name](*rest), run[f"s{n}_betas"], 1e-12)
    schedule = schedules[0]
    t = np.arange(1, schedule.T + 1)
    alpha, sigma = dj.process.marginal(schedule, t)
    c_0, c_t, std = dj.process.posterior(schedule, t, t - 1)
    buffers = {
        "betas": dj.process.transition(schedule, t, t - 1)[1] ** 2, "alphas_cumprod": alpha**2,
        "alphas_cumprod_prev": schedule.alpha(t - 1) ** 2, "sqrt_alphas_cumprod": alpha,
        "sqrt_one_minus_alphas_cumprod": sigma, "log_one_minus_alphas_cumprod": 2 * np.log(sigma),
        "sqrt_recip_alphas_cumprod": 1 / alpha, "sqrt_recipm1_alphas_cumprod": sigma / alpha,
        "posterior_variance": std**2, "posterior_mean_coef1": c_0, "posterior_mean_coef2": c_t,
        "posterior_log_variance_clipped": np.log(np.maximum(std**2, 1e-20)), "lvlb_weights": loss_weights(schedule, "eps"),
    }  # fmt: skip
    found = {name.removeprefix("buf_"): value for name, value in run.items() if name.startswith("buf_")}
    assert set(found) == set(buffers)
    for name, value in found.items():
        check(name, buffers[name], value, 5e-6 if name == "lvlb_weights" else 2e-6)  # a quotient of float32 buffers
    shared = K.DDPM(schedule, share=0.3).coefficients(dj.timetables.from_times(np.append(t[::-1], 0)))
    for name, value in run.items():
        kind, _, rest = name.partition("_")
        if kind == "v03":
            check(name, shared.std[::-1] ** 2, value, 2e-6)
        elif kind == "x0param":
            check(name, loss_weights(schedule, "x0"), value, 2e-6)
        elif kind == "ts":
            spacing, S, T = rest.split("_")
            np.testing.assert_array_equal(dj.timetables.space_ldm(int(T), int(S), spacing, "published"), value, err_msg=name)


def learning_rates():
    """The multipliers that the metadata's ``lr`` describes, by optax."""
    warm = optax.warmup_cosine_decay_schedule
    first, second = warm(1e-3, 1.0, 20, 120, 0.1), warm(1e-2, 0.5, 10, 180, 0.05)
    return {
        "lr_cosine": warm(1e-3, 1.0, 50, 200, 0.01),
        "lr_linear": optax.linear_schedule(1e-6, 1.0, 40),
        # the code counts step 120 to the first cycle still
        "lr_cosine2": optax.join_schedules([first, lambda n: second(n + 1)], [121]),
    }


@pytest.mark.golden("latent", "ldm_schedules")
def test_averages_and_rates(golden_file):
    run, meta = load(golden_file)
    assert "warm 50, min .01, max 1, start 1e-3, decay 200" in meta["lr"]
    with jax.enable_x64(True):
        for name, schedule in learning_rates().items():
            steps = jnp.arange(len(run[name]))
            check(name, jax.jit(jax.vmap(schedule))(steps), run[name], 1e-9)
    ema = run["ema_params"][0].astype(np.float64)
    for n, (params, shadow) in enumerate(zip(run["ema_params"][1:], run["ema_shadow"]), 1):
        decay = min(0.99, (1 + n) / (10 + n))
        ema = decay * ema + (1 - decay) * params
        check(f"ema {n}", ema, shadow, 1e-6)


# --- tiles ----------------------------------------------------------------------------------------------------------


@pytest.mark.golden("latent", "ldm_tiled")
def test_tiles(golden_file):
    run, meta = load(golden_file)
    last = lambda a: np.moveaxis(a, 1, -1)  # channels
    x, ks, stride, factor = run["x"], meta["ks"], meta["stride"], meta["vqf"]

    def f(tile):
        return jnp.tanh(tile) + 0.1 * tile[:, ::-1] + tile.mean()

    def f_up(tile):
        return jnp.repeat(jnp.repeat(f(tile), factor, 0), factor, 1)

    tiling = dj.tiles.Tiling(x.shape[2:], ks, stride, ties=meta["tie_braker"])
    for prefix, side, name, of in (("", ks, "", f), ("up_", ks * factor, " larger", f_up)):
        weights = np.moveaxis(run[f"{prefix}weighting"][0, 0], -1, 0)
        check(f"{golden_file.stem} weights{name}", tiling.weights(side, side), weights, 1e-6)
        for n, image in enumerate(last(x)):
            for at_once in (1, 5):
                got = dj.tiles.tiled(of, image, ks, stride, ties=meta["tie_braker"], at_once=at_once)
                check(f"{golden_file.stem} picture {n}{name}", got, last(run[f"{prefix}stitched"])[n], 2e-6)
    for n, image in enumerate(last(x)):
        np.testing.assert_array_equal(tiling.cut(image), np.moveaxis(run["tiles"][n], (0, -1), (-1, 0)))


# --- diffusers ------------------------------------------------------------------------------------------------------


def of_diffusers(run, config):
    """(schedule, denoiser) of a scheduler's configuration."""
    betas = DIFFUSERS_BETAS[config["beta_schedule"]](config["num_train_timesteps"], config["beta_start"], config["beta_end"])
    schedule = dj.schedules.discrete(betas)
    make, apply = {"epsilon": (dj.denoisers.from_eps, network), "v_prediction": (dj.denoisers.from_v, v_network)}[
        config["prediction_type"]
    ]
    denoise = make(apply, parameters(run, np.cumprod(1 - betas)), schedule)
    if config.get("thresholding"):
        return schedule, dj.denoisers.thresholded(denoise, config["dynamic_thresholding_ratio"], config["sample_max_value"])
    if config.get("clip_sample"):
        size = config["clip_sample_range"]
        return schedule, dj.denoisers.clipped(denoise, -size, size, keep_eps=True)
    return schedule, denoise


def replay_scheduler(run, name, case):
    config, S = case["config"], case["S"]
    schedule, denoise = of_diffusers(run, config)
    end = 0 if config.get("set_alpha_to_one", True) else 1
    table = dj.timetables.diffusers(schedule, S, config["timestep_spacing"], config["steps_offset"], end)
    x, states, draws = run["x_T"], run[f"{name}_states"][1:], run.get(f"{name}_draws")
    if f"{name}_final_alpha_cumprod" in run:
        check(f"{name} last alpha", schedule.alpha(float(end)) ** 2, run[f"{name}_final_alpha_cumprod"], 1e-6)
    indices = run[f"{name}_timesteps"]
    if case["class"] == "PNDMScheduler":
        if config["skip_prk_steps"]:
            table = dj.timetables.plms(table)
            np.testing.assert_array_equal(table.t - 1, indices)
            return walked(denoise, table, x, K.PLMS(), ()).trace, states
        stages = np.stack([table.t, (table.t + table.s) / 2, (table.t + table.s) / 2, table.s], 1)[:3].ravel()
        np.testing.assert_array_equal(np.append(stages, table.t[3:]) - 1, indices)
        head = walked(denoise, table[:3], x, K.PRK(), ())
        tail = jax.jit(lambda state: dj.sample(jax.random.key(0), denoise, table[3:], x.shape, kernel=K.PLMS(), state=state,
                                               trace=lambda x, row, info: x))(head.state)  # fmt: skip
        return jnp.concatenate([head.trace, tail.trace]), np.concatenate([states[3:12:4], states[12:]])
    np.testing.assert_array_equal(table.t - 1, indices)
    stepped = loose(table, schedule.T // S, end)
    if config["timestep_spacing"] == "leading":
        np.testing.assert_array_equal(table.s, stepped.s)
    if case["class"] == "DDPMScheduler":
        kernel = K.DDPM(variance={"fixed_small": "small", "fixed_large": "large"}[config["variance_type"]])
    else:
        kernel = K.DDIM(eta=case["eta"])
    return walked(denoise, stepped, x, kernel, () if draws is None else draws).trace, states


@pytest.mark.golden("latent", "diffusers_schedulers")
def test_diffusers_schedulers_replay(golden_file):
    run, meta = load(golden_file)
    cases = {name: case for name, case in meta.items() if isinstance(case, dict) and "class" in case}
    assert cases
    for name, case in cases.items():
        with jax.enable_x64(True):
            got, states = replay_scheduler(run, name, case)
        assert got.dtype == jnp.float32
        check(f"{golden_file.stem} {name}", got, states, FLOAT32)
