"""experiments.calibrate: the whole program in small, independence of samples, and the headline on one mixture."""

import dataclasses
import functools
import json
import sys

import jax
import numpy as np
import pytest

import diffjax as dj
import experiments.calibrate as calibrate
from diffjax.cli.errors import UserError
from experiments.calibration_methods import METHODS, VP, Entry, between, power
from experiments.tools import calibration_tables, views
from experiments.tools.cells import Cells
from experiments.tools.exact import load_oracle

MODULE = '''
"""Two tiny problems of one's own."""
from oracle import Problem

LIST = ["own-box", "own-two"]


def load(name):
    op = ("box", 2) if name == "own-box" else ("sr", 2)
    return _KEPT.setdefault(name, Problem(name, "own", ("gauss", {}), op, 0.05, 7, n=4, default_n=64))


_KEPT = {}
'''


QUICK = {"xla_backend_optimization_level": 1}  # these programs take longer to compile than to run


@functools.cache
def sampler(entry, shape, dtype, calls, chunk):
    """``calibrate.sampler`` on one device, compiled in half the time."""
    many = jax.vmap(calibrate.walks(entry, shape, dtype, calls, chunk), in_axes=(0, None, None, None))
    return jax.jit(many, compiler_options=QUICK), 1


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(calibrate, "sampler", sampler)


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


def test_quick_run_on_own_problems_writes_tables_and_keeps_its_cells(own, tmp_path, capsys, quick, monkeypatch):
    out = tmp_path / "out"
    words = ["--quick", "--problems", own, "--methods", "mmps", "repaint", "--out", str(out)]
    assert calibrate.main(words) == 0
    read = lambda: json.loads((out / "calibration.json").read_text())
    found = read()
    assert found["families"] == {"own": ["own-box", "own-two"]} and not found["peers"]
    assert found["command"] == f"python -m experiments.calibrate --quick --problems {own} --methods mmps repaint"
    by = lambda: {r["method"]: r for r in views.rows(read(), "short")}
    assert float(by()["mmps"]["H own"]) < 1.5
    assert by()["repaint"]["H own"].endswith("*")  # of the two problems one
    families = {r["method"]: r for r in views.rows(found, "families")}
    assert (families["repaint"]["problems"], families["repaint"]["products"]) == ("1 of 2", 0)
    (unable,) = views.rows(found, "cannot")
    assert unable["method"] == "repaint" and "needs a Mask" in str(unable)
    # 10 products per call, and 4 where y has 4 entries
    assert (families["mmps"]["calls"], families["mmps"]["products"]) == (20, 140)
    assert (out / "calibration.png").stat().st_size > 2000
    labels = [f"{m}-default-20-{p}-0" for m in ("mmps", "repaint") for p in ("own-box", "own-two")]
    assert {f.stem for f in (out / "cells").iterdir()} == set(labels)
    assert set(found["cells"]) == {label.replace("-", "/", 3).replace("-0", "/0") for label in labels}
    # what is kept is not computed again, and the command stays that which computed it
    kept = out / "cells" / f"{labels[0]}.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"H": 77.0}))
    monkeypatch.setattr(calibrate, "sampler", None)
    assert calibrate.main([*words, "--tables"]) == 0
    assert read()["command"] == found["command"] and float(by()["mmps"]["H own"]) > 5
    # what a method is given makes its cells stale, and no others
    other = dataclasses.replace(METHODS["repaint"], build=METHODS["blended"].build)
    monkeypatch.setitem(METHODS, "repaint", other)
    with pytest.raises(
        UserError, match=r"repaint-default-20-own-box-0.json is stale .other code and other settings.: run python"
    ):
        calibrate.main([*words, "--tables"])


def test_a_cell_knows_its_settings_and_the_code_behind_them(tuning, monkeypatch):
    problem = tuning["t-g-box"]
    of = lambda name, calls=20, seed=0, **settings: calibrate.asked(METHODS[name], problem, calls, seed, settings)
    before = of("ddrm")
    monkeypatch.setattr(calibrate.draw, "__module__", "__main__")  # as when the program runs
    assert of("ddrm") == before
    assert of("ddrm")["code"] == of("ddrm", 100, eta=0.7)["code"] != of("ddnm+")["code"]
    others = [
        of("ddrm"),
        of("ddrm", 100),
        of("ddrm", seed=1),
        of("ddrm", eta=0.7),
        of("twisted"),
        of("twisted", threshold=0.2),
    ]
    assert len({asked["settings"] for asked in others}) == len(others)
    elsewhere = calibrate.asked(METHODS["ddrm"], tuning["t-m5-rand"], 20, 0, {})
    assert elsewhere["settings"] != of("ddrm")["settings"]
    changed = dataclasses.replace(METHODS["ddrm"], setting="other words", sweep={}, peers=())
    assert calibrate.asked(changed, problem, 20, 0, {}) == of("ddrm")


def test_the_headline_is_one_command(monkeypatch, tmp_path):
    """What the kept table has: every method at 20 and 100 calls, ten at 1000; three seeds of two methods at 100."""
    args, _ = calibrate.arguments(["--headline", "--out", str(tmp_path)])
    assert args.core
    record = json.loads((calibrate.provenance.results() / "calibration.json").read_text())
    assert record["command"] == "python -m experiments.calibrate --headline"
    planned = {(m, kind, calls): seeds for calls, kind, m, seeds in calibrate.plan(args, calibrate.read_tuned(tmp_path))}
    shown = {(r["method"], r["kind"], r["budget"]): r["seeds"] for r in record["rows"] if "H" in r}
    assert shown.items() <= planned.items() and set(planned) == {(r["method"], r["kind"], r["budget"]) for r in record["rows"]}


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


N = 1024


@functools.cache
def at_100_calls(name, problem):
    x, calls, _ = calibrate.draw(METHODS[name], problem, 100, N)
    return x, calls


def test_samples_do_not_depend_on_each_other(tuning, quick):
    """A sample is the same among others and in another place: the program is that of the headline below."""
    entry, problem, n = METHODS["twisted"], tuning["t-mcg8"], N
    one, calls = at_100_calls("twisted", problem)
    assert 85 < calls <= 100
    with jax.enable_x64(True):
        prior, m, shape, dtype = calibrate.as_jax(problem)
        keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(0), n))(np.arange(n))
        others = jax.random.split(jax.random.key(7), n).at[n - 3].set(keys[5])
        program, _ = calibrate.sampler(entry, shape, dtype, 100, chunk_of(n))
        x = np.asarray(program(others[None], prior, m, {})[0])[0]
    np.testing.assert_allclose(x[n - 3], one[5], rtol=0, atol=1e-9)
    assert np.ptp(x, axis=0).min() > 1e-3  # and are not all the same


def chunk_of(n):
    return 2 ** int(np.log2(n // min(calibrate.mesh().devices.size, n)))


def test_devices_share_the_samples(tuning, monkeypatch):
    """Two devices, a number of samples that they cannot share evenly: sample n has the n-th key, wherever it was drawn."""
    noise = lambda key, denoise, m, shape, dtype, calls, settings: (jax.random.normal(key, shape, dtype), calls, 3)
    monkeypatch.setattr(calibrate, "mesh", lambda: dj.parallel.mesh(jax.devices()[:2]))
    x, *spent = calibrate.draw(Entry(None, whole=noise), tuning["t-g-box"], 20, 7, seed=5)
    expected = [jax.random.normal(jax.random.fold_in(jax.random.key(5), n), (64,), np.float32) for n in range(7)]
    np.testing.assert_array_equal(x, np.stack(expected))
    assert spent == [20, 3]


def test_the_headline_in_small(oracle, tuning, quick):
    """Moment matching is calibrated on a Gaussian, and only the weighted particles find the shares of the modes.

    A distance in total variation is the excess of the samples' share over the exact one in the modes that have too many: its
    standard deviation is about that of a share of n samples, at most 1 / (2 sqrt(n)), and that of a difference of two of them
    1 / sqrt(2 n).
    """
    x, _, _ = calibrate.draw(METHODS["mmps"], tuning["t-g-box"], 60, 256)
    assert oracle.score(tuning["t-g-box"], x)["H"] < 1.25
    x, _, _ = calibrate.draw(METHODS["dps"], tuning["t-g-box"], 60, 256)
    assert oracle.score(tuning["t-g-box"], x)["H"] > 1.5  # the score can tell
    off = {}
    for name in ("mmps", "twisted"):
        x, calls = at_100_calls(name, tuning["t-mcg8"])
        assert calls <= 100
        off[name] = oracle.score(tuning["t-mcg8"], x)["w_tv"]
    assert off["mmps"] - off["twisted"] > 2 / np.sqrt(2 * N), off


def test_tuning_picks_the_better_setting(oracle, tuning, tmp_path, monkeypatch):
    entry = dataclasses.replace(METHODS["dps"], sweep={"scale": (1e-4, 0.3)})
    few = {"t-g-box": tuning["t-g-box"]}
    kept = Cells(tmp_path, "again")
    found = calibrate.tune(oracle, ["dps"], {"dps": entry}, kept, 20, 64, few)["dps"]
    monkeypatch.setattr(calibrate, "pick", None)
    assert calibrate.tune(oracle, ["dps"], {"dps": entry}, kept, 20, 64, few)["dps"] == found
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
    rows = calibration_tables.peer_rows()
    assert {r["family"] for r in rows} == set(calibration_tables.FAMILIES)
    best = min(r["H"] for r in rows if (r["kind"], r["calls"], r["family"]) == ("default", 100, "gauss"))
    assert best == pytest.approx(1.33, abs=0.01)  # as the oracle's README has it
    for name, entry in METHODS.items():
        assert not entry.peers or any(r["solver"].startswith(entry.peers) for r in rows), name
