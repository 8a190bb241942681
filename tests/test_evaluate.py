"""experiments.evaluate: cells kept and reused, tables that follow from them, errors in one line."""

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tiny_prior import write

import diffjax as dj
from diffjax.cli import errors
from diffjax.registry import METHODS
from experiments import evaluate, seconds
from experiments.tools import code, comparisons, records, scores, views


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tiny"))


def arguments(prior, folder):
    options = "--methods repaint --masks half --count 3 --steps 4 --batch 3"
    return [*options.split(), "--prior", str(prior), "--out", str(folder / "out"), "--cells", str(folder / "cells")]


@pytest.fixture(scope="module")
def once(prior, tmp_path_factory):
    folder = tmp_path_factory.mktemp("once")
    assert evaluate.main(arguments(prior, folder)) == 0
    return folder


@pytest.fixture
def done(once, tmp_path):
    """A folder in which evaluate has run with ``arguments``."""
    return shutil.copytree(once, tmp_path / "done")


def rows(folder, pattern, view):
    (file,) = (folder / "out").glob(pattern)
    return views.rows(records.read(file.stem, file.parent), view)


def test_cells_are_kept_and_reused(prior, done, capsys):
    assert list(rows(done, "inpainting_*.json", "lpips")[0])[1:] == ["half", "average"]
    found = rows(done, "inpainting_*.json", "differences")
    assert [(r["mask"], r["difference"]) for r in found] == [(m, "repaint - biharmonic") for m in ("half", "average")]
    (file,) = (done / "cells").rglob("half_repaint_*.json")
    kept = json.loads(file.read_text())
    assert len(kept["psnr_hole"]) == 3 and kept["network_calls"] > 0
    kept["psnr_hole"] = [42.25, 42.25, 100.0]
    file.write_text(json.dumps(kept))
    assert evaluate.main(arguments(prior, done)) == 0
    assert "44.21" in capsys.readouterr().out, "the second run reads the cell"


def test_a_record_says_where_it_comes_from(prior, done):
    """Commit, date, device, the command without what only says where files are, and the same of every cell."""
    (file,) = (done / "out").glob("inpainting_*.json")
    record = json.loads(file.read_text())
    options = f"--methods repaint --masks half --count 3 --steps 4 --batch 3 --prior {prior}"
    assert record["command"] == f"python -m experiments.evaluate {options}"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"]) and record["device"] == "cpu" and record["seconds"] > 0
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert record["commit"] == (head.stdout.strip() or None)
    for cell in record["cells"].values():
        made = cell["made"]
        assert made["commit"] == record["commit"] and len(made["code"]) == len(made["settings"]) == 12
    built = record["cells"]["half/repaint"]["made"]["built"]
    assert built.startswith("RePaint(") and "order=official" in built and built.endswith("rows from t = 1000 to 0")
    assert not [f for f in (done / "out").iterdir() if f != file], "one file a run"


def test_stale_cells_are_computed_again_or_refused(prior, done, monkeypatch, capsys):
    """Stale by a number of the method's entry, or by code that it reaches; words alone change nothing."""
    tables = [*arguments(prior, done), "--tables"]
    assert evaluate.main(tables) == 0
    entry = METHODS["repaint"]

    def other(denoise, measurement, steps, *, table):
        setup = entry.published(denoise, measurement, steps, table=table)
        return setup._replace(method=dj.replace(setup.method, order="paper"))

    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "repaint", dataclasses.replace(entry, published=other))
        with pytest.raises(errors.UserError, match=r"stale .other settings.: run python -m experiments.evaluate --methods"):
            evaluate.main(tables)
        capsys.readouterr()
        assert evaluate.main([*tables, "--allow-stale"]) == 0
        (file,) = (done / "out").glob("inpainting_*.json")
        (name,) = json.loads(file.read_text())["stale"]
        assert "half_repaint" in name
        assert evaluate.main(arguments(prior, done)) == 0
        assert "computed again" in capsys.readouterr().err
    monkeypatch.setitem(METHODS, "repaint", dataclasses.replace(entry, about="other words"))
    assert evaluate.main(arguments(prior, done)) == 0  # the paper's order is no longer asked for
    assert evaluate.main(tables) == 0
    running = code.running
    monkeypatch.setattr(code, "_running", lambda file: running(file.read_text()) + "x" * (file.name == "repaint.py"))
    with pytest.raises(errors.UserError, match=r"half_repaint.* is stale .other code.: run python"):
        evaluate.main(tables)


def test_tables_are_means_and_paired_intervals():
    rng = np.random.default_rng(0)
    cell = lambda shift: {
        "psnr_hole": (rng.normal(size=9) + shift).tolist(),
        "lpips": [0.1] * 9,
        "network_calls": 5,
        "seconds": 1,
    }
    cells = {("half", "biharmonic"): cell(0), ("half", "repaint"): cell(3)}
    rows, differences = comparisons.tables(cells, ["half"], ["biharmonic", "repaint"])
    d = np.subtract(cells["half", "repaint"]["psnr_hole"], cells["half", "biharmonic"]["psnr_hole"])
    assert rows[1]["hole PSNR"] == np.mean(cells["half", "repaint"]["psnr_hole"])
    assert differences[0]["hole PSNR"] == f"{d.mean():+.2f} ± {1.96 * d.std(ddof=1) / 3:.2f}"
    assert differences[0]["lpips@64"] == "+0.0000 ± 0.0000"


def test_a_row_for_each_method_and_their_average():
    cells = {(m, k): {"lpips": [0.1 * n, 0.3 * n]} for n, m in enumerate(("half", "wide"), 1) for k in ("a", "b")}
    cells["wide", "b"] = {"reason": "cannot"}
    a, b = comparisons.layout(cells, ["half", "wide"], ["a", "b"], "lpips")
    assert a == {"method": "a", "half": pytest.approx(0.2), "wide": pytest.approx(0.4), "average": pytest.approx(0.3)}
    assert b == {"method": "b", "half": pytest.approx(0.2), "wide": None, "average": None}


def test_tasks_with_and_without_noise(prior, tmp_path, capsys):
    """A cell without a number says why; the misfit of a method that fits y exactly is 0; the best has the lowest lpips."""
    options = "--tasks sr4-mean --methods ddnm repaint --baseline regularised --count 2 --steps 3".split()
    folders = ["--prior", str(prior), "--out", str(tmp_path / "out"), "--cells", str(tmp_path / "cells"), "--picture"]
    assert evaluate.main([*options, *folders]) == 0
    read = lambda view: rows(tmp_path, "plug_and_play_*.json", view)
    by = {(r["noise"], r["method"]): r for r in read("scores")}
    assert "use DDNMPlus" in by[0.05, "ddnm"]["why"] and "inpainting only" in by[0.0, "repaint"]["why"]
    assert "PSNR" not in by[0.05, "ddnm"]
    assert by[0.0, "ddnm"]["network calls"] == 3 and by[0.0, "ddnm"]["SSIM"] < 1
    of = {m: by[0.0, m]["lpips@64"] for m in ("ddnm", "regularised")}
    assert by[0.0, min(of, key=of.get)]["lpips from best"] == "best"
    assert [r["difference"] for r in read("differences")] == ["ddnm - regularised"]
    (noiseless,) = [r for r in read("noiseless") if r["method"] == "ddnm"]
    assert noiseless["sr4-mean PSNR"] == by[0.0, "ddnm"]["PSNR"] and noiseless["network calls"] == 3
    assert read("noisy")[1]["sr4-mean PSNR"] is None
    kept = {f.name for f in (tmp_path / "cells").rglob("*.json")}
    assert next((tmp_path / "out").glob("plug_and_play_*.png")).stat().st_size > 1000
    assert "sr4-mean_0.05_ddnm_3_0_2.json" in kept and len(kept) == 6


def test_what_no_prior_knows_of():
    """The closed-form minimum, against a dense solve; without noise it still has a noise floor."""
    A = np.random.default_rng(0).standard_normal((3, 6))
    y = np.arange(3.0)
    from diffjax.operators import matrix

    operator = matrix(A, (2, 3, 1))
    for std in (0.5, 0.0):
        rho = max(std, 0.02) ** 2
        expected = np.linalg.solve(A.T @ A + rho * np.eye(6), A.T @ y)
        found = scores.regularised(np.float32(y), operator, std)
        np.testing.assert_allclose(np.ravel(found), expected, rtol=2e-3, atol=2e-3)


def test_the_average_over_masks_is_paired_image_by_image():
    rng = np.random.default_rng(1)
    of = lambda: {"psnr_hole": rng.normal(size=5).tolist(), "lpips": rng.random(5).tolist(), "network_calls": 1}
    cells = {(mask, m): of() for mask in ("half", "wide") for m in ("biharmonic", "repaint")}
    rows = comparisons.tables(cells, ["half", "wide"], ["biharmonic", "repaint"])[1]
    a, b = (np.mean([cells[mask, m]["lpips"] for mask in ("half", "wide")], 0) for m in ("repaint", "biharmonic"))
    (compact,) = comparisons.across(rows, ["half", "wide", "average"], "lpips@64")
    assert compact["average"] == f"{(a - b).mean():+.4f} ± {1.96 * (a - b).std(ddof=1) / np.sqrt(5):.4f}"
    cells["wide", "repaint"] = {"reason": "cannot"}
    rows = comparisons.tables(cells, ["half", "wide"], ["biharmonic", "repaint"])[1]
    assert comparisons.across(rows, ["half", "wide", "average"], "lpips@64")[0]["average"] is None


def test_the_order_of_the_paper():
    """Neighbours in the paper's order, paired image by image; a method without a number is passed over."""
    cells = {
        (mask, m): {"lpips": [0.1 * n, 0.3 * n]} for mask in "ab" for n, m in enumerate(("copaint-tt", "repaint", "ddrm"), 1)
    }
    cells["b", "repaint"] = {"reason": "cannot"}
    rows = comparisons.order(cells, "ab", ["biharmonic", "ddrm", "repaint", "copaint-tt"])
    assert [r["method"] for r in rows] == ["copaint-tt", "ddrm"] and rows[0]["from the line above"] is None
    assert rows[1]["here"] == pytest.approx(0.6) and rows[1]["from the line above"].startswith("+0.4000 ± ")


def test_the_papers_settings(prior, tmp_path, capsys):
    """Their timetables, not ours; --count is 8 by default; cells of their own."""
    options = "--paper --methods ddrm ddnm --masks half --count 2".split()
    folders = ["--prior", str(prior), "--out", str(tmp_path / "out"), "--cells", str(tmp_path / "cells")]
    assert evaluate.main([*options, *folders]) == 0
    found = rows(tmp_path, "inpainting_*_paper.json", "scores")
    assert {r["method"]: r["network calls"] for r in found} == {"biharmonic": 0, "ddrm": 20, "ddnm": 100}
    assert {f.name for f in (tmp_path / "cells").rglob("*.json")} >= {"half_ddrm_paper_0_2.json"}
    with pytest.raises(errors.UserError, match="unknown method"):
        evaluate.main([*options[:2], "twisted", *folders])


def test_seconds_of_a_device_stay_beside_those_of_others(prior, tmp_path, capsys):
    """And those of this device go when their code has changed."""
    options = ["--prior", str(prior), "--out", str(tmp_path), "--count", "2", "--steps", "3"]
    assert seconds.main([*options, "--methods", "ddrm"]) == 0
    (file,) = tmp_path.glob("seconds_*.json")
    found = json.loads(file.read_text())
    ((name, cell),) = found["cells"].items()
    assert name == "2 x cpu, batch 2/ddrm" and cell["seconds"] > 0 and cell["network_calls"] == 3
    found["cells"]["other, batch 2/ddrm"] = cell | {"seconds": 7.0, "made": {"commit": "old"}}
    file.write_text(json.dumps(found))
    assert seconds.main([*options, "--methods", "ddnm"]) == 0
    by = {r["method"]: r for r in views.rows(records.read(file.stem, tmp_path))}
    assert list(by) == ["ddrm", "ddnm"] and by["ddrm"]["other, batch 2: s / image"] == 7.0
    assert all("2 x cpu, batch 2: s / image" in row for row in by.values())
    found = json.loads(file.read_text())
    found["cells"][name]["made"]["code"] = "older"
    file.write_text(json.dumps(found))
    capsys.readouterr()
    assert seconds.main([*options, "--methods", "ddnm"]) == 0
    assert "ddrm: 2 x cpu, batch 2 is stale (other code) and goes" in capsys.readouterr().err
    assert name not in json.loads(file.read_text())["cells"]
    with pytest.raises(errors.UserError, match="did you mean"):
        seconds.main(["--methods", "ddrn"])


def test_levels():
    steps = lambda name, line="": evaluate.steps_of(name, evaluate.parser().parse(line.split()))
    assert (steps("copaint"), steps("copaint", "--at-most 100"), steps("copaint", "--steps 7")) == (None, 100, 7)
    assert (steps("repaint", "--at-most 100"), steps("repaint", "--quick"), steps("biharmonic", "--quick")) == (None, 8, None)


@pytest.mark.parametrize(
    "option, message",
    [
        ("--methods repain", "repaint"),
        ("--count 1", "at least 2"),
        ("--masks haf", "half"),
        ("--tasks deblurr", "deblur"),
        ("--noise -1", "negative"),
    ],
)
def test_errors(prior, tmp_path, option, message):
    with pytest.raises(errors.UserError, match=message):
        evaluate.main([*arguments(prior, tmp_path), *option.split()])
