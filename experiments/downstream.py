"""What enlarging is good for, and whether colours survive it: ``python -m experiments.downstream train | evaluate``.

train STUDY NAME ...   small networks of one size, for 8x8 -> 32x32 garments ("fashion") or 16x16 -> 64x64 fruits ("fruits"):
                       base first, then regression, sr3, partdiff10, partdiff25, partdiff50 from it, each for as many steps;
                       with --alone without base. runs/fashion_sr/STUDY/NAME. May be stopped at any time and goes on
evaluate               garments enlarged by bicubic, regression, SR3 and PartDiff: what the bundled classifier takes them for,
                       PSNR, SSIM, lpips, network calls, seconds; a grid search over inference schedules, one program; the
                       mean shift of fruits' colours, and where it comes from. One sample of each image. Writes
                       downstream.json and downstream.png

Cells that are known are not computed again (--fresh: they are); what is not trained is left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from .tools import provenance, records
from .tools.study import Parser, UserError, command, made, one_of, render, run, unknown, whole

TOOK = "about five minutes of a core for 200 garments, and half an hour before that for five networks"


def main(argv=None) -> int:
    return one_of({"train": train, "evaluate": evaluate}, __doc__, argv)


def train(argv) -> int:
    p = Parser("experiments.downstream train", __doc__)
    p.add_argument("study", metavar="STUDY")
    p.add_argument("names", nargs="+", metavar="NAME")
    p.add_argument("--data", help="default: that of the study")
    p.add_argument("--networks", default="runs/fashion_sr")
    p.add_argument("--alone", action="store_true", help="from the random start, not from the base")
    p.add_argument("--steps", type=whole(1), default=600, help="default: 600 of each")
    p.add_argument("--stop", type=whole(1), metavar="STEPS", help="end before the plan of --steps does")
    p.add_argument("--batch", type=whole(1), default=16)
    p.add_argument("--rate", type=float, default=1e-3)
    p.add_argument("--save", type=whole(1), default=200, metavar="STEPS", help="between checkpoints")
    p.add_argument("--seed", type=whole(0), default=0)
    o = p.parse(argv)

    from .tools import enlarging

    study = chosen(o.study)
    for name in o.names:
        if name not in enlarging.NETWORKS:
            raise unknown("network", name, enlarging.NETWORKS)
    images = study.images(o.data)
    for name in o.names:

        def say(n, loss, held, seconds, name=name):
            if n % 50 == 0 or n == o.steps:
                print(f"{name} step {n}: loss {loss:.5f}, held out {held:.5f}, {seconds:.0f} s of a core", flush=True)

        enlarging.train(study, name, images, f"{o.networks}/{o.study}", steps_=o.steps, batch=o.batch, rate=o.rate,
                        seed=o.seed, save=o.save, base=not o.alone, stop=o.stop, bar=say)  # fmt: skip
    return 0


def evaluate(argv) -> int:
    p = Parser("experiments.downstream evaluate", __doc__)
    p.add_argument("--data", nargs=2, metavar=("FASHION", "FRUITS"), help="default: those of the studies")
    p.add_argument("--networks", default="runs/fashion_sr", help="where train left them")
    p.add_argument("--images", type=whole(2), help="test pictures, at most (default: 500 garments, 64 fruits)")
    p.add_argument("--study", metavar="STUDY", help="compute what is missing of this study; no result is written")
    p.add_argument("--of", nargs="+", metavar="NETWORK", help="with --study: what these networks make alone")
    p.add_argument("--seed", type=whole(0), default=0)
    p.add_argument("--fresh", action="store_true", help="compute again what is known")
    p.add_argument("--out", **provenance.OUT)
    o = p.parse(argv)

    from .tools import enlarging
    from .tools import enlarging_scores as judged

    if o.of is not None and o.study is None:
        raise UserError("--of goes with --study: a result is written of all networks")
    out = made(o.out)
    asked = enlarging.STUDIES if o.study is None else {o.study: chosen(o.study)}
    asked = {name: study for name, study in asked.items() if any(Path(o.networks, name).glob("*/*"))}
    if not asked or (o.study is None and "fashion" not in asked):
        raise UserError(f"{o.networks} has no networks of {o.study or 'fashion'}: train them first")
    found = {name: Cells(o, name, study) for name, study in asked.items()}
    for name, of in found.items():
        for label, way in sorted(judged.WAYS[name].items(), key=lambda item: item[1].calls):
            if (way.network is None or of.has(way.network)) and (o.of is None or way.network in o.of):
                step = 0 if way.network is None else enlarging.weights(of.folder, way.network)[1]
                of(label, {"checkpoint": step}, lambda: judged.cell(of.study, way, of.folder, of.highs, of.labels, o.seed))  # noqa: B023
        if of.has("sr3") and (o.of is None or "sr3" in o.of):
            step, few = enlarging.weights(of.folder, "sr3")[1], judged.SWEEP["images"]
            of("levels", {"checkpoint": step}, lambda: {"rows": judged.by_level(of.study, of.folder, of.highs, o.seed)})  # noqa: B023
            if of.labels is not None:
                some = (of.highs[:few], of.labels[:few], o.seed)
                of("schedules", judged.SWEEP | {"checkpoint": step},
                   lambda: {"rows": judged.swept(of.study, of.folder, *some)})  # noqa: B023  # fmt: skip
    if o.study is not None:
        return 0
    garments = found["fashion"]
    originals = {"right": judged.garments(garments.highs, garments.highs, garments.labels)["right"]}
    views = {"schedules": garments.rows("schedules")}
    for name, of in found.items():
        views |= {f"levels {name}": of.rows("levels"), f"shifts {name}": judged.colour_rows(name, of.cells)}
    judged.page({name: of.shown() for name, of in found.items()}, {name: of.highs for name, of in found.items()},
                out / "downstream.png")  # fmt: skip
    kept = {f"{name}/{label}": {k: v for k, v in c.items() if k not in ("shown", "rows")}
            for name, of in found.items() for label, c in of.cells.items()}  # fmt: skip
    again = command("experiments.downstream", ["evaluate", *argv], extra=["--networks"])
    rows = judged.garment_rows(garments.cells | {"originals": originals})
    records.write(
        "downstream", again, rows, out, kind="downstream", took=TOOK, **views, cells=kept | {"fashion/originals": originals}
    )
    print(*(render(table) for table in (rows, *views.values()) if table), sep="\n\n")
    return 0


class Cells:
    """What is known of a study: {name of a way: its cell}, kept in NETWORKS/cells_STUDY.json, one by one."""

    def __init__(self, o, name, study):
        from .tools import enlarging

        self.study, self.folder, self.seed, self.name = study, f"{o.networks}/{name}", o.seed, name
        self.fresh = o.fresh
        self.file = Path(o.networks) / f"cells_{name}.json"
        self.cells = {} if o.fresh else self.read()
        paths = dict(zip(enlarging.STUDIES, o.data or (None, None)))
        images = study.images(paths[name], labels=name == "fashion")
        count = min(o.images or study.tests, study.tests, len(images.test))
        rows = np.linspace(0, len(images.test) - 1, count).astype(int)  # of all kinds, where they are sorted
        self.highs = enlarging.data.scale(images.test[rows])
        self.labels = None if images.test_labels is None else images.test_labels[rows]

    def read(self):
        return json.loads(self.file.read_text()) if self.file.is_file() else {}

    def has(self, network):
        return (Path(self.folder) / network).is_dir()

    def __call__(self, label, settings, compute):
        """The cell, computed where none of these settings is known."""
        settings = settings | {"images": len(self.highs), "seed": self.seed}
        wanted = json.loads(json.dumps(settings))
        self.cells |= {} if self.fresh else self.read()
        cell = self.cells.get(label, {})
        if any(cell.get(key) != value for key, value in wanted.items()):
            self.cells[label] = compute() | settings | {"made": provenance.made()}
            self.file.write_text(json.dumps(self.read() | {label: self.cells[label]}))  # others may have written meanwhile
            print(f"{self.name}: {label}", flush=True)

    def rows(self, label):
        return self.cells.get(label, {}).get("rows", [])

    def shown(self):
        return {label: c["shown"] for label, c in self.cells.items() if "shown" in c}


def chosen(name):
    from .tools import enlarging

    if name not in enlarging.STUDIES:
        raise unknown("study", name, enlarging.STUDIES)
    return enlarging.STUDIES[name]


if __name__ == "__main__":
    sys.exit(run(main))
