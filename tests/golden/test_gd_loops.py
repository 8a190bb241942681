"""The recorded sampling loops of guided-diffusion: ancestral, DDIM, DDIM upwards, with and without a classifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gd_closed_form import FLOAT32, FLOAT64, VARIANCES, channels_last, gradient_of_class, in_dtype, levels, quick_jit, rebuild
from golden_files import check, load
from official_quirks import clipped_mean

import diffjax as dj
from diffjax.denoisers import clipped
from diffjax.kernels import DDIM, DDPM, guided


@dj.base.pytree
class Watched(dj.Method):
    """Plain sampling that also reports the prediction each move was made from."""

    def step(self, kernel, x, state, row, noise):
        p = self.predict(x, row.t)
        x, state = kernel.step(self.predict, x, state, row, noise, first=p)
        return x, state, {"x0": p.x0}


@pytest.mark.golden("ddpm", "gd_loop_")
def test_sampling_loops(golden_file):
    run, meta = load(golden_file)
    kind, mean = meta["kind"], meta["mean"]
    assert kind in ("ancestral", "ddim", "reverse")
    for dtype, tolerance in ((jnp.float64, FLOAT64), (jnp.float32, FLOAT32)):
        with jax.enable_x64(dtype is jnp.float64):
            schedule, denoise, params, time = rebuild(run, meta, mean, meta["var"], dtype)
            if meta["clip_denoised"]:
                denoise = clipped_mean(denoise, mean) if kind == "ancestral" else clipped(denoise)
            kernel = (
                DDPM(schedule, variance=VARIANCES[meta["var"]]) if kind == "ancestral" else DDIM(schedule, eta=meta["eta"])
            )
            up = levels(run, meta, mean)
            table = dj.timetables.from_times(up if kind == "reverse" else np.append(up[::-1], 0))
            start = in_dtype(channels_last(run["x0" if kind == "reverse" else "draw0"]), dtype)
            draws = (
                in_dtype(channels_last(run["draws"]), dtype)
                if "draws" in run
                else jnp.zeros((len(table), *start.shape), dtype)
            )

            def one(x, noise, y):
                method, move = Watched(denoise), kernel
                if meta["cond_scale"]:
                    gradient = jax.tree_util.Partial(
                        lambda params, y, x, t: gradient_of_class(params, x, time(t), y), params, y
                    )
                    if kind == "ancestral":
                        move = guided(kernel, gradient, meta["cond_scale"])
                    else:
                        method = Watched(dj.denoisers.classifier(denoise, gradient, meta["cond_scale"]))
                recorded = dj.Draws(None, noise, None)
                result = dj.sample(
                    None, method, table, x, kernel=move, recorded=recorded, trace=lambda x, row, info: (x, info["x0"])
                )
                return result.x, result.trace

            end, (states, x0) = quick_jit(jax.vmap(one, (0, 1, 0), (0, 1)))(start, draws, jnp.asarray(run["y"]))
            assert end.dtype == dtype and len(table) == meta["n_steps"] - (kind == "reverse")
            label = f"{golden_file.stem} {dtype.__name__}"
            check(f"{label} end", end, channels_last(run["end"]), tolerance)
            check(f"{label} states", states[run["state_steps"]], channels_last(run["states"]), tolerance)
            if dtype is jnp.float64 and not (mean == "PREVIOUS_X" and meta["clip_denoised"] and kind == "ancestral"):
                check(f"{label} x0", x0[run["state_steps"]], channels_last(run["pred_xstart"]), tolerance)
