"""CoPaint on priors whose posterior is known: its fit to the known pixels reaches the hidden ones, and it is overconfident."""

import functools

import numpy as np
import oracle
import pytest

from experiments.copaint_on_oracle import hidden, restore
from experiments.methods import COPAINT

N, SEEDS = 128, range(3)


@functools.cache
def measured(name, **more):
    """(seeds, [error of the hidden pixels' mean, their variance, rms of A x - y]) of CoPaint-Fast with 50 levels, at the rate
    that does not depend on their number"""
    problem = oracle.load(name)

    def one(seed):
        x = restore(problem, "copaint-fast", N, seed, steps=50, **{**COPAINT, **more})[0]
        return *hidden(problem, x), np.sqrt(((x @ problem.A.T - problem.y) ** 2).mean())

    return np.array([one(seed) for seed in SEEDS])


@pytest.mark.parametrize("name", ["g-box-05", "g-half-05"])
def test_the_fit_reaches_the_hidden_pixels(name):
    """Without the optimisation (a rate of 0) the prior is sampled; exact draws would have an error of 1 / sqrt(N) = 0.09."""
    fitted, prior = measured(name), measured(name, lr=0.0)
    assert (fitted[:, 0] < 0.5 * prior[:, 0].min()).all(), (fitted[:, 0], prior[:, 0])
    assert (fitted[:, 2] < 2 * oracle.load(name).sigma_y).all() and (prior[:, 2] > 5 * fitted[:, 2]).all()


@pytest.mark.parametrize("name", ["g-box-05", "g-half-05"])
def test_it_is_overconfident(name):
    """Variance of exact draws: 0.99, and over at least 64 directions a standard deviation of sqrt(2 / (64 N)) = 0.016."""
    assert (measured(name)[:, 1] < 0.9).all(), measured(name)
