"""One image's function over many images and devices: the same numbers on any mesh, no collectives."""

from __future__ import annotations

import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def mesh(devices=None) -> Mesh:
    """A one-axis mesh named "data" over ``devices`` (default: all)."""
    return Mesh(np.array(jax.devices() if devices is None else devices), ("data",))


def _batch_size(args, in_axes):
    sizes = {a.shape[0] for tree, axis in zip(args, in_axes) if axis == 0 for a in jax.tree.leaves(tree)}
    if len(sizes) != 1:
        raise ValueError(f"batched arguments have leading sizes {sorted(sizes)}: give all of them the same number of images")
    return sizes.pop()


def _over_devices(fn, devices_mesh, in_axes):
    count = math.prod(devices_mesh.devices.shape)
    axes = devices_mesh.axis_names

    def sharded(*args):
        data = PartitionSpec(axes)
        specs = tuple(data if axis == 0 else PartitionSpec() for axis in _axes(in_axes, args))
        return jax.shard_map(
            jax.vmap(fn, in_axes=_axes(in_axes, args)), mesh=devices_mesh, in_specs=specs, out_specs=data, check_vma=False
        )(*args)

    compiled = jax.jit(sharded)

    def run(*args):
        batch = _batch_size(args, _axes(in_axes, args))
        extra = -batch % count
        pad = lambda a: jax.numpy.concatenate([a, jax.numpy.repeat(a[-1:], extra, 0)]) if extra else a
        place = [
            NamedSharding(devices_mesh, PartitionSpec(axes) if axis == 0 else PartitionSpec()) for axis in _axes(in_axes, args)
        ]
        args = [
            jax.device_put(jax.tree.map(pad, tree) if axis == 0 else tree, sharding)
            for tree, axis, sharding in zip(args, _axes(in_axes, args), place)
        ]
        out = compiled(*args)
        return jax.tree.map(lambda a: a[:batch], out) if extra else out

    run.lower = compiled.lower
    return run


def _axes(in_axes, args):
    return (in_axes,) * len(args) if in_axes in (0, None) else tuple(in_axes)


def shard(fn, mesh, in_axes=0):
    """``fn`` of one image, mapped over the leading axis of its arguments and over all devices of ``mesh``.

    in_axes: 0, or a tuple with 0 (one entry per image) or None (shared, replicated) per argument, as in ``jax.vmap``
    The batch need not divide by the number of devices: the last image is repeated and the result cropped.
    Each image is computed on one device from its own arguments, so results do not depend on the mesh (beyond float rounding).
    Raises ValueError when batched arguments differ in length.
    """
    return _over_devices(fn, mesh, in_axes)


def pmapped(fn, in_axes=0):
    """:func:`shard` over all devices of this process: what ``jax.pmap`` would be used for, without its axis rules."""
    return _over_devices(fn, mesh(jax.local_devices()), in_axes)
