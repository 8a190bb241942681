"""CoPaint's "ddim" (Blended) and "resample" samplers, replayed draw by draw (the recorded batch as one array)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quirks_proximal as quirks
from closed_form import denoiser, draw, draws_by_step
from golden_files import check, load

import diffjax as dj

QUICK = {"xla_backend_optimization_level": 1}  # these programs take longer to compile than to run
TOLERANCE = {jnp.float64: 1e-9, jnp.float32: 1e-4}


def parts(run, meta, dtype):
    """(denoiser, table, moves' noise, reference noise by official index, x_T) of a run"""
    schedule, denoise = denoiser(run, meta, dtype)
    level, pairs, shape = run["timestep_map"] + 1, run["loop_pairs"], run["gt"].shape
    table = dj.timetables.from_walk(level[np.concatenate([pairs[:1, 0], pairs[:, 1]])])
    found = draws_by_step(run, meta)
    get = lambda step, purpose, n=0: draw(run, found[(int(step), purpose)][n], shape)
    move = np.stack([get(n, "ddim_noise") for n in range(len(pairs))])
    references = np.stack([get(-1, "forward_noise", i) for i in range(len(level))])
    # all references are made from the first image of the batch
    assert (run["gt"][:1] == run["gt"]).all() and (run["mask"][:1] == run["mask"]).all()
    kernel = dj.kernels.DDIM(schedule, eta=meta["config"]["ddim"]["ddim_sigma"])
    return denoise, kernel, table, move, references, get(-1, "x_T")


def go(method, kernel, table, x_T, rows, dtype):
    recorded = jax.tree.map(lambda a: jnp.asarray(a, dtype), dj.Draws(None, rows, None))
    trace = lambda x, row, info: x
    run = lambda x, r: dj.sample(None, method, table, x, kernel=kernel, recorded=r, trace=trace)
    return jax.jit(run, compiler_options=QUICK)(jnp.asarray(x_T, dtype), recorded)


@pytest.mark.golden("inpainting", "blended")
def test_blended_replays(golden_file):
    run, meta = load(golden_file)
    for dtype, tolerance in TOLERANCE.items():
        with jax.enable_x64(dtype == jnp.float64):
            denoise, kernel, table, move, references, x_T = parts(run, meta, dtype)
            mask = dj.operators.Mask(jnp.asarray(run["mask"], dtype))
            method = dj.methods.Blended(denoise, dj.Measurement(jnp.asarray(run["gt"], dtype), mask), exact=False)
            rows = {"move": move, "known": references[run["loop_pairs"][:, 0]]}
            result = go(method, kernel, table, x_T, rows, dtype)
            name = f"{golden_file.stem} {dtype.__name__}"
            check(f"{name} states", result.trace[run["x_idx"]], run["x_traj"], tolerance)
            check(f"{name} final", result.x, run["final"], tolerance)
            assert len(result.trace) == meta["nfe_total"]


@pytest.mark.golden("inpainting", "resampling")
def test_resampling_as_released_replays(golden_file):
    """Its particles are the recorded batch. What is refused: x never receives the step (``BrokenResampling``)."""
    run, meta = load(golden_file)
    n, keep, rows = len(run["gt"]), meta["config"]["resample"]["keep_n_samples"], len(run["loop_pairs"])
    drawn = np.full((rows + 1, n), -1)  # the recorder calls the final choice by the last step's number
    for step, indices in zip(run["multi_step"], run["multi_idx"]):
        drawn[step if step < rows - 1 else rows, : len(indices)] = indices
    for dtype, tolerance in TOLERANCE.items():
        with jax.enable_x64(dtype == jnp.float64):
            denoise, kernel, table, move, references, x_T = parts(run, meta, dtype)
            image = lambda a: jnp.asarray(a[:1], dtype)  # (1, C, H, W)
            measurement = dj.Measurement(image(run["gt"]), dj.operators.Mask(image(run["mask"])))
            method = quirks.BrokenResampling(
                denoise, measurement, particles=n, keep=keep, exact=False, final_draws=jnp.asarray(drawn[-1])
            )
            references = references[:, :, None]
            at_t, at_s = (references[run["loop_pairs"][:, k]] for k in (0, 1))
            noise = {"move": move[:, :, None], "first": at_t, "known": at_s, "gumbel": drawn[:-1]}
            result = go(method, kernel, table, x_T[:, None], noise, dtype)
            name = f"{golden_file.stem} {dtype.__name__}"
            check(f"{name} states", result.trace[run["x_idx"]][:, :, 0], run["x_traj"], tolerance)
            check(f"{name} final", result.x[:, 0], run["final"], tolerance)
