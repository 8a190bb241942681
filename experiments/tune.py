"""Hyper-parameters of a method on validation images: ``python -m experiments.tune METHOD --set NAME=[V,V,...] [--set ...]``.
With ``--tasks deblur sr4 --noise 0.05`` for other measurements than masks, with ``--prior fruits64`` for latents: sizes of
steps of DPS, PSLD and ReSample are then those of decoded pictures (``Entry.latents``).

Every combination restores the same held-out images from the same noise, all in one compiled program (``vmap`` over settings
and images). The images are the first of each class, in turn, of the data set's test part that are not bundled: the bundled
ones are what ``experiments.evaluate`` reports on. The best setting is the one with the lowest lpips@64, mean over the tasks.
--also NAME=V,NAME=V adds one setting by itself. Writes tune_METHOD_PRIOR.json (with noise tune_METHOD_noisy_PRIOR.json).
"""

from __future__ import annotations

import itertools
import sys
import time

import numpy as np

from .tools import provenance, records
from .tools.study import Parser, UserError, command, library_errors, run, setting, unknown, use_cores


def validation(prior, data, count: int):
    """(images float32 (count, H, W, C) in [-1, 1]): of the test part of ``data``, none that is bundled, class after class; of
    a prior of latents pictures."""
    from diffjax import zoo
    from diffjax.cli.quality import source
    from diffjax.training.data import load, scale

    size, _, channels = prior.image_shape
    images = load(source(prior, data), size=size, channels=channels, classes=prior.classes)
    test, labels = scale(images.test), images.test_labels
    bundled, _ = zoo.bundled.images(zoo.bundled.for_channels(channels, size))
    shown = {x.tobytes() for x in bundled}
    new = np.array([x.tobytes() not in shown for x in test])
    labels = np.zeros(len(test), int) if labels is None else labels
    place = np.zeros(len(test), int)
    for label in np.unique(labels):
        of_it = np.flatnonzero(new & (labels == label))
        place[of_it] = np.arange(len(of_it))
    order = np.lexsort((labels, place))
    order = order[new[order]]
    if count > len(order):
        raise UserError(f"--count {count} is too many: {len(order)} test images are not bundled")
    return test[order[:count]]


def combinations(given, also) -> list[dict]:
    """The product of the lists in ``given`` [(name, values), ...], then the settings of ``also``."""
    for name, values in given:
        if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
            raise UserError(f"--set {name}={values} is not a list of numbers: write --set '{name}=[0.1, 0.2]'")
    names = [name for name, _ in given]
    found = [dict(zip(names, values)) for values in itertools.product(*(v for _, v in given))] if given else []
    found += [dict(setting(pair) for pair in text.split(",")) for text in also]
    if not found or any(set(f) != set(found[0]) for f in found):
        raise UserError("nothing to compare: give --set, and every setting of --also all of its names")
    return found


def main(argv=None) -> int:
    use_cores()

    from diffjax.cli.tasks import TASKS
    from diffjax.operators.masks import ALIASES
    from diffjax.registry import METHODS

    parser = Parser("experiments.tune", __doc__)
    parser.add_argument("method", help="of: " + ", ".join(METHODS))
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=[V,V]", help="values to combine")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=V,NAME=V", help="one setting by itself")
    parser.add_argument("--prior", default="fashion32")
    parser.add_argument("--data", help="the data set the prior was trained on (default: the path in its card)")
    parser.add_argument("--tasks", "--masks", nargs="+", default=["half", "wide", "expand"], help="of: " + ", ".join(TASKS))
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation for images in [0, 1] (default 0)")
    parser.add_argument("--count", type=int, default=16, help="validation images (default 16)")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", **provenance.OUT)
    options = parser.parse(argv)
    if options.method not in METHODS:
        raise unknown("method", options.method, METHODS)
    for task in options.tasks:
        if ALIASES.get(task, task) not in TASKS:
            raise unknown("task", task, TASKS)
    settings = combinations(options.set, options.also)

    from diffjax import zoo
    from diffjax.batch import Programs, restore
    from diffjax.cli.tasks import measure

    from .tools.comparisons import CEILING
    from .tools.restorations import fingerprints
    from .tools.scores import holes, scores

    with library_errors():
        prior = zoo.load(options.prior)
    truth = validation(prior, options.data, options.count)
    rows, programs = [dict(s) for s in settings], Programs()
    sweep = {name: [s[name] for s in settings] for name in settings[0]}
    entry, start, made = METHODS[options.method], time.perf_counter(), {}
    for task in options.tasks:
        ys, operators = measure(task, truth, 2 * options.noise, seed=1000)
        made[task] = fingerprints(prior, entry, options.steps, 2 * options.noise, ys, operators, truth, seed=options.seed)
        done = restore(prior, entry, ys, operators, noise_std=2 * options.noise, steps=options.steps,
                       seed=options.seed, batch=options.batch, sweep=sweep, programs=programs)  # fmt: skip
        for row, x, calls in zip(rows, done.x[:, :, 0], done.network_calls):
            psnr, perceptual = scores(x, truth, holes(operators))
            label = "hole PSNR" if holes(operators) is not None else "PSNR"
            row |= {
                f"{task}: {label}": float(np.minimum(psnr, CEILING).mean()),
                f"{task}: lpips@64": float(perceptual.mean()),
                f"{task}: calls": calls,
            }
    best = min(rows, key=lambda row: np.mean([row[f"{task}: lpips@64"] for task in options.tasks]))
    for row in rows:
        row["best"] = "best" if row is best else ""
    name = f"tune_{options.method}{'_noisy' * (options.noise > 0)}_{prior.name}".replace("-", "_").replace("+", "_plus")
    print(records.write(name, command("experiments.tune", argv), rows, options.out, images=len(truth), made=made,
                        seconds=round(time.perf_counter() - start, 1)))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
