"""MCG's own code and the copy in DPS's repository, replayed draw by draw (the recorded batch as one array)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quirks_gradients as quirks
from golden_files import check, load
from test_dps import DTYPE, QUICK, TOLERANCE, kernel_of, modes, table_of

import diffjax as dj


def replay(run, meta, dtype):
    """Result with a trace of the states."""
    own = "MCG" in meta["system"]
    meta = {"sampler": "ddpm", "var_type": "learned_range", "operator": "mask", **meta}
    schedule, denoise = quirks.denoiser(run, meta, dtype)
    table, repeats = table_of(run), meta.get("repeat_steps") or 1
    A = dj.operators.Mask(jnp.asarray(run["mask"], dtype)) if own else quirks.operator(run, meta, dtype)
    cls = quirks.NoisedAbove if own else quirks.Projected
    # "repaint" calls the network on the same x_t again and again; only the last of a step's states is kept
    last = lambda name: run[f"draw__{name}"][repeats - 1 :: repeats]
    rows = {"move": last("step_noise"), "known": last("known_noise" if own else "noisy_measurement")}
    recorded = jax.tree.map(lambda a: jnp.asarray(a, dtype), dj.Draws(None, rows))
    scale = meta["scale"] if meta["method"].lower() == "mcg" else 0.0
    kernel = kernel_of(meta, schedule)

    def walk(y, x_T):
        method = cls(denoise, dj.Measurement(y, A, value_range=(-2.0, 2.0)), scale=scale)
        return dj.sample(None, method, table, x_T, kernel=kernel, recorded=recorded, trace=lambda x, row, info: x)

    y, x_T = jnp.asarray(run["y"], dtype), jnp.asarray(run["draw__x_T"][0], dtype)
    return jax.jit(walk, compiler_options=QUICK)(y, x_T), repeats


@pytest.mark.golden("plug_and_play", "mcg_", "dpsrepo_mcg_")
def test_mcg_replays(golden_file):
    run, meta = load(golden_file)
    for mode in modes(meta):
        with jax.enable_x64(mode == "f64"):
            result, repeats = replay(run, meta, DTYPE[mode])
        label, tolerance = f"{golden_file.stem} {mode}", TOLERANCE[mode]
        assert result.x.dtype == DTYPE[mode]
        assert len(result.trace) * repeats == len(run["model_t"])
        check(f"{label} final", result.x, run["final"], tolerance)
        for index, x in zip(run["step_index"], run["step_x"]):
            if index >= repeats:
                check(f"{label} x at call {index}", np.asarray(result.trace)[index // repeats - 1], x, tolerance)
