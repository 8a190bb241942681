"""How small may latents be? ``python -m experiments.factors train [NAME ...] | evaluate``: f = 1, 2, 4, 8, and a codebook.

train     priors of the same 64x64 fruits, class-conditional, in pixels (f1), in the latents of an autoencoder with Gaussian
          moments (f2, f4, f8) and of one with a codebook (vq4), as in table 8 of Rombach et al. 2022: 2, 3, 4 channels for f =
          2, 4, 8. All autoencoders take the same steps, without a discriminator; priors some minutes of a core. In
          runs/factors/NAME, the autoencoders in runs/factors/NAME_first. May be stopped at any time and goes on
evaluate  samples of each prior at each of its checkpoints: their kernel distance to the test images (KID, AlexNet's features,
          one standard error from leaving out each variety in turn) against what the training took by then; and what each
          autoencoder loses: PSNR, lpips and the kernel distance of its reconstructions. The training images' own distance is
          the yardstick

Time is that of cores, as each run's log has it, without the autoencoder's, which is a row of its own: one autoencoder serves
many priors. Writes factors.json, and factors.png: distance against time.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np

from .configs.fruits64 import config as latent
from .configs.fruits64_kl import config as first
from .configs.fruits64_pixel import config as pixel
from .tools import curves, provenance, records
from .tools.distances import Judge
from .tools.study import Parser, command, library_errors, made, one_of, run, unknown, use_cores, whole

OUT = "runs/factors"
KINDS = {"f2": ("kl", (1, 2), 2), "f4": ("kl", (1, 2, 3), 3), "f8": ("kl", (1, 2, 3, 3), 4), "vq4": ("vq", (1, 2, 3), 3)}
SIDES = {"f1": 64, "f2": 32, "f4": 16, "f8": 8, "vq4": 16}
STEPS = {"f1": 280, "f2": 280, "f4": 400, "f8": 1_000, "vq4": 400}  # some minutes of a core
SNAPSHOTS = 4  # checkpoints of each prior, evenly


def _first(name):
    kind, multipliers, channels = KINDS[name]
    return dataclasses.replace(first, name=f"{name}_first", kind=kind, multipliers=multipliers, latent_channels=channels,
                               steps=400, cooldown=150, disc_start=10**6, out=f"{OUT}/{name}_first")  # fmt: skip


def _prior(name):
    every = STEPS[name] // SNAPSHOTS
    common = {"name": name, "out": f"{OUT}/{name}", "steps": STEPS[name], "cooldown": 0, "warmup": 50, "ema": 0.99,
              "checkpoint_every": every, "sample_every": STEPS[name], "log_every": 20, "keep": SNAPSHOTS}  # fmt: skip
    if name == "f1":
        return dataclasses.replace(pixel, **common)
    like = pixel if name == "f2" else latent  # 32x32 latents are what the pixel model makes of its pictures by its patches
    return dataclasses.replace(like, **common, autoencoder=f"{OUT}/{name}_first", size=SIDES[name], patch=1,
                               channels=KINDS[name][2])  # fmt: skip


CONFIGS = {c.name: c for c in [*map(_first, KINDS), *map(_prior, SIDES)]}


def main(argv=None) -> int:
    return one_of({"train": train, "evaluate": evaluate}, __doc__, argv)


def train(argv) -> int:
    from diffjax.cli import train as program

    p = Parser("experiments.factors train", __doc__)
    p.add_argument("names", nargs="*", metavar="NAME", default=list(SIDES), help=f"default: {' '.join(SIDES)}")
    o = p.parse(argv)
    for name in o.names:
        if name not in SIDES:
            raise unknown("prior", name, SIDES)
    for name in o.names:
        for phase in [f"{name}_first"] * (name in KINDS) + [name]:
            code = program.main([phase, "--devices", "1", "--out", CONFIGS[phase].out], configs=CONFIGS)
            if code:
                return code
    return 0


def evaluate(argv) -> int:
    use_cores()
    p = Parser("experiments.factors evaluate", __doc__)
    p.add_argument("names", nargs="*", metavar="NAME", default=list(SIDES), help=f"default: {' '.join(SIDES)}")
    p.add_argument("--data", default=pixel.data, help="python -m experiments.fruits makes it")
    p.add_argument("--samples", type=whole(2), default=300, help="of each checkpoint (default: 300)")
    p.add_argument("--steps", type=whole(1), default=25, help="of DPM-Solver++ 2M, equal in log-SNR (default: 25)")
    p.add_argument("--batch", type=whole(1), default=50)
    p.add_argument("--seed", type=whole(0, 2**32 - 1), default=0)
    p.add_argument("--out", **provenance.OUT)
    o = p.parse(argv)
    begin = time.perf_counter()

    import diffjax as dj
    from diffjax.cli import quality
    from diffjax.training import data

    for name in o.names:
        if name not in SIDES:
            raise unknown("prior", name, SIDES)
    with library_errors():
        priors = {name: dj.zoo.load(Path(OUT) / name) for name in o.names}
        images = data.load(o.data, size=64, channels=3, classes=pixel.classes)
    judged = Judge(images, o.data, o.samples)
    rows, lines = [{"prior": "training images", **judged(judged.train)}], []
    for name, prior in priors.items():
        if name in KINDS:
            rows.append({"prior": name, "phase": "autoencoder", **reconstruction(Path(OUT) / f"{name}_first")})
        table = dj.timetables.log_snr(prior.schedule, o.steps)
        draw = quality.sampler(prior, dj.kernels.DPMSolverPP2M(), table, o, False)
        found = []
        for step, params in snapshots(Path(OUT) / name):
            x = judged.features(draw(judged.labels, 1.0, params))
            found.append({"prior": name, "phase": "prior", "step": step, "seconds": round(taken(Path(OUT) / name, step)),
                          **judged(x)})  # fmt: skip
            print("  ".join(f"{k} {v}" for k, v in found[-1].items()), flush=True)
        rows += found
        lines.append((name, [row["seconds"] for row in found], [row["kernel"] for row in found]))
    title = "kernel distance of samples, by seconds of a core"
    curves.lines([{"title": title, "x": "seconds of training, the prior alone", "lines": lines, "log": True}],
                 made(o.out) / "factors.png")  # fmt: skip
    print(records.write("factors", command("experiments.factors", ["evaluate", *argv]), rows, o.out, samples=o.samples,
                        seconds=round(time.perf_counter() - begin, 1)))  # fmt: skip
    return 0


# --- what a run has left ----------------------------------------------------------------------------------------------


def log(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def snapshots(folder):
    """(step, averaged parameters) of each checkpoint."""
    from diffjax.training.checkpoints import Checkpoints
    from diffjax.zoo.stored import read_run

    with Checkpoints(folder / "checkpoints", read_only=True) as store:
        steps = store.steps()
    for step in steps:
        yield step, {"params": read_run(folder, step)[0]["params"]}


def taken(folder, step) -> float:
    """Seconds of cores that the steps up to this one took: their number times the median of one, so that compiling, pictures
    and pauses do not count."""
    lines = [line for line in log(folder) if line["kind"] == "train"]
    each = [(b["core_seconds"] - a["core_seconds"]) / (b["step"] - a["step"]) for a, b in itertools.pairwise(lines)]
    return step * float(np.median(each))


def reconstruction(folder) -> dict:
    """What the log of an autoencoder's run says of the held-out images at its end."""
    last = [line for line in log(folder) if line["kind"] == "held_out"][-1]
    kept = {name: last[name] for name in ("psnr", "lpips", "codes_used") if name in last}
    return {"step": last["step"], "seconds": round(taken(folder, last["step"])), "kernel": round(last["kernel"], 1), **kept}


if __name__ == "__main__":
    sys.exit(run(main))
