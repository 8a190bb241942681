"""The official inpainting and super-resolution of latent diffusion, replayed from their whole files.

They are read through the border for public checkpoints; then the condition made from the pictures, the walk, the decoder, the
blend, and the training loss."""

import re
import shutil
import warnings

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import check, load
from test_latent_networks import FAST, GRADIENT, OUT, last

import diffjax as dj
from diffjax import zoo
from diffjax.training import losses


def prior_of(file, meta, folder, **more):
    """Read away from the file beside it, which is no configuration."""
    config = meta["params"]
    unet = config["unet_config"]["params"]
    named = {"num_heads": "heads", "num_head_channels": "head_channels"}
    heads = {ours: unet[theirs] for theirs, ours in named.items() if unet.get(theirs, -1) != -1}
    given = {"groups": meta["group_norm_groups"], "size": config["first_stage_config"]["params"]["ddconfig"]["resolution"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zoo.Assumed)
        alone = shutil.copy(file.with_suffix(".safetensors"), folder)
        return zoo.load(alone, given | heads | more)


def walked(prior, run, meta, cond):
    """(states, the last) of the recorded walk: DDIM on the official grid."""
    eta = float(re.search(r"eta[ =]([0-9.]*[0-9])", meta["note"])[1])
    steps = int(re.search(r"S=(\d+)", meta["note"])[1])
    table = dj.timetables.ldm(prior.schedule, steps, count="published")
    draws = jnp.asarray(last(run["draws"]))
    check("x_T", draws[0], last(run["states"])[0], 1e-6)
    rows = draws[1:] if eta else ()
    walk = lambda prior, x: dj.sample(None, prior.denoiser(cond), table, x, kernel=dj.kernels.DDIM(eta=eta),
                                      recorded=dj.Draws(None, rows), trace=lambda x, row, info: x)  # fmt: skip
    result = jax.jit(walk, compiler_options=FAST)(prior, draws[0])
    check("states", result.trace, last(run["states"])[1:], OUT)
    check("samples", result.x, last(run["samples"])[0], OUT)
    return result.x


@pytest.mark.golden("latent", "ldm_pipeline_")
def test_pipeline_replays(golden_file, tmp_path):
    run, meta = load(golden_file)
    prior = prior_of(golden_file, meta, tmp_path)
    auto = prior.autoencoder
    betas = dj.schedules.scaled_linear_betas(*(meta["params"][k] for k in ("timesteps", "linear_start", "linear_end")))
    check("schedule", prior.schedule.alphas, dj.schedules.discrete(betas).alphas, 1e-6)
    decode = jax.jit(lambda auto, z, quantise: auto.decode(z, quantise), static_argnums=2, compiler_options=FAST)
    if "mask_raw01" in run:
        hole = (last(run["mask_raw01"])[0] >= 0.5).astype(np.float32)
        image = 2 * last(run["image01"])[0] - 1
        masked = 2 * (1 - hole) * last(run["image01"])[0] - 1  # the hole is black
        check("masked", masked, last(run["masked_image"])[0], 1e-6, absolute=True)
        z = jax.jit(lambda auto, x: auto.encode(x), compiler_options=FAST)(auto, jnp.asarray(masked))
        check("condition", z, last(run["c_latent"])[0], OUT)
        cond = {"concat": jnp.concatenate([z, 2 * jnp.asarray(hole[:: auto.f, :: auto.f]) - 1], -1)}
        check("whole condition", cond["concat"], last(run["c"])[0], OUT)
        assert prior.beside == "inpaint-ldm"  # read off the file: its first stage encodes the condition
        known = dj.Measurement((1 - hole) * image, dj.operators.Mask(1 - hole))
        check("what programs tell it", jax.jit(lambda p: p.told(known))(prior), last(run["c"])[0], OUT)
        told = {"concat": jnp.asarray(last(run["c"])[0])}
        eps = prior.net.apply(prior.params, jnp.asarray(last(run["z"])[0]), jnp.float32(run["t"][0]), told)
        check("eps", eps, last(run["eps"])[0], OUT)
        found = walked(prior, run, meta, cond)
        check("decoded", decode(auto, found, True), last(run["decoded"])[0], OUT)
        A = dj.operators.Decoded(dj.operators.Mask(1 - hole), auto)
        pasted = (np.clip(A.picture(found, (1 - hole) * image), -1, 1) + 1) / 2
        check("inpainted", pasted, last(run["inpainted"])[0], OUT)
        levels = np.floor(255 * pasted + 1e-3)  # the official cut takes a level that rounding put below a whole number down
        assert np.isin(levels - run["inpainted_uint8"], (0, 1)).all()
        return
    assert prior.net.concat == run["LR"].shape[1] and prior.beside == ""  # no published network
    small = dj.Measurement(last(run["LR"])[0], dj.operators.Resize(prior.autoencoder.f))
    told = prior_of(golden_file, meta, tmp_path, beside=f"sr{prior.autoencoder.f}").told(small)
    np.testing.assert_array_equal(told, last(run["LR"])[0])
    found = walked(prior, run, meta, told)
    check("decoded", decode(auto, found, True), last(run["decoded"])[0], OUT)
    check("decoded without codes", decode(auto, found, False), last(run["decoded_noquant"])[0], OUT)


@pytest.mark.golden("latent", "ldm_pipeline_")
def test_training_loss_with_an_image_as_condition(golden_file, tmp_path):
    """Where it is recorded; of the trained weights, not their averages."""
    run, meta = load(golden_file)
    if "pl_loss" not in run:
        return
    prior = prior_of(golden_file, meta, tmp_path, weights="raw")
    z, noise, t = (jnp.asarray(a) for a in (last(run["pl_z"])[0], last(run["pl_noise"])[0], run["pl_t"][0] + 1.0))
    cond = {"concat": jnp.asarray(last(run["LR"])[0])}

    def loss(kernel):
        params = flax.core.unfreeze(flax.core.freeze(prior.params))
        params["params"]["conv_in"]["kernel"] = kernel
        value, _ = losses.eps_loss(lambda x, i: prior.net.apply(params, x, i, cond), prior.schedule, z, t, noise)
        return value

    value, gradient = jax.jit(jax.value_and_grad(loss), compiler_options=FAST)(prior.params["params"]["conv_in"]["kernel"])
    check("loss", value, run["pl_loss"], 1e-5)
    check("simple", value, run["pl_loss_simple"], 1e-5)
    check("bound", losses.elbo_factor("eps", prior.schedule, t) * value, run["pl_loss_vlb"], 1e-5)
    check("gradient", gradient, run["pl_grad_input_conv"].transpose(2, 3, 1, 0), GRADIENT)
