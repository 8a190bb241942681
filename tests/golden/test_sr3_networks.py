"""Networks of the public SR3 code with random weights: outputs, input gradients, the converter.

Everything that a file is comes from its own metadata. The recorded runs' own float32 noise is below 1e-6 (outputs) and 2e-6
(gradients); the tolerances are those of all networks that were recorded in float32.
"""

import functools

import jax
import numpy as np
import pytest
from golden_files import check, load
from safetensors.numpy import load_file

from diffjax import nets
from diffjax.convert import sr3

OUT, GRADIENT = 5e-5, 3e-4
FAST = {"xla_backend_optimization_level": 0}  # these programs run once


def last(a):
    return np.moveaxis(a, 1, -1)


def rebuilt(path, meta):
    """(network, parameters, state dict): the configuration is read off the weights and is that of the metadata."""
    state = {name: a.astype(np.float32) for name, a in load_file(path.with_suffix(".safetensors")).items()}
    fields = sr3.from_config(**meta.get("kwargs", meta.get("unet_kwargs")), told=sr3.split(state).told)
    net, params = sr3.convert(state, groups=fields["groups"], dropout=fields["dropout"])
    assert net == nets.SR3UNet(**fields)
    return net, params, state


@pytest.mark.golden("super_resolution", "sr3_unet_", "sr3_ddpm_unet")
def test_network(golden_file):
    run, meta = load(golden_file)
    net, params, state = rebuilt(golden_file, meta)
    back = sr3.to_state(net, params)
    assert back.keys() == state.keys()
    for name in state:
        np.testing.assert_allclose(back[name], state[name], rtol=1e-6 * (name == sr3.FREQUENCIES), err_msg=name)

    cond, x = np.split(last(run["in_x"]), [net.condition], axis=-1)  # the condition comes first
    told = run["in_t"][:, 0] if net.told == "level" else run["in_t"]

    embedding = lambda module, _: module.name == "time_1"

    @functools.partial(jax.jit, compiler_options=FAST)
    def both(params, x, cond, v):
        how = {"capture_intermediates": embedding, "mutable": "intermediates"}
        apply = lambda x, cond: net.apply(params, x, told, cond if net.condition else None, **how)
        out, pull, seen = jax.vjp(apply, x, cond, has_aux=True)
        return out, *pull(v), seen["intermediates"]["time_1"]["__call__"][0]

    out, grad_x, grad_cond, embedding = both(params, x, cond, last(run["v"]))
    check(f"{golden_file.stem} out", out, last(run["out"]), OUT)
    check(f"{golden_file.stem} grad_x", np.concatenate([grad_cond, grad_x], -1), last(run["grad_x"]), GRADIENT)
    if "noise_level_embedding" in run:
        check(f"{golden_file.stem} embedding", embedding[:, None], run["noise_level_embedding"], OUT)
