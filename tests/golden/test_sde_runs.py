"""The score-SDE code's predictor-corrector, controllable and class-conditional loops, replayed draw by draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quirks_sde as quirks
import sde_closed_form as official
from golden_files import check, load

import diffjax as dj

TOLERANCE = 1e-9


def start(meta, draw):
    return draw.astype(np.float64) * (meta["sigma_max"] if meta["sde"] == "ve" else 1)


def moves(kernel, meta, noise):
    """The draws of every row as ``kernel`` takes them."""
    quiet = meta.get("probability_flow") or meta["predictor"] == "none"
    predictor = () if quiet else noise["predictor"]
    if not isinstance(kernel, dj.kernels.PredictorCorrector):
        return predictor
    found = noise["corrector"]
    if not found.shape[1]:  # the loops of ours that have no corrector, but a place for one
        found = np.zeros((len(found), 1, *found.shape[2:]))
    return {"corrector": found, "predictor": predictor}


def replay(method, kernel, table, x, rows, trace=None):
    @jax.jit
    def run(x, rows):
        result = dj.sample(None, method, table, x, kernel=kernel, recorded=dj.Draws(None, rows, None), trace=trace)
        return result.x, result.trace, result.info.rows

    return run(jnp.asarray(x), jax.tree.map(jnp.asarray, rows))


def deviations(denoise, kernel, table, x):
    """Of the predictor's noise in every row."""
    move = dj.plan(denoise, table, jnp.asarray(x), kernel=kernel).rows.k.move
    move = getattr(move, "predictor", move)
    return np.asarray(move.std).reshape(-1, *(1,) * x.ndim)


@pytest.mark.golden("score_sde", "sde_pc_")
def test_predictor_corrector_replays(golden_file):
    run, meta = load(golden_file)
    denoise_end = meta["denoise"]
    with jax.enable_x64(True):
        _, table = official.walk(meta)
        denoise, kernel = official.denoiser(run, meta), official.predictor(meta, noisy_end=not denoise_end)
        if official.corrector(meta) is not None:
            kernel = dj.kernels.PredictorCorrector(predictor=kernel, corrector=official.corrector(meta))
        noise, x = official.split(run["draws"], meta), start(meta, run["draw0"])
        end, states, _ = replay(denoise, kernel, table, x, moves(kernel, meta, noise), trace=lambda x, row, info: x)
        std = deviations(denoise, kernel, table, x)
    if meta["inverse_scaler"] == "c":
        end = (np.asarray(end) + 1) / 2
    check(f"{golden_file.stem} end", end, run["end"], TOLERANCE)
    at = run["state_steps"]
    z = 0 if meta.get("probability_flow") or noise["predictor"] is None else noise["predictor"]
    last = (at == meta["N"] - 1) & denoise_end  # there ours adds no noise
    states = np.asarray(states)
    means = np.where((np.arange(meta["N"]) == meta["N"] - 1).reshape(std.shape) & denoise_end, states, states - std * z)
    assert (~last).any()
    check(f"{golden_file.stem} states", states[at[~last]], run["states"][~last], TOLERANCE)
    check(f"{golden_file.stem} means", means[at], run["means"], TOLERANCE)


def published(run, meta, denoise, kernel):
    """(the published loop as a method, its data, the recorded noise of the data as that of an image)"""
    data = run["data"].astype(np.float64)
    if meta["task"] == "inpaint":
        A, lift = dj.operators.Mask(jnp.asarray(run["mask"], float)), lambda z: z
    else:
        rotation = np.array(official.M)
        A = quirks.Colours(jnp.asarray(rotation[:, 0]), jnp.asarray(np.linalg.inv(rotation)[0]))
        lift = lambda z: np.asarray(A.pinv(z[..., :1, :, :]))
    y = A(jnp.asarray(data))
    alpha, sigma = official.formula(meta).alpha(official.times(meta)), official.formula(meta).sigma(official.times(meta))
    method = quirks.Published(denoise, dj.Measurement(y, A, value_range=(-99.0, 99.0)), levels=quirks.Levels(alpha, sigma))
    return method, y, lift


@pytest.mark.golden("score_sde", "sde_ctrl_")
def test_published_imputation_and_colourisation_replay(golden_file):
    """With their traps: they start with the data as it is, put it in one level too noisy, and their "denoised" result has the
    noise of the last step in the part that was not measured."""
    run, meta = load(golden_file)
    with jax.enable_x64(True):
        _, table = official.walk(meta)
        corrector = official.corrector(meta) or quirks.NoCorrector()
        kernel = dj.kernels.PredictorCorrector(predictor=official.predictor(meta, True), corrector=corrector)
        method, y, lift = published(run, meta, official.denoiser(run, meta), kernel)
        noise = official.split(run["draws"][1:], meta, data=True)
        known = np.array(lift(noise["known"]))
        if meta["denoise"]:
            known[-1, 1] = 0
        x = start(meta, run["draws"][0])
        x = quirks.clean_start(method, x, y, meta["task"])
        rows = {"move": moves(kernel, meta, noise), "known": known}
        end, _, info = replay(method, kernel, table, x, rows)
    check(f"{golden_file.stem} end", end, run["end"], TOLERANCE)
    before = np.asarray(info["before"])[run["state_steps"]]
    check(f"{golden_file.stem} before the predictor", before, run["states_before_predictor"], TOLERANCE)


@pytest.mark.golden("score_sde", "sde_cond_")
def test_class_conditional_replays(golden_file):
    """Guidance by the gradient of a noise-conditional classifier: ``denoisers.classifier``."""
    run, meta = load(golden_file)
    with jax.enable_x64(True):
        _, table = official.walk(meta)
        kernel = official.predictor(meta, noisy_end=False)
        if official.corrector(meta) is not None:
            kernel = dj.kernels.PredictorCorrector(predictor=kernel, corrector=official.corrector(meta))
        noise, x = official.split(run["draws"][1:], meta), start(meta, run["draws"][0])
        trace = lambda x, row, info: x
        end, states, _ = replay(official.denoiser(run, meta), kernel, table, x, moves(kernel, meta, noise), trace)
    check(f"{golden_file.stem} end", end, run["end"], TOLERANCE)
    early = run["state_steps"] < meta["N"] - 1
    check(f"{golden_file.stem} states", np.asarray(states)[run["state_steps"][early]], run["states"][early], TOLERANCE)
