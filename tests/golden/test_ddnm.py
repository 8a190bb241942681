"""DDNM's own code (both forms, with and without noise) and CoPaint's copy of it, replayed draw by draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import compose_climb, denoiser, draw, draws_by_step
from golden_files import check, load
from quirks_spectral import (
    VP,
    OtherSingularValues,
    Simple,
    SquaredAlpha,
    Stored,
    UnrotatedEps,
    mixture,
    singular_values,
    stored_bases,
    travel_draws,
)

import diffjax as dj

QUICK = {"xla_backend_optimization_level": 0}  # these programs take longer to compile than to run
TOLERANCE = {jnp.float64: 1e-9, jnp.float32: 1e-4}
PUBLISHED = {"ddnm": (100, 1, 1), "ddnm-travel": (100, 10, 3)}  # (T_sampling, travel_length, travel_repeat) of its configs


def svd_method(run, meta, shape, dtype):
    """(y, denoise) -> method, and the matrix that brings the recorded move noise to image space (None: it is there)."""
    right, left = stored_bases(run, shape, "A")
    s = singular_values(run, shape)
    measured = lambda y, s, std: dj.Measurement(y, Stored(right, left, s, shape), std, value_range=(-20.0, 20.0))
    if meta["sigma_y"] == 0:
        return (lambda y, denoise: dj.methods.DDNM(denoise, measured(y, s, 0.0))), None
    layout = right @ stored_bases(run, shape, "A", rotated=False)[0].T
    unrotated = lambda denoise: UnrotatedEps(denoise, jnp.asarray(layout, dtype))
    if "A_singulars_orig" not in run:
        return (lambda y, d: dj.methods.DDNMPlus(unrotated(d), measured(y, s, meta["sigma_y"]), meta["eta"])), layout
    own = np.repeat(run["A_singulars_orig"], shape[0])
    make = lambda y, d: OtherSingularValues(unrotated(d), measured(y, own, meta["sigma_y"]), meta["eta"], tiled=s)
    return make, layout


def simplified_method(run, meta, shape, dtype):
    mask = run["mask"] if "mask" in run else np.ones(shape[1:])
    scale = int(meta["deg_scale"]) or 1
    A = Simple(mask, scale, "color" in meta["deg"])
    measured = lambda y: dj.Measurement(y, A, meta["sigma_y"], value_range=(-10.0, 10.0))
    return (lambda y, d: SquaredAlpha(d, measured(y), meta["eta"], "simplified")), None


def ddnm_table(n, length, repeats):
    """Ours. A travel as long as the walk never happens in official runs; ours is refused."""
    if repeats > 1 and length >= n:
        with pytest.raises(ValueError, match="is longer than a walk of"):
            dj.timetables.ddnm(VP, n, length, repeats)
        repeats = 1
    return dj.timetables.ddnm(VP, n, length, repeats)


def same_walk(table, other):
    for name in "tsr":
        np.testing.assert_array_equal(getattr(table, name), getattr(other, name), err_msg=name)


def replay(run, meta, dtype):
    """(result, states before each row and after the last) of a batch."""
    shape = tuple(meta["image"][1:])
    make, layout = (simplified_method if meta["variant"] == "simplified" else svd_method)(run, meta, shape, dtype)
    times = np.where(run["times"] < 0, 0, run["times"] * (1000 // meta["T_sampling"]) + 1)
    table = dj.timetables.from_walk(times)
    same_walk(table, ddnm_table(meta["T_sampling"], meta["travel_length"], meta["travel_repeat"]))
    assert (run["model_t"] + 1 == table.t).all()

    ddim = meta["sigma_y"] == 0 and meta["variant"] != "simplified"
    kernel = dj.kernels.DDIM(VP, zeta=meta["eta"] ** 2) if ddim else dj.kernels.Marginal(VP)
    rows = run["draw__plus_noise" if "draw__plus_noise" in run else "draw__ddim_noise"].astype(np.float64)
    if layout is not None:
        rows = (rows.reshape(*rows.shape[:2], -1) @ layout.T).reshape(rows.shape)
    pairs = list(zip(run["times"][:-1], run["times"][1:]))
    jumps = jnp.asarray(travel_draws(pairs, run["draw__travel_noise"]), dtype) if table.jumps else None
    denoise = mixture(run, dtype)

    def one(y, x, rows, jumps):
        recorded = dj.Draws(None, rows, jumps)
        trace = lambda x, row, info: x
        result = dj.sample(None, make(y, denoise), table, x, kernel=kernel, recorded=recorded, trace=trace)
        return result.x, jnp.concatenate([x[None], result.trace]), result.state.inner[1]

    y = run["y"] if meta["variant"] == "simplified" else run["y"].reshape(len(run["y"]), -1)
    fn = jax.jit(jax.vmap(one, (0, 0, 1, None if jumps is None else 1)), compiler_options=QUICK)
    return fn(jnp.asarray(y, dtype), jnp.asarray(run["draw__x_T"][0], dtype), jnp.asarray(rows, dtype), jumps)


@pytest.mark.golden("plug_and_play", "ddnm")
def test_ddnm_replays(golden_file):
    run, meta = load(golden_file)
    for dtype in [jnp.float32] + [jnp.float64] * (meta["mode"] == "f64"):
        with jax.enable_x64(dtype is jnp.float64):
            end, states, x0 = replay(run, meta, dtype)
            label = f"{golden_file.stem} {dtype.__name__}"
            assert end.dtype == dtype
            check(f"{label} final", end, run["final"], TOLERANCE[dtype])
            if dtype is jnp.float64:
                check(f"{label} x0", x0, run["final_x0"], TOLERANCE[dtype])
                check(f"{label} states", states[:, run["step_index"]].swapaxes(0, 1), run["step_x"], TOLERANCE[dtype])


def copaint_replay(run, meta, dtype):
    """CoPaint's copy of the simplified form: x0 clamped, steps up one by one from x; the batch as one array."""
    schedule, denoise = denoiser(run, meta, dtype)
    config, shape = meta["config"], run["gt"].shape
    sr = config["mode"] == "super_resolution"
    A = Simple(np.ones((1, 1)) if sr else run["mask"], config["scale"] if sr else 1)
    level = np.concatenate([[0], run["timestep_map"] + 1])
    pairs, found = run["loop_pairs"], draws_by_step(run, meta)
    table = dj.timetables.from_walk(level[np.append(pairs[:1, 0], pairs[:, 1]) + 1])
    down = np.flatnonzero(pairs[:, 1] < pairs[:, 0])
    ends = np.append(down[1:], len(pairs)) - 1  # last loop step of each row
    get = lambda step, purpose: draw(run, found[(int(step), purpose)][0], shape)
    rows = np.stack([get(n, "ddnm_noise") for n in down])
    jumps = np.zeros(rows.shape) if table.jumps else None
    for row, (first, last) in enumerate(zip(down, ends)):
        if last > first:
            times = level[np.append(pairs[first, 1], pairs[first + 1 : last + 1, 1]) + 1]
            jumps[row] = compose_climb(schedule, times, [get(n, "undo_noise") for n in range(first + 1, last + 1)])
    recorded = jax.tree.map(lambda a: jnp.asarray(a, dtype), dj.Draws(None, rows, jumps))
    settings = config["ddnm"]

    def go(gt, x, recorded):
        measured = dj.Measurement(A(gt), A, settings.get("sigma_y", 0.0))
        prior = dj.denoisers.clipped(denoise, keep_eps=True)
        method = SquaredAlpha(prior, measured, settings.get("eta", 0.85), "simplified", travel="x", level="t")
        kernel = dj.kernels.Marginal(schedule)
        return dj.sample(None, method, table, x, kernel=kernel, recorded=recorded, trace=lambda x, row, info: x)

    x_T = draw(run, found[(-1, "x_T")][0], shape)
    return jax.jit(go, compiler_options=QUICK)(jnp.asarray(run["gt"], dtype), jnp.asarray(x_T, dtype), recorded), ends


@pytest.mark.golden("inpainting", "ddnm_")
def test_copaints_ddnm_replays(golden_file):
    run, meta = load(golden_file)
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(dtype is jnp.float64):
            result, ends = copaint_replay(run, meta, dtype)
            label = f"{golden_file.stem} {dtype.__name__}"
            check(f"{label} final", np.clip(result.x, -1, 1), run["final"], TOLERANCE[dtype])
            seen = np.isin(run["x_idx"], ends)
            states = np.asarray(result.trace)[np.searchsorted(ends, run["x_idx"][seen])]
            check(f"{label} states", states, run["x_traj"][seen], TOLERANCE[dtype])


@pytest.mark.golden("plug_and_play", "ops_ddnm_schedules")
def test_travel_lists(golden_file):
    run, meta = load(golden_file)
    names = [name for name in run if name.startswith("T")]
    assert names
    for name in names:
        n, jump, times = (int(part[1:]) for part in name.split("_"))
        walk = dj.timetables.jump_walk(n, jump, times)
        np.testing.assert_array_equal(walk, run[name], err_msg=name)
        assert int((np.diff(walk) < 0).sum()) == meta["model_evals"][name]
        official = np.where(run[name] < 0, 0, run[name] * (1000 // n) + 1)  # skip = 1000 // T_sampling
        same_walk(dj.timetables.from_walk(official), ddnm_table(n, jump, times))
        for published, settings in PUBLISHED.items():
            if settings == (n, jump, times):
                same_walk(dj.timetables.from_walk(official), dj.timetables.published(published, VP))
