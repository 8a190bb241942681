"""The LPIPS weights that ship, AlexNet convolutions and the five heads, version 0.1; and the distance to train with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..base import pytree, static
from ..metrics import lpips

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


def _alexnet(weights, x, y):
    return jax.vmap(lpips, (0, 0, None))(x, y, weights)


@pytree
class Perceptual:
    """A perceptual distance: (B, H, W, C) twice -> (B,). Its weights are leaves."""

    weights: Any
    distance: Callable = static(default=_alexnet)

    def __call__(self, x, y):
        return self.distance(self.weights, x, y)


def perceptual(*vgg) -> Perceptual:
    """The perceptual distance that first stages of latent diffusion are trained with (``training.first_stage``): on VGG16.

    vgg: files with its weights, which are merged: taming-transformers' LPIPS, or its ``vgg.pth`` (the heads) and torchvision's
    VGG16. They do not ship: without files the distance is the bundled AlexNet's, and a warning says so.
    Raises ValueError, in one line, for files that do not fit.
    """
    if not vgg:
        warnings.warn("LPIPS on VGG16 needs weights that do not ship: this is LPIPS on the bundled AlexNet; give "
                      "perceptual(FILE) for VGG16", stacklevel=2)  # fmt: skip
        return Perceptual(lpips_weights())
    from ..convert import files, first_stage_loss

    net, params = first_stage_loss.vgg_lpips({name: a for path in vgg for name, a in files.read(path).items()})
    return Perceptual(params, net.apply)
