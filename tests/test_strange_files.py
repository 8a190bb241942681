"""Strangers' checkpoints: nothing in them runs, nothing in them is believed beyond its size, and what they say is used."""

import json
import pickle
import shutil
import struct
import warnings
import zipfile
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from test_hub import ADM, CHECKPOINTS, SCHEDULER, UNET

from diffjax import zoo
from diffjax.convert import files, pickles
from diffjax.zoo import hub, network, parents, schedulers

SIX = np.arange(6, dtype=np.float32)
EMPTY = b"ccollections\nOrderedDict\n)R"


def text(s):
    return b"X" + struct.pack("<I", len(s)) + s.encode()


def whole(n):
    return b"\x8a\x09" + n.to_bytes(9, "little", signed=True)


def tensor(count, *, kind="FloatStorage", key="0", size=None, stride=(1,), offset=0, v3=None, hooks=b""):
    """The opcodes of a tensor as torch writes them; v3: the type of a storage that has none."""
    size = (count,) if size is None else size
    name = "_rebuild_tensor_v3" if v3 else "_rebuild_tensor_v2"
    module = "torch.storage" if kind == "UntypedStorage" else "torch"
    end = f"ctorch\n{v3}\n".encode() if v3 else b""
    return b"".join([f"ctorch._utils\n{name}\n((".encode(), text("storage"), f"c{module}\n{kind}\n".encode(), text(key),
                     text("cpu"), whole(count), b"tQ", whole(offset), b"(", *map(whole, size), b"t(", *map(whole, stride),
                     b"t\x89", EMPTY, end, hooks, b"tR"])  # fmt: skip


def saved(file, pickled, numbers=SIX, members=None, **more):
    with zipfile.ZipFile(file, "w", **more) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickled + b".")
        for name, data in (members or {"0": numbers.tobytes()}).items():
            archive.writestr(f"archive/data/{name}", data)
    return file


def said(source, read=files.read):
    with pytest.raises(ValueError) as caught:
        read(source)
    assert str(caught.value).isprintable() and str(source) in str(caught.value)
    return str(caught.value)


# --- nothing runs, nothing can be written to ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["BFloat16Storage", "FloatStorage", "HalfStorage"])
def test_no_opcode_reaches_a_type_of_numpy(kind, tmp_path):
    """BUILD on the type of a storage, with what numpy's __setstate__ takes: once it changed bfloat16 in the whole process."""
    state = b"(" + whole(3) + text("|") + b"NNN" + whole(4096) + whole(1) + whole(0) + b"t"
    built = f"ctorch\n{kind}\n".encode() + state + b"b0"
    file = saved(tmp_path / "a.pt", b"}(" + text("w") + tensor(3, kind=kind) + b"u" + built)  # fmt: skip
    files.read(file)
    assert np.dtype(jnp.bfloat16).itemsize == 2
    np.testing.assert_array_equal(np.array([1, 2, 3], jnp.bfloat16).astype(np.float32), [1, 2, 3])


@pytest.mark.parametrize("opcodes", [
    b"ctorch\nFloatStorage\n}" + text("kind") + text("x") + b"sb",  # BUILD
    b"ccollections\nOrderedDict\n" + text("a") + text("b") + b"s",  # SETITEM on a class
    b"ctorch._utils\n_rebuild_tensor_v2\n(" + text("a") + b"e",  # APPENDS
    b"cargparse\nNamespace\n)R}" + text("a") + text("b") + b"sb",  # state of an object
    b"ctorch\nFloatStorage\n)\x81",  # NEWOBJ
    b"(cargparse\nNamespace\no",  # OBJ
])  # fmt: skip
def test_names_are_inert(opcodes, tmp_path):
    """They stay names: beside a state dict they are left out, in its place they are refused."""
    beside = saved(
        tmp_path / "a.pt", b"}(" + text("state_dict") + b"}(" + text("w") + tensor(6) + b"u" + text("x") + opcodes + b"u"
    )
    np.testing.assert_array_equal(files.read(beside)["w"], np.arange(6))
    assert "refused: " in said(saved(tmp_path / "b.pt", b"}(" + text("w") + opcodes + b"u"))


@pytest.mark.parametrize("opcodes, name", [
    (b"cos\nsystem\n(" + text("true") + b"tR", "os.system"),
    (b"(" + text("true") + b"ios\nsystem\n", "os.system"),
    (b"c__builtin__\neval\n(" + text("1") + b"tR", "builtins.eval"),
    (b"ctorch\nload\n(" + text("x") + b"tR", "torch.load"),
    (b"\x8c\x05torch\x8c\x08hub.load\x93", "torch.hub.load"),
    (b"cnumpy\nload.__globals__\n", "numpy.load.__globals__"),
    (b"ctorch.nn.modules.conv\nConv2d\n)\x81", "torch.nn.modules.conv.Conv2d"),
])  # fmt: skip
def test_what_could_run_is_refused_by_name(opcodes, name, tmp_path):
    file = saved(tmp_path / "a.pt", b"}(" + text("w") + tensor(6) + text("x") + opcodes + b"u")
    assert f"refused: {name}" in said(file).replace("it holds whole Python objects (", "")  # fmt: skip


def test_kinds_of_tensors(tmp_path):
    """Shared storages, views, a parameter, float8 in an untyped storage; the right values."""
    eight = np.array([1, -2, 0.5], ml_dtypes.float8_e4m3fn)
    pickled = b"}(" + b"".join([
        text("all"), tensor(6, size=(2, 3), stride=(3, 1)), text("transposed"), tensor(6, size=(3, 2), stride=(1, 3)),
        text("part"), tensor(6, size=(2,), stride=(2,), offset=1), text("repeated"), tensor(6, size=(2, 2), stride=(0, 1)),
        text("parameter"), b"ctorch._utils\n_rebuild_parameter\n(", tensor(6), b"\x88", EMPTY, b"tR",
        text("eight"), tensor(3, kind="UntypedStorage", key="1", v3="float8_e4m3fn"),
    ]) + b"u"  # fmt: skip
    x = np.arange(6, dtype=np.float32)
    got = files.read(saved(tmp_path / "a.pt", pickled, members={"0": x.tobytes(), "1": eight.tobytes()}))
    wanted = {"all": x.reshape(2, 3), "transposed": x.reshape(2, 3).T, "part": x[[1, 3]], "repeated": x[[[0, 1], [0, 1]]],
              "parameter": x, "eight": eight}  # fmt: skip
    assert got.keys() == wanted.keys()
    for name, a in wanted.items():
        assert got[name].dtype == a.dtype
        np.testing.assert_array_equal(got[name], a, err_msg=name)


# --- work and memory by the size of the file ----------------------------------------------------------------------------


def bombs(folder):
    big = bytes(2**20) * 600
    laughs = b"]q\0" + b"".join(b"]q" + bytes([i + 1]) + b"(h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(60))
    copies = b"(" + b"N" * 100_000 + b"lq\0" + b"".join(b"c__builtin__\nlist\n(h\0tR" for _ in range(40_000)) + b"e"
    yield saved(folder / "memo.pt", b"]r\xff\xff\xff\x0f"), "place 268435455"
    yield saved(folder / "laughs.pt", b"(" + laughs + b"l"), "expected a dict of arrays"
    yield saved(folder / "copies.pt", b"]" + copies), "opcodes"
    yield saved(folder / "itself.pt", b"}q\0(" + text("state_dict") + b"h\0u"), "expected a dict of arrays"
    yield saved(folder / "nested.pt", b"]" * 100_000 + b"a" * 99_999), "expected a dict of arrays"
    yield saved(folder / "stride.pt", b"}(" + text("w") + tensor(1, size=(2**31,), stride=(0,)) + b"u"), "no network does"
    yield saved(folder / "outside.pt", b"}(" + text("w") + tensor(6, size=(7,)) + b"u"), "outside its storage"
    yield saved(folder / "bytes.pt", b"\x8e" + struct.pack("<Q", 2**40)), "damaged"
    yield saved(folder / "long.pt", b"\x8b" + struct.pack("<i", 2**31 - 1)), "damaged"
    yield saved(folder / "bomb.pt", b"}(" + text("w") + tensor(150 * 2**20) + b"u", members={"0": big},
                compression=zipfile.ZIP_DEFLATED), "unpacks to far more"  # fmt: skip
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4398046511104,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(folder / "head.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + bytes(8))
    yield folder / "head.npz", "holds fewer"


def test_numbers_in_a_file_reserve_nothing(tmp_path):
    from experiments import fuzz

    for file, wanted in bombs(tmp_path):
        messages = []
        assert not fuzz.broken(lambda: messages.append(said(file)), file.stat().st_size), file.name
        assert wanted in messages[0], messages


@pytest.mark.parametrize("change", [
    {"layers_per_block": 100_000}, {"block_out_channels": []}, {"block_out_channels": [10**18, 4]},
    {"block_out_channels": [4] * 100, "down_block_types": ["DownBlock2D"] * 100, "up_block_types": ["UpBlock2D"] * 100},
    {"norm_num_groups": 0}, {"sample_size": 10**9}, {"wavelet": True}, {"in_channels": "3"},
])  # fmt: skip
def test_numbers_of_a_configuration_build_nothing(change, folder):
    (folder / "config.json").write_text(json.dumps(UNET | change))
    assert next(iter(change)) in said(folder, zoo.load) or "size" in said(folder, zoo.load)


@pytest.fixture
def folder(tmp_path):
    """A UNet2DModel of the hub."""
    at = tmp_path / "model"
    at.mkdir()
    shutil.copy(CHECKPOINTS / "tiny_unet2d_2022.bin", at / "diffusion_pytorch_model.bin")
    (at / "config.json").write_text(json.dumps(UNET))
    (at / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return at


@pytest.mark.parametrize("name", [
    "input_blocks.{}.0.in_layers.0.weight", "output_blocks.{}.0.in_layers.0.weight", "down_blocks.{}.resnets.0.norm1.weight",
    "down_blocks.0.resnets.{}.norm1.weight",
])  # fmt: skip
def test_numbers_in_names_are_not_counted_up_to(name, tmp_path):
    source = "tiny_adm.pt" if "put" in name else "tiny_unet2d_2022.bin"
    state = files.read(CHECKPOINTS / source)
    files.write(tmp_path / "a.safetensors", state | {name.format(10**9): np.zeros(4, np.float32)})
    load = lambda file: zoo.load(file, ADM)
    assert "named as block 1000000000" in said(tmp_path / "a.safetensors", load)


# --- what a file is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data, wanted", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-lfs pointer, not the file itself"),
    (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    (b"GGUF\x03\x00\x00\x00", "a GGUF file"), (b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file"), (b"\x1f\x8b\x08", "gzip"),
    (b'{"a": 1}', "a text of JSON"), (b"", "the file is empty"), (pickle.dumps({"a": 1}), "a pickle that torch.save did not"),
    (b"x" * 257 + b"ustar\x00", "a tar archive (torch before 0.1.10"), (b"\x93NUMPY\x01\x00", "one .npy array"),
])  # fmt: skip
def test_what_is_no_checkpoint_is_called_what_it_is(data, wanted, tmp_path):
    for name in ("a.safetensors", "a.pt"):
        (tmp_path / name).write_bytes(data)
        assert wanted in said(tmp_path / name)


def test_others_that_torch_saves(tmp_path):
    optimiser = b"}(" + text("state") + b"}" + text("param_groups") + b"]u"
    assert "an optimiser's state, not a network" in said(saved(tmp_path / "opt.pt", optimiser))
    quantised = b"}(" + text("w") + b"ctorch._utils\n_rebuild_qtensor\n(tRu"
    assert "a quantised network" in said(saved(tmp_path / "q.pt", quantised))
    with zipfile.ZipFile(saved(tmp_path / "script.pt", b"}"), "a") as archive:
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
    assert "a TorchScript program" in said(tmp_path / "script.pt")
    marked = tensor(6, hooks=b"}(" + text("neg") + b"\x88u")
    assert "read in another way (neg)" in said(saved(tmp_path / "neg.pt", b"}(" + text("w") + marked + b"u"))


def test_the_name_of_a_file_says_nothing(tmp_path):
    for name in ("a.pth.tar", "a.PT", "a.model", "a"):
        file = saved(tmp_path / name, b"}(" + text("w") + tensor(6) + b"u")
        np.testing.assert_array_equal(files.read(file)["w"], np.arange(6))


def test_whole_numbers_are_no_weights(tmp_path):
    state = {name: (10 * a).astype(np.int8) for name, a in files.read(CHECKPOINTS / "tiny_adm.pt").items()}
    files.write(tmp_path / "a.safetensors", state)
    assert "numbers of type int8" in said(
        tmp_path / "a.safetensors", lambda f: zoo.load(f, {"groups": 2, "heads": 2, "size": 16})
    )


# --- wrappers, prefixes, shards -----------------------------------------------------------------------------------------


def dict_of(prefix="", first=0):
    """The opcodes of four arrays, of values first, first + 1."""
    return b"}(" + b"".join(text(f"{prefix}w{n}") + tensor(12, size=(2,), offset=first + 2 * n) for n in range(3)) + (
        text(f"{prefix}b") + tensor(12, size=(1,), offset=first) + b"u")  # fmt: skip


@pytest.mark.parametrize("pickled, first, note", [
    (b"}(" + text("model") + dict_of() + text("epoch") + b"K\x03u", 0, 'took "model"'),
    (b"}(" + text("model") + dict_of() + text("params_ema") + dict_of(first=6) + b"u", 6, 'took "params_ema" of model'),
    (b"}(" + text("ema") + b"}(" + text("shadow") + dict_of(first=6) + b"u" + text("model") + dict_of() + b"u",
     6, 'took "ema"'),
    (b"](" + dict_of() + b"}" + b"K\x05" + dict_of(first=6) + b"e", 6, "the averages, the last of a list of 4"),
    (dict_of("module."), 0, 'without their "module."'),
    (dict_of("_orig_mod.module."), 0, 'without their "_orig_mod.module."'),
    (b"}(" + text("state_dict") + dict_of("model.") + b"u", 0, 'without their "model."'),
    (dict_of()[:-1] + text("epoch") + b"K\x03u", 0, "left out epoch (3)"),
])  # fmt: skip
def test_wrappers_are_taken_off_aloud(pickled, first, note, tmp_path):
    notes = []
    got = files.read(saved(tmp_path / "a.pt", pickled, np.arange(12, dtype=np.float32)), notes)
    assert set(got) == {"w0", "w1", "w2", "b"} and note in "; ".join(notes)
    np.testing.assert_array_equal(got["w1"], [first + 2, first + 3])


def test_a_prior_says_what_was_taken(folder):
    state = files.read(folder / "diffusion_pytorch_model.bin")
    files.write(folder / "diffusion_pytorch_model.fp16.safetensors", {f"module.{k}": v for k, v in state.items()})
    (folder / "diffusion_pytorch_model.bin").unlink()
    with pytest.warns(zoo.Assumed, match=r"took the only variant, diffusion_pytorch_model.fp16.safetensors.*\"module\.\""):
        prior = zoo.load(folder)
    assert "module." in prior.card["assumed"] and prior.shape == (16, 16, 3) and prior.schedule.T == 500
    with pytest.warns(zoo.Assumed):  # F15: given by name, its configuration is used all the same
        assert zoo.load(folder / "diffusion_pytorch_model.fp16.safetensors").schedule.T == 500


def test_shards_are_joined(folder):
    state = files.read(folder / "diffusion_pytorch_model.bin")
    names = sorted(state)
    index = {"weight_map": {n: f"model-0000{1 + k % 2}-of-00002.safetensors" for k, n in enumerate(names)}}
    for part in set(index["weight_map"].values()):
        files.write(folder / part, {n: state[n] for n in names if index["weight_map"][n] == part})
    place = folder / "diffusion_pytorch_model.safetensors.index.json"
    place.write_text(json.dumps(index))
    got = files.read(place)
    assert got.keys() == state.keys()
    np.testing.assert_array_equal(got[names[3]], state[names[3]])
    for bad, wanted in (("../../etc/passwd", "must lie beside"), ("model-3.safetensors", "not there")):
        place.write_text(json.dumps({"weight_map": index["weight_map"] | {names[0]: bad}}))
        assert wanted in said(place)


# --- what a description says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, wanted", [
    ({"_class_name": "CMStochasticIterativeScheduler"}, "a consistency model"),
    ({"_class_name": "ScoreSdeVeScheduler"}, "beta_end=0.02 is not known"),
    ({"_class_name": "ScoreSdeVpScheduler"}, "in continuous time"),
    ({"_class_name": "OwnScheduler"}, "OwnScheduler, whose process"),
    ({"sigma_data": 0.5}, "sigma_data=0.5"), ({"use_flow_sigmas": True}, "mixes two processes"),
    ({"num_train_timesteps": 10**9}, "from 1 to 100000"), ({"beta_end": 2}, "between 0 and 1"),
    ({"predict_epsilon": False, "prediction_type": "v_prediction"}, "leave one out"),
])  # fmt: skip
def test_other_processes_are_refused(change, wanted, folder):
    (folder / "scheduler_config.json").write_text(json.dumps(SCHEDULER | change))
    assert wanted in said(folder, zoo.load)


def test_what_a_scheduler_means(folder):
    """predict_epsilon false is x0."""
    (folder / "scheduler_config.json").write_text(json.dumps(SCHEDULER | {"predict_epsilon": False}))
    assert zoo.load(folder).loss == "x0"


def test_a_latent_network_without_its_autoencoder_is_refused_wherever_it_is_entered(folder):
    unet = folder / "unet"
    unet.mkdir()
    for name in ("config.json", "diffusion_pytorch_model.bin"):
        shutil.copy(folder / name, unet)
    (folder / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKL"], "unet": []}')
    with pytest.raises(ValueError, match=r"vae has no config\.json: copy the whole folder"):
        zoo.load(folder)
    for source in (unet, unet / "diffusion_pytorch_model.bin"):
        with pytest.raises(ValueError, match="latent space of its vae: give the folder"):
            zoo.load(source)


def test_names_of_the_parent_codes():
    given = {"image_size": 64, "num_head_channels": 32, "noise_schedule": "squaredcos_cap_v2", "diffusion_steps": 4000,
             "rescale_timesteps": True, "attention_resolutions": "16,8", "num_heads": -1, "learn_sigma": True}  # fmt: skip
    assert parents.ours(given) == {"size": 64, "head_channels": 32, "schedule": "cosine", "T": 4000, "time_scale": 0.25,
                                   "attention": (4, 8)}  # fmt: skip
    with pytest.raises(ValueError, match="image_size=64 and size=32 are the same setting"):
        parents.ours({"image_size": 64, "size": 32})


def test_the_time_of_a_long_table_is_said():
    """improved-diffusion tells its network 1000 / T times the index."""
    from diffjax.zoo import public

    assert public._implied_by_T({"T": 4000}, {}, public.IMPROVED) == {"time_scale": 0.25}
    assert public._implied_by_T({"T": 4000}, {}, "ADM's released networks") == {}


def test_licences(tmp_path):
    readme = tmp_path / "README.md"
    for head, wanted in (("license:\n- apache-2.0\n- mit", "apache-2.0 and mit"), ("license:\ntags:\n- x", None),
                         ('license: "apache-2.0"', "apache-2.0"), ("license: other\nlicense_name: own-1", "other: own-1"),
                         ("license: [mit]", "mit")):  # fmt: skip
        readme.write_text(f"---\n{head}\n---\n# A model\n")
        assert hub._licence(readme) == wanted


# --- cards --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, wanted", [
    ({"loss": "foo"}, "loss 'foo'"), ({"loss": None}, "loss 'None'"), ({"T": 10**12}, "T 1000000000000"),
    ({"size": 4 * 10**9}, "size 4000000000"), ({"size": None}, "size None"), ({"multipliers": []}, "multipliers"),
    ({"heads": 0}, "heads 0"), ({"dropout": 2}, "dropout 2"), ({"schedule": {}}, "schedule"),
])  # fmt: skip
def test_fields_of_a_card_have_one_door(change, wanted):
    card = json.loads((Path(zoo.__file__).parent / "fashion32" / "card.json").read_text())["config"]
    network.build_schedule(card)
    with pytest.raises(ValueError, match=wanted):
        network.build_schedule(card | change)


@pytest.mark.parametrize("names, wanted", [(["a"], "one text for each"), (5, "one text for each"), (None, None)])
def test_class_names_and_the_name_of_a_card(names, wanted, tmp_path):
    at = shutil.copytree(Path(zoo.__file__).parent / "fashion32", tmp_path / "mine")
    card = json.loads((at / "card.json").read_text()) | {"class_names": names, "name": "../../../ESCAPED"}
    (at / "card.json").write_text(json.dumps(card))
    if wanted:
        with pytest.raises(ValueError, match=wanted):
            zoo.load(at)
    else:
        assert zoo.load(at).name == "ESCAPED"
    assert network.safe_name("/abs/where") == "abs-where" and network.safe_name("..") == "prior"


def test_foreign_text_is_one_line(tmp_path):
    state = files.read(CHECKPOINTS / "tiny_adm.pt") | {"a\nb\x1b[31m" + "c" * 100_000: np.zeros(1, np.float32)}
    files.write(tmp_path / "a.safetensors", state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = said(tmp_path / "a.safetensors", lambda f: zoo.load(f, ADM))
    assert len(text) < 1500 and "a b?[31m" in text


def test_a_cell_stays_in_its_folder(tmp_path):
    from experiments.tools.cells import Cells
    from experiments.tools.study import UserError

    kept = Cells(tmp_path / "cells", "command")
    for name in ("../x", "/abs/x", "a/../../x"):
        with pytest.raises(UserError, match="outside"):
            kept.get(name, lambda: {"code": "1", "settings": "2"}, dict)
    assert list(tmp_path.iterdir()) == []


def test_schedulers_allow_lists_hold_known_numbers():
    told = schedulers.read(
        SCHEDULER | {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 2, "use_karras_sigmas": True}
    )
    assert told == {"schedule": "linear", "T": 500, "beta_min": 1e-4, "beta_max": 0.02}
    assert isinstance(pickles.named("argparse", "Namespace"), pickles.Foreign)
