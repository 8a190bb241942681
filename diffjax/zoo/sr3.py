"""Checkpoints of the public SR3 code (`I640000_E37_gen.pth` and the like) as priors conditioned on an enlarged picture.

Published values: configurations of Janspiry/Image-Super-Resolution-via-Iterative-Refinement.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax

from .. import denoisers, schedules
from ..convert import sr3 as convert
from ..convert import strict
from ..nets import SR3UNet
from . import schedulers

PROCESS = ("schedule", "T", "beta_min", "beta_max")
USUAL = {
    "level": {"schedule": "linear", "T": 2000, "beta_min": 1e-6, "beta_max": 1e-2},
    "index": {"schedule": "linear", "T": 2000, "beta_min": 1e-4, "beta_max": 2e-2},
}


def is_sr3(state) -> bool:
    """Whether arrays have the names of that code."""
    names = [f"{prefix}downs.0.{end}" for prefix in ("", convert.NETWORK) for end in ("weight", "bias")]
    return any(name in state for name in names)


def read(state, given: Mapping) -> tuple:
    """-> (fields of a ``Prior``, what is shown in its card, what was assumed, as in what).

    given: settings (size, schedule, T, beta_min, beta_max) and fields of the network. The schedule is the one in the file
    unless one is given; with T alone, its numbers are those of the published configuration. Raises ValueError.
    """
    if given.get("loss", "eps") != "eps" or "time_scale" in given:
        raise ValueError("SR3's network predicts eps and is told the noise level: leave out loss and time_scale")
    parts = convert.split(state)
    hints = {k: v for k, v in given.items() if k in SR3UNet.__dataclass_fields__}
    fields = convert.config_from_state(parts.network, **hints)
    whose = convert.published(fields)
    _, assumed, side = convert.PUBLISHED.get(whose, ({}, {}, None))
    assumed = {k: v for k, v in assumed.items() if k not in given}
    net = SR3UNet(**fields)
    own = {k: given[k] for k in PROCESS if k in given}
    if own or parts.betas is None:
        usual = USUAL[parts.told]
        assumed |= {k: v for k, v in usual.items() if k not in own}
        schedule = schedulers.schedule(usual | own)
    else:
        schedule = schedules.discrete(parts.betas)
    size = given.get("size", side)
    if size is None:
        raise ValueError("the side of its images cannot be told: give size=...")
    if "size" not in given:
        assumed["size"] = size
    params = convert.params_from_state(net, parts.network)
    prior = {
        "params": flax.core.unfreeze(params), "schedule": schedule, "net": net, "loss": "eps",
        "shape": (size, size, net.out_channels), "conditional": net.condition > 0,
        "time": denoisers.NoiseLevel() if net.told == "level" else denoisers.IndexTime(),
    }  # fmt: skip
    shown = {"size": size, "channels": net.out_channels, "classes": 0, "loss": "eps", "T": schedule.T,
             "network": strict.describe(net)}  # fmt: skip
    return prior, shown, assumed, f"SR3 {whose}" if whose else "the SR3 code's configurations"
