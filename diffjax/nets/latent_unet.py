"""The UNets of latent diffusion: the ADM network told more than a label, by concatenation and by cross-attention.

Source: Rombach et al. 2022, arXiv:2112.10752, sections 3.2 and 3.3. `LatentUNet` is the official code's, `ConditionUNet`
diffusers' `UNet2DConditionModel`, whose levels are given one by one.
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp

from .ddpm import DDPMUNet
from .layers import GroupNorm
from .transformer import SpatialTransformer
from .unet import Part, UNet


class LatentUNet(UNet):
    """eps, x0 or v (..., H, W, out_channels) from x (..., H, W, C), its time t and a condition.

    `net.apply(params, x, t, cond=None, train=False)`. The condition is a dict with exactly what the network takes; a network
    that takes a label or a concatenated image alone may be given it bare. Leading axes are those of x, or none:

      label    integers (...), where `classes` is set; may be left out where there is a `null_label`
      concat   an image (..., H, W, concat) of the size of x, which follows x in the channels
      context  tokens (..., L, context), which the pixels attend to
      mask     booleans (..., L), True for the tokens that count; all where it is left out

    Fields as in `UNet`, and

      concat   channels of the concatenated image, 0: none
      depth    transformer blocks in place of each attention, 0: plain attention; may be one number for each level
      context  width of the tokens; None: none, and the second attention of a transformer block is to the pixels again
      ids      the result is logits (..., H, W, ids) of the codebook's entries (official `n_embed`)

    `heads` may be one number for each level where there are transformers, and `heads_upsample` is then not used.
    Raises ValueError for a condition of another kind or shape, and what `UNet` raises.
    """

    concat: int = 0
    depth: int | Sequence[int] = 0
    context: int | None = None
    ids: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.context and not self.depth:
            raise ValueError(f"context={self.context} needs transformers to attend to it: set depth=1 or more")
        for field in ("heads", "depth"):
            value, levels = getattr(self, field), len(self.multipliers)
            if isinstance(value, Sequence) and (len(value) != levels or (field == "heads" and not self.depth)):
                raise ValueError(f"{field}={value}: give one number, or with transformers one for each of {levels} levels")

    @nn.compact
    def __call__(self, x, t, cond=None, train=False):
        cond = self.checked(cond, x)
        if self.concat:
            concat = jnp.broadcast_to(cond["concat"], (*x.shape[:-1], self.concat))
            x = jnp.concatenate([x, concat.astype(x.dtype)], axis=-1)
        return self.network(x, t, cond, train)

    def takes(self):
        """Names of what a condition of this network must have."""
        wanted = {"label": self.classes, "concat": self.concat, "context": self.context}
        return [name for name, value in wanted.items() if value]

    def checked(self, cond, x):
        """The condition as a dict of arrays; ValueError for anything that this network does not take."""
        takes = self.takes()
        wanted = f"this network takes {', '.join(map(self._described, takes)) or 'no condition'}"
        if takes in (["label"], ["concat"]) and cond is not None and not isinstance(cond, Mapping):
            cond = {takes[0]: cond}
        cond = {} if cond is None else cond
        if not isinstance(cond, Mapping):
            raise ValueError(f"the condition must be a dict, got {type(cond).__name__}: {wanted}")
        cond = {name: value for name, value in cond.items() if value is not None}
        for name in cond:
            if name not in takes and not (name == "mask" and self.context):
                raise ValueError(f"the condition has {name!r}, which is not taken: {wanted}")
        for name in takes:
            if name not in cond and not (name == "label" and self.null_label):
                raise ValueError(f"the condition lacks {name!r}: {wanted}")
        cond = {name: jnp.asarray(value) for name, value in cond.items()}
        shape = {name: value.shape for name, value in cond.items()}
        lead = x.shape[: -1 - self.spatial]
        if "concat" in cond:
            fits = shape["concat"][-1 - self.spatial :] == (*x.shape[-1 - self.spatial : -1], self.concat)
            self._fits("concat", fits and _broadcasts(shape["concat"][: -1 - self.spatial], lead), shape, x)
        if "context" in cond:
            fits = len(shape["context"]) > 1 and shape["context"][-1] == self.context
            self._fits("context", fits and _broadcasts(shape["context"][:-2], lead), shape, x)
            cond["context"] = jnp.broadcast_to(cond["context"], (*lead, *shape["context"][-2:]))
        if "mask" in cond:
            fits = cond["mask"].dtype == bool and shape["mask"][-1:] == shape["context"][-2:-1]
            self._fits("mask", fits and _broadcasts(shape["mask"][:-1], lead), shape, x)
            cond["mask"] = jnp.broadcast_to(cond["mask"], (*lead, *shape["mask"][-1:]))
        return cond

    def _described(self, name):
        sides = {1: "L", 2: "H, W", 3: "D, H, W"}[self.spatial]
        return {
            "label": f"a label in 0..{(self.classes or 0) - 1 + self.null_label}",
            "concat": f"concat, an image (..., {sides}, {self.concat}) of the size of x",
            "context": f"context, tokens (..., L, {self.context})",
            "mask": "mask, booleans (..., L), one for each token of context",
        }[name]

    def _fits(self, name, fits, shape, x):
        if not fits:
            raise ValueError(f"{name} has shape {shape[name]}, x {x.shape}: this network takes {self._described(name)}")

    def blank(self, x):
        """A condition of zeros for x (..., H, W, C), to initialise parameters with."""
        parts = {
            "label": lambda: jnp.zeros((), jnp.int32),
            "concat": lambda: jnp.zeros((*x.shape[:-1], self.concat), x.dtype),
            "context": lambda: jnp.zeros((1, self.context), x.dtype),
        }
        return {name: parts[name]() for name in self.takes()}

    def embed(self, t, cond, dtype):
        return super().embed(t, cond.get("label"), dtype), cond.get("context"), cond.get("mask")

    def run(self, part, h, told, train):
        e, context, mask = told
        if part.kind != "transformer":
            return super().run(part, h, e, train)
        transformer = nn.remat(SpatialTransformer) if self.remat else SpatialTransformer
        options = {"groups": self.groups, "dtype": self.dtype, "spatial": self.spatial, "name": part.name}
        return transformer(part.heads, part.depth, **options)(h, context, mask)

    def _attention(self, way, level, width, name):
        if not self.depth:
            return super()._attention(way, level, width, name)
        at = lambda value: value[level] if isinstance(value, Sequence) else value
        heads, depth = self.heads_of(width, at(self.heads)), at(self.depth)
        return Part(f"{name}_transformer", "transformer", width, heads, depth=depth)

    def head(self, h):
        if not self.ids:
            return super().head(h)
        h = GroupNorm(self.groups, self.epsilon, self.spatial, name="norm_ids")(h)  # nothing between norm and product
        return nn.Dense(self.ids, name="ids_out")(h)


class ConditionUNet(LatentUNet, DDPMUNet):
    """diffusers' `UNet2DConditionModel` (and `UNet2DModel` with a concatenated image): fields of `DDPMUNet` for the levels and
    the constants, of `LatentUNet` for the condition."""

    qkv_order: str = "new"
    epsilon: float = 1e-5
    sin_first: bool = False
    frequency_shift: float = 0
    down_padding: Sequence = ((1, 1), (1, 1))


def _broadcasts(shape, lead):
    return len(shape) <= len(lead) and all(a in (1, b) for a, b in zip(shape[::-1], lead[::-1]))
