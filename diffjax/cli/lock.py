"""A folder that one process at a time works in."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from .errors import UserError

NAME = ".diffjax-lock"


class Lock:
    """A file in the folder that says which process works there. The operating system knows whether that process lives: what a
    kill leaves behind is taken over. UserError, which names process and host, where another one is at work."""

    def __init__(self, folder):
        self.path, self.handle = Path(folder) / NAME, None

    def take(self):
        try:
            import fcntl
        except ImportError:  # no POSIX: there is no claim
            return self
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                who = os.read(handle, 500)
                os.close(handle)
                raise UserError(
                    f"folder {self.path.parent} is in use by {_named(who)}: wait for it, or give another"
                ) from None
            except OSError:  # a file system without locks: there is no claim
                pass
            try:
                same = os.path.samestat(os.stat(self.path), os.fstat(handle))
            except FileNotFoundError:
                same = False
            if same:
                break
            os.close(handle)  # its owner removed it in between
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        self.handle = handle
        return self

    def release(self):
        if self.handle is not None:
            self.path.unlink(missing_ok=True)  # while it is held: nobody else takes it in between
            os.close(self.handle)
            self.handle = None


def _named(who: bytes) -> str:
    try:
        found = json.loads(who)
        return f"process {int(found['pid'])} on {str(found['host'])[:60]}"
    except (ValueError, KeyError, TypeError):
        return "another process"
