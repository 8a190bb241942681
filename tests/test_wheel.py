"""What a user installs: the wheel's contents and metadata, and the main job run from it in an empty folder."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREES = ("diffjax", "experiments")
FILES = ("pyproject.toml", "README.md", "LICENSE")


def python(*arguments, executable=sys.executable, **more):
    done = subprocess.run([executable, *map(str, arguments)], capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the checkout."""
    place = tmp_path_factory.mktemp("source")
    for name in TREES:
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, place)
    old = int(importlib.metadata.version("setuptools").split(".")[0]) < 77  # then pip fetches one to build with
    python("-m", "pip", "wheel", "-q", "--no-deps", *["--no-build-isolation"] * (not old), "-w", place / "dist", place)
    (found,) = (place / "dist").glob("*.whl")
    return found


def test_what_is_in_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        sizes = {entry.filename: entry.compress_size for entry in archive.infolist()}
    info = next(n.split("/")[0] for n in names if n.endswith(".dist-info/METADATA"))
    assert {n.split("/")[0] for n in names} == {"diffjax", info}  # no top-level package but one
    inside = {n for n in names if n.startswith("diffjax/")}
    tracked = {str(p.relative_to(ROOT)) for p in (ROOT / "diffjax").rglob("*.py") if "__pycache__" not in p.parts}
    assert {n for n in inside if n.endswith(".py")} == tracked
    for name in ("fashion32", "fruits32"):
        assert {f"diffjax/zoo/{name}/card.json", f"diffjax/zoo/{name}/weights.safetensors"} <= inside
    assert {"diffjax/py.typed", "diffjax/zoo/images/fashion.npz"} <= inside
    assert not [n for n in inside if n.endswith((".png", ".md.json", ".pyc")) or "results" in n]
    weights = {n for n in inside if n.endswith(".safetensors")}
    assert weights == {str(p.relative_to(ROOT)) for p in (ROOT / "diffjax" / "zoo").rglob("*.safetensors")}
    assert sum(sizes[n] for n in names if n not in weights) < 1.5e6  # code, cards and a few pictures: no stray data
    assert sum(sizes[n] for n in weights) < 21e6  # 13 MB of today, and what is granted to latents (6) and volumes (2)


def test_what_it_says_of_itself(wheel):
    with zipfile.ZipFile(wheel) as archive:
        folder = next(n for n in archive.namelist() if n.endswith("/METADATA")).removesuffix("METADATA")
        about = message_from_string(archive.read(folder + "METADATA").decode())
        scripts = archive.read(folder + "entry_points.txt").decode()
        kept = {n.removeprefix(folder + "licenses/") for n in archive.namelist() if n.startswith(folder + "licenses/")}
    assert "diffjax = diffjax.cli:main" in scripts
    for licence in ("Apache-2.0", "CC-BY-SA-4.0", "MIT", "BSD-2-Clause", "BSD-3-Clause"):
        assert licence in about["License-Expression"].split(" AND ")
    written = {str(p.relative_to(ROOT)) for kind in ("LICENSE*", "CREDITS*") for p in (ROOT / "diffjax" / "zoo").rglob(kind)}
    assert len(written) > 5 and kept == {"LICENSE"} | written == set(about.get_all("License-File"))
    needed = {line.split(";")[0].split(">")[0] for line in about.get_all("Requires-Dist") if "extra" not in line}
    assert needed == {"jax", "numpy", "flax", "safetensors", "pillow"}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel and nothing else; its dependencies are found where those of the tests are."""
    place = tmp_path_factory.mktemp("environment")
    python("-m", "venv", "--without-pip", place)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    python("-m", "pip", "--python", place / "bin" / "python", "install", "-q", "--no-deps", "--no-compile", wheel)
    # a path in a .pth file comes last, and .pth files in it are not read: an editable diffjax there stays unseen
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin", site


@pytest.mark.skipif(sys.platform == "win32", reason="bin/")
def test_the_main_job_from_an_empty_folder(installed, tmp_path):
    """A folder named experiments changes nothing, and nothing is written but what was asked for."""
    programs, site = installed
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("raise RuntimeError('not yours')\n")
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    env |= {"PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": ""}
    before = sorted(site.rglob("*"))
    where = python("-c", "import diffjax; print(diffjax.__file__)", executable=programs / "python", cwd=tmp_path, env=env)
    assert Path(where.strip()).is_relative_to(site)

    line = "restore --images bundled:fashion --limit 1 --samples 1 --steps 4 --out restored --no-cache"
    said = python(programs / "diffjax", *line.split(), executable=programs / "python", cwd=tmp_path, env=env)
    assert "fashion-00" in said and "restored/fashion32/grid.png" in said
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file() and "/." not in str(p)}
    results = {f"restored/fashion32/{name}" for name in ("grid.png", "metrics.json", "images/fashion-00.png")}
    assert written == {"experiments/__init__.py"} | results
    assert sorted(site.rglob("*")) == before
