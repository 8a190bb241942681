"""The shape of the house: imports point downward, the core is light, nothing reaches outside the repository."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import diffjax
from diffjax import cli

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diffjax"

# A module may import what stands on its own floor or below. Everything under a folder shares the folder's floor.
FLOORS = [
    {"__version__", "base", "wording"},
    {"method"},
    {"schedules", "process", "metrics", "parallel", "autoencoder", "tiles"},
    {"timetables", "denoisers", "priors"},
    {"operators"},
    {"kernels"},
    {"adaptive"},
    {"flow"},
    {"doors"},
    {"sample"},
    {"methods"},
    {"likelihood"},
    {"nets", "pictures", "volumes"},
    {"convert", "training"},
    {"zoo"},
    {"registry"},
    {"batch"},
    {"cli", "__main__"},
]
FLOOR = {name: n for n, names in enumerate(FLOORS) for name in names}
OUTSIDE_CORE = {"adaptive", "nets", "pictures", "volumes", "convert", "training", "zoo", "cli", "__main__"}


def modules():
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


def imported(path):
    """Names of diffjax parts, and top-level names of other packages, that a file imports anywhere."""
    own, other = set(), set()
    parts = path.relative_to(PACKAGE).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = list(parts[: len(parts) - node.level])
            base += node.module.split(".") if node.module else []
            own |= {base[0]} if base else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            other.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            other |= {alias.name.split(".")[0] for alias in node.names}
    return own, other


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downward(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    own, other = imported(path)
    higher = {name for name in own if FLOOR[name] > FLOOR[part]}
    assert not higher, f"{path.name} (floor {FLOOR[part]}) imports {higher}"
    assert "diffjax" not in other and "experiments" not in other, "inside the package imports are relative"
    if part not in OUTSIDE_CORE:
        foreign = other - {"jax", "numpy"} - set(sys.stdlib_module_names)
        assert not foreign, f"the core imports {foreign}"


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_import_pulls_in_jax_and_numpy_alone():
    """Beside what jax itself loads. Everything is imported when it is asked for, so all of the core is."""
    names = "{m.split('.')[0] for m in __import__('sys').modules}"
    core = "[getattr(diffjax, n) for n in diffjax.__all__ if n not in ('nets', 'convert', 'training', 'zoo')]"
    out = python(f"import jax, numpy; before = {names}; import diffjax; {core}; print(sorted({names} - before))")
    new = set(ast.literal_eval(out)) - set(sys.stdlib_module_names) - {"diffjax"}
    assert not {n for n in new if not n.startswith("_")}, new


def test_import_is_fast():
    """Core import under 0.5 s beyond jax: CPU seconds of the process, the best of three."""
    code = ("import jax, jax.numpy, time; start = time.process_time(); import diffjax; diffjax.methods, diffjax.sample; "
            "print(time.process_time() - start)")  # fmt: skip
    assert min(float(python(code)) for _ in range(3)) < 0.5


@pytest.mark.parametrize("command", ["", *cli.PROGRAMS])
def test_help_is_quick(command):
    """It imports neither jax nor numpy, which take a second: CPU seconds of the process, the best of three."""
    code = ("import sys, time, contextlib, io; from diffjax.cli import main\n"
            "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
            f"    main({command.split()} + ['--help'])\n"
            "assert not {'jax', 'numpy', 'PIL', 'flax'} & set(sys.modules), sys.modules\n"
            "print(time.process_time())")  # fmt: skip
    assert min(float(python(code)) for _ in range(3)) < 0.3


def test_the_verb_is_no_module():
    """``diffjax.sample`` stays the function, whoever imports the module of the same name first."""
    out = python("import diffjax.sample; from diffjax.sample import State; import diffjax; print(diffjax.sample.__name__)")
    assert out == "sample\n" and callable(diffjax.sample)


def test_everything_promised_is_there():
    for name in diffjax.__all__:
        assert getattr(diffjax, name) is not None and name in dir(diffjax)
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        diffjax.sampel  # noqa: B018


def test_nothing_reaches_outside_the_repository():
    forbidden = "../" + "shared"
    for folder in ("diffjax", "experiments", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if (
                path.is_file()
                and "__pycache__" not in path.parts
                and path.suffix in {".py", ".md", ".json", ".toml", ".sh", ".txt"}
            ):
                assert forbidden not in path.read_text(errors="ignore"), path


def test_files_can_be_read_in_one_sitting():
    for folder in ("diffjax", "experiments", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            if "oracle" not in path.parts:
                assert len(path.read_text().splitlines()) <= 420, path


def test_lint_and_format():
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run([sys.executable, "-m", "ruff", *command, "."], capture_output=True, text=True, cwd=ROOT)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-500:]


RESULTS = ROOT / "experiments" / "results"
PAGES = [ROOT / "README.md", RESULTS / "README.md"]
# Numbers that a person may type into the text about results: settings and sizes of what is measured. Whatever was measured is
# a mark (experiments/tools/pages.py) and comes from a file.
SETTINGS = {"0", "1", "2", "3", "8", "16", "21", "25", "32", "40", "80", "95", "100", "250", "512", "1024", "16×16", "32×32",
            "64×64", "256×256", "0.01", "0.02", "0.05", "0.1", "0.11", "0.5", "48.1"}  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=["README", "results"])
def test_tables_and_numbers_of_a_page_are_those_of_the_result_files(page):
    from experiments.tools import pages

    text = page.read_text()
    assert pages.refresh(text) == text, "run python -m experiments.record"
    assert not re.search(r"^ {0,3}<!-- number", text, re.M), "a comment that begins a line ends the paragraph"


def test_commands_that_are_named_exist():
    """On pages, in result files, cards and the text of programs."""
    from diffjax.cli import PROGRAMS

    for file in [*PAGES, *ROOT.glob("experiments/**/*.json"), *ROOT.glob("diffjax/**/*.json"), *ROOT.glob("*/**/*.py")]:
        if ROOT / "tests" in file.parents:
            continue
        text = file.read_text()
        for module in re.findall(r"python3? -m ((?:experiments|diffjax)[\w.]*)", text):
            assert importlib.util.find_spec(module.rstrip(".")), (file, module)
        for command in re.findall(r"(?:`|\": \")(?:\S*/)?diffjax ([a-z][\w-]*)", text):
            assert command in PROGRAMS, (file, command)


def test_every_result_is_shown_once_and_every_picture_is_used():
    from experiments.tools import pages

    readme, results = (page.read_text() for page in PAGES)
    assert pages.shown(results) == {f.stem for f in RESULTS.glob("*.json")} >= pages.shown(readme)
    runs = [words for _, kind, words, *_ in pages.SPAN.findall(results) if kind == "run"]
    assert len(runs) == len(set(runs)) and set(runs) == pages.shown(results), "where each comes from is said once"
    for file in RESULTS.iterdir():
        assert file.suffix == ".json" or file.name == "README.md" or file.name in readme + results, file
    studies = {f.stem for f in RESULTS.glob("*.json")}
    pictures = {f.stem for f in RESULTS.glob("*.png")} - {"restored", "restored_fruits"}
    assert len(studies) <= 46 and pictures <= studies, "a study is one file and at most one picture"


def test_readme_has_two_short_tables_of_results_and_one_of_speed():
    from experiments.tools import pages

    tables = [body for _, kind, _, body, _ in pages.SPAN.findall((ROOT / "README.md").read_text()) if kind == "table"]
    assert len(tables) <= 3 and all(len(body.split("\n| ")) <= 3 + 8 for body in tables)


def prose(text):
    """What a page says outside marks, tables, code, links and headings."""
    from experiments.tools import pages

    text = pages.CONTENTS.sub("", pages.SPAN.sub("", text))
    for other in (r"```.*?```", r"`[^`]*`", r"\]\([^)]*\)", r"^[|#!].*$"):
        text = re.sub(other, "", text, flags=re.S if "```" in other else re.M)
    return text


@pytest.mark.parametrize("page", PAGES, ids=["README", "results"])
def test_measured_numbers_in_prose_are_rendered(page):
    text = page.read_text()
    if page == PAGES[0]:
        text = text[text.index("## How good is it?") : text.index("## Add a method")]
    numbers = set(re.findall(r"(?<![\w.])\d[\d.,]*(?:×\d+)?(?![\w])", prose(text)))
    typed = {n.rstrip(".,") for n in numbers} - SETTINGS
    assert not typed, "typed numbers: make them marks, or add settings to SETTINGS"
