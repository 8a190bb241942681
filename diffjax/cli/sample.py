"""Draw new images from a prior: ``diffjax sample``.

Leaves in ./sampled

  grid.png      all of them, one row per label with --label all, one per sentence with several
  images/       every image as PNG
  metrics.json  what was run and how long it took

Image n of a label depends on --seed, n and the label's number only (of a sentence on --seed, n and the sentence), not on
--batch nor on how many are drawn.
"""

from __future__ import annotations

import json
import math

from . import errors, interrupt, options, outputs, told
from .errors import UserError

KERNELS = {"ddim": "DDIM", "ddpm": "DDPM", "heun": "Heun", "dpm": "DPMSolverPP2M"}
EXAMPLES = """examples:
  diffjax sample                                       sixteen garments
  diffjax sample --label all --samples 8               eight of each class
  diffjax sample --prior fruits32 --label apple --cfg 2
  diffjax sample --prior orchard64 --text "a red apple above two cherries" --guidance 2
  diffjax sample --prior orchard64 --boxes apple:0.1,0.1,0.5,0.5 cherry:0.6,0.2,0.9,0.5
  diffjax sample --prior hf:google/ddpm-celebahq-256 --samples 1 --kernel ddim --steps 50"""


def parser() -> options.Parser:
    p = options.Parser("sample", __doc__, EXAMPLES)
    p.add_argument(
        "--prior",
        default="fashion32",
        help="a name (diffjax list), a folder with a card or of a training run, a public checkpoint (file, folder, "
        "hf:owner/name) (default: fashion32)",
    )
    p.add_argument(
        "--prior-config",
        metavar="KEY=VALUE",
        type=options.setting,
        nargs="+",
        default=[],
        help="what a public checkpoint does not say: size=64 heads=4 schedule=cosine sha256=... (a wrong key lists all)",
    )
    p.add_argument("--samples", metavar="N", type=options.whole(1), default=16, help="images, of each label (default: 16)")
    p.add_argument("--label", "--class", help="class name or number, or all: every class in turn (default: none is told)")
    told.add_options(p, nargs="+")
    p.add_argument(
        "--cfg", "--guidance", metavar="SCALE", type=float, default=1.0, help="classifier-free guidance (default: 1, none)"
    )
    p.add_argument("--kernel", default="dpm", help=f"{', '.join(KERNELS)} (default: dpm)")
    p.add_argument("--steps", metavar="N", type=options.whole(1), default=25, help="on a grid equal in log-SNR (default: 25)")
    p.add_argument("--seed", type=options.whole(0, 2**32 - 1), default=0, help="of the noise (default: 0)")
    p.add_argument("--batch", metavar="N", type=options.whole(1), default=16, help="images computed at a time (default: 16)")
    p.add_argument("--out", metavar="FOLDER", default="sampled", help="made or replaced as a whole (default: sampled)")
    p.add_machine()
    return p


def main(argv=None) -> int:
    return interrupt.run(lambda stop: _main(argv, stop))


def _main(argv, stop) -> int:
    o = parser().parse(argv)
    options.start(o)
    out = outputs.check_writable(o.out)
    if o.kernel not in KERNELS:
        raise errors.unknown("kernel", o.kernel, KERNELS)
    if not math.isfinite(o.cfg):
        raise UserError(f"--cfg {o.cfg} is no scale: give a number, 1 for no guidance")
    if o.cfg != 1 and o.label is None and not (o.text or o.boxes):
        raise UserError(f"--cfg {o.cfg:g} guides towards a label: give one with --label, or words with --text")

    from . import figures, images, inputs, progress

    o.classifier = None
    prior, _ = inputs.networks(o)
    told.check(o, prior, o.label)
    if prior.beside:
        raise UserError(f"prior {prior.name} restores what is measured of a picture: use diffjax restore --prior {o.prior}")
    with errors.library_errors():
        rows = told.conditions(o, prior) if prior.conditional else labelled(prior, o.label)
    labels, names = zip(*rows)
    with errors.library_errors(), progress.watch("sampling") as report:
        done = draw(prior, list(labels), list(names), o, lambda *rows: (stop.check(), report(*rows)))
    content = {
        "prior": prior.name, "kernel": KERNELS[o.kernel], "steps": o.steps, "network_calls": done.network_calls,
        "labels": None if labels == (None,) else names, **told.entries(o, prior), "cfg": o.cfg, "samples": o.samples,
        "seed": o.seed, "batch": done.batch, "devices": done.devices, "seconds_compile": round(done.seconds_compile, 2),
        "seconds_run": round(done.seconds_run, 2),
    }  # fmt: skip
    with outputs.output_folder(out, stop) as folder:
        (folder / "images").mkdir()
        for name, some in zip(files(names), done.x):
            for n, image in enumerate(some):
                images.save_png(folder / "images" / f"{name}-{n:03d}.png", image)
        pictures = [image for some in done.x for image in some]
        figures.sample_grid(pictures, folder / "grid.png", o.samples if len(rows) > 1 else None)
        (folder / "metrics.json").write_text(json.dumps(content, indent=1) + "\n")
    each = f"{done.network_calls} network calls and {done.seconds_run / len(pictures):.2f} s each"
    print(f"{len(pictures)} images of prior {prior.name}, {each}: {out / 'grid.png'}")
    return 0


def labelled(prior, label) -> list:
    """[(index or None, name)] of --label."""
    labels = range(prior.classes) if label == "all" and prior.classes else [label]
    name = lambda k: prior.class_names[k] if prior.class_names else f"class-{k}"
    labels = [None if label is None else prior.label(label) for label in labels]
    return [(label, prior.name if label is None else name(label)) for label in labels]


def files(names) -> list[str]:
    """Names fit for files, each once."""
    found = [outputs.file_name(name) for name in names]
    return [f"{name}-{n}" if found.count(name) > 1 else name for n, name in enumerate(found)]


def draw(prior, labels, names, o, report):
    """-> batch.Restored: ``o.samples`` images of each label or other condition, drawn as restorations of nothing."""
    import numpy as np

    from .. import batch, kernels
    from ..method import Method
    from ..operators import Mask
    from ..registry import Entry, Setup

    def plain(denoise, measurement, steps, *, table):
        return Setup(Method(denoise), getattr(kernels, KERNELS[o.kernel])(), table)

    entry = Entry("sample", Method, plain, f"{KERNELS[o.kernel]}, equal steps in log-SNR", o.steps, latents={})
    nothing = np.zeros((len(labels), *prior.image_shape), np.float32)
    numbers = [0 if label is None or prior.conditional else label + 1 for label in labels]
    return batch.restore(
        prior, entry, nothing, Mask(nothing[0, ..., :1]), labels=None if None in labels else labels, cfg=o.cfg,
        samples=o.samples, seed=o.seed, batch=o.batch, devices=o.devices, progress=report, numbers=numbers,
        names=names,
    )  # fmt: skip
