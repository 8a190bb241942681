"""Restore images with a trained diffusion prior: ``python -m experiments.restore``.

Without options: hides the right half of four bundled test images of garments and of four of fruits (which the priors have
never seen), fills it in four times each, and leaves in ./restored, and for the fruits in ./restored/fruits32

  grid.png      degraded | restorations | mean | spread | truth
  images/       every result as PNG
  metrics.json  what was run, how long it took, PSNR, SSIM, LPIPS (the same is printed as a table)

The images you give are the truth: the mask hides a part of them, the method never sees that part, and the result is
compared with it. White in a mask is known, black is filled. With --task they are blurred or made smaller instead, with noise;
with --degraded they are what was measured, there is no truth, and no score but how well the result fits them.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from pathlib import Path

import numpy as np

from diffjax.registry import METHODS
from experiments import errors, images, masks, options, outputs, tables, tasks
from experiments.errors import UserError

EXAMPLES = """examples:
  python -m experiments.restore                                    four bundled images, right half hidden
  python -m experiments.restore --list                             what there is: methods, masks, priors, images
  python -m experiments.restore --mask wide --seed 3               LaMa's thick strokes; another seed, other strokes
  python -m experiments.restore --images shoe.jpg --samples 8      your own photograph, eight completions
  python -m experiments.restore --images photos/ --mask hole.png   a folder, and your own mask (white = known)
  python -m experiments.restore --task deblur --noise 0.05         blurred with noise, restored by DiffPIR
  python -m experiments.restore --images small/ --task sr4 --degraded    small images, made four times larger
  python -m experiments.restore --label sneaker --cfg 2            say what it should become, and insist
  python -m experiments.restore --prior runs/mine --steps 30       a prior you trained, half the steps
  python -m experiments.restore --prior hf:google/ddpm-celebahq-256 --images face.jpg    a public one

Images of another size are cropped to a square and resized to the prior's, and it is said. The same seed gives the same
picture whatever --batch and the number of devices. Errors are one line, exit code 2, and leave no half-written output."""


def parser() -> options.Parser:
    p = options.Parser("experiments.restore", __doc__, EXAMPLES)
    what, how, where = (p.add_argument_group(name) for name in ("what is restored", "how", "where to"))
    what.add_argument(
        "--images",
        metavar="PATH",
        default="bundled",
        help="an image, a folder of images, an .npy array in [-1, 1], or bundled (default)",
    )
    what.add_argument(
        "--limit",
        metavar="N",
        type=options.whole(1),
        help="take the first N images (default: 4 bundled ones, all of a folder)",
    )
    what.add_argument("--mask", help="a name (see --list) or a black and white PNG (default: half)")
    what.add_argument("--task", help="another measurement than a mask: deblur, motion, sr4, sr4-mean (see --list)")
    what.add_argument(
        "--noise", metavar="STD", type=float, help="with --task: standard deviation for images in [0, 1] (default: 0.05)"
    )
    what.add_argument("--degraded", action="store_true", help="with --task: the images are blurred or small already")
    what.add_argument("--invert-mask", action="store_true", help="swap known and hidden")
    how.add_argument(
        "--prior",
        help="a name (see --list), a folder with a card or of a training run, a public checkpoint (file, folder, "
        "hf:owner/name) (default: those of the bundled images, else fashion32)",
    )
    how.add_argument(
        "--prior-config",
        metavar="KEY=VALUE",
        type=options.setting,
        nargs="+",
        default=[],
        help="what a public checkpoint does not say: size=64 heads=4 schedule=cosine sha256=... (a wrong key lists all)",
    )
    how.add_argument("--method", help="see --list (default: repaint, with --task diffpir)")
    how.add_argument(
        "--label",
        help="class name or number, true: each bundled image's own, or random: drawn for each image (default: none is told)",
    )
    how.add_argument(
        "--classifier",
        metavar="PATH",
        help="guide towards --label by guided-diffusion's classifier of noisy images in this file",
    )
    how.add_argument(
        "--classifier-scale", metavar="SCALE", type=float, help="how much (default: 1, as in RePaint's ImageNet runs)"
    )
    how.add_argument(
        "--cfg", metavar="SCALE", type=float, default=1.0, help="classifier-free guidance towards the label (default: 1, none)"
    )
    how.add_argument(
        "--samples", metavar="N", type=options.whole(1), default=4, help="restorations of each image (default: 4)"
    )
    how.add_argument(
        "--steps",
        metavar="N",
        type=options.whole(1),
        help="noise levels of the method's walk (default: the method's, see --list)",
    )
    how.add_argument(
        "--seed", type=options.whole(0, 2**32 - 1), default=0, help="of the noise and of drawn masks (default: 0)"
    )
    how.add_argument(
        "--batch", metavar="N", type=options.whole(1), default=16, help="restorations computed at a time (default: 16)"
    )
    how.add_argument(
        "--devices", metavar="N", type=options.whole(1), help="devices to use (default: all; a CPU counts as one per core)"
    )
    where.add_argument("--out", metavar="FOLDER", default="restored", help="made or replaced as a whole (default: restored)")
    p.add_argument("--list", action="store_true", help="say what each method, mask and prior can do, and stop")
    return p


def main(argv=None) -> int:
    return errors.run(lambda: _main(argv))


def _main(argv) -> int:
    o = parser().parse(argv)
    options.use_cores(o.devices)
    if o.list:
        print(listing())
        return 0
    out = outputs.check_writable(o.out)
    _settle(o)
    if o.method not in METHODS:
        raise errors.unknown("method", o.method, METHODS)
    if not math.isfinite(o.cfg):
        raise UserError(f"--cfg {o.cfg} is no scale: give a number, 1 for no guidance")
    is_file = o.task is None and _is_file(o.mask)
    if o.task is None and not is_file and masks.ALIASES.get(o.mask, o.mask) not in masks.MASKS:
        raise errors.unknown("mask", o.mask, masks.MASKS)
    if not _is_bundled(o.images) and not Path(o.images).exists():
        images.load(o.images, size=None, channels=1)  # says what is wrong, before jax is started

    from experiments import report

    names = priors_of(o)
    done = [restore(copy_with(o, prior=name), is_file) for name in names]
    with outputs.output_folder(out) as folder:
        for n, (pictures, held, found, content, seen) in enumerate(done):
            into = folder if n == 0 else folder / content["prior"]
            into.mkdir(exist_ok=True)
            report.write(into, pictures, held, found.x, content, seen)
    for n, (_, _, found, content, _) in enumerate(done):
        grid = out / ("." if n == 0 else content["prior"]) / "grid.png"
        if len(done) > 1:
            print(f"\nprior {content['prior']}")
        print(report.table(content))
        print(f"compiled in {found.seconds_compile:.1f} s, ran in {found.seconds_run:.1f} s: {grid}")
    return 0


def _settle(o):
    """Fill in what depends on --task; UserError for options that do not go together."""
    if o.task is None:
        for given, name in ((o.noise is not None, "--noise"), (o.degraded, "--degraded")):
            if given:
                raise UserError(f"{name} goes with --task: {', '.join(tasks.TASKS)}")
        o.mask, o.method = o.mask or "half", o.method or "repaint"
        return
    if o.mask is not None or o.invert_mask:
        raise UserError(f"--task {o.task} and a mask are two measurements: give one of them")
    if masks.ALIASES.get(o.task, o.task) not in tasks.TASKS:
        raise errors.unknown("task", o.task, tasks.TASKS)
    if o.degraded and _is_bundled(o.images):
        raise UserError("--degraded is about what you measured, and the bundled images are not: give --images")
    if o.degraded and tasks.TASKS[masks.ALIASES.get(o.task, o.task)].drawn:
        raise UserError(f"--task {o.task} is drawn by --seed, which what you measured is not: --degraded takes deblur, sr4, "
                        "sr4-mean, half, altern, sr2, expand or text")  # fmt: skip
    o.noise = 0.05 if o.noise is None else o.noise
    if not (math.isfinite(o.noise) and o.noise >= 0):
        raise UserError(f"--noise {o.noise:g} is out of range: give a standard deviation >= 0, for images in [0, 1]")
    o.mask, o.method = "", o.method or "diffpir"


def priors_of(o) -> list[str]:
    """The priors to run: the one asked for; by default that of the bundled set, or both for both sets."""
    if o.prior is not None:
        return [o.prior]
    kind, _, name = str(o.images).partition(":")
    if kind != "bundled":
        return ["fashion32"]
    if name:
        return [f"{name}32"]
    return ["fashion32"] if o.label not in (None, "true", "random") or o.classifier else ["fashion32", "fruits32"]


def copy_with(o, **changes):
    return argparse.Namespace(**{**vars(o), **changes})


def restore(o, is_file):
    """-> (pictures, masks, solve.Restored, content of metrics.json, measurements of a task) of one prior."""
    from experiments import report, solve

    prior, classifier = networks(o)
    height, width, channels = prior.shape
    if o.task is None:
        pictures = load(o, prior.shape)
    else:
        pictures, ys, operators = measured(o, prior.shape)
    for note in pictures.notes:
        print(f"note: {note}")
    # with a task nothing is known for sure: all of the image is filled in
    of = lambda n: mask_of(o, is_file, (height, width), n) if o.task is None else np.zeros((height, width), np.float32)
    held = [of(n) for n in range(len(pictures))]
    labels = labels_of(o, prior if prior.classes or classifier is None else classifier, pictures)
    what = f"task {o.task}" if o.task else f"mask {o.mask}{' inverted' * o.invert_mask}"
    work = (
        f"images: {len(pictures)} of {height}x{width}x{channels}, restorations of each: {o.samples}; {what}, "
        f"prior {prior.name}, {o.method}: compiling"
    )
    options_of_run = {k: getattr(o, k) for k in ("cfg", "samples", "steps", "seed", "batch", "devices")}
    options_of_run |= {"classifier": classifier, "classifier_scale": 1.0 if o.classifier_scale is None else o.classifier_scale}
    options_of_run |= {"labels": labels, "names": pictures.names, "announce": lambda: print(work, flush=True)}
    entry = METHODS[o.method]
    if o.task is None:
        done = solve.inpaint(prior, entry, np.stack(pictures.images), np.stack(held), **options_of_run)
    else:
        done = solve.restore(prior, entry, ys, operators, noise_std=2 * o.noise, **options_of_run)
    content = report.measure(o, prior, pictures, held, labels, done)
    if o.task is not None:
        shown = np.clip(done.x, -1, 1)
        fits = [np.mean([tasks.misfit(A, x, y, 2 * o.noise) for x in some]) for A, some, y in zip(operators, shown, ys)]
        for scored, fit in zip([*content["images"], content], [*fits, np.mean(fits)]):
            scored["misfit"] = round(float(fit), 5)
        content |= {"noise": o.noise, "degraded": o.degraded}
    if classifier is not None:
        content |= {"classifier": classifier.name, "classifier_scale": options_of_run["classifier_scale"]}
    return pictures, held, done, content, None if o.task is None else ys


# --- what was asked for ---------------------------------------------------------------------------------------------


def _is_bundled(name):
    return str(name).partition(":")[0] == "bundled"


def _is_file(name) -> bool:
    """Whether --mask is a path and not a name: it has a slash or a suffix, or exists."""
    return os.sep in name or Path(name).suffix != "" or (name not in masks.MASKS and Path(name).exists())


def load(o, shape) -> images.Pictures:
    """The images of --images, fitted to the prior's shape."""
    if Path(o.images).suffix == ".npy" and Path(o.images).is_file():
        return load_array(o.images, shape, o.limit)
    limit = o.limit or (4 if _is_bundled(o.images) else None)
    return images.load(o.images, size=shape[0], channels=shape[-1], limit=limit)


def measured(o, shape):
    """(pictures, what is measured of each, operators) of --task; with --degraded the pictures are what is measured."""
    task = masks.ALIASES.get(o.task, o.task)
    if not o.degraded:
        pictures = load(o, shape)
        return pictures, *tasks.measure(task, np.stack(pictures.images), 2 * o.noise, o.seed)
    A = tasks.operators(task, shape[:2], 1)[0]
    with errors.library_errors(f"--task {task}: "):
        pictures = load(o, A(np.zeros(shape, np.float32)).shape)
    ys = np.stack([tasks.hide(A, y) for y in pictures.images])
    return pictures, ys, [A] * len(pictures)


def load_array(path, shape, limit=None) -> images.Pictures:
    """Images (N, H, W, C), (H, W, C) or (H, W) of an .npy file, which must have the prior's shape and be in [-1, 1]."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"images {path} cannot be read ({errors.one_line(error)}): give an .npy file of numbers") from None
    if array.dtype.kind not in "fiu" or array.dtype == np.uint8:
        raise UserError(f"images {path} are {array.dtype}: give floating numbers in [-1, 1] (bytes / 127.5 - 1)")
    found = array.shape
    array = array[..., None] if array.shape[-2:] == shape[:2] and shape[-1] == 1 else array
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[1:] != shape or not len(array):
        raise UserError(f"images {path} have shape {found}: the prior needs (N, {', '.join(map(str, shape))})")
    array = array[:limit].astype(np.float32)
    if not (np.abs(array) <= 1.001).all():  # also false for what is not a number
        low, high = np.min(array), np.max(array)
        raise UserError(f"images {path} span [{low:g}, {high:g}]: give finite numbers in [-1, 1] (bytes / 127.5 - 1)")
    return images.Pictures(list(array), [f"{Path(path).stem}-{n:02d}" for n in range(len(array))], [None] * len(array), [])


def mask_of(o, is_file, shape, number):
    """The mask of image ``number``: drawn masks differ from image to image, by seed + number."""
    if is_file:
        return masks.from_png(o.mask, shape, o.invert_mask)
    mask = masks.make(o.mask, shape, o.seed + number)
    return 1 - mask if o.invert_mask else mask


def networks(o):
    """(prior, classifier or None) of the options; what had to be assumed about them is said."""
    from diffjax import zoo

    if o.classifier_scale is not None and not (o.classifier and math.isfinite(o.classifier_scale)):
        raise UserError(f"--classifier-scale {o.classifier_scale} needs --classifier and a finite number")
    with errors.library_errors(), warnings.catch_warnings():
        warnings.simplefilter("ignore", zoo.Assumed)  # said below
        prior = zoo.load(o.prior, dict(o.prior_config)) if o.prior_config else zoo.load(o.prior)
        classifier = zoo.load_classifier(o.classifier) if o.classifier else None
        if classifier is not None:
            classifier.check(prior)
    if prior.card.get("assumed"):
        print(f"note: {prior.card['assumed']}; say otherwise with --prior-config KEY=VALUE")
    return prior, classifier


def labels_of(o, prior, pictures):
    if o.label is None:
        return None
    if o.label == "random":
        if not prior.classes:
            prior_label(prior, o.label)  # says that there are no labels
        return [int(np.random.default_rng([o.seed, n]).integers(prior.classes)) for n in range(len(pictures))]
    if o.label == "true":
        if None in pictures.labels:
            raise UserError("--label true needs images with labels, as the bundled ones: give a class name or number")
        from diffjax.zoo import bundled

        of_set = bundled.FRUITS_CLASSES if pictures.names[0].startswith("fruits") else bundled.FASHION_CLASSES
        return [prior_label(prior, of_set[n]) for n in pictures.labels]
    return [prior_label(prior, o.label)] * len(pictures)


def prior_label(prior, label):
    with errors.library_errors():
        return prior.label(label)


def listing() -> str:
    """What --list prints."""
    from diffjax import zoo

    also = lambda name: ", ".join(a for a, n in masks.ALIASES.items() if n == name) or None
    size = lambda shape: "x".join(map(str, shape))
    bundled = {name: zoo.bundled.images(name)[0] for name in zoo.bundled.NAMES}
    with errors.library_errors():
        priors = [zoo.load(name) for name in zoo.names()]
    sections = {
        "methods": [
            {"--method": name, "does": ", ".join(e.tasks), "steps": e.steps, "what it is": e.about}
            for name, e in METHODS.items()
        ],
        "masks (or a PNG, white = known)": [
            {"--mask": name, "also called": also(name), "what it is": about} for name, (_, about) in masks.MASKS.items()
        ],
        "tasks (every mask is one too)": [
            {"--task": name, "what it is": task.about} for name, task in tasks.TASKS.items() if name not in masks.MASKS
        ],
        "priors (or the folder of a training run)": [
            {"--prior": p.name, "images": size(p.shape), "--label": ", ".join(p.class_names) or None} for p in priors
        ],
        "images (or a file, a folder, an .npy array)": [
            {"--images": f"bundled:{name}", "how many": len(x), "size": size(x.shape[1:])} for name, x in bundled.items()
        ],
    }
    return "\n\n".join(f"{title}\n{tables.render(lines) if lines else 'none'}" for title, lines in sections.items())


if __name__ == "__main__":
    sys.exit(main())
