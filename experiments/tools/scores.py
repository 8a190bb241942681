"""Scores of restorations, one for each image: what ``experiments.evaluate`` and ``experiments.tune`` put into their tables."""

from __future__ import annotations

import functools

import numpy as np


@functools.cache
def scorers() -> dict:
    """Compiled scores of batches, by name."""
    import jax

    from diffjax import metrics, zoo

    weights = zoo.lpips_weights()
    return {
        "psnr": jax.jit(jax.vmap(metrics.psnr)),
        "psnr_hole": jax.jit(jax.vmap(metrics.psnr_hole)),
        "ssim": jax.jit(jax.vmap(metrics.ssim)),
        "lpips": jax.jit(lambda a, b: jax.lax.map(lambda ab: metrics.lpips(*ab, weights), (a, b))),
    }


def score(name, *arrays):
    """One score per image, float64."""
    return np.asarray(scorers()[name](*(np.asarray(a, np.float32) for a in arrays)), np.float64)


def scores(x, truth, masks=None):
    """Per image: PSNR of the hole (100 where exact), of the image without masks, and lpips@64. x, truth: (N, H, W, C);
    masks: (N, H, W)."""
    psnr = score("psnr", x, truth) if masks is None else score("psnr_hole", x, truth, masks)
    return np.minimum(psnr, 100.0), score("lpips", x, truth)


def holes(operators):
    """(N, H, W) masks of a list of operators that are masks; None for others."""
    masks = [getattr(A, "mask", None) for A in operators]
    return None if masks[0] is None else np.stack([np.asarray(m)[..., 0] for m in masks])


def inpainted(x, truth, masks) -> dict:
    """Of restorations x (N, H, W, C) behind masks (N, H, W), clamped to [-1, 1]."""
    psnr, perceptual = scores(np.clip(x, -1, 1), truth, masks)
    return {"psnr_hole": psnr.round(3).tolist(), "lpips": perceptual.round(5).tolist()}


def restored(x, truth, ys, operators, noise_std) -> dict:
    """Of restorations x (N, H, W, C) of measurements ys, clamped to [-1, 1]."""
    from diffjax.cli.tasks import misfit

    x = np.clip(x, -1, 1)
    psnr, perceptual = scores(x, truth)
    return {
        "psnr": psnr.round(3).tolist(),
        "ssim": score("ssim", x, truth).round(4).tolist(),
        "lpips": perceptual.round(5).tolist(),
        "misfit": [round(misfit(A, image, y, noise_std), 4) for A, image, y in zip(operators, x, ys)],
    }


def regularised(y, A, noise_std):
    """argmin |A x - y|^2 / noise_std^2 + |x|^2, noise_std at least 0.02: what knows nothing of images but their range."""
    return np.asarray(A.prox(np.zeros(A.T(y).shape, np.float32), max(noise_std, 0.02) ** 2, y))
