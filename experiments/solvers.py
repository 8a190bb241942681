"""Which kernel on which grid? ``python -m experiments.solvers``: every kernel, driven by the exact posterior score.

The problems are the core of the oracle (tests/oracle: images of 16x16 and 25 narrow modes in 8 and 80 dimensions; needs a
checkout). The denoiser is the posterior's own, E[x0 | x_t, y], so that whatever error is left is the kernel's and the grid's.
All spend the same number of network calls (a kernel with several a row walks fewer rows) on the schedule VP, on two grids:
``timetables.log_snr``, and at 100 calls ``timetables.uniform``. A predictor-corrector stands beside its predictor alone.

Then the published loop of imputation (Song et al. 2021) beside ours on the problems with masks, with the prior's denoiser and
the same kernel: it starts with the known pixels as they are, and puts them in at the level where a step began, one too noisy.

H          1 = exact draws, the worse of sw2w and w_tv over its floor; geometric mean over a family's problems and the seeds
var_ratio  variance over the posterior's, geometric mean over directions, problems and seeds: below 1 = overconfident
least, most  of the problems' var_ratio on Gaussians
--quick: one problem of each family, 20 calls, 64 samples, one seed. Writes solvers.json.
"""

from __future__ import annotations

import functools
import itertools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax.base import pytree

from .tools import provenance, records
from .tools.exact import load_oracle, masked, mesh
from .tools.study import Parser, command, made, run, unknown, use_cores, whole

K = dj.kernels
VP = dj.schedules.VP()
PC = lambda predictor: K.PredictorCorrector(predictor=predictor, corrector=K.Langevin(snr=0.1))

KERNELS = {  # a new kernel: one line here
    "Euler": K.Euler(),
    "Heun": K.Heun(),
    "RK4": K.RK4(),
    "2M": K.DPMSolverPP2M(),
    "3M": K.DPMSolverPP3M(),
    "UniPC, order 2": K.UniPC(order=2),
    "UniPC": K.UniPC(),
    "Euler-Maruyama": K.EulerMaruyama(),
    "reverse diffusion": K.ReverseDiffusion(),
    "ancestral (DDPM)": K.DDPM(),
    "SDE-2M": K.SDEDPMSolverPP2M(),
    "SDE-2M, eta 0.5": K.SDEDPMSolverPP2M(eta=0.5),
    "Heun + churn": K.Churn(gamma=0.1),
    "reverse diffusion + Langevin": PC(K.ReverseDiffusion()),
    "ancestral + Langevin": PC(K.DDPM()),
    "2M + Langevin": PC(K.DPMSolverPP2M()),
    "SDE-2M + Langevin": PC(K.SDEDPMSolverPP2M()),
}
GRIDS = {"log-SNR": dj.timetables.log_snr, "uniform": dj.timetables.uniform}
FAMILIES = ("gauss", "mix5", "mcg8", "mcg80")
MASKS = ("g-box-01", "g-rand10-05", "m5-rand10-05")
LOOP = "reverse diffusion + Langevin"


@pytree
class PublishedLoop(dj.methods.Replacement):
    """Replacement as released: see the module's docstring."""

    def start(self, kernel, row, noise):
        x, A = super().start(kernel, row, noise), self.measurement.A
        return x - A.pinv(A.residual(x, self.measurement.y.astype(x.dtype)))

    def step(self, kernel, x, state, row, noise):
        alpha, sigma = kernel.schedule.alpha(row.t), kernel.schedule.sigma(row.t)
        edit = lambda x, t, j: self.replaced(x, alpha, sigma, noise["known"][j])
        x, state = kernel.step(self.predict, x, state, row, noise["move"], edit=edit)
        return x, state, {}


LOOPS = {"imputation, ours": dj.methods.Replacement, "imputation, published loop": PublishedLoop}


def posterior(problem):
    """(exact posterior as a prior, shape, dtype); equal structures for like problems, which then share a program."""
    p, image = problem.posterior, len(problem.shape) == 2
    shape, dtype = ((*problem.shape, 1), np.float32) if image else (tuple(problem.shape), np.float64)
    prior = dj.priors.mixture(p.w, p.mu.reshape(-1, *shape), bases=p.Q, eigenvalues=p.lam, group=p.group)
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), prior), shape, np.dtype(dtype)


@functools.cache
def sampler(name, shape, dtype, devices):
    """(keys, method or denoiser, padded table, rows) -> x of every key. ``rows`` is traced: one program for all budgets."""

    def one(key, method, table, rows):
        return dj.sample(key, method, table, shape, kernel=KERNELS[name], dtype=dtype, part=(0, rows)).x

    return jax.jit(dj.parallel.shard(one, devices, in_axes=(0, None, None, None)))


def walk(name, grid, calls, most):
    """(the kernel's table for ``calls`` network calls, filled up with rows for ``most``; the number of its rows)"""
    calls_of = KERNELS[name].calls
    table = GRIDS[grid](VP, calls // calls_of)
    fill = most // calls_of - len(table)
    return dj.timetables.from_times(np.concatenate([table.t, table.s[-1:], np.zeros(fill)])), len(table)


def draw(name, grid, calls, most, method, shape, dtype, samples, seed):
    """(samples, d)"""
    table, rows = walk(name, grid, calls, most)
    keys = jax.random.split(jax.random.key(seed), samples)
    x = sampler(name, shape, dtype, mesh())(keys, method, table, rows)
    return np.asarray(x, np.float64).reshape(samples, -1)


def scored(oracle, problem, x):
    with np.errstate(all="ignore"):
        s = oracle.score(problem, x)
    return {"H": s["H"], "var_ratio": s["var_ratio"]}


def mean(values) -> float:
    """Geometric; infinite where one diverged."""
    with np.errstate(divide="ignore"):
        return float(np.exp(np.mean(np.log(values))))


def line(name, grid, calls, cells) -> dict:
    """One row of the table from {(family, problem): [scores of each seed]}."""
    row = {"kernel": name, "grid": grid, "calls": calls, "seeds": max(len(c) for c in cells.values())}
    for family in FAMILIES:
        found = [c for (f, _), seeds in cells.items() if f == family for c in seeds]
        row[f"H {family}"] = mean([c["H"] for c in found]) if found else None
        if family == "gauss" and found:
            by_problem = [mean([c["var_ratio"] for c in seeds]) for (f, _), seeds in cells.items() if f == family]
            row |= {"var_ratio": mean(by_problem), "least": min(by_problem), "most": max(by_problem)}
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}


def arguments(argv):
    parser = Parser("experiments.solvers", __doc__)
    parser.add_argument("--seeds", type=whole(1), default=2, help="runs of each cell on the log-SNR grid (default 2)")
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS), metavar="KERNEL", help="default: all of them")
    parser.add_argument("--quick", action="store_true", help="a small version that shows the program at work")
    parser.add_argument("--out", **provenance.OUT)
    options = parser.parse(argv)
    for name in options.kernels:
        if name not in KERNELS:
            raise unknown("kernel", name, KERNELS)
    made(options.out)
    return options


def main(argv=None) -> int:
    use_cores()
    options = arguments(argv)
    oracle, start, rows = load_oracle(), time.perf_counter(), []
    names = [n for family in FAMILIES for n in oracle.names(family, True)[: 1 if options.quick else None]]
    problems, budgets = [oracle.load(n) for n in names], (20,) if options.quick else (20, 100)
    samples = lambda p: 64 if options.quick else p.default_n

    def add(name, grid, calls, methods, kernel):
        """A row of the table: ``methods`` {problem: (method, shape, dtype)}."""
        cells = {}
        for problem, (method, shape, dtype) in methods.items():
            for seed in range(options.seeds if grid == "log-SNR" and not options.quick else 1):
                x = draw(kernel, grid, calls, budgets[-1], method, shape, dtype, samples(problem), seed)
                cells.setdefault((problem.family, problem.name), []).append(scored(oracle, problem, x))
        rows.append(line(name, grid, calls, cells))
        print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)

    with jax.enable_x64(True):  # 25 narrow modes need float64; images are float32 throughout
        exact = {p: (q.denoiser(VP), shape, dtype) for p in problems for q, shape, dtype in [posterior(p)]}
        for name, grid, calls in itertools.product(options.kernels, GRIDS, budgets):
            if grid == "log-SNR" or calls == budgets[-1]:
                add(name, grid, calls, exact, name)
        hidden = {}
        for problem in (oracle.load(n) for n in MASKS[: 1 if options.quick else None]):
            prior, measurement, shape = masked(problem)
            measurement = dj.replace(measurement, noise_std=problem.sigma_y)
            prior, measurement = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (prior, measurement))
            hidden[problem] = prior.denoiser(VP), measurement, shape
        for (name, loop), calls in itertools.product(LOOPS.items() if LOOP in options.kernels else (), budgets):
            methods = {p: (loop(denoise, m), shape, np.dtype(np.float32)) for p, (denoise, m, shape) in hidden.items()}
            add(name, "log-SNR", calls, methods, LOOP)
    more = {"samples": "64" if options.quick else "the problems' own", "problems": names, "masks": list(MASKS)}
    print("\n" + records.write("solvers", command("experiments.solvers", argv), rows, options.out, **more,
                               seconds=round(time.perf_counter() - start, 1)))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
