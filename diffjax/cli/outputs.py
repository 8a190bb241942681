"""The folder a program leaves behind: what was there of others' stays, what is ours is replaced when all is done, and what is
finished is kept when a program ends on the way.

Files are first written into ``unfinished`` inside the folder, each whole or not at all, with a journal of what is done, and
are moved to their places at the end. So a link, a mount point or the current folder serve as well as a new one: nothing is
renamed but our own files. ``.diffjax-output`` lists them: a folder is ours by that list, not by its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import UserError
from .lock import NAME as LOCK
from .lock import Lock

MANIFEST = ".diffjax-output"  # {"files": [...]}, written by us and replaced by us
UNFINISHED = "unfinished"
JOURNAL = "journal.jsonl"
_NOT_OTHERS = {MANIFEST, LOCK, "lost+found"}  # the last: of every disk that is mounted


class Stopped(UserError):
    """It failed on the way, and what is finished stays."""


def file_name(name: str) -> str:
    """A prior's name as the name of a folder."""
    return re.sub(r"[^\w.+@-]+", "-", name).strip(".-").encode()[:120].decode(errors="ignore") or "prior"


def check_writable(path: str | os.PathLike) -> Path:
    """Whether `Output(path)` will work, asked before anything is computed. Leaves no trace.

    Raises UserError if the path is a file, a folder with somebody else's files in it, not writable, or on a full disk.
    """
    path = Path(path)
    if path.is_symlink() and not os.path.exists(path):
        raise UserError(f"output folder {path} is a link to nothing: give the name of a folder")
    if os.path.exists(path) and not os.path.isdir(path):
        raise UserError(f"output folder {path} is a file: give the name of a folder")
    try:
        inside = {p.name for p in path.iterdir()} - _NOT_OTHERS if os.path.isdir(path) else set()
        ours = owned(path) is not None
        if UNFINISHED in inside and (path / UNFINISHED / JOURNAL).is_file():
            inside.discard(UNFINISHED)
            ours = True
    except OSError as error:
        raise UserError(f"output folder {path} cannot be written ({error.strerror}): give another with --out") from None
    if inside and not ours:
        raise UserError(f"output folder {path} has other files in it, which are kept: give a new or empty folder")
    if UNFINISHED in inside:
        raise UserError(f"output folder {path} has {UNFINISHED}/ in it, which is not ours: give another with --out")
    return check_place(path, inside=True)


def owned(folder) -> set[str] | None:
    """Which files in a folder were written by us; None where it says nothing of that."""
    try:
        listed = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {name for name in listed if not os.path.isabs(name) and ".." not in Path(name).parts}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):  # damaged, or of a version that kept no list
        return None


def check_place(path: str | os.PathLike, inside: bool = False) -> Path:
    """Whether files can be put where ``path`` is or would be (``inside``: into it). Leaves no trace. Raises UserError."""
    path = Path(path)
    try:
        above = Path(os.path.realpath(path))
        above = above if inside else above.parent
        while not os.path.exists(above):
            above = above.parent
        probe = Path(tempfile.mkdtemp(prefix=".diffjax-", dir=above))
        try:
            (probe / "probe").write_bytes(bytes(4096))  # a full disk still makes folders
        finally:
            shutil.rmtree(probe, ignore_errors=True)
    except OSError as error:
        raise UserError(f"output folder {path} cannot be written ({error.strerror}): give another with --out") from None
    return path


def check_room(path, total: int, largest: int) -> None:
    """UserError where a disk, or the limit on files (``ulimit -f``), is smaller than what will surely be written, in bytes."""
    above = Path(os.path.realpath(path))
    while not os.path.exists(above):
        above = above.parent
    free = shutil.disk_usage(above).free
    if free < total:
        raise UserError(f"output folder {path} has room for {free:,} bytes, and about {total:,} are needed: make room, "
                        "or give another with --out")  # fmt: skip
    with contextlib.suppress(ImportError):  # no POSIX
        import resource

        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY and limit < largest:
            raise UserError(f"files may have {limit:,} bytes here (ulimit -f), and about {largest:,} are needed")


def write_bytes(path: Path, data: bytes) -> None:
    """A file, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class Output:
    """A context manager. ``begin`` claims the folder and may be called again with more files; then ``folder`` is where files
    are put and ``finish`` says what is done. Leaving the block moves all to its place; leaving it by an exception keeps
    what is finished and says where, or, where nothing is, leaves no trace.

    resume: go on with what an earlier run left unfinished
    """

    def __init__(self, path, resume: bool = False):
        self.path, self.resume = Path(path), resume
        self.target = Path(os.path.realpath(path))
        self.folder = self.target / UNFINISHED
        self.lock = Lock(self.target)
        self.made: list[Path] = []  # folders that are ours to remove
        self.journal: list[dict] = []
        self.claimed = self.over = False
        self.total, self.where = 0, ""

    @property
    def finished(self) -> list[dict]:
        return [line for line in self.journal if "done" in line]

    def begun(self, place: str) -> bool:
        return any(line.get("place") == place and "settings" in line for line in self.journal)

    def begin(self, files: Iterable[str], settings: dict, count: int) -> list[dict]:
        """Claim the folder for ``files`` (paths in it); -> what is done of them already, as ``finish`` was told.

        settings: what the results depend on, with a "place"; a resumed run must have the same. count: how many things will be
        finished. Raises UserError where a file of others is in the way, or another process is at work.
        """
        try:
            if not self.claimed:
                self._claim()
            ours = owned(self.target) or set()
            for name in files:
                parents = [self.target / p for p in list(Path(name).parents)[:-1]]
                blocked = [p for p in parents if os.path.lexists(p) and not os.path.isdir(p)]
                if os.path.lexists(self.target / name) and name not in ours:
                    blocked.append(self.target / name)
                if blocked:
                    raise UserError(f"{blocked[0]} is not ours and in the way: move it, or give another --out")
        except OSError as error:
            raise self._failed(error) from None
        self.total += count
        settings = json.loads(json.dumps(settings))  # as they are read again
        said = {"place": settings["place"], "settings": settings}
        before = [line["settings"] for line in self.journal if line.get("place") == settings["place"] and "settings" in line]
        if before and before[0] != settings:
            other = next(k for k in [*settings, *before[0]] if before[0].get(k) != settings.get(k))
            raise UserError(f"{self.folder} was made with {other} {before[0].get(other)}, not {settings.get(other)}: "
                            "use that, or leave out --resume")  # fmt: skip
        if not before:
            self._write(said)
        return [line["done"] for line in self.finished if line["place"] == settings["place"]]

    def _claim(self):
        missing = [self.target]
        while not os.path.exists(missing[-1].parent):
            missing.append(missing[-1].parent)
        self.made = [p for p in missing if not os.path.exists(p)]
        self.target.mkdir(parents=True, exist_ok=True)
        self.lock.take()
        self.claimed = True
        if self.folder.exists():
            if self.resume:
                self.journal = _read(self.folder / JOURNAL)
                for part in self.folder.rglob(".*.part"):
                    part.unlink()
            else:
                lost = sum("done" in line for line in _read(self.folder / JOURNAL))
                if lost:
                    print(f"note: {lost} results that a stopped run left in {self.folder} are made anew: --resume keeps them")
                shutil.rmtree(self.folder)
        self.folder.mkdir(exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in self.journal)
        write_bytes(self.folder / JOURNAL, text.encode())

    def finish(self, place: str, done: dict):
        """The files that belong to ``done`` are written."""
        self._write({"place": place, "done": done})

    def _write(self, line):
        with open(self.folder / JOURNAL, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.journal.append(line)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            try:
                self._commit()
            except OSError as failed:
                raise self._failed(failed) from failed
            return
        where = self.abandon()
        if isinstance(error, OSError) and self.claimed:
            raise self._failed(error, where) from error
        if where and isinstance(error, ValueError):
            raise Stopped(f"{error}; {where}") from error

    def _failed(self, error, where=None):
        where = self.abandon() if where is None else where
        reason = f"output folder {self.path} cannot be written ({error.strerror or error})"
        return Stopped(f"{reason}; {where}" if where else f"{reason}: give another with --out")

    def _commit(self):
        if not self.claimed or self.over:
            return
        files = [p.relative_to(self.folder).as_posix() for p in sorted(self.folder.rglob("*")) if p.is_file()]
        files.remove(JOURNAL)
        before = owned(self.target) or set()
        self._own([*before, *files])  # also when it ends in the middle of what follows
        for name in files:
            (self.target / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.folder / name, self.target / name)
        for name in before - set(files):
            (self.target / name).unlink(missing_ok=True)
            for parent in list(Path(name).parents)[:-1]:
                with contextlib.suppress(OSError):  # there is something else in it
                    (self.target / parent).rmdir()
        self._own(files)
        shutil.rmtree(self.folder)
        self.over = True
        self.lock.release()

    def _own(self, files):
        write_bytes(self.target / MANIFEST, json.dumps({"files": sorted(set(files))}, indent=1).encode())

    def abandon(self) -> str:
        """The end before the end: -> where what is finished can be found, or "" where nothing is and nothing is left."""
        if not self.claimed or self.over:
            return self.where
        done = len(self.finished)
        if not done:
            shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.lock.release()
        for folder in self.made if not done else ():
            with contextlib.suppress(OSError):  # there is something else in it
                folder.rmdir()
        self.over = True
        rest = "the same command with --resume does the rest"
        self.where = f"{done} of {self.total} are finished in {self.folder}, {rest}" if done else ""
        return self.where


def _read(file) -> list[dict]:
    """The journal's lines; what a kill cut off is no line."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict)]


@contextlib.contextmanager
def output_folder(path: str | os.PathLike, stop=None) -> Iterator[Path]:
    """A folder for files that are moved to `path` when the block ends, and removed when it fails.

    An earlier output of ours at `path` is replaced only then. stop: of ``interrupt.guard``. Raises UserError as
    `check_writable` does.
    """
    with Output(check_writable(path)) as output:
        if stop is not None:
            stop.cleanup = output.abandon
        output.begin((), {"place": ""}, 1)
        yield output.folder
        if stop is not None:
            stop.check()
