"""The training loss of phase two, and the first-batch scale, of recorded runs of the official LatentDiffusion."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import check
from test_latent_networks import FAST, convert_ldm, last, recorded

from diffjax import schedules
from diffjax.autoencoder import draw
from diffjax.convert import first_stage, latent
from diffjax.training import latents, losses

# How each call was made (shared/reference/latent_and_sr.md, section 1): by the prefix of its fields
CALLS = {"pl": {}, "l1_pl": {"norm": "l1"}, "elbo_pl": {"simple_weight": 0.7, "elbo_weight": 0.1}, "logvar_pl": {}}


@pytest.mark.golden("latent", "ldm_full_")
def test_p_losses(golden_file):
    """Values 1e-5, the gradient of the first convolution as those of the networks."""
    run, meta, state = recorded(golden_file)
    parts = latent.split(state, "raw")
    net, params = convert_ldm(meta["params"]["unet_config"]["params"], meta["group_norm_groups"], parts.unet)
    net, params = latent.join(net, params, *latent.conditioner(parts.conditioner))
    config = meta["params"]
    betas = schedules.scaled_linear_betas(config["timesteps"], config["linear_start"], config["linear_end"])
    schedule = schedules.discrete(betas)
    kernel = params["params"]["net"]["conv_in"]["kernel"]
    label = jnp.asarray(run["class_label"])

    def total(kernel, weights, z, t, noise, norm):
        changed = flax.core.unfreeze(params)
        changed["params"]["net"]["conv_in"]["kernel"] = kernel

        def one(z, t, noise, label):
            apply = lambda x, i: net.apply(changed, x, i, {"label": label})
            loss, terms = losses.eps_loss(apply, schedule, z, t, noise, norm=norm, **weights)
            d = next(iter(terms.values()))
            return loss, d, losses.elbo_factor("eps", schedule, t) * d

        loss, simple, bound = (a.mean() for a in jax.vmap(one)(z, t, noise, label))
        return loss, (simple, bound)

    program = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnames="norm", compiler_options=FAST)
    calls = {name: options for name, options in CALLS.items() if f"{name}_loss" in run}
    assert calls
    for name, options in calls.items():
        weights = {"simple_weight": 1.0, "elbo_weight": 0.0, "log_var": jnp.zeros(config["timesteps"])} | options
        norm = weights.pop("norm", "l2")
        if name.startswith("logvar"):
            weights["log_var"] = jnp.asarray(run["logvar"])
        given = [jnp.asarray(a) for a in (last(run[f"{name}_z"]), run[f"{name}_t"] + 1.0, last(run[f"{name}_noise"]))]
        (loss, (simple, bound)), grad = program(kernel, weights, *given, norm=norm)
        check(f"{name} loss", loss, run[f"{name}_loss"], 1e-5)
        check(f"{name} simple", simple, run[f"{name}_loss_simple"], 1e-5)
        check(f"{name} vlb", bound, run[f"{name}_loss_vlb"], 1e-5)
        check(f"{name} gradient", grad, run[f"{name}_grad_input_conv"].transpose(2, 3, 1, 0), 3e-4)


@pytest.mark.golden("latent", "ldm_full_")
def test_what_is_encoded(golden_file):
    """z of a draw is the official one; the official factor is 1 / deviation of one draw, which the moments' is close to."""
    run, meta, state = recorded(golden_file)
    parts = latent.split(state, "raw")
    auto = first_stage.autoencoder(parts.first_stage, scale=parts.scale_factor, groups=meta["group_norm_groups"])
    mean, logvar = jax.jit(lambda x: auto.moments(x), compiler_options=FAST)(jnp.asarray(run["image_nhwc"]))
    z = mean + jnp.exp(0.5 * logvar) * last(run["encode_noise"])
    check("z", z, last(run["z"]), 5e-5)
    raw = (mean + jnp.exp(0.5 * logvar) * last(run["std_noise"])) / parts.scale_factor
    check("scale factor", 1 / np.std(np.asarray(raw, np.float64), ddof=1), run["scale_factor"], 1e-5)
    _, std = latents.deviation({"mean": np.asarray(mean), "logvar": np.asarray(logvar)})
    mean_of_all = np.asarray(mean).mean((0, 1, 2))
    spread = np.sqrt(np.mean(std**2) + np.var(mean_of_all))
    assert 0.8 < spread < 1.25, spread
    assert draw(None, mean, logvar) is mean
