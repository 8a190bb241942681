"""The UNet of the ADM family: guided-diffusion and improved-diffusion checkpoints and the shipped priors.

Sources: Dhariwal and Nichol 2021, arXiv:2105.05233 (ADM); Nichol and Dhariwal 2021, arXiv:2102.09672; Ho, Jain and
Abbeel 2020, arXiv:2006.11239; the space-to-depth stem: Shi et al. 2016, arXiv:1609.05158 (its inverse).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from .layers import Attention, Down, GroupNorm, ResBlock, Up, conv, depth_to_space, sinusoid, space_to_depth, wide


class Part(NamedTuple):
    """One module of the path: its name in the parameters, its kind (conv res attention transformer down up), width, heads."""

    name: str
    kind: str
    width: int
    heads: int = 1
    resample: str | None = None
    normed: bool = True  # an attention with its own norm
    depth: int = 0  # blocks of a transformer


class ADM(nn.Module):
    """Fields and paths that the UNet and the encoder of the ADM family share; see `UNet`."""

    # What DDPM's networks do otherwise (`ddpm.py` makes fields of these)
    epsilon = 1e-5
    sin_first = False
    frequency_shift = 0
    down_padding = None  # 1 on all sides

    out_channels: int
    width: int = 64
    multipliers: Sequence[float] = (1, 2)
    blocks: int = 2
    attention: Sequence[int] = ()
    heads: int = 1
    head_channels: int | None = None
    heads_upsample: int | None = None
    qkv_order: str = "legacy"
    scale_shift: bool = False
    resblock_updown: bool = False
    conv_resample: bool = True
    dropout: float = 0.0
    classes: int | None = None
    null_label: bool = False
    groups: int = 32
    patch: int = 1
    remat: bool = False
    dtype: Any = None
    spatial: int = 2

    def __post_init__(self):
        super().__post_init__()
        if self.qkv_order not in ("legacy", "new"):
            raise ValueError(f'qkv_order={self.qkv_order!r}: use "legacy" (head, qkv) or "new" (qkv, head)')
        if self.spatial not in (1, 2, 3):
            raise ValueError(f"spatial={self.spatial}: 1, 2 or 3 (signals, images, volumes)")
        if self.null_label and not self.classes:
            raise ValueError("null_label=True needs classes: the null label is one more row of the label table")
        depths = [2**level for level in range(len(self.multipliers))]
        for factor in self.attention:
            if factor not in depths:
                raise ValueError(f"attention={factor} is no downsampling factor of this network: use some of {depths}")

    def widths(self):
        return [int(m * self.width) for m in self.multipliers]

    def attends(self, way, level):
        return 2**level in self.attention

    def down_path(self):
        """Entries of the way down; each ends with a skip connection. Entry i is `input_blocks.i` of the official code."""
        widths = self.widths()
        entries = [[Part("conv_in", "conv", widths[0])]]
        for level, width in enumerate(widths):
            for block in range(self.blocks):
                entry = [Part(f"down_{level}_{block}", "res", width)]
                if self.attends("down", level):
                    entry.append(self._attention("down", level, width, f"down_{level}_{block}"))
                entries.append(entry)
            if level + 1 < len(widths):
                entries.append([self._resample("down", level, width)])
        return entries

    def middle_path(self):
        width = self.widths()[-1]
        attention = self._attention("middle", len(self.multipliers) - 1, width, "middle")
        return [Part("middle_0", "res", width), attention, Part("middle_1", "res", width)]

    def up_path(self):
        """Entries of the way up; each begins by taking a skip connection. Entry i is `output_blocks.i`."""
        entries = []
        for level, width in reversed(list(enumerate(self.widths()))):
            for block in range(self.blocks + 1):
                entry = [Part(f"up_{level}_{block}", "res", width)]
                if self.attends("up", level):
                    entry.append(self._attention("up", level, width, f"up_{level}_{block}"))
                if level and block == self.blocks:
                    entry.append(self._resample("up", level, width))
                entries.append(entry)
        return entries

    def heads_of(self, width, heads):
        if not self.head_channels:
            return heads
        if width % self.head_channels:
            raise ValueError(f"head_channels={self.head_channels} does not divide an attention of {width} channels")
        return width // self.head_channels

    def _attention(self, way, level, width, name):
        heads = (self.heads_upsample or self.heads) if way == "up" else self.heads
        return Part(f"{name}_attention", "attention", width, self.heads_of(width, heads))

    def _resample(self, way, level, width):
        name = f"{way}_{level}_resample"
        return Part(name, "res", width, resample=way) if self.resblock_updown else Part(name, way, width)

    def run(self, part, h, e, train):
        """Apply one part to h (..., H, W, C), with the activated embedding e (..., 4 width)."""
        wrap = nn.remat if self.remat else lambda module: module
        options = {"dtype": self.dtype, "spatial": self.spatial, "name": part.name}
        if part.kind == "conv":
            return conv(part.width, **options)(h)
        if part.kind == "attention":
            attention = wrap(Attention)
            return attention(part.heads, self.qkv_order, self.groups, self.epsilon, norm=part.normed, **options)(h)
        if part.kind == "res":
            block = wrap(ResBlock)
            dropout = self.dropout if train else 0.0
            how = (part.width, self.scale_shift, part.resample, dropout, self.groups, self.epsilon)
            return block(*how, **options)(h, e)
        if part.kind == "down":
            return Down(self.conv_resample, self.down_padding, **options)(h)
        return Up(self.conv_resample, **options)(h)

    def embed(self, t, y, dtype):
        """Embedding (..., 4 width) of the time and the label, activated (every block begins with that)."""
        e = sinusoid(jnp.asarray(t).astype(dtype), self.width, sin_first=self.sin_first, shift=self.frequency_shift)
        e = nn.Dense(4 * self.width, name="time_0")(e)
        e = nn.Dense(4 * self.width, name="time_1")(jax.nn.silu(e))
        if self.classes:
            if y is None and not self.null_label:
                raise ValueError(f"this network is conditional: give y in 0..{self.classes - 1}")
            rows = self.classes + self.null_label
            table = self.param("label", nn.initializers.normal(1.0), (rows, 4 * self.width))
            y = jnp.asarray(self.classes if y is None else y)
            if not jnp.issubdtype(y.dtype, jnp.integer):
                raise ValueError(f"y must be integer class labels in 0..{rows - 1}, not {y.dtype}")
            e = e + jnp.take(table, y, axis=0).astype(e.dtype)  # a label out of range gives NaN, not a neighbour
        elif y is not None:
            raise ValueError("this network has no classes: leave y out, or build it with classes=...")
        return jax.nn.silu(e)

    def check_size(self, x):
        multiple = self.patch * 2 ** (len(self.multipliers) - 1)
        if x.ndim < 1 + self.spatial:
            sides = {1: "L", 2: "H, W", 3: "D, H, W"}[self.spatial]
            raise ValueError(f"x must be (..., {sides}, C), got shape {x.shape}")
        sides = x.shape[-1 - self.spatial : -1]
        if any(side % multiple for side in sides):
            raise ValueError(f"sides {sides} of x must be multiples of {multiple}: pad or resize")


class UNet(ADM):
    """eps, x0 or v (..., H, W, out_channels) from x (..., H, W, C), its time t and, if there are classes, a label y.

    `net.apply(params, x, t, y=None, train=False, rngs={"dropout": key})`: t and y are scalars or have the leading
    axes of x; t is the network's own time (ADM: the step's index) and may be fractional. `train=True` turns dropout on.
    One image alone gives what it gives in a batch, so `vmap` and a batch agree.

    Fields
      out_channels     channels of the result: C, or 2C where the variance is learned too
      width            channels of the first level; the embedding has 4 * width
      multipliers      width of each level as a multiple of `width`, fractions allowed
      blocks           residual blocks per level (one more on the way up)
      attention        downsampling factors (1, 2, 4, ...) with attention after each block, counted after the stem;
                       the middle always has one
      heads, head_channels, heads_upsample
                       number of heads; channels of a head (overrides the number); number on the way up
      qkv_order        "legacy" or "new", see `Attention`
      scale_shift      the embedding scales and shifts the second norm of a block instead of being added before it
      resblock_updown  a residual block resamples; otherwise a convolution (`conv_resample`) or plain pooling/repeating
      dropout          rate, in each residual block
      classes          number of labels, or None; null_label adds one more, index `classes`, which y=None means
                       (classifier-free guidance)
      groups           of the group norms; must divide all widths
      patch            1, or 2: pixels of patch x patch blocks become channels before the first layer and pixels again
                       after the last: about four times faster for the same parameters
      remat            recompute each block in the backward pass instead of storing it
      dtype            of convolutions and products, e.g. jnp.bfloat16; parameters, norms, softmax, embedding and the
                       output stay in float32
      spatial          2; 1 or 3 for signals (..., L, C) and volumes (..., D, H, W, C)

    Raises ValueError for sizes that the levels do not divide, labels without classes and the reverse, unknown orders,
    groups or heads that do not divide a width.
    """

    @nn.compact
    def __call__(self, x, t, y=None, train=False):
        return self.network(x, t, y, train)

    def network(self, x, t, y, train):
        self.check_size(x)
        e = self.embed(t, y, wide(x).dtype)
        h = space_to_depth(x, self.patch, self.spatial)
        skips = []
        for entry in self.down_path():
            for part in entry:
                h = self.run(part, h, e, train)
            skips.append(h)
        for part in self.middle_path():
            h = self.run(part, h, e, train)
        for entry in self.up_path():
            h = jnp.concatenate([h, skips.pop()], axis=-1)
            for part in entry:
                h = self.run(part, h, e, train)
        return self.head(h)

    def head(self, h):
        h = jax.nn.silu(GroupNorm(self.groups, self.epsilon, self.spatial, name="norm_out")(h))
        h = conv(self.out_channels * self.patch**self.spatial, zero=True, name="conv_out", spatial=self.spatial)(h)
        return depth_to_space(h, self.patch, self.spatial)


class SuperRes(UNet):
    """A UNet told a small image: `net.apply(params, x, t, low_res, y=None)`, low_res (..., h, w, C) of any size.

    It is enlarged bilinearly to the size of x and follows x in the channels (guided-diffusion's SuperResModel).
    """

    @nn.compact
    def __call__(self, x, t, low_res, y=None, train=False):
        shape = (*low_res.shape[: -1 - self.spatial], *x.shape[-1 - self.spatial : -1], low_res.shape[-1])
        enlarged = jax.image.resize(low_res, shape, "bilinear", antialias=False)
        return self.network(jnp.concatenate([x, enlarged.astype(x.dtype)], axis=-1), t, y, train)


def init(net, key, shape):
    """Parameters (a FrozenDict, to be handed to `net.apply`) for images of `shape` (..., H, W, C)."""

    def start(key):
        x = jnp.zeros(shape)
        if hasattr(net, "blank"):  # a condition of zeros
            return net.init(key, x, jnp.zeros(()), net.blank(x))
        given = [x] if isinstance(net, SuperRes) else []
        y = [jnp.zeros((), jnp.int32)] if net.classes else []
        return net.init(key, x, jnp.zeros(()), *given, *y)

    if isinstance(key, jax.core.Tracer):  # options are the outermost program's to give
        return flax.core.freeze(start(key))
    # it runs once, and optimising the many small random draws takes eight times longer than everything else
    options = {"xla_backend_optimization_level": 0}
    return flax.core.freeze(jax.jit(start, compiler_options=options)(key))
