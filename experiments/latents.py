"""Latents or pixels? ``python -m experiments.latents [PRIOR ...]``: priors of the same 64x64 fruits, side by side.

The layout of the survey's Tables 3 and 4: unconditional synthesis (the null label) and conditional (guidance 1, 2, 4), each
with network calls, and beside them what a sample costs. What is latent is also sampled with --fewer calls: the quality that
pixels reach may be had for less. For each prior

kernel     kernel distance (KID) of the samples to the test images, held-out varieties, in AlexNet's features; with one
           standard error, from leaving out each variety in turn. The training images' own distance is the yardstick
sharpness  mean magnitude of the Laplacian over that of the test images. A small prior is there too, its samples enlarged to
           the size of the others by cubic interpolation, and the test images through the autoencoder and back
precision  share of samples within the reach of the training images, recall: of the training images within that of the samples
           (three nearest neighbours, Kynkaanniemi et al. 2019)
seconds    of one sample, in a batch of --batch, decoding included; all priors measured in turn, the median of the rounds.
           Decoding alone beside it
MB         temporary memory of the compiled program at that batch

Writes latents.json, and latents.png with samples of each.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import diffjax as dj
from diffjax.cli import quality
from diffjax.training import data

from .tools import provenance, records
from .tools.distances import Judge
from .tools.study import Parser, command, grid, library_errors, made, run, use_cores, whole

SCALES = (1.0, 2.0, 4.0)


def main(argv=None) -> int:
    use_cores()
    p = Parser("experiments.latents", __doc__)
    p.add_argument("priors", nargs="*", metavar="PRIOR", default=["fruits64", "runs/fruits64_pixel"],
                   help="names or folders (default: fruits64 runs/fruits64_pixel)")  # fmt: skip
    p.add_argument("--small", default="fruits32", help="a prior whose samples are enlarged (default: fruits32)")
    p.add_argument("--data", default="data/fruits64.npz", help="python -m experiments.fruits makes it")
    p.add_argument("--samples", type=whole(100), default=500, help="of each row (default: 500)")
    p.add_argument("--steps", type=whole(1), default=25, help="of DPM-Solver++ 2M, equal in log-SNR (default: 25)")
    p.add_argument("--fewer", type=whole(1), default=8, help="calls of a prior of latents, once more (default: 8)")
    p.add_argument("--batch", type=whole(1), default=50)
    p.add_argument("--seed", type=whole(0, 2**32 - 1), default=0)
    p.add_argument("--rounds", type=whole(1), default=5, help="of the clock")
    p.add_argument("--out", **provenance.OUT)
    o = p.parse(argv)
    begin = time.perf_counter()
    with library_errors():
        priors = {name: dj.zoo.load(name) for name in o.priors}
        first, small = next(iter(priors.values())), dj.zoo.load(o.small)
        images = data.load(o.data, size=first.image_shape[0], channels=3, classes=first.classes)
    judged = Judge(images, o.data, o.samples)
    labels, held = judged.labels, sharpness(images.test)

    def found(x):
        return {**judged(judged.features(x)), "sharpness": round(sharpness(x) / held, 2)}

    rows, columns = [{"prior": "training images", "table": "real", "calls": 0, **found(images.train)}], []
    for prior in priors.values():
        if prior.autoencoder is not None:
            through = through_latents(prior, images.test)
            rows.append({"prior": f"test images through {prior.name}", "table": "real", "calls": 0, **found(through)})
    draw = quality.sampler(small, dj.kernels.DPMSolverPP2M(), dj.timetables.log_snr(small.schedule, o.steps), o, False)
    x = enlarged(draw(labels, 1.0), first.image_shape)
    rows.append({"prior": f"{small.name}, enlarged", "table": "conditional", "guidance": 1.0, "calls": o.steps, **found(x)})
    order = np.argsort(labels, kind="stable")[np.linspace(0, len(labels) - 1, 6).astype(int)]
    columns.append((f"{small.name} enlarged", [quality.to_float(x[n]) for n in order]))
    for prior in priors.values():
        table = dj.timetables.log_snr(prior.schedule, o.steps)
        draws = {g: quality.sampler(prior, dj.kernels.DPMSolverPP2M(), table, o, g) for g in (False, True)}
        told = [("unconditional", None)] + [("conditional", scale) for scale in SCALES]
        for what, scale in told:
            null = np.full(o.samples, prior.classes)
            x = draws[scale not in (None, 1.0)](null if scale is None else labels, scale or 1.0)
            calls = o.steps * (1 if scale in (None, 1.0) else 2)
            rows.append({"prior": prior.name, "table": what, "guidance": scale, "calls": calls, **found(x)})
            print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
            if scale in (None, 1.0, 2.0):
                columns.append((f"{prior.name} {'no label' if scale is None else f'scale {scale:g}'}",
                                [quality.to_float(x[n]) for n in order]))  # fmt: skip
        if prior.autoencoder is not None:
            few = dj.timetables.log_snr(prior.schedule, o.fewer)
            x = quality.sampler(prior, dj.kernels.DPMSolverPP2M(), few, o, False)(labels)
            rows.append({"prior": prior.name, "table": "conditional", "guidance": 1.0, "calls": o.fewer, **found(x)})
            print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    rows += clock(priors, o)
    picture = made(o.out) / "latents.png"
    grid(columns, picture, [""] * 6)
    print(records.write("latents", command("experiments.latents", argv), rows, o.out, samples=o.samples,
                        priors={prior.name: prior.card.get("signature") for prior in priors.values()},
                        seconds=round(time.perf_counter() - begin, 1)))  # fmt: skip
    return 0


def sharpness(x) -> float:
    """Mean magnitude of the Laplacian, four neighbours, of pictures (N, H, W, C) of 8 bits, channels averaged first."""
    x = quality.to_float(x).mean(-1)
    around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    return float(np.abs(4 * x[:, 1:-1, 1:-1] - around).mean())


def in_bits(x):
    return np.round((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def enlarged(x, shape):
    """Pictures (N, h, w, C) of 8 bits in the size (H, W, C), by cubic interpolation."""
    import jax

    return in_bits(np.asarray(jax.image.resize(quality.to_float(x), (len(x), *shape), "cubic")))


def through_latents(prior, x, batch=50):
    """Pictures (N, H, W, C) of 8 bits, encoded and decoded."""
    import jax

    there = jax.jit(jax.vmap(lambda auto, x: auto.decode(auto.encode(x)), (None, 0)))
    parts = [there(prior.autoencoder, quality.to_float(x[n : n + batch])) for n in range(0, len(x), batch)]
    return in_bits(np.concatenate(parts))


def program(prior, table):
    """jitted f(prior, keys, labels) -> pictures."""
    import jax

    def one(prior, key, label):
        z = dj.sample(key, prior.denoiser(label), table, prior.shape, kernel=dj.kernels.DPMSolverPP2M(), remat="none").x
        return prior.decode(z)

    return jax.jit(jax.vmap(one, (None, 0, 0)))


def clock(priors, o) -> list:
    """What a sample costs, all programs in turn."""
    import jax

    runs, rows = {}, {}
    for prior in priors.values():
        told = (jax.random.split(jax.random.key(0), o.batch), np.zeros(o.batch, np.int32))
        for calls in (o.steps, o.fewer) if prior.autoencoder is not None else (o.steps,):
            table = dj.timetables.log_snr(prior.schedule, calls)
            whole = program(prior, table).lower(prior, *told).compile()
            runs[prior.name, calls, "seconds"] = lambda whole=whole, prior=prior, told=told: whole(prior, *told)
            rows[prior.name, calls] = {"prior": prior.name, "table": "cost", "calls": calls, "batch": o.batch,
                                       "parameters": sum(a.size for a in jax.tree.leaves(prior.params)),
                                       "MB": round(whole.memory_analysis().temp_size_in_bytes / 1e6, 1)}  # fmt: skip
        if prior.autoencoder is not None:
            z = jax.numpy.zeros((o.batch, *prior.shape))
            decode = jax.jit(jax.vmap(lambda prior, z: prior.decode(z), (None, 0))).lower(prior, z).compile()
            runs[prior.name, o.steps, "seconds_decode"] = lambda decode=decode, prior=prior, z=z: decode(prior, z)
    taken = {name: [] for name in runs}
    for _ in range(o.rounds + 1):  # the first is not counted
        for name, call in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            taken[name].append(time.perf_counter() - begin)
    for (name, calls, what), seconds in taken.items():
        rows[name, calls][what] = round(float(np.median(seconds[1:])) / o.batch, 4)
    for row in rows.values():
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    return list(rows.values())


if __name__ == "__main__":
    sys.exit(run(main))
