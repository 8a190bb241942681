"""experiments.evaluate: cells kept and reused, tables that follow from them, errors in one line."""

import json

import numpy as np
import pytest
from tiny_prior import write

from experiments import errors, evaluate


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tiny"))


def arguments(prior, folder):
    options = "--methods repaint --masks half --count 3 --steps 4 --batch 3"
    return [*options.split(), "--prior", str(prior), "--out", str(folder / "out"), "--cells", str(folder / "cells")]


def test_cells_are_kept_and_reused(prior, tmp_path, capsys):
    assert evaluate.main(arguments(prior, tmp_path)) == 0
    written = next((tmp_path / "out").glob("inpainting_*_differences.json"))
    rows = json.loads(written.read_text())["rows"]
    assert [r["difference"] for r in rows] == ["repaint - biharmonic"]
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
    rows, differences = evaluate.tables(cells, ["half"], ["biharmonic", "repaint"])
    d = np.subtract(cells["half", "repaint"]["psnr_hole"], cells["half", "biharmonic"]["psnr_hole"])
    assert rows[1]["hole PSNR"] == np.mean(cells["half", "repaint"]["psnr_hole"])
    assert differences[0]["hole PSNR"] == f"{d.mean():+.2f} ± {1.96 * d.std(ddof=1) / 3:.2f}"
    assert differences[0]["lpips@64"] == "+0.0000 ± 0.0000"


@pytest.mark.parametrize(
    "option, message", [("--methods repain", "repaint"), ("--count 1", "at least 2"), ("--masks haf", "half")]
)
def test_errors(prior, tmp_path, option, message):
    with pytest.raises(errors.UserError, match=message):
        evaluate.main([*arguments(prior, tmp_path), *option.split()])
