"""The oracle's problems (tests/oracle: small images, exact denoisers, exact posteriors) for the studies that walk them."""

from __future__ import annotations

import os
import sys
import time

import numpy as np

from . import provenance, records
from .study import Parser, UserError, command, made, use_cores, whole

MIXTURES = ("m5-box-05", "m5-half-05", "m5-rand10-05")
GAUSSIANS = ("g-box-05", "g-half-05", "g-rand10-05")


def load_oracle():
    """The package ``oracle`` of the checkout. Raises UserError where there is none."""
    tests = provenance.ROOT / "tests"
    if not (tests / "oracle").is_dir():
        raise UserError("no folder tests/oracle: run this from a checkout, its problems live with the tests")
    if str(tests) not in sys.path:
        sys.path.insert(0, str(tests))
    import oracle

    return oracle


def mesh():
    """All devices; of those that CPUs pretend to be no more than there are cores."""
    import jax

    import diffjax as dj

    devices = jax.devices()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return dj.parallel.mesh(devices[:cores] if devices[0].platform == "cpu" else devices)


def masked(problem):
    """(prior, measurement, shape) in float32 of a mask problem. Priors are Gaussian: values beyond [-1, 1] are in range."""
    import jax.numpy as jnp

    import diffjax as dj

    shape, p = (*problem.shape, 1), problem.prior
    prior = dj.priors.mixture(p.w, p.mu.reshape(-1, *shape), bases=p.Q, eigenvalues=p.lam, group=p.group)
    image = lambda flat: jnp.asarray(flat.reshape(shape), jnp.float32)
    operator = dj.operators.Mask(image(problem.A.sum(0)))
    return prior, dj.Measurement(image(problem.A.T @ problem.y), operator, value_range=(-4.0, 4.0)), shape


def hidden(problem, x):
    """(error of the mean, geometric mean of the variance) over the hidden pixels, whitened by the exact posterior there."""
    mean, covariance = problem.posterior.moments()
    unseen = problem.A.sum(0) == 0
    e, V = np.linalg.eigh(covariance[np.ix_(unseen, unseen)])
    z = (x - mean)[:, unseen] @ V / np.sqrt(e)
    return float(np.sqrt((z.mean(0) ** 2).mean())), float(np.exp(np.log(z.var(0)).mean()))


def prior_weights_error(problem) -> float:
    """Total variation between the prior's weights and the posterior's: what ignoring y costs."""
    return 0.5 * float(np.abs(problem.prior.w - problem.posterior.w).sum())


def study(module: str, about: str, name: str, cells, row, argv) -> int:
    """The program of a table with ``row(oracle, *cell, samples)`` for each of ``cells``."""
    use_cores()
    parser = Parser(module, about)
    parser.add_argument("--samples", type=whole(16), default=512, help="restorations per cell (default 512, the oracle's)")
    parser.add_argument("--out", **provenance.OUT)
    options = parser.parse(argv)
    made(options.out)
    oracle, rows, start = load_oracle(), [], time.perf_counter()
    for cell in cells:
        found = row(oracle, *cell, options.samples)
        rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()})
        print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    seconds = round(time.perf_counter() - start, 1)
    print("\n" + records.write(name, command(module, argv), rows, options.out, samples=options.samples, seconds=seconds))
    return 0
