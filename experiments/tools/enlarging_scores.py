"""Scores of ``experiments.downstream``: what enlarged garments are taken for, and what becomes of the colours of fruits."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import jax
import numpy as np

import diffjax as dj
from diffjax import timetables, zoo
from diffjax.methods import DDNM, PartDiff
from diffjax.training import data

from . import enlarging
from .comparisons import difference
from .enlarging import NETWORKS, T
from .scores import score
from .study import PAPER, grid

CHUNK = 32  # images of one call of a program
SHOWN, PERCEPTUAL = 8, 128  # pictures of a cell that are kept; images with an lpips


@dataclass(frozen=True)
class Way:
    """network: whose weights (None: none); calls: of it; eta: 1 ancestral, 0 DDIM; then what is done otherwise.

    start:  "noise", or "low": the enlarged picture, noised to the first time
    clamp:  whether the network's estimate of the picture is clamped to [-1, 1] in each step, as SR3's is
    late:   the first time, where it is not the one that the network was trained for
    move:   of PartDiff; data: the data step of DDNM in each step; last: y is put right in the result alone
    """

    network: str | None
    calls: int = 0
    eta: float = 1.0
    start: str = "noise"
    move: str = "trained"
    data: bool = False
    last: bool = False
    late: int | None = None
    clamp: bool = True

    @property
    def first(self):
        """The time that the walk starts from."""
        return self.late or min(NETWORKS[self.network], T)


GARMENTS = {
    "bicubic": Way(None),
    "regression": Way("regression", 1),
    "SR3, T = 100": Way("sr3", 100),
    "SR3, DDIM 25": Way("sr3", 25, 0.0),
    "SR3, DDIM 10": Way("sr3", 10, 0.0),
    "SR3, DDIM 25, DDNM's data step": Way("sr3", 25, 0.0, data=True),
    "SR3, DDIM 25, not clamped": Way("sr3", 25, 0.0, clamp=False),
    "SR3, late start at 25": Way("sr3", 25, start="low", late=25),
    "SR3, late start at 10": Way("sr3", 10, start="low", late=10),
    "PartDiff, K = 50": Way("partdiff50", 50, start="low"),
    "PartDiff, K = 25": Way("partdiff25", 25, start="low"),
    "PartDiff, K = 10": Way("partdiff10", 10, start="low"),
    "PartDiff, K = 25, drift": Way("partdiff25", 25, start="low", move="drift"),
}
FRUITS = {
    "bicubic": Way(None),
    "SR3, T = 100": Way("sr3", 100),
    "SR3, DDIM 25": Way("sr3", 25, 0.0),
    "SR3, DDIM 25, from y at T": Way("sr3", 25, 0.0, start="low"),
    "SR3, T = 100, y put right at the end": Way("sr3", 100, last=True),
    "SR3, DDIM 25, DDNM's data step": Way("sr3", 25, 0.0, data=True),
}
WAYS = {"fashion": GARMENTS, "fruits": FRUITS}


# --- walks ----------------------------------------------------------------------------------------------------------


@functools.cache
def sampler(net, move="trained", data_step=False, clamp=True):
    """(params, keys, lows, ys, starts, K, eta, padded table, rows) -> pictures. All but the number of pictures is traced: one
    program walks SR3 and PartDiff, for any K and any number of steps."""

    def one(params, key, low, y, x, K, eta, table, rows):
        denoise = dj.denoisers.from_sr3(net.apply, params, enlarging.schedule(), low, clip=1.0 if clamp else None)
        if data_step:
            method = DDNM(denoise, dj.Measurement(y, dj.operators.Resize(enlarging.FACTOR)))
        elif move != "trained":
            method = PartDiff(denoise, low, K, move=move, guess=low, bounds=(-1.0, 1.0))
        else:
            method = denoise  # PartDiff read literally is its network's own walk from x_K
        return dj.sample(key, method, table, x, kernel=dj.kernels.DDIM(eta=eta), part=(0, rows)).x

    return jax.jit(jax.vmap(one, (None, 0, 0, 0, 0, None, None, None, None)))


@functools.cache
def regression(net):
    return jax.jit(lambda params, lows: enlarging.regress(net, params, lows))


def table_of(way):
    """Equal steps from the way's first time, padded to T rows."""
    times = np.linspace(way.first, 0, way.calls + 1)
    return timetables.padded(timetables.from_times(times, enlarging.schedule()), T)


@jax.jit
def seen(highs):
    """(ys, lows) of pictures (N, H, W, C)."""
    return enlarging.measured(highs), enlarging.enlarged(highs)


def pieces(count, size=CHUNK):
    """Rows of each chunk; the last is filled up, so that all are one program."""
    return [np.minimum(np.arange(n, n + size), count - 1) for n in range(0, count, size)]


def restored(study, way: Way, folder, highs, seed=0):
    """(pictures, seconds of a core for one of them) of ``highs`` (N, H, W, C) reduced by 4."""
    ys, lows = (np.asarray(a) for a in seen(highs))
    if way.network is None:
        return lows, 0.0
    net, (params, _) = study.network(), enlarging.weights(folder, way.network)
    keys = jax.random.split(jax.random.key(seed), len(highs))
    if way.calls == 1:
        walk, given = regression(net), lambda rows: (params, lows[rows])
        walk(*given(pieces(len(highs))[0]))
    else:
        table, program = table_of(way), sampler(net, way.move, way.data, way.clamp)
        x = np.asarray(jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 1), highs.shape[1:]))(keys))
        if way.start == "low":
            x = np.asarray(dj.process.q_sample(enlarging.schedule(), lows, float(way.first), x), np.float32)
        K, eta = np.float32(NETWORKS[way.network]), np.float32(way.eta)
        given = lambda rows, n=way.calls: (params, keys[rows], lows[rows], ys[rows], x[rows], K, eta, table, n)
        walk = program
        jax.block_until_ready(walk(*given(pieces(len(highs))[0], 0)))  # compiled, and not a step walked
    begun, found = time.process_time(), []
    for rows in pieces(len(highs)):
        found.append(np.asarray(walk(*given(rows))))
    seconds = (time.process_time() - begun) / (len(found) * CHUNK)
    x = np.concatenate(found)[: len(highs)]
    if way.last:
        A = dj.operators.Resize(enlarging.FACTOR)
        x = np.asarray(x - A.pinv(A(x) - ys))
    return x, seconds


# --- garments -------------------------------------------------------------------------------------------------------


@functools.cache
def classifier():
    given = zoo.fashion_classifier()
    return jax.jit(lambda x: jax.lax.map(lambda one: given(one)[1], x[:, 2:30, 2:30]))  # the 28 x 28 that were padded


def garments(x, highs, labels):
    """A cell of pictures x: one number for each image."""
    logits = np.asarray(classifier()(x))
    part = slice(0, PERCEPTUAL)
    return {
        "right": (logits.argmax(-1) == labels).astype(int).tolist(),
        "psnr": score("psnr", x, highs).round(2).tolist(),
        "ssim": score("ssim", x, highs).round(3).tolist(),
        "lpips": score("lpips", x[part], highs[part]).round(4).tolist(),
        "shift": shift_of(x, highs).round(3).tolist(),
    }


def cell(study, way, folder, highs, labels=None, seed=0):
    raw, seconds = restored(study, way, folder, highs, seed)
    x = np.clip(raw, -1, 1)
    found = colours(x, highs) if labels is None else garments(x, highs, labels)
    shown = np.rint((x[:SHOWN] + 1) * 127.5).astype(int).tolist()
    found["raw"] = shift_of(raw, highs).round(3).tolist()
    return found | {"network_calls": way.calls, "seconds": round(seconds, 4), "shown": shown}


def share(right):
    """Per cent, and the standard error over the images."""
    p = float(np.mean(right))
    return f"{100 * p:.1f} ± {100 * np.sqrt(p * (1 - p) / len(right)):.1f}"


def garment_rows(cells):
    base = cells.get("SR3, T = 100")
    rows = [{"method": "originals", "accuracy, %": share(cells["originals"]["right"])}] if "originals" in cells else []
    for name in GARMENTS:
        if name not in cells:
            continue
        c = cells[name]
        row = {"method": name, "accuracy, %": share(c["right"])}
        if base is not None and c is not base:
            row["from SR3, %"] = difference(100 * np.array(c["right"]), 100 * np.array(base["right"]), "+.1f")
        rows.append(row | {"PSNR": float(np.mean(c["psnr"])), "SSIM": float(np.mean(c["ssim"])),
                           "lpips@64": float(np.mean(c["lpips"])), "network calls": c["network_calls"],
                           "seconds of a core": c["seconds"]})  # fmt: skip
    return rows


# --- inference schedules --------------------------------------------------------------------------------------------


@functools.cache
def schedule_sweep(net, steps):
    """(params, beta_min (n,), beta_max (n,), keys, lows, noises) -> pictures (n, N, H, W, C): walks on n inference schedules
    of ``steps`` steps, of which training knew nothing, in one program."""
    table = timetables.from_times(np.arange(steps, -1, -1))

    def one(params, low_beta, high_beta, key, low, x):
        chosen = dj.schedules.discrete(dj.schedules.sr3_betas(steps, low_beta, high_beta))
        denoise = dj.denoisers.from_sr3(net.apply, params, chosen, low)
        return dj.sample(key, denoise, table, x, kernel=dj.kernels.DDPM()).x

    over_images = jax.vmap(one, (None, None, None, 0, 0, 0))
    return jax.jit(lambda params, a, b, *given: jax.lax.map(lambda ab: over_images(params, *ab, *given), (a, b)))


SWEEP = {"steps": 20, "beta_min": (1e-4, 0.1), "beta_max": (0.35, 0.5, 0.65), "images": 64}


def swept(study, folder, highs, labels, seed=0):
    """Rows of the grid search over inference schedules."""
    lows = np.asarray(seen(highs)[1])
    a, b = (np.float32(m.ravel()) for m in np.meshgrid(SWEEP["beta_min"], SWEEP["beta_max"], indexing="ij"))
    keys = jax.random.split(jax.random.key(seed), len(highs))
    noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 1), highs.shape[1:]))(keys)
    net = study.network()
    x = np.clip(schedule_sweep(net, SWEEP["steps"])(enlarging.weights(folder, "sr3")[0], a, b, keys, lows, noise), -1, 1)
    rows = []
    for low_beta, high_beta, one in zip(a, b, x):
        last = float(np.sqrt(np.prod(1 - np.linspace(low_beta, high_beta, SWEEP["steps"]))))
        c = garments(one, highs, labels)
        rows.append({"first beta": float(low_beta), "last beta": float(high_beta), "signal left": last,
                     "accuracy, %": share(c["right"]), "PSNR": float(np.mean(c["psnr"])),
                     "lpips@64": float(np.mean(c["lpips"]))})  # fmt: skip
    return rows


# --- colours --------------------------------------------------------------------------------------------------------


def shift_of(x, highs):
    """(N, C): the mean of each channel of a picture less that of the truth, in grey levels."""
    return 127.5 * (np.asarray(x, np.float64) - highs).mean((1, 2))


def colours(x, highs):
    """A cell of pictures x of fruits."""
    part = slice(0, PERCEPTUAL)
    return {"shift": shift_of(x, highs).round(3).tolist(), "psnr": score("psnr", x, highs).round(2).tolist(),
            "lpips": score("lpips", x[part], highs[part]).round(4).tolist()}  # fmt: skip


def shifts(shift):
    """Of shifts (N, C): the mean of each channel with its standard error, the spread over images, and how large one is."""
    shift = np.asarray(shift)
    names = ("red", "green", "blue") if shift.shape[1] == 3 else ("grey",)
    row = {n: f"{m:+.2f} ± {s:.2f}" for n, m, s in zip(names, shift.mean(0), shift.std(0, ddof=1) / np.sqrt(len(shift)))}
    return row | {"spread": float(shift.std(0, ddof=1).mean()), "largest mean": float(np.abs(shift.mean(0)).max()),
                  "one image": float(np.abs(shift).mean())}  # fmt: skip


def before(cell):
    """The largest mean of a channel before the result was clamped; None where a walk ends clamped anyway."""
    return float(np.abs(np.mean(cell["raw"], 0)).max()) if "raw" in cell else None


def colour_rows(study, cells):
    return [{"method": name, **shifts(cells[name]["shift"]), "mean before the last clamp": before(cells[name]),
             "PSNR": float(np.mean(cells[name]["psnr"])),
             "network calls": cells[name]["network_calls"]} for name in WAYS[study] if name in cells]  # fmt: skip


LEVELS = (1, 10, 25, 50, 75, 90, 100)


def by_level(study, folder, highs, seed=0):
    """Rows: what one call makes of the true latent at t: the shift of its estimate of the picture, unclamped and clamped, and
    the mean of its noise less the true one, which sigma / alpha magnifies."""
    table, net = enlarging.schedule(), study.network()
    params, lows = enlarging.weights(folder, "sr3")[0], np.asarray(seen(highs)[1])
    noise = np.asarray(jax.random.normal(jax.random.key(seed), highs.shape))
    free = lambda params, low, x, t: dj.denoisers.from_sr3(net.apply, params, table, low, clip=None)(x, t)
    ask = jax.jit(jax.vmap(free, (None, 0, 0, None)))
    rows = []
    for t in LEVELS:
        x_t = np.asarray(dj.process.q_sample(table, highs, float(t), noise), np.float32)
        alpha, sigma = float(table.alpha(t)), float(table.sigma(t))
        found = [jax.device_get(ask(params, lows[r], x_t[r], np.float32(t))) for r in pieces(len(highs))]
        x0 = np.concatenate([p.x0 for p in found])[: len(highs)]
        raw, clamped = shift_of(x0, highs), shift_of(np.clip(x0, -1, 1), highs)
        error = raw / 127.5 * -alpha / sigma
        rows.append({"t": t, "sigma / alpha": sigma / alpha, "mean error of eps": float(np.abs(error.mean(0)).max()),
                     "shift, unclamped": float(np.abs(raw.mean(0)).max()), "spread, unclamped": float(raw.std(0).mean()),
                     "shift": float(np.abs(clamped.mean(0)).max()), "spread": float(clamped.std(0).mean())})  # fmt: skip
    return rows


def page(shown, tests, path):
    """PNG of the first pictures of each cell, shown = {study: {way: bytes}}: garments, below them fruits, a column for each
    way. tests: {study: pictures}."""
    from PIL import Image

    columns = []
    for study, of in shown.items():
        few = tests[study][:SHOWN]
        small = np.repeat(np.repeat(np.asarray(seen(few)[0]), enlarging.FACTOR, 1), enlarging.FACTOR, 2)
        pages = [("reduced by 4", list(np.clip(small, -1, 1)))]
        pages += [(name, list(data.scale(np.array(of[name], np.uint8)))) for name in WAYS[study] if name in of]
        grid([*pages, ("truth", list(few))], path)
        with Image.open(path) as made:
            columns.append(made.convert("RGB"))
    both = Image.new("RGB", (max(p.width for p in columns), sum(p.height for p in columns)), PAPER)
    for n, one in enumerate(columns):
        both.paste(one, (0, sum(p.height for p in columns[:n])))
    both.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
