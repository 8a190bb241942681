"""A prior is an argument of jitted functions, and is read without Flax and without a trace of its network."""

import json
import subprocess
import sys
from pathlib import Path

import chex
import flax
import jax
import numpy as np
import optax
import pytest
import tiny_prior

import diffjax as dj
from diffjax import zoo
from diffjax.convert import dncnn as converter
from diffjax.convert import files
from diffjax.training import checkpoints, state
from diffjax.zoo import network

ROOT = Path(__file__).parents[1]


def test_another_prior_of_the_same_network_is_the_same_program(tmp_path):
    """Loaded from two folders with other weights, names and cards; asked for a label by its name, with guidance."""
    chex.clear_trace_counter()
    card = {"name": "second", "config": tiny_prior.CONFIG, "class_names": list(zoo.bundled.FASHION_CLASSES), "more": 1}
    zoo.save(tmp_path / "b", tiny_prior.params(1), card)
    first, second = zoo.load(tiny_prior.write(tmp_path / "a")), zoo.load(tmp_path / "b")
    x = np.random.default_rng(0).standard_normal(first.shape).astype(np.float32)
    f = jax.jit(chex.assert_max_traces(lambda prior, x, scale: prior.denoiser("bag", scale)(x, 700.0).x0, n=1))
    seen = [f(first, x, 2.0), f(second, x, 2.0), f(first, x, 3.0)]
    chex.assert_tree_all_finite(seen)
    assert min(np.abs(seen[0] - other).max() for other in seen[1:]) > 1e-3
    assert (first.name, second.name) == ("tiny", "second") and jax.tree.map(lambda a: a, second).card == second.card

    assert jax.tree.structure(first.denoiser(8)) == jax.tree.structure(second.denoiser(3)), "the denoisers are one too"
    renamed = dj.replace(first, class_names=tuple(reversed(first.class_names)))  # "bag" means another index there
    assert jax.tree.structure(renamed) != jax.tree.structure(first)


def test_weights_are_no_constants_of_the_program():
    prior = zoo.load("fashion32")
    table = dj.timetables.log_snr(prior.schedule, 3)
    run = lambda prior, key: dj.sample(key, prior.denoiser("bag", 2.0), table, prior.shape, kernel=dj.kernels.DDIM()).x
    text = jax.jit(run).lower(prior, jax.random.key(0)).as_text()
    weights = sum(a.nbytes for a in jax.tree.leaves(prior.params))
    assert weights > 3.9e6 and len(text) < 0.1 * weights


def test_a_shipped_prior_is_read_at_once_and_without_flax():
    """CPU seconds of the first load of a fresh process, of which tracing the network alone was most of one."""
    code = (
        "import sys, time, jax, diffjax as dj; jax.numpy.zeros(3); dj.zoo; start = time.process_time(); "
        "prior = dj.zoo.load('fashion32'); dj.zoo.dncnn(), dj.zoo.fashion_classifier(), dj.zoo.lpips_weights(); "
        "seconds = time.process_time() - start; assert 'flax' not in sys.modules; prior.denoiser('bag'); print(seconds)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(done.stdout) < 0.25


def test_a_card_without_its_signature_is_compared_by_a_trace(tmp_path, monkeypatch):
    folder = tiny_prior.write(tmp_path / "tiny")
    checked, check = [], network.check
    monkeypatch.setattr(network, "check", lambda *given: (checked.append(given), check(*given)))
    quick = zoo.load(folder)
    card = json.loads((folder / "card.json").read_text())
    assert not checked and len(card.pop("signature")) == 32
    (folder / "card.json").write_text(json.dumps(card))
    slow = zoo.load(folder)
    assert len(checked) == 1
    chex.assert_trees_all_equal(quick, slow)
    assert jax.tree.structure(quick) == jax.tree.structure(slow) and quick.net == slow.net
    assert quick.net.module == network.build(tiny_prior.CONFIG)[0]


def test_a_signed_training_run_is_read_without_a_trace(tmp_path, monkeypatch):
    params = tiny_prior.params()
    (tmp_path / "config.json").write_text(json.dumps(tiny_prior.CONFIG))
    with checkpoints.Checkpoints(tmp_path / "checkpoints") as store:
        store.save(4, state.to_items(state.init_state(params, optax.sgd(0.1))), 0.5)
    zoo.prior.sign(tmp_path, tiny_prior.CONFIG, jax.eval_shape(lambda: params))
    checked = []
    monkeypatch.setattr(network, "check", lambda *given: checked.append(given))
    chex.assert_trees_all_equal(zoo.load(tmp_path).params, params)
    assert not checked
    (tmp_path / "config.json").write_text(json.dumps(tiny_prior.CONFIG | {"heads": 2}))
    zoo.load(tmp_path)
    assert len(checked) == 1, "the signature is of another configuration"


def test_weights_of_another_network_are_not_saved(tmp_path):
    params = tiny_prior.params()
    del params["params"]["conv_in"]
    with pytest.raises(ValueError, match=r"another architecture than UNet.*missing: conv_in.bias, conv_in.kernel"):
        zoo.save(tmp_path / "new", params, {"config": tiny_prior.CONFIG})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", zoo.names())
def test_what_ships_has_been_compared_with_its_network(name):
    """The signature in the card is a promise: here the network is traced."""
    folder = Path(zoo.__file__).parent / name
    config = json.loads((folder / "card.json").read_text())["config"]
    shapes = {key: a.shape for key, a in zoo.prior.read_arrays(folder / "weights.safetensors").items()}
    network.check(config, shapes, folder)
    assert zoo.load(name).card["signature"] == network.signature(config, shapes)


def test_the_shipped_dncnn_is_what_its_converter_makes():
    _, params = converter.convert(files.read(zoo.dncnn.__globals__["_FILE"]))
    chex.assert_trees_all_equal(flax.core.unfreeze(params), zoo.dncnn().params)
