"""First stages of latent diffusion: encoder and decoder with Gaussian moments (KL) or a codebook (VQ).

Sources: Rombach et al. 2022, arXiv:2112.10752; Esser, Rombach and Ommer 2021, arXiv:2012.09841 (VQGAN); van den Oord et al.
2017, arXiv:1711.00937. The same networks are diffusers' `AutoencoderKL` and `VQModel` under other names (convert.first_stage).
As everywhere in the house the last convolution of a block starts at zero; the official code draws it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..base import clip
from .layers import Attention, Down, GroupNorm, ResBlock, Up, conv

EPSILON = 1e-6  # of all norms
LOGVAR = (-30.0, 20.0)  # log-variances are clamped to this
DISTANCES = 2**26  # pixels times codes beyond which distances are computed for some pixels after others


class _Half(nn.Module):
    """Fields and parts that encoder and decoder share.

    out_channels  channels of the result
    width         channels of the first level; `multipliers`: of each level as a multiple of it
    blocks        residual blocks per level (one more in the decoder)
    attention     factors 1, 2, 4 ... by which a level is smaller than the image: attention after each of its blocks
    middle        whether there is attention in the middle
    groups        of the group norms; dtype of convolutions and products, None: that of x
    """

    out_channels: int
    width: int = 128
    multipliers: Sequence[int] = (1, 2, 4)
    blocks: int = 2
    attention: Sequence[int] = ()
    middle: bool = True
    groups: int = 32
    dtype: Any = None

    def block(self, h, width, name):
        return ResBlock(width, groups=self.groups, epsilon=EPSILON, dtype=self.dtype, name=name)(h)

    def attend(self, h, name):
        return Attention(groups=self.groups, epsilon=EPSILON, dtype=self.dtype, name=name)(h)

    def level(self, h, way, level, blocks):
        for block in range(blocks):
            name = f"{way}_{level}_{block}"
            h = self.block(h, int(self.width * self.multipliers[level]), name)
            h = self.attend(h, f"{name}_attention") if 2**level in self.attention else h
        return h

    def centre(self, h):
        h = self.block(h, h.shape[-1], "middle_0")
        h = self.attend(h, "middle_attention") if self.middle else h
        return self.block(h, h.shape[-1], "middle_1")

    def end(self, h):
        h = jax.nn.silu(GroupNorm(self.groups, EPSILON, name="norm_out")(h))
        self.sow("intermediates", "features", h)  # kept only for whom asks: what the last convolution sees
        return conv(self.out_channels, dtype=self.dtype, name="conv_out")(h)


class Encoder(_Half):
    """x (..., H, W, C) -> (..., H / f, W / f, out_channels), f = 2^(levels - 1). Strided convolutions pad right and bottom."""

    @nn.compact
    def __call__(self, x):
        h = conv(self.width, dtype=self.dtype, name="conv_in")(x)
        for level in range(len(self.multipliers)):
            h = self.level(h, "down", level, self.blocks)
            if level + 1 < len(self.multipliers):
                h = Down(padding=((0, 1), (0, 1)), dtype=self.dtype, name=f"down_{level}_resample")(h)
        return self.end(self.centre(h))


class Decoder(_Half):
    """z (..., h, w, c) -> (..., f h, f w, out_channels), not bounded unless `tanh`. Levels are numbered as the encoder's."""

    tanh: bool = False

    @nn.compact
    def __call__(self, z):
        h = conv(int(self.width * self.multipliers[-1]), dtype=self.dtype, name="conv_in")(z)
        h = self.centre(h)
        for level in reversed(range(len(self.multipliers))):
            h = self.level(h, "up", level, self.blocks + 1)
            if level:
                h = Up(dtype=self.dtype, name=f"up_{level}_resample")(h)
        h = self.end(h)
        return jnp.tanh(h) if self.tanh else h


class FirstStage(nn.Module):
    """What autoencoders of both kinds share; see `AutoencoderKL` and `AutoencoderVQ`.

    Fields
      channels         of images: 3, 1 ...
      latent_channels  of the latent (official embed_dim)
      z_channels       that encoder and decoder have there (None: as many); 1x1 convolutions lead from one to the other
      width, multipliers, blocks, groups, dtype
                       see `Encoder`; the factor is f = 2^(len(multipliers) - 1), 1 to 32 in published models
      attention        factors 1, 2, 4 ... with attention, in the encoder and, unless `attention_up` says otherwise, the
                       decoder. Official configurations give pixel sizes of images of their own resolution
      middle           whether there is attention in the middle
      quant_conv, post_quant_conv   whether there are these 1x1 convolutions
      tanh             the decoder's output is bounded to (-1, 1)
    """

    channels: int = 3
    latent_channels: int = 3
    z_channels: int | None = None
    width: int = 128
    multipliers: Sequence[int] = (1, 2, 4)
    blocks: int = 2
    attention: Sequence[int] = ()
    attention_up: Sequence[int] | None = None
    middle: bool = True
    groups: int = 32
    quant_conv: bool = True
    post_quant_conv: bool = True
    tanh: bool = False
    dtype: Any = None

    doubled = 1  # arrays of the latent's size that the encoder gives

    def __post_init__(self):
        super().__post_init__()
        depths = [2**level for level in range(len(self.multipliers))]
        for factor in (*self.attention, *(self.attention_up or ())):
            if factor not in depths:
                raise ValueError(f"attention={factor} is no downsampling factor of this network: use some of {depths}")
        if self.z_channels not in (None, self.latent_channels) and not (self.quant_conv and self.post_quant_conv):
            raise ValueError(f"z_channels={self.z_channels} and latent_channels={self.latent_channels} differ: "
                             "only quant_conv and post_quant_conv lead from one to the other")  # fmt: skip

    @property
    def f(self):
        """The factor by which the latent's sides are smaller."""
        return 2 ** (len(self.multipliers) - 1)

    def setup(self):
        inner = self.z_channels or self.latent_channels
        both = (self.width, tuple(self.multipliers), self.blocks)
        rest = (self.middle, self.groups, self.dtype)
        up = self.attention if self.attention_up is None else self.attention_up
        self.encoder = Encoder(self.doubled * inner, *both, tuple(self.attention), *rest)
        self.decoder = Decoder(self.channels, *both, tuple(up), *rest, self.tanh)
        if self.quant_conv:
            self.to_latent = nn.Dense(self.doubled * self.latent_channels, dtype=self.dtype)
        if self.post_quant_conv:
            self.from_latent = nn.Dense(inner, dtype=self.dtype)

    def encode(self, x):
        """What the encoder says of x (..., H, W, channels): mean and log-variance one after the other, or the latent."""
        if x.ndim < 3 or x.shape[-3] % self.f or x.shape[-2] % self.f:
            raise ValueError(f"x of shape {x.shape} is no (..., H, W, C) with sides that are multiples of f={self.f}")
        h = self.encoder(x)
        return self.to_latent(h) if self.quant_conv else h

    def decode(self, z):
        """Images (..., f h, f w, channels) of z (..., h, w, latent_channels); no codebook is asked."""
        return self.decoder(self.from_latent(z) if self.post_quant_conv else z)


class AutoencoderKL(FirstStage):
    """An autoencoder whose latent is Gaussian: `net.apply(params, x, method="moments")` -> (mean, logvar), and "decode".

    `net.apply(params, x)` is decode(mean). Fields: see `FirstStage`.
    """

    doubled = 2

    def moments(self, x):
        """(mean, logvar) of the latent, each (..., H / f, W / f, latent_channels); logvar clamped to [-30, 20]."""
        return gaussian(self.encode(x))

    def __call__(self, x):
        return self.decode(self.moments(x)[0])


def gaussian(h):
    """(mean, logvar) of an encoder's output (..., 2c): the first and the second half, this one clamped to [-30, 20]."""
    mean, logvar = jnp.split(h, 2, axis=-1)
    return mean, clip(logvar, *LOGVAR)


class Quantised(NamedTuple):
    """z: the nearest codes, with the gradient of the identity for the encoder (straight-through).
    codes: the same with the gradient to the codebook. indices (..., h, w): which they are; official code with
    sane_index_shape=False gives them flat, indices.reshape(-1)."""

    z: Any
    codes: Any
    indices: Any


def quantise(h, codebook):
    """`Quantised` of h (..., c) by a codebook (n, c): the code of least squared distance, the first of equals."""
    book = codebook.astype(h.dtype)
    tokens = jax.lax.stop_gradient(h).reshape(-1, h.shape[-1])
    frozen = jax.lax.stop_gradient(book)

    def closest(some):
        cross = jnp.matmul(some, frozen.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmin(jnp.square(some).sum(-1, keepdims=True) + jnp.square(frozen).sum(-1) - 2 * cross, axis=-1)

    if tokens.shape[0] * book.shape[0] <= DISTANCES:
        indices = closest(tokens)
    else:
        indices = jax.lax.map(lambda one: closest(one[None])[0], tokens, batch_size=max(1, DISTANCES // book.shape[0]))
    indices = indices.reshape(h.shape[:-1])
    codes = jnp.take(book, indices, axis=0)
    return Quantised(h + jax.lax.stop_gradient(codes - h), codes, indices)


def codebook_loss(h, codes, beta=0.25, legacy=True):
    """Mean of |h - sg(codes)|^2 plus mean of |codes - sg(h)|^2, one of them times beta.

    legacy: beta is on the second term, that of the codebook, as in the official code and diffusers; False: on the first, as
    in van den Oord et al., equation 3.
    """
    stop = jax.lax.stop_gradient
    encoder, book = jnp.square(h - stop(codes)).mean(), jnp.square(codes - stop(h)).mean()
    return encoder + beta * book if legacy else beta * encoder + book


class AutoencoderVQ(FirstStage):
    """An autoencoder with a codebook of `codes` entries; the diffusion model sees the latent before it is quantised.

    Methods, by `net.apply(params, ..., method=...)`: "moments" x -> (h, None); "quantise" h -> `Quantised`; "nearest" h -> its
    codes, straight-through; "decode" z -> image, without quantising; "lookup" indices -> codes. `net.apply(params, x)` is
    decode(nearest(h)). Other fields: see `FirstStage`.
    """

    codes: int = 8192

    def setup(self):
        super().setup()
        start = lambda key, shape: jax.random.uniform(key, shape, minval=-1 / self.codes, maxval=1 / self.codes)
        self.codebook = self.param("codebook", start, (self.codes, self.latent_channels))

    def moments(self, x):
        """(h, None): the latent before quantisation; it has no variance."""
        return self.encode(x), None

    def quantise(self, h):
        return quantise(h, self.codebook)

    def nearest(self, h):
        return self.quantise(h).z

    def lookup(self, indices, shape=None):
        """Codes (..., latent_channels) of indices of any shape, or of flat ones that belong to ``shape`` (..., h, w)."""
        return jnp.take(self.codebook, jnp.asarray(indices).reshape(shape or jnp.shape(indices)), axis=0)

    def __call__(self, x):
        return self.decode(self.nearest(self.moments(x)[0]))
