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
    """Its particles are the recorded batch. What is refused: x never receives the step (``BrokenResampling``).

    How often a particle is kept jumps where n times its weight is a whole number. Near one, a rounding decides, and everything
    after depends on it: there, and only there, the float32 run is told what the float64 run decided. Its weights have to agree
    with float64's by less than that margin, so that no other choice can differ."""
    run, meta = load(golden_file)
    n, keep, rows = len(run["gt"]), meta["config"]["resample"]["keep_n_samples"], len(run["loop_pairs"])
    drawn = np.full((rows + 1, n), -1)  # the recorder calls the final choice by the last step's number
    for step, indices in zip(run["multi_step"], run["multi_idx"]):
        drawn[step if step < rows - 1 else rows, : len(indices)] = indices
    of = np.append(np.full(rows, n), keep)[:, None]  # how many each choice takes
    exact = None  # (rows + 1, n): what float64, which comes first, takes n w_i for
    for dtype, tolerance in TOLERANCE.items():
        with jax.enable_x64(dtype == jnp.float64):
            denoise, kernel, table, move, references, x_T = parts(run, meta, dtype)
            image = lambda a: jnp.asarray(a[:1], dtype)  # (1, C, H, W)
            measurement = dj.Measurement(image(run["gt"]), dj.operators.Mask(image(run["mask"])))
            given = np.stack([drawn, np.full_like(drawn, -1) if exact is None else np.floor(exact).astype(int)], 1)
            method = quirks.BrokenResampling(
                denoise, measurement, particles=n, keep=keep, exact=False, final=jnp.asarray(given[-1])
            )
            references = references[:, :, None]
            at_t, at_s = (references[run["loop_pairs"][:, k]] for k in (0, 1))
            noise = {"move": move[:, :, None], "first": at_t, "known": at_s, "gumbel": given[:-1]}
            result = go(method, kernel, table, x_T[:, None], noise, dtype)
            name = f"{golden_file.stem} {jnp.dtype(dtype).name}"
            check(f"{name} states", result.trace[run["x_idx"]][:, :, 0], run["x_traj"], tolerance)
            check(f"{name} final", result.x[:, 0], run["final"], tolerance)
            shares = of * np.vstack([result.info.rows["weights"], result.info.final["weights"]])
            if exact is None:
                exact = shares
            else:
                could_be_kept = exact > 0.5
                check(f"{name} weights", shares[could_be_kept] / exact[could_be_kept], 1.0 + 0 * exact[could_be_kept], 0.01)
                whole = np.maximum(np.round(exact), 1)
                near = (np.abs(exact - whole) < quirks.NEAR_TIE * whole).any(1).sum()
                print(f"{name}: {near} of {rows + 1} choices are near a tie and taken from float64")
