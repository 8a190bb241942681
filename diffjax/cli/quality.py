"""How good a prior is: held-out loss, distances of its samples to real images, and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from . import figures
from .errors import UserError
from .progress import Progress

SCALES = (1.0, 2.0, 4.0)
MOST = 2000  # training images that samples are compared with
BLOCKS = 32  # of test images, left out in turn, where the data does not say which belong together
QUANTILES = (0.01, 0.1, 0.9, 0.99)


def block(prior):
    """-> (what measures it, its number of samples): a classifier where there is one, else AlexNet, which wants colour."""
    if prior.image_shape == (32, 32, 1) and prior.classes == 10:
        return by_classifier, 5000
    if prior.image_shape[-1] == 3:
        return by_neighbours, 1000
    raise UserError(
        f"prior {prior.name} has images {prior.image_shape} and {prior.classes} classes: only priors of Fashion-MNIST, "
        "(32, 32, 1) and 10, and colour priors can be measured"
    )


def source(prior, given) -> str:
    path = given or prior.card["config"].get("data", "")
    if not path:
        raise UserError(f"prior {prior.name} does not say what it was trained on: give --data")
    if "fruits" in path and not Path(path).exists():
        raise UserError(f"data {path} does not exist: experiments/fruits.py of the repository makes it, or give --data")
    return path


# --- the blocks: (prior, images, draw(labels, scale), options) -> (entries of the card, {file: write(path)}) ---------


def by_classifier(prior, images, draw, o):
    from .. import metrics

    classify = classifier()
    truth, _ = classify(images.test)
    order = np.random.default_rng(0).permutation(len(truth))
    halves = metrics.frechet_distance(truth[order[::2]], truth[order[1::2]])  # the yardstick: two real halves
    labels = np.arange(o.samples) % 10
    samples = draw(labels)
    features, said = classify(samples)
    distance = metrics.frechet_distance(features, truth)
    print(f"frechet {distance:.2f} ({o.samples} samples, {len(truth)} test images; two real halves {halves:.2f})", flush=True)
    first = slice(0, min(o.guided, o.samples))
    accuracy = {1.0: float(np.mean(said[first] == labels[first]))} if o.guided else {}
    for scale in SCALES[1:] if o.guided else ():
        wanted = np.arange(o.guided) % 10
        _, said = classify(draw(wanted, scale))
        accuracy[scale] = float(np.mean(said == wanted))
    rows = [samples[np.flatnonzero(labels == k)[:10]] for k in range(10)]
    grid = lambda path: figures.sample_grid([to_float(x) for row in rows for x in row], path, columns=10)
    return {
        "frechet": round(distance, 3),
        "frechet_is": f"Frechet distance of {o.samples} samples to the {len(truth)} test images, 28x28, 8 bits, in the 64 "
                      "fc1 features of zoo.fashion_classifier; lower is better, not comparable with FID",
        "frechet_real_halves": round(halves, 3),
        **neighbourhood(features, truth, order),
        **reconstructions(prior, images.test, lambda x: classify(x)[0]),
        "accuracy": {f"scale {k:g}": v for k, v in accuracy.items()},
        "accuracy_is": f"share of {o.guided} samples, labels uniform, that the classifier gives their label "
                       "(real test images: 0.914)",
    }, {"samples.png": grid}  # fmt: skip


def by_neighbours(prior, images, draw, o):
    from .. import metrics

    if 0 < o.guided < 100:
        raise UserError(f"--guided {o.guided} is too few for a kernel distance: give 100 or more, or 0 for none")
    features = alexnet()
    real = images.train[np.random.default_rng(0).permutation(len(images.train))[:MOST]]
    test, train = features(images.test), features(real)
    order = np.random.default_rng(0).permutation(len(images.test))
    told = np.zeros(len(order), int) if images.test_labels is None else images.test_labels
    wanted = lambda count: rows_of(told, order[np.arange(count) % len(order)])  # the classes as often as in the test
    samples = {1.0: draw(wanted(o.samples))}
    for scale in SCALES[1:] if o.guided and prior.null is not None else ():
        samples[scale] = draw(wanted(o.guided), scale)
    varieties = groups(o.data, len(test))
    kid = {f"scale {scale:g}": features(x) for scale, x in samples.items()} | {"training images": train}
    near_train = {name: neighbourhood(f, train, np.random.default_rng(0).permutation(len(train)), compare=True)
                  for name, f in {**kid, "test images": test}.items() if name != "training images"}  # fmt: skip
    error = {name: jackknife(lambda kept, f=f: metrics.kernel_distance(f, test[kept]), varieties) for name, f in kid.items()}
    kid = {name: metrics.kernel_distance(f, test) for name, f in kid.items()}
    print("kernel distance: " + ", ".join(f"{name} {kid[name]:.1f} +- {error[name]:.1f}" for name in kid), flush=True)

    flat = lambda x: x.reshape(len(x), -1)
    known = np.concatenate([real, real[:, :, ::-1]])
    many = f"{len(real)} training images" + f" (of {len(images.train)})" * (len(real) < len(images.train))
    distance, neighbour = metrics.nearest(flat(samples[1.0]), flat(known))
    near = {
        "samples": distance,
        "test images": metrics.nearest(flat(images.test), flat(known))[0],
        "training images, to another one": metrics.nearest(flat(real), flat(real), same=True)[0],
    }

    def grid(path):
        if not prior.classes:
            return figures.grid(*told_grid(prior, samples, wanted, path))
        names = prior.class_names or range(prior.classes)
        columns = []
        for scale, x in samples.items():
            labels = wanted(len(x))
            four = [to_float(x[np.resize(np.flatnonzero(labels == k), 8)].reshape(4, 2, *prior.image_shape))
                    for k in range(prior.classes)]  # fmt: skip
            columns += [(f"scale {scale:g}", [image for x in four for image in x[c]]) for c in range(4)]
        figures.grid(columns, path, [str(name) for name in names for _ in range(2)])

    def pairs(path):
        chosen = np.argsort(distance)[np.linspace(0, o.samples - 1, 12).round().astype(int)]
        columns = [(f"{distance[n]:.0f} levels", [to_float(samples[1.0][n]), to_float(known[neighbour[n]])]) for n in chosen]
        figures.grid(columns, path, ["sample", "nearest training image"])

    return {
        "kernel_distance": {name: round(v, 3) for name, v in kid.items()},
        "kernel_distance_error": {name: round(v, 3) for name, v in error.items()},
        "kernel_distance_is": f"KID (unbiased squared MMD, cubic kernel, all pairs) of {o.samples} samples"
                              f"{f' ({o.guided} at other guidance scales)' * (o.guided > 0)} to the"
                              f" {len(test)} test images, 8 bits, in the 1152"
                              " channels after AlexNet's five ReLUs (LPIPS weights, images enlarged to 64), averaged over"
                              f" positions; lower is better; error: one standard error, by leaving out each of the"
                              f" {len(np.unique(varieties))} groups of test images (varieties) in turn",
        "frechet": {name: values["frechet"] for name, values in near_train.items()},
        "precision": {name: values["precision"] for name, values in near_train.items()},
        "recall": {name: values["recall"] for name, values in near_train.items()},
        "precision_is": "Frechet distance, precision and recall (Kynkaanniemi et al. 2019, k = 3), in the same features, of"
                        f" these to the {many}; of both sets as many as the smaller one has",
        **reconstructions(prior, images.test, features),
        "nearest_training_image": {name: summary(d) for name, d in near.items()},
        "nearest_is": f"RMSE in grey levels (0 to 255) to the nearest of the {many} and their"
                      " mirror images, guidance scale 1 (of training images: to another one, not mirrored); nearest.png"
                      " shows samples from the nearest to the farthest",
    }, {"samples.png": grid, "nearest.png": pairs}  # fmt: skip


def rows_of(tree, rows):
    """Rows of a label's array, or of all arrays of a condition."""
    return {name: a[rows] for name, a in tree.items()} if isinstance(tree, dict) else tree[rows]


def neighbourhood(features, real, order, compare=False) -> dict:
    """Precision and recall of feature sets, of both as many as the smaller has; compare: with the Frechet distance."""
    from .. import metrics

    count = min(len(features), len(real))
    precision, recall = metrics.precision_recall(real[order[:count]], features[:count])
    found = {"precision": round(precision, 4), "recall": round(recall, 4)}
    if not compare:
        return found | {"precision_is": f"Kynkaanniemi et al. 2019, k = 3, {count} samples and test images, the same features"}
    return {"frechet": round(metrics.frechet_distance(features[:count], real[order[:count]]), 3)} | found


def reconstructions(prior, test, features, most=500) -> dict:
    """How well a latent prior's autoencoder gives back test images (uint8); {} of a prior of pixels."""
    if prior.autoencoder is None:
        return {}
    import jax
    import jax.numpy as jnp

    from .. import metrics

    def one(autoencoder, x):
        back = jnp.clip(autoencoder.decode(autoencoder.encode(x)), -1, 1)
        return jnp.round((back + 1) * 127.5), metrics.psnr(back, x)

    run = jax.jit(jax.vmap(one, (None, 0)))
    x, batch = test[:most], min(64, len(test))
    parts = [run(prior.autoencoder, to_float(x[np.arange(n, n + batch) % len(x)])) for n in range(0, len(x), batch)]
    back, psnr = (np.concatenate([np.asarray(part[i]) for part in parts])[: len(x)] for i in (0, 1))
    mine, real = features(back.astype(np.uint8)), features(x)
    return {"autoencoder": {
        "psnr": round(float(psnr.mean()), 3), "frechet": round(metrics.frechet_distance(mine, real), 3),
        "kernel_distance": round(metrics.kernel_distance(mine, real), 4),
        "is": f"of {len(x)} test images and their reconstructions: PSNR in dB, distances in the same features",
    }}  # fmt: skip


def told_grid(prior, samples, wanted, path, rows=8):
    """Arguments of ``figures.grid`` for a picture of samples of a prior that is told more than a label, or nothing."""
    columns = [(f"scale {scale:g}", [to_float(image) for image in x[:rows]]) for scale, x in samples.items()]
    if not prior.conditional or "vocabulary" not in prior.card:
        return columns, path
    told = wanted(rows)
    return (
        columns,
        path,
        [prior.vocabulary.text(tokens) or "boxes alone" for tokens in told["tokens"]] if "tokens" in told else None,
    )


def groups(path, count) -> np.ndarray:
    """Which test images belong together, (count,): those of one variety where the data says so, else blocks."""
    if Path(path).suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            if "variety_test" in archive.files:
                return archive["variety_test"]
    return np.arange(count) % BLOCKS


def jackknife(statistic, groups) -> float:
    """Standard error of ``statistic(kept)``, kept: a mask over the images, when whole groups are drawn."""
    values = np.array([statistic(groups != g) for g in np.unique(groups)])
    return float(np.sqrt((len(values) - 1) * np.var(values)))


def summary(distances) -> dict:
    return {"median": round(float(np.median(distances)), 2),
            **{f"quantile {q:g}": round(float(np.quantile(distances, q)), 2) for q in QUANTILES}}  # fmt: skip


def to_float(x):
    return x.astype(np.float32) / 127.5 - 1


# --- what they need -----------------------------------------------------------------------------------------------


def sampler(prior, kernel, table, o, guided):
    """-> f(labels (N,) or conditions, scale=1, params=the prior's) -> uint8 (N, H, W, C), a sample of each; compiled once for
    all scales and parameters."""
    import jax
    import jax.numpy as jnp

    from .. import parallel
    from ..base import replace
    from ..sample import sample

    mesh = parallel.mesh()

    def one(leaves, key, label, scale):
        now = replace(prior, params=leaves[0], autoencoder=leaves[1])
        denoise = now.denoiser(label if prior.classes or prior.conditional else None, scale if guided else 1.0)
        x = now.decode(sample(key, denoise, table, prior.shape, kernel=kernel, remat="none").x)
        return jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5)

    program = parallel.shard(one, mesh, in_axes=(None, 0, 0, None))

    def draw(labels, scale=1.0, params=prior.params):
        total = len(jax.tree.leaves(labels)[0])
        batch = min(o.batch, total)
        batch += -batch % mesh.devices.size
        keys = jax.random.split(jax.random.fold_in(jax.random.key(o.seed), round(100 * scale)), total)
        found = []
        with Progress(total, label=f"sampling at scale {scale:g}", unit="samples") as bar:
            for start in range(0, total, batch):
                at = np.arange(start, start + batch) % total  # the last batch is filled up: one compile
                told = jax.tree.map(
                    lambda a: jnp.asarray(a if a.dtype.kind == "f" else a.astype(np.int32)), rows_of(labels, at)
                )
                x = program((params, prior.autoencoder), keys[at], told, jnp.float32(scale))
                found.append(np.asarray(x).astype(np.uint8))
                bar.update(min(start + batch, total))
        return np.concatenate(found)[:total]

    return draw


def classifier():
    """-> f(uint8 (N, 32, 32, 1)) -> (features (N, 64), classes (N,)), the padding cropped."""
    import jax

    from .. import zoo

    network = jax.jit(jax.vmap(zoo.fashion_classifier()))

    def classify(x):
        parts = [network(x[n : n + 500, 2:30, 2:30].astype(np.float32) / 127.5 - 1) for n in range(0, len(x), 500)]
        features, logits = (np.concatenate([np.asarray(p[k]) for p in parts]) for k in (0, 1))
        return features, logits.argmax(-1)

    return classify


def alexnet():
    """-> f(uint8 (N, H, W, 3)) -> features (N, 1152)."""
    import jax

    from .. import metrics, zoo

    weights = zoo.lpips_weights()
    network = jax.jit(jax.vmap(metrics.alexnet_features, (0, None)))

    def features(x):
        at = np.arange(-(-len(x) // 128) * 128).reshape(-1, 128) % len(x)  # the last batch is filled up: one compile
        return np.concatenate([np.asarray(network(to_float(x[rows]), weights)) for rows in at])[: len(x)]

    return features


def held_out_loss(prior, images, most=1000):
    """The training loss at ``step.LEVELS``, of at most so many test images, and their number."""
    from ..training import latents, step

    _, split = step.shardings()
    options = {} if prior.autoencoder is None else {"decode": latents.decode}
    example = step.example_loss(prior.net, prior.schedule, step.LOSSES[prior.loss], time=prior.time, **options)
    run = step.held_out(example, prior.schedule, sharded=split)
    count = min(most, len(images.test))
    count -= count % len(split.device_set)
    examples = images.examples("test", slice(count))
    if prior.autoencoder is not None:
        examples["x"] = moments(prior.autoencoder, examples["x"])
    if not (prior.classes or prior.conditional):
        examples.pop("cond", None)
    return [round(float(v), 5) for v in run(prior.params, examples)["loss"]], count


def moments(autoencoder, x, batch=64) -> dict:
    """{"mean", "logvar"} of z of images (uint8), as ``training.latents.decode`` draws from them."""
    import jax

    run = jax.jit(lambda autoencoder, x: autoencoder.moments(x))
    parts = [run(autoencoder, to_float(x[np.arange(n, n + batch) % len(x)])) for n in range(0, len(x), batch)]
    found = [None if part[0] is None else np.concatenate(part)[: len(x)] for part in zip(*parts)]
    return {name: a for name, a in zip(("mean", "logvar"), found) if a is not None}


def record(folder, quality, pictures, zoo):
    """Put the quality into the folder's card (or, where there is none, into quality.json) and the pictures beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in pictures.items():
        write(folder / name)
    card = folder / zoo.prior.CARD
    if card.is_file():
        zoo.prior.write_card(folder, {**json.loads(card.read_text(encoding="utf-8")), "quality": quality})
        return card
    (folder / "quality.json").write_text(json.dumps(quality, indent=1) + "\n")
    return folder / "quality.json"
