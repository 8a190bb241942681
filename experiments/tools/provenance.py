"""Where numbers come from: commit, date, device, versions, and fingerprints of the code and of the values behind them.

A fingerprint of code is taken of what Python runs and not of the text: comments, docstrings and layout are left out, so that
a better sentence does not make an afternoon of computing stale. It covers the files that the given modules reach by their
imports, and no others: a change in one method leaves the numbers of the other methods alone, and so does a new kernel. An
import from a package's ``__init__`` is followed to the file that the name comes from.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime
import functools
import hashlib
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("diffjax", "experiments", "tests/oracle")  # what can change a number


def checkout() -> Path | None:
    """The checkout's root, or None where experiments was installed without one."""
    return ROOT if (ROOT / "pyproject.toml").is_file() else None


def results() -> Path:
    """Where result files are written unless told otherwise: the checkout's, else ./results."""
    return ROOT / "experiments" / "results" if checkout() else Path("results")


def _git(*words) -> str | None:
    """What git says of the checkout; None where there is no git, or the folder is no repository's root."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def commit() -> dict:
    """{"commit": full hash or None, "dirty": whether code differs from it}; the results themselves do not count."""
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT.resolve():
        return {"commit": None, "dirty": None}
    changed = _git("status", "--porcelain", "--", *PARTS, ":!experiments/results")
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(changed)}


def versions() -> dict:
    import jax
    import numpy

    import diffjax

    return {"python": platform.python_version(), "jax": jax.__version__, "numpy": numpy.__version__,
            "diffjax": diffjax.__version__}  # fmt: skip


def made() -> dict:
    """Commit, date (UTC) and device of a number that is computed now."""
    import jax

    now = datetime.datetime.now(datetime.UTC)
    return {**commit(), "date": now.strftime("%Y-%m-%d"), "device": jax.devices()[0].device_kind}


# --- fingerprints ------------------------------------------------------------------------------------------------------


def values(*trees) -> str:
    """Twelve digits that change with any number, type or name in the pytrees."""
    import jax
    import numpy as np

    digest = hashlib.sha256()
    for tree in trees:
        leaves, structure = jax.tree.flatten(tree)
        digest.update(str(structure).encode())
        for leaf in leaves:
            if not isinstance(leaf, str) and not callable(leaf):
                leaf = np.asarray(leaf)
                digest.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
            else:
                digest.update(str(getattr(leaf, "__qualname__", leaf)).encode())
    return digest.hexdigest()[:12]


def code(*modules: str, besides=(), root: Path = ROOT) -> str:
    """Twelve digits that change with what Python runs in the modules (dotted names) or in those they import under ``root``.
    besides: modules that are not followed."""
    digest = hashlib.sha256()
    for file in reached(*modules, besides=besides, root=root):
        digest.update(str(file.relative_to(root)).encode() + _running(file, file.stat().st_mtime_ns).encode())
    return digest.hexdigest()[:12]


def reached(*modules: str, besides=(), root: Path = ROOT) -> list[Path]:
    """The files behind the modules and behind whatever they import under ``root``, sorted."""
    found, waiting, left_out = set(), [_Part(root, name) for name in modules], {_Part(root, name).file for name in besides}
    while waiting:
        part = waiting.pop()
        if part.file not in found | left_out:
            found.add(part.file)
            waiting += part.imports()
    return sorted(found)


def behind(*things) -> set[str]:
    """The modules under ``ROOT`` of the classes and functions that pytrees, networks and the like are made of."""
    found, seen, waiting = set(), set(), list(things)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        name = (thing if callable(thing) and hasattr(thing, "__qualname__") else type(thing)).__module__
        if _Part.at(ROOT, name) is not None:
            found.add(name)
        if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
            waiting += [getattr(thing, field.name, None) for field in dataclasses.fields(thing)]
        elif isinstance(thing, dict):
            waiting += list(thing.values())
        elif isinstance(thing, tuple | list):
            waiting += list(thing)
    return found


@functools.lru_cache(maxsize=512)
def _parse(file: Path, changed: int):
    return ast.parse(file.read_text())


def _tree(file: Path):
    return _parse(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=512)
def _running(file: Path, changed: int) -> str:
    """The file without comments, docstrings and layout."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            body[:1] = [] if len(body) > 1 else [ast.Pass()]
    return ast.unparse(tree)


class _Part:
    """A module of the tree under ``root``."""

    def __init__(self, root: Path, name: str):
        self.root, self.name = root, name
        path = root.joinpath(*name.split("."))
        self.package = (path / "__init__.py").is_file()
        self.file = path / "__init__.py" if self.package else path.with_suffix(".py")
        if not self.file.is_file():
            raise ValueError(f"{name} is no module under {root}")

    @classmethod
    def at(cls, root, name):
        try:
            return cls(root, name)
        except ValueError:
            return None

    def _absolute(self, node: ast.ImportFrom) -> str:
        """The dotted name after ``from``."""
        above = self.name.split(".")
        above = above[: len(above) - node.level + self.package] if node.level else []
        return ".".join([*above, *filter(None, [node.module])])

    def imports(self) -> list:
        """The parts that this one needs. Of a package it needs what its names are used for, else all of it."""
        needed, bound = [], {}
        for node in ast.walk(_tree(self.file)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self._bind(self._absolute(node), alias.name, alias.asname or alias.name, needed, bound)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    part = _Part.at(self.root, alias.name)
                    if part and not part.package:
                        needed.append(part)
                    elif part:
                        bound[alias.asname or alias.name.split(".")[0]] = part
        if self.package:  # reached as a whole
            return [*needed, *bound.values()]
        return needed + self._used(bound)

    def _bind(self, source, name, local, needed, bound):
        part = _Part.at(self.root, f"{source}.{name}")
        if part is None:
            package = _Part.at(self.root, source)
            if package:
                needed += package.behind(name)
        elif part.package:
            bound[local] = part
        else:
            needed.append(part)

    def behind(self, name: str) -> list:
        """Where a name of this module comes from: the part itself, or for a package's ``__init__`` what it imports it from."""
        if not self.package:
            return [self]
        sub = _Part.at(self.root, f"{self.name}.{name}")
        if sub is not None:
            return [sub]
        for node in ast.walk(_tree(self.file)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        source = self._absolute(node)
                        inside = _Part.at(self.root, f"{source}.{alias.name}") or _Part.at(self.root, source)
                        if inside is not None and inside.package and inside.name == source:
                            return inside.behind(alias.name)
                        return [inside] if inside is not None else []
        return [self]  # defined there: then all that it imports

    def _used(self, bound: dict) -> list:
        """Follows ``package.name.name``; a package used in any other way counts as a whole."""
        needed, parents = [], {}
        tree = _tree(self.file)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                parents[node.value] = node
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in bound:
                part, at = bound[node.id], parents.get(node)
                while at is not None and part.package:
                    inner = part.behind(at.attr)
                    if len(inner) != 1 or not inner[0].package or inner[0] is part:
                        break
                    part, at = inner[0], parents.get(at)
                needed += part.behind(at.attr) if at is not None and part.package else [part]
        return needed
