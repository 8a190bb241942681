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

from .tools import provenance, records
from .tools.study import Parser, UserError, command, made, render, run, unknown, whole

COMMANDS = ("train", "evaluate")


def main(argv=None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if not words or words[0] not in COMMANDS:
        raise unknown("command", words[0], COMMANDS) if words else UserError(f"give {', '.join(COMMANDS)}, or --help")
    return {"train": train, "evaluate": evaluate}[words[0]](words[1:])


def train(argv) -> int:
    p = Parser("experiments.downstream train", __doc__)
    p.add_argument("study", metavar="STUDY")
    p.add_argument("names", nargs="+", metavar="NAME")
    p.add_argument("--data", help="default: that of the study")
    p.add_argument("--networks", default="runs/fashion_sr")
    p.add_argument("--alone", action="store_true", help="from the random start, not from the base")
    p.add_argument("--steps", type=whole(1), default=600, help="default: 600 of each")
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
                        seed=o.seed, save=o.save, base=not o.alone, bar=say)  # fmt: skip
    return 0


def evaluate(argv) -> int:
    p = Parser("experiments.downstream evaluate", __doc__)
    p.add_argument("--data", nargs=2, metavar=("FASHION", "FRUITS"), help="default: those of the studies")
    p.add_argument("--networks", default="runs/fashion_sr", help="where train left them")
    p.add_argument("--images", type=whole(2), default=500, help="test garments (default: 500; fruits: at most 128)")
    p.add_argument("--seed", type=whole(0), default=0)
    p.add_argument("--fresh", action="store_true", help="compute again what is known")
    p.add_argument("--out", **provenance.OUT)
    o = p.parse(argv)

    from .tools import enlarging
    from .tools import enlarging_scores as judged

    out, paths = made(o.out), dict(zip(enlarging.STUDIES, o.data or (None, None)))
    cells, shown, tests = {}, {}, {}
    for name, study in enlarging.STUDIES.items():
        images = study.images(paths[name], labels=name == "fashion")
        highs, labels = enlarging.data.scale(images.test[: o.images]), images.test_labels
        labels = None if labels is None else labels[: o.images]
        folder = f"{o.networks}/{name}"
        tests[name] = folder, highs, labels
        there = {
            n: way for n, way in judged.WAYS[name].items() if way.network is None or (Path(folder) / way.network).is_dir()
        }
        cells[name], shown[name] = known(o, name), {}
        for label, way in sorted(there.items(), key=lambda item: item[1].calls):
            c, key = cells[name].get(label), f"{name}/{label}"
            step = 0 if way.network is None else enlarging.weights(folder, way.network)[1]
            if c is None or (c["checkpoint"], c["images"], c["seed"]) != (step, len(highs), o.seed):
                c, pixels = judged.cell(study, way, folder, highs, labels, o.seed)
                cells[name][label] = c | {"seed": o.seed, "shown": pixels.tolist(), "made": provenance.made()}
                remember(o, name, cells[name])
                print(f"{key}: {c['seconds']:.3f} s an image", flush=True)
            shown[name][label] = judged.np.array(cells[name][label]["shown"], judged.np.uint8)
    folder, highs, labels = tests["fashion"]
    originals = {"right": judged.garments(highs, highs, labels)["right"]}
    rows = judged.garment_rows(cells["fashion"] | {"originals": originals})
    few, schedules, levels = judged.SWEEP["images"], [], []
    if (Path(folder) / "sr3").is_dir():
        schedules = judged.swept(enlarging.STUDIES["fashion"], folder, highs[:few], labels[:few], o.seed)
    if (Path(tests["fruits"][0]) / "sr3").is_dir():
        levels = judged.by_level(enlarging.STUDIES["fruits"], *tests["fruits"][:2], o.seed)
    judged.page(shown, {name: highs for name, (_, highs, _) in tests.items()}, out / "downstream.png")
    kept = {
        f"{name}/{label}": {k: v for k, v in c.items() if k != "shown"}
        for name, of in cells.items()
        for label, c in of.items()
    }
    again = command("experiments.downstream", ["evaluate", *argv], extra=["--networks"])
    records.write("downstream", again, rows, out, kind="downstream", schedules=schedules, levels=levels,
                  colours=judged.colour_rows(cells["fruits"]), cells=kept | {"fashion/originals": originals})  # fmt: skip
    print(render(rows), render(judged.colour_rows(cells["fruits"])), render(schedules), render(levels), sep="\n\n")
    return 0


def known(o, name) -> dict:
    file = Path(o.networks) / f"cells_{name}.json"
    return json.loads(file.read_text()) if file.is_file() and not o.fresh else {}


def remember(o, name, cells):
    (Path(o.networks) / f"cells_{name}.json").write_text(json.dumps(cells))


def chosen(name):
    from .tools import enlarging

    if name not in enlarging.STUDIES:
        raise unknown("study", name, enlarging.STUDIES)
    return enlarging.STUDIES[name]


if __name__ == "__main__":
    sys.exit(run(main))
