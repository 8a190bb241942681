"""Measurements of a picture that is known by its latent: A after decode.

A latent is only another space. The prior is one of latents z, the measurement one of the picture x = decode(z), and every
method that needs nothing of its operator but A(x), differentiable, restores in latent space with :class:`Decoded`. What needs
a mask, a pseudo-inverse, singular values or a proximal map is refused: decode is not linear, and its range is not all
pictures.

An autoencoder here is whatever has ``decode(z)``, ``encode(x)`` and ``latent_shape(shape)`` (``diffjax.autoencoder``), as a
pytree.

Source: Rombach et al. 2022 (latent diffusion).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..base import Measurement, in_range, pytree, static, whole
from .base import FromFunction, Operator
from .mask import Mask


def _decode(z, autoencoder):
    return autoencoder.decode(z)


@pytree
class Decoded(Operator):
    """A(z) = A(decode(z)), z (h, w, channels) a latent of the autoencoder; y is what ``A`` gives of a picture.

    A:            an operator of pictures
    autoencoder:  with ``decode`` and ``encode``; its parameters are leaves. Where it says of itself that it is ``linear``
                  (x = D z, no offset) and A has its adjoint, this operator has one, and ``cg_prox`` makes a proximal map of it
    ``picture(z)`` is decode(z), ``latent(x)`` encode(x). Raises ValueError for an autoencoder that has not both, and for an A
    that is decoded already.
    """

    A: Any
    autoencoder: Any
    linear: bool | None = static(default=None)

    instead = "use DPS, PSLD, ReSample or DiffPIR(data='gradient'), which need only A of the decoded picture"

    def __post_init__(self):
        if isinstance(self.A, Decoded):
            raise ValueError(
                "A is decoded already: give the operator of the picture, operators.Decoded(operators.Mask(mask), ae)"
            )
        missing = [name for name in ("decode", "encode") if not hasattr(self.autoencoder, name)]
        if missing and not isinstance(self.autoencoder, (int, type(None))):  # an axis of vmap
            kind = type(self.autoencoder).__name__
            raise ValueError(f"{kind} is no autoencoder, it has no {missing[0]}: give one of diffjax.autoencoder")
        if self.linear is None:
            object.__setattr__(self, "linear", bool(getattr(self.autoencoder, "linear", False)))

    def __call__(self, z):
        return self.A(self.picture(z))

    def residual(self, z, y):
        return self.A.residual(self.picture(z), y)

    def has(self, name: str) -> bool:
        return name == "T" and self.linear and self.A.has("T")

    def T(self, y):
        if not self.has("T"):
            return super().T(y)
        x = self.A.T(y)
        return FromFunction((self.autoencoder,), _decode, tuple(self.autoencoder.latent_shape(x.shape))).T(x)

    def _lacks(self, what, instead):
        raise ValueError(f"Decoded has no {what}, as decode is not linear: {self.instead}")

    def picture(self, z, y=None):
        """decode(z). With ``y`` what was measured is put in, x - A^+ (A x - y): for a ``Mask`` the known pixels are pasted
        back.

        Off by default: the decoder does not reproduce known pixels, so that pasting may show an edge where they end, and hides
        how well z fits. Raises ValueError where A has no pseudo-inverse.
        """
        x = self.autoencoder.decode(z)
        if y is None:
            return x
        y = jax.tree.map(lambda a: jnp.asarray(a).astype(jnp.result_type(a, x.dtype) if jnp.iscomplexobj(a) else x.dtype), y)
        return x - self.A.pinv(self.A.residual(x, y))

    def latent(self, x):
        """encode(x)"""
        return self.autoencoder.encode(x)


def latent_mask(mask, f: int, share: float = 1.0):
    """The mask of a picture, (H, W, 1) or (H, W, C) with 1 = known, for latents f times smaller, (H / f, W / f, 1): 1 where
    at least ``share`` of the f x f pixels are known in all channels, 1.0 all of them. Raises ValueError for sides that f does
    not divide."""
    f = whole("f", f)
    in_range("share", share, 0, 1)
    mask = jnp.asarray(mask)
    if mask.ndim != 3 or mask.shape[0] % f or mask.shape[1] % f:
        raise ValueError(
            f"a mask of shape {mask.shape} has no latents f={f} times smaller: give (H, W, 1), H and W multiples of {f}"
        )
    height, width, _ = mask.shape
    known = (mask > 0).all(-1).reshape(height // f, f, width // f, f).mean((1, 3))
    return (known >= share - 1e-6).astype(jnp.float32)[..., None]


def masked_latents(measurement, autoencoder, f: int | None = None, share: float = 1.0) -> Measurement:
    """Inpainting by masking latents, as what it is: the measurement z = encode(y) of the latents whose pixels are all known
    (``share`` of them), for the methods that need a mask (RePaint, Replacement, Blended).

    It bleeds. An encoder sees beyond the f x f pixels of a latent, so that latents beside a hole carry some of what fills the
    hole in y, and the decoder sees beyond one latent: known pixels come out changed, and the hole's filling shows around it.
    ``Decoded(Mask(mask), autoencoder)`` has neither fault and costs a decoder's gradient a row.

    measurement: y and a ``Mask`` of pictures; its noise_std is not used, what encode makes of noise is unknown. f: default
                 the autoencoder's own. Raises ValueError for another operator.
    """
    A = measurement.A
    if not isinstance(A, Mask):
        raise ValueError(f"masked_latents takes a Mask, not {type(A).__name__}: use operators.Decoded(A, autoencoder)")
    z = autoencoder.encode(jnp.asarray(measurement.y))
    mask = jnp.broadcast_to(jnp.asarray(A.mask), jnp.shape(measurement.y))
    keep = latent_mask(mask, autoencoder.f if f is None else f, share)
    return Measurement(keep * z, Mask(keep), 0.0, (-jnp.inf, jnp.inf))
