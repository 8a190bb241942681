"""experiments.evaluate: cells kept and reused, tables that follow from them, errors in one line."""

import json

import numpy as np
import pytest
from tiny_prior import write

from diffjax.cli import errors
from experiments import comparisons, evaluate, seconds


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tiny"))


def arguments(prior, folder):
    options = "--methods repaint --masks half --count 3 --steps 4 --batch 3"
    return [*options.split(), "--prior", str(prior), "--out", str(folder / "out"), "--cells", str(folder / "cells")]


def test_cells_are_kept_and_reused(prior, tmp_path, capsys):
    assert evaluate.main(arguments(prior, tmp_path)) == 0
    written = next((tmp_path / "out").glob("inpainting_*_differences.json"))
    assert list(json.loads(written.with_name(f"{written.stem}_lpips.json").read_text())["rows"][0])[1:] == ["half", "average"]
    rows = json.loads(written.read_text())["rows"]
    assert [(r["mask"], r["difference"]) for r in rows] == [(m, "repaint - biharmonic") for m in ("half", "average")]
    (file,) = (tmp_path / "cells").rglob("half_repaint_*.json")
    kept = json.loads(file.read_text())
    assert len(kept["psnr_hole"]) == 3 and kept["network_calls"] > 0
    kept["psnr_hole"] = [42.25, 42.25, 100.0]
    file.write_text(json.dumps(kept))
    assert evaluate.main(arguments(prior, tmp_path)) == 0
    assert "44.21" in capsys.readouterr().out, "the second run reads the cell"


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
    folders = ["--prior", str(prior), "--out", str(tmp_path / "out"), "--cells", str(tmp_path / "cells")]
    assert evaluate.main([*options, *folders]) == 0
    read = lambda name: json.loads(next((tmp_path / "out").glob(f"plug_and_play_*{name}.json")).read_text())["rows"]
    rows = {(r["noise"], r["method"]): r for r in read("tiny")}
    assert "use DDNMPlus" in rows[0.05, "ddnm"]["why"] and "inpainting only" in rows[0.0, "repaint"]["why"]
    assert "PSNR" not in rows[0.05, "ddnm"]
    assert rows[0.0, "ddnm"]["network calls"] == 3 and rows[0.0, "ddnm"]["SSIM"] < 1
    of = {m: rows[0.0, m]["lpips@64"] for m in ("ddnm", "regularised")}
    assert rows[0.0, min(of, key=of.get)]["lpips from best"] == "best"
    assert [r["difference"] for r in read("differences")] == ["ddnm - regularised"]
    (noiseless,) = [r for r in read("noiseless") if r["method"] == "ddnm"]
    assert noiseless["sr4-mean PSNR"] == rows[0.0, "ddnm"]["PSNR"] and noiseless["network calls"] == 3
    assert read("noisy")[1]["sr4-mean PSNR"] is None
    kept = {f.name for f in (tmp_path / "cells").rglob("*.json")}
    for name in ("noisy", "noiseless"):
        assert next((tmp_path / "out").glob(f"plug_and_play_*_{name}.png")).stat().st_size > 1000
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
        found = evaluate.regularised(np.float32(y), operator, std)
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
    rows = json.loads(next((tmp_path / "out").glob("inpainting_*_paper.json")).read_text())["rows"]
    assert {r["method"]: r["network calls"] for r in rows} == {"biharmonic": 0, "ddrm": 20, "ddnm": 100}
    assert {f.name for f in (tmp_path / "cells").rglob("*.json")} >= {"half_ddrm_paper_0_2.json"}
    with pytest.raises(errors.UserError, match="unknown method"):
        evaluate.main([*options[:2], "twisted", *folders])


def test_seconds_of_a_device_stay_beside_those_of_others(prior, tmp_path, capsys):
    options = ["--prior", str(prior), "--out", str(tmp_path), "--count", "2", "--steps", "3"]
    assert seconds.main([*options, "--methods", "ddrm"]) == 0
    (file,) = tmp_path.glob("seconds_*.json")
    found = json.loads(file.read_text())
    (column,) = [c for c in found["rows"][0] if c.endswith("s / image")]
    assert "cpu, batch 2" in column and found["rows"][0][column] > 0 and found["rows"][0]["network calls"] == 3
    other = column.replace("cpu", "other")
    found["rows"][0][other] = 7.0
    file.write_text(json.dumps(found))
    assert seconds.main([*options, "--methods", "ddnm"]) == 0
    rows = {r["method"]: r for r in json.loads(file.read_text())["rows"]}
    assert rows["ddrm"][other] == 7.0 and column in rows["ddrm"] and column in rows["ddnm"] and list(rows) == ["ddrm", "ddnm"]
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
