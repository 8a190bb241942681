"""RePaint's own code and CoPaint's copy of it, replayed draw by draw (the recorded batch as one array)."""

import jax
import jax.numpy as jnp
import numpy as np
import official_quirks as quirks
import pytest
from closed_form import compose_climb, denoiser, draw, draws_by_step
from golden_files import check, load

import diffjax as dj

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


RENAMED = {"jump_length": "jump", "jump_n_sample": "times", "jump2_length": "jump2", "jump2_n_sample": "times2"}
RENAMED |= {"jump3_length": "jump3", "jump3_n_sample": "times3"}
PAPER = ("250", {"jump": 10, "times": 10, "n_sample": 1})


def same_as_configured(table, meta, schedule):
    """``timetables.repaint`` of the recorded configuration walks the recorded walk; "repaint" is the paper's."""
    config = meta.get("schedule_jump_params") or meta["config"]["repaint"]["schedule_jump_params"]
    jumps = {RENAMED.get(k, k): v for k, v in config.items() if k != "t_T"}
    grid = dj.timetables.respaced(schedule, meta["timestep_respacing"])
    if jumps["times"] > 1 and jumps["jump"] >= len(grid):  # official runs climb nowhere then, ours is refused
        return
    ours = dj.timetables.repaint(schedule, grid=grid, **jumps)
    if (meta["timestep_respacing"], jumps) == PAPER and schedule.T == 1000:
        ours = dj.timetables.published("repaint", schedule)
    for name in "tsr":
        np.testing.assert_array_equal(getattr(ours, name), getattr(table, name), err_msg=name)


def replay(run, meta, dtype):
    """(x -> Result, x_T, table rows' loop step) for a run."""
    schedule, denoise = denoiser(run, meta, dtype)
    kernel = dj.kernels.DDPM(schedule, variance="learned" if meta.get("model_var_type") == "LEARNED" else "learned_range")
    if meta.get("cond_scale"):
        gradient = jax.tree_util.Partial(lambda c, x, t: c - x, jnp.asarray(run["cond_center"], dtype))
        kernel = dj.kernels.guided(kernel, gradient, jnp.asarray(meta["cond_scale"], dtype))
    denoise = dj.denoisers.clipped(denoise)

    level = np.concatenate([[0], run["timestep_map"] + 1])  # house time of official index i is level[i + 1]
    pairs = run["loop_pairs"]
    table = dj.timetables.from_walk(level[np.concatenate([pairs[:1, 0], pairs[:, 1]]) + 1])
    same_as_configured(table, meta, schedule)

    found, shape = draws_by_step(run, meta), run["gt"].shape
    down = np.flatnonzero(pairs[:, 1] < pairs[:, 0])
    ends = np.append(down[1:], len(pairs)) - 1  # last loop step of each row
    get = lambda step, purpose: [draw(run, n, shape) for n in found.get((int(step), purpose), [])]
    move = np.stack([get(n, "posterior_noise")[0] for n in down])
    known = np.stack([(get(n, "gt_noise") or [np.zeros(shape)])[0] for n in down])
    jumps = np.zeros((len(table), *shape)) if table.jumps else None
    for row, (first, last) in enumerate(zip(down, ends)):
        if last > first:
            noises = [get(n, "undo_noise")[0] for n in range(first + 1, last + 1)]
            jumps[row] = compose_climb(schedule, level[np.append(pairs[first, 1], pairs[first + 1 : last + 1, 1]) + 1], noises)

    injected = meta.get("inject_known", True)
    rows = {"move": move, "known": known} if injected else move
    recorded = jax.tree.map(lambda a: jnp.asarray(a, dtype), dj.Draws(None, rows, jumps))
    x_T = jnp.asarray(draw(run, found[(-1, "x_T")][0], shape), dtype)
    mask = dj.operators.Mask(jnp.asarray(run["mask"], dtype)) if "mask" in run else None

    shares = "mask" in run and bool(((run["mask"] > 0) & (run["mask"] < 1)).any())
    repaint = quirks.Shares if shares else dj.methods.RePaint

    def run_it(y, x_T, trace=None):
        method = repaint(denoise, dj.Measurement(y, mask), exact=False) if injected else denoise
        return dj.sample(None, method, table, x_T, kernel=kernel, recorded=recorded, trace=trace)

    return run_it, x_T, ends


@pytest.mark.golden("inpainting", "repaint_")
def test_repaint_replays(golden_file):
    run, meta = load(golden_file)
    with jax.enable_x64(True):
        run_it, x_T, ends = replay(run, meta, jnp.float64)
        y = jnp.asarray(run["gt"], jnp.float64)
        result = jax.jit(lambda y, x: run_it(y, x, trace=lambda x, row, info: x))(y, x_T)
        check(f"{golden_file.stem} final float64", result.x, run["final"], TOLERANCE["float64"])
        seen = np.isin(run["x_idx"], ends)
        assert seen.any()
        states = np.asarray(result.trace)[np.searchsorted(ends, run["x_idx"][seen])]
        check(f"{golden_file.stem} states float64", states, run["x_traj"][seen], TOLERANCE["float64"])
        assert len(result.info.finite) == len(run["model_ts"]) == meta["nfe_total"]
        if "grad_gt" in run:
            u = jnp.asarray(run["grad_u"], jnp.float64)
            grad = jax.jit(jax.grad(lambda y: (u * run_it(y, x_T).x).sum()))(y)
            check(f"{golden_file.stem} gradient float64", grad, run["grad_gt"], TOLERANCE["float64"])
    run_it, x_T, _ = replay(run, meta, jnp.float32)
    result = jax.jit(lambda y, x: run_it(y, x).x)(jnp.asarray(run["gt"], jnp.float32), x_T)
    assert result.dtype == jnp.float32
    check(f"{golden_file.stem} final float32", result, run["final"], TOLERANCE["float32"])
