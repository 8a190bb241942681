"""One progress bar for all programs: plain text, one line on a terminal, a line now and then in a log file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


def clock(seconds: float) -> str:
    """75 -> '1:15', 3675 -> '1:01:15'."""
    seconds = int(max(seconds, 0))
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """A context manager that counts to ``total``.

    total:  number of steps; start: steps done before (a resumed run)
    label:  what is being done
    unit, per_step:  the rate is shown as ``per_step`` x steps per second, in ``unit``/s
    quiet_every:  seconds between lines where the stream is not a terminal

    ``update(done, loss=0.1)`` shows the count and the given values; it may be called from a host callback.
    """

    def __init__(self, total, *, start=0, label="", unit="steps", per_step=1, stream=None, quiet_every=30.0):
        self.total, self.start, self.label, self.unit, self.per_step = total, start, label, unit, per_step
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.interval = 0.2 if self.live else quiet_every
        self.done, self.shown, self.width = start, {}, 0
        self.begun = self.counting = time.monotonic()
        self.last, self.compiled = -float("inf"), False

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self._write()
        if self.live:
            self.stream.write("\n")
            self.stream.flush()

    def update(self, done=None, **shown):
        """``done`` steps are finished (default: one more than before); ``shown`` replaces the values displayed."""
        self.done = self.done + 1 if done is None else done
        self.shown.update(shown)
        now = time.monotonic()
        if not self.compiled:  # the first step compiles: the rate and the time left are counted from its end
            self.start, self.counting, self.compiled = self.done, now, True
        if now - self.last >= self.interval:
            self._write()

    def rate(self) -> float:
        """Steps per second since the end of the first one; 0 before."""
        return (self.done - self.start) / max(time.monotonic() - self.counting, 1e-9)

    def _write(self):
        self.last = time.monotonic()
        rate = self.rate()
        left = clock((self.total - self.done) / rate) if rate > 0 else "?"
        filled = int(20 * self.done / max(self.total, 1))
        bar = "#" * filled + "." * (20 - filled)
        values = "".join(f"  {k} {v:.4g}" if isinstance(v, float) else f"  {k} {v}" for k, v in self.shown.items())
        text = (
            f"{self.label} [{bar}] {self.done}/{self.total}{values}  {rate * self.per_step:.3g} {self.unit}/s"
            f"  {clock(self.last - self.begun)} gone, {left} left"
        ).strip()
        self.stream.write("\r" + text.ljust(self.width) if self.live else text + "\n")
        self.stream.flush()
        self.width = len(text)


@contextlib.contextmanager
def watch(label: str, stream=None) -> Iterator[Callable[[int, int], None]]:
    """``with watch("restoring") as report:``, report(done, total) shows a bar from its first call on."""
    with contextlib.ExitStack() as stack:
        bars = []

        def report(done, total):
            if not bars:
                bars.append(stack.enter_context(Progress(total, label=label, stream=stream)))
            bars[0].update(done)

        yield report
