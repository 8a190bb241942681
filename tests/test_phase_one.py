"""A run of phase one: it goes on where it stopped, on any number of devices, and says when a discriminator spoils it."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax.cli.config import FirstStageConfig
from diffjax.cli.first_stage_run import FirstStageRun, WorseWarning
from diffjax.cli.interrupt import Stop
from diffjax.nets import VGGDistance
from diffjax.training import first_stage as losses
from diffjax.training import step
from diffjax.zoo.stored import read_run

STEPS = 4


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """24 pictures of 16x16, each a slope of its own, and eight held out."""
    rng, at = np.random.default_rng(0), np.linspace(0, 1, 16)
    x = rng.uniform(0, 1, (32, 1, 1, 3)) * at[:, None, None] + rng.uniform(0, 1, (32, 1, 1, 3)) * at[:, None]
    x = (127 * x).astype(np.uint8)
    file = tmp_path_factory.mktemp("data") / "slopes.npz"
    np.savez(file, x_train=x[:24], x_test=x[24:])
    return file


def config(pictures, out, **more):
    """The discriminator plays from the third step on: both optimisers have something to remember."""
    told = {"size": 16, "width": 4, "multipliers": (1,), "groups": 2, "middle": False, "latent_channels": 2, "codes": 16,
            "disc_width": 4, "disc_layers": 1, "disc_start": 2, "batch": 8, "warmup": 2, "cooldown": 0, "perceptual": 0.0,
            "steps": STEPS, "checkpoint_every": 2, "sample_every": 100, "log_every": 1, "eval_images": 8}  # fmt: skip
    return FirstStageConfig("slopes", str(pictures), out=str(out), **told | more)


def trained(run):
    """(the averaged parameters, the losses of the log) after a run to its end."""
    try:
        assert run.train(Stop()) == 0
    finally:
        run.lock.release()
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    losses = {r["step"]: [v for k, v in r.items() if k.endswith(("rec", "loss"))] for r in lines if r["kind"] == "train"}
    return read_run(run.folder, "last", "autoencoder")[0], losses


def same(a, b, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), a, b)


def test_it_goes_on_after_a_kill_and_on_another_number_of_devices(pictures, tmp_path, monkeypatch):
    """On eight devices in one piece; on eight after its last checkpoint was lost, bit by bit the same: parameters, both
    optimisers, averages, the stream of pictures and the draws; on one."""
    assert jax.device_count() == 8
    run = FirstStageRun(config(pictures, tmp_path / "eight"))
    params, losses = trained(run)
    assert sorted(losses) == [1, 2, 3, 4] and all(len(values) > 1 for values in losses.values())
    shutil.rmtree(run.folder / "checkpoints" / str(STEPS))
    again, second = trained(run)
    same(params, again, rtol=0)
    assert losses == second
    everywhere = step.shardings
    monkeypatch.setattr(step, "shardings", lambda: everywhere(jax.devices()[:1]))
    alone, found = trained(FirstStageRun(config(pictures, tmp_path / "one")))
    for n, values in losses.items():
        np.testing.assert_allclose(found[n], values, rtol=2e-4)
    same(params, alone, rtol=1e-2, atol=2e-5)  # Adam's first steps are signs: a rounding error may turn one


def test_it_says_that_the_reconstruction_got_worse(pictures, tmp_path, recwarn):
    run = FirstStageRun(config(pictures, tmp_path / "worse"))
    run.lock.release()
    lines = [{"kind": "held_out", "step": n, "psnr": psnr, "lpips": lpips} for n, psnr, lpips in
             ((1, 20.0, 0.3), (2, 25.0, 0.2), (3, 10.0, 0.9))]  # fmt: skip
    (run.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.compare({"psnr": 24.1, "lpips": 0.23}, 4)  # no worse than a little
    run.compare({"psnr": 10.0, "lpips": 0.9}, 2)  # before the start nobody spoils anything
    assert not [w for w in recwarn if w.category is WorseWarning]
    with pytest.warns(WorseWarning, match=r"started at step 2: PSNR 25.00 -> 23.90 dB, lpips 0.2000 -> 0.2500; .*--disc-"):
        run.compare({"psnr": 23.9, "lpips": 0.25}, 4)


def test_the_perceptual_term_is_on_vgg16_where_its_files_are_given(pictures, tmp_path, monkeypatch):
    net = VGGDistance((2, 3, 4, 3, 2))
    x, y = np.random.default_rng(1).uniform(-1, 1, (2, 1, 16, 16, 3)).astype(np.float32)
    params = jax.jit(net.init)(jax.random.key(0), x, y)
    names = {f"head_{n}": f"lin{n}.model.1" for n in range(5)}  # the heads as LPIPS names them, the layers as torchvision
    layers_at = [(0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)]
    names |= {f"conv_{p}_{n}": f"features.{at}" for p, part in enumerate(layers_at) for n, at in enumerate(part)}
    heads, layers = {}, {}
    for ours, theirs in names.items():
        value = params["params"][ours]
        if ours.startswith("head"):
            heads[f"{theirs}.weight"] = np.asarray(value).reshape(1, -1, 1, 1)
        else:
            layers[f"{theirs}.weight"] = np.ascontiguousarray(np.transpose(value["kernel"], (3, 2, 0, 1)))
            layers[f"{theirs}.bias"] = np.asarray(value["bias"])
    for name, state in (("heads", heads), ("layers", layers)):
        save_file(state, tmp_path / f"{name}.safetensors")
    taken = []
    players = losses.players
    monkeypatch.setattr(losses, "players", lambda *a, **k: taken.append(k["perceptual"]) or players(*a, **k))
    vgg = f"{tmp_path}/heads.safetensors, {tmp_path}/layers.safetensors"
    for given in ({"vgg": vgg}, {}):
        run = FirstStageRun(config(pictures, tmp_path / f"run{len(taken)}", perceptual=1.0, **given))
        run.lock.release()
        assert any("LPIPS on AlexNet" in note for note in run.notes) != bool(given)
    found, wanted = jax.jit(lambda distance: (distance(x, y), net.apply(params, x, y)))(taken[0])
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    with pytest.raises(ValueError, match=r"lin0\.model\.1\.weight") as error:
        FirstStageRun(config(pictures, tmp_path / "run", perceptual=1.0, vgg=f"{tmp_path}/layers.safetensors"))
    assert "\n" not in str(error.value)
