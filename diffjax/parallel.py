"""One image's function over many images and devices: the same numbers on any mesh, no collectives."""

from __future__ import annotations

import functools
import math
import os
import warnings

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def use_cores(count: int | None = None) -> None:
    """Make every CPU core one JAX device, so that :func:`shard` spreads a batch over the cores. For the top of a script.

    count:  devices wanted; default: the cores this process may use, unless the user has set a number already
            (``JAX_NUM_CPU_DEVICES``, or ``--xla_force_host_platform_device_count`` in ``XLA_FLAGS``)
    One device alone leaves cores idle: convolutions inside a compiled loop run on about one thread. Other platforms are not
    touched. JAX settles its devices when it computes for the first time: called later, where there are fewer than wanted, this
    warns and changes nothing. Raises ValueError for a count below 1.
    """
    if count is None:
        if jax.config.jax_num_cpu_devices > 0 or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
            return
        wanted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    else:
        wanted = count
    if wanted < 1:
        raise ValueError(f"{count} devices are too few: give 1 or more, or leave the number out for every core")
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError:  # the devices are settled
        there = len(jax.devices("cpu"))
        if there < wanted:
            warnings.warn(
                f"{wanted} CPU devices are wanted, but jax has started with {there}: call use_cores before jax computes",
                stacklevel=2,
            )


def mesh(devices=None) -> Mesh:
    """A one-axis mesh named "data" over ``devices`` (default: all)."""
    return Mesh(np.array(jax.devices() if devices is None else devices), ("data",))


_over_all = mesh  # ``shard`` has an argument of that name


def _batch_size(args, in_axes):
    leaves = [a for tree, axis in zip(args, in_axes) if axis == 0 for a in jax.tree.leaves(tree)]
    if any(not getattr(a, "shape", ()) for a in leaves):
        raise ValueError("a batched argument has no leading axis: give None for it in in_axes")
    sizes = {a.shape[0] for a in leaves}
    if len(sizes) != 1:
        raise ValueError(f"batched arguments have leading sizes {sorted(sizes)}: give all of them the same number of images")
    return sizes.pop()


@functools.lru_cache(maxsize=32)  # as jax.jit: the same function again finds its program
def _over_devices(fn, devices_mesh, in_axes):
    devices_mesh = Mesh(devices_mesh.devices, devices_mesh.axis_names)  # jax.make_mesh's explicit axes forbid cropping
    count = math.prod(devices_mesh.devices.shape)
    split = PartitionSpec(devices_mesh.axis_names)

    def sharded(*args):
        axes = _axes(in_axes, args)
        specs = tuple(split if axis == 0 else PartitionSpec() for axis in axes)
        mapped = jax.vmap(fn, in_axes=axes)
        return jax.shard_map(mapped, mesh=devices_mesh, in_specs=specs, out_specs=split, check_vma=False)(*args)

    compiled = jax.jit(sharded)

    def place(args):
        """(arguments padded and on their devices, batch)"""
        axes = _axes(in_axes, args)
        batch = _batch_size(args, axes)
        extra = -batch % count
        pad = lambda a: jax.numpy.concatenate([a, jax.numpy.repeat(a[-1:], extra, 0)]) if extra else a
        placed = []
        for tree, axis in zip(args, axes):
            sharding = NamedSharding(devices_mesh, split if axis == 0 else PartitionSpec())
            placed.append(jax.device_put(jax.tree.map(pad, tree) if axis == 0 else tree, sharding))
        return placed, batch

    def run(*args):
        placed, batch = place(args)
        out = compiled(*placed)
        return jax.tree.map(lambda a: a[:batch], out) if batch % count else out

    run.lower = lambda *args: compiled.lower(*place(args)[0])
    return run


def _axes(in_axes, args):
    axes = (in_axes,) * len(args) if in_axes in (0, None) else in_axes
    if not isinstance(axes, tuple) or len(axes) != len(args) or not all(a in (0, None) for a in axes):
        raise ValueError(f"in_axes {in_axes!r} does not fit {len(args)} arguments: give 0 or None for each")
    return tuple(axes)


def shard(fn, mesh=None, in_axes=0):
    """``fn`` of one image, mapped over the leading axis of its arguments and over all devices of ``mesh`` (default: all).

    in_axes: 0, or a tuple with 0 (one entry per image) or None (shared, replicated) per argument, as in ``jax.vmap``
    The batch need not divide by the number of devices: the last image is repeated and the result cropped.
    Each image is computed on one device from its own arguments, so results do not depend on the mesh (beyond float rounding).
    The same ``fn`` and mesh again find the compiled program; a fresh lambda is another function.
    Raises ValueError when batched arguments differ in length or have none, or in_axes does not fit.
    """
    return _over_devices(fn, _over_all() if mesh is None else mesh, tuple(in_axes) if isinstance(in_axes, list) else in_axes)


def pmapped(fn, in_axes=0):
    """:func:`shard` over all devices of this process: what ``jax.pmap`` would be used for, without its axis rules."""
    return shard(fn, mesh(jax.local_devices()), in_axes)
