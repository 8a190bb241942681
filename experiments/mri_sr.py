"""Super-resolution of MR volumes by conditional diffusion: ``python -m experiments.mri_sr train | evaluate | export``.

train [NAME]    base, sr3 (100 steps), regression, partdiff50, partdiff25: the same small network, patches of 32x32 from 56
                hippocampi and one head; runs/mri_sr/NAME. The base is trained as SR3's is, for 600 steps; each of the others
                goes on from it for 3000. May be stopped at any time and goes on
evaluate        bicubic, regression, SR3, PartDiff with K = 25 and 50, and what else the calls of a network can be spent on, on
                test hippocampi: in-plane and through-plane, x2 and x4; tables in the layout of PartDiff's 5 and 6; writes
                mri_sr.json and mri_sr.png, quality against network calls
export NAME     the weights as the shipped ones are: diffjax superresolve --network FOLDER

--data: a folder with hippocampus/ (Medical Segmentation Decathlon, Task04, CC BY-SA 4.0: index.csv, train/, test/) and
the head lesjak_cs_patient07_T1_brain_mni1mm.nii.gz (Lesjak et al., CC BY), as the card of an exported network says.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from .tools import provenance, records
from .tools.study import Parser, command, made, one_of, render, run, unknown, whole


def main(argv=None) -> int:
    return one_of({"train": train, "evaluate": evaluate, "export": export}, __doc__, argv)


def train(argv) -> int:
    p = Parser("experiments.mri_sr train", __doc__)
    p.add_argument("names", nargs="*", metavar="NAME", help="default: all, the base first")
    p.add_argument("--data", default="data/mri")
    p.add_argument("--out", default="runs/mri_sr")
    p.add_argument("--steps", type=whole(1), help="default: 600 of the base, 3000 of the others")
    p.add_argument("--batch", type=whole(1), default=16)
    p.add_argument("--rate", type=float, default=1.5e-3)
    p.add_argument("--save", type=whole(1), default=200, metavar="STEPS", help="between checkpoints")
    p.add_argument("--seed", type=whole(0), default=0)
    o = p.parse(argv)

    from diffjax.volumes import read

    from .tools import mri

    names = o.names or list(mri.NETWORKS)
    for name in names:
        if name not in mri.NETWORKS:
            raise unknown("network", name, mri.NETWORKS)
    volumes = list(mri.hippocampi(o.data, "train").values())
    head = mri.cropped(read(Path(o.data) / mri.HEAD).data / 127.5 - 1)
    watched = mri.Patches(volumes[-mri.HELD_OUT :], None, 128, seed=10**6)(0)
    patches = mri.Patches(volumes[: -mri.HELD_OUT], head, o.batch)
    for name in names:
        train_one(o, name, patches, watched)
    return 0


def train_one(o, name, patches, watched):
    import jax
    import numpy as np

    from diffjax.cli.progress import Progress
    from diffjax.training import state as states
    from diffjax.training.checkpoints import Checkpoints, abstract
    from diffjax.training.step import train_step

    from .tools import mri

    base = name == "base"
    steps = o.steps or mri.STEPS.get(name, 3000)
    patches.seed = o.seed if base else o.seed + 1  # what the base has seen, the others see afresh
    net, key = mri.network(), jax.random.key(o.seed)
    one = mri.loss_of(name, net)

    def mean(params, key, batch, step=None):
        fine, enlarged = batch
        return jax.vmap(lambda k, f, e: one(params, k, f, e))(jax.random.split(key, len(fine)), fine, enlarged).mean(), {}

    rate = states.warmup_stable_decay(o.rate, steps, min(50, steps // 10), 0 if base else int(0.8 * steps))
    optimizer = states.adam(rate)
    blank = np.zeros((mri.SIZE, mri.SIZE, 1), np.float32)
    if base:
        params = jax.jit(net.init)(jax.random.key(o.seed + 1), blank, np.float32(0), blank)
    else:
        with Checkpoints(Path(o.out) / "base", read_only=True) as store:
            params = store.read("ema", "last")[0][states.ONLY]
    state = states.init_state(params, optimizer)
    step = train_step(mean, optimizer, ema=0.995, key=key)
    held = jax.jit(lambda params: mean(params, jax.random.key(7), watched)[0])
    with Checkpoints(Path(o.out) / name) as store:
        found, done = store.resume(abstract(states.to_items(state)))
        state = state if found is None else states.from_items(found)
        begun = time.process_time()
        with Progress(steps, start=done, label=name, unit="patches", per_step=o.batch, quiet_every=120) as bar:
            for n in range(done, steps):
                state, told = step(state, patches(n))
                bar.update(n + 1, loss=float(told["loss"]))
                if (n + 1) % o.save == 0 or n + 1 == steps:
                    value = float(held(state.ema))
                    store.save(n + 1, states.to_items(state), value)
                    used = time.process_time() - begun
                    print(f"{name} step {n + 1} held out {value:.6f}, {used:.0f} s of a core", flush=True)


def evaluate(argv) -> int:
    p = Parser("experiments.mri_sr evaluate", __doc__)
    p.add_argument("--data", default="data/mri")
    p.add_argument("--networks", default="runs/mri_sr", help="where train left them")
    p.add_argument("--methods", nargs="+", metavar="METHOD", help="default: all whose networks are trained")
    p.add_argument("--limit", type=whole(2), help="test volumes, the first so many (default: all 12)")
    p.add_argument("--fresh", action="store_true", help="compute again what is known")
    p.add_argument("--out", **provenance.OUT)
    o = p.parse(argv)

    import json

    from diffjax.cli.progress import Progress

    from .tools import curves, mri, mri_scores, mri_tables

    out = made(o.out)
    for name in o.methods or ():
        if name not in mri_scores.WAYS:
            raise unknown("method", name, mri_scores.WAYS)
    volumes = mri.hippocampi(o.data, "train").values()
    tests = {name: mri_scores.block(v) for name, v in list(mri.hippocampi(o.data, "test").items())[: o.limit]}
    file = Path(o.networks) / "cells.json"  # a cell at a time: it may be stopped
    cells = json.loads(file.read_text()) if file.is_file() and not o.fresh else {}
    there = lambda way: way.network is None or (Path(o.networks) / way.network).is_dir()
    names = o.methods or [name for name, way in mri_scores.WAYS.items() if there(way)]
    order = [(name, kind) for name in mri_scores.CHEAP_FIRST if name in names for kind in mri.DEGRADATIONS]
    with Progress(len(order), label="evaluating", unit="cells") as bar:
        for name, (plane, factor) in order:
            way, key = mri_scores.WAYS[name], f"{plane} x{factor}/{name}"
            step = 0 if way.network is None else mri_scores.weights(o.networks, way.network)[1]
            known = cells.get(key) if cells.get(key, {}).get("checkpoint") == step else None
            if known is None or len(known["psnr"]) < len(tests):
                found = mri_scores.cell(way, o.networks, plane, factor, tests, known)
                cells[key] = found | {"made": provenance.made()}
                file.write_text(json.dumps(cells, indent=1))
            bar.update()
    kinds = [f"{plane} x{factor}" for plane, factor in mri.DEGRADATIONS]
    shown = [f"{kind}/{name}" for name in names for kind in kinds]  # in the order of the tables
    cells = {key: mri_scores.first(cells[key], len(tests)) for key in shown}
    again = command("experiments.mri_sr", ["evaluate", *argv], extra=["--data", "--networks"])
    starts = [{"degradation": kind, "t": t} for kind, t in mri_scores.rules(volumes).items()]
    again = f"python -m experiments.mri_sr train && {again}"
    took = "about twenty minutes of a core to train, and as many to evaluate"
    records.write("mri_sr", again, folder=out, kind="mri", took=took, volumes=list(tests), starts=starts, cells=cells)
    if all(name in names for line in mri_tables.BUDGETS.values() for name in line):
        curves.lines(mri_tables.panels(cells), out / "mri_sr.png", width=800)
    for view in ("in-plane", "through-plane", "claim"):
        print(render(mri_tables.views({"cells": cells})[view]()))
    return 0


def export(argv) -> int:
    p = Parser("experiments.mri_sr export", __doc__)
    p.add_argument("name", help="a trained network that predicts noise")
    p.add_argument("--networks", default="runs/mri_sr")
    p.add_argument("--out", default="runs/mri_sr/exported")
    o = p.parse(argv)

    from diffjax.zoo.volumes import save_mri_sr

    from .tools import mri, mri_scores

    if o.name not in mri.NETWORKS or o.name == "regression":
        raise unknown("network", o.name, [name for name in mri.NETWORKS if name != "regression"])
    params, step = mri_scores.weights(o.networks, o.name)
    save_mri_sr(o.out, params, mri.card(o.name, step, params))
    print(o.out)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
