"""The Gaussian forward process between any two times, from the ratio of signal-to-noise ratios.

With r = SNR(t) / SNR(s) = (alpha_t sigma_s / (alpha_s sigma_t))^2, s below t:

    q(x_t | x_0)      = N(alpha_t x_0, sigma_t^2)
    q(x_t | x_s)      = N(alpha_t / alpha_s x_s, sigma_t^2 (1 - r))
    q(x_s | x_t, x_0) = N(alpha_s (1 - r) x_0 + alpha_t sigma_s^2 / (alpha_s sigma_t^2) x_t, sigma_s^2 (1 - r))

The ratio form holds for variance-preserving and variance-exploding schedules alike, is exact at s = 0 (r = 0) and
keeps its digits in float32 where 1 - abar_t / abar_s would not. Sources: Ho et al. 2020, eqs. 4 and 7; Kingma et al.
2021, appendix A. For a DDPM table one step below t: sigma_t^2 (1 - r) = beta_t.

The same process in continuous time is dx = f x dt + g dw (:func:`sde`; Song et al. 2021, section 3).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .base import expand, is_concrete, namespace, safe_divide, safe_sqrt


def _pair(schedule, t, s):
    return schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)


def snr_ratio(schedule, t, s):
    """r = SNR(t) / SNR(s), in [0, 1] for s <= t; 1 at s = t."""
    alpha_t, sigma_t, alpha_s, sigma_s = _pair(schedule, t, s)
    xp = namespace(alpha_t, sigma_t, alpha_s, sigma_s)
    return xp.where(t == s, 1.0, safe_divide(alpha_t * sigma_s, alpha_s * sigma_t) ** 2)


def marginal(schedule, t):
    """(alpha_t, sigma_t): mean factor and standard deviation of q(x_t | x_0)."""
    return schedule.alpha(t), schedule.sigma(t)


def transition(schedule, t, s):
    """(a, std) of q(x_t | x_s) = N(a x_s, std^2), s <= t."""
    alpha_t, sigma_t, alpha_s, _ = _pair(schedule, t, s)
    return safe_divide(alpha_t, alpha_s), safe_sqrt(sigma_t**2 * (1 - snr_ratio(schedule, t, s)))


def posterior(schedule, t, s):
    """(c_0, c_t, std) of q(x_s | x_t, x_0) = N(c_0 x_0 + c_t x_t, std^2), s <= t."""
    alpha_t, sigma_t, alpha_s, sigma_s = _pair(schedule, t, s)
    r = snr_ratio(schedule, t, s)
    xp = namespace(r)
    c_t = xp.where(t == s, 1.0, safe_divide(alpha_t * sigma_s**2, alpha_s * sigma_t**2))
    return alpha_s * (1 - r), c_t, safe_sqrt(sigma_s**2 * (1 - r))


def q_sample(schedule, x_0, t, noise):
    """A draw from q(x_t | x_0): alpha_t x_0 + sigma_t noise. Shapes of ``x_0``; ``t`` scalar or over leading axes."""
    return expand(schedule.alpha(t), x_0) * x_0 + expand(schedule.sigma(t), x_0) * noise


def sde(schedule, t):
    """(f, g^2) of the forward process dx = f(t) x dt + g(t) dw, whose marginals are the schedule's (Song et al. 2021).

        f = d log alpha / dt,     g^2 = d sigma^2 / dt - 2 f sigma^2

    by differentiation of ``schedule.smooth``; shapes of ``t`` in (0, T]. t = 0 gives the limit from above. Known values give
    float64 numpy, traced ones arrays of their dtype, right to a few roundings down to t = 1e-5.
    A table's log-SNR is linear between its entries, so that its slope is a staircase: f and g^2 jump at whole t, which belong
    to the interval below. Integrals over an interval are exact; at a whole t, g^2 is more than beta (linear_betas(1000): 44 %
    at t = 2, 0.5 % at 100). Where alpha = 0, f is minus and g^2 plus infinity.
    The reverse process has drift f x - g^2 score, the probability-flow ODE f x - g^2 score / 2.
    """
    if is_concrete(schedule, t):
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            f, g2 = _sde(jax.tree.map(jnp.asarray, schedule), jnp.asarray(t, float))
            return np.asarray(f), np.asarray(g2)
    return _sde(schedule, jnp.asarray(t, float) if not hasattr(t, "dtype") else jnp.asarray(t))


def _sde(schedule, t):
    (_, variance), (f, slope) = jax.jvp(schedule.smooth, (t,), (jnp.ones_like(t),))
    none_left = schedule.alpha(t) == 0
    infinite = jnp.asarray(jnp.inf, t.dtype)
    return jnp.where(none_left, -infinite, f), jnp.where(none_left, infinite, slope - 2 * f * variance)


def entropy(variance):
    """Differential entropy of N(., variance) per coordinate, in nats."""
    xp = namespace(variance)
    return 0.5 * (1 + xp.log(2 * xp.pi * variance))


def kl_gaussian(mean_1, log_var_1, mean_2, log_var_2):
    """KL(N(mean_1, e^log_var_1) || N(mean_2, e^log_var_2)) per coordinate, in nats."""
    xp = namespace(mean_1, log_var_1, mean_2, log_var_2)
    return 0.5 * (log_var_2 - log_var_1 + xp.exp(log_var_1 - log_var_2) - 1 + (mean_1 - mean_2) ** 2 * xp.exp(-log_var_2))
