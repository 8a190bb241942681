"""Networks of the official codes with random weights: outputs, input gradients, classifier gradients, converters.

Configurations come from the files' own metadata; float64 is run for the smallest file of each kind.
"""

import collections

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import check, find, load

from diffjax.convert import adm, ddpm, score_sde

FLOAT32, FLOAT64 = 1e-4, 1e-9
UNSEEN = ("heads", "head_channels", "heads_upsample", "qkv_order")  # fields that no state dict shows
KINDS = ("net_adm_", "net_improved_", "net_enc_", "net_ddpm_", "net_sde_")


def channels_last(a):
    return np.moveaxis(a, 1, -1) if a.ndim == 4 else a


def rebuild(run, meta, dtype):
    """(net, params, state dict, the family's converter) of a recorded network."""
    state = {name[2:]: a for name, a in run.items() if name.startswith("p/")}
    if "model" in meta:
        groups = {"groups": meta["norm_groups_patched"]} if meta["norm_groups_patched"] else {}
        return *score_sde.convert(state, meta, dtype=dtype, **groups), state, score_sde
    if meta["cls"] == "UNet2DModel":
        return *ddpm.convert(state, meta["kwargs"], dtype=dtype), state, ddpm
    fields = adm.from_flags(**meta["kwargs"])
    hints = {name: fields[name] for name in UNSEEN if name in fields}
    net, params = adm.convert(state, dtype=dtype, groups=meta["norm_groups"], **hints)
    wrong = {name: (getattr(net, name), value) for name, value in fields.items() if getattr(net, name) != value}
    assert not wrong, f"read from the state dict, in the constructor's arguments: {wrong}"
    return net, params, state, adm


def replay(path, dtype, tolerance):
    run, meta = load(path)
    net, params, state, family = rebuild(run, meta, dtype)
    x, v = (jnp.asarray(channels_last(run[name]), dtype) for name in "xv")
    t = jnp.asarray(run["t"], dtype)
    args = [jnp.asarray(channels_last(run["low_res"]), dtype)] if "low_res" in run else []
    args += [jnp.asarray(run["y"])] if net.classes else []
    y = jnp.asarray(run["y"])[:, None] if "cls_grad64" in run else None

    def both(params, x):
        out, pull = jax.vjp(lambda x: net.apply(params, x, t, *args), x)
        if y is None:
            return out, pull(v)[0]
        log, pull_log = jax.vjp(jax.nn.log_softmax, out)
        one_hot = jnp.asarray(y == jnp.arange(out.shape[-1]), out.dtype)
        return out, pull(v)[0], log, pull(pull_log(one_hot)[0])[0]

    # these networks run once, so compiling them well is a waste
    fast = {"xla_backend_optimization_level": 0}
    results = jax.jit(both).lower(params, x).compile(compiler_options=fast)(params, x)
    for name, got in zip(("out64", "gx64", "logprob64", "cls_grad64"), results):
        assert got.dtype == dtype
        check(f"{path.stem} {name} {np.dtype(dtype).name}", got, channels_last(run[name]), tolerance)

    back = family.to_state(net, params)
    assert back.keys() == state.keys()
    for name in state:
        np.testing.assert_array_equal(back[name].astype(dtype), state[name].astype(dtype), err_msg=name)


@pytest.mark.golden("networks", *KINDS)
def test_network(golden_file):
    replay(golden_file, np.float32, FLOAT32)


@pytest.mark.parametrize("kind", KINDS)
def test_network_in_float64(golden_dir, kind):
    files = find(golden_dir, "networks", kind)
    if not files:
        pytest.skip(f"no {kind}* in {golden_dir}")
    with jax.enable_x64(True):
        replay(min(files, key=lambda f: f.stat().st_size), np.float64, FLOAT64)


@pytest.mark.golden("networks", "net_ddpm_")
def test_diffusers_fields_are_read_from_the_state_dict(golden_file):
    run, meta = load(golden_file)
    state = {name[2:]: a for name, a in run.items() if name.startswith("p/")}
    fields = ddpm.from_config(meta["kwargs"])
    read = ddpm.config_from_state(state)
    assert {name: fields[name] for name in read} == read


@pytest.mark.golden("networks", "net_sde_")
def test_score_sde_fields_are_read_from_the_state_dict(golden_file):
    run, meta = load(golden_file)
    net = score_sde.NCSNpp(**score_sde.from_config(meta))
    read = score_sde.config_from_state({name[2:]: a for name, a in run.items() if name.startswith("p/")})
    assert {name: getattr(net, name) for name in read} == read and len(read) >= 9


def in_flax(state, modules, model):
    """The tree of the older Flax: a module's class and its number among the calls of that class; HWIO; norms (1, 1, 1, C)."""
    calls, tree = collections.Counter(), {}
    for n, torch_class in enumerate(modules):
        if torch_class == "Combine":
            calls["Downsample"] += 1  # of the image, without parameters
        if torch_class == "GroupNorm" and model["progressive"] == "output_skip" and calls["GroupNorm"]:
            calls["Upsample"] += 1  # of the image given so far
        name = {"Linear": "Dense", "Conv2d": "Conv"}.get(torch_class, torch_class)
        place = f"{name}_{calls[name]}"
        calls[name] += 1
        for full, a in state.items():
            if not full.startswith(f"all_modules.{n}."):
                continue
            *inner, last = full.split(".")[2:]
            of = (inner or [name])[-1]
            if a.ndim == 4:
                a = a.transpose(2, 3, 1, 0)
            elif a.ndim == 2 and last == "weight":
                a = a.T
            elif of.startswith("GroupNorm"):
                a = a.reshape(1, 1, 1, -1)
            if last == "weight" and not of.startswith("Conv2d_"):
                last = "scale" if of.startswith("GroupNorm") else "kernel"
            at = tree.setdefault(place, {})
            for folder in inner:
                at = at.setdefault(folder, {})
            at[last] = a
    return tree


@pytest.mark.golden("networks", "net_sde_")
def test_score_sde_files_of_flax_and_torch(golden_file, tmp_path):
    run, meta = load(golden_file)
    state = {name[2:]: a for name, a in run.items() if name.startswith("p/")}
    net = score_sde.NCSNpp(**score_sde.from_config(meta))
    file = tmp_path / "checkpoint_26"
    tree = in_flax(state, meta["modules"], meta["model"])
    file.write_bytes(flax.serialization.msgpack_serialize({"params_ema": tree, "step": 1}))
    back = score_sde.from_flax(score_sde.read(file), net)
    assert back.keys() == state.keys() - {"sigmas"}
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)

    # torch: averages are a list that skips what is not trained
    first = meta["modules"][0] == "GaussianFourierProjection"
    trained = [name for name in state if name != "sigmas" and not (first and name == "all_modules.0.W")]
    loaded = {"model": {f"module.{name}": a for name, a in state.items()},
              "ema": {"shadow_params": [state[name] + 1 for name in trained]}}  # fmt: skip
    averaged = score_sde.from_torch(loaded)
    assert averaged.keys() == state.keys()
    for name, array in averaged.items():
        np.testing.assert_array_equal(array, state[name] + (name in trained), err_msg=name)
    loaded["ema"]["shadow_params"].pop()
    with pytest.raises(ValueError, match="averages"):
        score_sde.from_torch(loaded)


@pytest.mark.golden("networks", "net_ddpm_")
def test_attention_names_of_2022(golden_file):
    run, _ = load(golden_file)
    new = {name[2:]: a for name, a in run.items() if name.startswith("p/")}
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = {}
    for name, a in new.items():
        for after, before in names.items():
            name = name.replace(after, before)
        old[name] = a
    assert old.keys() != new.keys()
    assert ddpm.modern(old).keys() == new.keys()
