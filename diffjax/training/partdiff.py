"""Latent alignment: what PartDiff trains on (Zhao et al. 2023), for ONE pair of images; ``methods.partdiff`` has the formulas.

    x^_t = alpha_t (lambda_t high + (1 - lambda_t) low) + sigma_t eps,     0 < t <= K,     lambda_t = (K - t) / K

    rule = times.Uniform(whole=True, top=K)                               # with ``mean_loss``: t in 1..K
    example = partdiff.example_loss(net, schedule, K)                     # in place of ``step.example_loss``

One network for each K, as published, or one for all of them that is told lambda (ours): K = (least, most), and ``tell``.
Then ``top`` is the most. lambda = 1 is ordinary training, so that such a network knows late starts without alignment as well.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .. import process
from ..base import expand, in_order, in_range, nearest
from ..denoisers import as_time
from ..methods.partdiff import below, check_target, kl_weight, mixed, reach, share, with_plane
from .data import decode as decode_images

PREDICTIONS = ("eps", "x0", "v")
NORMS = ("l2", "l1")
WEIGHTINGS = ("plain", "kl")


def aligned_target(prediction, target, schedule, low, high, t, noise, K, *, ahead=0.0, unit=1.0):
    """(x^_t, what a network that predicts ``prediction``, "eps", "x0" or "v", is to say of it) for ``target``.

    low, high, noise: one image in [-1, 1] enlarged, the one wanted, and unit noise; t in (0, K]. K, ahead, unit: of
    ``methods.partdiff.share`` and ``reach``. Raises ValueError for unknown words.
    """
    check_target(target)
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction {prediction!r} is unknown: {nearest(prediction, PREDICTIONS)}")
    lam = share(t, K, ahead)
    x_t = process.q_sample(schedule, mixed(low, high, lam), t, noise)
    m = reach(target, schedule, t, K, ahead, unit)
    x0 = mixed(low, high, m)
    if prediction == "x0":
        return x_t, x0
    alpha, sigma = expand(schedule.alpha(t), x0), expand(schedule.sigma(t), x0)
    eps = noise - alpha / sigma * expand(m - lam, x0) * (
        high - low
    )  # (x_t - alpha x0) / sigma, exactly noise where m = lambda
    return x_t, eps if prediction == "eps" else alpha * eps - sigma * x0


def loss(net, schedule, low, high, t, noise, K, *, target="eps", prediction="eps", ahead=0.0, unit=1.0, norm="l2",
         weighting="plain", time=None):  # fmt: skip
    """(mean over pixels of |net - target|^2 ("l2") or |net - target| ("l1"), terms) for ``net(x^_t, i) -> output``.

    weighting: "plain", as SR3; "kl": the KL to the interpolated posterior of the step t -> t - unit, per pixel, where
               target is "eps" or "drift" and the norm "l2"; the last step, whose variance is 0, is weighed as the one above it
    time:      what the network is told (``denoisers.times``); other arguments as of :func:`aligned_target`
    Raises ValueError for unknown words.
    """
    for what, name, known in (("norm", norm, NORMS), ("weighting", weighting, WEIGHTINGS)):
        if name not in known:
            raise ValueError(f"{what} {name!r} is unknown: {nearest(name, known)}")
    x_t, wanted = aligned_target(prediction, target, schedule, low, high, t, noise, K, ahead=ahead, unit=unit)
    error = net(x_t, as_time(time)(schedule, t)) - wanted
    size = jnp.mean(error**2 if norm == "l2" else jnp.abs(error))
    if weighting == "plain":
        return size, {"error": size}
    if norm != "l2" or target == "unmixed":
        raise ValueError('weighting "kl" is that of target "eps" or "drift" with norm "l2": use "plain"')
    s = below(t, unit)
    above = process.posterior(schedule, t + (t - s), t)[2] ** 2
    w = kl_weight(schedule, t, s, jnp.where(s > 0, 1e-20, above))
    alpha, sigma = process.marginal(schedule, t)
    per_eps = {"eps": 1.0, "x0": (alpha / sigma) ** 2, "v": alpha**2}[prediction]  # |error in eps|^2 of one in the prediction
    return size * jnp.asarray(w * per_eps).astype(size.dtype), {"error": size}


def example_loss(net, schedule, K, *, low=lambda cond: cond, tell=None, decode=decode_images, time=None, **settings):
    """-> f(params, key, example, t, train) -> (loss, terms) of one example {"x": high, "cond": ...}, for ``step.mean_loss``,
    ``train_step`` and ``held_out``.

    net:     ``net.apply(params, x, i, cond, train=..., rngs={"dropout": key})``
    K:       one number; or (least, most): then K is drawn uniformly from what is at least t, and ``tell`` is needed
    low:     condition -> low-resolution image, enlarged: (H, W, C) in [-1, 1]; default: the condition itself
    tell:    (low, lambda) -> what the network is told in place of the condition (``methods.partdiff.with_plane``)
    decode, time: as of ``step.example_loss``; settings: of :func:`loss`
    Raises ValueError for K not above 0, several K without ``tell``, and at the first call for an example without a condition.
    """
    several = isinstance(K, (tuple, list))
    if several and tell is None:
        raise ValueError(f"K {tuple(K)} is a range: the network must be told lambda, tell=methods.partdiff.with_plane")
    in_range("K", K[0] if several else K, 1e-9)
    if several:
        in_order("K", *K)

    def f(params, key, example, t, train):
        k_noise, k_K, k_dropout, k_decode = jax.random.split(key, 4)
        example = decode(example, k_decode)
        if "cond" not in example:
            raise ValueError('an example of PartDiff is {"x": high, "cond": low}, low enlarged: this one has no "cond"')
        high, small = example["x"], low(example["cond"])
        drawn = K
        if several:
            least = jnp.maximum(t, K[0])
            drawn = least + (K[1] - least) * jax.random.uniform(k_K)
        told = example["cond"] if tell is None else tell(small, share(t, drawn, settings.get("ahead", 0.0)))
        apply = lambda x, i: net.apply(params, x, i, told, train=train, rngs={"dropout": k_dropout})
        noise = jax.random.normal(k_noise, high.shape, high.dtype)
        return loss(apply, schedule, small, high, t, noise, drawn, time=time, **settings)

    return f


__all__ = ["NORMS", "PREDICTIONS", "WEIGHTINGS", "aligned_target", "example_loss", "loss", "with_plane"]
