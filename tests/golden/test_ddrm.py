"""DDRM's own code and CoPaint's copy of it, replayed draw by draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import denoiser, draw, draws_by_step
from golden_files import check, load
from quirks_spectral import VP, Stored, ddrm_draws, ddrm_operator, mixture, stored_bases

import diffjax as dj

QUICK = {"xla_backend_optimization_level": 0}  # these programs take longer to compile than to run
TOLERANCE = {jnp.float64: 1e-9, jnp.float32: 1e-4}


def run_dtype(meta):
    return jnp.float32 if meta["mode"] == "f32" else jnp.float64


def replay(run, meta, dtype, operator=None):
    """(result, states after each row) of a batch; ``operator``: (A, y) in place of the stored ones."""
    shape = tuple(meta["image"][1:])
    A, right = ddrm_operator(run, meta, shape)
    A, y = (A, run["y"]) if operator is None else operator
    table = dj.timetables.from_times(np.append(run["seq"][::-1] + 1, 0))
    assert (run["model_t"] + 1 == table.t).all()
    if meta["timesteps"] == 20:  # the paper's
        np.testing.assert_array_equal(table.t, dj.timetables.published("ddrm", VP).t)
    kernel, denoise = dj.kernels.Marginal(VP), mixture(run, dtype)
    start, rows = ddrm_draws(run, meta, table, right)
    images = lambda a: jnp.asarray(a.reshape(*a.shape[:-1], *shape), dtype)
    # without noise the official comparisons leave the last step to the network alone
    noiseless = meta["sigma_0"] == 0
    walk = table[:-1] if noiseless else table

    def one(y, start, rows):
        measured = dj.Measurement(y, A, meta["sigma_0"], value_range=(-10.0, 10.0))
        method = dj.methods.DDRM(denoise, measured, meta["eta"], meta["etaB"])
        top = jax.tree.map(lambda a: a[0], table.rows())
        x = method.start(kernel, top, start) / VP.sigma(top.t).astype(dtype)  # the official start is not scaled by alpha
        recorded = dj.Draws(None, rows[: len(walk)], None)
        result = dj.sample(None, method, walk, x, kernel=kernel, recorded=recorded, trace=lambda x, row, info: x)
        end = denoise(result.x, jnp.asarray(table.t[-1], dtype)).x0 if noiseless else result.x
        return end, jnp.concatenate([x[None], result.trace])

    fn = jax.jit(jax.vmap(one, (0, 0, 1)), compiler_options=QUICK)
    return fn(jnp.asarray(y, dtype), images(start), images(rows))


@pytest.mark.golden("plug_and_play", "ddrm_")
def test_ddrm_replays(golden_file):
    run, meta = load(golden_file)
    for dtype in {jnp.float32, run_dtype(meta)}:
        with jax.enable_x64(dtype is jnp.float64):
            end, states = replay(run, meta, dtype)
            label = f"{golden_file.stem} {dtype.__name__}"
            assert end.dtype == dtype
            check(f"{label} final", end, run["final"], TOLERANCE[dtype])
            if "step_x" in run and dtype is jnp.float64:
                check(f"{label} states", states[:, run["step_index"]].swapaxes(0, 1), run["step_x"], TOLERANCE[dtype])


def copaint_replay(run, meta, dtype):
    """CoPaint's copy: eta 0 and no noise, from the last kept step to its first, clamped; the batch of one as one array."""
    schedule, denoise = denoiser(run, meta, dtype)
    shape = run["gt"].shape
    if meta["config"]["mode"] == "super_resolution":
        small = {"H_V_small": run["sr_V"], "H_U_small": run["sr_U"], "singulars": np.repeat(run["sr_S"], run["gt"].size // 4)}
        s = np.pad(small["singulars"], (0, run["gt"].size - len(small["singulars"])))
    else:
        known = np.broadcast_to(run["mask"][0], shape[1:]).transpose(1, 2, 0).reshape(-1) == 1
        hidden = np.flatnonzero(~known).reshape(-1, shape[1]).T.reshape(-1)  # all red, all green, all blue
        small = {"H_kept_indices": np.flatnonzero(known), "H_missing_indices": hidden, "singulars": np.ones(known.sum())}
        s = np.pad(small["singulars"], (0, len(hidden)))
    right, left = stored_bases(small, shape[1:], "H")
    A = Stored(right, left, s, shape)
    level, pairs = run["timestep_map"] + 1, run["loop_pairs"]
    table = dj.timetables.from_times(level[np.append(pairs[:1, 0], pairs[:, 1])])
    found, measured = draws_by_step(run, meta), len(small["singulars"])
    spectral = lambda step, purpose, n: np.pad(draw(run, found[(step, purpose)][0], (1, n))[0], (0, len(s) - n))
    rows = np.stack([spectral(n, "etaB_noise", measured) @ right.T for n in range(len(table))]).reshape(-1, *shape)
    start = (draw(run, found[(-1, "x_T")][0], shape).reshape(-1) @ right.T).reshape(shape)

    def go(gt, start, rows):
        y = A(gt)
        method = dj.methods.DDRM(denoise, dj.Measurement(y, A), eta=0.0)
        top = jax.tree.map(lambda a: a[0], table.rows())
        x = method.start(dj.kernels.Marginal(schedule), top, start) / schedule.sigma(top.t).astype(dtype)
        recorded = dj.Draws(None, rows, None)
        kernel = dj.kernels.Marginal(schedule)
        return dj.sample(None, method, table, x, kernel=kernel, recorded=recorded, trace=lambda x, row, info: x)

    args = (jnp.asarray(a, dtype) for a in (run["gt"], start, rows))
    return jax.jit(go, compiler_options=QUICK)(*args)


@pytest.mark.golden("inpainting", "ddrm_")
def test_copaints_ddrm_replays(golden_file):
    run, meta = load(golden_file)
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(dtype is jnp.float64):
            result = copaint_replay(run, meta, dtype)
            label = f"{golden_file.stem} {dtype.__name__}"
            check(f"{label} final", np.clip(result.x, -1, 1), run["final"], TOLERANCE[dtype])
            check(f"{label} states", np.asarray(result.trace)[run["x_idx"]], run["x_traj"], TOLERANCE[dtype])
