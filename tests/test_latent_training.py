"""Latent diffusion: moments of a data set, their scale, the losses, words and boxes, and the programs of both phases."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import autoencoder, schedules
from diffjax.cli import train
from diffjax.cli.config import FirstStageConfig, TrainConfig
from diffjax.training import data, latents, losses, step
from diffjax.zoo import first_stage, prior
from diffjax.zoo.vocabulary import Vocabulary
from experiments import configs, factors, orchard, told

LINEAR = schedules.discrete(schedules.linear_betas(30))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (12, 4, 4, 1), dtype=np.uint8)
    return data.Images(x[:8], np.arange(8) % 3, x[8:], np.arange(4) % 3)


@pytest.fixture(scope="module")
def stage():
    """Blocks of 2x2 pixels to two numbers, of a deviation far from 1 and with a posterior's variance; not symmetric."""
    D = np.random.default_rng(1).standard_normal((4, 2)) / 7
    return autoencoder.linear(D, f=2, logvar=np.log([0.5, 2.0]))


@pytest.fixture(scope="module")
def encoded(stage, images):
    return latents.encode(stage, images, flip=True, batch=5, about={"data": "here"})


def test_measured_latents_have_mean_0_and_deviation_1_in_every_channel(encoded):
    z = encoded.examples()["x"]
    mean = z["mean"].reshape(-1, 2).astype(float)
    np.testing.assert_allclose(mean.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(mean.var(0) + np.exp(z["logvar"].astype(float)).reshape(-1, 2).mean(0), 1, rtol=1e-5)


def test_a_latent_is_drawn_anew_and_decodes_to_what_was_encoded(stage, images, encoded):
    one = jax.tree.map(lambda a: jnp.asarray(a[3]), encoded.examples())
    keys = jax.random.split(jax.random.key(0), 4000)
    z = jax.vmap(lambda key: latents.decode(one, key)["x"])(keys)
    np.testing.assert_allclose(z.mean(0), one["x"]["mean"], atol=0.06)
    np.testing.assert_allclose(z.var(0), np.exp(one["x"]["logvar"]), rtol=0.15)
    ready = encoded.normalise(stage)
    x = images.train[3].astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(ready.encode(x), one["x"]["mean"], atol=1e-4)
    assert encoded.examples()["cond"][3] == images.train_labels[3]


def test_a_mirror_image_has_moments_of_its_own(stage, images, encoded):
    batch = encoded.examples(flipped=True)
    other = latents.mirrored(batch)["x"]["mean"]
    want = encoded.normalise(stage).encode(images.train[:, :, ::-1].astype(np.float32) / 127.5 - 1)
    np.testing.assert_allclose(other, want, atol=1e-4)
    assert np.abs(other - batch["x"]["mean"][:, :, ::-1]).max() > 0.1, "mirroring the latent would not do"
    stream = data.Stream(batch, 8, flip=latents.mirrored)(0)
    assert set(latents.decode(jax.tree.map(lambda a: a[0], stream), jax.random.key(0))) == {"x", "cond"}
    with pytest.raises(ValueError, match=r"without mirror images.*flip=True"):
        dataclasses.replace(encoded, train_flipped=None).examples(flipped=True)


def test_the_file_gives_back_what_was_saved_and_says_what_does_not_fit(tmp_path, encoded):
    file = tmp_path / "latents.npz"
    made = dataclasses.replace(encoded, about={"autoencoder": "abc"}, train_cond={"tokens": np.ones((8, 2))}, test_cond=None)
    latents.save(file, made)
    back = latents.load(file, autoencoder="abc")
    jax.tree.map(np.testing.assert_array_equal, dataclasses.asdict(back), dataclasses.asdict(made))
    with pytest.raises(ValueError, match="another autoencoder: delete"):
        latents.load(file, autoencoder="abd")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cannot be read.*encode the data again"):
        latents.load(file)
    np.savez(file, x=np.zeros(3))
    with pytest.raises(ValueError, match="no latents of ours"):
        latents.load(file)


def test_a_scale_that_contradicts_the_data_is_said_with_the_right_one(images):
    """The identity on images of deviation s: a scale of 5 / s makes latents of deviation 5."""
    same = autoencoder.linear(np.eye(1), f=1)
    deviation = float((images.train.astype(float) / 127.5 - 1).std() ** 2 + (images.train / 127.5 - 1).mean() ** 2) ** 0.5
    with pytest.raises(ValueError, match=r"standard deviation 5.* use scale") as caught:
        latents.encode(same, images, scale=5 / deviation * 1.01)
    assert "\n" not in str(caught.value)
    right = float(str(caught.value).split("use scale ")[1].split(",")[0])
    _, std = latents.deviation({"mean": images.train / 127.5 - 1})
    assert right == pytest.approx(1 / std[0], rel=0.02)
    latents.encode(same, images, scale=right)


def test_an_unused_channel_is_refused(images):
    D = np.array([[1.0, 0.0]])
    with pytest.raises(ValueError, match=r"channels \[1\] .* never change"):
        latents.encode(autoencoder.linear(D, f=1), images)


# --- losses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("t", [1, 2, 13])
def test_the_loss_of_latent_diffusion_by_its_formula(norm, t):
    rng = np.random.default_rng(2)
    x, noise, output, log_var = (rng.standard_normal(s) for s in [(3, 3, 2)] * 3 + [30])
    betas = schedules.linear_betas(30)
    bars = np.cumprod(1 - betas)
    d = np.mean((output - noise) ** 2 if norm == "l2" else np.abs(output - noise))
    n = max(t, 2) - 1  # row; its posterior's variance
    variance = betas[n] * (1 - bars[n - 1]) / (1 - bars[n])
    bound = betas[n] ** 2 / (2 * variance * (1 - betas[n]) * (1 - bars[n]))
    want = 0.7 * (d / np.exp(log_var[t - 1]) + log_var[t - 1]) + 0.1 * bound * d
    with jax.enable_x64(True):
        got, terms = losses.eps_loss(lambda x, i: output, LINEAR, jnp.asarray(x), t, jnp.asarray(noise), norm=norm,
                                     log_var=jnp.asarray(log_var), simple_weight=0.7, elbo_weight=0.1)  # fmt: skip
    np.testing.assert_allclose(got, want, rtol=1e-9)
    np.testing.assert_allclose(terms["mse" if norm == "l2" else "mae"], d, rtol=1e-9)


def test_a_loss_that_does_not_exist():
    z = jnp.zeros((2, 2, 1))
    with pytest.raises(ValueError, match="norm 'l3' is unknown"):
        losses.v_loss(lambda x, i: x, LINEAR, z, 1, z, norm="l3")
    with pytest.raises(ValueError, match="elbo_weight is of the bound of a network of eps"):
        losses.v_loss(lambda x, i: x, LINEAR, z, 1, z, elbo_weight=0.1)


def test_the_learned_log_variance_reaches_the_loss_and_has_its_gradient():
    """d / exp(l) + l has its minimum where l = log d."""

    class Net:
        def apply(self, params, x, i, **_):
            return 0.0 * x

    example = step.example_loss(
        Net(), LINEAR, losses.eps_loss, learned=lambda params: {"log_var": params}, decode=lambda e, k: e
    )
    loss = lambda params: example(params, jax.random.key(0), {"x": jnp.zeros((40, 40, 1))}, 3.0, True)[0]
    slope = jax.grad(loss)(jnp.zeros(30))
    assert np.flatnonzero(slope).tolist() == [2]
    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(30).at[2].set(np.log1p(-float(slope[2]))))[2], 0, atol=1e-5)


# --- words and boxes ----------------------------------------------------------------------------------------------

WORDS = Vocabulary(("", "a", "apple", "red"), 4, ("", "apple"), 2)


def test_a_vocabulary_there_and_back():
    told = WORDS.condition("A red apple!", [("apple", 0, 0.25, 0.5, 1)])
    assert WORDS.text(told["tokens"]) == "a red apple" and told["tokens"].tolist() == [1, 3, 2, 0]
    assert told["boxes"].tolist() == [[0, 0.25, 0.5, 1], [0, 0, 0, 0]] and told["classes"].tolist() == [1, 0]
    assert Vocabulary.of(json.loads(json.dumps(WORDS.entry()))) == WORDS
    assert not any(a.any() for a in WORDS.condition().values())


@pytest.mark.parametrize(
    "text, boxes, said",
    [
        ("a red aple", (), "unknown word 'aple': did you mean 'apple'"),
        ("a a a a a", (), "has 5 words, this prior reads 4"),
        ("", [("pear", 0, 0, 1, 1)], "unknown box 'pear'"),
        ("", [("apple", 0.5, 0, 0.5, 1)], "top < bottom"),
        ("", [("apple", 0, 0, 1, 1)] * 3, "3 boxes are more than this prior's 2"),
    ],
)
def test_what_a_vocabulary_does_not_know(text, boxes, said):
    with pytest.raises(ValueError, match=said):
        WORDS.condition(text, boxes)


def fruit(rgb, height, width):
    """A disc on white, 64x64."""
    y, x = np.mgrid[:64, :64] - 31.5
    inside = (2 * y / height) ** 2 + (2 * x / width) ** 2 <= 1
    return np.where(inside[..., None], np.array(rgb), 255).astype(np.uint8)


def test_pictures_of_the_orchard_show_what_their_sentence_and_boxes_say():
    """On discs of one pure colour per kind: where the pixels of a kind are, there are its boxes, and above is above."""
    colours = [(200, 20, 20), (20, 160, 20), (230, 200, 30)]
    crops = orchard.cut(np.stack([fruit(rgb, 50, 40) for rgb in colours]))
    assert [hue for _, hue in crops] == ["red", "green", "yellow"] and crops[0][0].shape == (50, 40, 3)
    said = set()
    for n in range(60):
        made = orchard.picture(crops, [0, 1, 2], np.random.default_rng(n))
        words = orchard.VOCABULARY.text(made["tokens"])
        centres = {}
        for kind, (rgb, name) in enumerate(zip(colours, orchard.NAMES), 1):
            near = np.abs(made["x"].astype(int) - rgb).sum(-1) < 60
            boxes = made["boxes"][made["classes"] == kind]
            inside = np.zeros((64, 64), bool)
            for top, left, bottom, right in np.rint(boxes * 64).astype(int):
                inside[top:bottom, left:right] = True
                assert near[top:bottom, left:right].mean() > 0.6, "a disc fills pi / 4 of its box"
            assert not near[~inside].any()
            assert (name in words.split() or orchard.PLURAL[name] in words.split()) == (len(boxes) > 0), words
            centres[name] = near
        for word, axis, sign in (("above", 0, 1), ("below", 0, -1), ("left of", 1, 1), ("right of", 1, -1)):
            first, found, second = words.partition(f" {word} ")
            kinds = [[k for k in orchard.NAMES if k[:5] in part] for part in (first, second)]
            if found and set(kinds[0]).isdisjoint(kinds[1]):
                said.add(word)
                ahead, behind = (np.argwhere(sum(centres[k] for k in part))[:, axis] for part in kinds)
                assert (ahead.max() < behind.min()) if sign > 0 else (ahead.min() > behind.max()), words
    assert said == set(orchard.OPPOSITE)


def test_what_is_drawn_is_judged_by_its_pieces():
    """Pictures judged against themselves are right; upside down they have the pieces, and not where they are told."""
    colours = np.array([(200, 20, 20), (20, 160, 20), (230, 200, 30)])
    crops = orchard.cut(np.stack([fruit(rgb, 50, 40) for rgb in colours]))
    made = [orchard.picture(crops, [0, 1, 2], np.random.default_rng(n)) for n in range(20)]
    x, cond = np.stack([one["x"] for one in made]), {k: np.stack([one[k] for one in made]) for k in ("boxes", "classes")}
    nearest = lambda crop: 1 + np.argmin(np.abs(crop[crop.min(-1) < 225].mean(0) - colours).sum(-1))
    classify = lambda some: [nearest(crop) for crop in some]
    right = told.judge(x, cond, classify)
    assert right["iou"] > 0.9 and (right["accuracy"], right["kinds"], right["count"]) == (1, 1, 1)
    turned = told.judge(x[:, ::-1], cond, classify)
    assert turned["iou"] < 0.5 and turned["accuracy"] < 0.9 and (turned["kinds"], turned["count"]) == (1, 1)
    empty = told.judge(np.full_like(x, 255), cond, classify)
    assert set(empty.values()) == {0.0}


def test_parts_of_a_condition_are_dropped_one_at_a_time():
    cond = {"tokens": jnp.ones(3, jnp.int32), "boxes": jnp.ones((2, 4)), "classes": jnp.ones(2, jnp.int32)}
    keys = jax.random.split(jax.random.key(0), 2000)
    left = jax.vmap(lambda key: jax.tree.map(lambda a: a.any(), data.drop_parts({"x": 0.0, "cond": cond}, key, 0.6)["cond"]))(
        keys
    )
    np.testing.assert_array_equal(left["boxes"], left["classes"])
    assert np.all(left["tokens"] | left["boxes"])
    np.testing.assert_allclose([left["tokens"].mean(), left["boxes"].mean()], 0.7, atol=0.04)


# --- the programs -------------------------------------------------------------------------------------------------


def test_configurations_of_both_phases_belong_together():
    known = configs.load()
    assert len(orchard.WORDS) == known["orchard64"].vocabulary and orchard.VOCABULARY.length == known["orchard64"].words
    assert (orchard.VOCABULARY.boxes, len(orchard.VOCABULARY.classes)) == (
        known["orchard64"].boxes,
        known["orchard64"].box_classes,
    )
    for name in ("fruits64", "orchard64"):
        config, _ = train.parse([name], known)
        first, _ = train.parse([name, "--phase", "first"], known)
        assert isinstance(config, TrainConfig) and isinstance(first, FirstStageConfig)
        assert config.autoencoder == first.out and first.name == "fruits64_kl"
        assert (config.size, config.channels) == (first.size // 2 ** (len(first.multipliers) - 1), first.latent_channels)


def test_priors_of_all_factors_fit_their_autoencoders():
    for name, side in factors.SIDES.items():
        config = factors.CONFIGS[name]
        assert config.size == side and config.steps % config.checkpoint_every == 0
        assert name == "f1" or factors.CONFIGS[f"{name}_first"].out == config.autoencoder
    for name in factors.KINDS:
        first = factors.CONFIGS[f"{name}_first"]
        prior = factors.CONFIGS[name]
        assert (first.size // first_stage.build(dataclasses.asdict(first)).f, first.latent_channels) == (
            prior.size,
            prior.channels,
        )


def test_the_time_of_a_run_leaves_out_what_happened_once(tmp_path):
    """Compiling before the first record, and a picture between two."""
    lines = [{"kind": "train", "step": 20 * n, "core_seconds": s} for n, s in enumerate((95, 105, 115, 325, 335), 1)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert factors.taken(tmp_path, 100) == pytest.approx(50)


def test_an_autoencoder_that_ships_with_another_prior_is_not_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(prior, "_HERE", tmp_path / "zoo")
    about = dataclasses.asdict(FirstStageConfig("a", "", size=8, width=8, multipliers=(1, 1), middle=False))
    one, two, mine = (tmp_path / "zoo" / "one", tmp_path / "zoo" / "two", tmp_path / "two")
    for folder in (one, two, mine):
        folder.mkdir(parents=True)
    net = first_stage.build(about)
    autos = [first_stage.from_config(about, net.init(jax.random.key(n), jnp.zeros((8, 8, 3))), scale=1 + n) for n in (0, 1)]
    assert first_stage.save(one, autos[0]) == {} and (one / first_stage.WEIGHTS).is_file()
    assert first_stage.save(mine, autos[1]) == {} and (mine / first_stage.WEIGHTS).is_file()
    shared = first_stage.save(two, dataclasses.replace(autos[0], scale=3.0))
    assert shared == {"weights_of": "one"} and not any(two.iterdir())
    z = jnp.ones((4, 4, 3))
    found = first_stage.read(two, first_stage.entry(dataclasses.replace(autos[0], scale=3.0), about) | shared)
    first = first_stage.read(one, first_stage.entry(autos[0], about))
    np.testing.assert_allclose(found.decode(3 * z), first.decode(z), atol=1e-5)
    with pytest.raises(ValueError, match="cannot be read"):  # a name from a card is no path
        first_stage.read(two, first_stage.entry(autos[0], about) | {"weights_of": "../two"})


@pytest.mark.parametrize(
    "line, said",
    [
        ("fruits64 --phase frist", "did you mean 'first'"),
        ("fruits64 --disc-start 3", "--disc-start is no field of fruits64, which is phase second"),
        ("fruits64_kl --guidance 3", "unknown option '--guidance'"),
        ("fruits64_kl --phase second", "phase second is a prior with --autoencoder runs/fruits64_kl"),
        ("debug --phase first", "has no first phase"),
        ("fruits64_kl --kind kll --out DIR/a", "autoencoder 'kll' is unknown: did you mean 'kl'"),
        ("fruits64_kl --size 30 --out DIR/b", "size 30 is no multiple of f=4: use size"),
        ("fruits64 --autoencoder DIR/nowhere --out DIR/c", "train it first, diffjax train nowhere"),
        ("fruits64_pixel --loss hybrid --norm l1 --out DIR/d", "use --loss v, or leave them out"),
    ],
)
def test_errors_of_the_program(line, said, tmp_path, capsys):
    assert train.main([*line.replace("DIR", str(tmp_path)).split(), "--devices", "1", "--no-cache"], configs.load()) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
