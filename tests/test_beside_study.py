"""Told or guided: the scores, what is restored without a network, and the program from end to end."""

import json

import numpy as np
import pytest
import tiny_prior
from test_beside import HOLES

from diffjax import zoo
from diffjax.cli import tasks
from experiments import beside


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.uniform(-0.8, 0.8, (3, 4, 4, 3)), np.ones((8, 8, 1)))
    return smooth.astype(np.float32)


@pytest.mark.parametrize("task", ["sr4", "half"])
def test_the_scores_by_what_is_known_of_their_answers(task, truth):
    ys, operators = tasks.measure(task, truth, seed=0)
    first = beside.cell(truth, ys, operators, truth[:, None])
    assert first["psnr"] == [100] * 3 and first["lpips"] == [0] * 3 and first["spread"] is None
    assert max(first["misfit"]) < 1e-4
    d = np.float32(0.1)
    pair = np.stack([truth + d, truth - d], 1)[:2]
    second = beside.row(task, "pixels", "beside it", beside.cell(truth[:2], ys[:2], operators[:2], pair, 7.04, 1.239), first)
    assert second["PSNR"] == pytest.approx(20 * np.log10(2 / d), abs=0.01)  # of a range of 2
    assert second["misfit"] == pytest.approx(d / 2, abs=1e-3)  # on [0, 1]
    assert second["spread"] == pytest.approx(np.sqrt(2) * d / 2, abs=1e-4)  # of a pair d above and d below, ddof 1
    assert second["from told"].startswith("+0.") and (second["pictures"], second["calls"], second["seconds"]) == (2, 7.0, 1.24)


def test_what_is_made_without_a_network(truth):
    x = beside.nothing_learned(*tasks.measure("half", truth))
    assert x.shape == (3, 1, 32, 32, 3)
    np.testing.assert_array_equal(x[:, 0, :, :16], truth[:, :, :16])
    grey = np.full((2, 32, 32, 3), 0.3, np.float32)
    np.testing.assert_allclose(beside.nothing_learned(*tasks.measure("sr4", grey))[:, 0], grey, atol=1e-5)


def test_held_out_pictures_are_the_same_whatever_their_number():
    test = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    x = beside.held_out(test, 9, seed=0)
    found = (x[:, 0, 0, 0] + 1) * 127.5
    assert len(set(found.round())) == 9 and (np.abs(np.diff(found)) > 3).mean() > 0.5
    np.testing.assert_array_equal(beside.held_out(test, 4, seed=0), x[:4])
    assert (beside.held_out(test, 9, seed=1) != x).any()


def test_the_program(tmp_path, monkeypatch):
    """Tiny priors of grey pictures, one method of each kind, one level. What is known comes back; of latents it is pasted."""
    tiny_prior.write(tmp_path / "pixels")
    tiny_prior.write_latent(tmp_path / "latents")
    auto = tiny_prior.autoencoder()
    card = {"name": "holes", "config": HOLES, "autoencoder": zoo.first_stage.entry(auto, tiny_prior.FIRST)}
    zoo.save(tmp_path / "holes", tiny_prior.params(config=HOLES), card, autoencoder=auto)
    x = np.random.default_rng(0).integers(0, 256, (4, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x_train=x[:1], x_test=x[1:])
    monkeypatch.setattr(beside, "TOLD", {"DDIM": beside.TOLD["50 levels, DDIM"]})
    monkeypatch.setattr(beside, "LATENTS", ("dps",))
    monkeypatch.setattr(beside, "PIXELS", ("ddnm",))
    options = {"sr": "holes", "inpaint": "holes", "latents": "latents", "pixels": "pixels", "data": "data.npz"}
    line = [f"--{name}={tmp_path / at}" for name, at in options.items()]
    line += ["--images=2", "--decoded=2", "--samples=2", "--steps=1", "--batch=2", f"--out={tmp_path / 'out'}"]
    line += [f"--cells={tmp_path / 'cells'}", "--tasks", "half"]
    assert beside.main(line) == 0
    monkeypatch.setattr(beside, "restored", None)  # all is kept
    assert beside.main(line) == 0
    record = json.loads((tmp_path / "out" / "beside.json").read_text())
    rows = {(row["prior"], row["method"]): row for row in record["rows"]}
    told = rows["told", "DDIM"]
    assert list(rows)[:3] == [("told", "DDIM"), ("latents", "dps"), ("pixels", "ddnm")]
    assert told["spread"] > 0 and told["seconds"] > 0 and told["calls"] == 1 and rows["latents", "dps"]["spread"] is None
    assert told["misfit"] == 0, "pasted"
    assert rows["latents", "dps"]["misfit"] == rows["-", "smoothest surface"]["misfit"] == 0
    assert (tmp_path / "out" / "beside.png").stat().st_size > 1000
