"""Seconds per image of each method: ``python -m experiments.seconds``.

One batch of bundled images with the left half known, inpainted twice with the method's own number of levels, all by
themselves; the second run, which compiles nothing, is timed. Writes seconds_PRIOR (.json, .md) into experiments/results, a
column for each kind of device it was run on: only ratios within a column mean something.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import numpy as np

from diffjax.cli.errors import library_errors, run, unknown
from diffjax.cli.options import Parser

from . import record


def main(argv=None) -> int:
    from diffjax.registry import METHODS

    parser = Parser("experiments.seconds", __doc__)
    parser.add_argument("--prior", default="fashion32")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="of: " + ", ".join(METHODS) + " (default: all)")
    parser.add_argument("--count", type=int, default=4, help="images of the batch (default 4)")
    parser.add_argument("--steps", type=int, default=None, help="levels of the timetable (default: the method's)")
    parser.add_argument("--out", default=str(record.FOLDER))
    options = parser.parse(argv)
    for name in options.methods:
        if name not in METHODS:
            raise unknown("method", name, METHODS)

    import jax

    from diffjax import zoo
    from diffjax.batch import Programs, inpaint
    from diffjax.operators.masks import half

    with library_errors():
        prior = zoo.load(options.prior)
        truth, _ = zoo.bundled.images(zoo.bundled.for_channels(prior.shape[-1]))
    truth = np.asarray(truth[: options.count])
    masks = np.stack([half(truth.shape[1:3])] * len(truth))
    device = f"{jax.devices()[0].device_kind}, batch {len(truth)}: s / image"
    before = Path(options.out) / f"seconds_{prior.name}.json"
    rows = {r["method"]: r for r in record.read(before.stem, options.out)["rows"]} if before.is_file() else {}
    for name in options.methods:
        programs = Programs()
        once = lambda: inpaint(prior, METHODS[name], truth, masks, steps=options.steps, batch=len(truth), devices=1,  # noqa: B023
                               programs=programs)  # fmt: skip  # noqa: B023
        once()
        done = once()
        row = rows.setdefault(name, {"method": name})
        row |= {"network calls": done.network_calls, device: round(done.seconds_run / len(truth), 4)}
        print(f"{name}: {row[device]} s / image", file=sys.stderr, flush=True)
    ordered = [rows[name] for name in METHODS if name in rows]
    command = shlex.join(["python", "-m", "experiments.seconds", *(sys.argv[1:] if argv is None else argv)])
    print(record.write(before.stem, command, ordered, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
