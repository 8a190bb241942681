"""What ``diffjax restore`` leaves behind: scores, pictures and a table."""

from __future__ import annotations

import json

import numpy as np

from .. import registry
from . import figures, images, tables

_SHOWN = 4  # restorations per row of the grid
_ROWS = 16  # images in the grid


def measure(o, prior, pictures, held, labels, done) -> dict:
    """The content of metrics.json. Scores are means over the restorations of an image, then over images."""
    import jax
    import jax.numpy as jnp

    from .. import metrics, zoo

    weights = zoo.lpips_weights()
    small = min(prior.shape[:2]) < metrics.LPIPS_MIN_SIZE

    def scores(x, truth, mask):
        found = {
            "psnr": metrics.psnr(x, truth),
            "psnr_hole": metrics.psnr_hole(x, truth, mask),
            "lpips": metrics.lpips(x, truth, weights),
        }
        return found | ({"ssim": metrics.ssim(x, truth)} if min(prior.shape[:2]) >= 11 else {})

    shown = np.concatenate([done.x, done.x.mean(1, keepdims=True)], axis=1)  # the mean as one more "sample"
    shown = np.clip(shown, -1, 1)
    score = jax.jit(jax.vmap(scores, (0, None, None)))
    found = [  # no scores where the pictures are not the truth
        {} if o.degraded else jax.tree.map(np.asarray, score(x, jnp.asarray(truth), jnp.asarray(mask)))
        for x, truth, mask in zip(shown, pictures.images, held)
    ]
    kinds = ("psnr", "ssim", "lpips", "psnr_hole")

    def entry(n):
        values = {k: found[n].get(k, np.full(o.samples + 1, np.nan)) for k in kinds}
        result = {"name": pictures.names[n], **{k: _number(v[:-1].mean()) for k, v in values.items()}}
        if o.samples > 1:
            result |= {"psnr_of_mean": _number(values["psnr"][-1]), "psnr_hole_of_mean": _number(values["psnr_hole"][-1]),
                       "spread_hole": _number(done.x[n].std(0)[held[n] < 0.5].mean())}  # fmt: skip
            result["samples"] = [{k: _number(v[s]) for k, v in values.items()} for s in range(o.samples)]
        if labels is not None:
            result["label"] = prior.class_names[labels[n]] if prior.class_names else int(labels[n])
        return result | {"known": round(float(np.mean(held[n])), 4)}

    per_image = [entry(n) for n in range(len(pictures))]
    overall = {k: _mean([e[k] for e in per_image]) for k in kinds}
    note = "lpips@64: images below 64 pixels are enlarged by pixel repetition" if small else "at the images' own size"
    return {
        "method": o.method, "task": o.task or f"inpainting: {o.mask}{' inverted' * o.invert_mask}", "prior": prior.name,
        "kernel_steps": len(done.table), "network_calls": done.network_calls,
        "seconds_compile": round(done.seconds_compile, 2), "seconds_run": round(done.seconds_run, 2), **overall,
        "lpips_note": note, "samples": o.samples, "steps": o.steps or registry.METHODS[o.method].steps, "seed": o.seed,
        "label": o.label, "cfg": o.cfg, "batch": done.batch, "devices": done.devices, "images": per_image,
    }  # fmt: skip


def _number(value):
    """A float for JSON, which has neither infinity nor NaN."""
    return round(float(value), 5) if np.isfinite(value) else None


def _mean(values):
    return None if None in values else round(float(np.mean(values)), 5)


def table(report) -> str:
    lpips = "lpips@64" if report["lpips_note"].startswith("lpips@64") else "lpips"
    columns = {"psnr": "PSNR dB", "psnr_hole": "PSNR hole dB", "ssim": "SSIM", "lpips": lpips}
    if "misfit" in report:  # a task: there is no hole
        columns = {"psnr": "PSNR dB", "ssim": "SSIM", "lpips": lpips, "misfit": "misfit"}
    row = lambda name, e: {"image": name} | {title: e[k] for k, title in columns.items()}
    lines = [row(e["name"], e) for e in report["images"]] + [row("mean", report)]
    return tables.render(lines if len(lines) <= 33 else lines[-1:])


def write(folder, pictures, held, x, report, seen=None):
    """grid.png, images/*.png and metrics.json into ``folder``; seen: what was measured, where it is not what a mask leaves."""
    samples = x.shape[1]
    (folder / "images").mkdir()
    for name, restored in zip(pictures.names, x):
        for s, image in enumerate(restored):
            images.save_png(folder / "images" / f"{name}{f'-{s}' if samples > 1 else ''}.png", image)
        if samples > 1:
            images.save_png(folder / "images" / f"{name}-mean.png", restored.mean(0))
    n = min(len(pictures), _ROWS)
    behind = lambda: [np.where(mask[..., None] > 0.5, truth, 0) for truth, mask in zip(pictures.images[:n], held)]
    degraded = behind() if seen is None else list(np.clip(seen[:n], -1, 1))
    columns = [("degraded", degraded)]
    columns += [(f"restored {s + 1}" if samples > 1 else "restored", list(x[:n, s])) for s in range(min(samples, _SHOWN))]
    if samples > 1:
        columns += [(f"mean of {samples}", list(x[:n].mean(1))), figures.spread(list(x[:n].std(1)))]
    if not report.get("degraded"):
        columns.append(("truth", pictures.images[:n]))
    figures.grid(columns, folder / "grid.png", pictures.names[:n])
    (folder / "metrics.json").write_text(json.dumps(report, indent=1) + "\n")
