"""Measure a prior and write the result into its card: ``python -m experiments.evaluate_prior fashion32``.

For priors of Fashion-MNIST, padded to 32x32 (the padding is cropped before anything is measured):
  frechet    distance of the samples to the 10,000 test images, in the features of a small classifier
  accuracy   how often the classifier agrees with the label, at guidance scales 1, 2, 4
  held_out   loss on test images at eight noise levels
  grid       a picture of samples, one class per row

Samples are rounded to 8 bits like the images they are compared with. Two real halves of the test set are the yardstick.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from experiments import errors, figures, options
from experiments.errors import UserError
from experiments.progress import Progress

KERNELS = {"ddim": "DDIM", "ddpm": "DDPM", "heun": "Heun", "dpm": "DPMSolverPP2M"}
DATA = "/usr/share/datasets/fashion-mnist"
SCALES = (1.0, 2.0, 4.0)
LEVELS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
MOST_CALLS = 50


def parser() -> options.Parser:
    p = options.Parser("experiments.evaluate_prior", __doc__)
    p.add_argument("prior", metavar="PRIOR", help="a name of the zoo, a folder with a card, or of a training run")
    p.add_argument("--data", default=DATA, help=f"folder with Fashion-MNIST's idx files (default: {DATA})")
    p.add_argument("--samples", type=options.whole(100), default=5000, help="for the distance (default: 5000)")
    p.add_argument(
        "--guided", type=options.whole(0), default=1000, help="for the accuracy at each scale; 0: not measured (default: 1000)"
    )
    p.add_argument("--kernel", default="dpm", help=f"{', '.join(KERNELS)} (default: dpm)")
    p.add_argument("--steps", type=options.whole(1), default=25, help="on a grid equal in log-SNR (default: 25)")
    p.add_argument("--batch", type=options.whole(1), default=250, help="samples at a time (default: 250)")
    p.add_argument("--seed", type=options.whole(0, 2**32 - 1), default=0)
    p.add_argument("--devices", type=options.whole(1), help="split the host into N devices (default: one per core)")
    p.add_argument("--no-write", action="store_true", help="only print: for a pilot")
    return p


def main(argv=None) -> int:
    return errors.run(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv) -> int:
    o = parser().parse(argv)
    options.use_cores(o.devices)
    if o.kernel not in KERNELS:
        raise errors.unknown("kernel", o.kernel, KERNELS)
    from diffjax import kernels, metrics, timetables, zoo
    from diffjax.training import data

    with errors.library_errors():
        prior = zoo.load(o.prior)
        folder = Path(zoo.__file__).parent / o.prior if o.prior in zoo.names() else Path(o.prior)
        if prior.shape != (32, 32, 1) or prior.classes != 10:
            raise UserError(
                f"prior {prior.name} has images {prior.shape} and {prior.classes} classes: only priors of Fashion-MNIST, "
                "(32, 32, 1) and 10, can be measured"
            )
        test = data.load(o.data, size=32, channels=1, classes=10)
        kernel = getattr(kernels, KERNELS[o.kernel])(prior.schedule)
        table = timetables.log_snr(prior.schedule, o.steps)
    calls = kernel.calls * len(table)
    if calls > MOST_CALLS:
        raise UserError(
            f"{o.kernel} with {o.steps} steps makes {calls} network calls per sample: the card allows {MOST_CALLS}, "
            "use fewer --steps"
        )

    started = time.time()
    classify = classifier()
    truth, _ = classify(test.test)
    order = np.random.default_rng(0).permutation(len(truth))
    halves = metrics.frechet_distance(truth[order[::2]], truth[order[1::2]])
    labels = np.arange(o.samples) % 10
    samples = sampler(prior, kernel, table, o, guided=False)(labels)
    features, said = classify(samples)
    distance = metrics.frechet_distance(features, truth)
    print(f"frechet {distance:.2f} ({o.samples} samples, {len(truth)} test images; two real halves {halves:.2f})", flush=True)
    first = slice(0, min(o.guided, o.samples))
    accuracy = {1.0: float(np.mean(said[first] == labels[first]))} if o.guided else {}
    draw = sampler(prior, kernel, table, o, guided=True)
    for scale in SCALES[1:] if o.guided else ():
        wanted = np.arange(o.guided) % 10
        _, said = classify(draw(wanted, scale))
        accuracy[scale] = float(np.mean(said == wanted))
    held_out = held_out_loss(prior, test)
    quality = {
        "frechet": round(distance, 3),
        "frechet_is": f"Frechet distance of {o.samples} samples to the {len(truth)} test images, 28x28, 8 bits, in the 64 "
                      "fc1 features of zoo.fashion_classifier; lower is better, not comparable with FID",
        "frechet_real_halves": round(halves, 3),
        "accuracy": {f"scale {k:g}": v for k, v in accuracy.items()},
        "accuracy_is": f"share of {o.guided} samples, labels uniform, that the classifier gives their label "
                       "(real test images: 0.914)",
        "held_out_loss": dict(zip((f"t/T {level:g}" for level in LEVELS), held_out)),
        "held_out_is": f"{prior.loss} loss per pixel on 1,000 test images with their labels",
        "sampler": {"kernel": KERNELS[o.kernel], "grid": "log_snr", "steps": o.steps, "network_calls": calls,
                    "x0": "clipped to [-1, 1]", "seed": o.seed},
        "command": "python -m experiments.evaluate_prior " + " ".join(argv),
        "seconds": round(time.time() - started),
    }  # fmt: skip
    print(json.dumps(quality, indent=1))
    if not o.no_write:
        print(f"wrote {record(folder, quality, samples, labels, zoo)}")
    return 0


def sampler(prior, kernel, table, o, guided):
    """-> f(labels (N,), scale=1) -> uint8 (N, 32, 32, 1), one sample per label; compiled once for all scales."""
    import jax
    import jax.numpy as jnp

    import diffjax as dj

    mesh = dj.parallel.mesh()

    def one(params, key, label, scale):
        denoise = dj.replace(prior, params=params).denoiser(label, scale if guided else 1.0)
        x = dj.sample(key, denoise, kernel, table, prior.shape, remat="none").x
        return jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5)

    program = dj.parallel.shard(one, mesh, in_axes=(None, 0, 0, None))

    def draw(labels, scale=1.0):
        batch = min(o.batch, len(labels))
        batch += -batch % mesh.devices.size
        keys = jax.random.split(jax.random.fold_in(jax.random.key(o.seed), round(100 * scale)), len(labels))
        found = []
        with Progress(len(labels), label=f"sampling at scale {scale:g}", unit="samples") as bar:
            for start in range(0, len(labels), batch):
                at = np.arange(start, start + batch) % len(labels)  # the last batch is filled up: one compile
                x = program(prior.params, keys[at], jnp.asarray(labels[at], jnp.int32), jnp.float32(scale))
                found.append(np.asarray(x).astype(np.uint8))
                bar.update(min(start + batch, len(labels)))
        return np.concatenate(found)[: len(labels)]

    return draw


def classifier():
    """-> f(uint8 (N, 32, 32, 1)) -> (features (N, 64), classes (N,)), the padding cropped."""
    import jax

    from diffjax import zoo

    network = jax.jit(jax.vmap(zoo.fashion_classifier()))

    def classify(x):
        parts = [network(x[n : n + 500, 2:30, 2:30].astype(np.float32) / 127.5 - 1) for n in range(0, len(x), 500)]
        features, logits = (np.concatenate([np.asarray(p[k]) for p in parts]) for k in (0, 1))
        return features, logits.argmax(-1)

    return classify


def held_out_loss(prior, test, count=1000):
    """The training loss at LEVELS, of ``count`` test images."""
    from diffjax.training import step

    _, split = step.shardings()
    example = step.example_loss(prior.net, prior.schedule, step.LOSSES[prior.loss])
    run = step.held_out(example, prior.schedule, levels=LEVELS, sharded=split)
    count -= count % len(split.device_set)
    return [round(float(v), 5) for v in run(prior.params, test.test[:count], test.test_labels[:count])["loss"]]


def record(folder, quality, samples, labels, zoo):
    """Put the quality into the card (or, for a training run, into quality.json) and a grid of samples beside it."""
    rows = [samples[np.flatnonzero(labels == k)[:10]] for k in range(10)]
    figures.sample_grid([x.astype(np.float32) / 127.5 - 1 for row in rows for x in row], folder / "samples.png", columns=10)
    card = folder / zoo.prior.CARD
    if card.is_file():
        zoo.prior.write_card(folder, {**json.loads(card.read_text(encoding="utf-8")), "quality": quality})
        return card
    (folder / "quality.json").write_text(json.dumps(quality, indent=1) + "\n")
    return folder / "quality.json"


if __name__ == "__main__":
    sys.exit(main())
