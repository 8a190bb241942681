"""Schedules, sampling loops, training losses and data of the public SR3 code, replayed from recorded draws.

Everything is read from the files. The recorded prior works in float64 and is rounded, the loops are float32: so are ours.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import check, load
from test_sr3_networks import rebuilt

import diffjax as dj
from diffjax.convert import sr3
from diffjax.training import data, losses, low_resolution, times

FLOAT32 = 1e-5
QUICK = {"xla_backend_optimization_level": 0}
BETAS = {  # the official names
    "linear": dj.schedules.sr3_betas,
    "quad": dj.schedules.scaled_linear_betas,
    "warmup10": lambda T, low, high: dj.schedules.warmup_betas(T, 0.1, low, high),
    "warmup50": lambda T, low, high: dj.schedules.warmup_betas(T, 0.5, low, high),
    "const": lambda T, low, high: dj.schedules.warmup_betas(T, 0.0, low, high),
    "jsd": lambda T, low, high: dj.schedules.harmonic_betas(T),
    "cosine": lambda T, low, high: dj.schedules.cosine_betas(T),
}


def last(a):
    return np.moveaxis(a, -3, -1)


def as32(a):
    return jnp.asarray(a, jnp.float32)


def of(meta):
    names = ("schedule", "n_timestep", "linear_start", "linear_end")
    name, *rest = (meta["schedule"][k] for k in names)
    return dj.schedules.discrete(BETAS[name](*rest))


def network(params, x, level, cond=None):
    """eps of the recorded batch x (B, H, W, C) at the levels (), (B,), in float64, rounded to x's type: the mixture's exact
    posterior, section 1 of the fact sheet."""
    w, mu, sd, shift = params
    z = x.astype(jnp.float64)
    a = jnp.broadcast_to(level.astype(jnp.float64), x.shape[:1])[:, None, None, None]
    means = mu[:, None] + (0 if cond is None else shift * cond.astype(z.dtype))
    var = a**2 * sd[:, None, None, None, None] ** 2 + 1 - a**2
    d = z - a * means
    log_r = jnp.log(w)[:, None] - 0.5 * ((d**2 / var).sum((2, 3, 4)) + z[0].size * jnp.log(var[..., 0, 0, 0]))
    r = jax.nn.softmax(log_r, 0)[..., None, None, None]
    return (jnp.sqrt(1 - a**2) * (r * d / var).sum(0)).astype(x.dtype)


def parameters(run):
    named = (run["gmm_w"], last(run["gmm_mu"]), run["gmm_sd"], run["gmm_cond_shift"])
    return tuple(jnp.asarray(a, jnp.float64) for a in named)


def descend(denoise, draws):
    """Result of the ancestral walk of the recorded batch as one array, with the states as trace. The code draws no noise in
    the last step."""
    table = dj.timetables.from_times(np.arange(denoise.schedule.T, -1, -1))
    rows = np.concatenate([draws[1:], np.zeros_like(draws[:1])])
    states = lambda x, row, info: x
    walk = lambda denoise, x: dj.sample(
        None, denoise, table, x, kernel=dj.kernels.DDPM(), recorded=dj.Draws(None, as32(rows)), trace=states
    )
    return jax.jit(walk, compiler_options=QUICK)(denoise, as32(draws[0]))


# --- schedules ------------------------------------------------------------------------------------------------------


@pytest.mark.golden("super_resolution", "sr3_schedules")
def test_schedules(golden_file):
    run, meta = load(golden_file)
    for n, (name, *rest) in enumerate(meta["cases"]):
        betas = BETAS[name](*rest)
        check(f"{name} {rest} betas", betas, run[f"s{n}_betas"], 1e-12)
        if f"s{n}_sqrt_alphas_cumprod_prev" not in run:  # ends in pure noise, where the code's buffers are not finite
            continue
        schedule = dj.schedules.discrete(betas)
        t = np.arange(schedule.T + 1)
        check(f"{name} {rest} levels", schedule.alpha(t), run[f"s{n}_sqrt_alphas_cumprod_prev"], 1e-10)
        std = dj.process.posterior(schedule, t[1:], t[:-1])[2]
        logs = np.log(np.maximum(std**2, 1e-20))
        check(f"{name} {rest} log variance", logs, run[f"s{n}_posterior_log_variance_clipped"], 2e-6)


# --- loops ----------------------------------------------------------------------------------------------------------


@pytest.mark.golden("super_resolution", "sr3_loop")
def test_loop(golden_file):
    run, meta = load(golden_file)
    cond = as32(last(run["cond"])) if meta["conditional"] else None
    with jax.enable_x64(True):
        schedule = of(meta)
        check("betas", dj.process.transition(schedule, np.arange(1, schedule.T + 1), np.arange(schedule.T))[1] ** 2,
              run["buf_betas"], 1e-6)  # fmt: skip
        clip = 1.0 if meta["clip_denoised"] else None
        denoise = dj.denoisers.from_sr3(network, parameters(run), schedule, cond, clip=clip)
        told = dj.denoisers.NoiseLevel()(schedule, np.arange(schedule.T, 0, -1))
        check("levels", told, run["levels"], 1e-7)
        result = descend(denoise, last(run["draws"]))
    assert result.x.dtype == jnp.float32
    check(f"{golden_file.stem} states", result.trace, last(run["states"])[1:], FLOAT32)
    check(f"{golden_file.stem} end", result.x, last(run["end"]), FLOAT32)
    # what the code gives of a walk: the condition (or the start), then every so many states
    kept = np.arange(schedule.T - 1, -1, -1) % (1 | schedule.T // 10) == 0
    first = last(run["cond"] if meta["conditional"] else run["states"][0])
    shown = np.concatenate([first, *np.asarray(result.trace)[kept]])
    check(f"{golden_file.stem} shown", shown, last(run["returned_continous"]), FLOAT32)


@pytest.mark.golden("super_resolution", "sr3_full_tiny")
def test_whole_checkpoint(golden_file):
    """A file as it was released: its network, its schedule, one loss with gradients, and a walk."""
    run, meta = load(golden_file)
    net, params, state = rebuilt(golden_file, meta)
    parts = sr3.split(state)
    schedule = dj.schedules.discrete(parts.betas)
    check("levels", schedule.alpha(np.arange(schedule.T + 1)), run["sqrt_alphas_cumprod_prev"], 1e-6)

    denoise = dj.denoisers.from_sr3(net.apply, params, schedule, as32(last(run["SR"])))
    result = descend(denoise, last(run["sample_draws"]))
    check(f"{golden_file.stem} states", result.trace, last(run["sample_states"])[1:], 5e-5)

    def total(params):
        return official_loss(lambda *a: net.apply(params, *a), meta["loss_type"], schedule, last(run["HR"]), last(run["SR"]),
                             run["train_level"], last(run["train_noise"]))  # fmt: skip

    loss, grads = jax.jit(jax.value_and_grad(total), compiler_options=QUICK)(params)
    check(f"{golden_file.stem} loss", loss, run["train_loss"], 5e-5)
    check(f"{golden_file.stem} loss each", loss / run["HR"].size, run["train_loss_per_element"], 5e-5)
    grads = sr3.to_state(net, grads)
    check(f"{golden_file.stem} first conv", grads["downs.0.weight"], run["grad_first_conv"], 3e-4)
    check(f"{golden_file.stem} last conv", grads["final_conv.block.3.weight"], run["grad_last_conv"], 3e-4)


# --- training -------------------------------------------------------------------------------------------------------


def official_loss(net, kind, schedule, high, low, levels, noise):
    """The sum over a batch, as the code has it, of our loss of each image at the times of its levels."""
    level = np.asarray(levels, np.float64)
    t = schedule.time(2 * np.log(level) - np.log1p(-(level**2)))
    example = lambda high, low, t, noise: losses.eps_loss(
        lambda x, level: net(x, level, low), schedule, high, t, noise, norm=kind,
        time=dj.denoisers.NoiseLevel(),
    )[0]  # fmt: skip
    total = jax.jit(lambda *given: jax.vmap(example)(*given).sum())
    return total(as32(high), as32(low), jnp.asarray(t), as32(noise)) * high[0].size


@pytest.mark.golden("super_resolution", "sr3_loop")
def test_losses(golden_file):
    run, meta = load(golden_file)
    with jax.enable_x64(True):
        schedule = of(meta)
        p = parameters(run)

        def net(x, level, low):  # the recorded network takes a batch
            return network(p, x[None], level, low[None] if meta["conditional"] else None)[0]

        for n, kind in enumerate(("l1", "l2")):
            rows, share = run["train_t"][n], run["train_levels"][n]
            before, after = run["sqrt_alphas_cumprod_prev"][[rows, rows - 1]]
            assert (before <= share).all() and (share <= after).all()
            # the share that our rule would have drawn leads to the recorded level
            t = times.between_levels(schedule, rows, (after - share) / (after - before))
            check(f"level {n}", schedule.alpha(t), share, 1e-7)
            low = last(run["cond"] if meta["conditional"] else run["train_HR"])
            got = official_loss(net, kind, schedule, last(run["train_HR"]), low, share, last(run["train_noise"][n]))
            check(f"{golden_file.stem} {kind}", got, run["train_loss_l1_then_l2"][n], FLOAT32)


# --- data -----------------------------------------------------------------------------------------------------------


@pytest.mark.golden("super_resolution", "sr3_data")
def test_data(golden_file):
    run, meta = load(golden_file)
    low, high = meta["sizes"]
    np.testing.assert_array_equal(low_resolution.square(run["image"], low), run["lr"])
    np.testing.assert_array_equal(low_resolution.square(run["image"], high), run["hr"])
    cond = low_resolution.square(run["lr"], high)
    np.testing.assert_array_equal(cond, run["sr"])
    check("condition", data.scale(cond), last(run["sr_tensor"]), 1e-6)
    if high % low == 0:
        np.testing.assert_array_equal(low_resolution.enlarged(run["lr"], high // low), run["sr"])
    with jax.enable_x64(True):
        a, b = (jnp.asarray(run[name], float) for name in ("sr", "hr"))
        check("psnr", dj.metrics.psnr(a, b, peak=255), run["psnr_sr_hr"], 1e-9)
        check("ssim", dj.metrics.ssim(a, b, peak=255), run["ssim_sr_hr"], 1e-6)
