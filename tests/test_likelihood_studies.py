"""experiments.likelihood and experiments.nonequilibrium, in small: they run, and what they compare is comparable."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_prior

from diffjax.cli.errors import UserError
from experiments import likelihood, nonequilibrium, orders
from experiments.tools import curves


def test_the_table_of_a_prior(tmp_path):
    folder = tiny_prior.write(tmp_path / "tiny")
    assert likelihood.main(["--quick", "--levels", "5", "--prior", str(folder), "--out", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "likelihood_tiny.json").read_text())
    assert (tmp_path / "likelihood_tiny.png").is_file() and kept["images"] == 2
    means = {r["estimate"]: r for r in kept["rows"] if r["image"] == "mean"}
    assert set(means) == {"variational", "lower bound", "annealed", "flow"}
    assert np.isfinite(means["flow"]["bits"]) and means["flow"]["error"] > 0
    # the same trajectories: the mean weight is never below the mean of its logarithm
    assert means["annealed"]["bits"] <= means["lower bound"]["bits"] and means["annealed"]["effective"] >= 1
    of = kept["steps"]
    assert len(of["t"]) == len(of["bound"]) and all(
        low <= tight <= high + 1e-4
        for low, tight, high in zip(of["entropy lower"][:-1], of["entropy upper given variance"], of["entropy upper"])
    )


def test_a_prior_of_other_images_is_refused(tmp_path, monkeypatch):
    class Other:
        shape, name = (8, 8, 1), "other"

    monkeypatch.setattr(likelihood.dj.zoo, "load", lambda name: Other())
    with pytest.raises(UserError, match=r"for images of \(8, 8, 1\), those bundled are \(32, 32, 1\)"):
        likelihood.main(["--prior", "other", "--out", str(tmp_path)])


def test_the_roll_is_normalised_and_its_betas_are_learned():
    x = nonequilibrium.roll(jax.random.key(0), 20_000)
    assert abs(np.asarray(x).mean(0)).max() < 0.03 and abs(np.asarray(x).var(0) - 1).max() < 0.03
    params = {"betas": jnp.zeros(10), "net": nonequilibrium.RadialNet(centres=64).init(jax.random.key(1), x[0], jnp.zeros(10))}
    for learned in (True, False):
        gradient = jax.jit(jax.grad(lambda p: nonequilibrium.roll_loss(p, jax.random.key(2), x[:64], learned)))(params)
        assert (np.abs(gradient["betas"]).max() > 1e-4) == learned
        assert max(np.abs(a).max() for a in jax.tree.leaves(gradient["net"])) > 1e-4


def test_heartbeats_are_the_five():
    found = np.unique(np.asarray(nonequilibrium.heartbeats(jax.random.key(0), 200)), axis=0)
    np.testing.assert_array_equal(found, np.unique(nonequilibrium.heartbeats_of(), axis=0))
    assert found.shape == (5, 20) and (found.sum(1) == 4).all()


def test_curves_are_drawn_where_the_numbers_are(tmp_path):
    from PIL import Image

    x = np.arange(5.0)
    panel = {"title": "t", "x": "x", "lines": [("up", x, x), ("gone", x, np.full(5, np.nan))]}
    curves.lines([panel, panel | {"log": True}], tmp_path / "lines.png", width=200, height=100)
    pixels = np.asarray(Image.open(tmp_path / "lines.png").convert("RGB"))
    blue = np.argwhere((pixels[curves.TOP + 1 : curves.TOP + 99, :270] == curves.COLOURS[0]).all(-1))
    assert np.corrcoef(blue[:, 0], blue[:, 1])[0, 1] < -0.99  # it climbs
    points = np.array([[1.0, 1.0], [9.0, 9.0]])
    curves.clouds([[points], [(points, 0.1 * points)]], ["c"], ["r", "s"], tmp_path / "clouds.png", side=100)
    pixels = np.asarray(Image.open(tmp_path / "clouds.png").convert("RGB"))
    at = np.argwhere((pixels[:120] == curves.COLOURS[0]).all(-1)).mean(0)
    assert at[0] < 26 + 50 and at[1] > pixels.shape[1] - 58  # the upper right quarter


def test_the_orders_of_solvers(tmp_path):
    assert orders.main(["--quick", "--out", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "orders.json").read_text())
    theory, found = kept["rows"]
    assert (tmp_path / "orders.png").is_file() and set(found) == {"schedule", "DDIM", "2M", "RK4"}
    for solver in set(found) - {"schedule"}:
        assert abs(found[solver] / theory[solver] - 1) < 0.1 and len(kept["errors"]["cosine"][solver]) == len(orders.ROWS)
