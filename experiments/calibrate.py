"""Are the samples draws of the posterior? ``python -m experiments.calibrate``: every method on problems with a known answer.

Runs each method of experiments.calibration_methods, on every problem whose operator it supports, at budgets of 20, 100 and
1000 network calls per sample, and scores the samples against the exact posterior. The problems are the oracle's (tests/oracle,
defined in its README: images of 16x16 under Gaussian priors and mixtures of five, and 25 Gaussians in 8 and 80 dimensions;
needs a checkout), or any module with ``load(name)`` and ``LIST``. A method sees y, A, the noise level and a function
denoise(x, t); its samples are independent of each other. --headline runs what README's table has: the 8 core problems, fewer
methods and seeds where they take long. Cells are kept in --cells; those whose code or settings have changed since are computed
again (with --tables, which computes nothing, they are refused). Writes calibration.json and .png. Its tables (``python -m
experiments.record calibration VIEW``): short, all (with every method of other libraries, measured on the core problems:
experiments/peers.json), families (with what a method cannot do), peers (each method beside the same kind of other libraries).

calls      network calls per sample, particles and searches included; products: with the network's Jacobian, per sample, the
           most of all problems (fewer than 4 measured values are padded to 4, and paid for)
H          1 = exact draws. The worse of sw2w and w_tv over its floor; geometric mean over a family's problems and the seeds
sw2w       sliced Wasserstein distance to the posterior in its own standard deviations, over that of exact draws
var_ratio  variance over the posterior's, geometric mean of all directions: below 1 = overconfident
w_tv       total variation between the modes' shares among the samples and the exact ones (exact draws: 0.03)
default | tuned: with the method's own hyper-parameters, or with those that --tune picked on three other problems, by one
compiled sweep per method at 100 calls (N = 256, least sw2w sqrt(1 + w_tv / 0.03)); a star on a number: some problems only.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np

from .tools import code, provenance, records, views
from .tools.calibration_tables import SCORES, compared, peer_rows, summary
from .tools.cells import Cells
from .tools.exact import load_oracle, mesh
from .tools.restorations import BESIDES
from .tools.study import Parser, UserError, command, made, render, run, unknown, use_cores, whole

LONG = ("twisted", "mmps", "pigdm", "pigdm-bayes", "dps", "mcg", "diffpir", "ddrm", "ddnm+", "score-sde")  # at 1000 calls
SEEDED = ("twisted", "mmps")  # with --seeds seeds at 100 calls
CHUNK = 2.5e8  # bytes of states and their like that one chunk of samples may take


# --- problems ---


def tuning_list(oracle) -> dict:
    """The three problems that settings are picked on, none of them in the bank."""
    weights = (0.4, 0.25, 0.2, 0.1, 0.05)
    texture = ("texture", {"K": 5, "leak": 0.15})
    P = oracle.Problem
    return {
        "t-g-box": P("t-g-box", "gauss", ("gauss", {}), ("box", 4), 0.05, 901, n=8, default_n=256),
        "t-m5-rand": P("t-m5-rand", "mix5", texture, ("random", 0.15), 0.05, 903, n=8, weights=weights, default_n=256),
        "t-mcg8": P("t-mcg8", "mcg8", ("mcg", {}), ("svd", 2), 0.05, 309, d=8, default_n=256),
    }


def open_problems(module: str | None, core: bool):
    """(oracle, load, names). Raises UserError for a module without ``load`` and ``LIST``."""
    oracle = load_oracle()
    if module is None:
        return oracle, oracle.load, oracle.names(core=True if core else None)
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"--problems {module} cannot be imported ({error}): give a module's dotted name") from None
    for name in ("load", "LIST"):
        if not hasattr(found, name):
            raise UserError(f"--problems {module} has no {name}: give a module with load(name) and LIST")
    return oracle, found.load, list(found.LIST)


def block_means(A, shape):
    """``Downsample`` where the matrix A is one, else None: faster than the matrix."""
    import diffjax as dj

    factor = int(np.sqrt(A.shape[1] / A.shape[0])) if len(shape) == 2 else 0
    if factor < 2 or A.shape[0] * factor**2 != A.shape[1] or shape[0] % factor or shape[1] % factor:
        return None
    h, w = (np.arange(n) // factor for n in shape)
    at = (h[:, None] * (shape[1] // factor) + w).reshape(-1)
    means = np.equal.outer(np.arange(len(A)), at) / factor**2
    return dj.operators.Downsample(factor) if np.allclose(A, means) else None


def as_jax(problem):
    """(prior, measurement, shape, dtype): equal structures for like problems, so that they share one compiled program."""
    import jax
    import jax.numpy as jnp

    import diffjax as dj

    image, q = len(problem.shape) == 2, problem.prior
    shape, dtype = ((*problem.shape, 1), jnp.float32) if image else (tuple(problem.shape), jnp.float64)
    white = len(q.Q) == 1 and np.array_equal(q.Q[0], np.eye(problem.d))
    spread = {"variances": q.lam.reshape(-1, *shape)} if white else {"bases": q.Q, "eigenvalues": q.lam, "group": q.group}
    prior = dj.priors.mixture(q.w, q.mu.reshape(-1, *shape), **spread)
    A, y = np.asarray(problem.A), np.asarray(problem.y)
    if set(np.unique(A)) <= {0.0, 1.0} and (A.sum(1) == 1).all() and (A.sum(0) <= 1).all():
        operator, y = dj.operators.Mask(jnp.asarray(A.sum(0).reshape(shape))), (A.T @ y).reshape(shape)
    elif (means := block_means(A, problem.shape)) is not None:
        operator, y = means, y.reshape(problem.shape[0] // means.factor, -1, 1)
    else:
        rows = 4 if len(y) <= 4 <= problem.d else max(problem.d, len(y))  # rows of zeros, measured as 0, tell nothing
        A = np.concatenate([A, np.zeros((rows - len(y), problem.d))])
        operator, y = dj.operators.matrix(A, shape), np.concatenate([y, np.zeros(rows - len(y))])
    m = dj.Measurement(jnp.asarray(y), operator, jnp.asarray(problem.sigma_y), value_range=(-99.0, 99.0))
    return *jax.tree.map(lambda a: jnp.asarray(a, dtype), (prior, m)), shape, np.dtype(dtype)


# --- samples ---


def walks(entry, shape, dtype, calls, chunk):
    """(keys, prior, measurement, settings) -> (x of every key, network calls, Jacobian products)"""
    import jax
    import jax.numpy as jnp

    def one(key, prior, m, settings):
        denoise = jax.tree_util.Partial(lambda exact, x, t: exact(x, t), prior.denoiser(entry.schedule))  # a mere function
        x, spent, products = entry.run(key, denoise, m, shape, dtype, calls, settings)
        return x, jnp.asarray(spent, jnp.int32), jnp.asarray(products, jnp.int32)

    def many(keys, prior, m, settings):
        return jax.lax.map(lambda key: one(key, prior, m, settings), keys, batch_size=chunk)

    return many


@functools.lru_cache(maxsize=64)
def sampler(entry, shape, dtype, calls, chunk):
    """(:func:`walks` over all devices, a part of the keys for each; how many)"""
    import diffjax as dj

    devices = mesh()
    program = dj.parallel.shard(walks(entry, shape, dtype, calls, chunk), devices, in_axes=(0, None, None, None))
    return program, devices.devices.size


def draw(entry, problem, calls, samples, seed=0, settings=None):
    """(samples, d) independent restorations, network calls and Jacobian products per sample. ValueError where the method
    cannot do the problem's operator."""
    import jax

    with jax.enable_x64(True):  # 25 narrow modes need float64; images are float32 throughout
        prior, m, shape, dtype = as_jax(problem)
        parts = min(mesh().devices.size, samples)
        room = CHUNK / (dtype.itemsize * problem.d * (len(problem.prior.w) + 8) * 20) / parts
        chunk = 2 ** int(np.log2(min(samples // parts, max(8, room))))  # divides the usual numbers: one program and not two
        many, parts = sampler(entry, shape, dtype, calls, chunk)
        settings = {k: np.asarray(v, dtype) for k, v in (settings or {}).items()}
        keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(seed), n))(np.arange(samples + -samples % parts))
        found = many(keys.reshape(parts, -1), prior, m, settings)
        x, spent, products = (np.asarray(a).reshape(-1, *a.shape[2:])[:samples] for a in found)
    return np.asarray(x, np.float64).reshape(samples, -1), float(np.mean(spent)), float(np.mean(products))


def cell(oracle, entry, problem, calls, seed, settings, samples=None) -> dict:
    start = time.perf_counter()
    try:
        x, spent, products = draw(entry, problem, calls, samples or problem.default_n, seed, settings)
    except ValueError as error:
        return {"cannot": " ".join(str(error).split())}
    with np.errstate(all="ignore"):
        scores = oracle.score(problem, x)
    numbers = {k: float(f"{scores[k]:.5g}") for k in (*SCORES, "mean_err", "var_spread", "cov90", "sw2", "dc", "bad")}
    return {"calls": round(spent), "products": round(products), "seconds": round(time.perf_counter() - start, 1), **numbers}


def asked(entry, problem, calls, seed, settings, samples=None) -> dict:
    """The fingerprints of a cell as it would be computed now: of the files behind the method, the prior, the operator and the
    scores, and of every number in them."""
    import jax

    functions, besides = [code.of_function(f)[0] for f in (draw, walks, cell)], BESIDES
    with jax.enable_x64(True):
        prior, m, _, dtype = as_jax(problem)
        given = {k: np.asarray(v, dtype) for k, v in settings.items()}
        modules = {"diffjax.sample", "tests.oracle.scores", "tests.oracle.mixture"} | code.behind(prior, m, entry.schedule)
        built = ()
        if entry.whole:
            text, used = code.of_function(entry.whole)
            functions, modules = [*functions, text], modules | used
            besides = [name for name in BESIDES if name != "diffjax.timetables"]
        else:
            try:
                built = entry.build(prior.denoiser(entry.schedule), m, calls, **given)
            except ValueError as refusal:  # the cell will say so
                built = (str(refusal),)
            modules |= code.behind(built)
        return {"code": code.fingerprint(*sorted(modules), besides=besides),
                "settings": provenance.values(functions, built, prior, m, entry.schedule, given, calls, seed,
                                              samples or problem.default_n)}  # fmt: skip


# --- tuning ---


def sweep(oracle, entry, problem, combinations, calls, samples):
    """The scores of every combination of settings on one problem: all of them in one compiled call."""
    import jax

    with jax.enable_x64(True):
        prior, m, shape, dtype = as_jax(problem)
        many = walks(entry, shape, dtype, calls, samples)
        keys = jax.random.split(jax.random.key(1), samples)
        grid = dict(zip(entry.sweep, np.asarray(combinations, dtype).T))
        found = jax.jit(jax.vmap(lambda settings: many(keys, prior, m, settings)[0]))(grid)
    with np.errstate(all="ignore"):
        return [oracle.score(problem, np.asarray(x, float).reshape(samples, -1)) for x in found]


def pick(oracle, entry, problems, calls, samples) -> dict:
    """The best of all combinations of the entry's ``sweep`` on the problems it can do, and its score."""
    combinations, scores = list(itertools.product(*entry.sweep.values())), []
    for problem in problems:
        try:
            scores.append(sweep(oracle, entry, problem, combinations, calls, samples))
        except ValueError:  # an operator it cannot do
            continue
    value = lambda key: np.array([[r[key] for r in one] for one in scores])
    with np.errstate(all="ignore"):
        total = np.exp(np.log(value("sw2w")).mean(0)) * np.sqrt(1 + value("w_tv").mean(0) / 0.03)
    best = int(np.nanargmin(total))
    settings = dict(zip(entry.sweep, combinations[best]))
    return {"settings": settings, "score": round(float(total[best]), 3), "problems": len(scores), "tried": len(combinations)}


def tune(oracle, names, methods, kept, calls=100, samples=256, problems=None) -> dict:
    """{method: what ``pick`` found} for the methods with a sweep. kept: Cells"""
    problems, found = list((problems or tuning_list(oracle)).values()), {}
    for name in names:
        entry = methods[name]
        if entry.sweep:
            parts = [asked(entry, p, calls, 0, {k: v[0] for k, v in entry.sweep.items()}, samples) for p in problems]
            now = {"code": " ".join(dict.fromkeys(a["code"] for a in parts)),
                   "settings": provenance.values([a["settings"] for a in parts], entry.sweep)}  # fmt: skip
            found[name] = kept.get(f"tuned-{name}", lambda: now, lambda: pick(oracle, entry, problems, calls, samples))  # noqa: B023
            print(f"{name:16s} {found[name]}", flush=True)
    return found


# --- the program ---


def arguments(argv):
    from .calibration_methods import METHODS

    parser = Parser("experiments.calibrate", __doc__)
    parser.add_argument(
        "--problems", metavar="MODULE", help="module with load(name) and LIST (default: the oracle's problems)"
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD", help="default: all of them")
    parser.add_argument("--calls", nargs="+", type=whole(2), default=[20, 100, 1000], help="budgets (default 20 100 1000)")
    parser.add_argument("--kinds", nargs="+", default=["default", "tuned"], choices=["default", "tuned"])
    parser.add_argument("--seeds", type=whole(1), default=3, help="runs per cell (default 3)")
    parser.add_argument("--core", action="store_true", help="the oracle's 8 core problems only")
    parser.add_argument("--quick", action="store_true", help="a small version: 64 samples, 20 calls, one seed, three methods")
    parser.add_argument("--tune", action="store_true", help="pick the tuned settings, write them, and stop")
    parser.add_argument("--headline", action="store_true", help="what README's table has: --core, some at 1000 calls and once")
    parser.add_argument("--tables", action="store_true", help="take the kept cells, compute nothing")
    parser.add_argument("--fresh", action="store_true", help="compute kept cells again")
    parser.add_argument("--allow-stale", action="store_true", help="take cells of other code or settings as they are")
    parser.add_argument("--out", **provenance.OUT)
    parser.add_argument("--cells", help="folder of kept cells (default runs/calibrate; with --quick or --problems: OUT/cells)")
    args = parser.parse(argv)
    for name in args.methods:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    args.out = made(args.out)
    args.samples = 64 if args.quick else None
    if args.quick:
        quick = [m for m in ("twisted", "mmps", "repaint") if m in args.methods]
        args.methods, args.calls, args.seeds, args.kinds = quick or args.methods[:1], [20], 1, ["default"]
    own = args.quick or args.problems
    args.core = args.core or args.headline
    args.cells = Path(args.cells or (args.out / "cells" if own else provenance.ROOT / "runs" / "calibrate"))
    return args, METHODS


def plan(args, tuned):
    """(calls, kind, method, seeds) of all cells to come."""
    for calls, kind, method in itertools.product(args.calls, args.kinds, args.methods):
        if kind == "tuned" and method not in tuned:
            continue
        if not args.headline:
            yield calls, kind, method, args.seeds
        elif calls < 1000 or (kind == "default" and method in LONG):
            yield calls, kind, method, args.seeds if (kind, calls) == ("default", 100) and method in SEEDED else 1


def read_tuned(folder) -> dict:
    """{method: settings} that --tune has picked: there, or in the checkout."""
    for place in (folder, provenance.results()):
        if (Path(place) / "calibration_tuned.json").is_file():
            return {r["method"]: r["settings"] for r in records.read("calibration_tuned", place)["rows"]}
    return {}


def collect(args, methods, load, names, tuned, kept, make) -> dict:
    """{(method, kind, calls): {(problem, seed): cell}}, computed or kept."""
    cells = {}
    for calls, kind, method, seeds in plan(args, tuned):
        settings = tuned[method] if kind == "tuned" else {}
        found = cells.setdefault((method, kind, calls), {})
        for name, seed in itertools.product(names, range(seeds)):
            if "cannot" in found.get((name, 0), ()):  # no seed changes that
                continue
            label = f"{method}-{kind}-{calls}-{name}-{seed}"
            given = lambda: (methods[method], load(name), calls, seed, settings, args.samples)  # noqa: B023
            c = kept.get(label, lambda: asked(*given()), lambda: make(*given()))  # noqa: B023
            if c is not None:
                found[name, seed] = c
    return {k: v for k, v in cells.items() if v}


def main(argv=None) -> int:
    use_cores()
    args, methods = arguments(argv)
    line = command("experiments.calibrate", argv)
    oracle, load, names = open_problems(args.problems, args.core)
    kept = Cells(args.cells, line, args.fresh, args.tables, args.allow_stale)
    if args.tune:
        found = tune(oracle, args.methods, methods, kept)
        rows = [{"method": m, **{k: v for k, v in cell.items() if k != "made"}} for m, cell in found.items()]
        print("\n" + records.write("calibration_tuned", line, rows, args.out))
        return 0

    def make(entry, problem, calls, seed, settings, samples):
        c = cell(oracle, entry, problem, calls, seed, settings, samples)
        name = next(name for name, known in methods.items() if known is entry)
        said = c.get("cannot") or "  ".join(f"{k} {c[k]:.3f}" for k in SCORES) + f"  {c['seconds']} s"
        print(f"{name:16s} {calls:5d} {problem.name:16s} {seed:2d} {said}", flush=True)
        return c

    tuned = read_tuned(args.out)
    cells = collect(args, methods, load, names, tuned, kept, make)
    if not cells:
        raise UserError(f"no cell is kept in {args.cells}: run {line}")
    families = {}
    for name in names:
        families.setdefault(load(name).family, []).append(name)
    text = lambda m, kind: methods[m].setting if kind == "default" else json.dumps(tuned[m]).strip("{}").replace('"', "")
    peers = {} if args.problems or args.quick else {family: len(oracle.names(family, True)) for family in families}
    rows, beside = summary(cells, families), compared(cells, methods, peer_rows()) if peers else []
    flat = {f"{m}/{kind}/{calls}/{p}/{seed}": c for (m, kind, calls), of in cells.items() for (p, seed), c in of.items()}
    settings = {f"{m}/{kind}": text(m, kind) for m, kind, _ in cells}
    about = kept.about(flat.values()) | {"budgets": args.calls, "samples": args.samples or "the problems' own"}
    records.write("calibration", line, rows, args.out, kind="calibration", **about, families=families, peers=peers,
                  settings=settings, beside=beside, cells=flat)  # fmt: skip
    record = records.read("calibration", args.out)
    print("\n" + render(views.rows(record, "all")))
    if beside:
        close = sum(r["as close"] == "yes" for r in beside)
        print(f"\nas close as a peer of the same kind in {close} of {len(beside)} comparisons")
    from .tools.calibration_figure import draw_figure
    from .tools.calibration_tables import peers_of

    draw_figure(rows, peers_of(record), list(families), methods, args.out / "calibration.png")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
