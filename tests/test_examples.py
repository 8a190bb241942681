"""experiments/examples, in small: they run, and show what they say they show."""

import json

import numpy as np

from diffjax import zoo
from experiments import photograph
from experiments.examples import interpolate, learn_zeta, masks_in_one_batch, own_operator, sweep


def test_own_operator():
    scores = own_operator.main(images=1, steps=15)
    assert set(scores) == {"dps", "mmps", "diffpir"}
    assert min(scores.values()) > 12  # dB; grey is 5


def test_sweep_compiles_once():
    scores, programs = sweep.main(images=2, steps=6, values=3)
    assert programs == 1
    assert scores[1] > max(scores[0], scores[2])  # the best lambda lies inside


def test_masks_in_one_batch():
    restored, apart = masks_in_one_batch.main(images=2, steps=4)
    assert np.isfinite(restored).all() and apart < 1e-5


def test_learn_zeta():
    losses = learn_zeta.main(images=1, steps=4, updates=4)
    assert losses[-1] < 0.97 * losses[0]


def test_interpolate(tmp_path):
    """The ends of the walk are the images, as far as the solver says; the latents on the way keep their length."""
    strips, errors, arcs = interpolate.main(points=2, rtol=1e-2, out=tmp_path / "strip.png", pairs=((0, 4),))
    images = zoo.bundled.images("fashion")[0][[0, 4]]
    apart = np.sqrt(np.mean((strips[0, [0, -1]] - images) ** 2, axis=(1, 2, 3)))
    np.testing.assert_allclose(apart, errors[0], rtol=0.5)
    assert apart.max() < 0.4 < np.sqrt(np.mean((images[0] - images[1]) ** 2))
    lengths = np.linalg.norm(arcs[0].reshape(2, -1), axis=1)
    assert abs(lengths / 32 - 1).max() < 0.3 and (tmp_path / "strip.png").is_file()


def test_photograph(tmp_path):
    assert photograph.main(["--size", "64", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "photograph.json").read_text())["rows"]
    assert all(row["restored"] > row["seen"] + 1 for row in rows)  # dB
    assert (tmp_path / "photograph.png").is_file()
