"""experiments.tune, and sweeps of batch.restore: one program for all settings, each as if it ran alone."""

import json

import numpy as np
import pytest

from diffjax import batch, zoo
from diffjax import registry as methods
from diffjax.cli import errors, tasks
from experiments import tune


@pytest.fixture(scope="module")
def truth():
    return np.asarray(zoo.bundled.images("fashion")[0][:2])


def test_settings_of_a_sweep_are_as_if_each_ran_alone(prior, truth):
    entry = methods.METHODS["diffpir-20"]
    ys, operators = tasks.measure("deblur", truth, 0.1)
    options = dict(noise_std=0.1, steps=3, devices=1, seed=3)
    swept = batch.restore(prior, entry, ys, operators, sweep={"lam": [0.5, 4.0], "zeta": [0.3, 1.0]}, batch=3, **options)

    def fixed(denoise, measurement, steps):
        return entry.build(denoise, measurement, steps, lam=4.0, zeta=1.0)

    alone = batch.restore(prior, entry._replace(build=fixed), ys, operators, **options)
    assert swept.x.shape == (2, 2, 1, 32, 32, 1) and swept.network_calls == [3, 3] and alone.network_calls == 3
    np.testing.assert_allclose(swept.x[1], alone.x, atol=1e-4)  # from the same noise
    assert np.abs(swept.x[0] - swept.x[1]).max() > 0.01


@pytest.mark.parametrize(
    ("sweep", "said"),
    [({"lamda": [1.0]}, "did you mean 'lam'"), ({"lam": [1.0, 2.0], "zeta": [0.3]}, "lam, zeta differ in number")],
)
def test_sweeps_that_make_no_sense(prior, truth, sweep, said):
    ys, operators = tasks.measure("deblur", truth)
    with pytest.raises(ValueError, match=said):
        batch.restore(prior, methods.METHODS["diffpir"], ys, operators, sweep=sweep)


def test_combinations():
    found = tune.combinations([("a", [1, 2]), ("b", [3.5])], ["a=0,b=1"])
    assert found == [{"a": 1, "b": 3.5}, {"a": 2, "b": 3.5}, {"a": 0, "b": 1}]
    with pytest.raises(errors.UserError, match="not a list of numbers"):
        tune.combinations([("a", 1)], [])
    for given, also in (([], []), ([("a", [1])], ["b=2"])):
        with pytest.raises(errors.UserError, match="nothing to compare"):
            tune.combinations(given, also)


def test_validation_images_are_of_the_test_part_and_not_bundled(prior, monkeypatch):
    """The first of each class in turn; here the test part is the bundled images and three more."""
    from diffjax.training import data

    shown, _ = zoo.bundled.images("fashion")
    as_bytes = lambda x: np.rint((x + 1) * 127.5).astype(np.uint8)
    more = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
    images = type("Images", (), {"test": np.concatenate([as_bytes(shown[:5]), more]),
                                 "test_labels": np.array([0, 1, 2, 3, 4, 7, 7, 1])})  # fmt: skip
    monkeypatch.setattr(data, "load", lambda *a, **k: images)
    monkeypatch.setattr("diffjax.cli.quality.source", lambda prior, data: "nowhere")
    found = tune.validation(prior, None, 3)
    np.testing.assert_array_equal(as_bytes(found), more[[2, 0, 1]])  # class 1, class 7, class 7 again
    with pytest.raises(errors.UserError, match="3 test images are not bundled"):
        tune.validation(prior, None, 4)


def test_the_best_setting_is_that_with_the_lowest_lpips(prior, truth, monkeypatch, tmp_path):
    """DPIR with hardly any prior returns the noise, with all the weight on it a smooth image: the scores differ."""
    monkeypatch.setattr(zoo, "load", lambda name: prior)
    monkeypatch.setattr(tune, "validation", lambda prior, data, count: truth)
    line = "dpir --set lam=[0.001,1,100] --tasks deblur --noise 0.05 --steps 2 --count 2"
    assert tune.main([*line.split(), "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "tune_dpir_noisy_tiny.json").read_text())
    rows = written["rows"]
    scores = [row["deblur: lpips@64"] for row in rows]
    assert [row["lam"] for row in rows] == [0.001, 1, 100] and len(set(scores)) == 3
    assert [row["best"] for row in rows] == ["best" if s == min(scores) else "" for s in scores]
    assert written["command"].startswith("python -m experiments.tune dpir --set ")


def test_errors(tmp_path):
    with pytest.raises(errors.UserError, match="did you mean 'dpir'"):
        tune.main(["dpirr", "--set", "lam=[1]", "--out", str(tmp_path)])
    with pytest.raises(errors.UserError, match="did you mean 'deblur'"):
        tune.main(["dpir", "--set", "lam=[1]", "--tasks", "deblurr", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
