"""The study of MR volumes: what its networks are shown, what they are trained for, and its tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj

pytest.importorskip("nibabel")
pytest.importorskip("optax")
from experiments.tools import mri, mri_scores, mri_tables

rng = np.random.default_rng(0)


def test_patches_are_pairs_and_depend_on_the_step_alone():
    volumes = [rng.uniform(-1, 1, (32, 36, 28)).astype(np.float32) for _ in range(2)]
    patches = mri.Patches(volumes, volumes[0], batch=12, seed=3)
    fine, enlarged = patches(5)
    assert fine.shape == enlarged.shape == (12, 32, 32, 1) and fine.dtype == np.float32
    np.testing.assert_array_equal(patches(5), (fine, enlarged))
    assert np.abs(patches(6)[0] - fine).max() > 0.1
    for f, e in zip(fine, enlarged):  # of the same place, and smoother: noise loses at least half of its variance
        assert np.corrcoef(f.ravel(), e.ravel())[0, 1] > 0.1 and e.var() < 0.7 * f.var()


@pytest.mark.parametrize("name,K", [("sr3", None), ("partdiff25", 25), ("partdiff50", 50)])
def test_a_network_that_knows_the_answer_has_no_loss(name, K):
    """The noise, from x_t and the image that is mixed at this level: lambda = (K - t) / K, and 1 for SR3."""
    fine, enlarged = jnp.asarray(rng.uniform(-1, 1, (2, 8, 8, 1)), jnp.float32)
    table = mri.schedule()

    class Knows:
        def __init__(self, K):
            self.K = K

        def apply(self, params, x, level, cond):
            t = table.time(2 * (jnp.log(level) - 0.5 * jnp.log1p(-(level**2))))
            share = 1.0 if self.K is None else (self.K - t) / self.K
            return (x - level * (share * fine + (1 - share) * cond)) / jnp.sqrt(1 - level**2)

    losses = {k: [float(mri.loss_of(name, Knows(k))({}, jax.random.key(n), fine, enlarged)) for n in range(6)]
              for k in (K, 37)}  # fmt: skip
    assert max(losses[K]) < 1e-4 < 0.01 < np.mean(losses[37])


def test_regression_begins_at_the_enlarged_image():
    net = mri.network()
    x = jnp.zeros((8, 8, 1))
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(()), x)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    enlarged = jnp.asarray(rng.normal(size=(8, 8, 1)), jnp.float32)
    np.testing.assert_array_equal(mri.regress(net, zeros, enlarged), enlarged)


def test_scores():
    truth = mri_scores.block(rng.uniform(-1, 1, (36, 44, 32)).astype(np.float32))
    assert truth.shape == mri_scores.BLOCK
    coarse = dj.volumes.Coarse("through-plane", 2)
    found = mri_scores.scores(np.clip(truth + 0.2, -1, 1), truth, np.zeros_like(truth), coarse)
    mse = np.mean((np.clip(truth + 0.2, -1, 1) - truth) ** 2)
    assert abs(found["psnr"] - 10 * np.log10(4 / mse)) < 1e-3 and 0 < found["ssim"] < 1 and found["between"] < 1
    half = mri_scores.scores(0.5 * truth, truth, np.zeros_like(truth), coarse)
    assert abs(half["detail"] - 0.5) < 1e-5 and abs(half["between"] - 0.5) < 1e-5


def test_intervals_are_students_over_the_volumes():
    from scipy import stats

    a, b = rng.normal(size=(2, 12)) + 20
    mean, half = mri_tables.interval(a, b)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose((mean - half, mean + half), (low, high))


def test_a_cell_goes_on_where_it_was():
    tests = {str(n): rng.uniform(-1, 1, (12, 12, 12)).astype(np.float32) for n in range(3)}
    bicubic = mri_scores.WAYS["bicubic"]
    some = mri_scores.cell(bicubic, None, "in-plane", 2, dict(list(tests.items())[:2]))
    both = [mri_scores.cell(bicubic, None, "in-plane", 2, tests, known) for known in (None, some)]
    assert both[0]["psnr"] == both[1]["psnr"] and len(both[0]["psnr"]) == 3
    assert mri_scores.first(both[0], 2)["ssim"] == some["ssim"] and mri_scores.first(some, 2) == some


def test_tables_of_cells():
    cell = lambda shift, calls: {"psnr": [20 + shift, 22 + shift, 21.5 + shift], "ssim": [0.5] * 3, "between": [0.9] * 3,
                                 "detail": [0.8] * 3, "network_calls": calls, "seconds": 1.0, "checkpoint": 9}  # fmt: skip
    shifts = {"SR3, T = 100": (0, 100), "PartDiff, K = 50": (0.05, 50), "PartDiff, K = 25": (0.3, 25)}
    cells = {f"{plane} x{factor}/{name}": cell(*of) for name, of in shifts.items() for plane, factor in mri.DEGRADATIONS}
    views = mri_tables.views({"cells": cells, "starts": []})
    assert [row["x4 PSNR"] for row in views["in-plane"]()] == pytest.approx([21.167, 21.217, 21.467], abs=1e-3)
    assert [row["in-plane x2"] for row in views["claim"]()] == ["holds (+0.05)", "no (+0.30)"]
    rows = {row["method"]: row for row in views["psnr from sr3"]()}
    assert rows["PartDiff, K = 25"]["through-plane x4"] == "+0.30 ± 0.00" and "SR3, T = 100" not in rows
    ((label, calls, psnr),) = mri_tables.panels(cells)[0]["lines"]  # of SR3 there is one budget: no line
    assert label == "PartDiff 25, 50" and np.allclose(calls, np.log2([25, 50]))
    np.testing.assert_allclose(psnr, [21.467, 21.217], atol=1e-3)


def test_the_rule_starts_higher_where_more_is_lacking():
    volumes = [np.cumsum(rng.normal(size=(16, 16, 16)), 0) / 10]
    t = mri_scores.rules(volumes)
    assert 1 <= t["through-plane x2"] <= t["through-plane x4"] <= 100 and t["in-plane x2"] < t["in-plane x4"]


def test_calls_are_those_of_the_walk():
    calls = {name: way.calls("through-plane") for name, way in mri_scores.WAYS.items()}
    assert (calls["bicubic"], calls["regression"], calls["SR3, T = 100"], calls["PartDiff, K = 25"]) == (0, 1, 100, 25)
    assert calls["PartDiff, K = 25, DiffPIR 5, two stacks"] == 10
    assert calls["PartDiff, K = 25, DDIM 5, mean of 4"] == 20


def test_ways_have_networks_and_walks_that_fit_them():
    """A PartDiff network walks from its K, unless it is said, and every line of the plot is of methods that there are."""
    for name, way in mri_scores.WAYS.items():
        assert way.network is None or way.network in mri.NETWORKS, name
        if way.how is not None and "started" not in name:
            assert way.how.start == (mri.NETWORKS[way.network] or way.how.start), name
    assert set(sum(mri_tables.BUDGETS.values(), ())) <= set(mri_scores.WAYS)
