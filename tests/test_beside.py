"""Priors that are told a measurement beside their input: the condition, what training draws, ``diffjax restore`` by them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_prior

import diffjax as dj
from diffjax import autoencoder, cli, zoo
from diffjax.base import Measurement, replace
from diffjax.cli import config, tiles, training_run
from diffjax.operators import Blur, Downsample, Mask, Resize, masks, resize
from diffjax.training import data
from diffjax.zoo import beside

HALF = jnp.ones((8, 8, 1)).at[:, 5:].set(0)
D = np.random.default_rng(0).standard_normal((4, 2))


def drawn(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


def test_a_small_picture_is_told_as_it_is_or_enlarged():
    y = drawn(4, 4, 3)
    for A in (Resize(2), Downsample(2)):
        np.testing.assert_array_equal(beside.condition("sr2", Measurement(y, A), None, (4, 4, 3)), y)  # latents of f = 2
        np.testing.assert_allclose(beside.condition("sr2", Measurement(y, A), None, (8, 8, 3)), resize(y, 2), atol=1e-6)


def test_a_hole_is_told_with_its_mask_and_nothing_of_what_it_hides():
    x, other = drawn(8, 8, 3), drawn(8, 8, 3, seed=2)
    y = jnp.where(HALF > 0, x, other)  # what a measurement holds where nothing was measured
    told = beside.condition("inpaint", Measurement(y, Mask(HALF)), None, (8, 8, 3))
    assert told.shape == (8, 8, beside.channels("inpaint", 3))
    np.testing.assert_array_equal(told[:, :5, :3], x[:, :5])
    assert (told[:, 5:, :3] == -1).all() and (told[..., 3] == 2 * HALF[..., 0] - 1).all()


def test_in_latents_the_hole_is_encoded_and_a_cell_is_known_where_all_its_pixels_are():
    auto = autoencoder.linear(D, f=2)
    x = drawn(8, 8, 1)
    told = beside.condition("inpaint", Measurement(x, Mask(HALF)), auto, (4, 4, 2))
    corner = jnp.ones((8, 8, 1)).at[0, 1].set(0)  # hides a pixel of the first cell, and not its upper left one
    marks = [beside.condition(name, Measurement(x, Mask(corner)), auto, (4, 4, 2))[0, 0, -1] for name in beside.HOLES]
    assert marks == [-1, -1] and beside.condition("inpaint-ldm", Measurement(x, Mask(HALF)), auto, (4, 4, 2))[0, 0, -1] == -1
    assert told.shape == (4, 4, beside.channels("inpaint", 1, 2))
    np.testing.assert_allclose(told[..., :2], auto.encode(jnp.where(HALF > 0, x, -1)), atol=1e-6)
    assert (told[..., 2] == np.array([1, 1, -1, -1])).all()  # column 4 is known, column 5 is not


@pytest.mark.parametrize(("told", "A", "said"), [
    ("sr4", Resize(2), "enlarges pictures 4 times, and Resize\\(2\\)"), ("sr4", Mask(HALF), "and Mask is another operator"),
    ("inpaint", Downsample(2), "Downsample is no mask"), ("inpaint", Blur(np.ones((3, 3)) / 9), "Blur is no mask"),
    ("sr", Resize(2), "condition 'sr' is unknown"), ("sr1", Resize(2), "condition 'sr1' is unknown"),
])  # fmt: skip
def test_another_measurement_is_refused(told, A, said):
    with pytest.raises(ValueError, match=said):
        beside.condition(told, Measurement(drawn(8, 8, 1), A), None, (8, 8, 1))


@pytest.mark.parametrize("told", ["sr2", "inpaint"])
def test_what_is_learned_from_is_what_the_operator_measures(told):
    x = drawn(8, 8, 3)
    measured = [beside.draw(told, jax.random.key(n), x) for n in range(3)]
    for m in measured:
        np.testing.assert_allclose(m.A(x), m.y, atol=1e-6)
    assert len({np.asarray(m.y).tobytes() for m in measured}) == (1 if told == "sr2" else 3)


def test_holes_are_of_many_kinds_and_never_all_or_nothing():
    masks = np.asarray(jax.vmap(lambda key: beside.hole(key, (32, 32)))(jax.random.split(jax.random.key(0), 400)))
    share = masks.mean((1, 2))
    assert share.min() > 0 and share.max() < 1 and share.std() > 0.2
    corners = masks[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert 0.05 < (~corners.any(1)).mean() < 0.4, "all but a part in the middle"
    sides = [(masks[:, :, k].all(1) & ~masks[:, :, -1 - k].any(1)).mean() for k in (0, -1)]
    assert min(sides) > 0.03, "either half"


def test_strokes_hide_as_much_as_lamas():
    """Their generator, in numpy, with boxes in three of ten."""
    row, column = jnp.arange(64)[:, None] / 64, jnp.arange(64)[None] / 64
    drawn = np.asarray(jax.vmap(lambda key: beside.strokes(key, row, column))(jax.random.split(jax.random.key(0), 300)))
    hidden = drawn.mean((1, 2))
    lamas = 1 - np.array([masks.wide((64, 64), seed).mean() for seed in range(300)])
    assert 0 < hidden.min() and hidden.max() <= 0.5
    assert abs(hidden.mean() - lamas.mean()) < 0.08 and abs(hidden.std() - lamas.std()) < 0.04
    edges = np.abs(np.diff(drawn.astype(int), axis=2)).sum((1, 2)) / 64
    theirs = [np.abs(np.diff(masks.wide((64, 64), seed), axis=1)).sum() / 64 for seed in range(300)]
    assert 0.6 < edges.mean() / np.mean(theirs) < 1.5, "as ragged"


def test_tiles_see_what_is_beside_them():
    """A network of a tile that must have its part of the condition, not another, and the index as it is."""

    class Net:
        def apply(self, params, x, i, cond):
            assert cond.shape[:2] == x.shape[:2] == (8, 8)
            return params * x + cond[..., :3] * cond[..., 3:] + i

    x, cond = drawn(12, 20, 3), drawn(12, 20, 4, seed=2)
    np.testing.assert_allclose(
        tiles.Tiled(Net(), 8, 2).apply(2.0, x, 5, cond), 2 * x + cond[..., :3] * cond[..., 3:] + 5, atol=1e-5
    )


# --- a prior ------------------------------------------------------------------------------------------------------------

CONFIG = tiny_prior.CONFIG | {"network": "concat", "classes": 0, "condition": "sr4", "condition_channels": 1, "rescale": False}
HOLES = tiny_prior.LATENT | {
    "network": "concat",
    "classes": 0,
    "condition": "inpaint",
    "condition_channels": 3,
    "rescale": False,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    at = tmp_path_factory.mktemp("beside")
    tiny_prior.write(at / "sr4", config=CONFIG, class_names=())
    auto = tiny_prior.autoencoder()
    card = {"name": "holes", "config": HOLES, "autoencoder": zoo.first_stage.entry(auto, tiny_prior.FIRST)}
    zoo.save(at / "holes", tiny_prior.params(config=HOLES), card, autoencoder=auto)
    return at


def test_the_network_sees_its_condition_and_any_method_takes_it(folders):
    prior = zoo.load(folders / "sr4")
    y = drawn(8, 8, 1)
    m = Measurement(y, Resize(4))
    x, t = drawn(32, 32, 1, seed=3), 300.0
    see = jax.jit(lambda prior, y, x: prior.denoiser(prior.told(replace(m, y=y)))(x, t).x0)
    assert np.abs(see(prior, y, x) - see(prior, -y, x)).max() > 1e-3
    by_hand = prior.net.apply(prior.params, x, t - 1, resize(y, 4))
    got = prior.denoiser(prior.told(m), clip=False)(x, t)
    np.testing.assert_allclose(prior.schedule.alpha(t) * x - prior.schedule.sigma(t) * by_hand, got.x0, atol=1e-4)
    table = dj.timetables.log_snr(prior.schedule, 3)
    diffpir = dj.methods.DiffPIR(prior.denoiser(prior.told(m)), m)
    assert np.isfinite(dj.sample(jax.random.key(0), diffpir, table, prior.shape).x).all()
    with pytest.raises(ValueError, match="is not told measurements"):
        dataclasses.replace(prior, beside="").told(m)


def test_restore_by_the_prior_itself(folders, tmp_path, capsys):
    def run(line):
        code = cli.main([*line.replace("AT", str(folders)).split(), "--devices", "1", "--out", str(tmp_path / "out")])
        return code, capsys.readouterr()

    usual = "--images bundled:fashion --limit 2 --samples 1 --steps 3"
    code, said = run(f"restore --prior AT/sr4 --task sr4 {usual}")
    content = json.loads((tmp_path / "out" / "tiny" / "metrics.json").read_text())
    assert code == 0 and content["method"] == "conditional" and content["noise"] == 0, "as it learned"
    code, said = run(f"restore --prior AT/holes --mask half {usual}")
    assert code == 0, said.err
    for line, why in {
        "restore --prior AT/sr4 --mask half": "enlarges pictures 4 times, and Mask",
        "restore --prior AT/holes --task deblur": "Blur is no mask",
        "restore --prior AT/sr4 --task sr4 --label Bag": "leave out --label",
        "restore --prior AT/holes --mask half --mask-latents": "--mask-latents is about others",
        "restore --prior fashion32 --task sr4 --method conditional": "is for priors that are told what is measured",
        "sample --prior AT/sr4": "use diffjax restore --prior",
    }.items():
        code, said = run(f"{line} {usual if line.startswith('restore') else ''}")
        assert code == 2 and why in said.err and said.err.strip().count("\n") == 0, said.err


def test_pixels_that_are_known_come_back(folders, tmp_path):
    """The decoder does not reproduce them: they are pasted, as the official script blends them."""
    from PIL import Image

    line = f"restore --prior {folders}/holes --mask half --images bundled:fashion --limit 1 --samples 1 --steps 2 --devices 1"
    assert cli.main([*line.split(), "--out", str(tmp_path / "out")]) == 0
    x, _ = zoo.bundled.images("fashion")
    (file,) = (tmp_path / "out" / "holes" / "images").iterdir()
    made = np.asarray(Image.open(file)).astype(float) / 127.5 - 1
    np.testing.assert_allclose(made[:, :16], np.asarray(x[0, :, :16, 0]), atol=0.01)
    asked = line.replace("--mask", "--task").split() + ["--noise", "0.05", "--out", str(tmp_path / "noisy")]
    assert cli.main(asked) == 0  # but noise is not put in
    noisy = json.loads((tmp_path / "noisy" / "holes" / "metrics.json").read_text())
    assert noisy["misfit"] > 0.1, noisy


def test_training_shows_a_mirrored_picture_with_the_moments_of_the_mirrored_picture(tmp_path):
    """They are stored apart: what is encoded once, and the picture of which the condition is made at each step."""
    tiny_prior.write_latent(tmp_path / "auto")
    pictures = np.random.default_rng(0).integers(0, 256, (6, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x_train=pictures[:4], x_test=pictures[4:])
    values = tiny_prior.LATENT | {"network": "concat", "classes": 0, "condition": "sr2", "condition_channels": 1, "flip": True,
                                  "batch": 8, "data": str(tmp_path / "data.npz"), "autoencoder": str(tmp_path / "auto"),
                                  "out": str(tmp_path / "run")}  # fmt: skip
    run = training_run.Run(config.from_dict(values, "test"))
    batch, encode = run.stream(0), jax.jit(lambda x: run.autoencoder.encode(x))
    shown = batch["cond"][..., 0]
    mirrored = [not any((x == picture).all() for picture in pictures) for x in shown]
    assert 0 < sum(mirrored) < 8 and all((x[:, ::-1] == pictures).all((1, 2)).any() for x in shown[mirrored])
    for n in range(8):
        x = data.scale(batch["cond"][n])
        np.testing.assert_allclose(batch["x"]["mean"][n], encode(x), atol=1e-4)
        got = run._decode(jax.tree.map(lambda a: a[n], batch), jax.random.key(0))
        np.testing.assert_allclose(got["cond"], Resize(2)(x), atol=1e-5)
    run.lock.release()
