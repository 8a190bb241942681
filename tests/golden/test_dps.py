"""DPS's own code and CoPaint's copy of it, replayed draw by draw (the recorded batch as one array)."""

import closed_form
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quirks_gradients as quirks
from golden_files import check, load

import diffjax as dj

TOLERANCE = {"f64": 1e-9, "f32": 1e-4}
DTYPE = {"f64": jnp.float64, "f32": jnp.float32}
QUICK = {"xla_backend_optimization_level": 1}  # these programs take longer to compile than to run


def table_of(run):
    return dj.timetables.from_times(np.append(run["timestep_map"][::-1] + 1, 0))


def kernel_of(meta, schedule):
    if meta["sampler"] == "ddim":
        return dj.kernels.DDIM(schedule)
    return dj.kernels.DDPM(schedule, variance="large" if "fixed_large" in meta["var_type"] else "learned_range")


def own_replay(run, meta, dtype):
    """(Result with a trace of the states, of the losses) of a run of DPS's repository."""
    schedule, denoise = quirks.denoiser(run, meta, dtype)
    kernel, table = kernel_of(meta, schedule), table_of(run)
    rows = run["draw__step_noise"] if "draw__step_noise" in run else np.zeros((len(table), *meta["image"]))
    cls = dj.methods.DPS
    if meta["method"] == "ps+":
        cls = quirks.Jittered
        rows = {"move": rows, "uniform": run["draw__psplus_uniform"].reshape(len(table), -1, *meta["image"])}
    recorded = jax.tree.map(lambda a: jnp.asarray(a, dtype), dj.Draws(None, rows))
    A, scale = quirks.operator(run, meta, dtype), quirks.poisson_scale(run, meta)

    def walk(y, x_T):
        method = cls(denoise, dj.Measurement(y, A, value_range=(-2.0, 2.0)), scale=scale)
        return dj.sample(
            None, method, table, x_T, kernel=kernel, recorded=recorded, trace=lambda x, row, info: (x, info["loss"])
        )

    walk = jax.jit(walk, compiler_options=QUICK)
    return walk(jnp.asarray(run["y"], dtype), jnp.asarray(run["draw__x_T"][0], dtype)), A


def modes(meta):
    return [m for m in ("f64", "f32") if m == "f32" or meta["mode"] == "f64"]


@pytest.mark.golden("plug_and_play", "dps_")
def test_own_code_replays(golden_file):
    run, meta = load(golden_file)
    for mode in modes(meta):
        with jax.enable_x64(mode == "f64"):
            result, A = own_replay(run, meta, DTYPE[mode])
            label, tolerance = f"{golden_file.stem} {mode}", TOLERANCE[mode]
            check(f"{label} A(x)", A(jnp.asarray(run["x_true"], DTYPE[mode])), run["Ax"], max(tolerance, 1e-6))
        states, losses = result.trace
        assert result.x.dtype == DTYPE[mode]
        assert len(states) == len(run["model_t"])
        check(f"{label} final", result.x, run["final"], tolerance)
        for index, x in zip(run["step_index"], run["step_x"]):
            if index > 0:
                check(f"{label} x at call {index}", states[index - 1], x, tolerance)
        if meta["method"] == "ps" and meta["noise"]["name"] != "poisson":
            check(f"{label} norms", losses, run["norms"], tolerance)


class BlockMeans(dj.operators.Operator):
    """Block means of a batch (B, C, H, W)."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        b, c, h, w = x.shape
        f = self.factor
        return x.reshape(b, c, h // f, f, w // f, f).mean((3, 5))


@pytest.mark.golden("inpainting", "dps_")
def test_copaints_copy_replays(golden_file):
    """It moves by DDIM with eta = 1 and stops at the lowest level of the table, clamped; y has noise 1e-4."""
    run, meta = load(golden_file)
    level = np.concatenate([[0], run["timestep_map"] + 1])
    pairs = run["loop_pairs"]
    table = dj.timetables.from_walk(level[np.concatenate([pairs[:1, 0], pairs[:, 1]]) + 1])
    found, shape = closed_form.draws_by_step(run, meta), run["gt"].shape
    get = lambda step, purpose, shape=shape: closed_form.draw(run, found[(step, purpose)][0], shape)
    noise = np.stack([get(n, "ddpm_noise") for n in range(len(pairs))])
    for mode in ("f64", "f32"):
        dtype = DTYPE[mode]
        with jax.enable_x64(mode == "f64"):
            schedule, denoise = closed_form.denoiser(run, meta, dtype)
            A = BlockMeans(meta["config"]["scale"]) if meta["config"]["mode"] == "super_resolution" else None
            A = quirks.AllPixels(jnp.asarray(run["mask"], dtype)) if A is None else A
            clean = A(jnp.asarray(run["gt"], dtype))
            measured = [p for s, p in found if p == "measurement_noise"]
            assert len(measured) == 1
            y = clean + 1e-4 * get(-1, "measurement_noise", clean.shape).astype(clean.dtype)
            settings = meta["config"]["dps"]
            kernel = dj.kernels.DDIM(schedule, eta=settings["eta"])
            recorded = dj.Draws(None, jnp.asarray(noise, dtype))

            def walk(y, x_T):
                method = dj.methods.DPS(dj.denoisers.clipped(denoise), dj.Measurement(y, A), scale=settings["step_size"])
                return dj.sample(None, method, table, x_T, kernel=kernel, recorded=recorded, trace=lambda x, row, info: x)

            x_T = jnp.asarray(get(-1, "x_T"), dtype)
            result = jax.jit(walk, compiler_options=QUICK)(y, x_T)
        label, tolerance = f"{golden_file.stem} {mode}", TOLERANCE[mode]
        check(f"{label} final", np.clip(result.x, -1, 1), run["final"], tolerance)
        check(f"{label} states", np.asarray(result.trace)[run["x_idx"]], run["x_traj"], tolerance)
