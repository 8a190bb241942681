"""What resampling buys RePaint where the posterior is known: ``python -m experiments.repaint_on_mixtures``.

Mask problems of the oracle (tests/oracle: 16x16 images, exact denoisers, exact posteriors), 512 restorations each, RePaint
with DDPM and the official order, 1, 3, 10 and 30 walks through every stretch of 5 levels out of 40. On Gaussians the error
falls; on mixtures the question is what becomes of the weights of the modes. Needs a checkout: the oracle lives with the tests.
Writes experiments/results/repaint_mixtures.json and .md.

mean_err    error of the posterior mean, in posterior standard deviations, rms over all directions (exact draws: 0.044)
hidden_err  the same over the hidden pixels alone
sw2         sliced Wasserstein distance to the posterior, in pixels, 1 = exact draws; sw2w in whitened space
w_tv        total variation between the modes' shares among the samples and the exact ones; w_exact: of exact draws,
            w_prior: of the prior's own weights, that is of a sampler that ignores y
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax.cli.errors import UserError, run
from diffjax.cli.options import Parser

from . import record

MIXTURES = ("m5-box-05", "m5-half-05", "m5-rand10-05")
GAUSSIANS = ("g-box-05", "g-half-05", "g-rand10-05")
TIMES = (1, 3, 10, 30)


def load_oracle():
    """The package ``oracle`` of the checkout. Raises UserError where there is none."""
    tests = Path(__file__).parents[1] / "tests"
    if not (tests / "oracle").is_dir():
        raise UserError(f"{tests / 'oracle'} is missing: run this from a checkout, its problems live with the tests")
    sys.path.insert(0, str(tests))
    import oracle

    return oracle


@functools.lru_cache(maxsize=16)
def sampler(shape, times, levels, jump):
    """(restorer of a batch of keys, schedule, rows walked); compiled once for all problems with equally many components."""
    schedule = dj.schedules.discrete(dj.schedules.linear_betas(1000))
    table = dj.timetables.repaint(schedule, jump=jump, times=times, grid=dj.timetables.log_snr(schedule, levels))
    one = lambda key, method: dj.sample(key, method, table, shape, kernel=dj.kernels.DDPM(schedule)).x
    return jax.jit(jax.vmap(one, in_axes=(0, None))), schedule, len(table)


def restore(problem, times, levels=40, jump=5, samples=512, seed=0, method=dj.methods.RePaint):
    """``samples`` RePaint restorations of an oracle mask problem, (samples, d), and the number of rows walked."""
    shape = (*problem.shape, 1)
    p = problem.prior
    prior = dj.priors.mixture(p.w, p.mu.reshape(-1, *shape), bases=p.Q, eigenvalues=p.lam, group=p.group)
    image = lambda flat: jnp.asarray(flat.reshape(shape), jnp.float32)
    # the priors are Gaussian: values beyond [-1, 1] are in range
    y = dj.Measurement(image(problem.A.T @ problem.y), dj.operators.Mask(image(problem.A.sum(0))), value_range=(-4.0, 4.0))
    many, schedule, rows = sampler(shape, times, levels, jump)
    x = many(jax.random.split(jax.random.key(seed), samples), method(prior.denoiser(schedule), y))
    return np.asarray(x, np.float64).reshape(samples, -1), rows


def hidden_error(problem, x):
    """Error of the mean over the hidden pixels, whitened by the exact posterior there."""
    mean, covariance = problem.posterior.moments()
    hidden = problem.A.sum(0) == 0
    e, V = np.linalg.eigh(covariance[np.ix_(hidden, hidden)])
    return float(np.sqrt((((x.mean(0) - mean)[hidden] @ V / np.sqrt(e)) ** 2).mean()))


def row(oracle, name, times, samples):
    problem = oracle.load(name)
    x, rows = restore(problem, times, samples=samples)
    s = oracle.score(problem, x)
    out = {"problem": name, "times": times, "calls": rows, "mean_err": s["mean_err"], "hidden_err": hidden_error(problem, x),
           "sw2": s["sw2"], "sw2w": s["sw2w"]}  # fmt: skip
    if problem.prior.K > 1:
        w = problem.posterior.w
        exact = oracle.scores._scorer(problem, samples).null_mean["w_tv"]
        found = problem.prior.responsibilities(x).mean(0)
        out |= {"w_tv": s["w_tv"], "w_exact": exact, "w_prior": 0.5 * float(np.abs(problem.prior.w - w).sum())}
        for key, value in (("weights", found), ("exact weights", w), ("prior weights", problem.prior.w)):
            out[key] = " ".join(f"{v:.2f}" for v in value)
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in out.items()}


def main(argv=None):
    parser = Parser("experiments.repaint_on_mixtures", __doc__)
    parser.add_argument("--samples", type=int, default=512, help="restorations per cell (default 512, the oracle's)")
    parser.add_argument("--out", default=str(record.FOLDER), help="folder for the result (default experiments/results)")
    args = parser.parse(argv)
    if args.samples < 16:
        raise UserError(f"--samples {args.samples} is too few to estimate anything: give 16 or more")
    try:
        Path(args.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {args.out} cannot be written ({error.strerror}): give another with --out") from None
    oracle = load_oracle()
    rows = []
    for name in MIXTURES + GAUSSIANS:
        for times in TIMES:
            rows.append(row(oracle, name, times, args.samples))
            print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    command = "python -m experiments.repaint_on_mixtures" + (f" --samples {args.samples}" if args.samples != 512 else "")
    print("\n" + record.write("repaint_mixtures", command, rows, args.out))


if __name__ == "__main__":
    sys.exit(run(main))
