"""Networks and conditioners of latent diffusion and diffusers with random weights: outputs, gradients, converters.

Everything that a file is comes from its own metadata. The recorded runs' own float32 noise is up to 9e-6 in outputs and 6e-5
in gradients.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import check, load
from safetensors.numpy import load_file

from diffjax import nets
from diffjax.convert import diffusers_unet, latent

OUT, GRADIENT = 5e-5, 3e-4
UNSEEN = ("heads", "head_channels", "heads_upsample", "qkv_order", "dropout")  # fields that no state dict shows
FAST = {"xla_backend_optimization_level": 0}  # these programs run once


def recorded(path):
    """(arrays, metadata, state dict in float32) of a recorded run."""
    run, meta = load(path)
    weights = path.with_suffix(".safetensors")
    state = load_file(weights) if weights.exists() else {}
    return run, meta, {name: a if a.dtype == np.int32 else a.astype(np.float32) for name, a in state.items()}


def last(a):
    return np.moveaxis(a, 1, -1) if np.ndim(a) == 4 else a


def fields_of(kwargs, groups):
    return latent.from_flags(**{name: value for name, value in kwargs.items() if name != "legacy"}) | {"groups": groups}


def convert_ldm(kwargs, groups, state):
    """(net, params): the configuration is read off the weights, and is that of the constructor's arguments."""
    fields = fields_of(kwargs, groups)
    hints = {name: fields[name] for name in UNSEEN if name in fields}
    if len(set(fields["multipliers"])) == 1 and "context" in fields:  # then no array shows it
        hints["context"] = fields["context"]
    net, params = latent.convert(state, groups=groups, **hints)
    assert net == nets.LatentUNet(**fields)
    return net, params


def told(net, run):
    """(x, condition) of a recorded call: what is concatenated lies behind x, tokens and labels have names of their own."""
    x, concat = np.split(last(run["in_x"]), [run["in_x"].shape[1] - getattr(net, "concat", 0)], axis=-1)
    cond = {"concat": concat} if concat.shape[-1] else {}
    cond |= {ours: run[theirs] for ours, theirs in (("context", "in_context"), ("label", "in_y")) if theirs in run}
    return x, cond or None


@pytest.mark.golden("latent", "ldm_unet_", "diffusers_unet2d_")
def test_network(golden_file):
    run, meta, state = recorded(golden_file)
    if "config" in meta:
        net, params = diffusers_unet.convert(state, meta["config"])
        back = diffusers_unet.to_state(net, params, bool(meta["config"].get("use_linear_projection")))
    else:
        net, params = convert_ldm(meta["kwargs"], meta["group_norm_groups"], state)
        back = latent.to_state(net, params)
        if net.ids:  # the usual last layers, which are never run
            state = {
                name: a
                for name, a in state.items()
                if name not in ("out.0.weight", "out.0.bias", "out.2.weight", "out.2.bias")
            }
    assert back.keys() == state.keys()
    for name in state:
        np.testing.assert_array_equal(back[name], state[name], err_msg=name)

    x, cond = told(net, run)
    floats = {name: a for name, a in (cond or {}).items() if name != "label"}

    @functools.partial(jax.jit, compiler_options=FAST)
    def both(params, x, floats, v):
        def apply(x, floats):
            if cond is None:
                return net.apply(params, x, run["in_t"])
            # UNet2DModel knows labels by themselves
            given = cond | floats if isinstance(net, nets.LatentUNet) else cond["label"]
            return net.apply(params, x, run["in_t"], given)

        out, pull = jax.vjp(apply, x, floats)
        return out, *pull(v)

    out, grad_x, grads = both(params, x, floats, last(run["v"]))
    check(f"{golden_file.stem} out", out, last(run["out"]), OUT)
    whole = np.concatenate([grad_x, grads["concat"]], -1) if "concat" in grads else grad_x
    check(f"{golden_file.stem} grad_x", whole, last(run["grad_x"]), GRADIENT)
    if "grad_context" in run:
        check(f"{golden_file.stem} grad_context", grads["context"], run["grad_context"], GRADIENT)


@pytest.mark.golden("latent", "ldm_bert")
def test_text_transformer(golden_file):
    run, meta, state = recorded(golden_file)
    net, params = latent.conditioner(state)
    asked = meta["kwargs"]
    assert (net.width, net.layers) == (asked["n_embed"], asked["n_layer"])
    assert (net.vocabulary, net.length) == (asked["vocab_size"], asked["max_seq_len"])

    @functools.partial(jax.jit, compiler_options=FAST)
    def both(params, tokens, v):
        out, pull = jax.vjp(lambda params: net.apply(params, tokens), params)
        return out, pull(v)[0]["params"]["token"]

    out, grad = both(params, run["in_tokens"], run["v"])
    check(f"{golden_file.stem} out", out, run["out"], OUT)
    check(f"{golden_file.stem} grad_token_emb", grad, run["grad_token_emb"], GRADIENT)
    if "out_short" in run:
        count = run["out_short"].shape[1]
        check(f"{golden_file.stem} out_short", net.apply(params, run["in_tokens"][:, :count]), run["out_short"], OUT)


@pytest.mark.golden("latent", "ldm_cond_small")
def test_small_conditioners(golden_file):
    run, meta, _ = recorded(golden_file)
    net, params = latent.conditioner({"embedding.weight": run["class_table"]})
    assert (net.width, net.classes) == (meta["ClassEmbedder"]["embed_dim"], meta["ClassEmbedder"]["n_classes"])
    check(f"{golden_file.stem} class", net.apply(params, run["y"]), run["class_out"], OUT)
    for n, asked in enumerate(meta["SpatialRescaler"]):
        names = {"n_stages": "stages", "multiplier": "factor", "method": "method"}
        hints = {ours: asked[theirs] for theirs, ours in names.items() if theirs in asked}
        state = {name.removeprefix(f"resc{n}_"): a for name, a in run.items() if name.startswith(f"resc{n}_channel_mapper")}
        net, params = latent.conditioner(state, **hints) if state else (nets.SpatialRescaler(**hints), {})
        out = net.apply(params, last(run[f"resc{n}_x"]))
        check(f"{golden_file.stem} {n} {net.method}", out, last(run[f"resc{n}_out"]), OUT)


@pytest.mark.golden("latent", "ldm_full_", "ldm_pipeline_")
def test_whole_file(golden_file):
    """The parts of a Lightning file; the network of the averaged and of the trained weights."""
    run, meta, state = recorded(golden_file)
    averages = any(name.startswith("model_ema.") for name in state)
    parts = latent.split(state)
    assert parts.weights == ("ema" if averages else "raw")
    counts = meta["top_level_keys"]
    assert len(parts.unet) == counts["model"] and len(parts.first_stage) == counts["first_stage_model"]
    assert parts.scale_factor == (float(run["scale_factor"]) if "scale_factor" in run else None)
    first = meta["params"]["cond_stage_config"] == "__is_first_stage__"
    assert parts.condition_is_first_stage == first
    assert len(parts.conditioner) == (0 if first else counts.get("cond_stage_model", 0))
    assert set(parts.schedule) < set(counts) and "betas" in parts.schedule

    kwargs, groups = meta["params"]["unet_config"]["params"], meta["group_norm_groups"]
    reader = latent.conditioner(parts.conditioner) if parts.conditioner else None
    if reader is not None and "c" in run and "class_label" in run:
        check(f"{golden_file.stem} c", reader[0].apply(reader[1], run["class_label"]), run["c"], OUT)
    outputs = {name: run[name] for name in ("eps", "eps_raw", "eps_ema") if name in run}
    program = None
    for name, expected in outputs.items():
        weights = {"eps_raw": "raw", "eps_ema": "ema"}.get(name)
        net, params = convert_ldm(kwargs, groups, latent.split(state, weights).unet)
        if reader is None:
            cond = {"concat": last(run["c"])} if net.concat else None
        else:
            net, params = latent.join(net, params, *reader)
            cond = {"label": run["class_label"]}
        program = program or jax.jit(net.apply, compiler_options=FAST)
        check(f"{golden_file.stem} {name}", program(params, jnp.asarray(last(run["z"])), run["t"], cond), last(expected), OUT)
