"""Speed and memory as ratios, measured in one run: ``python -m experiments.benchmark [--quick]``, and beside other
libraries: ``python -m experiments.benchmark peers`` (see `benchmark_peers`).

Every row is a ratio to something a user could have written, or to what diffjax did before: the contestants take turns on one
core, the least CPU seconds of several rounds count (wall seconds on accelerators, and where all cores work). "bound" is what
the ratio must stay below. Writes experiments/results/benchmark.json.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time

from . import benchmark_clock as clock

if __name__ == "__main__" and sys.argv[1:2] != ["peers"]:
    CORES = clock.pin()  # before jax starts its threads
else:
    CORES = clock.cores()

import jax
import jax.numpy as jnp

import diffjax as dj
from diffjax.cli.errors import run
from diffjax.cli.options import Parser
from diffjax.cli.training_run import build

from . import benchmark_ours as ours
from . import record
from .benchmark_before import before
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


def least(programs, rounds):
    """`clock.contest` by CPU seconds, on accelerators by wall seconds."""
    return clock.contest(programs, rounds, time.process_time if jax.default_backend() == "cpu" else time.perf_counter)


def overhead(batch: int, rows: int, rounds: int):
    """Seconds of each sampler over seconds of the bare scan."""
    net, params, schedule = network()
    table = dj.timetables.log_snr(schedule, rows)
    x = jax.random.normal(jax.random.key(1), (batch, *SHAPE))
    keys = jax.random.split(jax.random.key(2), batch)
    programs = {"bare scan": ours.ready(jax.vmap(bare_scan(net, schedule, table), (None, 0)), params, x)}
    for name, fn in samplers(net, schedule, table).items():
        programs[name] = ours.ready(jax.vmap(fn, (0, None, 0)), keys, params, x)
    seconds = least(programs, rounds)
    bare = seconds.pop("bare scan")
    return {name: s / bare for name, s in seconds.items()}


def gradients(calls: int, rounds: int):
    """Seconds of fashion32's network with each gradient, in a loop and outside: {name: seconds of one call}."""
    net, params, _ = network()
    size = lambda x, params: (net.apply(params, x, 500.0) ** 2).sum()
    x = jax.random.normal(jax.random.key(1), (4, *SHAPE))

    def walk(step):
        return lambda x, params: jax.lax.fori_loop(0, calls, lambda _, x: 0.9 * x + 1e-3 * step(x, params), x)

    def by_weights(x, params):
        step = jax.checkpoint(lambda x, _: (0.9 * x + 1e-3 * net.apply(params, x, 500.0), None))
        return jax.lax.scan(step, x, None, length=calls)[0].sum()

    programs = {
        "call": walk(lambda x, params: net.apply(params, x, 500.0)),
        "by image": walk(jax.grad(size)),
        "loop by image": jax.grad(by_weights),
        "loop by weights": jax.grad(by_weights, 1),
        "by weights": jax.grad(size, 1),
    }
    programs = {name: ours.ready(fn, x, params) for name, fn in programs.items()}
    with before():
        programs["loop by weights before"] = ours.ready(jax.grad(lambda x, params: by_weights(x, params), 1), x, params)
        programs["loop by weights before"]()
    seconds = least(programs, rounds)
    return {name: s if name == "by weights" else s / calls for name, s in seconds.items()}


def networks(name: str, side: int, rounds: int):
    """Rows of one network at one size: forward and with its gradient, seconds and memory, against those of before."""
    net, params, _, channels = ours.network(name)
    x = jax.random.normal(jax.random.key(1), (1, side, side, channels))

    def both(params, x):
        y, back = jax.vjp(lambda x: net.apply(params, x, 500.0), x)
        return y, back(x)[0]

    for what, fn in (("forward", lambda params, x: net.apply(params, x, 500.0)), ("forward and gradient", both)):
        compiled = {"now": jax.jit(fn).lower(params, x).compile()}
        with before():
            compiled["before"] = jax.jit(lambda params, x, fn=fn: fn(params, x)).lower(params, x).compile()
        seconds = least({k: lambda c=c: jax.block_until_ready(c(params, x)) for k, c in compiled.items()}, rounds)
        memory = {k: c.memory_analysis().temp_size_in_bytes for k, c in compiled.items()}
        where = f"{name} {side}x{side}, {what}"
        yield row(where, "before", seconds["now"] / seconds["before"], 1.02)
        yield row(f"memory of {where}", "before", memory["now"] / memory["before"], 1.1)


def all_cores(rounds: int):
    """Wall seconds of DDIM of a batch on all cores by `parallel.shard` over those of one device, in own processes."""
    found = {}
    for devices in (1, len(CORES)):
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
        command = [sys.executable, "-m", "experiments.benchmark_ours"]
        free = (lambda: os.sched_setaffinity(0, CORES)) if hasattr(os, "sched_setaffinity") else None
        found[devices] = subprocess.Popen(
            command, cwd=pathlib.Path(__file__).parents[1], env=os.environ | {"XLA_FLAGS": flags}, preexec_fn=free,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip

    def ask(process, **question):
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    work = dict(kind="ddim", net="adm", side=32, batch=4 * len(CORES), calls=4)
    for process in found.values():
        ask(process, prepare=work)
    seconds = {d: min(ask(p, run=0, least=0.0)["wall"] for _ in range(rounds)) for d, p in found.items()}
    for process in found.values():
        process.communicate()
    return row(
        f"DDIM, adm 32x32, batch {work['batch']}, {len(CORES)} cores", "one device", seconds[len(CORES)] / seconds[1], 0.8
    )


def batch_one(rounds: int):
    """Seconds of the network for one image over seconds for an image of sixteen."""
    programs = {b: ours.build(dict(kind="forward", net="fashion", side=32, batch=b))[0] for b in (1, 16)}
    seconds = least(programs, rounds)
    return row("fashion 32x32, forward, batch 1", "an image of batch 16", seconds[1] / (seconds[16] / 16), 1.5)


def gradient_memory(remat: str, rows: int) -> int:
    """Bytes of temporary memory of the gradient of RePaint's result by the network's parameters (from the compiler)."""
    net, params, schedule = network()
    table = dj.timetables.log_snr(schedule, rows)

    def loss(params, x):
        denoise = dj.denoisers.from_v(net.apply, params, schedule)
        return dj.sample(jax.random.key(0), denoise, table, x, kernel=dj.kernels.DDIM(schedule, eta=0.5), remat=remat).x.sum()

    return jax.jit(jax.grad(loss)).lower(params, jnp.zeros(SHAPE)).compile().memory_analysis().temp_size_in_bytes


def row(what, against, ratio, bound=""):
    return {"what": what, "against": against, "ratio": round(ratio, 3), "bound": bound}


def rows(quick: bool):
    """All rows, one after another."""
    length, rounds = (20, 3) if quick else (100, 7)
    for batch, bound in ((16, 1.05), (1, 1.10)):
        for name, ratio in overhead(batch, length, rounds).items():
            yield row(f"{name}, {length} rows, batch {batch}", "bare lax.scan", ratio, bound)
    yield batch_one(rounds)
    yield all_cores(rounds)
    s = gradients(5 if quick else 20, rounds)
    yield row("network call with its gradient by the image", "the call", s["by image"] / s["call"], 4.0)
    yield row("gradient by the weights, in a loop", "outside a loop", s["loop by weights"] / s["by weights"], 1.7)
    yield row("gradient by the weights, in a loop", "by the image, in a loop", s["loop by weights"] / s["loop by image"], 2.0)
    yield row("gradient by the weights, in a loop", "before", s["loop by weights"] / s["loop by weights before"], 0.7)
    sizes = [("fashion", 32), ("adm", 32), ("adm", 64), ("adm", 128)] + ([] if quick else [("adm", 256)])
    for name, side in sizes:
        yield from networks(name, side, 2 if side > 64 else rounds)
    few, many = (4, 16) if quick else (16, 256)
    for remat in ("row", "sqrt", "none") if quick else ("row", "sqrt"):  # none keeps every activation: gigabytes at 256 rows
        ratio = gradient_memory(remat, many) / gradient_memory(remat, few)
        what = f"memory of the gradient, {many} rows, remat={remat}"
        yield row(what, f"{few} rows", ratio, 2.0 if remat != "none" else "")


def main(argv=None) -> int:
    parser = Parser("experiments.benchmark", __doc__)
    parser.add_argument("contest", nargs="?", choices=["ours", "peers"], default="ours", help="peers: beside other libraries")
    parser.add_argument("--quick", action="store_true", help="fewer rows and repeats: to try the program, not to report")
    parser.add_argument("--env", default=".venv-peers", help="peers: folder of their environment, made if it is missing")
    parser.add_argument("--python", help="peers: the Python that makes it, 3.12 or later")
    parser.add_argument("--only", default="", help="peers: only works whose name contains this")
    parser.add_argument("--rounds", type=int, default=5, help="peers: rounds in which all take turns")
    options = parser.parse(argv)
    if options.contest == "peers":
        from . import benchmark_peers

        return benchmark_peers.run(options)
    found = []
    for each in rows(options.quick):
        found.append(each)
        print(f"{each['what']}: {each['ratio']} of {each['against']} (load {clock.load()})", flush=True)
    command = "python -m experiments.benchmark" + (" --quick" if options.quick else "")
    print(record.write("benchmark" + ("_quick" if options.quick else ""), command, found, load=clock.load()))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
