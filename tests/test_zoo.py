"""Priors, cards and weights: what is read is exactly what was written, and nothing that does not fit is read."""

import dataclasses
import itertools
import json
import shlex
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_prior
from safetensors.numpy import load_file, save_file

from diffjax import schedules, zoo
from diffjax.cli import evaluate_prior, export, quality, train
from diffjax.training import checkpoints, data, state
from experiments.configs.debug import config as debug


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_prior.write(tmp_path_factory.mktemp("zoo") / "tiny")


@pytest.fixture(scope="module")
def prior(folder):
    return zoo.load(folder)


def test_what_is_written_is_read(prior):
    want = jax.tree.map(lambda a: np.asarray(a, np.float16).astype(np.float32), tiny_prior.params())
    assert jax.tree.structure(want) == jax.tree.structure(prior.params)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(prior.params)):
        assert b.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)
    assert (prior.name, prior.shape, prior.classes, prior.loss) == ("tiny", (32, 32, 1), 10, "v")
    assert prior.class_names[8] == "bag" and prior.card["config"]["T"] == 1000
    np.testing.assert_array_equal(prior.schedule.alphas, schedules.discrete(schedules.cosine_betas(1000)).alphas)


def test_a_prior_is_a_pytree(prior):
    leaves, tree = jax.tree.flatten(prior)
    again = jax.tree.unflatten(tree, leaves)
    assert again.card == prior.card and hash(tree) is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        prior.name = "other"


X = np.random.default_rng(5).standard_normal((32, 32, 1)).astype(np.float32)
T = 700
TRACES = []


@jax.jit
def x0(denoise, x=X):
    TRACES.append(None)
    return denoise(x, float(T)).x0


@pytest.fixture(scope="module")
def by_hand(prior):
    """x0 of v-prediction for every label, from the network alone."""
    v = jax.jit(jax.vmap(lambda label: prior.net.apply(prior.params, X, T - 1.0, label)))(jnp.arange(11))
    return prior.schedule.alphas[T] * X - prior.schedule.sigmas[T] * v


def test_denoisers(prior, by_hand):
    """Labels, the null label, guidance and clamping as their formulas say."""
    no_label, bag = by_hand[10], by_hand[8]
    assert float(jnp.abs(bag - no_label).max()) > 1e-3  # labels do something
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
    close(x0(prior.denoiser(clip=False)), no_label)
    close(x0(prior.denoiser("bag", clip=False)), bag)
    close(x0(prior.denoiser(8)), jnp.clip(bag, -1, 1))
    assert float(jnp.abs(bag).max()) > 1  # so that the line above says something
    close(x0(prior.denoiser(8, scale=3.0, clip=False)), no_label + 3 * (bag - no_label))


def test_other_labels_and_scales_cost_no_retrace(prior):
    TRACES.clear()
    results = [x0(prior.denoiser(label, scale, clip=False)) for label, scale in ((1, 2.0), (3, 2.0), (3, 4.0))]
    assert len(TRACES) <= 1  # 0 where the test above has compiled it
    assert all(float(jnp.abs(a - b).max()) > 0 for a, b in itertools.pairwise(results))
    x0(prior.denoiser(2, clip=False))
    x0(prior.denoiser(clip=False))
    assert len(TRACES) <= 2


def test_labels_may_be_traced(prior, by_hand):
    many = jax.jit(jax.vmap(lambda n: prior.denoiser(n, clip=False)(X, float(T)).x0))(jnp.arange(11))
    np.testing.assert_allclose(many, by_hand, atol=1e-5)


@pytest.mark.parametrize(
    "label, message", [("bga", "did you mean 'bag'"), (10, "choose 0 to 9"), (-1, "choose 0 to 9"), (1.5, "out of range")]
)
def test_labels_that_do_not_exist(prior, label, message):
    with pytest.raises(ValueError, match=message):
        prior.denoiser(label)


def test_guidance_needs_a_label(prior):
    with pytest.raises(ValueError, match="needs a label"):
        prior.denoiser(scale=2.0)


# --- strictness ---------------------------------------------------------------------------------------------------


def spoil(folder, tmp_path, change_weights=None, change_card=None):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    if change_weights:
        weights = load_file(other / "weights.safetensors")
        change_weights(weights)
        save_file(weights, other / "weights.safetensors")
    if change_card:
        card = json.loads((other / "card.json").read_text())
        change_card(card)
        (other / "card.json").write_text(json.dumps(card))
    return other


def message(folder):
    with pytest.raises(ValueError) as caught:
        zoo.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_that_does_not_fit_is_listed_at_once(folder, tmp_path):
    def change(w):
        del w["conv_in.bias"]
        w["conv_in.extra"] = np.zeros(3, np.float16)
        w["conv_out.bias"] = np.zeros(5, np.float16)

    said = message(spoil(folder, tmp_path, change))
    assert "missing: conv_in.bias" in said and "left over: conv_in.extra" in said
    assert "conv_out.bias (5,) (wanted (16,))" in said and "another architecture" in said


def test_a_card_of_another_network(folder, tmp_path):
    said = message(spoil(folder, tmp_path, change_card=lambda c: c["config"].update(width=16)))
    assert "another architecture" in said and "width=16" in said and "of another shape" in said


def test_damaged_files(folder, tmp_path):
    other = spoil(folder, tmp_path)
    file = other / "weights.safetensors"
    whole = file.read_bytes()
    for part in (whole[:-100], whole[:5], b""):
        file.write_bytes(part)
        assert "cannot be read" in message(other)
    file.unlink()
    assert "cannot be read" in message(other)
    (other / "card.json").write_text('{"name": ')
    assert "card.json cannot be read" in message(other)
    (other / "card.json").write_text('{"name": "x"}')
    assert "lacks size" in message(other)


def test_weights_that_are_not_finite(folder, tmp_path):
    def change(w):
        w["conv_in.bias"] = w["conv_in.bias"] * np.float16("nan")

    assert "not finite in conv_in.bias" in message(spoil(folder, tmp_path, change))
    bad = jax.tree.map(lambda a: a + 1e6, tiny_prior.params())  # beyond float16
    with pytest.raises(ValueError, match="not finite as float16"):
        zoo.save(tmp_path / "new", bad, {})


def test_unknown_names(monkeypatch, tmp_path):
    monkeypatch.setattr("diffjax.zoo.prior.names", lambda: ["fashion32", "faces64"])
    with pytest.raises(ValueError, match="unknown prior 'fashon32': did you mean 'fashion32'"):
        zoo.load("fashon32")
    with pytest.raises(ValueError, match="holds no prior"):
        zoo.load(tmp_path)


# --- from a training run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of experiments.train as it lies on the disk, with the averaged weights apart from the last ones."""
    folder = tmp_path_factory.mktemp("runs") / "debug"
    folder.mkdir()
    config = dataclasses.replace(debug, steps=90, lr=0.5)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    optimizer = state.adam(state.warmup_stable_decay(config.lr, config.steps, config.warmup, config.cooldown))
    items = state.to_items(state.init_state(tiny_prior.params(3), optimizer))
    with checkpoints.Checkpoints(folder / "checkpoints") as store:
        store.save(40, {**items, "ema": {"net": tiny_prior.params()}}, 0.25)
    lines = [
        {"kind": "train", "step": 40, "seconds": 7.0, "images": 640},
        {"kind": "held_out", "step": 40, "seconds": 8.0, "mean": 0.25},
        {"kind": "train", "step": 50, "seconds": 9.0, "images": 800},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr')
    return folder


def test_a_run_is_a_prior_and_is_exported(run, tmp_path, capsys):
    want = tiny_prior.params()
    prior = zoo.load(run)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(prior.params)):
        np.testing.assert_array_equal(a, b)
    target = tmp_path / "exported"
    assert export.main([str(run), str(target)]) == 0
    exported = zoo.load(target)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(exported.params)):
        np.testing.assert_allclose(a, b, rtol=2**-10, atol=1e-7)
    card = exported.card
    assert card["config"]["out"] == f"runs/{card['config']['name']}", "where the run lay says nothing to others"
    again, _ = train.parse(shlex.split(card["training"]["command"])[2:])
    assert again == dataclasses.replace(debug, steps=90, lr=0.5, out="runs/debug")
    assert (card["training"]["images_seen"], card["training"]["seconds"], card["training"]["checkpoint"]) == (640, 8.0, 40)
    assert card["training"]["parameters"] == sum(a.size for a in jax.tree.leaves(want))
    assert card["class_names"][9] == "ankle boot" and "MIT" in card["data"]["licence"] and "Apache" in card["licence"]


def test_a_card_names_the_data_and_its_licence(run, tmp_path, monkeypatch):
    config = dataclasses.replace(debug, data="data/fruits32.npz", classes=3, channels=3)
    monkeypatch.setattr("diffjax.cli.config.read", lambda file: config)
    monkeypatch.setattr("diffjax.zoo.prior.read_run", lambda *_: (tiny_prior.params(config=COLOUR), 40))
    assert export.main([str(run), str(tmp_path / "fruits")]) == 0
    card = zoo.load(tmp_path / "fruits").card
    assert card["class_names"] == ["apple", "cherry", "tomato"] and card["training"]["images_seen"] == 640
    assert (
        "Mihai Oltean" in card["data"]["origin"]
        and "CC BY-SA 4.0" in card["licence"]
        and "experiments/fruits.py" in card["data"]["name"]
    )


@pytest.mark.parametrize(
    "line, said",
    [
        ("nowhere x/y", "not the folder of a training run"),
        ("a b/c --chekpoint 3", "did you mean '--checkpoint'"),
        ("a b/c --checkpoint bset", "did you mean 'best'"),
        ("", "required"),
    ],
)
def test_export_says_what_is_wrong(line, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export.main(line.split()) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


# --- what ships ---------------------------------------------------------------------------------------------------


def test_the_classifier_knows_the_bundled_images():
    """Its accuracy on all test images is 0.914: of 32, 26 or more (chance of fewer: 2 %); another layout gives chance."""
    images, labels = zoo.bundled.images("fashion")
    features, logits = jax.vmap(zoo.fashion_classifier())(images[:, 2:30, 2:30])
    assert features.shape == (32, 64) and (features >= 0).all()
    assert (np.asarray(logits).argmax(-1) == labels).sum() >= 26
    with pytest.raises(ValueError, match="28, 28, 1"):
        zoo.fashion_classifier()(images[0])


@pytest.mark.parametrize("name", zoo.names())
def test_cards_say_what_they_must(name):
    prior = zoo.load(name)
    card = prior.card
    assert card["name"] == name and len(prior.class_names) == prior.classes
    assert card["data"]["licence"] and card["training"]["command"] and card["training"]["seconds"] > 0
    quality = card["quality"]
    assert quality["sampler"]["network_calls"] <= 50 and len(quality["held_out_loss"]) == 8
    scales = {"scale 1", "scale 2", "scale 4"}
    if prior.shape[-1] == 1:
        grainier = card["config"]["schedule"] == "ve"  # 5,000 steps of a score, of which the card says so
        assert quality["frechet"] < (25 if grainier else 20)
        assert set(quality["accuracy"]) == scales
    else:
        assert set(quality["kernel_distance"]) == set(quality["kernel_distance_error"]) == scales | {"training images"}
        near = quality["nearest_training_image"]
        assert near["samples"]["median"] > 0 and near["test images"]["median"] > 0


COLOUR = tiny_prior.CONFIG | {"channels": 3, "classes": 3, "data": "fruits.npz", "name": "tiny"}


def fruits(count=12, seed=0):
    """Discs of three colours on white, uint8, and their labels: as training or test data."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    inside = np.hypot(x[None] - rng.uniform(12, 20, (count, 1, 1)), y[None] - 16) < rng.uniform(8, 12, (count, 1, 1))
    labels = np.arange(count, dtype=np.uint8) % 3
    colours = np.array([[80, 160, 40], [140, 20, 60], [220, 50, 30]])[labels][:, None, None]
    return np.where(inside[..., None], colours + rng.integers(0, 30, colours.shape), 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """A colour prior with random weights beside its data set."""
    folder = tiny_prior.write(
        tmp_path_factory.mktemp("colour") / "tiny", config=COLOUR, class_names=zoo.bundled.FRUITS_CLASSES
    )
    (x, y), (x_test, y_test) = fruits(24), fruits(12, seed=1)
    np.savez(folder.parent / "fruits.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return folder


def test_a_colour_prior_is_measured(colour, monkeypatch, capsys):
    monkeypatch.chdir(colour.parent)
    assert evaluate_prior.main("tiny --samples 100 --guided 0 --steps 1".split()) == 0
    card = zoo.load("tiny").card
    quality = card["quality"]
    assert (
        card["config"] == json.loads(json.dumps(COLOUR)) and quality["sampler"]["network_calls"] == 1
    )  # the rest of the card is kept
    kid = quality["kernel_distance"]
    assert list(kid) == ["scale 1", "training images"] and "accuracy" not in quality
    assert all(list(quality[name]) == ["scale 1", "test images"] for name in ("frechet", "precision", "recall"))
    assert quality["precision"]["scale 1"] < 0.2 and quality["frechet"]["scale 1"] > quality["frechet"]["test images"]
    assert kid["scale 1"] > kid["training images"] + 4 * quality["kernel_distance_error"]["scale 1"]  # random weights
    assert quality["held_out_is"].startswith("v loss per pixel on 8 test images")  # of 12, an even share for 8 devices
    assert {p.name for p in colour.iterdir()} == {"card.json", "weights.safetensors", "samples.png", "nearest.png"}


def test_copies_of_training_images_are_found(colour):
    """Samples that are mirrored training images lie at 0; the test images where a double loop finds them."""
    prior, (x, y), (x_test, y_test) = zoo.load(colour), fruits(24), fruits(12, seed=1)
    images = data.Images(x, y.astype(np.int32), x_test, y_test.astype(np.int32))
    options = SimpleNamespace(samples=100, guided=100, data=colour.parent / "fruits.npz")
    measured = lambda draw: quality.by_neighbours(prior, images, draw, options)[0]
    said = measured(lambda labels, scale=1: np.stack([x[y == k][0, :, ::-1] // scale for k in labels]).astype(np.uint8))
    assert list(said["kernel_distance"]) == ["scale 1", "scale 2", "scale 4", "training images"]
    assert said["kernel_distance"]["scale 1"] < said["kernel_distance"]["scale 4"]  # these are a quarter as bright
    near = said["nearest_training_image"]
    assert near["samples"]["median"] == near["samples"]["quantile 0.99"] == 0
    rmse = lambda a, b: np.sqrt(np.mean((a.astype(float) - b.astype(float)) ** 2))
    expected = [min(min(rmse(a, b), rmse(a, b[:, ::-1])) for b in x) for a in x_test]
    assert near["test images"]["median"] == pytest.approx(np.median(expected), abs=0.006)  # the card has two digits
    options.guided = 0
    real = measured(lambda labels: fruits(300, seed=2)[0][np.arange(len(labels)) * 3 + labels])
    assert real["nearest_training_image"]["samples"]["quantile 0.01"] > 0
    assert real["kernel_distance"]["scale 1"] < said["kernel_distance"]["scale 1"]  # two copies are no distribution


def test_the_standard_error_is_that_of_a_mean_of_groups(tmp_path):
    x, which = np.random.default_rng(6).standard_normal(12), np.repeat([5, 3, 9], 4)
    means = [x[which == g].mean() for g in (5, 3, 9)]
    expected = np.std(means, ddof=1) / np.sqrt(3)
    assert quality.jackknife(lambda kept: x[kept].mean(), which) == pytest.approx(expected, rel=1e-12)
    np.savez(tmp_path / "x.npz", variety_test=which)
    assert quality.groups(tmp_path / "x.npz", 12).tolist() == which.tolist()
    assert quality.groups(tmp_path, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "line, said",
    [
        ("tiny --data fruits-elsewhere.npz", "experiments/fruits.py of the repository makes it"),
        ("tiny --guided 5", "100 or more"),
        ("tiny --kernel ddpm --steps 51", "51 network calls"),
    ],
)
def test_evaluation_of_a_colour_prior_says_what_is_wrong(line, said, colour, monkeypatch, capsys):
    monkeypatch.chdir(colour.parent)
    before = (colour / "card.json").read_bytes()
    assert evaluate_prior.main(line.split()) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and (colour / "card.json").read_bytes() == before


@pytest.mark.parametrize(
    "line, said",
    [
        ("x --kernel dimm", "did you mean 'ddim'"),
        ("x --samples 5", "out of range"),
        ("no-such --steps 2", "unknown prior"),
        ("x --step 2", "did you mean '--steps'"),
    ],
)
def test_evaluation_says_what_is_wrong(line, said, capsys):
    assert evaluate_prior.main(line.split()) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
