"""CoPaint's own code, replayed draw by draw: the recorded batch as one array, so that one search serves it as it did there."""

import jax
import jax.numpy as jnp
import numpy as np
import official_quirks as quirks
import pytest
from closed_form import compose_climb, denoiser, draw, draws_by_step
from golden_files import check, load

import diffjax as dj

QUICK = {"xla_backend_optimization_level": 1}  # these programs take longer to compile than to run


def average_pool(x, scale):
    """Block means of an (N, C, H, W) batch."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // scale, scale, w // scale, scale).mean((3, 5))


def replay(run, meta, dtype):
    """(x_T or start draws -> Result, loop step at which each row ends, optimised rows)"""
    settings, config = meta["config"]["optimize_xt"], meta["config"]
    schedule, denoise = denoiser(run, meta, dtype)
    kernel = dj.kernels.DDIM(schedule, eta=config["ddim"]["ddim_sigma"])
    level = run["timestep_map"] + 1
    pairs, shape = run["loop_pairs"], run["gt"].shape
    walk = level[np.concatenate([pairs[:1, 0], pairs[:, 1]])]
    before = settings["optimize_before_time_travel"]
    table = dj.timetables.from_walk(walk, before_jump=before)

    found = draws_by_step(run, meta)
    down = np.flatnonzero(pairs[:, 1] < pairs[:, 0])
    ends = np.append(down[1:], len(pairs)) - 1
    get = lambda step, purpose, which: draw(run, found[(int(step), purpose)][which], shape)
    moves, jumps, row_ends = [], [], []
    for first, last in zip(down, ends):
        # the last DDIM draw of a step is the move's; earlier ones belong to the multi-step estimate and are multiplied by 0
        moves.append(get(first, "ddim_noise", -1))
        climbs = last > first
        row_ends.append(first if climbs and before else last)
        if climbs and before:
            moves.append(np.zeros(shape))
            jumps.append(np.zeros(shape))
            row_ends.append(last)
        if climbs:
            times = level[np.append(pairs[first, 1], pairs[first + 1 : last + 1, 1])]
            jumps.append(compose_climb(schedule, times, [get(n, "undo_noise", 0) for n in range(first + 1, last + 1)]))
        else:
            jumps.append(np.zeros(shape))
    assert len(moves) == len(table)

    if config["mode"] == "super_resolution":
        A = dj.operators.from_function(lambda x: average_pool(x, config["scale"]), shape)
        y = average_pool(jnp.asarray(run["gt"], dtype), config["scale"])
    else:
        mask = quirks.MaskOfBatch if settings["filter_xT"] else dj.operators.Mask
        A, y = mask(jnp.asarray(run["mask"], dtype)), jnp.asarray(run["gt"], dtype)
    candidates = 20 if settings["filter_xT"] else 1
    method = dj.methods.CoPaint(
        denoise,
        dj.Measurement(y, A),
        lr=settings["lr_xt"],
        lr_decay=settings["lr_xt_decay"],
        reg=settings["coef_xt_reg"],
        reg_decay=settings["coef_xt_reg_decay"],
        iterations=settings["num_iteration_optimize_xt"],
        smart=settings["use_smart_lr_xt_decay"],
        adaptive=settings["use_adaptive_lr_xt"],
        tolerance=0.0 if dtype == jnp.float64 else None,
        estimate_steps=settings["mid_interval_num"],
        candidates=candidates,
        keep=shape[0] if candidates > 1 else 1,
        exact=False,
    )
    starts = [
        run["draw_data"][run["draw_start"][n] :][: int(np.prod([s for s in run["draw_shape"][n] if s]))]
        for n in found[(-1, "x_T")]
    ]
    start = starts[0].reshape(shape) if candidates == 1 else np.stack(starts).reshape(candidates, 1, *shape[1:])
    recorded = jax.tree.map(
        lambda a: jnp.asarray(a, dtype), dj.Draws(start, np.stack(moves), np.stack(jumps) if table.jumps else None)
    )

    def go(recorded):
        return dj.sample(
            None, method, table, shape, kernel=kernel, recorded=recorded, dtype=dtype, trace=lambda x, row, info: x
        )

    return jax.jit(go, compiler_options=QUICK)(recorded), np.array(row_ends)


@pytest.mark.golden("inpainting", "copaint_")
def test_copaint_replays(golden_file):
    run, meta = load(golden_file)
    name = golden_file.stem
    main = run["opt_kind"] != 2
    with jax.enable_x64(True):
        result, ends = replay(run, meta, jnp.float64)
        check(f"{name} final float64", result.x, run["final"], 1e-8)
        seen = np.isin(run["x_idx"], ends)
        check(
            f"{name} states float64",
            np.asarray(result.trace)[np.searchsorted(ends, run["x_idx"][seen])],
            run["x_traj"][seen],
            1e-8,
        )
        np.testing.assert_array_equal(result.info.rows["reductions"], run["opt_iter_backtracks"][main])
        if meta["config"]["optimize_xt"]["mid_interval_num"] == 1:
            check(f"{name} losses", result.info.rows["loss"], run["opt_loss_after"][main], 1e-8)
            assert int(result.info.rows["calls"].sum()) == int((run["model_step"] >= 0).sum())
    result, _ = replay(run, meta, jnp.float32)
    stiff = meta.get("f32_vs_f64_max_abs", 0) > 5e-6  # the official float32 run itself strays: its search follows rounding
    check(f"{name} final float32", result.x, run["final"], 1e-3 if stiff else 1e-4)
