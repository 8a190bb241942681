"""Networks of the official codes with random weights: outputs, input gradients, classifier gradients, converters.

Configurations come from the files' own metadata; float64 is run for the smallest file of each kind.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import check, find, load

from diffjax.convert import adm, ddpm

FLOAT32, FLOAT64 = 1e-4, 1e-9
UNSEEN = ("heads", "head_channels", "heads_upsample", "qkv_order")  # fields that no state dict shows
KINDS = ("net_adm_", "net_improved_", "net_enc_", "net_ddpm_")


def channels_last(a):
    return np.moveaxis(a, 1, -1) if a.ndim == 4 else a


def rebuild(run, meta, dtype):
    """(net, params, state dict, the family's converter) of a recorded network."""
    state = {name[2:]: a for name, a in run.items() if name.startswith("p/")}
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
        np.testing.assert_array_equal(back[name], state[name].astype(dtype), err_msg=name)


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
