"""What CoPaint's rows buy where the posterior is known: ``python -m experiments.copaint_on_oracle``.

Mask problems of the oracle (tests/oracle: 16x16 images, exact denoisers, exact posteriors), 512 restorations each, by
CoPaint-Fast, CoPaint and CoPaint-TT as published (timetable, rate, weight), and CoPaint-Fast with the rate that
diffjax.registry has for 32x32 images. Nothing is clamped, as the priors are Gaussian, and nothing pasted, so that the fit
to the known pixels is seen. CoPaint takes y for exact, and it has noise of std 0.05 (names ending in 01: 0.01). Needs a
checkout: the oracle lives with the tests. Writes copaint_oracle.json.

lr          at the first and at the last level, before the factor alpha_t / alpha_1
dc          rms of A x - y over its exact value: 1 = fits the known pixels as the posterior does, 0 = reproduces y
hidden_err  error of the posterior mean over the hidden pixels, in posterior standard deviations (exact draws: 0.044)
hidden_var  variance over the hidden pixels, posterior's = 1 (geometric mean over directions)
sw2         sliced Wasserstein distance to the posterior, in pixels, 1 = exact draws
w_tv        total variation between the modes' shares among the samples and the exact ones; w_prior: of a sampler that
            ignores y (exact draws: 0.033)
calls       forward calls of the network, mean over the restorations

What it shows. The 250 levels and second gradient step of CoPaint over CoPaint-Fast go into fitting the noise of y (dc): the
hidden mean comes no closer, and hardly changes where y is nearly exact (01). Nor does time travel bring it closer; on the
mixtures half and rand10 it moves the modes' shares towards the exact ones, on box not clearly. Every row is overconfident.
"""

from __future__ import annotations

import functools
import sys

import jax
import numpy as np

import diffjax as dj
from diffjax.registry import COPAINT

from .tools.exact import GAUSSIANS, MIXTURES, hidden, masked, mesh, prior_weights_error, study
from .tools.study import run

PROBLEMS = (*GAUSSIANS, "g-box-01", *MIXTURES)
CELLS = (("copaint-fast", {}), ("copaint-fast", COPAINT), ("copaint", {}), ("copaint-tt", {}))
UNBOUNDED = (-float("inf"), float("inf"))


@functools.lru_cache(maxsize=16)
def sampler(shape, name, steps):
    """(restorer of a batch of keys, schedule, settings, levels); one program for all problems with equally many components."""
    schedule = dj.schedules.discrete(dj.schedules.linear_betas(1000))
    settings, table = dj.methods.copaint.VARIANTS[name], dj.methods.copaint.walk(name, schedule, steps)

    def one(key, method):
        result = dj.sample(key, method, table, shape, kernel=dj.kernels.DDIM(schedule))
        return result.x, result.info.rows["calls"].sum()

    return dj.parallel.shard(one, mesh(), in_axes=(0, None)), schedule, settings, int(table.level[-1])


def restore(problem, name, samples=512, seed=0, steps=None, **more):
    """``samples`` restorations of an oracle mask problem, (samples, d), the mean number of forward calls, and the rates at
    the first and last level. ``more``: hyper-parameters other than the published ones."""
    prior, y, shape = masked(problem)
    many, schedule, settings, last = sampler(shape, name, steps)
    method = dj.methods.CoPaint(prior.denoiser(schedule), y, bounds=UNBOUNDED, exact=False, **{**settings, **more})
    x, calls = many(jax.random.split(jax.random.key(seed), samples), method)
    return np.asarray(x, np.float64).reshape(samples, -1), float(calls.mean()), (method.lr, method.lr * method.lr_decay**last)


def row(oracle, problem_name, name, more, samples):
    problem = oracle.load(problem_name)
    x, calls, lr = restore(problem, name, samples, **more)
    s = oracle.score(problem, x)
    error, variance = hidden(problem, x)
    out = {"problem": problem_name, "method": name, "lr": "{:.2g} to {:.2g}".format(*lr), "calls": round(calls), "dc": s["dc"],
           "hidden_err": error, "hidden_var": variance, "sw2": s["sw2"]}  # fmt: skip
    if problem.prior.K > 1:
        out |= {"w_tv": s["w_tv"], "w_prior": prior_weights_error(problem)}
    return out


def main(argv=None):
    cells = [(problem, name, more) for problem in PROBLEMS for name, more in CELLS]
    return study("experiments.copaint_on_oracle", __doc__, "copaint_oracle", cells, row, argv)


if __name__ == "__main__":
    sys.exit(run(main))
