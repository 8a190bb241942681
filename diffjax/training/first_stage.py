"""Losses of autoencoders: L1 and a perceptual distance, KL or codebook, and a patch discriminator with an adaptive weight.

    rec      |x - x'| + perceptual_weight * perceptual(x, x')
    nll      rec / exp(logvar) + logvar
    KL       loss = sum(nll) / B + kl_weight * sum(kl) / B + w * disc_factor * g
    VQ       loss = mean(nll) + codebook_weight * codebook loss + w * disc_factor * g
    g        - mean D(x'),   w = clamp(|d nll / d W| / (|d g / d W| + 1e-4), 0, 1e4) * disc_weight, a constant
    D        disc_factor / 2 * (mean relu(1 - D(x)) + mean relu(1 + D(x'))), or with softplus(-D(x)), softplus(D(x'))

W is the kernel of the decoder's last convolution, B the number of pictures. Sums over a picture are large: hence w, often at
its clamp, and the 1e-6 of `kl_weight`. Before `start` the adversarial term and w are not computed and D does not learn.

Sources: Rombach et al. 2022, arXiv:2112.10752, appendix G; Esser, Rombach and Ommer 2021, arXiv:2012.09841, equations 5 to 7;
where paper and official code differ (sums; beta on the codebook's term) the code is followed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..autoencoder import draw, kl
from ..base import nearest, pytree, static
from ..nets.autoencoder import codebook_loss, gaussian
from ..nets.convolution import convolution
from .data import decode as decode_images

CLAMP = 1e4
ENOUGH = 1e-4  # keeps the division finite


def hinge(real, fake):
    """Half of mean relu(1 - real) plus mean relu(1 + fake)."""
    return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())


def vanilla(real, fake):
    """Half of mean softplus(-real) plus mean softplus(fake)."""
    return 0.5 * (jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean())


DISCRIMINATORS = {"hinge": hinge, "vanilla": vanilla}


@pytree
class Weights:
    """Weights of the terms (leaves); the defaults are the official ones of a KL autoencoder.

    perceptual, kl, codebook, disc, disc_factor:  see the formulas above
    logvar:  of the reconstruction's error; the official code has it as a parameter that no optimiser is given
    start:   the step from which on the discriminator takes part
    disc_loss:  "hinge" or "vanilla"
    """

    perceptual: Any = 1.0
    kl: Any = 1e-6
    codebook: Any = 1.0
    disc: Any = 0.5
    disc_factor: Any = 1.0
    logvar: Any = 0.0
    start: Any = 50_001
    disc_loss: str = static(default="hinge")

    def __post_init__(self):
        if self.disc_loss not in DISCRIMINATORS:
            raise ValueError(f"disc_loss {self.disc_loss!r} is unknown: {nearest(self.disc_loss, DISCRIMINATORS)}")


def adaptive_weight(by_nll, by_g, weight):
    """clamp(|by_nll| / (|by_g| + 1e-4), 0, 1e4) * weight of the gradients of both terms by the last kernel; no gradient."""
    ratio = jnp.linalg.norm(by_nll.ravel()) / (jnp.linalg.norm(by_g.ravel()) + ENOUGH)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, CLAMP) * weight)


def generator(weights, x, rec, latent, *, perceptual, judge, last, step, summed):
    """(loss, terms) of the autoencoder for a batch of pictures x and their reconstructions rec (B, H, W, C).

    latent:      KL: (B,) nats; VQ: the codebook loss, a scalar
    perceptual:  perceptual(x, rec) -> (B,), or None: no such term
    judge:       judge(rec) -> logits
    last:        last(cotangent of rec) -> gradient of the decoder's last kernel, where rec is held fixed
    summed:      sums over pictures (KL), or means (VQ)
    """
    size = x.shape[0] if summed else x.size

    def reconstruction(rec):
        distance = jnp.zeros(x.shape[:1], x.dtype) if perceptual is None else perceptual(x, rec)
        error = jnp.abs(x - rec) + weights.perceptual * distance[:, None, None, None]
        return (error / jnp.exp(weights.logvar) + weights.logvar).sum() / size, (error, distance)

    def adversarial(rec):
        g = lambda rec: -judge(rec).mean()
        still = jax.lax.stop_gradient(rec)
        by_nll = last(jax.grad(lambda r: reconstruction(r)[0])(still))
        w = adaptive_weight(by_nll, last(jax.grad(g)(still)), weights.disc)
        return g(rec), w.astype(x.dtype), jnp.asarray(weights.disc_factor, x.dtype)

    def without(rec):
        return (jnp.zeros((), x.dtype),) * 3

    nll, (error, distance) = reconstruction(rec)
    # Not a `where`: before the start neither the discriminator runs nor two more backward passes
    g, w, factor = jax.lax.cond(jnp.asarray(step) >= weights.start, adversarial, without, rec)
    latent = latent.sum() / x.shape[0] if summed else jnp.asarray(latent)
    loss = nll + (weights.kl if summed else weights.codebook) * latent + w * factor * g
    terms = {"nll": nll, "rec": error.mean(), "perceptual": distance.mean(), "kl" if summed else "codebook": latent,
             "g": g, "d_weight": w, "disc_factor": factor}  # fmt: skip
    return loss, terms


def discriminator(weights, x, rec, *, judge, step):
    """(loss, terms) of the discriminator; 0, with zero gradients, before the start. ``judge`` normalises each batch alone."""

    def on(x, rec):
        real, fake = judge(x), judge(rec)
        loss = weights.disc_factor * DISCRIMINATORS[weights.disc_loss](real, fake)
        return tuple(jnp.asarray(a, x.dtype) for a in (loss, real.mean(), fake.mean()))

    def off(x, rec):
        return (jnp.zeros((), x.dtype),) * 3

    given = (jax.lax.stop_gradient(x), jax.lax.stop_gradient(rec))
    loss, real, fake = jax.lax.cond(jnp.asarray(step) >= weights.start, on, off, *given)
    return loss, {"logits_real": real, "logits_fake": fake}


def codebook_use(indices, codes: int):
    """{"perplexity", "used"} of a batch's indices: exp of the entropy of how often each code occurs; how many occur."""
    share = jnp.zeros(codes).at[indices.ravel()].add(1.0) / indices.size
    return {"perplexity": jnp.exp(-(share * jnp.log(share + 1e-10)).sum()), "used": (share > 0).sum()}


# --- networks -------------------------------------------------------------------------------------------------------


def players(net, disc, weights=None, *, perceptual=None, beta=0.25, legacy=True, decode=decode_images):
    """{"autoencoder": f, "discriminator": f} for ``step.train_step``: both optimisers in one compiled step, in this order, so
    that the discriminator sees the reconstructions of the autoencoder that has just moved.

    net:         ``nets.AutoencoderKL`` (latents are draws) or ``nets.AutoencoderVQ``
    disc:        ``nets.PatchDiscriminator``; its params are {"params": ...} without running statistics, which training never
                 reads
    weights:     :class:`Weights`; default the official ones of the network's kind with start 0 for VQ
    perceptual:  perceptual(x, y) -> (B,), such as ``zoo.perceptual()``
    beta, legacy: of :func:`diffjax.nets.autoencoder.codebook_loss`
    decode:      of a batch as stored to {"x": (B, H, W, C) in [-1, 1]}
    """
    quantised = hasattr(net, "quantise")
    if weights is None:
        weights = Weights(disc=0.75, start=0) if quantised else Weights()

    def reconstruct(params, x, key):
        """rec, what the latent costs, terms, and what feeds the last convolution."""
        h = net.apply(params, x, method="encode")
        if quantised:
            q = net.apply(params, h, method="quantise")
            z, cost, terms = q.z, codebook_loss(h, q.codes, beta, legacy), codebook_use(q.indices, net.codes)
        else:
            mean, logvar = gaussian(h)
            z, cost, terms = draw(key, mean, logvar), jax.vmap(kl)(mean, logvar), {}
        rec, kept = net.apply(params, z, method="decode", mutable=["intermediates"])
        return rec, cost, terms, kept["intermediates"]["decoder"]["features"][0]

    def autoencoder(everyone, key, batch, step):
        params, judged = everyone["autoencoder"], jax.lax.stop_gradient(everyone["discriminator"])
        x = decode(batch)["x"]
        rec, cost, more, features = reconstruct(params, x, key)
        kernel = params["params"]["decoder"]["conv_out"]["kernel"]
        fixed = jax.lax.stop_gradient((features, kernel, rec))

        def last(cotangent):
            features, kernel, rec = fixed
            cotangent = cotangent * (1 - jnp.square(rec)) if net.tanh else cotangent
            paint = lambda k: convolution(features, k.astype(features.dtype), (1, 1), ((1, 1), (1, 1)))
            return jax.vjp(paint, kernel)[1](cotangent.astype(features.dtype))[0]

        loss, terms = generator(weights, x, rec, cost, perceptual=perceptual, last=last, step=step, summed=not quantised,
                                judge=lambda rec: disc.apply(judged, rec, train=True))  # fmt: skip
        return loss, terms | more

    def judge(everyone, key, batch, step):
        x = decode(batch)["x"]
        params = jax.lax.stop_gradient(everyone["autoencoder"])
        given = lambda x: (x, reconstruct(params, x, key)[0])
        started = jnp.asarray(step) >= weights.start
        x, rec = jax.lax.cond(started, given, lambda x: (x, x), x)  # before the start nothing looks at it
        return discriminator(weights, x, rec, step=step, judge=lambda a: disc.apply(everyone["discriminator"], a, train=True))

    return {"autoencoder": autoencoder, "discriminator": judge}


def adam(rate):
    """Adam of both players in the official code: betas 0.5 and 0.9."""
    return optax.adam(rate, b1=0.5, b2=0.9)
