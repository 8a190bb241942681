"""Ctrl-C and SIGTERM: a program ends within two seconds, wherever it is, with 130 or 143 and nothing half-written.

Python runs its signal handlers between two of its own instructions: not while XLA compiles or a batch is computed, and an
exception raised there may be lost in a callback, or tear the interpreter down under a running program. So a signal only sets
a mark, which the program asks at places of its own choice; a thread, woken by the signal itself, ends the process where the
program has not come to such a place in time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from . import errors

SECONDS = 1.0  # that the program has to end in its own way
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stop:
    """What a program asks. True once a signal has come; code: the exit code then, else 0.

    patience: seconds that the program may take to end, None for as long as it needs; cleanup: what to do at the end,
    -> a line to say, or ""; it must bear being called while the program runs."""

    def __init__(self):
        self.signal, self.patience, self.ended = 0, SECONDS, threading.Event()
        self.cleanup: Callable[[], str] = lambda: ""

    def __bool__(self):
        return bool(self.signal)

    @property
    def code(self) -> int:
        return 128 + self.signal if self.signal else 0

    def check(self):
        """KeyboardInterrupt once a signal has come."""
        if self.signal:
            raise KeyboardInterrupt


def run(main: Callable[[Stop], int | None]) -> int:
    """``errors.run(main)`` under :func:`guard`: its exit code, or the end of the process."""

    def guarded():
        try:
            return main(stop)
        except KeyboardInterrupt:
            if stop:
                _end(stop)
            raise

    with guard() as stop:
        return errors.run(guarded)


@contextlib.contextmanager
def guard() -> Iterator[Stop]:
    """Within the block the signals are this one's."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield stop
        return
    out, into = os.pipe()
    os.set_blocking(into, False)

    def come(number, frame):
        stop.signal = stop.signal or number

    before = {number: signal.signal(number, come) for number in WORDS}
    woken = signal.set_wakeup_fd(into, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(stop, out), daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        stop.ended.set()
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(into)  # the thread reads the end, and goes
        watcher.join(1.0)
        os.close(out)


def _watch(stop, out):
    seen = 0
    while data := os.read(out, 1):
        if data[0] in WORDS and not stop.ended.is_set():
            stop.signal, seen = stop.signal or data[0], seen + 1
            patience = stop.patience if seen == 1 else SECONDS  # whoever asks twice means it
            if patience is not None and not stop.ended.wait(patience):
                _end(stop)


def _end(stop):
    """Say it and leave, without waiting for what is being computed."""
    try:
        line = stop.cleanup() or ""
    except OSError as error:
        line = str(error)
    with contextlib.suppress(OSError, ValueError):  # a closed stream
        sys.stdout.flush()
        print(f"\n{WORDS[stop.signal]}" + (f": {line}" if line else ""), file=sys.stderr, flush=True)
    os._exit(stop.code)
