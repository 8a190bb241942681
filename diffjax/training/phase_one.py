"""Phase one of latent diffusion: an autoencoder against a discriminator, two players of one compiled step.

Per image, with a = |x - x_r| + perceptual * lpips(x, x_r), of B images of D values each:

    KL:  loss = sum(a) / B + kl_weight sum(kl) / B + factor d g        sums over all values, as the official code has them
    VQ:  loss = mean(a) + codebook_weight codebook + factor d g

    g = - mean D(x_r),   d = disc_weight min(|grad a| / (|grad g| + 1e-4), 1e4),   norms over the decoder's last kernel

``factor`` is 0 before the step ``start`` and 1 from it on. Before it neither the discriminator nor d is computed. The
gradients of a and g with respect to x_r are found once; d comes from them and the last layer's input, so that it costs one small
product and no further pass through a network.

Sources: Rombach et al. 2022, arXiv:2112.10752, section G; Esser, Rombach and Ommer 2021, arXiv:2012.09841, equation 7 (d); the
hinge: Lim and Ye 2017, arXiv:1705.02894.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from .. import metrics
from ..base import nearest
from .data import scale

GAMES = ("hinge", "vanilla")
LARGEST = 1e4  # of the adaptive weight
AE, DISC = "autoencoder", "discriminator"


@dataclasses.dataclass(frozen=True)
class PhaseOne:
    """The losses of both players, for ``step.train_step``; see the module.

    net:            ``nets.AutoencoderKL`` or ``AutoencoderVQ`` with an unbounded output
    discriminator:  ``nets.PatchDiscriminator`` or None: no game
    lpips:          weights of LPIPS, or None: its term is left out
    Raises ValueError for an unknown game and a step before 0.
    """

    net: Any
    discriminator: Any = None
    lpips: Any = None
    perceptual: float = 1.0
    kl_weight: float = 1e-6
    codebook_weight: float = 1.0
    beta: float = 0.25
    disc_weight: float = 0.5
    start: int = 0
    game: str = "hinge"

    def __post_init__(self):
        if self.game not in GAMES:
            raise ValueError(f"game {self.game!r} is unknown: {nearest(self.game, GAMES)}")
        if self.start < 0:
            raise ValueError(f"the discriminator cannot start at step {self.start}: use 0 or more")
        if getattr(self.net, "tanh", False):
            raise ValueError("tanh=True: the adaptive weight is of an unbounded last layer, use tanh=False")

    @property
    def losses(self) -> dict:
        """{player: loss}, in the order in which they move."""
        return {AE: self.autoencoder_loss} | ({DISC: self.discriminator_loss} if self.discriminator else {})

    # --- the autoencoder ------------------------------------------------------------------------------------------

    def autoencoder_loss(self, params, key, batch, step):
        """-> (loss, terms: rec, lpips, kl or codebook and codes_used, and with a discriminator g, d_weight)."""
        x = scale(batch["x"])
        z, penalty, terms = self.latent(params[AE], key, x)
        x_r, h = self.last(params[AE], z)
        held = jax.lax.stop_gradient(x_r)
        (a, told), pull = jax.value_and_grad(self.reconstruction, has_aux=True)(held, x)
        terms |= told
        value = a
        if self.discriminator is not None:
            own = (pull, params, jax.lax.stop_gradient(h), held)
            on = jnp.asarray(step) >= self.start
            pull, g, d = jax.lax.cond(on, self._against, lambda pull, *_: (pull, jnp.zeros_like(a), jnp.zeros_like(a)), *own)
            value = a + d * g
            terms |= {"g": g, "d_weight": d}
        # the gradient of this product is `pull` carried back through the decoder; its value is replaced by the loss's
        carried = jnp.vdot(jax.lax.stop_gradient(pull), x_r)
        return carried + jax.lax.stop_gradient(value - carried) + penalty, terms

    def latent(self, params, key, x):
        """-> (a latent of x, its weighted penalty, terms)."""
        if hasattr(self.net, "codes"):
            from ..nets.autoencoder import codebook_loss

            h, _ = self.net.apply(params, x, method="moments")
            found = self.net.apply(params, h, method="quantise")
            loss = codebook_loss(h, found.codes, self.beta)
            used = jnp.zeros(self.net.codes).at[found.indices.reshape(-1)].set(1.0).mean()
            return found.z, self.codebook_weight * loss, {"codebook": loss, "codes_used": used}
        mean, logvar = self.net.apply(params, x, method="moments")
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype)
        kl = 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1 - logvar) / len(x)
        return z, self.kl_weight * kl, {"kl": kl}

    def last(self, params, z):
        """(x_r, the input of the decoder's last layer)."""
        keep = lambda module, _: module.name == "norm_out"
        x_r, seen = self.net.apply(params, z, method="decode", capture_intermediates=keep, mutable=["intermediates"])
        return x_r, jax.nn.silu(seen["intermediates"]["decoder"]["norm_out"]["__call__"][0])

    def reconstruction(self, x_r, x):
        """(a of the batch, terms): a sum over values for KL, a mean for a codebook."""
        rec = jnp.abs(x - x_r).mean()
        terms, a = {"rec": rec}, rec
        if self.lpips is not None and self.perceptual:
            distance = jax.vmap(metrics.lpips, (0, 0, None))(x, x_r, self.lpips).mean()
            terms["lpips"] = distance
            a = a + self.perceptual * distance
        return a * (1 if hasattr(self.net, "codes") else x[0].size), terms

    def _against(self, pull, params, h, x_r):
        """(pull with the game in it, g, d): the adaptive weight from both gradients at the last kernel."""
        g, push = jax.value_and_grad(lambda x: -self.judge(params[DISC], x).mean())(x_r)
        kernel = params[AE]["params"]["decoder"]["conv_out"]["kernel"]
        convolve = lambda k: jax.lax.conv_general_dilated(h, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        _, at_kernel = jax.vjp(convolve, kernel.astype(h.dtype))
        norm = lambda cotangent: jnp.sqrt(jnp.sum(at_kernel(cotangent)[0] ** 2))
        d = self.disc_weight * jnp.clip(norm(pull) / (norm(push) + 1e-4), 0.0, LARGEST)
        return pull + d * push, g, d

    # --- the discriminator ----------------------------------------------------------------------------------------

    def judge(self, params, x):
        """Logits of each patch of images (B, H, W, C), by the statistics of this batch."""
        logits, _ = self.discriminator.apply(params, x, train=True, mutable=["batch_stats"])
        return logits

    def discriminator_loss(self, params, key, batch, step):
        """-> (loss, terms: real and fake, mean logits). Zero, at no cost, before ``start``."""

        def play(params, key, x):
            z, _, _ = self.latent(params[AE], key, x)
            x_r = jax.lax.stop_gradient(self.net.apply(params[AE], z, method="decode"))
            real, fake = self.judge(params[DISC], x), self.judge(params[DISC], x_r)
            if self.game == "hinge":
                loss = 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())
            else:
                loss = 0.5 * (jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean())
            return loss, {"real": real.mean(), "fake": fake.mean()}

        zero = jnp.zeros(())
        rest = lambda *_: (zero, {"real": zero, "fake": zero})
        return jax.lax.cond(jnp.asarray(step) >= self.start, play, rest, params, key, scale(batch["x"]))
