"""The LPIPS weights that ship: AlexNet convolutions and the five heads, version 0.1."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

_FILE = Path(__file__).parent / "weights" / "lpips_alexnet_v01_fp16.safetensors"


def lpips_weights() -> dict[str, jax.Array]:
    """Weights for `diffjax.metrics.lpips`, float32, about 10 MB in memory (stored: float16 kernels, 4.9 MB).

    `features.{0..4}.kernel` (h, w, in, out), `features.{0..4}.bias` (out,), `lin.{0..4}.weight` (out,).
    Origin and licences (BSD) lie beside the file: CREDITS-lpips.md. Needs the `safetensors` package; raises
    ImportError that says so.
    """
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ImportError("the LPIPS weights are stored as safetensors: pip install safetensors") from error
    return jax.device_put({name: np.asarray(w, np.float32) for name, w in load_file(_FILE).items()})
