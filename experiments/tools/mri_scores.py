"""What a restored volume is worth: scores of ``experiments.mri_sr evaluate``, and the methods compared."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax.methods import partdiff
from diffjax.training import state as states
from diffjax.training.checkpoints import Checkpoints
from diffjax.volumes import THROUGH_PLANE, Coarse, Enlarger, How, superresolve

from . import mri

BLOCK = (32, 40, 28)  # every hippocampus contains one; the middle of it is tested, so that one program serves all
NOISE = 0.02  # of the data step, in [-1, 1]: slices are held nearly exactly


@dataclass(frozen=True)
class Way:
    """network: whose weights; how: the walk (None: one call); samples: whose mean is taken; calls: of the network for each cut
    and stack."""

    network: str | None
    how: How | None = None
    samples: int = 1

    def calls(self, plane):
        stacks = 2 if plane == THROUGH_PLANE and self.how is not None and self.how.orientations is None else 1
        return 0 if self.network is None else 1 if self.how is None else self.how.steps * stacks * self.samples


def ancestral(K, steps=None, **more):
    return How(K, steps or K, 1, eta=1.0, **more)


DDIM = {n: How(25, n, 1) for n in (3, 5, 10)}
DIFFPIR = {n: How(25, n, 1, NOISE) for n in (3, 5, 10)}
WAYS = {
    "bicubic": Way(None),
    "regression": Way("regression"),
    "SR3, T = 100": Way("sr3", ancestral(mri.T)),
    **{f"PartDiff, K = {K}": Way(f"partdiff{K}", ancestral(K)) for K in (50, 25)},
    **{f"PartDiff, K = 25, started at {t}": Way("partdiff25", ancestral(t)) for t in (10, 5)},
    "SR3, 25 steps": Way("sr3", ancestral(mri.T, 25)),
    "SR3, DDIM 5": Way("sr3", How(mri.T, 5, 1)),
    **{f"SR3, late start at {K}": Way("sr3", ancestral(K)) for K in (25, 10, 5)},
    "PartDiff, K = 50, DDIM 5": Way("partdiff50", How(50, 5, 1)),
    **{f"PartDiff, K = 25, DDIM {n}": Way("partdiff25", how) for n, how in DDIM.items()},
    **{f"PartDiff, K = 25, DiffPIR {n}": Way("partdiff25", how) for n, how in DIFFPIR.items()},
    "PartDiff, K = 25, DiffPIR 5, two stacks": Way("partdiff25", How(25, 5, None, NOISE)),
    "PartDiff, K = 25, DDIM 5, mean of 4": Way("partdiff25", DDIM[5], 4),
    **{f"PartDiff, K = {K}, drift": Way(f"partdiff{K}", ancestral(K, move="drift")) for K in (50, 25)},
    "PartDiff, K = 25, DDIM 5, drift": Way("partdiff25", How(25, 5, 1, move="drift")),
}  # in the order of the tables
CHEAP_FIRST = sorted(WAYS, key=lambda name: WAYS[name].calls(THROUGH_PLANE))


def block(x):
    """The middle of a volume."""
    starts = [(n - m) // 2 for n, m in zip(x.shape, BLOCK)]
    return x[tuple(slice(s, s + m) for s, m in zip(starts, BLOCK))]


@functools.cache
def weights(folder, name):
    """(averaged parameters of the last checkpoint, its step)."""
    with Checkpoints(Path(folder) / name, read_only=True) as store:
        found, step = store.read("ema", "last")
    return found[states.ONLY], step


@functools.cache
def enlarger(folder, name):
    K = mri.NETWORKS[name]
    return Enlarger(weights(folder, name)[0], mri.network(), mri.schedule(), None if K is None else float(K))


@functools.cache
def _regression():
    net = mri.network()
    return jax.jit(lambda params, cuts: mri.regress(net, params, cuts))


def restored(way: Way, folder, coarse: Coarse, measured, seed):
    """(X, Y, Z) of the coarse volume."""
    if way.network is None:
        return coarse.enlarge(measured)
    if way.how is not None:
        key = jax.random.key(seed)
        return np.mean(list(superresolve(enlarger(folder, way.network), coarse, measured, key, way.how, way.samples)), 0)
    cuts = dj.volumes.cuts_of(coarse)[0]
    stack = cuts.of(coarse.enlarge(measured))
    pads = [(0, 0), *((0, -n % 4) for n in stack.shape[1:])]
    made = _regression()(weights(folder, way.network)[0], np.pad(stack, pads, "symmetric")[..., None])
    return cuts.volume(np.asarray(made)[:, : stack.shape[1], : stack.shape[2], 0])


@jax.jit
def _ssim(x, y):
    """Of intensities from 0 on, as the papers' pixels: about 0, the means that it compares would mean nothing."""
    slices = lambda a, axis: jnp.moveaxis(a + 1, axis, 0)[..., None]
    return jnp.concatenate([jax.vmap(dj.metrics.ssim)(slices(x, n), slices(y, n)) for n in range(3)]).mean()


def scores(x, truth, low, coarse) -> dict:
    """PSNR (range 2), SSIM (mean over all slices of the three directions), how much there is of the detail that ``low`` lacks
    and how much neighbouring cuts differ, both relative to the truth: a draw from the posterior has 1, its mean less."""
    x = np.clip(x, -1, 1).astype(np.float32)
    axis = dj.volumes.cuts_of(coarse)[0].order[0]
    between = lambda v: float(np.abs(np.diff(v, axis=axis)).mean())
    added = lambda v: float(np.sqrt(np.mean((v - low) ** 2)))
    return {"psnr": float(-10 * np.log10(np.mean((x - truth) ** 2) / 4)), "ssim": float(_ssim(x, truth)),
            "detail": added(x) / added(truth), "between": between(x) / between(truth)}  # fmt: skip


def rules(volumes) -> dict:
    """{degradation: t} where the rule of ``methods.partdiff.start_time`` starts, by its default, from the distance between
    high and low of ``volumes``."""
    found = {}
    for plane, factor in mri.DEGRADATIONS:
        coarse = Coarse(plane, factor, 2)
        distances = [np.mean((coarse.enlarge(coarse(v)) - v) ** 2) for v in volumes]
        lacking = 1 - 1 / factor ** len(coarse.axes)
        found[f"{plane} x{factor}"] = float(partdiff.start_time(mri.schedule(), np.sqrt(np.mean(distances) / lacking)))
    return found


def cell(way: Way, folder, plane, factor, tests: dict, known=None, seed=0) -> dict:
    """Scores of each test volume, in order; those in ``known``, a cell of the first of them, are not computed again."""
    coarse, rows, seconds = Coarse(plane, factor, 2), [], []
    known = known or {}
    for n, truth in list(enumerate(tests.values()))[len(known.get("psnr", ())) :]:
        measured = coarse(truth)
        begun = time.process_time()
        x = restored(way, folder, coarse, measured, 1000 * seed + n)
        seconds.append(time.process_time() - begun)
        rows.append(scores(x, truth, np.clip(coarse.enlarge(measured), -1, 1), coarse))
    found = {key: [*known.get(key, ()), *(round(row[key], 5) for row in rows)] for key in rows[0]}
    step = 0 if way.network is None else weights(folder, way.network)[1]
    took = known.get("seconds", round(float(np.median(seconds[1:] or seconds)), 3))
    return found | {"network_calls": way.calls(plane), "seconds": took, "checkpoint": step}


def first(c, n):
    """The cell of the first n volumes."""
    return {key: value[:n] if isinstance(value, list) else value for key, value in c.items()}
