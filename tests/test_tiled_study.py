"""experiments.tiled: what it measures of seams, and the program from end to end."""

import json

import numpy as np
import tiny_prior

from diffjax import zoo
from experiments import tiled


class Prior:
    image_shape, shape = (16, 16, 1), (8, 8, 1)


def test_seams_are_seen_where_tiles_meet_and_nowhere_else():
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(32, 48, 1))
    assert abs(tiled.seams(smooth, Prior) - 1) < 0.15
    stepped = smooth + 30.0 * (np.arange(48) >= 16)[None, :, None]  # where two squares of 16 meet
    assert tiled.seams(stepped, Prior) > 2
    inside = smooth + 30.0 * (np.arange(48) >= 20)[None, :, None]
    assert tiled.seams(inside, Prior) < 0.7


def test_a_canvas_is_its_pictures_moved_round():
    x = np.random.default_rng(0).normal(size=(12, 4, 4, 1))
    found = tiled.canvases(x, 2, 3, seed=0)
    assert found.shape == (2, 8, 12, 1)
    move = np.random.default_rng(0).integers(0, (4, 4), (2, 2))[1]
    back = np.roll(found[1], -move, (0, 1))
    np.testing.assert_array_equal(back[4:, 4:8], x[6 + 4])


def test_the_program(tmp_path):
    tiny_prior.write(tmp_path / "pixels")
    config = {**tiny_prior.CONFIG, "network": "concat", "condition": "sr4", "condition_channels": 1, "classes": 0}
    zoo.save(tmp_path / "told", tiny_prior.params(config=config), {"name": "told", "config": config})
    x = np.random.default_rng(0).integers(0, 256, (9, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x_train=x[:1], x_test=x[1:])
    line = [
        f"--{name}={tmp_path / at}" for name, at in {"sr": "told", "pixels": "pixels", "data": "data.npz", "out": ""}.items()
    ]
    assert tiled.main([*line, "--canvases=2", "--rows=1", "--columns=2", "--steps=2"]) == 0
    rows = json.loads((tmp_path / "tiled.json").read_text())["rows"]
    assert [(row["prior"], row["way"]) for row in rows[:2]] == [("told", "tiles"), ("told", "side by side")]
    assert all(np.isfinite(row["PSNR"]) and row["seams"][:3] != "nan" for row in rows) and len(rows) == 5
    assert (tmp_path / "tiled.png").stat().st_size > 1000
