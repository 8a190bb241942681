"""DiffPIR's own code, replayed draw by draw on its exact networks (the recorded batch as one array)."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quirks_proximal as quirks
from golden_files import check, load

import diffjax as dj

SCHEDULE = dj.schedules.discrete(quirks.BETAS)
QUICK = {"xla_backend_optimization_level": 1}  # these programs take longer to compile than to run
TOLERANCE = {jnp.float64: 1e-9, jnp.float32: 1e-4}

# runs of another kind than the paper's method, by "generate_mode" (and task)
REFUSED = {
    "DPS_y0": "moves t -> t - 1 of the full table, then calls the network at the next, far lower, entry of its sequence",
    "DPS_yt": "moves t -> t - 1 of the full table, then calls the network at the next, far lower, entry of its sequence",
    "vanilla deblurring": "never updates x: the result is the start noise",
}


def walk(run, meta):
    """Times of the network calls that count; the last entry's call is dropped by the official code. Repeated times are
    iter_num_U passes over a step: rows that jump back up."""
    times, repeats = [], meta["hyper"].get("iter_num_U", 1)
    for t in run["model_t"]:
        if not times or times[-1] != t + 1:
            times.append(int(t) + 1)
    rows = []
    for t, s in pairwise(times):
        rows += [(t, s, t)] * (repeats - 1) + [(t, s, s)]
    table, hyper = dj.timetables.from_rows(rows), meta["hyper"]
    if repeats == 1 and hyper["skip_type"] == "quad" and hyper["iter_num"] in (20, 100):
        np.testing.assert_array_equal(table.t, dj.timetables.published(f"diffpir-{hyper['iter_num']}", SCHEDULE).t[:-1])
    return table


def images(a):
    """Recorded (..., C, H, W) as (..., H, W, C) in float64."""
    return np.moveaxis(np.asarray(a, np.float64), -3, -1)


def problem(hyper, script, y, mask, kernel, shape):
    """(measurement in our units, lam, data step) of one image; y in [-1, 1]."""
    task = hyper.get("task") or {"main_ddpir_inpainting.py": "inpaint", "main_ddpir_sisr.py": "sr"}.get(script, "deblur")
    lam, settings = hyper["lambda_"] / 4, {"guidance": hyper["guidance_scale"]}
    if task == "inpaint":
        A = dj.operators.Mask(mask)
    elif not hyper["sub_1_analytic"]:
        settings |= {"data": "gradient", "lipschitz": 0.0}
        if task == "sr":
            A = quirks.resize(shape, hyper["sf"], y.dtype)
        else:  # a correlation with reflected borders, whatever blurred y; here the units are not mixed
            A, lam = dj.operators.Blur(kernel[::-1, ::-1], border="reflect"), hyper["lambda_"]
    elif hyper.get("sr_mode") == "cubic":
        A = quirks.resize(shape, hyper["sf"], y.dtype)
        settings = {"data": "back_projection", "gamma": hyper["gamma"], "iterations": hyper["inIter"]}
    else:
        A = dj.operators.Blur(kernel, border="wrap", factor=hyper["sf"])
    if task != "inpaint" and not (task == "sr" and not hyper["sub_1_analytic"]):
        y = y + 1 - A(jnp.ones(shape, y.dtype))  # the data step is taken in [0, 1], and A(1) is not quite 1
    noise_std = 2 * max(0.001, hyper["noise_level_img"])
    return dj.Measurement(y, A, noise_std, value_range=(-2.0, 2.0)), lam, settings


def replay(run, meta, dtype):
    """(start, Result) of the batch, images alone under ``vmap``."""
    hyper, mode = meta["hyper"], meta["hyper"]["generate_mode"]
    table, n = walk(run, meta), len(run["final"])
    kernel = quirks.OfficialEta(SCHEDULE, eta=hyper["eta"], zeta=hyper["zeta"])
    zeta_noise = images(run["draw__zeta_noise"])
    eta_noise = images(run["draw__eta_noise"]) if "draw__eta_noise" in run else np.zeros_like(zeta_noise)
    assert len(zeta_noise) == len(table) == len(run["model_t"]) - hyper.get("iter_num_U", 1)
    move = kernel.compose(table, eta_noise, zeta_noise)
    rows = {"move": move, "known": images(run["draw__known_noise"])[: len(table)]} if mode == "repaint" else move
    jumps = None
    if table.jumps:
        jumps = np.zeros_like(move)
        jumps[table.r > table.s] = images(run["draw__unoise"])
    start = images(run["step_x"][0])  # super-resolution begins from a bicubic enlargement by OpenCV, which was not recomputed
    if np.shape(run["y"]) == run["final"].shape:
        noise = np.asarray(run["draw__init_noise"][0], np.float64)
        start = images(quirks.official_start(hyper, meta["script"], run, noise, SCHEDULE))
    y = images(run["y"]) if str(run["y_range"]) == "[-1,1]" else 2 * images(run["y"]) - 1
    mask = images(run["mask"]) if "mask" in run else np.ones(n)
    psf = np.reshape(run.get("kernel", np.ones((1, 1))), (-1, *run.get("kernel", np.ones((1, 1))).shape[-2:]))
    psf = np.broadcast_to(psf, (n, *psf.shape[1:]))
    params = (run["gmm_w"], images(run["gmm_mu"]), run["gmm_var"] if run["gmm_var"].ndim == 1 else images(run["gmm_var"]))
    params = (*params, np.cumprod(1 - quirks.BETAS))
    cast = lambda tree: jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64), dtype), tree)
    denoise = dj.denoisers.clipped(dj.denoisers.from_eps(quirks.mixture_eps, cast(params), SCHEDULE))

    def one(x, y, mask, psf, rows, jumps):
        measurement, lam, settings = problem(hyper, meta["script"], y, mask, psf, x.shape)
        if mode == "DiffPIR":
            method = dj.methods.DiffPIR(denoise, measurement, lam=lam, prior_std=np.inf, **settings)
        elif mode == "repaint":  # merges known pixels before every call, as Blended does
            method = dj.methods.Blended(denoise, dj.base.replace(measurement, noise_std=0.0), exact=False)
        else:
            method = denoise
        recorded = dj.Draws(None, rows, jumps)
        return dj.sample(None, method, table, x, kernel=kernel, recorded=recorded, trace=lambda x, row, info: x)

    run_all = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, 0, 1, 1)), compiler_options=QUICK)
    return start, run_all(*cast((start, y, mask, psf, rows, jumps)))


def refusal(meta):
    mode, one_task = meta["hyper"]["generate_mode"], meta["script"] in ("main_ddpir_deblur.py", "main_ddpir_sisr.py")
    return REFUSED.get(f"{mode} deblurring" if mode == "vanilla" and one_task else mode)


@pytest.mark.golden("plug_and_play", "diffpir_")
def test_diffpir_replays(golden_file):
    run, meta = load(golden_file)
    name, mode, official = golden_file.stem, meta["hyper"]["generate_mode"], meta["mode"]
    if refusal(meta):
        if mode == "vanilla":
            check(f"{name}: refused, the start comes back", run["final"], run["step_x"][0] / 2 + 0.5, 1e-6)
        pytest.skip(f"refused: {refusal(meta)}")
    # the official FFT solution divides rounding errors by rho
    hyper = meta["hyper"]
    fft = "mask" not in run and hyper["sub_1_analytic"] and hyper.get("sr_mode") != "cubic"
    cancels = float(np.finfo(official.replace("f", "float")).eps / run["rhos"].min()) if fft else 0.0
    unstable = not meta["hyper"]["sub_1_analytic"]  # steps of 1 / rho amplify rounding
    final, states = images(run["final"]), images(run["step_x"])
    seen = (images(run["mask"]) == 0) if mode == "repaint" else np.ones(final.shape, bool)  # recorded after merging
    if official == "f32" and cancels > 1:  # a demonstration of that loss: ours is held to the float64 run
        final = images(load(golden_file.with_name(f"{meta['twin']}.npz"))[0]["final"])
    for dtype in [jnp.float32] if official == "f32" else [jnp.float64, jnp.float32]:
        with jax.enable_x64(dtype == jnp.float64):
            start, result = replay(run, meta, dtype)
        label, tolerance = f"{name} {dtype.__name__}", TOLERANCE[dtype]
        tolerance = 1e-3 if unstable and dtype == jnp.float32 else tolerance
        if run["step_index"][0] == 0:
            check(f"{label} start", start[seen], states[0][seen], 1e-6 if official == "f32" else 1e-9)
        for index, x in list(zip(run["step_index"], states))[1:]:
            check(f"{label} x at call {index}", result.trace[:, index - 1][seen], x[seen], max(tolerance, cancels))
        check(f"{label} final", (np.asarray(result.state.x) / 2 + 0.5)[seen], final[seen], tolerance)
        assert result.x.dtype == dtype
