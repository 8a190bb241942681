"""Checkpoints of latent diffusion: published sizes, configurations read back, parts of a file, refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from diffjax.convert import diffusers_unet, latent, strict
from diffjax.nets import ConditionUNet, DDPMUNet, LatentUNet

# millions of parameters, counted on the official code
MILLIONS = {"celebahq": 274.1, "lsun_churches": 295.0, "cin256": 395.0, "cin256-v2": 400.9, "text2img256": 403.6,
            "txt2img-1p4B": 872.3, "inpainting_big": 387.2, "bsr_sr": 113.6, "semantic_synthesis256": 215.2,
            "layout2img": 246.3}  # fmt: skip
CHANNELS = {"lsun_churches": 4, "cin256": 4, "txt2img-1p4B": 4}  # of the latent, where they are not 3
CONCAT = {"inpainting_big": 4, "bsr_sr": 3, "semantic_synthesis256": 3}
CONTEXT = {"cin256": 512, "cin256-v2": 512, "text2img256": 640, "txt2img-1p4B": 1280, "layout2img": 512}


def blank(net, channels):
    """(state dict of zeros of the official names and shapes, shapes of our parameters); nothing is computed."""
    size = 2 ** (len(net.multipliers) - 1)
    x = jax.ShapeDtypeStruct((size, size, channels), jnp.float32)
    shapes = strict.shapes(net, x, jax.ShapeDtypeStruct((), jnp.float32), net.blank(x))
    wanted = strict.expected(strict.used(latent.table(net), shapes), shapes)
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in wanted.items()}, shapes


@pytest.mark.parametrize("name", MILLIONS)
def test_published_networks(name):
    """As many parameters as the official one; the file tells its configuration and the list the heads."""
    net = LatentUNet(**latent.from_flags(**latent.PUBLISHED[name]))
    state, shapes = blank(net, CHANNELS.get(name, 3))
    assert round(sum(np.prod(shape) for shape in shapes.values()) / 1e6, 1) == MILLIONS[name]
    assert (net.concat, net.context) == (CONCAT.get(name, 0), CONTEXT.get(name))
    assert LatentUNet(**latent.config_from_state(state)) == net


def test_published_names_that_share_a_network():
    assert latent.PUBLISHED["celebahq"] == latent.PUBLISHED["ffhq"] == latent.PUBLISHED["lsun_bedrooms"]


SMALL = dict(out_channels=3, width=4, groups=2, multipliers=(1, 2), blocks=1)


@pytest.mark.parametrize("fields", [
    dict(attention=(2,), depth=1, context=5, heads=2, concat=1),
    dict(attention=(1, 2), depth=1, heads=2),  # transformers that are told nothing
    dict(attention=(2,), head_channels=2, classes=5, ids=7, conv_resample=False),
    dict(attention=(1,), heads=2, scale_shift=True, resblock_updown=True, concat=4),
])  # fmt: skip
def test_configuration_is_read_back(fields):
    net = LatentUNet(**SMALL | fields)
    state, _ = blank(net, 3)
    if net.ids:
        state |= {"out.2.weight": np.zeros((3, 4, 3, 3)), "out.2.bias": np.zeros(3)}
    hints = {name: fields[name] for name in ("heads", "head_channels") if name in fields}
    assert LatentUNet(**latent.config_from_state(state, groups=2, **hints)) == net
    with pytest.raises(ValueError, match="give heads="):
        latent.config_from_state(state, groups=2)


def test_tokens_as_wide_as_the_only_level_are_asked_for():
    net = LatentUNet(**SMALL | dict(multipliers=(1,), attention=(1,), depth=1, context=4, heads=2))
    state, _ = blank(net, 3)
    with pytest.raises(ValueError, match="give context=4, or context=None"):
        latent.config_from_state(state, groups=2, heads=2)
    for context in (4, None):
        assert latent.config_from_state(state, groups=2, heads=2, context=context)["context"] == context


# --- parts of a file ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    """(network, its state dict, a Lightning file around it with averages that are 1 larger)."""
    net = LatentUNet(**SMALL | dict(multipliers=(1,), attention=(), heads=1, concat=2))
    state, _ = blank(net, 3)
    file = {f"model.diffusion_model.{name}": a for name, a in state.items()}
    for name, a in state.items():
        file["model_ema.diffusion_model" + name.replace(".", "")] = a + 1
    file |= {"model_ema.decay": np.float32(0.9999), "model_ema.num_updates": np.int32(3), "betas": np.zeros(10),
             "scale_factor": np.float32(0.25), "cond_stage_model.embedding.weight": np.ones((4, 6), np.float16),
             "first_stage_model.encoder.conv_in.weight": np.ones((2, 3, 3, 3), np.float16)}  # fmt: skip
    return net, state, file


def test_parts_of_a_file(whole):
    net, state, file = whole
    parts = latent.split(file)
    assert (parts.weights, parts.scale_factor, parts.condition_is_first_stage) == ("ema", 0.25, False)
    assert parts.unet.keys() == state.keys() and all((a == 1).all() for a in parts.unet.values())
    assert list(parts.first_stage) == ["encoder.conv_in.weight"] and list(parts.schedule) == ["betas"]
    raw = latent.split(file, "raw")
    assert raw.weights == "raw" and all((a == 0).all() for a in raw.unet.values())
    without = {name: a for name, a in file.items() if not name.startswith("model_ema.")}
    assert latent.split(without).weights == "raw"

    read, params = latent.convert(file, groups=2, heads=1)
    assert read == net and all((np.asarray(a) == 1).all() for a in jax.tree.leaves(params))
    assert latent.convert(state, groups=2, heads=1)[0] == net, "a UNet alone"
    reader, tokens = latent.conditioner(parts.conditioner)
    assert reader.apply(tokens, np.array([3, 0])).shape == (2, 1, 6) and tokens["params"]["label"].dtype == jnp.float32


def test_a_second_copy_of_the_first_stage_is_left_out(whole):
    _, _, file = whole
    file = {name: a for name, a in file.items() if not name.startswith("cond_stage_model.")}
    again = file | {"cond_stage_model.encoder.conv_in.weight": file["first_stage_model.encoder.conv_in.weight"]}
    parts = latent.split(again)
    assert parts.condition_is_first_stage and not parts.conditioner and list(parts.first_stage)
    again["cond_stage_model.encoder.conv_in.weight"] = 2 * again["cond_stage_model.encoder.conv_in.weight"]
    with pytest.raises(ValueError, match=r"repeats the first stage with other numbers: encoder\.conv_in\.weight"):
        latent.split(again)


TIME, AVERAGE = "model.diffusion_model.time_embed.0.weight", "model_ema.diffusion_modeltime_embed0weight"


@pytest.mark.parametrize(
    "change, weights, message",
    [
        (lambda f: f.pop(AVERAGE), None, "missing: diffusion_modeltime_embed0weight"),
        (lambda f: f.pop(TIME), None, "left over: diffusion_modeltime_embed0weight"),
        (lambda f: f.pop(TIME), "raw", "missing: time_embed.0.weight"),
        (
            lambda f: f.update({f"{TIME}s": f.pop(TIME)}),
            "raw",
            "missing: time_embed.0.weight; left over: time_embed.0.weights",
        ),
        (lambda f: f.update(optimizer=np.zeros(1)), None, "belong to no part of a latent diffusion checkpoint: optimizer"),
        (lambda f: [f.pop(n) for n in list(f) if n.startswith("model_ema.")], "ema", "take weights='raw'"),
        (lambda f: [f.pop(n) for n in list(f) if n.startswith("model")], None, "this is a first stage alone"),
        (lambda f: f.clear(), None, "no whole checkpoint of latent diffusion"),
        (lambda f: None, "averaged", 'use "ema" (averaged), "raw"'),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(whole, change, weights, message):
    file = dict(whole[2])
    change(file)
    with pytest.raises(ValueError) as error:
        latent.convert(file, weights, groups=2, heads=1)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "state, message",
    [
        ({}, "its arrays are none"),
        ({"transformer.text_model.embeddings.weight": np.zeros((2, 2))}, "transformer.text_model.embeddings.weight"),
        ({"channel_mapper.weight": np.zeros((3, 5, 1, 1))}, "give stages=..."),
        ({"embedding.weight": np.zeros((3, 5)), "bias": np.zeros(3)}, "left over: bias"),
        ({"transformer.token_emb.weight": np.zeros((9, 4))}, "missing: transformer.pos_emb.emb.weight"),
    ],
)
def test_a_condition_that_nothing_reads(state, message):
    with pytest.raises(ValueError) as error:
        latent.conditioner(state)
    assert message in str(error.value) and "\n" not in str(error.value)


# --- diffusers ------------------------------------------------------------------------------------------------------

COND = {"block_out_channels": [8, 16], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "cross_attention_dim": 6, "norm_num_groups": 4,
        "attention_head_dim": 2}  # fmt: skip


def test_configuration_of_diffusers():
    net = diffusers_unet.network(COND | {"in_channels": 9, "attention_head_dim": [2, 4]})
    assert (net.concat, net.heads, net.context, net.down_padding) == (5, (2, 4), 6, ((1, 1), (1, 1)))
    plain = {"_class_name": "UNet2DModel", "block_out_channels": [8, 16], "down_block_types": ["DownBlock2D"] * 2,
             "up_block_types": ["UpBlock2D"] * 2, "attention_head_dim": 4, "norm_num_groups": 4}  # fmt: skip
    alone, told = (diffusers_unet.network(plain | {"in_channels": n, "out_channels": 3}) for n in (3, 6))
    assert type(alone) is DDPMUNet and type(told) is ConditionUNet and (told.concat, told.head_channels) == (3, 4)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]},
            "SimpleCrossAttnDownBlock2D, which is not supported",
        ),
        (
            {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
            "mid_block_type='UNetMidBlock2DSimpleCrossAttn' is not supported",
        ),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep' is not supported: only None"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type='text_time' is not supported"),
        ({"cross_attention_dim": [6, 12]}, "cross_attention_dim=[6, 12] is not supported"),
        ({"layers_per_block": [1, 2]}, "layers_per_block=[1, 2] is not supported"),
        ({"transformer_layers_per_block": [[1, 2], 1]}, "only one number for each level"),
        ({"attention_head_dim": [2, 4, 4]}, "heads=(2, 4, 4): give one number"),
        ({"act_fn": "gelu"}, "act_fn='gelu' is not supported"),
        ({"downsample_paddings": 1}, "nearest: downsample_padding"),
        ({"_class_name": "UNet3DConditionModel"}, "only UNet2DModel and UNet2DConditionModel"),
    ],
)
def test_what_is_not_supported_of_diffusers_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError) as error:
        diffusers_unet.network(COND | change)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_folder_of_diffusers(tmp_path, golden_dir):
    """The sub-folder unet of a pipeline; a renamed array, a matrix where a convolution is said, damaged and missing files."""
    from golden_files import find

    file = find(golden_dir, "latent", "diffusers_unet2d_cond")[-1]
    config = json.loads(file.with_suffix(".json").read_text())["config"]
    unet = tmp_path / "unet"
    unet.mkdir()
    (unet / "config.json").write_text(
        json.dumps(config | {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.42"})
    )
    with pytest.raises(ValueError, match="has no weights: one of diffusion_pytorch_model"):
        diffusers_unet.read(tmp_path)
    weights = file.with_suffix(".safetensors").read_bytes()
    (unet / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    state, read = diffusers_unet.read(tmp_path)
    assert {name: read[name] for name in config} == config
    assert state.keys() == load_file(unet / "diffusion_pytorch_model.safetensors").keys()
    net = diffusers_unet.network(read)
    renamed = state | {"conv_in.weights": state["conv_in.weight"]}
    del renamed["conv_in.weight"]
    other = read | {"use_linear_projection": not read["use_linear_projection"]}
    for broken, said, message in (
        (renamed, read, "missing: conv_in.weight; left over: conv_in.weights"),
        (state, other, "of another shape: "),
    ):
        with pytest.raises(ValueError) as error:
            diffusers_unet.params_from_state(net, broken, said)
        assert message in str(error.value) and "\n" not in str(error.value)
    for text, message in (("{", "is no JSON"), ("[1]", "holds a list"), ("\ud800", None)):
        (unet / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ValueError, match=message) as error:
            diffusers_unet.read(unet)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="has no config"):
        diffusers_unet.read(tmp_path / "nowhere")
