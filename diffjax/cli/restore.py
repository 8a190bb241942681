"""Restore images with a trained diffusion prior: ``diffjax restore``.

Without options: hides the right half of four bundled test images of garments and of four of fruits (which the priors have
never seen), fills it in four times each, and leaves in ./restored/fashion32 and ./restored/fruits32, one folder per prior

  grid.png      degraded | restorations | mean | spread | truth
  images/       every result as PNG
  metrics.json  what was run, how long it took, PSNR, SSIM, LPIPS (the same is printed as a table)

The images you give are the truth: the mask hides a part of them, the method never sees that part, and the result is
compared with it. White in a mask is known, black is filled. With --task they are blurred, made smaller or noisy instead;
with --degraded they are what was measured, there is no truth, and no score but how well the result fits them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from . import errors, interrupt, options, outputs, told
from .errors import UserError

EXAMPLES = """examples:
  diffjax restore                                          four bundled images, right half hidden
  diffjax list                                             what there is: methods, masks, priors, images
  diffjax restore --mask wide --seed 3               LaMa's thick strokes; another seed, other strokes
  diffjax restore --images shoe.jpg --samples 8      your own photograph, eight completions
  diffjax restore --images photos/ --mask hole.png   a folder, and your own mask (white = known)
  diffjax restore --task deblur --noise 0.05         blurred with noise, restored by DiffPIR
  diffjax restore --images small/ --task sr4 --degraded    small images, made four times larger
  diffjax restore --label sneaker --cfg 2            say what it should become, and insist
  diffjax restore --prior runs/mine --steps 30       a prior you trained, half the steps
  diffjax restore --prior fruits64                   64x64, in the latents of an autoencoder
  diffjax restore --prior hf:google/ddpm-celebahq-256 --images face.jpg    a public one

Images of another size are cropped to a square and resized to the prior's, and it is said. The same seed gives the same
picture whatever --batch and the number of devices. Results are written image by image into FOLDER/unfinished and moved to
their places at the end; an earlier output is replaced only then, and files of yours in the folder stay.
"""


def parser() -> options.Parser:
    p = options.Parser("restore", __doc__, EXAMPLES)
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
    what.add_argument("--task", help="another measurement than a mask: deblur, motion, sr4, sr4-mean, denoise (see --list)")
    what.add_argument(
        "--noise",
        metavar="STD",
        type=float,
        help="with --task: standard deviation for images in [0, 1] (default: 0.05; 0 where the prior is told y)",
    )
    what.add_argument("--degraded", action="store_true", help="with --task: the images are blurred or small already")
    what.add_argument(
        "--border",
        choices=("wrap", "reflect", "zero"),
        help="with --task deblur or motion: what lies beyond the border (default: wrap, with --degraded reflect)",
    )
    what.add_argument(
        "--blur", metavar="STD", type=float, help="with --task deblur: of the Gaussian, in pixels (default: see diffjax list)"
    )
    what.add_argument(
        "--tiles",
        action="store_true",
        help="restore pictures that are larger than the prior's at their own size, in overlapping tiles (--degraded always "
        "does): right for blurs, small images, noise and small holes",
    )
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
    how.add_argument("--method", help="see --list (default: repaint, with --task diffpir, in latents psld)")
    how.add_argument(
        "--mask-latents",
        action="store_true",
        help="with a prior of latents and a mask: mask the latents in place of the picture, for the methods that need a mask; "
        "quick, and what fills the hole bleeds into known pixels",
    )
    how.add_argument(
        "--paste",
        action="store_true",
        help="with a prior of latents: put what was measured into the result, which may then show an edge (default: what the "
        "decoder makes of it stays)",
    )
    how.add_argument(
        "--label",
        "--class",
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
        "--cfg",
        "--guidance",
        metavar="SCALE",
        type=float,
        default=1.0,
        help="classifier-free guidance towards the label or the words (default: 1, none)",
    )
    told.add_options(how)
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
    where.add_argument("--out", metavar="FOLDER", default="restored", help="made or replaced as a whole (default: restored)")
    where.add_argument("--resume", action="store_true", help="do what a stopped run of the same command has not done yet")
    p.add_machine()
    p.add_argument("--list", action="store_true", help="say what each method, mask and prior can do, and stop")
    return p


def main(argv=None) -> int:
    return interrupt.run(lambda stop: _main(argv, stop))


def _main(argv, stop) -> int:
    o = parser().parse(argv)
    options.start(o)
    if o.list:
        from .listing import listing

        print(listing())
        return 0
    out = outputs.check_writable(o.out)
    if o.resume and outputs.owned(out) and not (out / outputs.UNFINISHED).exists():
        if lost := _failed(out):
            why = f"{out} is finished, and {lost} of the images could not be restored"
            print(f"error: {why}: mend them, and leave out --resume", file=sys.stderr)
            return 1
        print(f"{out} is complete, nothing is left to do: without --resume it is made anew")
        return 0
    _settle(o)

    from . import report, restoring

    try:
        with outputs.Output(out, o.resume) as output:
            stop.cleanup = output.abandon
            done = [restoring.restore(copy_with(o, prior=name), output, stop) for name in priors_of(o)]
    except outputs.Stopped as error:
        print(f"error: {errors.one_line(error)}", file=sys.stderr)
        return 1
    for content in done:
        grid = out / outputs.file_name(content["prior"]) / "grid.png"
        if len(done) > 1:
            print(f"\nprior {content['prior']}")
        print(report.table(content))
        some = f" (the first {report.ROWS} images)" if len(content["images"]) > report.ROWS else ""
        print(f"compiled in {content['seconds_compile']:.1f} s, ran in {content['seconds_run']:.1f} s: {grid}{some}")
    lost = sum(len(content.get("failed", ())) for content in done)
    if lost:
        print(f"error: {lost} of the images could not be restored, see above: the others are in {out}", file=sys.stderr)
    return 1 if lost else 0


def _failed(out) -> int:
    """How many images a finished run left out."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in out.glob("*/metrics.json")]
    return sum(len(content.get("failed", ())) for content in found)


def _settle(o):
    """Fill in what depends on --task and the names' other spellings; UserError for what can be known to be wrong."""
    from .. import registry
    from ..operators import masks
    from . import images, inputs, tasks

    if o.task is None:
        given_with = ((o.noise is not None, "--noise"), (o.degraded, "--degraded"), (o.border is not None, "--border"),
                      (o.blur is not None, "--blur"))  # fmt: skip
        for given, name in given_with:
            if given:
                raise UserError(f"{name} goes with --task: {', '.join(tasks.TASKS)}")
        o.mask = o.mask or "half"
        if not inputs.is_file(o.mask) and masks.ALIASES.get(o.mask, o.mask) not in masks.MASKS:
            raise errors.unknown("mask", o.mask, masks.MASKS)
    else:
        _settle_task(o, masks.ALIASES.get(o.task, o.task), tasks.TASKS)
    if o.method is not None and o.method not in (*registry.METHODS, registry.CONDITIONAL.name):
        raise errors.unknown("method", o.method, registry.METHODS)
    if o.tiles and (o.classifier or str(o.images).endswith(".npy") or inputs.is_bundled(o.images)):
        raise UserError("--tiles is about pictures of --images and the prior alone: leave out --tiles, or --classifier")
    if not math.isfinite(o.cfg):
        raise UserError(f"--cfg {o.cfg} is no scale: give a number, 1 for no guidance")
    for given, what in ((o.cfg != 1, f"--cfg {o.cfg:g}"), (o.classifier is not None, "--classifier")):
        if given and o.label is None and (o.classifier or not (o.text or o.boxes)):
            raise UserError(f"{what} guides towards a label: give one with --label{', or words with --text' * (o.cfg != 1)}")
    if o.mask_latents and o.task is not None:
        raise UserError(f"--mask-latents goes with a mask, and --task {o.task} is another measurement: leave it out")
    if o.classifier_scale is not None and not (o.classifier and math.isfinite(o.classifier_scale)):
        raise UserError(f"--classifier-scale {o.classifier_scale} needs --classifier and a finite number")
    if not inputs.is_bundled(o.images) and not Path(o.images).exists():
        images.load(o.images, size=None, channels=1)  # says what is wrong, before anything is computed


def _settle_task(o, task, known):
    from . import inputs

    if o.mask is not None or o.invert_mask:
        raise UserError(f"--task {o.task} and a mask are two measurements: give one of them")
    if task not in known:
        raise errors.unknown("task", o.task, known)
    if o.degraded and inputs.is_bundled(o.images):
        raise UserError("--degraded is about what you measured, and the bundled images are not: give --images")
    if o.degraded and known[task].drawn:
        raise UserError(f"--task {o.task} is drawn by --seed, which what you measured is not: --degraded takes "
                        + ", ".join(name for name, t in known.items() if not t.drawn))  # fmt: skip
    noise = o.noise or 0.0
    if not (math.isfinite(noise) and noise >= 0):
        raise UserError(f"--noise {noise:g} is out of range: give a standard deviation >= 0, for images in [0, 1]")
    if noise > 1:
        raise UserError(f"--noise {noise:g} is more than the whole range of images in [0, 1]. Is it out of 255? "
                        f"Then give --noise {noise / 255:.4g}")  # fmt: skip
    if o.border is not None and task not in ("deblur", "motion"):
        raise UserError(f"--border {o.border} is about blurs, and --task {o.task} is none: leave it out")
    if o.blur is not None and task != "deblur":
        raise UserError(f"--blur {o.blur:g} is about --task deblur: leave it out")
    if o.blur is not None and not 0 < o.blur <= 100:
        raise UserError(f"--blur {o.blur:g} is out of range: give the Gaussian's standard deviation in pixels, above 0 to 100")
    if o.degraded and task == "deblur" and o.border is None:
        o.border = "reflect"
        print("note: beyond the border the picture is taken as mirrored: --border wrap or zero for others")
    o.mask = ""


def priors_of(o) -> list[str]:
    """The priors to run: the one asked for; by default that of the bundled set, or both for both sets."""
    if o.prior is not None:
        return [o.prior]
    kind, _, name = str(o.images).partition(":")
    if kind != "bundled":
        return ["fashion32"]
    if name:
        return [name if name[-2:].isdecimal() else f"{name}32"]
    return (
        ["fashion32"]
        if o.label not in (None, "true", "random") or o.classifier or o.text or o.boxes
        else ["fashion32", "fruits32"]
    )


def copy_with(o, **changes):
    return argparse.Namespace(**{**vars(o), **changes})
