"""Checkpoints: all that is known of Orbax is in this file.

A step holds *items*, pytrees by name, each of which can be read alone. It is written in the background into a temporary
folder and renamed when complete: a save killed halfway is never picked up. The last ``keep`` steps are kept, and the one
whose metric is best.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from ..base import nearest


class Checkpoints:
    """A folder of checkpoints of any pytrees.

    folder:     made if missing, unless ``read_only``
    keep:       number of last steps to keep, besides the best one
    metric:     the name under which the number is stored that says which is the best
    largest:    whether the best has the largest number; default the smallest, as of a loss
    Use as a context manager, or call ``close()``: it waits for the save under way.
    """

    def __init__(self, folder, keep: int = 2, read_only: bool = False, metric: str = "held_out_loss", largest: bool = False):
        folder = pathlib.Path(folder).absolute()
        if read_only and not folder.is_dir():
            raise ValueError(f"{folder} has no checkpoints: give the folder of a training run")
        of = lambda m: m[metric]
        best = policies.BestN(get_metric_fn=of, reverse=not largest, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            best_fn=of,
            best_mode="max" if largest else "min",
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        self.folder, self.metric = folder, metric
        self.manager = ocp.CheckpointManager(folder, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def save(self, step: int, items: Mapping[str, Any], value: float):
        """Start saving ``items``, pytrees of arrays by name (``state.to_items``), under ``step``; value: of the metric."""
        items = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self.manager.save(int(step), args=ocp.args.Composite(**items), metrics={self.metric: float(value)})

    def last(self) -> int | None:
        """The last complete step, or None."""
        return self.manager.latest_step()

    def best(self) -> int | None:
        """The step with the best metric, or None."""
        return self.manager.best_step()

    def restore(self, items: Mapping[str, Any], which="last") -> dict:
        """The items of step ``which``: "last", "best" or a number; only those that are asked for are read.

        items: by name, trees of ``jax.ShapeDtypeStruct`` (:func:`abstract`), with ``sharding`` where it matters: it may have
        another number of devices than the run had.
        Raises ValueError if there is no such step or item, or if its structure or shapes are others.
        """
        step = self._step(which)
        for name in items:
            self._item(step, name)
        try:
            asked = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
            restored = self.manager.restore(step, args=ocp.args.Composite(**asked))
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise ValueError(f"checkpoint {self.folder}/{step} is of another network or optimiser: {reason}") from error
        restored = {name: restored[name] for name in items}
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(dict(items)), jax.tree.leaves(restored), strict=True):
            if a.shape != b.shape:
                raise ValueError(
                    f"checkpoint {self.folder}/{step} is of another network: {jax.tree_util.keystr(path)} is "
                    f"{b.shape}, not {a.shape}"
                )
        return restored

    def read(self, name: str, which="best"):
        """(item ``name`` of step ``which`` as nested dicts of arrays on the first device, step): what it looks like need not
        be known. Where no step has a metric, "best" is the last. Raises ValueError if there is no such step or item."""
        step = self._step(which)
        place = self._item(step, name)
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        reader = ocp.StandardCheckpointHandler()
        shapes = abstract(reader.metadata(place).tree, one)
        return reader.restore(place, args=ocp.args.StandardRestore(shapes)), step

    def _step(self, which):
        step = {"last": self.last, "best": lambda: self.best() or self.last()}[which]() if isinstance(which, str) else which
        steps = sorted(self.manager.all_steps())
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
        """Until the save under way is complete."""
        self.manager.wait_until_finished()

    def close(self):
        self.manager.wait_until_finished()
        self.manager.close()


def abstract(tree, sharding=None):
    """Shapes and types of a pytree (or of ``jax.eval_shape``'s result), to restore into."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)
