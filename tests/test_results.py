"""experiments.tools: what a fingerprint of code sees, marks in pages, records with and without git, defaults of --out."""

import importlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from diffjax.cli.errors import UserError
from experiments import record
from experiments.tools import code, pages, provenance, records, study, views

ROOT = Path(__file__).parents[1]

PACKAGE = {
    "pack/__init__.py": "from . import kernels, other\nfrom .base import Thing\n",
    "pack/base.py": '"""Words."""\nclass Thing:\n    """More words."""\n    size = 3\n',
    "pack/other.py": "def unused():\n    return 1\n",
    "pack/kernels/__init__.py": "from .slow import Slow\nfrom .fast import Fast\n",
    "pack/kernels/slow.py": "from ..base import Thing\nclass Slow(Thing):\n    pass\n",
    "pack/kernels/fast.py": "class Fast:\n    pass\n",
    "pack/method.py": "from . import kernels\nfrom .kernels import Slow\ndef go():\n    return kernels.Slow()\n",
    "pack/outside.py": "import pack as p\ndef go():\n    from . import other\n    return p.kernels.Fast, other.unused\n",
}


@pytest.fixture
def pack(tmp_path):
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def files(root, *modules, **options):
    return [str(f.relative_to(root / "pack")) for f in code.reached(*modules, root=root, **options)]


def test_imports_are_followed_to_the_files_that_names_come_from(pack):
    assert files(pack, "pack.method") == ["base.py", "kernels/slow.py", "method.py"]
    assert files(pack, "pack.outside") == ["kernels/fast.py", "other.py", "outside.py"]
    assert files(pack, "pack.method", besides=["pack.kernels"]) == ["method.py"]
    (pack / "pack/whole.py").write_text("from . import kernels\nnames = vars(kernels)\n")  # who knows what of it
    assert files(pack, "pack.whole") == ["base.py", "kernels/__init__.py", "kernels/fast.py", "kernels/slow.py", "whole.py"]
    with pytest.raises(ValueError, match=r"pack\.no is no module"):
        code.reached("pack.no", root=pack)


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("base.py", PACKAGE["pack/base.py"].replace("size = 3", "size = 4"), True),
        ("base.py", '"""Other words."""\nclass Thing:\n    size = 3  # why\n', False),
        ("base.py", "class Thing:\n\n    size = (3)\n", False),
        ("kernels/fast.py", "class Fast:\n    speed = 2\n", False),
        ("kernels/new.py", "x = 1\n", False),
        ("kernels/__init__.py", PACKAGE["pack/kernels/__init__.py"] + "from .fast import Fast as Other\n", False),
        ("kernels/__init__.py", "from .fast import Fast as Slow\n", True),
        ("kernels/slow.py", PACKAGE["pack/kernels/slow.py"].replace("pass", "kind = 'pass'"), True),
    ],
)
def test_only_what_runs_makes_a_number_stale(pack, file, text, changes):
    after = shutil.copytree(pack / "pack", pack / "after" / "pack")
    (after / file).write_text(text)
    assert (code.fingerprint("pack.method", root=pack / "after") != code.fingerprint("pack.method", root=pack)) == changes


def test_real_methods_reach_their_own_files():
    """A change in CoPaint leaves RePaint's numbers alone; a change in what both import does not."""
    of = lambda name: {str(f.relative_to(ROOT / "diffjax")) for f in code.reached(f"diffjax.methods.{name}")}
    found = {name: of(name) for name in ("repaint", "copaint")}
    assert "methods/copaint.py" not in found["repaint"] and "methods/repaint.py" not in found["copaint"]
    assert "base.py" in found["repaint"] & found["copaint"] and "operators/mask.py" in found["repaint"]
    assert "kernels/ddim.py" in found["copaint"] and "kernels/ode.py" not in found["copaint"]


def test_values_know_numbers_types_and_structure_and_no_addresses():
    a = {"x": np.arange(3.0), "n": 2, "name": "half"}
    assert provenance.values(a) == provenance.values({"name": "half", "n": 2, "x": np.arange(3.0)})
    others = [a | {"x": np.arange(3.0) + 1e-12}, a | {"x": np.arange(3.0, dtype=np.float32)}, a | {"name": "wide"}, {"x": [a]}]
    assert len({provenance.values(tree) for tree in (a, *others)}) == 5
    import jax

    fresh = lambda: provenance.values(jax.tree_util.Partial(lambda x: x, 3.0))
    assert fresh() == fresh()


# --- pages ---


@pytest.fixture
def folder(tmp_path):
    rows = [{"method": m, "calls": c, "H": h} for m, c, h in (("a", 20, 1.5), ("b", 100, 2.25), ("b", None, 12345.678))]
    records.write("made", "python -m experiments.made", rows, tmp_path, seconds=7200, images=3)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("made | count", "3"),
        ("made where method=b | count", "2"),
        ("made where method=b; calls=100 | H", "2.250"),
        ("made where method=b; calls=- | H | .1f", "12345.7"),
        ("made where calls=20 or 100 | largest H | .2f", "2.25"),
        ("made view rows | least H", "1.500"),
    ],
)
def test_numbers_are_rendered(folder, words, shown):
    text = f"So <!-- number: {words} -->?<!-- end --> it is."
    assert pages.refresh(text, folder) == text.replace("?", shown)


@pytest.mark.parametrize(
    ("mark", "says"),
    [
        ("number: mode | count", "did you mean 'made'"),
        ("number: made | H", "3 rows are left"),
        ("number: made where methd=a | H", "did you mean 'method'"),
        ("number: made where method=c | H", "no row"),
        ("number: made view lpips | H", "unknown view 'lpips'"),
        ("table: made of H; col", "unknown column 'col'"),
        ("number: diffjax/zoo/fashion32/card.json | quality > frechett", "has no quality > frechett"),
    ],
)
def test_a_mark_that_fits_nothing_is_named(folder, mark, says):
    end = "<!-- end table -->" if mark.startswith("table") else "<!-- end -->"
    with pytest.raises(UserError, match=says) as error:
        pages.refresh(f"<!-- {mark} -->{end}", folder)
    assert mark in str(error.value)


def test_a_page_is_filled_in_and_then_stays(folder):
    text = "# T\n<!-- contents --><!-- end contents -->\n## One, two\n<!-- run: made --><!-- end run -->\n"
    text += "## Three\n<!-- table: made where method=b of H; method --><!-- end table -->\n"
    once = pages.refresh(text, folder)
    assert pages.refresh(once, folder) == once
    assert "* [One, two](#one-two)\n* [Three](#three)\n" in once
    assert "`python -m experiments.made` (2.0 h on this device): cpu, 3 images, 20" in once and "commit " in once
    lines = [line for line in once.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["H", "method"] and len(lines) == 4
    assert pages.shown(once) == {"made"}


def test_record_shows_a_view_or_writes_the_pages(folder, monkeypatch, tmp_path, capsys):
    assert record.main(["made", "--folder", str(folder)]) == 0
    assert "| b      |   100 |" in capsys.readouterr().out
    page = tmp_path / "README.md"
    page.write_text("<!-- number: made | count -->?<!-- end -->")
    monkeypatch.setattr(record, "written", lambda: [page])
    assert record.main(["--folder", str(folder)]) == 0
    assert page.read_text() == "<!-- number: made | count -->3<!-- end -->"


# --- where there is no checkout, or no git ---


def test_without_a_checkout_nothing_is_written_beside_the_code(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert provenance.results() == Path("results")
    with pytest.raises(UserError, match="there is no checkout"):
        record.main([])
    assert study.run(lambda: record.main([])) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_commits_are_of_the_checkout_and_of_nothing_around_it(monkeypatch, tmp_path):
    git = lambda *words: subprocess.run(["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *words], check=True)
    git("init", "-q")
    for name in ("diffjax", "site-packages"):
        (tmp_path / name).mkdir()
    (tmp_path / "diffjax" / "a.py").write_text("x = 1\n")
    git("add", "-A")
    git("commit", "-qm", "one")
    now = provenance.commit.__wrapped__
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert len(now()["commit"]) == 40 and now()["dirty"] is False
    (tmp_path / "notes.txt").write_text("not code\n")
    assert now()["dirty"] is False
    (tmp_path / "diffjax" / "a.py").write_text("x = 2\n")
    assert now()["dirty"] is True
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "site-packages")
    assert now() == {"commit": None, "dirty": None}
    monkeypatch.setattr(provenance.subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(FileNotFoundError("git")))
    assert now() == {"commit": None, "dirty": None}


@pytest.mark.parametrize("name", ["evaluate", "calibrate", "tune", "seconds", "ablation", "photograph", "checkpoint_cost"])
def test_results_go_to_the_checkout_unless_told_otherwise(name, capsys):
    program = importlib.import_module(f"experiments.{name}")
    with pytest.raises(SystemExit):
        program.main(["--help"])
    assert "--out" in capsys.readouterr().out
    assert provenance.OUT["default"] == ROOT / "experiments" / "results"


def test_the_command_leaves_out_what_changes_no_number():
    words = ["--core", "--out", "x", "--tables", "--cells=y", "--methods", "a b", "--fresh", "--allow-stale"]
    assert study.command("experiments.calibrate", words) == "python -m experiments.calibrate --core --methods 'a b'"
    assert study.command("m", ["--methods", "a", "--count", "2"], extra=["--methods"]) == "python -m m --count 2"


# --- the results that are kept ---


@pytest.mark.parametrize("name", sorted(f.stem for f in (ROOT / "experiments" / "results").glob("*.json")))
def test_a_kept_result_names_its_origin_and_makes_its_tables(name):
    kept = records.read(name)
    assert kept["command"].startswith("python -m experiments.") and "--tables" not in kept["command"]
    assert len(kept["commit"]) == 40 and kept["date"] and kept["device"] and kept["versions"]["jax"]
    assert kept["dirty"] is False or kept.get("note"), "what was not made by a commit says what is known"
    assert kept.get("took") or kept.get("seconds"), "how long it takes"
    for view in views.names(kept):
        assert views.rows(kept, view), view
    assert len(json.dumps(kept)) < 400_000
