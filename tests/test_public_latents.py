"""Public checkpoints of latent diffusion: CompVis' whole files and diffusers' folders, and the programs with them."""

import json
import re
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_prior
from golden_files import load
from PIL import Image

from diffjax import Measurement, cli, zoo
from diffjax.convert import diffusers_unet, files, first_stage, latent, strict
from diffjax.nets import AutoencoderKL, AutoencoderVQ, LatentUNet
from diffjax.operators import Resize

UNET = dict(out_channels=2, width=4, groups=2, multipliers=(1, 1), blocks=1, attention=(), heads=2)
FIRST = dict(channels=3, latent_channels=2, z_channels=2, width=4, multipliers=(1, 1), blocks=1, groups=2, middle=False)
VQ = dict(channels=3, latent_channels=2, z_channels=2, codes=8, width=4, multipliers=(1, 1), blocks=1, groups=2, middle=False)
GIVEN = {"groups": 2, "heads": 2, "size": 16}
VAE = {"_class_name": "AutoencoderKL", "block_out_channels": [4, 4], "layers_per_block": 1, "norm_num_groups": 2,
       "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "in_channels": 3,
       "out_channels": 3, "mid_block_add_attention": False}  # fmt: skip
DECODER = "first_stage_model.decoder"
ENDS = "groups=2 heads=2 size=16".split()


def state_of(net, to_state, *inputs, seed=0):
    return to_state(net, tiny_prior.drawn(strict.shapes(net, *inputs), seed))


@pytest.fixture(scope="module")
def whole():
    """(network, first stage, {name: array}) of a file as CompVis' code saves it, without a condition."""
    net, first = LatentUNet(**UNET), AutoencoderKL(**FIRST)
    x = jax.ShapeDtypeStruct((8, 8, 2), jnp.float32)
    unet = state_of(net, latent.to_state, x, jax.ShapeDtypeStruct((), jnp.float32))
    stage = state_of(first, first_stage.to_state, jax.ShapeDtypeStruct((16, 16, 3), jnp.float32), seed=1)
    state = {latent.UNET + name: a for name, a in unet.items()} | {latent.FIRST_STAGE + name: a for name, a in stage.items()}
    state |= {latent.AVERAGES + f"diffusion_model{name}".replace(".", ""): 0.5 * a for name, a in unet.items()}
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    return net, first, state | {"betas": betas.astype(np.float32), "scale_factor": np.float32(2.0)}


def written(tmp_path, state, name="mine.safetensors"):
    files.write(tmp_path / name, {k: np.asarray(a) for k, a in state.items()})
    return tmp_path / name


def message(source, config=None):
    with pytest.raises(ValueError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore", zoo.Assumed)
        zoo.load(source, config)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900
    return str(caught.value)


def test_a_whole_file_is_a_prior(whole, tmp_path):
    _, first, state = whole
    file = written(tmp_path, state)
    with pytest.warns(zoo.Assumed, match="took the averaged weights"):
        prior = zoo.load(file, GIVEN)
    assert (prior.shape, prior.image_shape, prior.loss, prior.conditional) == ((8, 8, 2), (16, 16, 3), "eps", False)
    np.testing.assert_allclose(prior.schedule.alphas[1:] ** 2, np.cumprod(1 - state["betas"].astype(float)), rtol=1e-9)
    kernel = lambda p: np.asarray(p.params["params"]["conv_in"]["kernel"])
    np.testing.assert_array_equal(kernel(prior), 0.5 * kernel(zoo.load(file, GIVEN | {"weights": "raw"})))
    for name, a in first_stage.to_state(first, prior.autoencoder.params).items():
        np.testing.assert_array_equal(a, state[latent.FIRST_STAGE + name])
    assert float(prior.autoencoder.scale) == 2
    assert float(zoo.load(file, GIVEN | {"weights": "raw", "scale": 0.5}).autoencoder.scale) == 0.5


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (lambda s: s.pop("model.diffusion_model.middle_block.0.in_layers.0.weight"), {"weights": "raw"},
         "the network: .*missing: middle_block.0.in_layers.0.weight"),
        (lambda s: s.update({f"{DECODER}.konv_in.weight": s.pop(f"{DECODER}.conv_in.weight")}), {},
         "the first stage: .*missing: decoder.conv_in.weight.*left over: decoder.konv_in.weight"),
        (lambda s: s.pop("model_ema.diffusion_modeltime_embed0weight"), {}, "do not match .*missing: diffusion_modeltime_em"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("model")], {}, "a first stage alone, no prior: give the file"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("first")], {}, "latents cannot be decoded without first_stage"),
        (lambda s: s.update(scale_factor=np.float32(0)), {}, "the first stage: scale 0.*cannot be undone"),
        (lambda s: s.update(betas=np.ones(4, np.float32)), {}, "betas, of shape .4,., are no table of numbers between 0 and"),
        (lambda s: s.update({"cond_stage_model.transformer.x": np.ones(2, np.float32)}), {}, "what reads the condition: "),
        (lambda s: None, {"size": 18}, "size=18 is no multiple of 4: the autoencoder makes sides 2 times smal.*give size=16"),
        (lambda s: None, {"scale": "large"}, "scale=large: give a number, or one for each channel"),
        (lambda s: None, {"scaled": 1}, "scaled=1 is no setting of a checkpoint: did you mean scale?"),
        (lambda s: None, {"heads": 3}, "heads"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(whole, tmp_path, change, config, said):
    state = dict(whole[2])
    change(state)
    found = message(written(tmp_path, state), GIVEN | config)
    assert re.search(said, found), found


def test_classes_with_a_row_for_none(golden_dir, tmp_path):
    """A recorded file: 11 rows, of which the last may mean none."""
    file = golden_dir / "latent" / "ldm_full_class_kl.safetensors"
    if not file.is_file():
        pytest.skip("the file is not among these recorded runs")
    run, _ = load(file.with_suffix(".npz"))
    file = shutil.copy(file, tmp_path)  # away from the file beside it, which is no configuration
    given = {"groups": 2, "head_channels": 4, "size": 16, "weights": "ema"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zoo.Assumed)
        prior, fewer = zoo.load(file, given), zoo.load(file, given | {"classes": 10})
    assert (prior.classes, prior.null, prior.conditional) == (11, None, False) and (fewer.classes, fewer.null) == (10, 10)
    z, label = np.moveaxis(run["z"], 1, -1)[0], int(run["class_label"][0])
    assert float(prior.autoencoder.scale) == run["scale_factor"] and label < prior.classes
    jax.tree.map(np.testing.assert_array_equal, prior.params, fewer.params)
    guided = jax.eval_shape(lambda prior, z: prior.denoiser(3, 2.0)(z, 500.0).x0, fewer, z)
    assert guided.shape == jax.eval_shape(lambda prior, z: prior.denoiser(label)(z, 500.0).x0, prior, z).shape == z.shape
    with pytest.raises(ValueError, match="has no null label to guide away from"):
        prior.denoiser(3, 2.0)
    assert "classes=9 does not fit a table of 11 labels: give 11, or 10" in message(file, given | {"classes": 9})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, golden_dir):
    """As diffusers lays a pipeline out, around a recorded network."""
    at, golden = tmp_path_factory.mktemp("hub") / "ldm", golden_dir / "latent"
    recorded = golden / "diffusers_unet2d_cond_linproj.safetensors"
    if not recorded.is_file():
        pytest.skip("the file is not among these recorded runs")
    for part in ("unet", "vae", "scheduler"):
        (at / part).mkdir(parents=True)
    shutil.copy(recorded, at / "unet" / "diffusion_pytorch_model.safetensors")
    config = json.loads(recorded.with_suffix(".json").read_text())["config"]
    (at / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel", **config}))
    channels = config["out_channels"]
    net = AutoencoderKL(**FIRST | {"latent_channels": channels, "z_channels": channels})
    state = state_of(net, lambda *net: first_stage.to_state(*net, "diffusers"), jax.ShapeDtypeStruct((16, 16, 3), jnp.float32))
    files.write(at / "vae" / "diffusion_pytorch_model.safetensors", state)
    (at / "vae" / "config.json").write_text(json.dumps(VAE | {"latent_channels": channels}))
    (at / "scheduler" / "scheduler_config.json").write_text(json.dumps(
        {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
         "clip_sample": False, "steps_offset": 1, "num_train_timesteps": 500}))  # fmt: skip
    (at / "model_index.json").write_text(json.dumps({"_class_name": "LDMTextToImagePipeline", "unet": [], "vae": []}))
    return at


def test_a_folder_of_diffusers(folder, tmp_path, capsys, monkeypatch):
    with pytest.warns(zoo.Assumed, match="ldm does not say scale=0.18215: assumed as in the published models"):
        prior = zoo.load(folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    side = config["sample_size"]
    assert prior.shape == (side, side, config["out_channels"]) and prior.schedule.T == 500
    np.testing.assert_allclose(float(np.asarray(prior.autoencoder.scale)), 0.18215, rtol=1e-6)
    assert prior.image_shape == (side * prior.autoencoder.f,) * 2 + (3,)
    assert prior.conditional and prior.card["condition"] == {"context": ["L", config["cross_attention_dim"]]}
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "vae: folder" in (said := message(broken)) and "has no weights" in said
    assert f"give the folder {folder}" in message(folder / "unet")
    monkeypatch.setattr(zoo, "load", lambda name, config=None: prior)
    assert cli.main(["sample", "--prior", str(folder), "--text", "a dog", "--out", str(tmp_path / "x")]) == 2
    assert "its own tokeniser makes them" in capsys.readouterr().err
    assert cli.main(["restore", "--prior", str(folder), "--out", str(tmp_path / "x")]) == 2
    assert f"needs context Lx{config['cross_attention_dim']}, which no option gives" in capsys.readouterr().err


def test_super_resolution_of_diffusers_restores(tmp_path):
    """Its pipeline puts the small picture beside latents of the same size, which it decodes as they are."""
    unet = {"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 5, "out_channels": 2, "norm_num_groups": 2,
            "block_out_channels": [4, 4], "layers_per_block": 1, "down_block_types": ["DownBlock2D"] * 2,
            "up_block_types": ["UpBlock2D"] * 2, "attention_head_dim": 2, "act_fn": "silu", "downsample_padding": 1,
            "flip_sin_to_cos": True, "freq_shift": 0, "add_attention": False}  # fmt: skip
    net = diffusers_unet.network(unet)
    x, beside = (jax.ShapeDtypeStruct((8, 8, n), jnp.float32) for n in (2, 3))
    parts = {"unet": state_of(net, diffusers_unet.to_state, x, jax.ShapeDtypeStruct((), jnp.float32), {"concat": beside}),
             "vqvae": state_of(AutoencoderVQ(**VQ), lambda *net: first_stage.to_state(*net, "diffusers"),
                               jax.ShapeDtypeStruct((16, 16, 3), jnp.float32))}  # fmt: skip
    about = {"unet": unet, "vqvae": VAE | {"_class_name": "VQModel", "num_vq_embeddings": 8, "vq_embed_dim": 2,
                                           "latent_channels": 2, "scaling_factor": 0.18215}}  # fmt: skip
    for part, state in parts.items():
        (tmp_path / part).mkdir()
        files.write(tmp_path / part / "diffusion_pytorch_model.safetensors", state)
        (tmp_path / part / "config.json").write_text(json.dumps(about[part]))
    index = {"_class_name": "LDMSuperResolutionPipeline", **{part: ["diffusers", "X"] for part in parts}}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.warns(zoo.Assumed, match="schedule=scaled_linear"):
        prior = zoo.load(tmp_path)
    assert (prior.beside, prior.shape, float(prior.autoencoder.scale)) == ("sr2", (8, 8, 2), 1.0)
    small = np.random.default_rng(0).uniform(-1, 1, (8, 8, 3)).astype(np.float32)
    told = prior.told(Measurement(small, Resize(2)))
    np.testing.assert_array_equal(told, small)
    z = jnp.ones((8, 8, 2))
    np.testing.assert_array_equal(prior.denoiser(told)(z, 500).x0, prior.denoiser({"concat": told})(z, 500).x0)
    assert "condition 'blur' is unknown: use inpaint, inpaint-ldm, or sr4" in message(tmp_path, {"beside": "blur"})
    index["_class_name"] = "LDMPipeline"
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.warns(zoo.Assumed):
        assert zoo.load(tmp_path).beside == ""


def test_restore_and_sample_with_a_whole_file(whole, tmp_path, capsys):
    """Small pictures, made four times larger; a scale that the pictures contradict."""
    file = written(tmp_path, whole[2])
    small = tmp_path / "small.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 4, 3), np.uint8)).save(small)
    more = ["--prior", str(file), "--prior-config", *ENDS, "--samples", "1", "--steps", "2", "--devices", "1"]
    task = ["--task", "sr4", "--noise", "0", "--degraded", "--images", str(small), "--method", "dps"]
    assert cli.main(["restore", *more, *task, "--out", str(tmp_path / "r")]) == 0
    report = json.loads((tmp_path / "r" / "mine" / "metrics.json").read_text())
    assert (report["method"], report["kernel_steps"], report["degraded"]) == ("dps", 2, True)
    assert np.asarray(Image.open(tmp_path / "r" / "mine" / "images" / "small.png")).shape == (16, 16, 3)
    assert cli.main(["sample", *more, "--kernel", "ddim", "--out", str(tmp_path / "s")]) == 0
    assert (tmp_path / "s" / "images" / "mine-000.png").is_file()
    capsys.readouterr()
    far = [*more[:3], *ENDS, "scale=40", *more[6:]]
    assert cli.main(["restore", *far, "--images", str(small), "--out", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert "latents of these pictures have standard deviation" in said and "give --prior-config scale=" in said
