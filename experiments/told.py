"""Does it draw what it is told, where it is told? ``python -m experiments.told``: the prior orchard64, by words and by boxes.

Of each held-out picture of the orchard its own condition is told: its sentence, its boxes, or both, at guidance 1, 2 and 4. In
what is drawn the pieces of foreground are found as in the data set itself (experiments.orchard).

iou       mean over the boxes told: intersection over union of the box with that of the piece nearest to it, none is 0
accuracy  share of the boxes told whose piece has the class told, by a classifier of AlexNet's features, trained on the real
          crops of the training varieties (logistic regression); no piece is wrong
kinds     share of pictures that show as many of each class as the sentence's picture has: also without boxes
count     share of pictures with as many pieces as there are fruits
The same of the real pictures, and of those through the autoencoder and back, is what can be reached.

Writes told.json, and told.png: for six conditions the real picture and those drawn.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import diffjax as dj
from diffjax.cli import quality
from diffjax.training import data

from . import orchard
from .tools import provenance, records
from .tools.study import Parser, command, grid, library_errors, made, run, use_cores, whole

SCALES = (1.0, 2.0, 4.0)
PARTS = {"words": ("tokens",), "boxes": ("boxes", "classes"), "both": ("tokens", "boxes", "classes")}
SMALLEST = 40  # pixels of a piece: less is a speck
SHOWN = 6


def main(argv=None) -> int:
    use_cores()
    p = Parser("experiments.told", __doc__)
    p.add_argument("--prior", default="orchard64")
    p.add_argument("--data", default="data/orchard64.npz", help="python -m experiments.orchard makes it")
    p.add_argument("--fruits", default="data/fruits64.npz", help="python -m experiments.fruits makes it")
    p.add_argument("--samples", type=whole(SHOWN), default=200, help="pictures of each row (default: 200)")
    p.add_argument("--steps", type=whole(1), default=25, help="of DPM-Solver++ 2M, equal in log-SNR (default: 25)")
    p.add_argument("--batch", type=whole(1), default=50)
    p.add_argument("--seed", type=whole(0, 2**32 - 1), default=0)
    p.add_argument("--out", **provenance.OUT)
    o = p.parse(argv)
    begin = time.perf_counter()
    with library_errors():
        prior = dj.zoo.load(o.prior)
        images = data.load(o.data, size=prior.image_shape[0], channels=3, tokens=True)
        fruits = data.load(o.fruits, size=prior.image_shape[0], channels=3, classes=3)
    classify, held_out = classifier(fruits)
    x, told = images.test[: o.samples], {k: a[: o.samples] for k, a in images.test_labels.items()}
    known = {k: a[: o.samples] for k, a in images.train_labels.items()}
    rows = [{"told": "training pictures", **judge(images.train[: o.samples], known, classify)}]
    rows.append({"told": "real pictures", **judge(x, told, classify)})
    back = through(prior, x)
    rows.append({"told": "real pictures, encoded and decoded", **judge(back, told, classify)})
    columns, table = [("real", x[:SHOWN])], dj.timetables.log_snr(prior.schedule, o.steps)
    for what, parts in PARTS.items():
        cond = {k: a if k in parts else np.zeros_like(a) for k, a in told.items()}
        draw = {guided: quality.sampler(prior, dj.kernels.DPMSolverPP2M(), table, o, guided) for guided in (False, True)}
        for scale in SCALES:
            found = draw[scale != 1](cond, scale)
            rows.append({"told": what, "guidance": scale, **judge(found, told, classify)})
            print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
            if scale == 2:
                columns.append((what, found[:SHOWN]))
    words = [prior.vocabulary.text(t) for t in told["tokens"][:SHOWN]]
    grid([(name, [quality.to_float(a) for a in some]) for name, some in columns], made(o.out) / "told.png", words)
    print(records.write("told", command("experiments.told", argv), rows, o.out, samples=o.samples, classifier=held_out,
                        prior=prior.card.get("signature"), seconds=round(time.perf_counter() - begin, 1)))  # fmt: skip
    return 0


# --- what is in a picture ---------------------------------------------------------------------------------------------


def pieces(image) -> list:
    """[(box in pixels, crop on white)] of the pieces of foreground of one picture, uint8."""
    from scipy import ndimage

    numbered, _ = orchard.pieces(image)
    found = []
    for n, (rows, columns) in enumerate(ndimage.find_objects(numbered), 1):
        own = numbered[rows, columns] == n
        if own.sum() >= SMALLEST:
            box = (rows.start, columns.start, rows.stop, columns.stop)
            found.append((box, np.where(own[..., None], image[rows, columns], 255).astype(np.uint8)))
    return found


def iou(a, b) -> float:
    """Intersection over union of two boxes (top, left, bottom, right)."""
    inner = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
    return float(inner / (area(a) + area(b) - inner))


def judge(x, told, classify) -> dict:
    """The numbers of the pictures x (N, H, W, 3), uint8, against what is in the real ones."""
    size, overlaps, right, counts, kinds = x.shape[1], [], [], [], []
    found = [pieces(image) for image in x]
    named = iter(classify([crop for some in found for _, crop in some]))
    named = [[next(named) for _ in some] for some in found]
    for some, names, boxes, wanted in zip(found, named, told["boxes"], told["classes"]):
        for box, kind in zip(boxes[wanted > 0] * size, wanted[wanted > 0]):
            each = [iou(box, piece) for piece, _ in some]
            best = int(np.argmax(each)) if each else 0
            overlaps.append(each[best] if each else 0.0)
            right.append(bool(each) and each[best] > 0 and names[best] == kind)
        counts.append(len(some) == np.sum(wanted > 0))
        kinds.append(sorted(names) == sorted(wanted[wanted > 0].tolist()))
    return {"iou": round(float(np.mean(overlaps)), 3), "accuracy": round(float(np.mean(right)), 3),
            "kinds": round(float(np.mean(kinds)), 3), "count": round(float(np.mean(counts)), 3)}  # fmt: skip


def squared(crop, size=48):
    """A fruit of any size in the middle of a white square, its longer side ``size``: what the classifier sees."""
    from diffjax.cli.images import pillow

    Image = pillow()
    height, width = orchard.scaled(crop.shape, size)
    small = np.asarray(Image.fromarray(np.ascontiguousarray(crop)).resize((width, height), Image.Resampling.LANCZOS))
    top, left = (64 - height) // 2, (64 - width) // 2
    page = np.full((64, 64, 3), 255, np.uint8)
    page[top : top + height, left : left + width] = small
    return page


def classifier(fruits):
    """(f(crops) -> classes 1, 2, 3, its accuracy on crops of the held-out varieties). It learns crops in several sizes, as
    small as in the pictures: what was small and is enlarged is blurred."""
    import jax
    import jax.numpy as jnp

    features, rng = quality.alexnet(), np.random.default_rng(0)

    def seen(crops):
        return features(np.stack([squared(crop) for crop in crops]))

    def small(crop):
        from diffjax.cli.images import pillow

        Image = pillow()
        height, width = orchard.scaled(crop.shape, int(rng.integers(16, 52)))
        return np.asarray(Image.fromarray(np.ascontiguousarray(crop)).resize((width, height), Image.Resampling.LANCZOS))

    crops = [[small(crop) for crop, _ in orchard.cut(x)] for x in (fruits.train, fruits.test)]
    train, test = (seen(some) for some in crops)
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    labels = jnp.asarray(fruits.train_labels)

    def loss(w):
        logits = jnp.asarray((train - mean) / deviation) @ w[:-1] + w[-1]
        nll = -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
        return nll.mean() + 1e-3 * jnp.sum(w[:-1] ** 2)

    step = jax.jit(lambda w: w - 0.05 * jax.grad(loss)(w))
    w = jnp.zeros((train.shape[1] + 1, 3))
    for _ in range(500):
        w = step(w)
    say = lambda f: np.argmax((f - mean) / deviation @ np.asarray(w[:-1]) + np.asarray(w[-1]), 1)
    accuracy = float(np.mean(say(test) == fruits.test_labels))
    print(f"classifier: {accuracy:.3f} on crops of held-out varieties", flush=True)
    return lambda some: (say(seen(some)) + 1).tolist() if some else [], round(accuracy, 3)


# --- what the prior draws ---------------------------------------------------------------------------------------------


def to_pictures(x):
    return np.rint((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def through(prior, x):
    import jax

    run = jax.jit(jax.vmap(lambda auto, x: auto.decode(auto.encode(x)), (None, 0)))
    return np.concatenate([to_pictures(run(prior.autoencoder, quality.to_float(x[n : n + 50]))) for n in range(0, len(x), 50)])


if __name__ == "__main__":
    sys.exit(run(main))
