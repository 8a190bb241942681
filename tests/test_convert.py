"""Converters: every configuration is read back from the names and shapes it makes; mismatches and bad files are named."""

import io
import pickle
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze
from jax import random

from diffjax.convert import adm, ddpm, files, pickles, strict
from diffjax.nets import DDPMUNet, Encoder, SuperRes, UNet

CHECKPOINTS = Path(__file__).parent / "checkpoints"  # made by torch.save: both formats, views, half types
SMALL = dict(out_channels=3, width=4, groups=2)


def blank(family, net, **size):
    """A state dict of zeros of the right names and shapes; nothing is computed."""
    seed = {"conv_in.weight" if family is ddpm else "input_blocks.0.0.weight": np.zeros((1, size.get("channels", 3), 1, 1))}
    if "tokens" in size:
        seed["out.2.positional_embedding"] = np.zeros((1, size["tokens"]))
    shapes = strict.shapes(net, *_inputs(family, net, seed))
    wanted = strict.expected(strict.used(family.table(net), shapes), shapes)
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in wanted.items()}


def _inputs(family, net, seed):
    if family is adm:
        return adm.inputs(net, seed)
    return strict.image_inputs(net, 2 ** (len(net.multipliers) - 1), 3)


ADM = [
    (UNet, dict(multipliers=(1, 2), blocks=1, attention=(2,), heads=2)),
    (UNet, dict(multipliers=(1,), blocks=3, heads=1)),
    (UNet, dict(multipliers=(0.5, 1, 3), blocks=2, attention=(1, 4), head_channels=2, resblock_updown=True, classes=7)),
    (UNet, dict(multipliers=(1, 1, 1), blocks=2, conv_resample=False, scale_shift=True, heads=1)),
    (UNet, dict(multipliers=(1, 1), blocks=1, resblock_updown=True, scale_shift=True, heads=1)),
    (SuperRes, dict(multipliers=(1, 2), blocks=1, attention=(1, 2), heads=1)),
    (SuperRes, dict(multipliers=(1, 2), blocks=1, heads=1, out_channels=6)),
    # the released classifiers of 64 and 256 pixels, narrower
    (Encoder, dict(multipliers=(1, 2, 3, 4), blocks=4, attention=(2, 4, 8), resblock_updown=True, heads=1, pool="attention")),
    (Encoder, dict(multipliers=(1, 1, 2, 2, 4, 4), blocks=2, attention=(8, 16, 32), resblock_updown=True, heads=1,
                   pool="attention", scale_shift=True)),
    (Encoder, dict(multipliers=(1, 2), blocks=1, pool="adaptive", heads=1)),
    (Encoder, dict(multipliers=(1, 2), blocks=1, pool="spatial", heads=1, conv_resample=False)),
    (Encoder, dict(multipliers=(1, 2), blocks=1, pool="spatial_v2", heads=1)),
]  # fmt: skip


@pytest.mark.parametrize("network, fields", ADM)
def test_adm_configuration_is_read_back(network, fields):
    net = network(**(SMALL | fields))
    state = blank(adm, net, channels=6 if network is SuperRes else 3, tokens=17)
    hints = {name: fields[name] for name in ("heads", "head_channels") if name in fields}
    read, found = adm.config_from_state(state, groups=2, **hints)
    assert read is network
    assert read(**found) == net


DDPM = [
    dict(multipliers=(1, 2)),
    dict(multipliers=(1, 1, 2), attention_down=(False, True, False), attention_up=(True, False, False),
         resample_down=("res", "conv"), resample_up=("conv", "res"), blocks=2),
    dict(multipliers=(1, 3), scale_shift=True, attention_middle="bare", classes=4),
    dict(multipliers=(1, 2), attention_middle=None),
]  # fmt: skip


@pytest.mark.parametrize("fields", DDPM)
def test_ddpm_configuration_is_read_back(fields):
    net = DDPMUNet(**(SMALL | fields))
    assert DDPMUNet(**ddpm.config_from_state(blank(ddpm, net), groups=2)) == net


def test_layouts_invert_each_other():
    rng = np.random.default_rng(0)
    for layout, shape in (("conv", (3, 2, 4, 5)), ("dense", (2, 3)), ("dense1", (2, 3)), ("dense2", (2, 3)), ("plain", (4,))):
        a = rng.normal(size=shape)
        np.testing.assert_array_equal(strict.ours(layout, strict.theirs(layout, a)), a)
    kernel = rng.normal(size=(3, 3, 2, 5))
    assert strict.theirs("conv", kernel)[4, 1, 0, 2] == kernel[0, 2, 1, 4]
    assert strict.theirs("dense2", kernel[0, 0]).shape == (5, 2, 1, 1)


@pytest.mark.parametrize(
    "family, net",
    [(adm, UNet(**SMALL, blocks=1, attention=(1,), heads=2, classes=2)), (ddpm, DDPMUNet(**SMALL, blocks=1, head_channels=2))],
)
def test_round_trip(family, net):
    y = [0] if net.classes else []
    blank = jax.eval_shape(net.init, random.key(0), np.zeros((4, 4, 3)), 0.0, *y)
    rng = np.random.default_rng(0)
    params = freeze(jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), blank))
    state = family.to_state(net, params)
    back = family.params_from_state(net, state)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_older_names_of_ddpm():
    """Names as they stand in hojonathanho/diffusion (TensorFlow) and in its PyTorch port, by hand for each kind of array."""
    net = DDPMUNet(**(SMALL | DDPM[0] | dict(blocks=1)))
    rng = np.random.default_rng(0)
    state = {name: rng.standard_normal(a.shape).astype(np.float32) for name, a in blank(ddpm, net).items()}
    pairs = {  # ours: port, TensorFlow
        "time_embedding.linear_1": ("temb.dense.0", "temb/dense0"), "time_embedding.linear_2": ("temb.dense.1", "temb/dense1"),
        "conv_in": ("conv_in", "conv_in"), "conv_norm_out": ("norm_out", "norm_out"), "conv_out": ("conv_out", "conv_out"),
        "mid_block.resnets.0": ("mid.block_1", "mid/block_1"), "mid_block.resnets.1": ("mid.block_2", "mid/block_2"),
        "mid_block.attentions.0": ("mid.attn_1", "mid/attn_1"),
        "down_blocks.0.resnets.0": ("down.0.block.0", "down_0/block_0"),
        "down_blocks.1.resnets.0": ("down.1.block.0", "down_1/block_0"),
        "down_blocks.1.attentions.0": ("down.1.attn.0", "down_1/attn_0"),
        "down_blocks.0.downsamplers.0.conv": ("down.0.downsample.conv", "down_0/downsample/conv"),
        "up_blocks.0.resnets.0": ("up.1.block.0", "up_1/block_0"), "up_blocks.0.resnets.1": ("up.1.block.1", "up_1/block_1"),
        "up_blocks.0.attentions.0": ("up.1.attn.0", "up_1/attn_0"), "up_blocks.0.attentions.1": ("up.1.attn.1", "up_1/attn_1"),
        "up_blocks.0.upsamplers.0.conv": ("up.1.upsample.conv", "up_1/upsample/conv"),
        "up_blocks.1.resnets.0": ("up.0.block.0", "up_0/block_0"), "up_blocks.1.resnets.1": ("up.0.block.1", "up_0/block_1"),
    }  # fmt: skip
    inner = {"time_emb_proj": "temb_proj", "conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k",
             "to_v": "v", "to_out.0": "proj_out"}  # fmt: skip
    port, tensorflow = {}, {}
    for name, array in state.items():
        path, leaf = name.rsplit(".", 1)
        at = max((p for p in pairs if path == p or path.startswith(p + ".")), key=len)
        rest = path[len(at) + 1 :]
        rest = inner.get(rest, rest)
        in_attention, norm = ".attentions." in name, "norm" in path.rsplit(".", 1)[-1]
        port[".".join(p for p in (pairs[at][0], rest, leaf) if p)] = (
            array[:, :, None, None] if in_attention and array.ndim == 2 else array
        )
        leaf = {"weight": "gamma" if norm else "W", "bias": "beta" if norm else "b"}[leaf]
        array = array[:, :, 0, 0] if rest == "nin_shortcut" and array.ndim == 4 else array
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        tensorflow["/".join(p for p in ("model", pairs[at][1], rest, leaf) if p) + "/ExponentialMovingAverage"] = array
    for older in (port, tensorflow):
        got = ddpm.modern(older)
        assert got.keys() == state.keys()
        for name in state:
            np.testing.assert_array_equal(got[name], state[name], err_msg=name)


# --- mismatches -----------------------------------------------------------------------------------------------------


@pytest.fixture
def state():
    return blank(adm, UNet(**SMALL, blocks=1, attention=(2,), heads=2))


def convert(state):
    return adm.convert(state, heads=2, groups=2)


def test_renamed_missing_and_wrong_are_all_named(state):
    state["middle_block.1.qkv.wait"] = state.pop("middle_block.1.qkv.weight")
    del state["input_blocks.1.0.in_layers.2.bias"]
    state["middle_block.0.in_layers.0.weight"] = np.zeros(5)
    with pytest.raises(ValueError) as error:
        convert(state)
    text = str(error.value)
    assert "\n" not in text
    assert "missing: input_blocks.1.0.in_layers.2.bias, middle_block.1.qkv.weight;" in text
    assert "left over: middle_block.1.qkv.wait;" in text
    assert "of another shape: middle_block.0.in_layers.0.weight (5,) (wanted (8,))" in text
    assert "UNet(out_channels=3, width=4, blocks=1, attention=(2,), heads=2, groups=2)" in text  # what is not default


# arrays that alone show something: without them another network is read, whose list names them all the same
ALONE = {"label_emb.weight", "class_embedding.weight", "out.0.weight"}
SPOILT = [(adm, *ADM[n]) for n in (0, 2, 5, 7, 9, 10, 11)] + [(ddpm, DDPMUNet, DDPM[n]) for n in (0, 1, 2)]


@pytest.mark.parametrize("family, network, fields", SPOILT)
def test_one_bad_array_does_not_change_what_is_read(family, network, fields):
    """Whichever array is renamed, missing or of another shape: the error is about it, not about a network misread."""
    net = network(**(SMALL | fields))
    state = blank(family, net, channels=6 if network is SuperRes else 3, tokens=17)
    hints = {name: fields[name] for name in ("heads", "head_channels") if name in fields} | {"groups": 2}
    read = lambda state: family.config_from_state(state, **hints)
    good = read(state)
    for name, array in state.items():
        rest = {n: a for n, a in state.items() if n != name}
        longer = np.broadcast_to(np.float32(0), (array.shape[0] + 1, *array.shape[1:]))
        if name not in ALONE and not (network is SuperRes and name == "input_blocks.0.0.weight"):
            assert read(rest) == good, f"without {name}"
            assert read(rest | {f"{name}x": array}) == good, f"{name} renamed"
            if network is not Encoder or not name.startswith("out."):  # weight and bias of the last layer against each other
                assert read(rest | {name: longer}) == good, f"{name} longer"


@pytest.mark.parametrize("name, change, said", [
    ("out.2.weight", "rename", "missing: out.2.weight; left over: out.2.weightx"),
    ("input_blocks.0.0.weight", "drop", "missing: input_blocks.0.0.weight"),
    ("input_blocks.3.0.out_layers.3.weight", "longer", "input_blocks.3.0.out_layers.3.weight (9, 8, 3, 3) (wanted (8, 8,"),
])  # fmt: skip
def test_one_bad_array_is_named(state, name, change, said):
    array = state.pop(name)
    if change != "drop":
        state[name + "x" * (change == "rename")] = np.zeros((9, *array.shape[1:])) if change == "longer" else array
    with pytest.raises(ValueError) as error:
        convert(state)
    assert said in str(error.value) and "UNet(out_channels=3, width=4, blocks=1" in str(error.value)


def test_other_families_and_unreadable_fields(state):
    with pytest.raises(ValueError, match="no checkpoint of the ADM family: it has no time_embed"):
        convert(blank(ddpm, DDPMUNet(**SMALL)))
    with pytest.raises(ValueError, match="no checkpoint of a UNet2DModel: it has no conv_in"):
        ddpm.convert(state)
    with pytest.raises(ValueError, match="a state dict does not show its number of heads"):
        adm.convert(state, groups=2)
    with pytest.raises(ValueError, match="use groups="):
        adm.convert(state, heads=2)
    with pytest.raises(ValueError, match="num_head=4 is no argument of the ADM networks; nearest: num_heads"):
        adm.from_flags(num_head=4)


@pytest.mark.parametrize("change, message", [
    ({"act_fn": "gelu"}, "act_fn='gelu' is not supported: only 'silu'"),
    ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
    ({"down_block_types": ["SkipDownBlock2D"]}, "down_block_types has SkipDownBlock2D"),
])  # fmt: skip
def test_unsupported_diffusers_options(change, message):
    with pytest.raises(ValueError, match=message):
        ddpm.from_config(change)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny.pt", "tiny_legacy.pth", "tiny_nested.ckpt"])
def test_torch_files(name):
    base = np.arange(24, dtype=np.float32)
    wanted = {"plain": base.reshape(2, 3, 4), "transposed": base.reshape(4, 6).T, "view": base[5:9],
              "half": np.array([1.5, -0.25], np.float16), "brain": np.array([1.5, -0.25], jnp.bfloat16),
              "long": np.array([2**40, -1]), "scalar": np.array(2.5), "empty": np.zeros((0, 3), np.float32),
              "linear.weight": np.array([[0.5, -2]], np.float32), "linear.bias": np.array([3], np.float32),
              "parameter": np.array([7], np.float32)}  # fmt: skip
    got = files.read(CHECKPOINTS / name)
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        assert got[key].dtype == value.dtype, key
        np.testing.assert_array_equal(got[key], value, err_msg=key)


def test_other_files(tmp_path):
    state = {"a.b": np.arange(6.0, dtype=np.float32).reshape(2, 3).T, "c": np.array([1.5], jnp.bfloat16)}
    files.write(tmp_path / "s.safetensors", state)
    np.savez(tmp_path / "s.npz", **{"a.b": state["a.b"]})
    for path, names in (("s.safetensors", ["a.b", "c"]), ("s.npz", ["a.b"])):
        got = files.read(tmp_path / path)
        assert sorted(got) == names
        for name in names:
            assert got[name].dtype == state[name].dtype
            np.testing.assert_array_equal(got[name], state[name])


@pytest.mark.parametrize("name", ["tiny.pt", "tiny_legacy.pth", "s.safetensors", "s.npz"])
def test_truncated_files(name, tmp_path):
    state = {"a": np.zeros(1000, np.float32)}
    files.write(tmp_path / "s.safetensors", state)
    np.savez(tmp_path / "s.npz", **state)
    whole = (CHECKPOINTS / name if name.startswith("tiny") else tmp_path / name).read_bytes()
    for keep in (0, 10, len(whole) // 2, len(whole) - 7):
        (tmp_path / name).write_bytes(whole[:keep])
        with pytest.raises(ValueError, match="damaged, truncated or not a checkpoint") as error:
            files.read(tmp_path / name)
        assert "\n" not in str(error.value)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("touched-by-a-checkpoint"),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused(zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"weight": Evil()})
    if zipped:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", data)
        data = buffer.getvalue()
    else:
        data = pickle.dumps(files.LEGACY_MAGIC) + pickle.dumps(1001) + pickle.dumps({}) + data
    (tmp_path / "evil.pt").write_bytes(data)
    with pytest.raises(ValueError, match="refused: "):
        files.read(tmp_path / "evil.pt")
    assert not (tmp_path / "touched-by-a-checkpoint").exists()


def test_a_tensor_outside_its_storage_is_refused():
    for offset, size, stride in ((0, (5,), (1,)), (3, (2,), (1,)), (0, (2, 2), (1, 3)), (3, (2,), (-1,)), (-1, (1,), (1,))):
        tensor = pickles.Tensor(None, offset, size, stride)
        with pytest.raises(ValueError, match="outside its storage"):
            files.view(np.zeros(4), tensor)


def test_unknown_and_absent_files(tmp_path):
    with pytest.raises(ValueError, match=r"x\.pt: no such file"):
        files.read(tmp_path / "x.pt")
    (tmp_path / "x.onnx").touch()
    with pytest.raises(ValueError, match=r"cannot read \.onnx files; use \.safetensors"):
        files.read(tmp_path / "x.onnx")
