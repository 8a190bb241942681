"""What resampling buys RePaint where the posterior is known: ``python -m experiments.repaint_on_mixtures``.

Mask problems of the oracle (tests/oracle: 16x16 images, exact denoisers, exact posteriors), 512 restorations each, RePaint
with DDPM and the official order, 1, 3, 10 and 30 walks through every stretch of 5 levels out of 40. On Gaussians the error
falls; on mixtures the question is what becomes of the weights of the modes. Needs a checkout: the oracle lives with the tests.
Writes repaint_mixtures.json.

mean_err    error of the posterior mean, in posterior standard deviations, rms over all directions (exact draws: 0.044)
hidden_err  the same over the hidden pixels alone
sw2         sliced Wasserstein distance to the posterior, in pixels, 1 = exact draws; sw2w in whitened space
w_tv        total variation between the modes' shares among the samples and the exact ones; w_exact: of exact draws,
            w_prior: of the prior's own weights, that is of a sampler that ignores y
"""

from __future__ import annotations

import functools
import itertools
import sys

import jax
import numpy as np

import diffjax as dj

from .tools.exact import GAUSSIANS, MIXTURES, hidden, masked, mesh, prior_weights_error, study
from .tools.study import run

TIMES = (1, 3, 10, 30)


@functools.lru_cache(maxsize=16)
def sampler(shape, times, levels, jump):
    """(restorer of a batch of keys, schedule, rows walked); compiled once for all problems with equally many components."""
    schedule = dj.schedules.discrete(dj.schedules.linear_betas(1000))
    table = dj.timetables.repaint(schedule, jump=jump, times=times, grid=dj.timetables.log_snr(schedule, levels))
    one = lambda key, method: dj.sample(key, method, table, shape, kernel=dj.kernels.DDPM(schedule)).x
    return dj.parallel.shard(one, mesh(), in_axes=(0, None)), schedule, len(table)


def restore(problem, times, levels=40, jump=5, samples=512, seed=0, method=dj.methods.RePaint):
    """``samples`` RePaint restorations of an oracle mask problem, (samples, d), and the number of rows walked."""
    prior, y, shape = masked(problem)
    many, schedule, rows = sampler(shape, times, levels, jump)
    x = many(jax.random.split(jax.random.key(seed), samples), method(prior.denoiser(schedule), y))
    return np.asarray(x, np.float64).reshape(samples, -1), rows


def hidden_error(problem, x):
    """Error of the mean over the hidden pixels, whitened by the exact posterior there."""
    return hidden(problem, x)[0]


def row(oracle, name, times, samples):
    problem = oracle.load(name)
    x, rows = restore(problem, times, samples=samples)
    s = oracle.score(problem, x)
    out = {"problem": name, "times": times, "calls": rows, "mean_err": s["mean_err"], "hidden_err": hidden_error(problem, x),
           "sw2": s["sw2"], "sw2w": s["sw2w"]}  # fmt: skip
    if problem.prior.K > 1:
        exact = oracle.scores._scorer(problem, samples).null_mean["w_tv"]
        found = problem.prior.responsibilities(x).mean(0)
        out |= {"w_tv": s["w_tv"], "w_exact": exact, "w_prior": prior_weights_error(problem)}
        for key, value in (("weights", found), ("exact weights", problem.posterior.w), ("prior weights", problem.prior.w)):
            out[key] = " ".join(f"{v:.2f}" for v in value)
    return out


def main(argv=None):
    cells = itertools.product(MIXTURES + GAUSSIANS, TIMES)
    return study("experiments.repaint_on_mixtures", __doc__, "repaint_mixtures", cells, row, argv)


if __name__ == "__main__":
    sys.exit(run(main))
