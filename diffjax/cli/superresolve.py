"""Enlarge an MR volume by conditional diffusion: ``diffjax superresolve SCAN.nii.gz``.

Between thick slices (through-plane, the default where they are thick), or within them (--plane in-plane). Leaves in FOLDER

  SCAN_x4.nii.gz         the mean of the samples, float32, in the scan's intensities and at its place
  SCAN_x4_spread.nii.gz  their standard deviation, in the same units: where it is large, do not believe the result
  cuts.png               three cuts: measured, interpolated, restored, spread
  metrics.json           what was run, the scale of intensities, how long it took

Measured slices are taken as averages of the fine ones by a slice profile (in-plane: as a crop of k-space), and the result is
held to them as far as their noise lets it (--profile, --noise, --free). The network knows T1-weighted brains at 1 mm.
What it adds is what such brains look like, not what was measured: no diagnosis. A whole head takes long on a CPU, half an hour
for each sample: begin with --samples 1.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from . import errors, interrupt, options, outputs
from .errors import UserError

EXAMPLES = """examples:
  diffjax superresolve scan.nii.gz --out fine                       four times as many slices
  diffjax superresolve scan.nii.gz --factor 2 --samples 8           twice, and a better map of the spread
  diffjax superresolve scan.nii.gz --plane in-plane --factor 2      finer pixels within each slice
  diffjax superresolve series.nii.gz --frame 0                      one volume of a 4-D file
  diffjax superresolve scan.nii.gz --free                           not held to the measured slices

Needs nibabel: pip install 'diffjax[medical]'."""
PLANES = ("auto", "through-plane", "in-plane")
THICK = 1.5  # times the spacing of the other axes
LARGEST = 300_000_000  # voxels of a result
STEPS, NOISE = 5, 0.05
PROFILES = ("gaussian", "box")


def parser() -> options.Parser:
    p = options.Parser("superresolve", __doc__, EXAMPLES)
    what, how, where = (p.add_argument_group(name) for name in ("what is enlarged", "how", "where to"))
    what.add_argument("scan", metavar="SCAN", help="a NIfTI file, .nii or .nii.gz")
    what.add_argument("--factor", metavar="N", type=int, default=4, help="2 or 4 (default: 4)")
    what.add_argument("--plane", default="auto", help="through-plane (between slices), in-plane, or auto (default): "
                      "through-plane where slices are thick")  # fmt: skip
    what.add_argument("--axis", metavar="N", type=options.whole(0, 2), help="of the slices (default: the largest spacing)")
    what.add_argument("--frame", metavar="N", type=options.whole(0), help="which volume of a 4-D file, from 0")
    how.add_argument("--samples", metavar="N", type=options.whole(1), default=4, help="draws (default: 4; 1: no spread)")
    how.add_argument("--steps", metavar="N", type=options.whole(1, 100), default=STEPS,
                     help=f"network calls for each sample and stack of cuts (default: {STEPS})")  # fmt: skip
    how.add_argument("--orientations", metavar="N", type=options.whole(1, 2),
                     help="through-plane: stacks of cuts that are averaged at each step, 1 or 2 (default: 2)")  # fmt: skip
    how.add_argument("--noise", metavar="STD", type=float, default=NOISE,
                     help="of the measured slices, to which the result is held, as a share of the intensities' range "
                     f"(default: {NOISE})")  # fmt: skip
    how.add_argument("--profile", default=PROFILES[0],
                     help="through-plane: of the measured slices, gaussian (default: half its height is as wide as slices are "
                     "apart) or box (plain averages: steps where slices meet)")  # fmt: skip
    how.add_argument("--free", action="store_true", help="do not hold the result to the measured slices")
    how.add_argument("--percentiles", metavar=("LOW", "HIGH"), type=float, nargs=2, default=(0.5, 99.8),
                     help="of intensity, that the network sees as black and white (default: 0.5 99.8)")  # fmt: skip
    how.add_argument("--network", metavar="FOLDER", help="another network, as experiments.mri_sr exports it")
    how.add_argument("--seed", type=options.whole(0, 2**32 - 1), default=0)
    where.add_argument("--out", metavar="FOLDER", default="superresolved",
                       help="made or replaced as a whole (default: superresolved)")  # fmt: skip
    p.add_machine()
    return p


def main(argv=None) -> int:
    return interrupt.run(lambda stop: _main(argv, stop))


def _main(argv, stop) -> int:
    o = parser().parse(argv)
    if o.factor not in (2, 4):
        raise UserError(f"--factor {o.factor}: the network was trained for 2 and 4, choose one of them")
    if o.plane not in PLANES:
        raise errors.unknown("plane", o.plane, PLANES)
    if o.profile not in PROFILES:
        raise errors.unknown("profile", o.profile, PROFILES)
    if not 0 <= o.noise <= 1:
        raise UserError(f"--noise {o.noise:g} is out of range: give a share of the range of intensities, 0 to 1")
    if not 0 <= o.percentiles[0] < o.percentiles[1] <= 100:
        raise UserError(f"--percentiles {o.percentiles[0]:g} {o.percentiles[1]:g}: give two, 0 <= LOW < HIGH <= 100")
    out = outputs.check_writable(o.out)
    options.start(o)

    from .. import volumes, zoo

    volume = volumes.read(o.scan, o.frame)
    coarse = choose(o, volume)
    network = zoo.mri_sr(o.network)
    for note in volume.notes:
        print(f"note: {o.scan}: {note}")
    fine = coarse.fine_shape(volume.data.shape)
    if (count := fine[0] * fine[1] * fine[2]) > LARGEST:
        raise UserError(f"the result would have {count:,} voxels, {LARGEST:,} are the most: crop {o.scan} first")
    outputs.check_room(out, 10 * count, 5 * count)
    size = lambda shape: "x".join(map(str, shape))
    print(f"{o.scan}: {size(volume.data.shape)} voxels of {size(f'{s:.3g}' for s in volume.spacing)} mm, {volume.orientation}"
          f"; {coarse.plane} x{o.factor} along {' and '.join('xyz'[a] for a in coarse.axes)}: {size(fine)}")  # fmt: skip
    begun = time.perf_counter()
    with outputs.output_folder(out, stop) as folder:
        written = run(o, volume, coarse, network, folder, begun)
    for name in written:
        print(out / name)
    return 0


def choose(o, volume):
    """Which way it is coarse: a ``Coarse``, or UserError."""
    from ..volumes import Coarse

    axis = volume.slice_axis if o.axis is None else o.axis
    others = [s for a, s in enumerate(volume.spacing) if a != axis]
    thick = volume.spacing[axis] >= THICK * max(others)
    plane = o.plane
    if plane == "auto":
        if not thick:
            sizes = " x ".join(f"{s:.3g}" for s in volume.spacing)
            raise UserError(f"{o.scan} has voxels of {sizes} mm, no thick slices: give --plane in-plane, or --plane "
                            "through-plane with --axis")  # fmt: skip
        plane = "through-plane"
    if plane == "through-plane" and volume.data.shape[axis] < 2:
        raise UserError(f"{o.scan} has one slice along axis {axis}, nothing lies between slices: give --plane in-plane")
    if plane == "in-plane" and o.orientations == 2:
        raise UserError("--orientations 2 is about through-plane: in-plane the cuts are the slices")
    return Coarse(plane, o.factor, axis, o.profile if plane == "through-plane" else None)


def run(o, volume, coarse, network, folder, begun) -> list[str]:
    import jax
    import numpy as np

    from .. import volumes
    from .progress import Progress

    scale = volumes.Intensity.of(volume.data, o.percentiles)
    missing = np.isnan(volume.data)
    measured = np.where(missing, np.float32(-1), scale.normalised(volume.data))
    how = volumes.How(steps=o.steps, orientations=o.orientations, noise_std=None if o.free else 2 * o.noise)
    draws = volumes.superresolve
    with Progress(o.samples * o.steps, label="enlarging", quiet_every=20.0) as bar:
        made = draws(network, coarse, measured, jax.random.key(o.seed), how, o.samples, lambda done, total: bar.update(done))
        mean, square = 0.0, 0.0
        for n, x in enumerate(made):  # Welford: no sample is kept
            step = x - mean
            mean = mean + step / (n + 1)
            square = square + step * (x - mean)
    spread = np.sqrt(np.maximum(square / max(o.samples - 1, 1), 0)) if o.samples > 1 else None
    gone = np.asarray(missing)
    for axis in coarse.axes:
        gone = gone.repeat(o.factor, axis)
    name = Path(o.scan).name.removesuffix(".gz").removesuffix(".nii")
    name = f"{outputs.file_name(name)}_x{o.factor}"
    files = [f"{name}.nii.gz"]
    result = scale.restored(mean)
    volumes.write(folder / files[0], np.where(gone, np.float32(np.nan), result), volume, coarse.axes, o.factor)
    if spread is not None:
        files.append(f"{name}_spread.nii.gz")
        in_units = (spread * 0.5 * (scale.high - scale.low)).astype(np.float32)
        volumes.write(folder / files[1], np.where(gone, np.float32(np.nan), in_units), volume, coarse.axes, o.factor)
    picture(folder / "cuts.png", measured, mean, spread, coarse, volume)
    stacks = o.orientations or (2 if coarse.plane == "through-plane" else 1)
    report = {"scan": str(o.scan), "plane": coarse.plane, "factor": o.factor, "axis": coarse.axis, "profile": coarse.how,
              "orientations": stacks, "samples": o.samples, "steps": o.steps,
              "network_calls": o.samples * o.steps * stacks, "noise": None if o.free else o.noise, "seed": o.seed,
              "intensity": {"low": scale.low, "high": scale.high, "percentiles": list(o.percentiles)},
              "shape": list(result.shape), "spacing": [s / (o.factor if a in coarse.axes else 1) for a, s in
                                                        enumerate(volume.spacing)],
              "network": network.card.get("name"), "seconds": round(time.perf_counter() - begun, 1)}  # fmt: skip
    if spread is not None:
        inside = mean > -0.9
        report["mean_spread"] = float(in_units[inside].mean()) if inside.any() else 0.0
    (folder / "metrics.json").write_text(json.dumps(report, indent=1) + "\n")
    return [*files, "cuts.png", "metrics.json"]


def picture(path, measured, mean, spread, coarse, volume):
    """Three cuts through the middle of what is bright, upright, with square millimetres."""
    import numpy as np

    from . import figures

    interpolated = coarse.enlarge(measured)
    blocky = measured
    for axis in coarse.axes:
        blocky = blocky.repeat(coarse.factor, axis)
    spacing = [s / (coarse.factor if a in coarse.axes else 1) for a, s in enumerate(volume.spacing)]
    bright = np.argwhere(interpolated[::2, ::2, ::2] > -0.8)
    middle = 2 * bright.mean(0).astype(int) if len(bright) else np.array(mean.shape) // 2
    kinds = [("measured", blocky), ("interpolated", interpolated), ("restored", mean)]
    columns = [(label, [_cut(v, a, middle[a], spacing) for a in range(3)]) for label, v in kinds]
    if spread is not None:
        columns.append(figures.spread([_cut(spread, a, middle[a], spacing) for a in range(3)]))
    figures.grid(columns, path, [f"axis {a}, voxel {int(middle[a])}" for a in range(3)])


def _cut(volume, axis, at, spacing):
    """One cut, the later of its axes upwards, interpolated linearly to square pixels of the finest spacing."""
    import numpy as np

    cut = np.take(volume, int(at), axis)
    sides = [s for a, s in enumerate(spacing) if a != axis]
    finest = min(sides)
    for k, s in enumerate(sides):
        n = cut.shape[k]
        m = max(round(n * s / finest), 1)
        if m != n:
            where = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
            low = np.minimum(where.astype(int), max(n - 2, 0))
            share = (where - low).reshape(-1, *(1,) * (1 - k))
            high = np.minimum(low + 1, n - 1)
            cut = (1 - share) * cut.take(low, k) + share * cut.take(high, k)
    return cut.T[::-1]
