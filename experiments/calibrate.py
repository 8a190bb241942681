"""Are the samples draws of the posterior? ``python -m experiments.calibrate``: every method on problems with a known answer.

Runs each method of experiments.calibration_methods, on every problem whose operator it supports, at budgets of 20, 100 and
1000 network calls per sample, and scores the samples against the exact posterior. The problems are the oracle's (tests/oracle,
defined in its README: images of 16x16 under Gaussian priors and mixtures of five, and 25 Gaussians in 8 and 80 dimensions;
needs a checkout), or any module with ``load(name)`` and ``LIST``. A method sees y, A, the noise level and a function
denoise(x, t); its samples are independent of each other. Cells are kept in --cells and not computed twice. Writes
calibration.json, .md and .png, calibration_short (without the single peers), calibration_details (a line per family, with what
a method cannot do) and calibration_peers (each method beside the same kind of other libraries, measured on the core problems:
experiments/peers.json) to --out.

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

from . import record
from .errors import UserError, run, unknown
from .options import Parser, whole

FAMILIES = ("gauss", "mix5", "mcg8", "mcg80")
SCORES = ("H", "sw2w", "var_ratio", "w_tv")
PEERS = Path(__file__).parent / "peers.json"
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
    from .repaint_on_mixtures import load_oracle

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


@functools.lru_cache(maxsize=64)
def sampler(entry, shape, dtype, calls, chunk):
    """Compiled (keys, prior, measurement, settings) -> (x of every key, network calls, Jacobian products)."""
    import jax
    import jax.numpy as jnp

    def one(key, prior, m, settings):
        denoise = jax.tree_util.Partial(lambda exact, x, t: exact(x, t), prior.denoiser(entry.schedule))  # a mere function
        x, spent, products = entry.run(key, denoise, m, shape, dtype, calls, settings)
        return x, jnp.asarray(spent, jnp.int32), jnp.asarray(products, jnp.int32)

    def many(keys, prior, m, settings):
        return jax.lax.map(lambda key: one(key, prior, m, settings), keys, batch_size=chunk)

    return jax.jit(many)


def draw(entry, problem, calls, samples, seed=0, settings=None):
    """(samples, d) independent restorations, network calls and Jacobian products per sample. ValueError where the method
    cannot do the problem's operator."""
    import jax

    with jax.enable_x64(True):  # 25 narrow modes need float64; images are float32 throughout
        prior, m, shape, dtype = as_jax(problem)
        chunk = int(min(samples, max(8, CHUNK / (dtype.itemsize * problem.d * (len(problem.prior.w) + 8) * 20))))
        chunk = 2 ** int(np.log2(chunk))  # divides the usual numbers, so that one program is compiled and not two
        many = sampler(entry, shape, dtype, calls, chunk)
        settings = {k: np.asarray(v, dtype) for k, v in (settings or {}).items()}
        keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(seed), n))(np.arange(samples))
        x, spent, products = many(keys, prior, m, settings)
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


# --- tuning ---


def sweep(oracle, entry, problem, combinations, calls, samples):
    """The scores of every combination of settings on one problem: all of them in one compiled call."""
    import jax

    with jax.enable_x64(True):
        prior, m, shape, dtype = as_jax(problem)
        many = sampler(entry, shape, dtype, calls, samples)
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


def tune(oracle, names, methods, folder, calls=100, samples=256, problems=None) -> dict:
    """{method: what ``pick`` found} for the methods with a sweep; kept in ``folder``."""
    from .evaluate import kept

    problems, found = list((problems or tuning_list(oracle)).values()), {}
    for name in names:
        if methods[name].sweep:
            make = lambda: pick(oracle, methods[name], problems, calls, samples)  # noqa: B023
            found[name] = kept(Path(folder) / f"tuned-{name}.json", make, False)
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
    parser.add_argument("--tables", action="store_true", help="render the kept cells, compute nothing")
    parser.add_argument("--out", default=str(record.FOLDER), help="folder for the results (default experiments/results)")
    parser.add_argument("--cells", help="folder of kept cells (default runs/calibrate; with --quick or --problems: OUT/cells)")
    args = parser.parse(argv)
    for name in args.methods:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    args.out = Path(args.out)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {args.out} cannot be written ({error.strerror}): give another with --out") from None
    args.samples = 64 if args.quick else None
    if args.quick:
        quick = [m for m in ("twisted", "mmps", "repaint") if m in args.methods]
        args.methods, args.calls, args.seeds, args.kinds = quick or args.methods[:1], [20], 1, ["default"]
    own = args.quick or args.problems
    args.cells = Path(args.cells or (args.out / "cells" if own else Path(__file__).parents[1] / "runs" / "calibrate"))
    return args, METHODS


def read_tuned(folder) -> dict:
    for place in (folder, record.FOLDER):
        if (Path(place) / "calibration_tuned.json").is_file():
            return {r["method"]: r["settings"] for r in record.read("calibration_tuned", place)["rows"]}
    return {}


def collect(args, methods, oracle, load, names, tuned) -> dict:
    """{(method, kind, calls): {(problem, seed): cell}}, computed or kept."""
    from .evaluate import kept

    cells = {}
    for calls, kind, method in itertools.product(args.calls, args.kinds, args.methods):
        if kind == "tuned" and method not in tuned:
            continue
        settings = tuned[method] if kind == "tuned" else {}
        found = cells.setdefault((method, kind, calls), {})
        for name, seed in itertools.product(names, range(args.seeds)):
            if "cannot" in found.get((name, 0), ()):  # no seed changes that
                continue
            label = f"{method}-{kind}-{calls}-{name}-{seed}"
            make = lambda: cell(oracle, methods[method], load(name), calls, seed, settings, args.samples)  # noqa: B023
            file = args.cells / f"{label}.json"
            if args.tables and not file.is_file():
                continue
            old = file.is_file()
            found[name, seed] = c = kept(file, make, False)
            if not old:
                line = c.get("cannot") or "  ".join(f"{k} {c[k]:.3f}" for k in SCORES) + f"  {c['seconds']} s"
                print(f"{label:44s} {line}", flush=True)
    return {k: v for k, v in cells.items() if v}


def main(argv=None) -> int:
    args, methods = arguments(argv)
    words = list(sys.argv[1:] if argv is None else argv)
    command = " ".join(["python -m experiments.calibrate", *words])
    oracle, load, names = open_problems(args.problems, args.core)
    if args.tune:
        rows = [{"method": m, **found} for m, found in tune(oracle, args.methods, methods, args.cells).items()]
        print("\n" + record.write("calibration_tuned", command, rows, args.out))
        return 0
    tuned = read_tuned(args.out)
    cells = collect(args, methods, oracle, load, names, tuned)
    if not cells:
        raise UserError(f"no cell is kept in {args.cells}: run without --tables first")
    families = {}
    for name in names:
        families.setdefault(load(name).family, []).append(name)
    rows = summary(cells, families)
    text = lambda m, kind: methods[m].setting if kind == "default" else json.dumps(tuned[m]).strip("{}").replace('"', "")
    settings = {(m, kind): text(m, kind) for m, kind, _ in cells}
    peers = peer_rows() if args.problems is None and not args.quick else []
    table = wide(rows, families, settings)
    full = lambda r: f"{len(r['problems'])} of {len(oracle.names(r['family'], True))}"
    named = lambda r: r | {"method": r["solver"], "budget": r["calls"], "products": None, "problems": full(r)}
    others = [named(r) for r in peers if r["calls"] in (0, *args.calls)]  # 0: exact draws, prior's
    ours, library = list(table), best_of_libraries(others, families)
    table += wide(others, families, {})
    about = {"samples": args.samples or "the problems' own", "problems": names}
    print("\n" + record.write("calibration", command, table, args.out, **about))
    record.write("calibration_short", command, ours + library, args.out, **about)
    record.write("calibration_details", command, rows, args.out)
    beside = compared(cells, methods, peers)
    if beside:
        record.write("calibration_peers", command, beside, args.out)
        close = sum(r["as close"] == "yes" for r in beside)
        print(f"\nas close as a peer of the same kind in {close} of {len(beside)} comparisons")
    from .calibration_figure import draw_figure

    draw_figure(rows, others, list(families), methods, args.out / "calibration.png")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
