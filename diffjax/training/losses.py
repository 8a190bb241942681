"""What a network is trained on, for ONE image: the step maps these over a batch.

    x_t = alpha x_0 + sigma eps        v = alpha eps - sigma x_0

Every loss takes ``net(x_t, i) -> output`` with i the network's own time (i = t - 1 for a table, unless ``time`` says
otherwise) and returns ``(loss, terms)``. A squared error in eps or v is a squared error in x_0 times SNR or, if
alpha^2 + sigma^2 = 1, SNR + 1: a weighting only says which of these is wanted. ``reduction`` says what becomes of the errors
of an image's pixels: "mean", or "half_sum", half their sum (the score-SDE code's ``reduce_mean=False``).
Absolute errors (``power=1``): Saharia et al. 2021, arXiv:2104.07636, section 2.1.

Sources: Ho et al. 2020 (eps); Salimans and Ho 2022, arXiv:2202.00512 (v, and losses equal to x_0 and eps ones);
Nichol and Dhariwal 2021, arXiv:2102.09672 (hybrid); Hang et al. 2023, arXiv:2303.09556 (min-SNR); Vincent 2011 and Song et al.
2021, arXiv:2011.13456, eq. 7 (score matching); Song et al. 2021, arXiv:2101.09258 (likelihood weighting); Liu et al. 2023,
arXiv:2209.03003, and Lipman et al. 2023, arXiv:2210.02747 (flow matching).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .. import process
from ..base import expand, nearest
from ..denoisers import as_time, from_eps
from ..kernels import DDPM
from ..likelihood import variational

WEIGHTINGS = ("plain", "x0", "eps", "v", "velocity", "min_snr")
REDUCTIONS = ("mean", "half_sum")


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


def v_loss(net, schedule, x_0, t, noise, *, weighting="plain", gamma=5.0, time=None, reduction="mean", power=2):
    """mean over pixels of |net - v|^power, weighted.

    x_0, noise: one image in [-1, 1] and unit noise; t in (0, T]; time: what the network is told (``denoisers.times``).
    power: 2, or 1 (SR3): of the weighting, which is one of squares, the root is then taken, and the term is "mae", not "mse".
    """
    v = expand(schedule.alpha(t), noise) * noise - expand(schedule.sigma(t), x_0) * x_0
    return _error("v", v, net, schedule, x_0, t, noise, weighting, gamma, time, reduction, power)


def eps_loss(net, schedule, x_0, t, noise, *, weighting="plain", gamma=5.0, time=None, reduction="mean", power=2):
    """mean over pixels of |net - eps|^power, weighted. Arguments as for :func:`v_loss`."""
    return _error("eps", noise, net, schedule, x_0, t, noise, weighting, gamma, time, reduction, power)


def x0_loss(net, schedule, x_0, t, noise, *, weighting="plain", gamma=5.0, time=None, reduction="mean", power=2):
    """mean over pixels of |net - x_0|^power, weighted. Arguments as for :func:`v_loss`."""
    return _error("x0", x_0, net, schedule, x_0, t, noise, weighting, gamma, time, reduction, power)


def velocity_loss(net, schedule, x_0, t, noise, *, weighting="plain", gamma=5.0, time=None, reduction="mean", power=2):
    """Flow matching: |net - (eps - x_0)|^2, weighted; eps - x_0 is the velocity dx_t/dt of ``schedules.RectifiedFlow``.
    Arguments as for :func:`v_loss`."""
    return _error("velocity", noise - x_0, net, schedule, x_0, t, noise, weighting, gamma, time, reduction, power)


def score_loss(net, schedule, x_0, t, noise, *, likelihood=False, weighting="plain", gamma=5.0, time=None, reduction="mean"):
    """Denoising score matching: |sigma net + eps|^2 for a network that gives the score; an error in eps, weighted as one.

    likelihood: g(t)^2 |net + eps / sigma|^2 instead: its mean over uniform t bounds the negative log-likelihood, but its
                variance is large; times drawn by ``times.LogSNR`` with their weights have the same mean
    t:          in (0, T] of a formula, or a row 1..T of a table (the discrete losses of SMLD)
    Other arguments as for :func:`v_loss`.
    """
    x_t, sigma = process.q_sample(schedule, x_0, t, noise), expand(schedule.sigma(t), noise)
    error = reduce((sigma * net(x_t, as_time(time)(schedule, t)) + noise) ** 2, reduction)
    factor = weight(weighting, "eps", schedule.log_snr(t), gamma)
    if likelihood:
        factor = factor * process.sde(schedule, t)[1] / schedule.sigma(t) ** 2
    return error * jnp.asarray(factor).astype(error.dtype), {"mse": error}


def _error(prediction, target, net, schedule, x_0, t, noise, weighting, gamma, time, reduction, power):
    if power not in (1, 2):
        raise ValueError(f"power {power} is unknown: use 2 (squared errors) or 1 (absolute ones)")
    x_t = process.q_sample(schedule, x_0, t, noise)
    apart = net(x_t, as_time(time)(schedule, t)) - target
    error = reduce(apart**2 if power == 2 else jnp.abs(apart), reduction)
    factor = weight(weighting, prediction, schedule.log_snr(t), gamma)
    factor = factor if power == 2 else jnp.sqrt(factor)
    return error * factor.astype(error.dtype), {"mse" if power == 2 else "mae": error}


def regression_loss(net, schedule, x_0, t, noise, *, power=2):
    """mean over pixels of |net(0, 0) - x_0|^power: a network of the condition alone, the baseline of conditional diffusion.

    It has the arguments of the other losses, so that the same network, data and steps train it: ``nets.SR3UNet(told=None)``
    sees zeros in place of x_t, and the condition. ``schedule``, ``t`` and ``noise`` are not used.
    """
    apart = net(jnp.zeros_like(x_0), jnp.zeros(jnp.shape(t), x_0.dtype)) - x_0
    error = jnp.mean(apart**2 if power == 2 else jnp.abs(apart))
    return error, {"mse" if power == 2 else "mae": error}


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
