"""What ``diffjax restore`` leaves behind: scores, pictures and a table."""

from __future__ import annotations

import json

import numpy as np

from .. import registry
from . import figures, images, outputs, tables, told

SHOWN = 4  # restorations per row of the grid
ROWS = 16  # images in the grid


def scorer(o, prior):
    """-> f(x (samples, H, W, C), truth, mask, name, label) -> what metrics.json says of one image. Scores are means over its
    restorations; there are none where the pictures are not the truth."""
    import jax
    import jax.numpy as jnp

    from .. import metrics, zoo

    weights = None if o.degraded else zoo.lpips_weights()
    kinds = ("psnr", "ssim", "lpips", "psnr_hole")

    def scores(x, truth, mask):
        found = {
            "psnr": metrics.psnr(x, truth),
            "psnr_hole": metrics.psnr_hole(x, truth, mask),
            "lpips": metrics.lpips(x, truth, weights),
        }
        return found | ({"ssim": metrics.ssim(x, truth)} if min(x.shape[:2]) >= 11 else {})

    score = jax.jit(jax.vmap(scores, (0, None, None)))

    def entry(x, truth, mask, name, label):
        shown = np.clip(np.concatenate([x, x.mean(0, keepdims=True)]), -1, 1)  # the mean as one more "sample"
        found = {} if o.degraded else jax.tree.map(np.asarray, score(shown, jnp.asarray(truth), jnp.asarray(mask)))
        values = {k: found.get(k, np.full(o.samples + 1, np.nan)) for k in kinds}
        result = {"name": name, **{k: _number(v[:-1].mean()) for k, v in values.items()}}
        if o.samples > 1:
            result |= {"psnr_of_mean": _number(values["psnr"][-1]), "psnr_hole_of_mean": _number(values["psnr_hole"][-1]),
                       "spread_hole": _number(x.std(0)[mask < 0.5].mean())}  # fmt: skip
            result["samples"] = [{k: _number(v[s]) for k, v in values.items()} for s in range(o.samples)]
        if label is not None:
            result["label"] = prior.class_names[label] if prior.class_names else int(label)
        return result | {"known": round(float(np.mean(mask)), 4)}

    return entry


def summary(o, prior, done, per_image, seconds, machine) -> dict:
    """The content of metrics.json. done: of each image {"calls", "rows"}; seconds: (to compile, to run); machine: (batch,
    devices), or (None, None) where an earlier run had done all."""
    from .. import metrics

    overall = {k: _mean([e[k] for e in per_image]) for k in ("psnr", "ssim", "lpips", "psnr_hole")}
    small = min(prior.image_shape[:2]) < metrics.LPIPS_MIN_SIZE
    note = "lpips@64: images below 64 pixels are enlarged by pixel repetition" if small else "at the images' own size"
    calls = round(float(np.mean([d["calls"] for d in done])), 1)
    return {
        "method": o.method, "task": o.task or f"inpainting: {o.mask}{' inverted' * o.invert_mask}", "prior": prior.name,
        "kernel_steps": done[0]["rows"], "network_calls": int(calls) if calls == int(calls) else calls,
        "seconds_compile": round(seconds[0], 2), "seconds_run": round(seconds[1], 2), **overall,
        "lpips_note": note, "samples": o.samples, "steps": o.steps or registry.get(o.method).steps, "seed": o.seed,
        "label": o.label, **told.entries(o, prior), "cfg": o.cfg, "batch": machine[0],
        "devices": machine[1], "images": per_image,
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


def files(names, samples) -> list[str]:
    """What :func:`write_image` and :func:`write` make of images of these names."""
    ends = [f"-{n}" for n in range(samples)] + ["-mean"] if samples > 1 else [""]
    return [f"images/{name}{end}.png" for name in names for end in ends] + ["grid.png", "metrics.json"]


def write_image(folder, name, restored):
    """The restorations (samples, H, W, C) of one image, and their mean."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for s, image in enumerate(restored):
        images.save_png(folder / "images" / f"{name}{f'-{s}' if len(restored) > 1 else ''}.png", image)
    if len(restored) > 1:
        images.save_png(folder / "images" / f"{name}-mean.png", restored.mean(0))


def read_image(folder, name, samples):
    """What :func:`write_image` wrote, to 8 bits."""
    ends = [f"-{n}" for n in range(samples)] if samples > 1 else [""]
    return np.stack([images.decode(folder / "images" / f"{name}{end}.png") / np.float32(127.5) - 1 for end in ends])


def write(folder, pictures, held, x, report, seen=None):
    """grid.png and metrics.json into ``folder``; x: the restorations of the first images; seen: what was measured, where it is
    not what a mask leaves."""
    n = len(x)
    samples = x[0].shape[0]
    behind = lambda: [np.where(mask[..., None] > 0.5, truth, 0) for truth, mask in zip(pictures.images[:n], held)]
    degraded = behind() if seen is None else [np.clip(y, -1, 1) for y in seen[:n]]
    columns = [("degraded", degraded)]
    columns += [
        (f"restored {s + 1}" if samples > 1 else "restored", [some[s] for some in x]) for s in range(min(samples, SHOWN))
    ]
    if samples > 1:
        columns += [(f"mean of {samples}", [some.mean(0) for some in x]), figures.spread([some.std(0) for some in x])]
    if not report.get("degraded"):
        columns.append(("truth", pictures.images[:n]))
    figures.grid(columns, folder / "grid.png", pictures.names[:n])
    outputs.write_bytes(folder / "metrics.json", (json.dumps(report, indent=1) + "\n").encode())
