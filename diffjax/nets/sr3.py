"""The UNet of SR3: an image told another one, which comes before it in the channels, and how much of the signal is left.

Source: Saharia et al. 2021, arXiv:2104.07636, section 2.2. The paper's code was never published. The defaults are the network
of the public code that its users have (Janspiry/Image-Super-Resolution-via-Iterative-Refinement, `sr3_modules`), which has
DDPM's blocks; the paper's are a setting.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from .layers import Attention, ResBlock, sinusoid
from .unet import UNet

TOLD = ("level", "index", None)


class SR3UNet(UNet):
    """eps (..., H, W, out_channels) from x (..., H, W, C), what it is told of the noise and a condition.

    `net.apply(params, x, level, cond=None, train=False, rngs={"dropout": key})`. `level` is sqrt(abar) in [0, 1], a scalar or
    with the leading axes of x. `cond` is one array (..., H, W, condition) of the size of x, which PRECEDES x in the channels;
    its leading axes are those of x, or broadcast to them. Without a condition (`condition=0`) it is left out.

    Fields as in `UNet`, and
      condition   channels of the condition, 0: none
      told        "level": sqrt(abar), whose embedding the blocks take as it is; "index": the step's index, whose embedding
                  each block activates (`ddpm_modules` of the same code); None: nothing, for a regression (the second argument
                  is then not used)
      rescale     sums of two branches (residual blocks, attention) are divided by sqrt(2)

    The paper's blocks: `resblock_updown=True, rescale=True`. `attention` counts downsampling factors as in `UNet`; the public
    code's configurations count pixels of the training images: size 128 with attention at [16] is (8,). The joint projection of
    attention has no bias. The embedding has `width` numbers. `classes` and `qkv_order` are not used.

    Raises ValueError for a condition of another shape, one that is missing or not wanted, and what `UNet` raises.
    """

    condition: int = 3
    told: str | None = "level"
    rescale: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.told not in TOLD:
            raise ValueError(f"told={self.told!r}: choose one of {', '.join(map(repr, TOLD))}")
        if self.classes:
            raise ValueError(f"classes={self.classes}: this network takes an image as its condition, no label")

    @nn.compact
    def __call__(self, x, level, cond=None, train=False):
        if self.condition:
            cond = self.checked(cond, x)
            x = jnp.concatenate([cond.astype(x.dtype), x], axis=-1)
        elif cond is not None:
            raise ValueError("this network takes no condition: leave it out, or build it with condition=its channels")
        return self.network(x, level, None, train)

    def checked(self, cond, x):
        """The condition with the leading axes of x; ValueError for one that does not fit."""
        sides = {1: "L", 2: "H, W", 3: "D, H, W"}[self.spatial]
        wanted = f"this network takes an image (..., {sides}, {self.condition}) of the size of x {x.shape}"
        if cond is None:
            raise ValueError(f"the condition is missing: {wanted}")
        if not hasattr(cond, "shape"):
            raise ValueError(f"the condition is a {type(cond).__name__}: {wanted}")
        image, lead = (*x.shape[-1 - self.spatial : -1], self.condition), x.shape[: -1 - self.spatial]
        ours, theirs = cond.shape[-1 - self.spatial :], cond.shape[: -1 - self.spatial]
        if ours != image or len(theirs) > len(lead) or any(a not in (1, b) for a, b in zip(theirs[::-1], lead[::-1])):
            raise ValueError(f"the condition has shape {cond.shape}: {wanted}")
        return jnp.broadcast_to(cond, (*lead, *image))

    def blank(self, x):
        """A condition of zeros for x (..., H, W, C), to initialise parameters with."""
        return jnp.zeros((*x.shape[:-1], self.condition), x.dtype) if self.condition else None

    def down_path(self):
        first, *entries = super().down_path()
        return [[first[0]._replace(width=self.width)], *entries]  # whatever the first level's multiple is

    def embed(self, t, y, dtype):
        """Embedding (..., width): sin, then cos, of t * 1e-4^(2 j / width)."""
        if self.told is None:
            return None
        e = sinusoid(jnp.asarray(t).astype(dtype), self.width, sin_first=True)
        e = jax.nn.silu(nn.Dense(4 * self.width, name="time_0")(e))
        e = nn.Dense(self.width, name="time_1")(e)
        return e if self.told == "level" else jax.nn.silu(e)

    def run(self, part, h, e, train):
        if part.kind not in ("res", "attention"):
            return super().run(part, h, e, train)
        wrap = nn.remat if self.remat else lambda module: module
        how = {"groups": self.groups, "dtype": self.dtype, "spatial": self.spatial, "rescale": self.rescale, "name": part.name}
        if part.kind == "attention":
            return wrap(Attention)(part.heads, bias=False, **how)(h)
        dropout = self.dropout if train else 0.0
        return wrap(ResBlock)(part.width, self.scale_shift, part.resample, dropout, **how)(h, e)
