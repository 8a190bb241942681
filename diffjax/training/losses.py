"""What a network is trained on, for ONE image: the step maps these over a batch.

    x_t = alpha x_0 + sigma eps        v = alpha eps - sigma x_0

Every loss takes ``net(x_t, i) -> output`` with i the network's own time (i = t - 1 for a table) and returns
``(loss, terms)``. A squared error in eps or v is a squared error in x_0 times SNR or, if alpha^2 + sigma^2 = 1,
SNR + 1: a weighting only says which of these is wanted.

Sources: Ho et al. 2020 (eps); Salimans and Ho 2022, arXiv:2202.00512 (v, and losses equal to x_0 and eps ones);
Nichol and Dhariwal 2021, arXiv:2102.09672 (hybrid); Hang et al. 2023, arXiv:2303.09556 (min-SNR).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .. import process
from ..base import expand, nearest

WEIGHTINGS = ("plain", "x0", "eps", "v", "min_snr")


def weight(name: str, prediction: str, log_snr, gamma=5.0):
    """The factor that turns the squared error of ``prediction`` ("eps", "x0" or "v") into the one ``name`` wants.

    plain: 1.  x0, eps, v: as if that were predicted.  min_snr: min(SNR, gamma) times the error of x_0.
    Raises ValueError for an unknown name.
    """
    if name not in WEIGHTINGS:
        raise ValueError(f"weighting {name!r} is unknown: {nearest(name, WEIGHTINGS)}")
    if name == "plain" or name == prediction:
        return jnp.ones_like(log_snr)
    # logarithms of the weights on the error of x_0; SNR + 1 = exp(softplus(log SNR))
    log = {"x0": 0.0 * log_snr, "eps": log_snr, "v": jax.nn.softplus(log_snr)}
    log["min_snr"] = jnp.minimum(log_snr, jnp.log(gamma))
    return jnp.exp(log[name] - log[prediction])


def v_loss(net, schedule, x_0, t, noise, *, weighting="plain", gamma=5.0):
    """mean over pixels of |net - v|^2, weighted. x_0, noise: one image in [-1, 1] and unit noise; t in (0, T]."""
    x_t = process.q_sample(schedule, x_0, t, noise)
    v = expand(schedule.alpha(t), noise) * noise - expand(schedule.sigma(t), x_0) * x_0
    error = jnp.mean((net(x_t, schedule.network_time(t)) - v) ** 2)
    return error * weight(weighting, "v", schedule.log_snr(t), gamma).astype(error.dtype), {"mse": error}


def eps_loss(net, schedule, x_0, t, noise, *, weighting="plain", gamma=5.0):
    """mean over pixels of |net - eps|^2, weighted. Arguments as for :func:`v_loss`."""
    x_t = process.q_sample(schedule, x_0, t, noise)
    error = jnp.mean((net(x_t, schedule.network_time(t)) - noise) ** 2)
    return error * weight(weighting, "eps", schedule.log_snr(t), gamma).astype(error.dtype), {"mse": error}


def hybrid_loss(net, schedule, x_0, t, noise, *, vb_weight=1.0, weighting="plain", gamma=5.0):
    """eps error + ``vb_weight`` x variational bound term, for a network with a learned variance share.

    net:        gives 2C channels: eps, then v in about [-1, 1]; log variance = (v + 1) / 2 log beta_t +
                (1 - v) / 2 log posterior variance
    t:          whole, 1..T
    vb_weight:  Nichol and Dhariwal's lambda = 0.001 for a bound summed over T = 1000 steps is T / 1000 here, and their
                code's default for plain "MSE" is 1: the term below is not multiplied by T
    The bound's gradient reaches only the variance: its mean is held fixed. terms: ``mse``, ``vb`` (bits per dimension).
    """
    x_t = process.q_sample(schedule, x_0, t, noise)
    output = net(x_t, schedule.network_time(t))
    if output.shape[-1] != 2 * x_0.shape[-1]:
        raise ValueError(f"the network gives {output.shape[-1]} channels for {x_0.shape[-1]}: the hybrid loss needs twice as many")
    eps, share = jnp.split(output, 2, axis=-1)
    mse = jnp.mean((eps - noise) ** 2)
    alpha, sigma = expand(schedule.alpha(t), x_t), expand(schedule.sigma(t), x_t)
    x_0_hat = (x_t - sigma * jax.lax.stop_gradient(eps)) / alpha
    vb = variational_term(schedule, x_0, x_t, t, x_0_hat, share_log_variance(schedule, share, t))
    factor = weight(weighting, "eps", schedule.log_snr(t), gamma).astype(mse.dtype)
    return factor * mse + vb_weight * vb, {"mse": mse, "vb": vb}


# --- the variational bound, term by term ----------------------------------------------------------------------------


def posterior_log_variance(schedule, t):
    """log variance of q(x_{t-1} | x_t, x_0); at t = 1, where it is -inf, the value of t = 2 (official clipping)."""
    t = jnp.maximum(jnp.asarray(t), 2)
    return 2 * jnp.log(process.posterior(schedule, t, t - 1)[2])


def share_log_variance(schedule, share, t):
    """Nichol and Dhariwal 2021, eq. 15: between log beta_t (share 1) and the log posterior variance (share -1)."""
    high = expand(2 * jnp.log(process.transition(schedule, jnp.asarray(t), jnp.asarray(t) - 1)[1]), share)
    low = expand(posterior_log_variance(schedule, t), share)
    return (share + 1) / 2 * high + (1 - share) / 2 * low


def variational_term(schedule, x_0, x_t, t, x_0_hat, log_variance):
    """L_{t-1} of one image in bits per dimension: KL(q(x_{t-1} | x_t, x_0) || N(mean(x_0_hat), exp(log_variance)));
    at t = 1 the negative log-likelihood of 8-bit pixels."""
    t = jnp.asarray(t)
    c_0, c_t, _ = (expand(c, x_0) for c in process.posterior(schedule, t, t - 1))
    mean, mean_hat = c_0 * x_0 + c_t * x_t, c_0 * x_0_hat + c_t * x_t
    kl = process.kl_gaussian(mean, expand(posterior_log_variance(schedule, t), x_0), mean_hat, log_variance)
    nll = -discretised_log_likelihood(x_0, mean_hat, log_variance / 2)
    return jnp.mean(jnp.where(t == 1, nll, kl)) / np.log(2.0).astype(x_0.dtype)


def discretised_log_likelihood(x, mean, log_std):
    """log probability (nats, per pixel) of 8-bit values on [-1, 1] under N(mean, exp(log_std)^2): the mass of a bin of
    half-width 1/255, open at the two ends, with guided-diffusion's tanh approximation of the Gaussian cdf."""

    def cdf(z):
        return 0.5 * (1 + jnp.tanh(np.sqrt(2 / np.pi).astype(x.dtype) * (z + 0.044715 * z**3)))

    inverse = jnp.exp(-log_std)
    up, down = cdf(inverse * (x - mean + 1 / 255)), cdf(inverse * (x - mean - 1 / 255))
    tiny = 1e-12
    inside = jnp.log(jnp.maximum(up - down, tiny))
    black, white = jnp.log(jnp.maximum(up, tiny)), jnp.log(jnp.maximum(1 - down, tiny))
    return jnp.where(x < -0.999, black, jnp.where(x > 0.999, white, inside))
