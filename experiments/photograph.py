"""DPIR with a denoiser that knows one noise level restores a photograph: ``python -m experiments.photograph``.

The bundled 256x256 photograph ("Cameraman" by Lav Varshney) is blurred (Gaussian, motion), reduced (MATLAB's bicubic, x2) or
robbed of pixels, with noise of 2 % of the range (0.04 on [-1, 1]), and restored by DPIR (paper's lambda) around the bundled
DnCNN, which was trained at 10 % noise: the table stays at that level. Columns: PSNR (dB) of what was measured (brought to the
image's size by A^T or, for lost pixels, as it is) and of the restoration, passes of the denoiser.
Writes experiments/results/photograph.json, .md and .png.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from diffjax.cli.errors import run
from diffjax.cli.options import Parser

from . import record

NOISE_STD = 0.04
PASSES = 8


def operators(shape) -> dict:
    """{name: (operator, a way to look at its y)}"""
    import jax.numpy as jnp

    from diffjax import operators as ops

    known = np.random.default_rng(0).random(shape[:2]) < 0.5
    return {
        "Gaussian blur": (ops.Blur(ops.gaussian_kernel(25, 1.6)), lambda A, y: y),
        "motion blur": (ops.Blur(ops.motion_kernel(25, 0.5, seed=3)), lambda A, y: y),
        "half the size": (ops.Resize(2), lambda A, y: jnp.repeat(jnp.repeat(y, 2, 0), 2, 1)),
        "half the pixels": (ops.Mask(known[..., None].astype(np.float32)), lambda A, y: y),
    }


def restore(key, A, x, passes=PASSES):
    """(measurement, restoration) of a photograph x (H, W, 1) behind A."""
    import diffjax as dj
    from diffjax.zoo.dncnn import NOISE_STD as level

    measurement = dj.operators.measure(key, A, x, noise_std=NOISE_STD)
    schedule, denoise = dj.schedules.EDM(), dj.zoo.dncnn()
    table = dj.timetables.from_rows([(level, level, level)] * passes)
    method = dj.methods.DPIR(denoise, measurement)
    return measurement.y, dj.sample(key, method, table, x.shape, kernel=dj.kernels.Marginal(schedule)).x


def main(argv=None) -> int:
    parser = Parser("experiments.photograph", __doc__)
    parser.add_argument("--out", default=str(record.FOLDER), help="folder of the result files")
    parser.add_argument("--size", type=int, default=256, help="side of the part of the photograph that is used")
    options = parser.parse(argv)

    import jax
    import jax.numpy as jnp

    from diffjax import metrics, zoo
    from diffjax.cli import figures

    x = jnp.asarray(zoo.bundled.photograph())[: options.size, : options.size]
    rows, seen, restored = [], [], []
    for name, (A, show) in operators(x.shape).items():
        y, found = jax.jit(restore)(jax.random.key(0), A, x)
        before, found = jnp.clip(show(A, y), -1, 1), jnp.clip(found, -1, 1)
        psnr = lambda image: round(float(metrics.psnr(image, x)), 2)
        rows.append({"what happened": name, "seen": psnr(before), "restored": psnr(found), "passes": PASSES})
        seen.append(np.asarray(before))
        restored.append(np.asarray(found))
    command = "python -m experiments.photograph" + (f" --size {options.size}" if options.size != 256 else "")
    print(record.write("photograph", command, rows, options.out))
    columns = [("seen", seen), ("restored", restored), ("truth", [np.asarray(x)] * len(rows))]
    figures.grid(columns, Path(options.out) / "photograph.png", rows=[row["what happened"] for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
