"""Checkpoints: all that is known of Orbax is in this file.

A step is written in the background into a temporary folder and renamed when complete: a save killed halfway is never
picked up. The last ``keep`` steps are kept, and the one with the lowest held-out loss.
"""

from __future__ import annotations

import pathlib

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from .state import TrainState

METRIC = "held_out_loss"


class Checkpoints:
    """A folder of checkpoints of :class:`TrainState`.

    folder:     made if missing, unless ``read_only``
    keep:       number of last steps to keep, besides the best one
    Use as a context manager, or call ``close()``: it waits for the save under way.
    """

    def __init__(self, folder, keep: int = 2, read_only: bool = False):
        folder = pathlib.Path(folder).absolute()
        if read_only and not folder.is_dir():
            raise ValueError(f"{folder} has no checkpoints: give the folder of a training run")
        best = policies.BestN(get_metric_fn=lambda m: m[METRIC], reverse=True, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            best_fn=lambda m: m[METRIC],
            best_mode="min",
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        self.folder = folder
        self.manager = ocp.CheckpointManager(folder, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def save(self, state: TrainState, loss: float):
        """Start saving ``state`` under its step number; ``loss``: its held-out loss."""
        self.manager.save(int(state.step), args=ocp.args.StandardSave(_tree(state)), metrics={METRIC: float(loss)})

    def last(self) -> int | None:
        """The last complete step, or None."""
        return self.manager.latest_step()

    def best(self) -> int | None:
        """The step with the lowest held-out loss, or None."""
        return self.manager.best_step()

    def restore(self, abstract: TrainState, which="last") -> TrainState:
        """The state of step ``which``: "last", "best" or a number.

        abstract: a state of ``jax.ShapeDtypeStruct`` leaves (``jax.eval_shape``), with ``sharding`` where it matters:
        it may have another number of devices than the run had.
        Raises ValueError if there is no such step or it belongs to another network.
        """
        step = {"last": self.last, "best": lambda: self.best() or self.last()}[which]() if isinstance(which, str) else which
        steps = sorted(self.manager.all_steps())
        if step not in steps:
            raise ValueError(f"{self.folder} has no checkpoint {which}: it has steps {steps}")
        try:
            restored = self.manager.restore(step, args=ocp.args.StandardRestore(_tree(abstract)))
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise ValueError(f"checkpoint {self.folder}/{step} is of another network or optimiser: {reason}") from error
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(_tree(abstract)), jax.tree.leaves(restored), strict=True):
            if a.shape != b.shape:
                raise ValueError(
                    f"checkpoint {self.folder}/{step} is of another network: {jax.tree_util.keystr(path)} is "
                    f"{b.shape}, not {a.shape}"
                )
        return TrainState(**restored)

    def wait(self):
        """Until the save under way is complete."""
        self.manager.wait_until_finished()

    def close(self):
        self.manager.wait_until_finished()
        self.manager.close()


def abstract(state, sharding=None) -> TrainState:
    """Shapes and types of a state (or of ``jax.eval_shape``'s result), to restore into."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), state)


def _tree(state: TrainState) -> dict:
    return {name: getattr(state, name) for name in ("step", "params", "opt_state", "ema")}
