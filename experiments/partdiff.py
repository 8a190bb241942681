"""Late starts for super-resolution: ``python -m experiments.partdiff``. What a start at K buys, and what alignment leaves.

The bundled fruits, reduced by 4 (MATLAB's bicubic, no noise), restored by the prior fruits32 from low, y enlarged bicubically:

late start       plain sampling from low noised to K (PartDiff and SR3 without alignment; CCDF without its projection)
PartDiff         the walk that follows the aligned latents, target "drift". No network was trained with alignment here: the
                 prior with DDNM's correction, which knows y, is aligned by a change of variables
CCDF, DDNM, DiffPIR, DPS   with the house's settings, all from the same noised low; two from pure noise too

K is the rule's (``methods.partdiff.start_time``, 0.1 of the difference left), from the distance between high and low of the
prior's own samples. Then the start is swept at 6 calls. Tables are even in log-SNR and padded to one length: one program for
each method. PSNR of the image and lpips@64, means over the images.

The residue: the share of low in the mean of the result, where high given low is N(m, v) and the network is exact, on 100 steps
with betas from 0.0001 to 0.12. 1 / K is what "eps" leaves where low determines high (v = 0).

Writes partdiff.json and partdiff.png: quality against calls, and against the start.
"""

from __future__ import annotations

import functools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import registry, timetables
from diffjax.methods import DDNM, LateStart, PartDiff, partdiff
from diffjax.operators import Resize, resize

from .tools import curves, provenance, records
from .tools.scores import scores
from .tools.study import Parser, command, library_errors, made, run, use_cores

FACTOR, KEEP = 4, 0.1
CALLS, AT = (3, 6, 12), 6  # budgets; the one of the sweep over starts
STARTS = (100, 250, 550, 800)  # beside the rule's
REGISTERED = {"CCDF": "ccdf", "DDNM": "ddnm", "DiffPIR": "diffpir", "DPS": "dps"}
SWEPT = ("late start", "PartDiff", "CCDF", "DDNM")
METHODS = (*SWEPT, "DiffPIR", "DPS", "late start, DDIM")  # in this order, so that a method has one colour
FROM_NOISE = ("DDNM", "DiffPIR")


def build(name, prior, y, low, table):
    """(method, kernel)"""
    measurement = dj.Measurement(y, Resize(FACTOR), value_range=(-2.0, 2.0))
    if name in REGISTERED:
        entry = registry.get(REGISTERED[name])
        return entry.build(prior.denoiser(clip=entry.clip), measurement, table=table)[:2]
    denoise = prior.denoiser()
    if name == "PartDiff":
        told = jax.tree_util.Partial(DDNM.predict, DDNM(denoise, measurement))
        aligned = partdiff.Aligned(told, low, table.t[0], schedule=prior.schedule)
        return PartDiff(aligned, low, table.t[0], target="unmixed", move="drift", bounds=(-1.0, 1.0)), dj.kernels.DDPM()
    return LateStart(denoise, low), dj.kernels.DDIM() if name.endswith("DDIM") else dj.kernels.DDPM()


@functools.cache
def sampler(name):
    """(keys, prior, ys, lows, starts, padded table, rows) -> images. ``rows`` is traced: one program for all budgets."""

    def one(key, prior, y, low, x, table, rows):
        method, kernel = build(name, prior, y, low, table)
        return dj.sample(key, method, table, x, kernel=kernel, part=(0, rows)).x

    return jax.jit(jax.vmap(one, (0, None, 0, 0, 0, None, None)))


def restored(name, prior, ys, lows, calls, t, late, seed):
    """Images of ``calls`` calls from time ``t``: from low noised to it, or from the noise alone."""
    schedule = prior.schedule
    table = timetables.padded(timetables.log_snr(schedule, calls, t_max=float(t)), max(CALLS))
    keys = jax.random.split(jax.random.key(seed), len(ys))
    noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 1), prior.shape))(keys)
    x = dj.process.q_sample(schedule, lows, float(t), noise) if late else noise
    return np.clip(np.asarray(sampler(name)(keys, prior, ys, lows, x, table, calls)), -1, 1)


def own_distance(prior, count, seed):
    """Root mean square of high - low over the directions that low lacks, of the prior's own samples."""
    table = timetables.log_snr(prior.schedule, 20)
    walk = lambda key: dj.sample(key, prior.denoiser(), table, prior.shape, kernel=dj.kernels.DPMSolverPP2M()).x
    high = np.asarray(jax.jit(jax.vmap(walk))(jax.random.split(jax.random.key(seed), count)))
    low = resize(Resize(FACTOR)(high), FACTOR)
    return float(np.sqrt(np.mean((high - low) ** 2) / (1 - 1 / FACTOR**2)))


def residues(Ks):
    """Rows {K, 1 / K, target, share of low for each v}, by walks in float64."""
    schedule = dj.schedules.discrete(dj.schedules.linear_betas(100, 1e-4, 0.12, rescale=False))
    variances, m, low = np.array([0.0, 0.001, 0.01, 0.1]), 0.8, -0.2

    def network(told, x, i):
        """E[x0^_t | x^_t], target "eps"."""
        (v, K), t = told, i + 1
        a, s, lam = schedule.alpha(t), schedule.sigma(t), partdiff.share(t, K)
        gain = a * lam * v / ((a * lam) ** 2 * v + s**2)
        return low + lam * (m - low + gain * (x - a * (low + lam * (m - low))))

    def end(v, K, table, move):
        denoise = dj.denoisers.from_x0(network, (v, K), schedule)
        method = PartDiff(denoise, np.full(1, low), K, move=move, guess=np.full(1, m))
        none = dj.Draws(jnp.zeros(1), jnp.zeros((max(Ks), 1)))  # the walk is linear: without noise it is its mean
        return dj.sample(None, method, table, (1,), recorded=none, dtype=jnp.float64, kernel=dj.kernels.DDPM()).x[0]

    tables = [timetables.padded(timetables.from_times(np.arange(K, -1, -1), schedule), max(Ks)) for K in Ks]
    tables = jax.tree.map(lambda *a: np.stack(a), *tables)
    rows = []
    with jax.enable_x64(True):
        for move in partdiff.TARGETS:
            walk = functools.partial(end, move=move)
            ends = jax.jit(jax.vmap(jax.vmap(walk, (0, None, None)), (None, 0, 0)))(variances, np.array(Ks, float), tables)
            left = (m - np.asarray(ends)) / (m - low)
            for K, of in zip(Ks, left):
                by_v = {f"v = {v:g}": round(float(x), 4) for v, x in zip(variances, of)}
                rows.append({"K": K, "1 / K": 1 / K, "target": move, **by_v})
    return sorted(rows, key=lambda row: row["K"])


def main(argv=None) -> int:
    use_cores()
    p = Parser("experiments.partdiff", __doc__)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--quick", action="store_true", help="two images, one budget, two starts: to try the program")
    p.add_argument("--out", **provenance.OUT)
    options = p.parse(argv)
    out, begin = made(options.out), time.perf_counter()
    with library_errors():
        prior = dj.zoo.load("fruits32")
    truth, _ = dj.zoo.bundled.images("fruits")
    truth = truth[:2] if options.quick else truth
    ys = np.asarray(Resize(FACTOR)(truth))
    lows = np.asarray(resize(ys, FACTOR))
    distance = own_distance(prior, 4 if options.quick else 16, options.seed)
    K = float(partdiff.start_time(prior.schedule, distance, KEEP))
    print(f"distance {distance:.3f}: the rule starts at t = {K:g}", flush=True)

    each = {}

    def scored(name, calls, t, late=True):
        """(PSNR, lpips@64), means."""
        cell = f"{name}/{calls}/{t:g}/{'low' if late else 'noise'}"
        if cell in each:
            return tuple(round(float(np.mean(each[cell][key])), digits) for key, digits in (("psnr", 3), ("lpips", 4)))
        x = restored(name, prior, ys, lows, calls, t, late, options.seed)
        psnr, perceptual = scores(x, truth)
        each[cell] = {"psnr": psnr.round(3).tolist(), "lpips": perceptual.round(5).tolist()}
        print(f"{name}, {calls} calls from t = {t:g}: {psnr.mean():.2f} dB, {perceptual.mean():.4f}", flush=True)
        return scored(name, calls, t, late)

    calls, starts = (CALLS[:1], (200, 500)) if options.quick else (CALLS, sorted((*STARTS, K)))
    psnr, perceptual = scores(np.clip(lows, -1, 1), truth)
    rows = [{"start": "none", "method": "bicubic", "PSNR 0": float(psnr.mean()), "lpips 0": float(perceptual.mean())}]
    for late, name in [(True, m) for m in METHODS] + [(False, m) for m in FROM_NOISE]:
        found = [scored(name, n, K if late else prior.schedule.T, late) for n in calls]
        rows.append({
            "start": "low" if late else "noise", "method": name, **{f"PSNR {n}": a for n, (a, _) in zip(calls, found)},
            **{f"lpips {n}": b for n, (_, b) in zip(calls, found)},
        })  # fmt: skip
    at = calls[0] if options.quick else AT
    swept = {name: [scored(name, at, t) for t in starts] for name in SWEPT}
    by_start = [{"method": name, **{f"PSNR t = {t:g}": a for t, (a, _) in zip(starts, found)},
                 **{f"lpips t = {t:g}": b for t, (_, b) in zip(starts, found)}} for name, found in swept.items()]  # fmt: skip

    if not options.quick:
        late = [row for row in rows if row["start"] == "low"]
        panels = [{"title": f"{what} from t = {K:g}", "x": "log2 of network calls",
                   "lines": [(row["method"], np.log2(calls), [row[f"{key} {n}"] for n in calls]) for row in late]}
                  for what, key in (("PSNR, dB", "PSNR"), ("lpips@64", "lpips"))]  # fmt: skip
        panels.append({"title": f"lpips@64 of {at} calls; the rule: t = {K:g}", "x": "t of the start",
                       "lines": [(name, starts, [b for _, b in found]) for name, found in swept.items()]})  # fmt: skip
        curves.lines(panels, out / "partdiff.png", width=600)
    print(records.write("partdiff", command("experiments.partdiff", argv), rows, out, kind="partdiff", starts=by_start,
                        residues=residues((5, 10, 25, 50)), distance=round(distance, 4), K=K, keep=KEEP, images=len(truth),
                        each=each, prior=prior.card["signature"], seconds=round(time.perf_counter() - begin, 1)))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
