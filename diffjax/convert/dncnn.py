"""DnCNN of KAIR (Zhang et al., TIP 2017), batch norms already merged: ``conv{n}.weight``, ``conv{n}.bias``."""

import jax
import jax.numpy as jnp
import numpy as np

from ..nets.dncnn import DnCNN
from . import strict


def table(net):
    return [entry for n in range(net.depth) for entry in strict.module((f"conv{n}",), f"conv{n}", "conv")]


def config_from_state(state):
    """Fields of ``DnCNN``, and its number of channels, read from the shapes."""
    first = np.shape(state.get("conv0.weight", ()))
    if len(first) != 4:
        raise ValueError("the state dict has no 4-dimensional conv0.weight: not a DnCNN with merged batch norms")
    depth = sum(name.startswith("conv") and name.endswith(".weight") for name in state)
    return {"depth": depth, "width": first[0]}, first[1]


def convert(state, dtype=np.float32):
    """(net, params) of a state dict {name: array}. A ValueError lists everything that does not fit."""
    fields, channels = config_from_state(state)
    net = DnCNN(**fields)
    shapes = strict.shapes(net, jax.ShapeDtypeStruct((8, 8, channels), jnp.float32))
    return net, strict.to_params(state, table(net), shapes, net, dtype)
