"""Measure how good a prior is: ``diffjax evaluate-prior PRIOR``.

The numbers go into the card of a prior of your own, or for a training run into quality.json beside it, and the pictures beside
that; of a prior that ships, and of a single file, into the folder --out.

Of every prior
  held_out   loss on test images at eight noise levels
  grid       a picture of samples by class or sentence, and at guidance scales 1, 2, 4
  precision, recall  how many samples look real, and how much of the data they reach: by three nearest neighbours

Of priors of Fashion-MNIST, padded to 32x32 (the padding is cropped before anything is measured)
  frechet    distance of the samples to the 10,000 test images, in the features of a small classifier
  accuracy   how often the classifier agrees with the label, at guidance scales 1, 2, 4

Of colour priors, for which there is no classifier
  kernel distance  of the samples to the test images, in AlexNet's features, beside that of the training images
  memorisation     distance of each sample to its nearest training image, beside that of the test images

Of priors of latents, whose samples are decoded first
  autoencoder      PSNR of the reconstructions of test images, and their distance to those as a set

Samples are rounded to 8 bits like the images they are compared with.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

from . import errors, interrupt, options, outputs
from .errors import UserError
from .sample import KERNELS

MOST_CALLS = 50


def parser() -> options.Parser:
    p = options.Parser("evaluate-prior", __doc__)
    p.add_argument("prior", metavar="PRIOR", help="a name of the zoo, a folder with a card, or of a training run")
    p.add_argument("--data", help="the data set it was trained on (default: the path in its card)")
    p.add_argument("--samples", type=options.whole(100), help="for the distance (default: 5000, for the kernel distance 1000)")
    p.add_argument(
        "--guided", type=options.whole(0), default=1000, help="samples at each guidance scale; 0: not measured (default: 1000)"
    )
    p.add_argument("--kernel", default="dpm", help=f"{', '.join(KERNELS)} (default: dpm)")
    p.add_argument("--steps", type=options.whole(1), default=25, help="on a grid equal in log-SNR (default: 25)")
    p.add_argument("--batch", type=options.whole(1), default=250, help="samples at a time (default: 250)")
    p.add_argument("--seed", type=options.whole(0, 2**32 - 1), default=0)
    p.add_argument("--out", metavar="FOLDER", help="where the numbers and pictures go (default: see above; evaluated/NAME)")
    p.add_argument("--no-write", action="store_true", help="only print: for a pilot")
    p.add_machine()
    return p


def main(argv=None) -> int:
    return interrupt.run(lambda stop: _main(sys.argv[1:] if argv is None else argv))


def _main(argv) -> int:
    o = parser().parse(argv)
    options.start(o)
    if o.kernel not in KERNELS:
        raise errors.unknown("kernel", o.kernel, KERNELS)
    from .. import kernels, timetables, zoo
    from ..training import data, step
    from . import quality

    with errors.library_errors():
        prior = zoo.load(o.prior)
        measure, default = quality.block(prior)
        o.samples = o.samples or default
        o.data = quality.source(prior, o.data)
        size, *_, channels = prior.image_shape
        images = data.load(o.data, size=size, channels=channels, classes=prior.classes, tokens=prior.conditional)
        kernel = getattr(kernels, KERNELS[o.kernel])(prior.schedule)
        table = timetables.log_snr(prior.schedule, o.steps)
    calls = kernel.calls * len(table)
    if calls > MOST_CALLS:
        raise UserError(
            f"{o.kernel} with {o.steps} steps makes {calls} network calls per sample: the card allows {MOST_CALLS}, "
            "use fewer --steps"
        )

    own = o.prior not in zoo.names() and Path(o.prior).is_dir()
    folder = Path(o.out or (o.prior if own else Path("evaluated") / outputs.file_name(prior.name)))
    if not o.no_write:
        outputs.check_place(folder / "quality.json")
    started = time.time()
    plain, guided = (quality.sampler(prior, kernel, table, o, guided=choice) for choice in (False, True))
    draw = lambda labels, scale=1.0: (plain if scale == 1 else guided)(labels, scale)
    found, pictures = measure(prior, images, draw, o)
    held_out, count = quality.held_out_loss(prior, images)
    found |= {
        "held_out_loss": dict(zip((f"t/T {level:g}" for level in step.LEVELS), held_out)),
        "held_out_is": f"{prior.loss} loss per pixel on {count:,} test images with their labels",
        "sampler": {"kernel": KERNELS[o.kernel], "grid": "log_snr", "steps": o.steps, "network_calls": calls,
                    "x0": "not clipped, latents" if prior.autoencoder else "clipped to [-1, 1]", "seed": o.seed},
        "command": shlex.join(["diffjax", "evaluate-prior", *argv]),
        "seconds": round(time.time() - started),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if not o.no_write:
        print(f"wrote {quality.record(folder, found, pictures, zoo)}")
    return 0
