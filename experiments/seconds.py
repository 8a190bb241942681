"""Seconds per image of each method: ``python -m experiments.seconds``.

One batch of bundled images with the left half known, inpainted twice with the method's own number of levels, over all
devices; the second run, which compiles nothing, is timed. Writes seconds_PRIOR.json. What was measured on other devices stays
beside it, a column for each. Only ratios within a column mean something: a number of this device whose code has changed since
goes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from .tools import cells, provenance, records, views
from .tools.study import Parser, command, library_errors, render, run, unknown, use_cores


def main(argv=None) -> int:
    use_cores()

    from diffjax.registry import METHODS

    parser = Parser("experiments.seconds", __doc__)
    parser.add_argument("--prior", default="fashion32")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="of: " + ", ".join(METHODS) + " (default: all)")
    parser.add_argument("--count", type=int, default=4, help="images of the batch (default 4)")
    parser.add_argument("--steps", type=int, default=None, help="levels of the timetable (default: the method's)")
    parser.add_argument("--out", **provenance.OUT)
    options = parser.parse(argv)
    for name in options.methods:
        if name not in METHODS:
            raise unknown("method", name, METHODS)

    import jax

    from diffjax import zoo
    from diffjax.batch import Programs, restore
    from diffjax.cli.tasks import measure

    from .tools.restorations import fingerprints

    with library_errors():
        prior = zoo.load(options.prior)
        truth, _ = zoo.bundled.images(zoo.bundled.for_channels(prior.shape[-1]))
    truth = np.asarray(truth[: options.count])
    ys, operators = measure("half", truth)
    asked = lambda name: fingerprints(prior, METHODS[name], options.steps, 0.0, ys, operators, truth)
    count = min(len(jax.devices()), len(truth))
    device = f"{f'{count} x ' * (count > 1)}{jax.devices()[0].device_kind}, batch {len(truth)}"
    result = f"seconds_{prior.name}"
    found = records.read(result, options.out)["cells"] if (Path(options.out) / f"{result}.json").is_file() else {}
    again = command("experiments.seconds", argv, extra=["--methods"])
    for name in options.methods:
        programs = Programs()
        once = lambda: restore(prior, METHODS[name], ys, operators, steps=options.steps, batch=len(truth), programs=programs)  # noqa: B023
        once()
        done = once()
        seconds = round(done.seconds_run / len(truth), 4)
        found[f"{device}/{name}"] = {"network_calls": done.network_calls, "seconds": seconds,
                                     "made": {**provenance.made(), **asked(name)}}  # fmt: skip
        print(f"{name}: {seconds} s / image", file=sys.stderr, flush=True)
    kept = {}
    for name in METHODS:
        for place in dict.fromkeys(key.split("/")[0] for key in found):
            cell = found.get(f"{place}/{name}")
            why = cells.stale(cell, asked(name)) if cell and place == device else ""
            if why:
                print(f"{name}: {place} is stale ({why}) and goes: run {again} --methods {name}", file=sys.stderr)
            elif cell:
                kept[f"{place}/{name}"] = cell
    records.write(result, again, None, options.out, kind="seconds", images=len(truth), cells=kept)
    print(render(views.rows(records.read(result, options.out))))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
