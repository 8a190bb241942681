"""First stages of latent diffusion as the official code and diffusers run them: networks, moments, codebooks, gradients.

Configurations and weights come from the files beside each recorded run; weights that are stored in half precision are exact.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import check, load

from diffjax import autoencoder as words
from diffjax.convert import files, first_stage
from diffjax.nets import autoencoder as nets

VALUES, GRADIENTS = 5e-5, 3e-4
FAST = {"xla_backend_optimization_level": 0}  # these programs run once


def last(a):
    """Channels last."""
    return jnp.asarray(np.moveaxis(a, 1, -1) if a.ndim == 4 else a)


def weights(path):
    state = files.read(path.with_suffix(".safetensors"))
    return {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in state.items()}


def once(function, *args):
    return jax.jit(function).lower(*args).compile(compiler_options=FAST)(*args)


def compare(name, results, run):
    """Each result against the recorded field of its name; gradients have the wider tolerance."""
    for field, got in results.items():
        want = run[field]
        check(f"{name} {field}", got, last(want) if want.ndim == 4 else want, GRADIENTS if "grad" in field else VALUES)


def rebuild(path):
    run, meta = load(path)
    state = weights(path)
    if "config" in meta:
        return run, meta, state, meta["config"], {}
    return run, meta, state, meta["kwargs"], {"groups": meta["group_norm_groups"]}


def both_ways(state, config, hints, style):
    """The network; the configuration that the weights show is the one that is written down, and the way back is exact."""
    net, params = first_stage.convert(state, config, **hints)
    kind, fields = first_stage.config_from_state(state)
    up = net.attention if net.attention_up is None else net.attention_up
    assert kind(**fields, groups=net.groups) == net.copy(attention_up=up)
    back = first_stage.to_state(net, params, style)
    assert back.keys() == state.keys()
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)
    return net, params


def forth_and_back(net, params, xs, latents, at, v, v_enc):
    """What the encoder gives for images xs (n, ...), and the decoder for `latents(h)`, a dict of arrays that has one named
    `at`; with the gradients with respect to the first images of sum(v * decoded[at]) and of sum(v_enc * h).

    Everything of a kind is one batch: an image alone is what it is in a batch, and each network is compiled once.
    """
    h, pull = jax.vjp(lambda xs: net.apply(params, xs, method="encode"), xs)
    zs, pull_zs = jax.vjp(latents, h)
    stacked, sizes = jnp.concatenate(list(zs.values())), np.cumsum([len(z) for z in zs.values()])[:-1]
    decoded, pull_decoded = jax.vjp(lambda z: net.apply(params, z, method="decode"), stacked)
    decoded = dict(zip(zs, jnp.split(decoded, sizes)))
    (by_z,) = pull_decoded(jnp.concatenate([v if name == at else jnp.zeros_like(a) for name, a in decoded.items()]))
    (by_h,) = pull_zs(dict(zip(zs, jnp.split(by_z, sizes))))
    both = [by_h] + ([] if v_enc is None else [jnp.zeros_like(h).at[: len(v_enc)].set(v_enc)])
    (gradients,) = jax.vmap(pull)(jnp.stack(both))
    return h, decoded, [g[: len(v)] for g in gradients]


@pytest.mark.golden("latent", "ldm_kl_", "diffusers_kl")
def test_kl(golden_file):
    run, meta, state, config, hints = rebuild(golden_file)
    net, params = both_ways(state, config, hints, "diffusers" if "config" in meta else "official")

    def everything(params, field):
        x = field["in_x"]
        xs = jnp.concatenate([x, jnp.flip(x, -2)]) if "other_moments" in field else x

        def latents(h):
            mean, logvar = nets.gaussian(h[: len(x)])
            zs = {"out": mean, "dec": field.get("z_for_decode", mean)}
            if "sample" in field:
                zs["dec_of_sample"] = mean + jnp.exp(0.5 * logvar) * field["sample_noise"]
            return zs

        h, results, gradients = forth_and_back(net, params, xs, latents, "out", field["v"], field.get("v_enc"))
        results |= dict(zip(("grad_x", "grad_x_enc"), gradients))
        moments, other = h[: len(x)], h[len(x) :]
        mean, logvar = nets.gaussian(moments)
        results |= {"mean": mean, "logvar": logvar, "std": jnp.exp(0.5 * logvar), "kl": jax.vmap(words.kl)(mean, logvar)}
        if "sample" in field:
            sample = latents(h)["dec_of_sample"]
            results |= {
                "moments": moments, "enc_pre": net.apply(params, x, method=lambda m, x: m.encoder(x)), "mode": mean,
                "sample": sample, "nll_of_sample": jax.vmap(words.nll)(sample, mean, logvar), "other_moments": other,
                "kl_other": jax.vmap(words.kl)(mean, logvar, *nets.gaussian(other)),
            }  # fmt: skip
        return results

    results = once(everything, params, {name: last(a) for name, a in run.items()})
    compare(golden_file.stem, results, run)
    assert set(run) - set(results) <= {"in_x", "v", "v_enc", "sample_noise", "z_for_decode"}


@pytest.mark.golden("latent", "ldm_vq_", "diffusers_vq")
def test_vq(golden_file):
    run, meta, state, config, hints = rebuild(golden_file)
    net, params = both_ways(state, config, hints, "diffusers" if "config" in meta else "official")
    official = "v_ste" in run

    def loss(params, h):
        return nets.codebook_loss(h, net.apply(params, h, method="quantise").codes)

    def everything(params, field):
        quantise = lambda h: net.apply(params, h, method="quantise")

        def latents(h):
            zs = {"dec_force_not_quantize": h, "dec": quantise(field.get("z_for_decode", h)).z}
            return zs | {"dec_quantised": quantise(h).z} if official else zs

        at = "dec_force_not_quantize"
        given = (field["in_x"], latents, at, field["v"], field.get("v_enc"))
        h, results, gradients = forth_and_back(net, params, *given)
        q = quantise(h)
        results |= dict(zip(("grad_x", "grad_x_enc"), gradients)) | {"out": results[at]}
        results |= {"h": h, "quantised": q.z, "indices": q.indices, "vq_loss": loss(params, h)}
        if official:
            results["enc_pre"] = net.apply(params, field["in_x"], method=lambda m, x: m.encoder(x))
            through = lambda h: net.apply(params, net.apply(params, h, method="nearest"), method="decode")
            results["grad_h_ste"] = jax.vjp(through, h)[1](field["v_ste"])[0]
            book, results["grad_h_vqloss"] = jax.grad(loss, (0, 1))(params, h)
            results["grad_codebook_vqloss"] = book["params"]["codebook"]
        return results

    results = once(everything, params, {name: last(a) for name, a in run.items()})
    np.testing.assert_array_equal(results["indices"], run["indices"])
    compare(golden_file.stem, results, run)
    assert set(run) - set(results) <= {"in_x", "v", "v_enc", "v_ste", "z_for_decode", "margin_min"}
    flat = net.apply(params, run["indices"].reshape(-1), run["indices"].shape, method="lookup")
    check(f"{golden_file.stem} lookup", flat, last(run["quantised"]), VALUES)
