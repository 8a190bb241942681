"""The command ``diffjax``: its commands, drawing samples, and that the second start compiles nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_prior
from PIL import Image

from diffjax import cli
from diffjax.cli import cache, sample
from diffjax.cli.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("restor", "did you mean 'restore'"),
        ("evaluate_prior x", "did you mean 'evaluate-prior'"),
        ("", "no command: give one of restore, superresolve, sample"),
        ("--halp", "unknown command '--halp'"),
        ("list more", "unexpected argument 'more'"),
        ("sample --kernle dpm", "did you mean '--kernel'"),
        ("sample --kernel dmp", "did you mean 'dpm'"),
        ("sample --cfg 2", "give one with --label"),
        ("export a", "required: FOLDER"),
        ("export --ot x", "unknown option '--ot'"),
    ],
)
def test_what_is_wrong_is_one_line(line, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(line.split()) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_it_says_what_there_is(capsys):
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in cli.PROGRAMS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("diffjax 0.")
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    for word in ("repaint", "half", "thick", "denoise", "bundled:fashion", "fruits32"):
        assert word in said


def test_samples_of_every_class(tmp_path, capsys):
    """An image depends on seed, number and label only: not on what is drawn beside it."""
    prior = tiny_prior.write(tmp_path / "tiny")
    line = f"--prior {prior} --steps 2 --devices 1 --seed 4".split()
    assert sample.main([*line, "--label", "all", "--samples", "2", "--out", str(tmp_path / "all")]) == 0
    assert sample.main([*line, "--label", "trouser", "--samples", "1", "--out", str(tmp_path / "one")]) == 0
    names = {p.name for p in (tmp_path / "all" / "images").iterdir()}
    assert len(names) == 20 and {"trouser-000.png", "T-shirt-top-001.png", "ankle-boot-000.png"} <= names
    read = lambda *path: np.asarray(Image.open(tmp_path.joinpath(*path))).astype(int)
    a, b = read("all", "images", "trouser-000.png"), read("one", "images", "trouser-000.png")
    assert np.abs(a - b).max() <= 1 and a.shape == (32, 32)
    assert np.abs(a - read("all", "images", "trouser-001.png")).mean() > 5
    assert np.abs(a - read("all", "images", "bag-000.png")).mean() > 0.5
    report = json.loads((tmp_path / "all" / "metrics.json").read_text())
    assert (report["prior"], report["network_calls"], len(report["labels"])) == ("tiny", 2, 10)
    assert "20 images of prior tiny" in capsys.readouterr().out
    assert sample.main([*line, "--label", "trousers", "--out", str(tmp_path / "x")]) == 2
    assert "did you mean 'trouser'" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_the_second_start_compiles_nothing(tmp_path):
    """Every program is found where the first start left it, and the pictures are the same."""
    prior = tiny_prior.write(tmp_path / "tiny")
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_") and k != "XLA_FLAGS"}
    env |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # as soon as may be
    kept, pictures, said = [], [], []
    for run in ("first", "second"):
        line = f"restore --prior {prior} --limit 2 --samples 1 --steps 3 --method ddnm --out {tmp_path / run}".split()
        done = subprocess.run([sys.executable, "-m", "diffjax", *line], env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append([line for line in done.stderr.splitlines() if not line.startswith("restoring")])
        programs = (tmp_path / "cache" / "diffjax").rglob("*-cache")
        kept.append({p.name for p in programs})
        pictures.append((tmp_path / run / "tiny" / "images" / "fashion-01.png").read_bytes())
    assert kept[0] == kept[1] and any("sharded" in name for name in kept[0])
    assert pictures[0] == pictures[1] and said == [[], []]


def test_where_programs_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / "diffjax"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / ".cache" / "diffjax"
    assert cache.processor() == cache.processor() and "/" not in cache.processor()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        cache.use_cache(tmp_path / "file" / "x")
