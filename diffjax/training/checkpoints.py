"""Checkpoints: all that is known of Orbax is in this file.

A step holds *items*, pytrees by name, each of which can be read alone. It is written into a temporary folder and renamed
when complete: a save killed halfway is never picked up. The last ``keep`` steps are kept, and the one whose metric is best.
With the metric lies a checksum of each item: bytes that changed later are found when they are read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pathlib
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from ..base import nearest
from ..wording import printable


class SaveError(RuntimeError):
    """A step could not be written: one line with the reason. The steps before it are as they were."""


class Damaged(ValueError):
    """A step cannot be read, or is not what was written."""


class Checkpoints:
    """A folder of checkpoints of any pytrees.

    folder:     made if missing, unless ``read_only``
    keep:       number of last steps to keep, besides the best one
    metric:     the name under which the number is stored that says which is the best
    largest:    whether the best has the largest number; default the smallest, as of a loss
    Use as a context manager, or call ``close()``.
    """

    def __init__(self, folder, keep: int = 2, read_only: bool = False, metric: str = "held_out_loss", largest: bool = False):
        folder = pathlib.Path(folder).absolute()
        if read_only and not folder.is_dir():
            raise ValueError(f"{folder} has no checkpoints: give the folder of a training run")
        self.folder, self.metric, self.largest, self.keep = folder, metric, largest, keep
        self.manager = None
        if not read_only:
            _writable(folder)

    def _open(self):
        """Orbax's manager, which clears away half-written steps. Saved at once and not in the background: an error of a thread
        would come out hundreds of lines later, or leave the program waiting for it."""
        best = policies.BestN(
            get_metric_fn=lambda m: m[self.metric], reverse=not self.largest, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(self.keep), best]),
            best_fn=lambda m: m[self.metric],
            best_mode="max" if self.largest else "min",
            cleanup_tmp_directories=True,
            enable_async_checkpointing=False,
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def save(self, step: int, items: Mapping[str, Any], value: float):
        """Save ``items``, pytrees of arrays by name (``state.to_items``), under ``step``; value: of the metric. Raises
        SaveError, in one line: a full disk, a folder that may not be written any more."""
        metrics = {
            self.metric: float(value),
            **{f"crc32 {name}": crc for name, tree in items.items() if (crc := checksum(tree))},
        }
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        loud = logging.getLogger("absl")
        level = loud.level
        try:
            loud.setLevel(logging.CRITICAL)  # it would say the same error many times over
            with _late_writes():
                if self.manager is None:
                    self._open()
                self.manager.save(int(step), args=ocp.args.Composite(**trees), metrics=metrics)
        except Exception as error:  # of Orbax, tensorstore and the system
            raise SaveError(f"checkpoint {self.folder}/{step} cannot be saved ({_reason(error)})") from error
        finally:
            loud.setLevel(level)

    def steps(self) -> list[int]:
        """The complete steps, rising: those that look whole. Nothing is read but their lists of files and their metrics."""
        if not self.folder.is_dir():
            return []
        numbers = [int(p.name) for p in self.folder.iterdir() if p.name.isdecimal() and p.is_dir()]
        return sorted(n for n in numbers if not self.lacks(n))

    def lacks(self, step: int) -> str:
        """What is missing from a step's folder; "" where it looks whole."""
        place = self.folder / str(step)
        if not (place / "_CHECKPOINT_METADATA").is_file():
            return "_CHECKPOINT_METADATA"
        items = [p for p in place.iterdir() if p.is_dir() and p.name != "metrics"]
        for item in items:
            if not (item / "_METADATA").is_file() or not any(p.is_file() for p in (item / "d").rglob("*")):
                return item.name
        metrics = self._metrics(step)
        summed = [name.removeprefix("crc32 ") for name in metrics if name.startswith("crc32 ")]
        missing = [name for name in summed if not (place / name).is_dir()]
        return missing[0] if missing else "" if items and metrics else "metrics" if items else "its items"

    def _metrics(self, step) -> dict:
        try:
            found = json.loads((self.folder / str(step) / "metrics" / "metrics").read_text())
            return found if isinstance(found, dict) and isinstance(found.get(self.metric), int | float) else {}
        except (OSError, ValueError):
            return {}

    def last(self) -> int | None:
        """The last complete step, or None."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The complete step with the best metric, or None."""
        sign = -1 if self.largest else 1
        values = {n: sign * self._metrics(n)[self.metric] for n in self.steps()}
        finite = [n for n, value in values.items() if np.isfinite(value)]
        return min(finite, key=lambda n: (values[n], -n), default=None)

    def restore(self, items: Mapping[str, Any], which="last") -> dict:
        """The items of step ``which``: "last", "best" or a number; only those that are asked for are read.

        items: by name, trees of ``jax.ShapeDtypeStruct`` (:func:`abstract`), with ``sharding`` where it matters: it may have
        another number of devices than the run had.
        Raises ValueError if there is no such step or item, or if its structure or shapes are others; Damaged if it cannot be
        read.
        """
        step = self._step(which)
        return {name: self._restored(step, name, tree) for name, tree in items.items()}

    def resume(self, items: Mapping[str, Any], say=print):
        """(items, step) of the newest step that can be read, or (None, 0). A newer one that cannot is put aside, beside the
        folder, and that is said. Raises ValueError where a step is of another network."""
        names = (int(p.name) for p in self.folder.iterdir() if p.name.isdecimal() and p.is_dir())
        for step in sorted(names, reverse=True) if self.folder.is_dir() else ():
            try:
                gone = [name for name in items if not (self.folder / str(step) / name).is_dir()]
                if what := self.lacks(step) or (gone and gone[0]):
                    raise Damaged(f"checkpoint {self.folder}/{step} is damaged: {what} is missing or cannot be read")
                return self.restore(items, step), step
            except Damaged as error:
                say(f"{error}; put aside in {self._put_aside(step)}, the one before it is used")
        return None, 0

    def _put_aside(self, step):
        place = pathlib.Path(tempfile.mkdtemp(prefix=f"damaged-{step}-", dir=self.folder.parent))
        (self.folder / str(step)).rename(place / str(step))
        return place

    def _restored(self, step, name, tree):
        place = self._item(step, name)
        reader = ocp.StandardCheckpointHandler()
        shapes = {path: tuple(leaf.shape) for path, leaf in _leaves(self._metadata(reader, place, step))}
        wanted = {path: tuple(leaf.shape) for path, leaf in _leaves(tree)}
        if shapes != wanted:
            path = next(p for p in {**wanted, **shapes} if shapes.get(p) != wanted.get(p))
            raise ValueError(
                f"checkpoint {self.folder}/{step} is of another network or optimiser: {name}{printable(path, 80)} is "
                f"{shapes.get(path, 'not there')}, not {wanted.get(path, 'there')}"
            )
        return self._read(reader, place, step, name, tree)

    def _read(self, reader, place, step, name, tree):
        try:
            restored = reader.restore(place, args=ocp.args.StandardRestore(tree))
        except Exception as error:  # of Orbax and tensorstore: a file cut off, gone, or of other bytes
            raise Damaged(f"checkpoint {self.folder}/{step} is damaged: {name} cannot be read ({_reason(error)})") from error
        written, found = self._metrics(step).get(f"crc32 {name}"), checksum(restored)
        if None not in (written, found) and written != found:
            raise Damaged(f"checkpoint {self.folder}/{step} is damaged: the numbers of {name} are not those that were saved")
        return restored

    def _metadata(self, reader, place, step):
        try:
            return reader.metadata(place).tree
        except Exception as error:
            raise Damaged(f"checkpoint {self.folder}/{step} is damaged: {_reason(error)}") from error

    def read(self, name: str, which="best"):
        """(item ``name`` of step ``which`` as nested dicts of arrays on the first device, step): what it looks like need not
        be known. Where no step has a metric, "best" is the last. Raises ValueError if there is no such step or item."""
        step = self._step(which)
        place = self._item(step, name)
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        reader = ocp.StandardCheckpointHandler()
        shapes = abstract(self._metadata(reader, place, step), one)
        return self._read(reader, place, step, name, shapes), step

    def _step(self, which):
        step = {"last": self.last, "best": lambda: self.best() or self.last()}[which]() if isinstance(which, str) else which
        steps = self.steps()
        if step not in steps:
            raise ValueError(f"{self.folder} has no checkpoint {which}: it has steps {steps}")
        return step

    def _item(self, step, name):
        place = self.folder / str(step) / name
        if not place.is_dir():
            there = [p.name for p in place.parent.iterdir() if p.is_dir() and p.name != "metrics"]
            raise ValueError(f"checkpoint {place.parent} has no item {name!r}: {nearest(name, there)}")
        return place

    def wait(self):
        """Until the save under way is complete: at once, saves do not go on in the background."""

    def close(self):
        if self.manager is not None:
            self.manager.close()


@contextlib.contextmanager
def _late_writes():
    """Where one write fails, others are under way in threads of Orbax and fail after it, each with a traceback of its own, the
    last when Python ends. Those are part of what SaveError says, and of no other use: they are left out."""
    before, came = sys.unraisablehook, []

    def closed(found):
        if isinstance(found.exc_value, RuntimeError) and "Event loop is closed" in str(found.exc_value):
            came.append(time.monotonic())
        else:
            before(found)

    sys.unraisablehook = closed
    try:
        yield
    except Exception:
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_of_a_failed_save)  # the same one twice is once
        begun = time.monotonic()
        while time.monotonic() - max([begun, *came[-1:]]) < 0.3 and time.monotonic() - begun < 3:
            time.sleep(0.02)
        raise
    finally:
        sys.unraisablehook = before


def _of_a_failed_save(record) -> bool:
    """Whether a record of a log is shown: not those of what was still to be written."""
    text = str(record.msg)
    return "_SignalingThread.run()" not in text and "exception was never retrieved" not in text


def _writable(folder):
    """Make the folder and try it. Raises ValueError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pathlib.Path(tempfile.mkdtemp(prefix=".diffjax-", dir=folder)).rmdir()
    except OSError as error:
        raise ValueError(f"checkpoints {folder} cannot be written ({error.strerror}): give another folder") from None


def _reason(error) -> str:
    """The first cause of an error of Orbax, in a few words."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__
    text = getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return printable(text, 160)


def _leaves(tree):
    """(path as text, leaf); dicts, dataclasses and tuples that were saved as dicts have the same paths."""
    return [("".join(f"/{_name(key)}" for key in path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _name(key):
    return next(str(getattr(key, field)) for field in ("key", "idx", "name") if hasattr(key, field))


def checksum(tree) -> int | None:
    """CRC-32 of all numbers; None where some lie on other hosts."""
    found = 0
    for path, leaf in sorted(_leaves(tree), key=lambda pair: pair[0]):
        if not getattr(leaf, "is_fully_addressable", True):
            return None
        a = np.ascontiguousarray(jax.device_get(leaf))
        found = zlib.crc32(a.reshape(-1).view(np.uint8), zlib.crc32(f"{path}{a.dtype}{a.shape}".encode(), found))
    return found


def abstract(tree, sharding=None):
    """Shapes and types of a pytree (or of ``jax.eval_shape``'s result), to restore into."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)
