"""``diffjax restore``, ``sample`` and ``evaluate-prior`` with priors of latents, of random weights; laws of restoring many."""

import argparse
import functools
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_prior
from PIL import Image

import diffjax as dj
from diffjax import autoencoder, batch, cli, operators, registry, zoo
from diffjax.base import Measurement, replace
from diffjax.cli import images, latents, quality, told
from diffjax.cli.errors import UserError
from diffjax.training import data

read = lambda *path: np.asarray(Image.open("/".join(map(str, path)))).astype(int)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Priors of 16x16x2 latents of 32x32 pictures: with classes, with words and boxes, with a scale that does not fit."""
    at = tmp_path_factory.mktemp("priors")
    tiny_prior.write_latent(at / "classes")
    tiny_prior.write_latent(at / "words", config=tiny_prior.WORDS)
    tiny_prior.write_latent(at / "large", scale=6.0)
    tiny_prior.write_latent(at / "small", scale=0.02)
    tiny_prior.write(at / "pixels")
    return at


@pytest.fixture
def run(folders, tmp_path, capsys, monkeypatch):
    """run("restore --prior NAME ...") -> (exit code, error, folder of the output)"""
    monkeypatch.setattr(zoo, "load", lambda name, config=None: loaded(name))

    def run(line, *more):
        words = [str(folders / w) if p == "--prior" else w for p, w in zip(["", *line.split()], line.split())]
        code = cli.main([*words, *more, "--devices", "1", "--out", str(tmp_path / "out")])
        return code, capsys.readouterr().err, tmp_path / "out"

    return run


loaded = functools.cache(zoo.load)


@pytest.mark.parametrize(
    ("line", "more", "said"),
    [
        ("restore --prior classes --method repaint", (), "use copaint-fast, .*dps, psld, resample, .*or --mask-latents"),
        ("restore --prior classes --task sr4 --method ddrm", (), "does not restore through a decoder, .*optimise-start"),
        ("restore --prior pixels --mask-latents", (), "is one of pixels, and --mask-latents is about latents"),
        ("restore --prior pixels --paste", (), "--paste is about latents"),
        ("restore --prior classes --task sr4 --paste", (), "--paste puts in what was measured, noise and all"),
        ("restore --prior classes --task sr4 --mask-latents", (), "--mask-latents goes with a mask"),
        ("restore --prior classes --text red", (), "reads neither words nor boxes: use --label, one of T-shirt/top"),
        ("restore --prior words --label bag", (), "knows no labels, it is told words and boxes: use --text"),
        ("restore --prior words --text blue", (), "unknown word 'blue'"),
        ("restore --prior large", (), "latents of these pictures have standard dev.* after the scale 6, .*wants about 1"),
        ("restore --prior small", (), "latents of these pictures have standard dev.* after the scale 0.02, .*wants about 1"),
        ("sample --prior pixels --text red", (), "reads neither words nor boxes"),
        ("sample --prior words --class 3", (), "use --text in place of --label"),
        ("sample --prior words --text", ("a red bag a bag",), "the text has 5 words, this prior reads 4: use fewer"),
        ("sample --prior words --boxes bag:0,0,1", (), "'bag:0,0,1' is no box: write NAME:TOP,LEFT,BOTTOM,RIGHT"),
        ("sample --prior words --boxes bag:0.5,0,0.2,1", (), "give top, left, bottom, right in .0, 1., top < bottom"),
        ("sample --prior words --boxes shoe:0,0,1,1", (), "unknown box 'shoe'"),
        ("sample --prior words --guidance nan --text red", (), "--cfg nan is no scale"),
        ("sample --prior words --guidance 2", (), "give one with --label, or words with --text"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(run, line, more, said):
    code, error, out = run(line, *more)
    assert code == 2 and error.count("\n") == 1 and not out.exists()
    assert re.search(said, error), error


def test_half_a_picture(run, folders):
    """What is pasted is what was known; the rest is what the decoder made of it."""
    line = "restore --prior classes --images bundled:fashion --limit 1 --samples 2 --steps 2 --seed 3 --method dps --paste"
    code, error, out = run(line)
    assert code == 0, error
    report = json.loads((out / "tiny" / "metrics.json").read_text())
    assert (report["method"], report["network_calls"], report["images"][0]["known"]) == ("dps", 2, 0.5)
    truth = images.to_uint8(zoo.bundled.images("fashion")[0][0])[..., 0].astype(int)
    found = [read(out, "tiny", "images", f"fashion-00-{n}.png") for n in range(2)]
    for pasted in found:
        assert np.abs(pasted[:, :16] - truth[:, :16]).max() <= 1 and np.abs(pasted[:, 16:] - truth[:, 16:]).max() > 5
    assert np.abs(found[0] - found[1])[:, 16:].mean() > 1


def test_sentences_and_boxes(run):
    line = "sample --prior words --samples 2 --steps 2 --guidance 2 --boxes bag:0,0,0.5,0.5"
    code, error, out = run(line, "--text", "a red bag", "two bag")
    assert code == 0, error
    names = sorted(p.name for p in (out / "images").iterdir())
    assert [name.rsplit("-", 1)[1] for name in names] == ["000.png", "001.png"] * 2
    report = json.loads((out / "metrics.json").read_text())
    assert report["text"] == ["a red bag", "two bag"] and report["boxes"] == [["bag", 0, 0, 0.5, 0.5]] and report["cfg"] == 2
    one, two, other, _ = (read(out, "images", name) for name in names)
    assert one.shape == (32, 32) and np.abs(one - two).mean() > 1
    assert np.abs(one - other).mean() > 0.2  # told something else, from the same noise


def test_nothing_said_is_the_null_condition(folders):
    prior = zoo.load(folders / "words")
    options = argparse.Namespace(text=None, boxes=[])
    assert told.conditions(options, prior) == [(None, prior.name)]
    null = prior.condition(None)
    assert set(null) == {"tokens", "boxes", "classes"} and not any(np.any(a) for a in null.values())
    z = np.random.default_rng(0).standard_normal(prior.shape).astype(np.float32)
    red = prior.vocabulary.condition("red")
    one = jax.jit(lambda denoise: denoise(z, 500.0).x0)
    x0 = lambda *given: np.asarray(one(prior.denoiser(*given)))
    np.testing.assert_array_equal(x0(), x0(null))
    np.testing.assert_allclose(x0(red, 0.0), x0(), atol=1e-5)
    assert np.abs(x0(red) - x0()).max() > 1e-3


# --- restoring many -------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(5)
D = RNG.normal(size=(16, 3)) / 4


def linear_prior(seed=0):
    """Of 2x2x3 latents of 8x8 pictures, x = D z: with a network of random weights."""
    w = np.random.default_rng(seed).normal(size=(12, 12)).astype(np.float32) / 12

    class Net:
        def apply(self, params, x, i, cond=None):
            bias = 0 if cond is None else 0.1 * cond
            return (jnp.tanh(params @ x.reshape(-1)) + bias).reshape(x.shape)

        def __eq__(self, other):
            return type(other).__name__ == "Net"

        def __hash__(self):
            return 0

    schedule = zoo.load("fashion32").schedule
    auto = autoencoder.linear(D, f=4)
    card = json.dumps({"autoencoder": {"config": {"channels": 1}}})
    return zoo.Prior(
        jnp.asarray(w), schedule, "linear", Net(), (2, 2, 3), "v", 4, (), card, null=np.int32(4), autoencoder=auto
    )


def measured(count=3):
    masks = (np.arange(count * 64).reshape(count, 8, 8, 1) % 3 > 0).astype(np.float32)
    ys = masks * RNG.uniform(-0.5, 0.5, (count, 8, 8, 1)).astype(np.float32)
    return ys, [operators.Mask(mask) for mask in masks]


@pytest.mark.parametrize("name", ["dps", "psld", "diffpir", "resample"])
def test_an_image_in_a_batch_is_what_it_is_alone(name):
    """Whatever is restored beside it: the decoding of what the method itself gives."""
    prior, (ys, ops) = linear_prior(), measured()
    entry = registry.get(name)
    many = batch.restore(prior, entry, ys, ops, samples=1, steps=4, batch=4, devices=2)
    assert many.x.shape == (3, 1, 8, 8, 1)
    A = operators.Decoded(ops[2], prior.autoencoder)
    method, kernel, table = entry.build(prior.denoiser(), Measurement(ys[2], A, 0.0), 4)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2), 0)
    z = dj.sample(key, method, table, prior.shape, kernel=kernel).x
    np.testing.assert_allclose(many.x[2, 0], prior.decode(z), rtol=1e-4, atol=2e-5)


def test_one_program_for_weights_and_scales_of_guidance():
    """Another prior, another autoencoder, another scale: no new program, and no weights in it."""
    ys, ops = measured(1)
    entry, programs, found = registry.get("dps"), batch.Programs(), []
    for seed, cfg, scale in ((0, 2.0, 1.0), (1, 2.0, 1.0), (0, 3.0, 1.0), (0, 2.0, 1.5)):
        prior = linear_prior(seed)
        prior = replace(prior, autoencoder=replace(prior.autoencoder, scale=scale))
        found.append(batch.restore(prior, entry, ys, ops, labels=[1], cfg=cfg, steps=3, devices=1, programs=programs).x)
    assert len(programs) == 1
    assert all(np.abs(found[0] - x).max() > 1e-4 for x in found[1:])
    job = batch.check(prior, entry, ys, ops, 0.0, [1], 2.0, 3)

    def drawn(leaves, y, A, key):
        method, kernel, table = job.build(leaves, y, A, 1, {})
        return job.picture(leaves, y, A, dj.sample(key, method, table, prior.shape, kernel=kernel).x)

    given = (job.leaves, ys[0], ops[0], jax.random.key(0))
    weights = {a.size for a in jax.tree.leaves((prior.params, prior.autoencoder)) if np.size(a) > 12}
    assert weights == {16, 48, 144} and not weights & held(jax.make_jaxpr(drawn)(*given))
    closed_over = jax.make_jaxpr(lambda *rest: drawn(job.leaves, *rest))(*given[1:])
    assert weights <= held(closed_over), "this test would not see them"


def held(closed) -> set:
    """Sizes of the constants in a program and in those within it."""
    inner = [v for eqn in closed.jaxpr.eqns for v in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program)]
    return {np.size(c) for c in closed.consts}.union(*(held(v) for v in inner if is_program(v)))


def is_program(value):
    return hasattr(value, "jaxpr") and hasattr(value, "consts")


def test_what_is_pasted_into_the_picture():
    prior, (ys, ops) = linear_prior(), measured(1)
    plain, pasted = (batch.restore(prior, registry.get("dps"), ys, ops, steps=2, devices=1, paste=p).x[0, 0] for p in (0, 1))
    known = ops[0].mask > 0
    np.testing.assert_allclose(pasted, np.where(known, ys[0], plain), atol=1e-6)
    assert np.abs(plain - ys[0])[known].max() > 0.05


def test_masked_latents_and_methods_that_need_a_mask():
    """The latents whose pixels are all known are those of the picture; their decoding is the result."""
    prior = linear_prior()
    mask = np.ones((8, 8, 1), np.float32)
    mask[:, 4:] = 0
    x = np.asarray(prior.decode(RNG.normal(size=(2, 2, 3)).astype(np.float32)))
    done = batch.restore(
        prior, registry.get("repaint"), mask[None] * x, [operators.Mask(mask)], steps=3, devices=1, masked=True
    )
    np.testing.assert_allclose(done.x[0, 0, :, :4], x[:, :4], atol=1e-4)
    assert np.abs(done.x[0, 0, :, 4:] - x[:, 4:]).max() > 1e-2
    with pytest.raises(ValueError, match="repaint does not restore through a decoder: in latent space use copaint-fast"):
        batch.restore(prior_of_network(prior), registry.get("repaint"), mask[None] * x, [operators.Mask(mask)], devices=1)
    with pytest.raises(ValueError, match="is one of pixels: masked= is about latents"):
        A = operators.Mask(np.ones((32, 32, 1)))
        batch.restore(zoo.load("fashion32"), registry.get("dps"), np.zeros((1, 32, 32, 1)), [A], masked=True)


def prior_of_network(prior):
    """The same with an offset, so that decode is not known to be linear."""
    return replace(prior, autoencoder=autoencoder.linear(D, 0.1, f=4))


def test_gradient_through_decode_is_that_of_finite_differences():
    with jax.enable_x64(True):
        auto = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tiny_prior.autoencoder())
        A = operators.Decoded(operators.Downsample(4), auto)
        z, v = (jnp.asarray(RNG.normal(size=(16, 16, 2))) for _ in range(2))
        y = jnp.asarray(RNG.normal(size=(8, 8, 1)))
        loss = jax.jit(lambda z: jnp.sum(A.residual(z, y) ** 2))
        slope, step = jnp.vdot(jax.grad(loss)(z), v), 1e-5
        np.testing.assert_allclose((loss(z + step * v) - loss(z - step * v)) / (2 * step), slope, rtol=1e-6)


# --- how good it is -------------------------------------------------------------------------------------------------


def test_a_prior_of_latents_is_measured(folders):
    """Reconstructions and held-out loss, of pictures given."""
    prior = zoo.load(folders / "classes")
    x, labels = zoo.bundled.images("fashion")
    x, labels = images.to_uint8(x[:8]), labels[:8].astype(np.int32)
    flat = lambda x: x.reshape(len(x), -1)[:, ::64].astype(float)
    found = quality.reconstructions(prior, x, flat)["autoencoder"]
    back = jax.jit(jax.vmap(lambda auto, x: auto.decode(auto.encode(x)), (None, 0)))(prior.autoencoder, quality.to_float(x))
    error = np.mean((np.clip(back, -1, 1) - (x / 127.5 - 1)) ** 2, axis=(1, 2, 3))
    assert found["psnr"] == pytest.approx(np.mean(10 * np.log10(4 / error)), abs=2e-3) and found["frechet"] > 0
    losses, count = quality.held_out_loss(prior, data.Images(x, labels, x, labels))
    assert count == 8 and np.isfinite(losses).all() and len(losses) == 8
    assert (
        quality.block(prior)[0] is quality.by_classifier and quality.block(prior_of_colour(prior))[0] is quality.by_neighbours
    )


def test_samples_of_conditions_are_decoded(folders):
    prior = zoo.load(folders / "words")
    cond = jax.tree.map(lambda *a: np.stack(a), *[prior.vocabulary.condition(text) for text in ["a bag", "red"] * 4])
    table = dj.timetables.log_snr(prior.schedule, 1)
    draw = quality.sampler(prior, dj.kernels.DDIM(), table, SimpleNamespace(batch=8, seed=0), guided=True)
    drawn = draw(quality.rows_of(cond, np.arange(8)), 2.0)
    assert drawn.shape == (8, 32, 32, 1) and drawn.dtype == np.uint8 and drawn.std() > 1


def prior_of_colour(prior):
    card = prior.card
    card["autoencoder"]["config"]["channels"] = 3
    return replace(prior, text=json.dumps(card))


def test_sides_and_scale(folders):
    prior = zoo.load(folders / "classes")
    with pytest.raises(
        UserError, match=r"bird becomes 33x32, .*2 times smaller: crop it so that both sides are multiples of 2"
    ):
        latents.check_sides(prior, "bird", 32, 33)
    latents.check_sides(prior, "bird", 32, 36)
    assert latents.multiple(prior, 3) == 6 and latents.multiple(zoo.load(folders / "pixels"), 6) == 6
    latents.check_scale(prior, [np.ones((32, 32, 1), np.float32)])
