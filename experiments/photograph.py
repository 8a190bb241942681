"""DPIR with a denoiser that knows one noise level restores a photograph: ``python -m experiments.photograph``.

The bundled 256x256 photograph ("Cameraman" by Lav Varshney) is blurred (Gaussian, motion), reduced (MATLAB's bicubic, x2) or
robbed of pixels, with noise of 2 % of the range (0.04 on [-1, 1]), and restored by DPIR (paper's lambda) around the bundled
DnCNN, which was trained at 10 % noise: the table stays at that level. Columns: PSNR (dB) of what was measured (brought to the
image's size by A^T or, for lost pixels, as it is) and of the restoration, passes of the denoiser.
Writes photograph.json and .png.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from .tools import provenance, records
from .tools.pictures import greyed
from .tools.study import Parser, command, grid, run, use_cores

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
    use_cores()
    parser = Parser("experiments.photograph", __doc__)
    parser.add_argument("--out", **provenance.OUT)
    parser.add_argument("--size", type=int, default=256, help="side of the part of the photograph that is used")
    options = parser.parse(argv)

    import jax
    import jax.numpy as jnp

    from diffjax import metrics, zoo

    x = jnp.asarray(zoo.bundled.photograph())[: options.size, : options.size]
    rows, seen, restored, start = [], [], [], time.perf_counter()
    for name, (A, show) in operators(x.shape).items():
        y, found = jax.jit(restore)(jax.random.key(0), A, x)
        before, found = jnp.clip(show(A, y), -1, 1), jnp.clip(found, -1, 1)
        psnr = lambda image: round(float(metrics.psnr(image, x)), 2)
        rows.append({"what happened": name, "seen": psnr(before), "restored": psnr(found), "passes": PASSES})
        seen.append(np.asarray(before))
        restored.append(np.asarray(found))
    seconds = round(time.perf_counter() - start, 1)
    print(records.write("photograph", command("experiments.photograph", argv), rows, options.out, seconds=seconds))
    columns = [("seen", seen), ("restored", restored), ("truth", [np.asarray(x)] * len(rows))]
    picture = Path(options.out) / "photograph.png"
    grid(columns, picture, rows=[row["what happened"] for row in rows])
    greyed(picture)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
