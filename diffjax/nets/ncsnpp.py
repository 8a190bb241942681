"""NCSN++, DDPM++ and the DDPM of the score-SDE code: one network with many options.

Source: Song et al. 2021, arXiv:2011.13456, section 4.2 and appendix H; BigGAN's residual block: Brock et al. 2019,
arXiv:1809.11096; progressive growing of inputs and outputs: Karras et al. 2020, arXiv:1912.04958; random Fourier features:
Tancik et al. 2020, arXiv:2006.10739.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from . import fir
from .layers import (
    Attention,
    Down,
    GroupNorm,
    Up,
    average_pool,
    conv,
    depth_to_space,
    nearest,
    over_image,
    sinusoid,
    space_to_depth,
    wide,
)

ACTIVATIONS = {"swish": jax.nn.silu, "elu": jax.nn.elu, "relu": jax.nn.relu, "lrelu": lambda x: jax.nn.leaky_relu(x, 0.2)}
CHOICES = {"activation": tuple(ACTIVATIONS), "resblock": ("biggan", "ddpm"), "embedding": ("fourier", "positional"),
           "combine": ("sum", "cat"), "progressive_input": (None, "input_skip", "residual"),
           "progressive": (None, "output_skip", "residual")}  # fmt: skip
EPSILON = 1e-6
HALF = math.sqrt(0.5)


class Part(NamedTuple):
    """One module: its name in the parameters, its kind, the channels it gives, which way it resamples."""

    name: str
    kind: str  # fourier dense conv res attention resample combine pyramid norm
    width: int = 0
    way: str | None = None


class Options(NamedTuple):
    """What all parts have in common."""

    activation: str
    groups: int | None
    taps: tuple | None
    rescale: bool
    dtype: Any
    told: int  # length of the embedding

    def act(self, x):
        return ACTIVATIONS[self.activation](x)

    def norm(self, x, name):
        return GroupNorm(self.groups_of(x.shape[-1]), EPSILON, name=name)(x)

    def groups_of(self, channels):
        return self.groups or max(1, min(channels // 4, 32))

    def add(self, a, b):
        return (a + b) * HALF if self.rescale else a + b

    def resampling(self, way):
        """x -> x of other sides, without parameters."""
        if way is None:
            return lambda x: x
        return fir.resampler(way, self.taps) if self.taps else {"down": average_pool, "up": nearest}[way]


class Fourier(nn.Module):
    """sin and cos (..., 2 width) of 2 pi w log t at frequencies w drawn once, from N(0, scale^2), and never trained."""

    width: int
    scale: float

    @nn.compact
    def __call__(self, t):
        w = self.param("frequencies", nn.initializers.normal(self.scale), (self.width,))
        angle = 2 * math.pi * jnp.log(t)[..., None] * jax.lax.stop_gradient(w).astype(t.dtype)
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class Block(nn.Module):
    """skip(x) + conv(act(norm(conv(act(norm(x))) + embedding))), times sqrt(1/2) with `rescale`.

    `way` ("down", "up" or None) resamples both branches before the first convolution; the skip is then a 1 x 1 convolution.
    The last convolution starts at zero.
    """

    features: int
    way: str | None
    options: Options
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, e):
        net, change = self.options, self.options.resampling(self.way)
        h = change(net.act(net.norm(x, "norm_1")))
        h = conv(self.features, dtype=net.dtype, name="conv_1")(h)
        told = nn.Dense(self.features, name="embedding")
        if e is not None:
            h = h + over_image(told(e), 2).astype(h.dtype)
        elif self.is_initializing():  # official networks that are not told the time have it all the same, unused
            told(jnp.zeros((net.told,)))
        h = net.act(net.norm(h, "norm_2"))
        if self.dropout:
            h = nn.Dropout(self.dropout, deterministic=False)(h)
        h = conv(self.features, dtype=net.dtype, zero=True, name="conv_2")(h)
        x = change(x)
        if x.shape[-1] != self.features or self.way:
            x = nn.Dense(self.features, dtype=net.dtype, name="skip")(x)
        return net.add(x, h)


class NCSNpp(nn.Module):
    """An array (..., H, W, out_channels) from x (..., H, W, C) and its time t: what it means, the training decides.

    `net.apply(params, x, t, y=None, train=False, rngs={"dropout": key})`: t and y are scalars or have the leading axes of x.
    Told by Fourier features, t is a noise level > 0 and the network sees log t; told by position, it is an index.

    Fields
      out_channels, width, multipliers, blocks, dropout, classes, null_label, patch, dtype
                       as in `UNet`; attention too, but on the way up it comes once, after the blocks of a level
      embedding        "fourier" (frequencies of deviation `fourier_scale`) or "positional" (sin first)
      conditional      False: the network is not told the time (but may still be divided by a noise level)
      resblock         "biggan": residual blocks resample;  "ddpm": a layer between them does, with a 3 x 3 convolution if
                       `resample_conv`
      fir              taps of the filter that resamples, such as (1, 3, 3, 1), or None: means and repeated pixels
      skip_rescale     sums of two branches are divided by sqrt(2)
      progressive_input, combine
                       how the input image, made smaller, comes in at each level: None, "input_skip" (by a 1 x 1 convolution
                       as a "sum", or as more channels, "cat") or "residual"
      progressive      how levels give to the output: None, "output_skip" (each an image) or "residual"
      centre           the network first maps x to 2x - 1
      groups           of the norms; None: a quarter of the channels, at most 32
      scale_by_sigma   the output is divided by t (Fourier), or by entry t of the table `sigmas`: (largest, smallest, number),
                       geometric and falling (positional)
      sigma_data       s > 0: x comes in divided by r = sqrt(t^2 + s^2), and -x / r^2 + s / (t r) times the network goes out:
                       the score of Gaussian data of that deviation, plus what is left (Karras et al. 2022, table 1, as a
                       score). Fourier only; instead of scale_by_sigma

    NCSN++ of the paper: the defaults, with progressive_input="residual" and scale_by_sigma=True. DDPM++: embedding
    "positional", fir=None. Their DDPM: besides, resblock "ddpm", skip_rescale=False, groups=32.
    Raises ValueError for options that do not exist or do not go together, and sizes that the levels do not divide.
    """

    out_channels: int = 3
    width: int = 128
    multipliers: Sequence[int] = (1, 2, 2, 2)
    blocks: int = 4
    attention: Sequence[int] = (2,)
    embedding: str = "fourier"
    fourier_scale: float = 16.0
    conditional: bool = True
    resblock: str = "biggan"
    fir: Sequence[float] | None = (1, 3, 3, 1)
    resample_conv: bool = True
    skip_rescale: bool = True
    progressive_input: str | None = None
    combine: str = "sum"
    progressive: str | None = None
    activation: str = "swish"
    centre: bool = False
    groups: int | None = None
    scale_by_sigma: bool = False
    sigmas: tuple = (50.0, 0.01, 1000)
    sigma_data: float | None = None
    dropout: float = 0.0
    classes: int | None = None
    null_label: bool = False
    patch: int = 1
    dtype: Any = None

    def __post_init__(self):
        super().__post_init__()
        for name, valid in CHOICES.items():
            if getattr(self, name) not in valid:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(map(repr, valid))}")
        depths = [2**level for level in range(len(self.multipliers))]
        for factor in self.attention:
            if factor not in depths:
                raise ValueError(f"attention={factor} is no downsampling factor of this network: use some of {depths}")
        if self.classes and not self.conditional:
            raise ValueError(f"classes={self.classes} of a network that is told nothing: use conditional=True")
        if self.null_label and not self.classes:
            raise ValueError("null_label=True needs classes: the null label is one more row of the label table")
        if self.sigma_data is not None and (self.sigma_data <= 0 or self.scale_by_sigma or self.embedding != "fourier"):
            raise ValueError(
                f"sigma_data={self.sigma_data} must be > 0, and goes with embedding='fourier' alone, without scale_by_sigma"
            )

    # --- the modules, in the order in which they are called ------------------------------------------------------------

    def widths(self):
        return [int(m * self.width) for m in self.multipliers]

    def parts(self):
        """All modules. Part n is `all_modules.n` of the official code."""
        parts = [Part("fourier", "fourier")] * (self.embedding == "fourier")
        parts += [Part(f"time_{n}", "dense", 4 * self.width) for n in (0, 1)] * self.conditional
        return parts + [Part("conv_in", "conv", self.width), *self.down_path(), *self.middle_path(), *self.up_path()]

    def down_path(self):
        widths, parts = self.widths(), []
        for level, width in enumerate(widths):
            for block in range(self.blocks):
                parts.append(Part(f"down_{level}_{block}", "res", width))
                if 2**level in self.attention:
                    parts.append(Part(f"down_{level}_{block}_attention", "attention", width))
            if level + 1 < len(widths):
                parts.append(self._resample("down", level, width))
                if self.progressive_input == "input_skip":
                    parts.append(Part(f"input_{level}", "combine", width))
                if self.progressive_input == "residual":
                    parts.append(Part(f"input_{level}", "pyramid", width, "down"))
        return parts

    def middle_path(self):
        width = self.widths()[-1]
        return [Part("middle_0", "res", width), Part("middle_attention", "attention", width), Part("middle_1", "res", width)]

    def up_path(self):
        parts, image = [], self.out_channels * self.patch**2
        for level, width in reversed(list(enumerate(self.widths()))):
            parts += [Part(f"up_{level}_{block}", "res", width) for block in range(self.blocks + 1)]
            if 2**level in self.attention:
                parts.append(Part(f"up_{level}_attention", "attention", width))
            if self.progressive == "output_skip" or (self.progressive and level + 1 == len(self.multipliers)):
                channels = image if self.progressive == "output_skip" else width
                parts += [Part(f"output_{level}_norm", "norm"), Part(f"output_{level}", "conv", channels)]
            elif self.progressive:
                parts.append(Part(f"output_{level}", "pyramid", width, "up"))
            if level:
                parts.append(self._resample("up", level, width))
        if self.progressive != "output_skip":
            parts += [Part("norm_out", "norm"), Part("conv_out", "conv", image)]
        return parts

    def _resample(self, way, level, width):
        return Part(f"{way}_{level}_resample", "res" if self.resblock == "biggan" else "resample", width, way)

    # --- the walk -------------------------------------------------------------------------------------------------------

    def options(self):
        taps = tuple(self.fir) if self.fir else None
        return Options(self.activation, self.groups, taps, self.skip_rescale, self.dtype, 4 * self.width)

    def run(self, part, h, e=None, train=False):
        """Apply one part."""
        name, width, way, options = part.name, part.width, part.way, self.options()
        if part.kind == "fourier":
            return Fourier(self.width, self.fourier_scale, name=name)(h)
        if part.kind == "dense":
            return nn.Dense(width, name=name)(h)
        if part.kind == "norm":
            return options.act(options.norm(h, name))
        if part.kind == "conv":
            last = name == "conv_out" or name.startswith("output")
            return conv(width, dtype=self.dtype if not last else None, zero=last, name=name)(h)
        if part.kind == "attention":
            how = {"dtype": self.dtype, "rescale": self.skip_rescale, "name": name}
            return Attention(1, "new", options.groups_of(h.shape[-1]), EPSILON, **how)(h)
        if part.kind == "res":
            return Block(width, way, options, self.dropout if train else 0.0, name=name)(h, e)
        if part.kind == "combine":
            return nn.Dense(width, dtype=self.dtype, name=name)(h)
        if part.kind == "resample" and not self.resample_conv:
            return options.resampling(way)(h)
        if options.taps:
            return {"down": fir.ConvDown, "up": fir.ConvUp}[way](width, options.taps, name=name)(h)
        layer = Down(padding=((0, 1),) * 2, features=width, name=name) if way == "down" else Up(features=width, name=name)
        return layer(h)

    @nn.compact
    def __call__(self, x, t, y=None, train=False):
        if x.ndim < 3 or any(side % (self.patch * 2 ** (len(self.multipliers) - 1)) for side in x.shape[-3:-1]):
            multiple = self.patch * 2 ** (len(self.multipliers) - 1)
            raise ValueError(f"x of shape {x.shape} must be (..., H, W, C) with sides that are multiples of {multiple}")
        float_ = wide(x).dtype
        parts = iter(self.parts())
        step = lambda h, e=None: self.run(next(parts), h, e, train)

        t = jnp.asarray(t)
        sigma = None
        if self.embedding == "fourier":
            sigma = t.astype(float_)
            e = step(sigma)
        else:
            e = sinusoid(t.astype(float_), self.width, sin_first=True, shift=1)
            if self.scale_by_sigma:
                large, small, number = self.sigmas
                table = np.exp(np.linspace(np.log(large), np.log(small), int(number)))
                sigma = jnp.take(jnp.asarray(table, float_), t.astype(int), axis=0)  # beyond the table: NaN
        act = self.options().act
        e = act(self._labelled(step(act(step(e))), y)) if self.conditional else None
        x = x.astype(float_)
        if self.centre:
            x = 2 * x - 1
        if self.sigma_data:
            spread = jnp.sqrt(sigma**2 + self.sigma_data**2)
            x = x / over_image(spread[..., None], 2)
        h = self._body(space_to_depth(x, self.patch), e, step)
        h = depth_to_space(h.astype(float_), self.patch)
        if self.scale_by_sigma:
            h = h / over_image(sigma[..., None], 2)
        if self.sigma_data:
            h = (h * over_image((self.sigma_data / sigma)[..., None], 2) - x) / over_image(spread[..., None], 2)
        return h

    def _labelled(self, e, y):
        """The embedding with the label added to it."""
        if not self.classes:
            if y is not None:
                raise ValueError("this network has no classes: leave y out, or build it with classes=...")
            return e
        if y is None and not self.null_label:
            raise ValueError(f"this network is conditional: give y in 0..{self.classes - 1}")
        table = self.param("label", nn.initializers.normal(1.0), (self.classes + self.null_label, 4 * self.width))
        y = jnp.asarray(self.classes if y is None else y)
        if not jnp.issubdtype(y.dtype, jnp.integer):
            raise ValueError(f"y must be integer class labels in 0..{len(table) - 1}, not {y.dtype}")
        return e + jnp.take(table, y, axis=0).astype(e.dtype)  # a label out of range gives NaN, not a neighbour

    def _body(self, x, e, step):
        """Down, middle and up, with both pyramids."""
        options, levels = self.options(), len(self.multipliers)
        attends = [2**level in self.attention for level in range(levels)]
        pyramid, skips = x, [step(x)]
        for level in range(levels):
            for _ in range(self.blocks):
                h = step(skips[-1], e)
                skips.append(step(h) if attends[level] else h)
            if level + 1 < levels:
                h = step(skips[-1], e)
                if self.progressive_input == "input_skip":
                    pyramid = options.resampling("down")(pyramid)
                    image = step(pyramid)
                    h = image + h if self.combine == "sum" else jnp.concatenate([image, h], axis=-1)
                if self.progressive_input == "residual":
                    h = pyramid = options.add(step(pyramid), h)
                skips.append(h)
        h = step(step(step(skips[-1], e)), e)
        pyramid = None
        for level in reversed(range(levels)):
            for _ in range(self.blocks + 1):
                h = step(jnp.concatenate([h, skips.pop()], axis=-1), e)
            h = step(h) if attends[level] else h
            if self.progressive == "output_skip":
                image = step(step(h))
                pyramid = image if pyramid is None else options.resampling("up")(pyramid) + image
            if self.progressive == "residual":
                pyramid = step(step(h)) if pyramid is None else options.add(step(pyramid), h)
                h = pyramid if level + 1 < levels else h
            h = step(h, e) if level else h
        return pyramid if self.progressive == "output_skip" else step(step(h))
