"""The score-SDE code's own drift and diffusion of its three processes."""

import numpy as np
import pytest
from golden_files import check, load

import diffjax as dj

SCHEDULES = {"ve": dj.schedules.VE(), "vp": dj.schedules.VP(), "subvp": dj.schedules.SubVP()}


@pytest.mark.golden("score_sde", "sde_misc")
def test_drift_and_diffusion(golden_file):
    """Rows t, mean factor, standard deviation, drift at x = 1, diffusion, in float64. Near t = 0 the official 1 - exp loses
    digits: sub-VP's diffusion is its root of one."""
    run, _ = load(golden_file)
    for name, schedule in SCHEDULES.items():
        t, mean, std, drift, diffusion = run[f"{name}_64"]
        f, g2 = dj.process.sde(schedule, t)
        got = {"mean": schedule.alpha(t), "std": schedule.sigma(t), "drift": f, "diffusion": np.sqrt(g2)}
        for field, expected in zip(("mean", "std", "drift", "diffusion"), (mean, std, drift, diffusion)):
            label = f"{golden_file.stem} {name} {field}"
            check(label, got[field], expected, 1e-12)
            lost = 2.0**-52 / np.maximum(2 * std**2 if field == "std" else std, 1e-300) if field in ("std", "diffusion") else 0
            assert (np.abs(got[field] - expected) <= (1e-12 + lost) * np.abs(expected)).all(), label  # small entries too
