"""Speed and memory as ratios, measured in one run: ``python -m experiments.benchmark [--quick]``.

Every row is a ratio to something a user could have written: the sampler against a bare ``lax.scan`` of the same number
of network calls (alternating, median of 7), the gradient through many rows against few. Writes
experiments/results/benchmark.json and .md.
"""

from __future__ import annotations

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax.cli.errors import run
from diffjax.cli.options import Parser
from diffjax.cli.training_run import build

from . import record
from .configs.fashion32 import config

SHAPE = (32, 32, 1)


def network():
    """(denoiser parameters -> denoiser, params, schedule) of fashion32's architecture; its weights do not matter here."""
    from diffjax.nets import init

    net, schedule = build(config)
    params = init(net, jax.random.key(0), SHAPE)
    return net, params, schedule


def bare_scan(net, schedule, table):
    """What a user would write for this many calls: the network and one axpy in a scan."""
    times = jnp.asarray(schedule.network_time(table.t), jnp.float32)

    def go(params, x):
        return jax.lax.scan(lambda x, t: (0.9 * x + 0.1 * net.apply(params, x, t), None), x, times)[0]

    return go


def samplers(net, schedule, table):
    denoise = lambda params: dj.denoisers.from_v(net.apply, params, schedule)

    def ddim(key, params, x):
        return dj.sample(key, denoise(params), table, x, kernel=dj.kernels.DDIM(schedule)).x

    def repaint(key, params, x):
        mask = jnp.ones(SHAPE).at[:, 16:].set(0)
        method = dj.methods.RePaint(denoise(params), dj.Measurement(jnp.zeros(SHAPE), dj.operators.Mask(mask)))
        return dj.sample(key, method, table, x, kernel=dj.kernels.DDPM(schedule)).x

    return {"DDIM": ddim, "RePaint + DDPM": repaint}


def overhead(batch: int, rows: int, repeats: int = 7):
    """Seconds of each sampler over seconds of the bare scan; all compiled first, then alternating."""
    net, params, schedule = network()
    table = dj.timetables.log_snr(schedule, rows)
    x = jax.random.normal(jax.random.key(1), (batch, *SHAPE))
    keys = jax.random.split(jax.random.key(2), batch)
    programs = {"bare scan": (jax.jit(jax.vmap(bare_scan(net, schedule, table), (None, 0))), (params, x))}
    for name, fn in samplers(net, schedule, table).items():
        programs[name] = (jax.jit(jax.vmap(fn, (0, None, 0))), (keys, params, x))
    seconds = {name: [] for name in programs}
    for n in range(repeats + 1):
        for name, (fn, args) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(fn(*args))
            if n:  # the first round compiles
                seconds[name].append(time.perf_counter() - start)
    bare = np.array(seconds.pop("bare scan"))
    return {name: float(np.median(np.array(s) / bare)) for name, s in seconds.items()}


def gradient_cost(calls: int, repeats: int = 7, batch: int = 4) -> float:
    """Seconds of a network call with its gradient by the image over seconds of the call, both inside a loop."""
    net, params, _ = network()
    size = lambda x, params: (net.apply(params, x, 500.0) ** 2).sum()

    def loop(step):
        walk = lambda x, params: jax.lax.fori_loop(0, calls, lambda _, x: 0.9 * x + 1e-3 * step(x, params), x)
        return jax.jit(jax.vmap(walk, (0, None)))

    programs = loop(lambda x, params: net.apply(params, x, 500.0)), loop(jax.grad(size))
    x = jax.random.normal(jax.random.key(1), (batch, *SHAPE))
    seconds = np.zeros((repeats + 1, 2))
    for n in range(repeats + 1):
        for m, fn in enumerate(programs):
            start = time.perf_counter()
            jax.block_until_ready(fn(x, params))
            seconds[n, m] = time.perf_counter() - start
    return float(np.median(seconds[1:, 1] / seconds[1:, 0]))  # the first round compiles


def gradient_memory(remat: str, rows: int) -> int:
    """Bytes of temporary memory of the gradient of RePaint's result by the network's parameters (from the compiler)."""
    net, params, schedule = network()
    table = dj.timetables.log_snr(schedule, rows)

    def loss(params, x):
        denoise = dj.denoisers.from_v(net.apply, params, schedule)
        return dj.sample(jax.random.key(0), denoise, table, x, kernel=dj.kernels.DDIM(schedule, eta=0.5), remat=remat).x.sum()

    return jax.jit(jax.grad(loss)).lower(params, jnp.zeros(SHAPE)).compile().memory_analysis().temp_size_in_bytes


def main(argv=None) -> int:
    parser = Parser("experiments.benchmark", __doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows and repeats: to try the program, not to report")
    options = parser.parse(argv)
    rows, repeats = (20, 3) if options.quick else (100, 7)
    found = []
    for batch, bound in ((16, 1.05), (1, 1.10)):
        for name, ratio in overhead(batch, rows, repeats).items():
            found.append(
                {
                    "what": f"{name}, {rows} rows, batch {batch}",
                    "against": "bare lax.scan",
                    "ratio": round(ratio, 3),
                    "bound": bound,
                }
            )
    ratio = gradient_cost(10 if options.quick else 50, repeats)
    found.append({"what": "network call with its gradient", "against": "the call", "ratio": round(ratio, 3), "bound": 4.0})
    few, many = (4, 16) if options.quick else (16, 256)
    for remat in ("row", "sqrt", "none"):
        if remat == "none" and not options.quick:
            continue  # keeps every activation: 256 rows would take gigabytes
        ratio = gradient_memory(remat, many) / gradient_memory(remat, few)
        found.append(
            {
                "what": f"memory of the gradient, {many} rows, remat={remat}",
                "against": f"{few} rows",
                "ratio": round(ratio, 3),
                "bound": 2.0 if remat != "none" else "",
            }
        )
    command = "python -m experiments.benchmark" + (" --quick" if options.quick else "")
    print(record.write("benchmark" + ("_quick" if options.quick else ""), command, found))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
