"""experiments/examples, in small: they run, and show what they say they show."""

import json

import numpy as np

from experiments import photograph
from experiments.examples import learn_zeta, masks_in_one_batch, own_operator, sweep


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


def test_photograph(tmp_path):
    assert photograph.main(["--size", "64", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "photograph.json").read_text())["rows"]
    assert all(row["restored"] > row["seen"] + 1 for row in rows)  # dB
    assert (tmp_path / "photograph.png").is_file()
