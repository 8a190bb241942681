"""experiments.calibrate: the whole program in small, independence of samples, and the headline on one mixture."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

import diffjax as dj
import experiments.calibrate as calibrate
from diffjax.cli.errors import UserError
from experiments.calibration_methods import METHODS, VP, between, power
from experiments.repaint_on_mixtures import load_oracle

MODULE = '''
"""Two tiny problems of one's own."""
from oracle import Problem

LIST = ["own-box", "own-two"]


def load(name):
    op = ("box", 2) if name == "own-box" else ("sr", 2)
    return _KEPT.setdefault(name, Problem(name, "own", ("gauss", {}), op, 0.05, 7, n=4, default_n=64))


_KEPT = {}
'''


@pytest.fixture(scope="module")
def oracle():
    return load_oracle()


@pytest.fixture(scope="module")
def tuning(oracle):
    return calibrate.tuning_list(oracle)


@pytest.fixture
def own(tmp_path, monkeypatch, oracle):
    (tmp_path / "own_problems_for_calibrate.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_problems_for_calibrate"
    sys.modules.pop("own_problems_for_calibrate", None)


def test_quick_run_on_own_problems_writes_tables_and_keeps_its_cells(own, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--quick", "--problems", own, "--methods", "mmps", "repaint", "--out", str(out)]
    assert calibrate.main(words) == 0
    found = json.loads((out / "calibration.json").read_text())
    assert found["problems"] == ["own-box", "own-two"]
    rows = {r["method"]: r for r in found["rows"]}
    assert float(rows["mmps"]["H own"]) < 1.5
    assert rows["repaint"]["H own"].endswith("*")  # of the two problems one
    details = json.loads((out / "calibration_details.json").read_text())["rows"]
    row = next(r for r in details if r["method"] == "repaint")
    assert (row["problems"], row["products"]) == ("1 of 2", 0)
    assert "needs a Mask" in row["cannot"]
    row = next(r for r in details if r["method"] == "mmps")
    assert (row["calls"], row["products"]) == (20, 140)  # 10 products per call, and 4 where y has 4 entries
    assert (out / "calibration.png").stat().st_size > 2000
    assert {f.name for f in (out / "cells").iterdir()} == {
        f"{m}-default-20-{p}-0.json" for m in ("mmps", "repaint") for p in ("own-box", "own-two")
    }
    # what is kept is not computed again
    kept = out / "cells" / "mmps-default-20-own-box-0.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"H": 77.0}))
    capsys.readouterr()
    assert calibrate.main([*words, "--tables"]) == 0
    assert "mmps-default-20" not in capsys.readouterr().out
    rows = {r["method"]: r for r in json.loads((out / "calibration.json").read_text())["rows"]}
    assert float(rows["mmps"]["H own"]) > 5


@pytest.mark.parametrize(
    "words, says",
    [
        (["--methods", "mmp"], "did you mean 'mmps'"),
        (["--problems", "no.such.module"], "cannot be imported"),
        (["--problems", "json"], "no LIST"),
        (["--calls", "1"], "out of range"),
        (["--quick", "--tables"], "no cell is kept"),
    ],
)
def test_wrong_words_are_answered_in_one_line(words, says, tmp_path):
    with pytest.raises(UserError, match=says):
        calibrate.main([*words, "--out", str(tmp_path)])


def test_samples_do_not_depend_on_each_other(tuning):
    one, calls, _ = calibrate.draw(METHODS["twisted"], tuning["t-mcg8"], 40, 1)
    many, again, _ = calibrate.draw(METHODS["twisted"], tuning["t-mcg8"], 40, 512)
    assert 36 < calls == again <= 40
    np.testing.assert_allclose(one[0], many[0], rtol=0, atol=1e-9)
    assert np.abs(many[1] - many[0]).max() > 1e-3  # and are not all the same


def test_the_headline_in_small(oracle, tuning):
    """Moment matching is calibrated on a Gaussian, and only the weighted particles find the shares of the modes."""
    x, _, _ = calibrate.draw(METHODS["mmps"], tuning["t-g-box"], 60, 256)
    assert oracle.score(tuning["t-g-box"], x)["H"] < 1.25
    x, _, _ = calibrate.draw(METHODS["dps"], tuning["t-g-box"], 60, 256)
    assert oracle.score(tuning["t-g-box"], x)["H"] > 1.5  # the score can tell
    off = {}
    for name in ("mmps", "twisted"):
        x, calls, _ = calibrate.draw(METHODS[name], tuning["t-mcg8"], 100, 1024)
        assert calls <= 100
        off[name] = oracle.score(tuning["t-mcg8"], x)["w_tv"]
    assert off["twisted"] < 0.75 * off["mmps"]


def test_tuning_picks_the_better_setting(oracle, tuning, tmp_path):
    entry = dataclasses.replace(METHODS["dps"], sweep={"scale": (1e-4, 0.3)})
    few = {"t-g-box": tuning["t-g-box"]}
    found = calibrate.tune(oracle, ["dps"], {"dps": entry}, tmp_path, 20, 64, few)["dps"]
    assert (found["settings"], found["problems"], found["tried"]) == ({"scale": 0.3}, 1, 2)


@pytest.mark.parametrize("name", [name for name, entry in METHODS.items() if entry.sweep])
def test_tuned_settings_are_leaves_of_methods(tuning, name):
    """Every name of a sweep is a hyper-parameter that its method takes, traced."""
    entry = METHODS[name]
    prior, m, shape, dtype = calibrate.as_jax(tuning["t-g-box"])
    walk = lambda key, s: entry.run(key, prior.denoiser(entry.schedule), m, shape, dtype, 20, s)[0]
    settings = {k: np.asarray(v[0], dtype) for k, v in entry.sweep.items()}
    assert jax.eval_shape(walk, jax.random.key(0), settings).shape == shape


def test_grids_with_traced_ends_are_the_timetables():
    with jax.enable_x64(True):
        found = [jax.jit(lambda a, b: between(VP, 12, a, b))(20.0, 0.02), jax.jit(lambda bend: power(VP, 12, bend))(2.0)]
    ends = (float(VP.time(-2 * np.log(ratio))) for ratio in (20.0, 0.02))
    expected = [dj.timetables.log_snr(VP, 12, *ends), dj.timetables.quadratic(VP, 12)]
    for one, other in zip(found, expected, strict=True):
        for name in ("t", "s", "r", "up", "level", "i", "fresh"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-12, err_msg=name)
        assert not one.jumps


def test_a_budget_is_spent_and_not_exceeded():
    for calls in (*range(2, 300), 1000, 5000):
        plan = dj.methods.twisted.for_calls(calls)
        spent = plan["particles"] * plan["rows"][0] + plan["rows"][1]
        assert 0.85 * calls <= spent <= calls, plan
    with pytest.raises(ValueError, match="out of range"):
        dj.methods.twisted.for_calls(1)


def test_peers_are_whole():
    rows = calibrate.peer_rows()
    assert {r["family"] for r in rows} == set(calibrate.FAMILIES)
    best = min(r["H"] for r in rows if (r["kind"], r["calls"], r["family"]) == ("default", 100, "gauss"))
    assert best == pytest.approx(1.33, abs=0.01)  # as the oracle's README has it
    for name, entry in METHODS.items():
        assert not entry.peers or any(r["solver"].startswith(entry.peers) for r in rows), name
