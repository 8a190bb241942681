"""Fingerprints of code: of what Python runs in the files that a computation reaches, and in no others.

Comments, docstrings and layout are left out: a better sentence does not make an afternoon of computing stale. The files are
found by following imports, those from a package's ``__init__`` to the file that the name comes from: a change in one method,
or a new kernel, leaves the numbers of the other methods alone. It looks no finer than files. Versions of jax are written down
beside a number and not compared: they change its last digits.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import textwrap
from pathlib import Path

from .provenance import ROOT


def fingerprint(*modules: str, besides=(), root: Path = ROOT) -> str:
    """Twelve digits that change with what Python runs in the modules (dotted names) or in those they import under ``root``.
    besides: modules and packages that are not followed."""
    digest = hashlib.sha256()
    for file in reached(*modules, besides=besides, root=root):
        digest.update(f"{file.relative_to(root)}\n{_running(file)}".encode())
    return digest.hexdigest()[:12]


def reached(*modules: str, besides=(), root: Path = ROOT) -> list[Path]:
    """The files behind the modules and behind whatever they import under ``root``, sorted."""
    found, waiting = set(), [Part(root, name) for name in modules]
    while waiting:
        part = waiting.pop()
        if part.file not in found and not any(f"{part.name}.".startswith(f"{name}.") for name in besides):
            found.add(part.file)
            waiting += part.needs()
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
        if Part.find(ROOT, name):
            found.add(name)
        if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
            waiting += [getattr(thing, field.name, None) for field in dataclasses.fields(thing)]
        elif isinstance(thing, dict):
            waiting += list(thing.values())
        elif isinstance(thing, tuple | list):
            waiting += list(thing)
    return found


def of_function(function) -> tuple[str, set[str]]:
    """(what Python runs in the function, the modules under ``ROOT`` that it uses)."""
    text = textwrap.dedent(inspect.getsource(function))
    file = Path(inspect.getsourcefile(inspect.unwrap(function)))  # its __module__ is "__main__" in a program that runs
    parts = Part(ROOT, ".".join(file.relative_to(ROOT).with_suffix("").parts)).needs(ast.parse(text))
    return running(text), {part.name for part in parts}


def running(text: str) -> str:
    """Python without comments, docstrings and layout."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            body[:1] = [] if len(body) > 1 else [ast.Pass()]
    return ast.unparse(tree)


# A file is read once: if it is edited during a long run, the run goes on with the code that it began with.


@functools.cache
def _text(file: Path) -> str:
    return file.read_text()


@functools.cache
def _running(file: Path) -> str:
    return running(_text(file))


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(_text(file))


class Part:
    """A module under ``root``, by its dotted name. Raises ValueError where there is none."""

    def __init__(self, root: Path, name: str):
        self.root, self.name = root, name
        path = root.joinpath(*name.split("."))
        self.package = (path / "__init__.py").is_file()
        self.file = path / "__init__.py" if self.package else path.with_suffix(".py")
        if not self.file.is_file():
            raise ValueError(f"{name} is no module under {root}")

    @classmethod
    def find(cls, root: Path, name: str) -> Part | None:
        try:
            return cls(root, name)
        except ValueError:
            return None

    def needs(self, node: ast.AST | None = None) -> list[Part]:
        """The parts whose names the module uses, or only those that ``node`` uses. A package's ``__init__`` uses all."""
        return list(_needs(self.root, self.name)) if node is None else self._needs(node)

    def _needs(self, node):
        bound, found = self._bound(), []
        if node is None and self.package:
            return [part for parts in bound.values() for part in parts]
        node = _tree(self.file) if node is None else node
        above = {inner.value: inner for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
        for name in ast.walk(node):
            if isinstance(name, ast.Name):
                for part in bound.get(name.id, ()):
                    found += self._follow(part, above.get(name), above)
        return found + bound.get(None, [])

    def _bound(self) -> dict:
        """{local name: parts it may stand for}, of all imports of the module; None: of those without a name here."""
        bound = {}
        for node in ast.walk(_tree(self.file)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    parts = self._behind_import(self._absolute(node), alias.name)
                    bound.setdefault(alias.asname or alias.name, []).extend(parts)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if part := Part.find(self.root, alias.name):
                        local = alias.asname or (alias.name if "." not in alias.name else None)
                        bound.setdefault(local, []).append(part)
        return bound

    def _absolute(self, node: ast.ImportFrom) -> str:
        """The dotted name after ``from``."""
        above = self.name.split(".")
        above = above[: len(above) - node.level + self.package] if node.level else []
        return ".".join([*above, *filter(None, [node.module])])

    def _behind_import(self, source: str, name: str) -> list[Part]:
        if part := Part.find(self.root, f"{source}.{name}"):
            return [part]
        package = Part.find(self.root, source)
        return package.behind(name) if package else []

    def behind(self, name: str) -> list[Part]:
        """Where a name of this module comes from: for a package what its ``__init__`` imports it from, else the module."""
        if not self.package:
            return [self]
        if part := Part.find(self.root, f"{self.name}.{name}"):
            return [part]
        for node in ast.walk(_tree(self.file)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self._behind_import(self._absolute(node), alias.name)
        return [self]

    def _follow(self, part, attribute, above) -> list[Part]:
        """The parts behind ``package.name.name``; a package used in any other way counts as a whole."""
        while part.package and attribute is not None:
            inner = part.behind(attribute.attr)
            if len(inner) != 1 or inner[0].name == part.name or not inner[0].package:
                return inner
            part, attribute = inner[0], above.get(attribute)
        return [part]


@functools.cache
def _needs(root: Path, name: str) -> tuple:
    return tuple(Part(root, name)._needs(None))
