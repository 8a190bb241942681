"""What a network is trained on, for ONE image: the step maps these over a batch.

    x_t = alpha x_0 + sigma eps        v = alpha eps - sigma x_0

Every loss takes ``net(x_t, i) -> output`` with i the network's own time (i = t - 1 for a table, unless ``time`` says
otherwise) and returns ``(loss, terms)``. A squared error in eps or v is a squared error in x_0 times SNR or, if
alpha^2 + sigma^2 = 1, SNR + 1: a weighting only says which of these is wanted. ``reduction`` says what becomes of the errors
of an image's pixels: "mean", or "half_sum", half their sum (the score-SDE code's ``reduce_mean=False``).
Absolute errors (``norm="l1"``): Saharia et al. 2021, arXiv:2104.07636, section 2.1.

Sources: Ho et al. 2020 (eps); Salimans and Ho 2022, arXiv:2202.00512 (v, and losses equal to x_0 and eps ones);
Nichol and Dhariwal 2021, arXiv:2102.09672 (hybrid); Hang et al. 2023, arXiv:2303.09556 (min-SNR); Vincent 2011 and Song et al.
2021, arXiv:2011.13456, eq. 7 (score matching); Song et al. 2021, arXiv:2101.09258 (likelihood weighting); Liu et al. 2023,
arXiv:2209.03003, and Lipman et al. 2023, arXiv:2210.02747 (flow matching); Rombach et al. 2022, arXiv:2112.10752 (L1, learned
log-variance, the term of the bound).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .. import process
from ..base import expand, nearest
from ..denoisers import as_time, from_eps
from ..kernels import DDPM
from ..likelihood import variational

WEIGHTINGS = ("plain", "x0", "eps", "v", "velocity", "min_snr")
REDUCTIONS = ("mean", "half_sum")
NORMS = ("l2", "l1")


def reduce(squares, reduction: str = "mean"):
    """One number of the squared errors of an image's pixels. Raises ValueError for an unknown reduction."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction {reduction!r} is unknown: {nearest(reduction, REDUCTIONS)}")
    return jnp.mean(squares) if reduction == "mean" else 0.5 * jnp.sum(squares)


def weight(name: str, prediction: str, log_snr, gamma=5.0):
    """The factor that turns the squared error of ``prediction`` ("eps", "x0", "v", "velocity") into the one ``name`` wants.

    plain: 1.  x0, eps, v, velocity: as if that were predicted; v where alpha^2 + sigma^2 is not 1: of x_t divided by its
    root.  min_snr: min(SNR, gamma) times the error of x_0.
    Raises ValueError for an unknown name.
    """
    if name not in WEIGHTINGS:
        raise ValueError(f"weighting {name!r} is unknown: {nearest(name, WEIGHTINGS)}")
    if name == "plain" or name == prediction:
        return jnp.ones_like(log_snr)
    # logarithms of the weights on the error of x_0; SNR + 1 = exp(softplus(log SNR))
    log = {"x0": 0.0 * log_snr, "eps": log_snr, "v": jax.nn.softplus(log_snr)}
    log["velocity"] = 2 * jax.nn.softplus(0.5 * log_snr)  # (sqrt(SNR) + 1)^2
    log["min_snr"] = jnp.minimum(log_snr, jnp.log(gamma))
    return jnp.exp(log[name] - log[prediction])


def v_loss(net, schedule, x_0, t, noise, **options):
    """mean over pixels of |net - v|^2, weighted.

    x_0, noise: one image in [-1, 1] (or a latent of about unit deviation) and unit noise; t in (0, T]; options: of
    :func:`error`.
    """
    v = expand(schedule.alpha(t), noise) * noise - expand(schedule.sigma(t), x_0) * x_0
    return error("v", v, net, schedule, x_0, t, noise, **options)


def eps_loss(net, schedule, x_0, t, noise, **options):
    """mean over pixels of |net - eps|^2, weighted. Arguments as for :func:`v_loss`."""
    return error("eps", noise, net, schedule, x_0, t, noise, **options)


def x0_loss(net, schedule, x_0, t, noise, **options):
    """mean over pixels of |net - x_0|^2, weighted. Arguments as for :func:`v_loss`."""
    return error("x0", x_0, net, schedule, x_0, t, noise, **options)


def velocity_loss(net, schedule, x_0, t, noise, **options):
    """Flow matching: |net - (eps - x_0)|^2, weighted; eps - x_0 is the velocity dx_t/dt of ``schedules.RectifiedFlow``.
    Arguments as for :func:`v_loss`."""
    return error("velocity", noise - x_0, net, schedule, x_0, t, noise, **options)


def score_loss(net, schedule, x_0, t, noise, *, likelihood=False, weighting="plain", gamma=5.0, time=None, reduction="mean"):
    """Denoising score matching: |sigma net + eps|^2 for a network that gives the score; an error in eps, weighted as one.

    likelihood: g(t)^2 |net + eps / sigma|^2 instead: its mean over uniform t bounds the negative log-likelihood, but its
                variance is large; times drawn by ``times.LogSNR`` with their weights have the same mean
    t:          in (0, T] of a formula, or a row 1..T of a table (the discrete losses of SMLD)
    Other arguments as for :func:`v_loss`.
    """
    x_t, sigma = process.q_sample(schedule, x_0, t, noise), expand(schedule.sigma(t), noise)
    mse = reduce((sigma * net(x_t, as_time(time)(schedule, t)) + noise) ** 2, reduction)
    factor = weight(weighting, "eps", schedule.log_snr(t), gamma)
    if likelihood:
        factor = factor * process.sde(schedule, t)[1] / schedule.sigma(t) ** 2
    return mse * jnp.asarray(factor).astype(mse.dtype), {"mse": mse}


def error(prediction, target, net, schedule, x_0, t, noise, *, weighting="plain", gamma=5.0, time=None, reduction="mean",
          norm="l2", log_var=None, simple_weight=1.0, elbo_weight=0.0):  # fmt: skip
    """The error d of ``net`` at x_t against ``target``, and what latent diffusion (Rombach et al. 2022) makes of it:

        simple_weight (w d / exp(log_var_t) + log_var_t) + elbo_weight lambda_t d,   terms: "mse" (or "mae") d

    weighting, gamma:  w, see :func:`weight`; time: what the network is told (``denoisers.times``); reduction: :func:`reduce`
    norm:      "l2", squares of the errors, or "l1", their magnitudes: of w, which belongs to squares, the root is then taken
    log_var:   (T,), the learned log-variance of the error at each row, its gradient included; None: 0
    elbo_weight:  of one term of the variational bound, lambda_t = beta_t / (2 (1 - beta_t) (1 - abar_(t-1))); at t = 1, where
               it is infinite, that of t = 2, as in the official code; only for a network of eps on a table
    Raises ValueError for unknown names, and for an ``elbo_weight`` where there is no such term.
    """
    if norm not in NORMS:
        raise ValueError(f"norm {norm!r} is unknown: {nearest(norm, NORMS)}")
    x_t = process.q_sample(schedule, x_0, t, noise)
    difference = net(x_t, as_time(time)(schedule, t)) - target
    d = reduce(difference**2 if norm == "l2" else jnp.abs(difference), reduction)
    w = weight(weighting, prediction, schedule.log_snr(t), gamma)
    loss = d * (w if norm == "l2" else jnp.sqrt(w)).astype(d.dtype)
    if log_var is not None:
        rows = jnp.arange(1, log_var.shape[0] + 1, dtype=d.dtype)
        here = jnp.interp(jnp.asarray(t, d.dtype), rows, log_var.astype(d.dtype))
        loss = loss * jnp.exp(-here) + here
    loss = simple_weight * loss
    if not (isinstance(elbo_weight, (int, float)) and elbo_weight == 0):
        loss = loss + elbo_weight * elbo_factor(prediction, schedule, t).astype(d.dtype) * d
    return loss, {"mse" if norm == "l2" else "mae": d}


def elbo_factor(prediction, schedule, t):
    """lambda_t of :func:`error`. Raises ValueError for another prediction than eps and for a formula."""
    if prediction != "eps" or not schedule.discrete:
        raise ValueError(f"elbo_weight is of the bound of a network of eps on a table, not of {prediction}: use elbo_weight=0")
    rows = np.arange(2, schedule.T + 1)  # a table first: on the host in float64, where 1 - share loses nothing
    share = (schedule.alpha(rows) / schedule.alpha(rows - 1)) ** 2  # 1 - beta_t
    factors = (1 - share) / (2 * share * schedule.sigma(rows - 1) ** 2)
    return jnp.interp(jnp.asarray(t, jnp.result_type(float)), rows, jnp.asarray(factors, jnp.result_type(float)))


def regression_loss(net, schedule, x_0, t, noise, *, norm="l2"):
    """mean over pixels of |net(0, 0) - x_0|^2, with norm="l1" of its magnitude: a network of the condition alone, the baseline
    of conditional diffusion.

    It has the arguments of the other losses, so that the same network, data and steps train it: ``nets.SR3UNet(told=None)``
    sees zeros in place of x_t, and the condition. ``schedule``, ``t`` and ``noise`` are not used.
    """
    if norm not in NORMS:
        raise ValueError(f"norm {norm!r} is unknown: {nearest(norm, NORMS)}")
    apart = net(jnp.zeros_like(x_0), jnp.zeros(jnp.shape(t), x_0.dtype)) - x_0
    d = jnp.mean(apart**2 if norm == "l2" else jnp.abs(apart))
    return d, {"mse" if norm == "l2" else "mae": d}


def hybrid_loss(net, schedule, x_0, t, noise, *, vb_weight=None, weighting="plain", gamma=5.0, time=None, cdf="exact"):
    """eps error + ``vb_weight`` x one term of the variational bound, for a network with a learned variance share.

    net:        gives 2C channels: eps, then v in about [-1, 1], which mixes log beta_t and the log posterior variance
    t:          whole, 1..T;  x_0: on the 8-bit grid in [-1, 1]
    vb_weight:  default T / 1000: the paper's 0.001 times the bound of T terms. guided-diffusion's "MSE" uses 1
    cdf:        of the bound's last term, "exact" or guided-diffusion's "tanh" (``likelihood.variational``)
    The bound's gradient reaches only v: its mean is held fixed. terms: ``mse``, ``vb`` (bits per dimension).
    Raises ValueError if the network does not give twice the channels.
    """
    x_t = process.q_sample(schedule, x_0, t, noise)
    output = net(x_t, as_time(time)(schedule, t))
    if output.shape[-1] != 2 * x_0.shape[-1]:
        raise ValueError(
            f"the network gives {output.shape[-1]} channels for images of {x_0.shape[-1]}: the hybrid loss "
            f"needs {2 * x_0.shape[-1]}"
        )
    eps, share = jnp.split(output, 2, axis=-1)
    mse = jnp.mean((eps - noise) ** 2)
    held = lambda x, i: (jax.lax.stop_gradient(eps), share)
    kernel = DDPM(schedule, variance="learned_range")
    p, row = from_eps(held, None, schedule)(x_t, t), variational.row_at(kernel, t, x_0.dtype)
    vb = variational.term(kernel, p, x_0, row, cdf=cdf)
    factor = weight(weighting, "eps", schedule.log_snr(t), gamma).astype(mse.dtype)
    return factor * mse + (schedule.T / 1000 if vb_weight is None else vb_weight) * vb, {"mse": mse, "vb": vb}
