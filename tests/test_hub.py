"""Public checkpoints as priors: folders laid out like the hub's, single files, what is assumed, what is said of bad ones."""

import dataclasses
import hashlib
import json
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_convert import blank

from diffjax import batch, denoisers, kernels, schedules, zoo
from diffjax.cli import restore
from diffjax.convert import adm, ddpm, files
from diffjax.nets import Encoder, SuperRes, UNet
from diffjax.zoo import hub, public

CHECKPOINTS = Path(__file__).parent / "checkpoints"  # two written by torch.save, in float16: a UNet2DModel and an ADM
UNET = {"_class_name": "UNet2DModel", "_diffusers_version": "0.1.1", "act_fn": "silu", "attention_head_dim": None,
        "block_out_channels": [4, 4], "center_input_sample": False, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 1,
        "mid_block_scale_factor": 1, "norm_eps": 1e-6, "norm_num_groups": 2, "out_channels": 3, "sample_size": 16,
        "time_embedding_type": "positional", "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}  # fmt: skip
SCHEDULER = {"_class_name": "DDPMScheduler", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001,
             "clip_sample": True, "num_train_timesteps": 500, "variance_type": "fixed_small"}  # fmt: skip
ADM = {"groups": 2, "heads": 2, "size": 16}


@pytest.fixture(autouse=True)
def nothing_is_assumed_unseen():
    with warnings.catch_warnings():
        warnings.simplefilter("error", zoo.Assumed)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As google/ddpm-celebahq-256 lies in a snapshot, with a tiny network."""
    at = tmp_path_factory.mktemp("hub") / "snapshot"
    at.mkdir()
    shutil.copy(CHECKPOINTS / "tiny_unet2d_2022.bin", at / "diffusion_pytorch_model.bin")
    (at / "config.json").write_text(json.dumps(UNET))
    (at / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (at / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- diffusion\n---\n# A model\n")
    return at


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def message(source, config=None, load=zoo.load):
    with pytest.raises(ValueError) as caught:
        load(source, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_a_prior(folder):
    prior = zoo.load(folder)
    assert (prior.shape, prior.loss, prior.classes) == ((16, 16, 3), "eps", 0)
    np.testing.assert_array_equal(prior.schedule.alphas, schedules.discrete(np.linspace(1e-4, 0.02, 500)).alphas)
    state = files.read(folder / "diffusion_pytorch_model.bin")
    assert any(".query." in name for name in state)
    kernel = prior.params["params"]["down_1_0_attention"]["qkv"]["kernel"]
    for n, part in enumerate(("query", "key", "value")):
        wanted = state[f"down_blocks.1.attentions.0.{part}.weight"].astype(np.float32).T
        np.testing.assert_array_equal(kernel[:, 4 * n : 4 * n + 4], wanted)
    x = np.random.default_rng(0).standard_normal(prior.shape).astype(np.float32)
    out, p = jax.jit(lambda p, x: (p.net.apply(p.params, x, 199.0), p.denoiser(clip=False)(x, 200.0)))(prior, x)
    np.testing.assert_allclose(p.eps, out, atol=1e-6)
    assert np.abs(out).max() > 0.1


def test_other_layouts_of_a_folder(copy, folder, tmp_path):
    pipeline, modern = tmp_path / "pipeline", tmp_path / "modern"
    for at in (pipeline / "unet", pipeline / "scheduler", modern):
        at.mkdir(parents=True)
    for name in ("config.json", "diffusion_pytorch_model.bin"):
        shutil.copy(copy / name, pipeline / "unet")
    shutil.copy(copy / "scheduler_config.json", pipeline / "scheduler")
    (pipeline / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}')
    state = ddpm.modern(files.read(copy / "diffusion_pytorch_model.bin"))
    files.write(modern / "diffusion_pytorch_model.safetensors", {k: v.astype(np.float32) for k, v in state.items()})
    for name in ("config.json", "scheduler_config.json"):
        shutil.copy(copy / name, modern)
    wanted = zoo.load(folder)
    for source in (pipeline, modern, copy / "diffusion_pytorch_model.bin"):
        prior = zoo.load(source)
        same(wanted.params, prior.params)
        assert prior.net == wanted.net and prior.shape == wanted.shape and prior.schedule.T == 500


def test_what_a_scheduler_says(copy):
    def told(**changes):
        (copy / "scheduler_config.json").write_text(json.dumps(SCHEDULER | changes))
        prior = zoo.load(copy)
        return prior.loss, prior.schedule.alphas

    assert told(prediction_type="v_prediction")[0] == "v" and told(prediction_type="sample")[0] == "x0"
    np.testing.assert_array_equal(told(beta_schedule="squaredcos_cap_v2")[1],
                                  schedules.discrete(schedules.cosine_betas(500)).alphas)  # fmt: skip
    betas = np.linspace(1e-4**0.5, 0.02**0.5, 500) ** 2
    np.testing.assert_allclose(told(beta_schedule="scaled_linear")[1][1:] ** 2, np.cumprod(1 - betas), rtol=1e-12)
    (copy / "scheduler_config.json").write_text(json.dumps(SCHEDULER | {"trained_betas": [0.1]}))
    assert "neither trained_betas" in message(copy)
    (copy / "scheduler_config.json").unlink()
    with pytest.warns(zoo.Assumed, match="does not say schedule=linear, T=1000: assumed as in DDPM"):
        assert zoo.load(copy).schedule.T == 1000


def test_folders_that_are_none(copy, tmp_path):
    (copy / "config.json").write_text(json.dumps(UNET | {"norm_num_groups": 2, "in_channels": 4}))
    assert "of another shape: conv_in.weight (4, 3, 3, 3) (wanted (4, 4, 3, 3))" in message(copy)
    (copy / "config.json").write_text(json.dumps(UNET | {"_class_name": "UNet2DConditionModel"}))
    assert "describes a UNet2DConditionModel: only UNet2DModel" in message(copy)
    (copy / "config.json").write_text(json.dumps(UNET))
    (copy / "model_index.json").write_text('{"vqvae": ["diffusers", "VQModel"]}')
    assert f"unet: folder {copy / 'unet'} has no config.json: copy the whole folder of the model" in message(copy)
    assert "works in the latent space of its vqvae: give the folder" in message(copy / "diffusion_pytorch_model.bin")
    (copy / "model_index.json").unlink()
    (copy / "diffusion_pytorch_model.bin").unlink()
    assert "has no weights: it needs diffusion_pytorch_model.safetensors or" in message(copy)


# --- the hub --------------------------------------------------------------------------------------------------------


def test_the_hub_is_asked_for_safe_formats_first(folder, monkeypatch):
    asked = []

    def download(repository, revision, patterns):
        asked.append((repository, revision, [p for p in patterns if "pytorch" in p]))
        return str(folder)

    monkeypatch.setattr(hub, "download", download)
    prior = zoo.load("hf:google/ddpm-celebahq-256@v1.0")
    safe, other = (["".join(p) for p in hub._places(name)] for name in hub.WEIGHTS)
    assert asked == [("google/ddpm-celebahq-256", "v1.0", safe), ("google/ddpm-celebahq-256", "v1.0", other)]
    assert prior.name == "ddpm-celebahq-256" and prior.card["licence"] == "apache-2.0"
    assert prior.card["source"] == "https://huggingface.co/google/ddpm-celebahq-256" and prior.card["revision"] == "v1.0"


def test_what_can_go_wrong_on_the_way(monkeypatch, tmp_path, folder):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    said = message("hf:nobody/nothing")
    assert "hf:nobody/nothing cannot be fetched" in said and "check name and network, or give the folder of a copy" in said
    assert "write hf:owner/name" in message("hf:ddpm-celebahq-256")

    # the cache of the hub: a link to a file that has its hash as name
    data = (folder / "diffusion_pytorch_model.bin").read_bytes()
    blob, snapshot = tmp_path / hashlib.sha256(data).hexdigest(), tmp_path / "snapshot"
    blob.write_bytes(data)
    snapshot.mkdir()
    for name in ("config.json", "scheduler_config.json"):
        shutil.copy(folder / name, snapshot)
    (snapshot / "diffusion_pytorch_model.bin").symlink_to(blob)
    monkeypatch.setattr(hub, "download", lambda *_: str(snapshot))
    assert zoo.load("hf:some/one").card["licence"] == "not stated on the hub"
    blob.write_bytes(data[:-50] + bytes(50))
    assert f"not {blob.name}: it is damaged or another file, fetch it again" in message("hf:some/one")


def test_a_truncated_file_and_a_wrong_hash(copy):
    file = copy / "diffusion_pytorch_model.bin"
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    zoo.load(copy, {"sha256": right})
    assert f"has the sha256 {right}, not {'0' * 64}" in message(copy, {"sha256": "0" * 64})
    file.write_bytes(file.read_bytes()[:9000])
    assert "damaged, truncated or not a checkpoint" in message(copy)


# --- single files ---------------------------------------------------------------------------------------------------


def test_a_file_and_what_it_does_not_say(tmp_path):
    source = shutil.copy(CHECKPOINTS / "tiny_adm.pt", tmp_path / "mine.pt")
    with pytest.warns(zoo.Assumed) as caught:
        prior = zoo.load(source, ADM)
    assert str(caught[0].message).startswith("mine.pt does not say schedule=linear, T=1000, qkv_order=legacy: assumed")
    assert str(caught[0].message).startswith(prior.card["assumed"] + "; say otherwise with config={") and prior.name == "mine"
    net = UNet(out_channels=6, width=4, groups=2, multipliers=(1, 1), blocks=1, attention=(2,), heads=2, resblock_updown=True,
               scale_shift=True, classes=3)  # fmt: skip
    assert prior.net == net and (prior.shape, prior.loss, prior.classes) == ((16, 16, 3), "hybrid", 3)
    (tmp_path / "mine.json").write_text(json.dumps(ADM | {"schedule": "cosine", "T": 50, "size": 8, "qkv_order": "new"}))
    prior = zoo.load(source, {"size": 32})  # the argument wins
    assert (prior.shape[0], prior.schedule.T, prior.net.qkv_order) == (32, 50, "new") and not prior.card["assumed"]
    with pytest.raises(ValueError, match="trained with labels only: give one, 0 to 2"):
        prior.denoiser()
    with pytest.raises(ValueError, match="no null label"):
        prior.denoiser(1, 2.0)


RELEASED = [  # constructor's arguments that the released flags amount to; what our defaults must add to the state dict
    (dict(width=256, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, attention=(8, 16, 32), resblock_updown=True, scale_shift=True),
     dict(head_channels=64, size=256), "ADM 256x256"),
    (dict(width=256, multipliers=(1, 1, 2, 3, 4), blocks=2, attention=(4, 8, 16), resblock_updown=True, scale_shift=True),
     dict(heads=4, size=128), "ADM 128x128"),
    (dict(width=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(2, 4, 8), resblock_updown=True, scale_shift=True),
     dict(head_channels=64, size=64, qkv_order="new", schedule="cosine"), "ADM 64x64"),
    (dict(width=128, multipliers=(1, 2, 2, 2), blocks=3, attention=(2, 4), scale_shift=True),
     dict(heads=4, size=32, schedule="cosine", T=4000, time_scale=0.25), "improved-diffusion CIFAR-10"),
    # ffhq_10m.pt of the DPS authors: no released model of OpenAI's, but their defaults
    (dict(width=128, multipliers=(1, 1, 2, 2, 4, 4), blocks=1, attention=(16,), resblock_updown=True, scale_shift=True),
     dict(head_channels=64), "ADM's released networks"),
]  # fmt: skip


@pytest.mark.parametrize("fields, usual, name", RELEASED, ids=[name for *_, name in RELEASED])
def test_released_models_are_recognised(fields, usual, name):
    state = blank(adm, UNet(out_channels=6, heads=1, **fields))
    _, found, assumed, whose = public._adm(state, {})
    assert whose == name
    assert assumed == ({"qkv_order": "legacy"} if fields.get("resblock_updown") else {}) | usual
    net = UNet(**found)
    assert all(getattr(net, k) == v for k, v in fields.items() if k != "attention") and net.attention == fields["attention"]
    assert public._size(net, {}) == usual.get("size", 256)


def test_files_of_another_kind(tmp_path):
    def written(state):
        files.write(tmp_path / "a.safetensors", state)
        return tmp_path / "a.safetensors"

    small = dict(width=4, groups=2, multipliers=(1, 1), blocks=1)
    state = blank(adm, UNet(out_channels=3, heads=1, **small))
    state["out.2.bias"] = np.full(3, np.nan, np.float32)
    assert "not finite in out.2.bias" in message(written(state), ADM)
    ncsn = {"all_modules.0.W": np.zeros(3, np.float32), "all_modules.1.weight": np.zeros(3, np.float32)}
    said = message(written(ncsn))
    assert "of another family (score-SDE), its arrays are all_modules.0.W" in said and "supported are ADM" in said
    enlarging = blank(adm, SuperRes(out_channels=3, heads=1, **small), channels=6)
    assert "it enlarges images" in message(written(enlarging), ADM)
    classifier = blank(adm, Encoder(out_channels=5, heads=1, pool="attention", **small), tokens=17)
    assert "this is a classifier" in message(written(classifier), ADM)
    said = message(written(blank(adm, UNet(out_channels=3, heads=1, **small))), {"groups": 2, "head": 3})
    assert "head=3 is no setting of a checkpoint: did you mean heads?" in said
    state = blank(adm, UNet(out_channels=3, heads=1, **small))
    state["middle_block.1.qkv.wait"] = state.pop("middle_block.1.qkv.weight")
    said = message(written(state), ADM)
    assert "missing: middle_block.1.qkv.weight; left over: middle_block.1.qkv.wait" in said and "UNet(out_channels=3" in said
    assert "size=15 is not a multiple of 2" in message(CHECKPOINTS / "tiny_adm.pt", ADM | {"size": 15})
    assert "fashion32 has its own configuration" in message("fashion32", ADM)


@dataclasses.dataclass(frozen=True)
class Echo:
    """A network that says which time it was told."""

    null_label: bool = False

    def apply(self, params, x, i):
        return jnp.full_like(x, i)


def test_the_time_of_a_network_can_be_rescaled():
    """A network trained on 4000 steps that was told index * 1000 / 4000 (improved-diffusion's default)."""
    schedule = schedules.discrete(schedules.cosine_betas(4000))
    for scale, told in ((1.0, 2999), (0.25, 2999 / 4)):
        prior = zoo.Prior({}, schedule, "echo", Echo(), (2, 2, 1), "eps", time=denoisers.Scaled(scale))
        assert float(prior.denoiser(clip=False)(jnp.zeros((2, 2, 1)), 3000.0).eps[0, 0, 0]) == told
    tree = jax.tree.structure(prior.denoiser())
    assert tree == jax.tree.structure(prior.denoiser())  # made again, it is the same program
    given = {"schedule": "cosine", "T": 4000, "qkv_order": "legacy", "time_scale": 0.25}
    assert zoo.load(CHECKPOINTS / "tiny_adm.pt", ADM | given).time.factor == 0.25


# --- classifiers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier_file(tmp_path_factory):
    net = Encoder(out_channels=3, width=4, groups=2, multipliers=(1, 1), blocks=1, attention=(2,), resblock_updown=True,
                  scale_shift=True, heads=1, pool="attention")  # fmt: skip
    rng = np.random.default_rng(3)
    draw = lambda shape: rng.standard_normal(shape).astype(np.float32) / max(1, np.prod(shape[1:])) ** 0.5
    state = {name: draw(a.shape) for name, a in blank(adm, net, tokens=65).items()}  # unsaturated
    file = tmp_path_factory.mktemp("classifier") / "16x16_classifier.safetensors"
    files.write(file, state)
    file.with_suffix(".json").write_text('{"groups": 2, "heads": 1}')
    return file


def test_a_classifier_and_its_gradient(classifier_file):
    guide = zoo.load_classifier(classifier_file)
    assert (guide.size, guide.classes, guide.net.pool) == (16, 3, "attention")
    schedule = schedules.discrete(schedules.linear_betas(1000))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((16, 16, 3)), jnp.float32)
    gradient = jax.jit(lambda guide, x, label: guide.gradient(label, schedule)(x, 300.0))
    log_p = jax.jit(lambda x, label: jax.nn.log_softmax(guide.net.apply(guide.params, x, 299.0))[label])
    along = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape), jnp.float32)
    for label in (0, 2):
        slope = (log_p(x + 1e-2 * along, label) - log_p(x - 1e-2 * along, label)) / 2e-2
        np.testing.assert_allclose((gradient(guide, x, label) * along).sum(), slope, rtol=2e-2)
    kernels.guided(kernels.DDPM(schedule), guide.gradient(1, schedule))
    denoisers.classifier(denoisers.from_eps(lambda x, i: x, None, schedule), guide.gradient(1, schedule), 2.0)
    assert "makes images" in message(CHECKPOINTS / "tiny_adm.pt", ADM, zoo.load_classifier)
    assert "is no classifier" in message(CHECKPOINTS / "tiny_unet2d_2022.bin", None, zoo.load_classifier)


# --- the program ----------------------------------------------------------------------------------------------------


def run(*more):
    prior = ["--prior", str(CHECKPOINTS / "tiny_adm.pt"), "--prior-config", *(f"{k}={v}" for k, v in ADM.items())]
    return restore.main([*prior, "--limit", "1", "--samples", "2", "--steps", "6", "--devices", "1", *map(str, more)])


def test_restore_with_a_public_checkpoint_and_its_classifier(classifier_file, tmp_path, capsys, monkeypatch):
    seen, inpaint, scale = [], batch.inpaint, 3000.0

    def seeing(*arguments, **options):
        seen.append((arguments, options))
        return inpaint(*arguments, **options)

    monkeypatch.setattr(batch, "inpaint", seeing)
    assert run("--label", 1, "--out", tmp_path / "out", "--classifier", classifier_file, "--classifier-scale", scale) == 0
    metrics = json.loads((tmp_path / "out" / "tiny_adm" / "metrics.json").read_text())
    said = capsys.readouterr().out
    assert "note: tiny_adm.pt does not say schedule=linear, T=1000, qkv_order=legacy: assumed as in" in said
    assert (metrics["classifier"], metrics["classifier_scale"]) == ("16x16_classifier", scale)
    assert metrics["prior"] == "tiny_adm" and metrics["images"][0]["label"] == 1

    arguments, options = seen[0]
    options |= {"finished": None}  # which takes the images as they are done: here they are returned
    guided = inpaint(*arguments, **options)
    guide = options.pop("classifier")
    log_p = jax.jit(lambda x: jax.nn.log_softmax(guide.net.apply(guide.params, x, 0.0))[:, 1])
    alone = inpaint(*arguments, **options)
    gain = log_p(guided.x[0]) - log_p(alone.x[0])  # of the same noise
    assert (gain > 0).all() and gain.max() > 0.1


@pytest.mark.parametrize("more, said", [
    ([], "trained with labels only: give one, 0 to 2"),
    (["--label", "7"], "choose 0 to 2"),
    (["--classifier-scale", "2", "--label", "1"], "needs --classifier"),
    (["--classifier", "nowhere.pt", "--label", "1"], "nowhere.pt: no such file"),
    (["--prior-config", "heads"], "'heads' is not KEY=VALUE"),
])  # fmt: skip
def test_restore_says_what_is_wrong(more, said, capsys, tmp_path):
    assert run("--out", tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
