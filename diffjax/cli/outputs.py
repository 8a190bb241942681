"""The folder a program leaves behind: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError

_MARK = ".diffjax-output"  # a folder that has it was written by us and may be replaced


def file_name(name: str) -> str:
    """A prior's name as the name of a folder."""
    return re.sub(r"[^\w.+@-]+", "-", name).strip(".-") or "prior"


def check_writable(path: str | os.PathLike) -> Path:
    """Whether `output_folder(path)` will work, asked before anything is computed. Leaves no trace.

    Raises UserError if the path is a file, a folder with somebody else's files in it, or not writable.
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise UserError(f"output folder {path} is a link to nothing: give the name of a folder")
    if path.exists() and not path.is_dir():
        raise UserError(f"output folder {path} is a file: give the name of a folder")
    try:
        if path.is_dir() and any(path.iterdir()) and not (path / _MARK).exists():
            raise UserError(f"output folder {path} has other files in it, which are kept: give a new or empty folder")
    except OSError as error:
        raise UserError(f"output folder {path} cannot be written ({error.strerror}): give another with --out") from None
    return check_place(path)


def check_place(path: str | os.PathLike) -> Path:
    """Whether files can be put where ``path`` is or would be. Leaves no trace. Raises UserError."""
    path = Path(path)
    try:
        above = Path(os.path.abspath(path)).parent
        while not above.exists():
            above = above.parent
        os.rmdir(tempfile.mkdtemp(prefix=".diffjax-", dir=above))
    except OSError as error:
        raise UserError(f"output folder {path} cannot be written ({error.strerror}): give another with --out") from None
    return path


@contextlib.contextmanager
def output_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder beside `path`: renamed to `path` when the block ends, removed when it fails.

    An earlier output of ours at `path` is replaced only then. Raises UserError as `check_writable` does.
    """
    path = check_writable(path)
    target = Path(os.path.abspath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise UserError(f"output folder {path} cannot be written ({error.strerror}): give another with --out") from None
    try:
        os.chmod(folder, 0o777 & ~_umask())  # mkdtemp makes it private
        yield folder
        (folder / _MARK).touch()
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            os.rename(target, old / "output")
            try:
                os.rename(folder, target)
            except OSError:
                os.rename(old / "output", target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(folder, target)
    except OSError as error:
        ours = str(error.filename or "").startswith(str(folder)) or error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
        )
        if not ours:  # some other file: not for us to explain
            raise
        raise UserError(f"output folder {path} cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
