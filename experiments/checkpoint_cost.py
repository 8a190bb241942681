"""Memory and time of one forward call of ADM's 256x256 network: ``python -m experiments.checkpoint_cost``.

The weights are random: cost does not depend on them. Memory is read from the compiler, for this machine and, where the
``libtpu`` package is installed, for a TPU that is not there (nothing runs on it). Time is that of one call after a first;
on a busy machine the CPU seconds, of all threads, mean more than the wall's. Writes checkpoint_cost.json.
"""

from __future__ import annotations

import os
import sys
import time

from .tools import provenance, records
from .tools.study import Parser, UserError, command, run

# 256x256_diffusion_uncond.pt (Dhariwal and Nichol 2021)
ADM_256 = dict(out_channels=6, width=256, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, attention=(8, 16, 32), head_channels=64,
               scale_shift=True, resblock_updown=True)  # fmt: skip


def program(fields, size, dtype):
    """(function (params, x, t), abstract arguments) for one image (1, size, size, 3), everything of one type."""
    import jax
    import jax.numpy as jnp

    from diffjax.nets import UNet

    net = UNet(**fields, dtype=dtype)
    x, t = jax.ShapeDtypeStruct((1, size, size, 3), dtype), jax.ShapeDtypeStruct((), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x, t)
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), params)
    return net.apply, (params, x, t)


def compiled(apply, arguments, shardings=None):
    """(executable, what the compiler says of it)."""
    import jax

    begin = time.perf_counter()
    program = jax.jit(apply, **(shardings or {})).lower(*arguments).compile()
    memory = program.memory_analysis()
    return program, {
        "weights and input, GB": memory.argument_size_in_bytes / 1e9,
        "temporary, GB": memory.temp_size_in_bytes / 1e9,
        "together, GB": (memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e9,
        "compile, s": time.perf_counter() - begin,
    }


def seconds(program, arguments):
    """(wall time, CPU time of all threads) of the second call, on random arrays."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    draw = lambda a: jax.numpy.asarray(0.02 * rng.standard_normal(a.shape, np.float32), a.dtype)
    arrays = jax.tree.map(draw, arguments)
    jax.block_until_ready(program(*arrays))
    begin, used = time.perf_counter(), time.process_time()
    jax.block_until_ready(program(*arrays))
    return time.perf_counter() - begin, time.process_time() - used


def here(fields, size, dtype):
    """A row of the table: this machine."""
    import jax

    apply, arguments = program(fields, size, dtype)
    executable, row = compiled(apply, arguments)
    wall, cpu = seconds(executable, arguments)
    return {"device": jax.devices()[0].platform, **row, "one call, s": wall, "one call, CPU s": cpu}


def tpu(fields, size, dtype, topology):
    """A row of the table: one image per chip of a TPU that is only compiled for."""
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    devices = np.array(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    whole, split = (NamedSharding(Mesh(devices, ("data",)), PartitionSpec(*names)) for names in ((), ("data",)))
    apply, (params, x, t) = program(fields, size, dtype)
    put = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
    arguments = (
        jax.tree.map(lambda a: put(a, whole), params),
        jax.ShapeDtypeStruct((devices.size, *x.shape[1:]), x.dtype, sharding=split),
        put(t, whole),
    )
    _, row = compiled(apply, arguments, {"out_shardings": split})
    return {"device": f"one chip of TPU {topology}", **row}


def main(argv=None) -> int:
    p = Parser("experiments.checkpoint_cost", __doc__)
    p.add_argument(
        "--tpu", metavar="TOPOLOGY", default="v5e:2x2", help="the TPU compiled for (default: v5e:2x2); none: skip it"
    )
    p.add_argument("--types", metavar="TYPE", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    p.add_argument("--narrow", action="store_true", help="64 instead of 256 channels: to try the program, not to report")
    p.add_argument("--out", **provenance.OUT)
    o = p.parse(argv)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else the compiler for an absent TPU asks for it for minutes

    import importlib.util

    import jax

    fields, size = ADM_256 | ({"width": 64} if o.narrow else {}), 256
    kinds = [("here", here)]
    if o.tpu != "none":
        if importlib.util.find_spec("libtpu") is None:
            print("note: no TPU row: pip install libtpu, or give --tpu none", file=sys.stderr)
        else:
            kinds.append(("tpu", lambda *args: tpu(*args, o.tpu)))
    rows, (_, (params, *_)) = [], program(fields, size, jax.numpy.float32)
    count = sum(a.size for a in jax.tree.leaves(params))
    for name, make in kinds:
        for dtype in o.types:
            print(f"{name}, {dtype}: compiling", flush=True)
            try:
                rows.append(
                    {"type": dtype, **make(fields, size, jax.numpy.dtype(dtype)), "load average": round(os.getloadavg()[0])}
                )
            except (RuntimeError, ValueError) as error:
                raise UserError(f"{name} cannot compile for {o.tpu}: {' '.join(str(error).split())}") from None
            more = {"parameters": count, "cores": os.cpu_count(), "network": fields | {"size": size}}
            line = command("experiments.checkpoint_cost", argv)
            table = records.write("checkpoint_cost" + "_narrow" * o.narrow, line, rows, o.out, **more)  # a kill keeps them
    print(f"{table}\n{count:,} parameters, {os.cpu_count()} cores")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
