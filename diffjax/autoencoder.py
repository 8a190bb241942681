"""Autoencoders: an image x as a smaller array z, the latent, in which a prior is learned and sampled, and back.

    z = (raw - shift) * scale,    raw = z / scale + shift

`raw` is what an encoder gives, z what the prior sees: of about unit variance. Shift and scale belong to the autoencoder, so
that nobody forgets them; whatever this module calls a latent, a mean or a variance is of z. The one `scale_factor` of a
published checkpoint is the scale.

Sources: Rombach et al. 2022, arXiv:2112.10752 (latent diffusion); Kingma and Welling 2014, arXiv:1312.6114 (moments); van den
Oord et al. 2017, arXiv:1711.00937 (codebooks).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .base import clip, host, in_range, is_concrete, normal, numbers, pytree, static, whole

HIGHEST = jax.lax.Precision.HIGHEST  # a TPU's default rounds to bfloat16


@functools.partial(jax.jit, static_argnums=0)
def _call(function, params, x):
    """One function of the program: traced once, however often an eager caller or a method uses it."""
    return function(params, x)


def draw(key, mean, logvar):
    """mean + exp(logvar / 2) * unit noise, of the mean's shape; the mean itself where ``logvar`` or ``key`` is None."""
    if logvar is None or key is None:
        return mean
    return mean + jnp.exp(0.5 * logvar).astype(mean.dtype) * normal(key, mean.shape, mean.dtype)


def kl(mean, logvar, other_mean=0.0, other_logvar=0.0):
    """KL of N(mean, exp(logvar)) from the other Gaussian, the unit one if none is given, in nats: the sum over one latent."""
    apart = jnp.square(mean - other_mean) * jnp.exp(-other_logvar)
    return 0.5 * jnp.sum(apart + jnp.exp(logvar - other_logvar) - 1 - logvar + other_logvar)


def nll(z, mean, logvar):
    """-log N(z; mean, exp(logvar)) of one latent, in nats."""
    return 0.5 * jnp.sum(math.log(2 * math.pi) + logvar + jnp.square(z - mean) * jnp.exp(-logvar))


@pytree
class Autoencoder:
    """x (..., H, W, C) in [-1, 1] <-> z (..., H / f, W / f, channels). Build it with :func:`from_network` or :func:`linear`.

    params:        of encoder and decoder, leaves
    shift, scale:  one number, or one for each channel of z; leaves. The scale is not 0
    encoder:       encoder(params, x) -> (mean, logvar) of raw; logvar is None where the encoder is a function of x alone
    decoder:       decoder(params, raw) -> x
    f, channels:   factor by which sides shrink; channels of z
    quantiser:     quantiser(params, raw) -> raw, moved to the nearest codes; None: there is no codebook
    Raises ValueError for a scale of 0, a shift or scale of another number of channels, and sides that are no multiple of f.
    """

    params: Any
    shift: Any = 0.0
    scale: Any = 1.0
    encoder: Callable = static(default=None)
    decoder: Callable = static(default=None)
    f: int = static(default=1)
    channels: int = static(default=1)
    quantiser: Callable | None = static(default=None)

    def __post_init__(self):
        for name in ("shift", "scale"):
            value = numbers(getattr(self, name))
            if value is None:
                continue
            if value.shape not in ((), (1,), (self.channels,)):
                raise ValueError(
                    f"{name} has shape {value.shape}: give one number, or one for each of {self.channels} channels"
                )
            if not np.all(np.isfinite(value)) or (name == "scale" and np.any(value == 0)):
                raise ValueError(f"{name} {value} cannot be undone: give finite numbers, for scale none of them 0 (default 1)")

    @property
    def linear(self) -> bool:
        """Whether decode is known to be a linear map, without an offset."""
        shift = numbers(self.shift)
        return getattr(self.decoder, "linear", False) and shift is not None and not shift.any()

    def latent_shape(self, shape) -> tuple:
        """(..., H / f, W / f, channels) of the latents of images of ``shape`` (..., H, W, C)."""
        *lead, height, width, _ = shape
        if height % self.f or width % self.f or not (height and width):
            down, up = ([max(1, side // self.f + n) * self.f for side in (height, width)] for n in (0, 1))
            up = [side if side % self.f == 0 and side else more for side, more in zip((height, width), up)]
            raise ValueError(f"sides {height} x {width} of x are no multiples of f={self.f}: crop to {down[0]} x {down[1]} "
                             f"or pad to {up[0]} x {up[1]}")  # fmt: skip
        return (*lead, height // self.f, width // self.f, self.channels)

    def moments(self, x):
        """(mean, logvar) of z given x, both (..., h, w, channels); logvar is None where z is a function of x."""
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"x is {x.dtype}: give floats in [-1, 1], of 8-bit pixels x / 127.5 - 1")
        self.latent_shape(x.shape)
        mean, logvar = _call(self.encoder, self.params, x)
        mean = (mean.astype(x.dtype) - self._of("shift", x)) * self._of("scale", x)
        if logvar is not None:
            logvar = logvar.astype(x.dtype) + 2 * jnp.log(jnp.abs(self._of("scale", x)))
        return mean, logvar

    def encode(self, x, key=None):
        """z of x: the mean, or with a key a draw from N(mean, exp(logvar)). Without logvar both are the same."""
        return draw(key, *self.moments(x))

    def decode(self, z, quantise: bool = True):
        """x of z (..., h, w, channels). With a codebook z is first moved to its nearest codes, with the gradient of the
        identity, unless ``quantise=False``."""
        z = jnp.asarray(z)
        if z.shape[-1] != self.channels:
            raise ValueError(f"z has {z.shape[-1]} channels, this autoencoder's latents have {self.channels}: got {z.shape}")
        raw = z / self._of("scale", z) + self._of("shift", z)
        if quantise and self.quantiser is not None:
            raw = _call(self.quantiser, self.params, raw).astype(z.dtype)
        return _call(self.decoder, self.params, raw).astype(z.dtype)

    def quantise(self, z):
        """z moved to its nearest codes, with the gradient of the identity; z itself where there is no codebook."""
        if self.quantiser is None:
            return z
        scale, shift = self._of("scale", z), self._of("shift", z)
        return (_call(self.quantiser, self.params, z / scale + shift).astype(z.dtype) - shift) * scale

    def _of(self, name, x):
        return jnp.asarray(getattr(self, name)).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class _Method:
    """``net.apply`` of one method, compared by value: equal networks make equal programs."""

    net: Any
    method: str

    def __call__(self, params, x):
        return self.net.apply(params, x, method=self.method)


def from_network(net, params, *, shift=0.0, scale=1.0) -> Autoencoder:
    """The autoencoder of a Flax network such as ``nets.AutoencoderKL`` and ``nets.AutoencoderVQ`` and its parameters.

    net:  has methods ``moments(x)`` and ``decode(raw)``, perhaps ``nearest(raw)`` (its codebook), and fields ``f`` and
          ``latent_channels``
    """
    quantiser = _Method(net, "nearest") if hasattr(net, "nearest") else None
    ways = (_Method(net, "moments"), _Method(net, "decode"))
    return Autoencoder(params, shift, scale, *ways, net.f, net.latent_channels, quantiser)


# --- linear ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Encode:
    f: int

    def __call__(self, params, x):
        *lead, height, width, channels = x.shape
        f, least = self.f, len(lead)
        x = x.reshape(*lead, height // f, f, width // f, f, channels)
        x = jnp.swapaxes(x, least + 1, least + 2).reshape(*lead, height // f, width // f, f * f * channels)
        mean = jnp.matmul(x - params["b"], params["inverse"].T, precision=HIGHEST)
        return mean, None if params["logvar"] is None else jnp.broadcast_to(params["logvar"], mean.shape)


@dataclasses.dataclass(frozen=True)
class _Decode:
    f: int
    linear: bool

    def __call__(self, params, raw):
        *lead, height, width, _ = raw.shape
        f, least = self.f, len(lead)
        x = jnp.matmul(raw, params["D"].T, precision=HIGHEST) + params["b"]
        x = x.reshape(*lead, height, width, f, f, -1)
        return jnp.swapaxes(x, least + 1, least + 2).reshape(*lead, height * f, width * f, x.shape[-1])


def linear(D, b=0.0, *, f: int, logvar=None, shift=0.0, scale=1.0) -> Autoencoder:
    """x = D z + b on each block of f x f pixels; encode is the pseudo-inverse. What is Gaussian in x is so in z: posteriors
    have closed forms.

    D:       (f * f * C, channels): pixels of a block row by row, channels last. A block may be the whole picture
    b:       (f * f * C,) or a number
    logvar:  of the encoder, (channels,) or a number; None: none
    Raises ValueError if D is no such matrix.
    """
    f = whole("f", f)
    if np.ndim(D) != 2 or D.shape[0] % (f * f) or D.shape[1] < 1:
        raise ValueError(f"D has shape {np.shape(D)}: give ({f * f} * C, channels), the {f} x {f} pixels of a block to z")
    D = host(D)
    inverse = (np if is_concrete(D) else jnp).linalg.pinv(D)
    single = lambda a: jnp.asarray(a, jnp.result_type(float))
    offset = numbers(b)
    decode = _Decode(f, offset is not None and not offset.any())
    b = jnp.broadcast_to(single(b), D.shape[:1])
    params = {"D": single(D), "b": b, "inverse": single(inverse), "logvar": None if logvar is None else single(logvar)}
    return Autoencoder(params, shift, scale, _Encode(f), decode, f, D.shape[1])


# --- what a first guess lacks ---------------------------------------------------------------------------------------


def _lacks(params, x):
    return clip(x - params["base"].astype(x.dtype), -params["most"], params["most"]), None


def _added(params, raw):
    return raw + params["base"].astype(raw.dtype)


def residual(base, scale=2.0, most=1.0) -> Autoencoder:
    """z = scale (x - base), clamped to [-most, most]; x = base + z / scale. A prior of z makes only what ``base`` lacks, as in
    SRDiff (Li et al. 2021, arXiv:2104.14951), whose base is the small picture enlarged and whose scale is 2.

    base: (H, W, C) in [-1, 1], a leaf. What is further than most / scale from it is out of reach.
    """
    in_range("most", most, 1e-6)
    base = jnp.asarray(base)
    return Autoencoder({"base": base, "most": most / scale}, 0.0, scale, _lacks, _added, 1, base.shape[-1])
