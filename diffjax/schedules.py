"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps, log_snr(t) = log alpha^2 / sigma^2, and its inverse.

Tables count t = 0 (clean), 1 ... T; the papers' index is i = t - 1. Formulas use t in [0, 1].
Whatever is known (numbers, numpy, arrays outside ``jit``) gives float64 numpy, traced JAX arrays give JAX arrays.

Sources: Ho et al. 2020 (linear), Nichol & Dhariwal 2021 (cosine), Rombach et al. 2022 (scaled linear), Saharia et al.
2021 (SR3), Sohl-Dickstein et al. 2015, Song et al. 2021 (VP, sub-VP, VE), Karras et al. 2022 (EDM), Liu et al. 2022.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .base import host, in_range, is_concrete, namespace, pytree, safe_divide, safe_sqrt, static

# --- betas of the discrete processes: float64 arrays of shape (T,) ------------------------------------------------


def _whole(T) -> int:
    if isinstance(T, bool) or not isinstance(T, (int, np.integer)) or T < 1:
        raise ValueError(f"T = {T!r} is not a number of steps: give a whole number >= 1, for example 1000")
    return int(T)


def linear_betas(T: int, beta_min: float = 1e-4, beta_max: float = 0.02, rescale: bool = True):
    """Linear betas (Ho et al. 2020). ``rescale`` multiplies by 1000 / T, as guided-diffusion does, so that the noise
    at the end does not depend on T. Raises ValueError where that makes a beta exceed 1 (T < 20 by default)."""
    T = _whole(T)
    scale = 1000 / T if rescale else 1.0
    if not scale * beta_max < 1:
        raise ValueError(
            f"T = {T} makes the last beta {scale * beta_max:.4g}, not below 1: use T > {1000 * beta_max:.0f}, "
            "or fewer rows of a longer schedule (timetables.respaced)"
        )
    return np.linspace(scale * beta_min, scale * beta_max, T, dtype=np.float64)


def cosine_betas(T: int, offset: float = 0.008, max_beta: float = 0.999):
    """1 - f((i + 1) / T) / f(i / T), f(u) = cos^2((u + offset) / (1 + offset) pi / 2), at most ``max_beta``."""
    T = _whole(T)
    f = np.cos((np.arange(T + 1) / T + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], max_beta)


def scaled_linear_betas(T: int, beta_min: float = 0.0015, beta_max: float = 0.0195):
    """Linear in sqrt(beta) (Latent Diffusion)."""
    return np.linspace(beta_min**0.5, beta_max**0.5, _whole(T), dtype=np.float64) ** 2


def sqrt_betas(T: int, beta_min: float = 1e-4, beta_max: float = 0.02):
    """The roots of linear betas ("sqrt" in Latent Diffusion's code)."""
    return np.linspace(beta_min, beta_max, _whole(T), dtype=np.float64) ** 0.5


def sr3_betas(T: int = 2000, beta_min: float = 1e-6, beta_max: float = 0.01):
    """Linear betas: by default SR3's training schedule, with fewer and larger ones its inference schedules. The ends may be
    traced, so that one program searches among them."""
    if is_concrete(beta_min, beta_max):
        return np.linspace(beta_min, beta_max, _whole(T), dtype=np.float64)
    return jnp.linspace(beta_min, beta_max, _whole(T))


def warmup_betas(T: int, fraction: float, beta_min: float = 1e-4, beta_max: float = 0.02):
    """Linear over the first ``fraction`` of the steps, then ``beta_max`` (0: constant betas). Ho et al.'s ablations."""
    T = _whole(T)
    in_range("fraction", fraction, 0, 1, remedy="choose a share of the steps, 0 to 1")
    betas = np.full(T, float(beta_max))
    ramp = int(T * fraction)
    betas[:ramp] = np.linspace(beta_min, beta_max, ramp)
    return betas


def harmonic_betas(T: int):
    """1 / T, 1 / (T - 1), ..., 1: removes the same share of the signal at each step (Sohl-Dickstein et al. 2015; "jsd" in
    Ho et al.'s code). Ends in pure noise, alpha = 0."""
    return 1 / np.linspace(T, 1, _whole(T))


def nonequilibrium_betas(T: int, min_beta: float = 1e-6, first_beta: float = 1e-3):
    """Sohl-Dickstein et al. 2015 as released: 1 / (T - t + 1) squeezed into (min, 1 - 1e-5); the last is close to 1/2."""
    T = _whole(T)
    base = 1 / np.linspace(T, 2, T)
    low = np.full(T, min_beta)
    low[0] += first_beta
    return low + base * (1 - low - 1e-5)


# --- schedules ----------------------------------------------------------------------------------------------------


def _known(a, schedule):
    """(numpy, ``a`` in float64) if both are known, else (jax.numpy, ``a``)."""
    xp = namespace(a, schedule)
    return xp, host(a) if xp is np else a


def _as_floats(schedule, *names):
    """Fields that were given as whole numbers become floats: ``VP(0, 20)`` is ``VP(0.0, 20.0)``. An integer leaf would have no
    gradient and other promotion rules."""
    for name in names:
        value = getattr(schedule, name)
        if isinstance(value, (int, np.integer)):
            object.__setattr__(schedule, name, float(value))
        elif hasattr(value, "dtype") and np.issubdtype(value.dtype, np.integer):
            object.__setattr__(schedule, name, value.astype(float))


class Schedule:
    """What every schedule answers.

    variance_preserving: alpha^2 + sigma^2 = 1
    discrete:            True for a table, whose times are the entries 0 ... T; False for a formula
    T:                   the largest time
    """

    variance_preserving = True
    discrete = False

    def log_snr(self, t):
        xp = namespace(t, self)
        with np.errstate(divide="ignore"):
            return 2 * (xp.log(self.alpha(t)) - xp.log(self.sigma(t)))

    def smooth(self, t):
        """(log alpha, sigma^2) in a form whose derivatives are right and keep their digits at every t in (0, T], and at t = 0
        as the limit from above (``process.sde``)."""
        return namespace(t, self).log(self.alpha(t)), self.sigma(t) ** 2

    def network_time(self, t):
        """What a network trained on this schedule is told."""
        return t


@pytree
class Discrete(Schedule):
    """A table. ``alphas``, ``sigmas``: shape (T + 1,), entry 0 is clean (1, 0).

    Whole t give the entries exactly. Between entries >= 1 log-SNR is linear in t, below 1 sigma is linear. A table may end in
    pure noise (alpha_T = 0): log-SNR falls to minus infinity in its last interval, and alpha / sigma is linear there.
    Built by :func:`discrete`.
    """

    alphas: Any
    sigmas: Any

    discrete = True

    @property
    def T(self) -> int:
        return self.alphas.shape[0] - 1

    def _entries(self, xp):
        if xp is np:
            return host(self.alphas), host(self.sigmas)
        return tuple(jnp.asarray(a).astype(jnp.result_type(a, float)) for a in (self.alphas, self.sigmas))

    def _interval(self, t, low, xp):
        """(alphas, sigmas, t - low, log-SNR at t) with t in the interval from entry ``low`` >= 1 to the next."""
        alphas, sigmas = self._entries(xp)
        frac = (t - low.astype(t.dtype)).astype(alphas.dtype)
        log = lambda a: xp.log(xp.where(a > 0, a, 1.0))  # finite in the branch that a `where` drops
        lam = 2 * (log(alphas[xp.maximum(low, 1)]) - log(sigmas[xp.maximum(low, 1)]))
        lam_up = 2 * (log(alphas[low + 1]) - log(sigmas[low + 1]))
        to_noise = lam + 2 * log(1 - frac)
        return alphas, sigmas, frac, xp.where(alphas[low + 1] > 0, lam + frac * (lam_up - lam), to_noise)

    def _lookup(self, t):
        if namespace(t, self) is np:
            return self._at(host(t), np)
        return _traced_lookup(Discrete(*self._entries(jnp)), jnp.asarray(t, None if hasattr(t, "dtype") else float))

    def _at(self, t, xp):
        low = xp.clip(xp.floor(t), 0, self.T - 1).astype(np.int32)
        alphas, sigmas, frac, lam = self._interval(t, low, xp)
        sigma_between = xp.where(low == 0, frac * sigmas[1], xp.exp(-0.5 * xp.logaddexp(lam, 0.0)))
        alpha_between = xp.where(low == 0, safe_sqrt(1 - (frac * sigmas[1]) ** 2), xp.exp(-0.5 * xp.logaddexp(-lam, 0.0)))
        entry = low + (frac == 1).astype(np.int32)
        whole = (frac == 0) | (frac == 1)
        return xp.where(whole, alphas[entry], alpha_between), xp.where(whole, sigmas[entry], sigma_between)

    def alpha(self, t):
        return self._lookup(t)[0]

    def sigma(self, t):
        return self._lookup(t)[1]

    def smooth(self, t):
        """At a whole t the derivatives are those of the interval below it."""
        xp = namespace(t, self)
        t = host(t) if xp is np else jnp.asarray(t)
        low = xp.clip(xp.ceil(t) - 1, 0, self.T - 1).astype(np.int32)
        _, sigmas, frac, lam = self._interval(t, low, xp)
        below_1 = xp.where(low == 0, (frac * sigmas[1]) ** 2, 0.0)
        variance = xp.where(low == 0, below_1, xp.exp(-xp.logaddexp(lam, 0.0)))
        log_below_1 = 0.5 * xp.log1p(-xp.where(below_1 < 1, below_1, 0.0))
        return xp.where(low == 0, log_below_1, -0.5 * xp.logaddexp(-lam, 0.0)), variance

    def time(self, log_snr):
        """The t in [0, T] with this log-SNR; beyond the table, its nearest end (0 only for +inf below entry 1's)."""
        xp = namespace(log_snr, self)
        log_snr = host(log_snr) if xp is np else jnp.asarray(log_snr)
        alphas, sigmas = (host(a) if xp is np else jnp.asarray(a) for a in (self.alphas, self.sigmas))
        noise = alphas[1:] == 0  # at most the last entry: any finite number below the others' keeps their order
        table = 2 * (xp.log(xp.where(noise, 1.0, alphas[1:])) - xp.log(sigmas[1:]))
        table = xp.where(noise, xp.min(table) - 1, table)
        t = xp.interp(-log_snr, -table, xp.arange(1.0, self.T + 1))
        if self.T > 1:
            to_noise = self.T - xp.exp(0.5 * (xp.minimum(log_snr, table[-2]) - table[-2]))
            t = xp.where(noise[-1] & (log_snr < table[-2]), to_noise, t)
        sigma = xp.exp(-0.5 * xp.logaddexp(log_snr, xp.zeros_like(log_snr)))
        return xp.where((log_snr > table[0]) | (noise[0] & (log_snr > -np.inf)), sigma / sigmas[1], t)

    def network_time(self, t):
        """The official index i = t - 1, fractional between entries."""
        return t - 1


@jax.jit
def _traced_lookup(table, t):
    """Traced once for all lookups: in a program each is a call of a few microseconds, which XLA inlines."""
    return table._at(t, jnp)


def discrete(betas) -> Discrete:
    """The variance-preserving table of ``betas`` (T,): alpha_t^2 = prod_{j <= t} (1 - beta_j).

    Raises ValueError unless every beta lies in (0, 1].
    """
    xp = namespace(betas)
    betas = host(betas) if xp is np else betas
    if betas.ndim != 1 or betas.shape[0] < 1:
        raise ValueError(f"betas have shape {betas.shape}: give one axis of T >= 1 values")
    if xp is np and not ((betas > 0) & (betas <= 1)).all():
        bad = betas[~((betas > 0) & (betas <= 1))][0]
        raise ValueError(f"beta {bad:.4g} is outside (0, 1]: rescale the betas (linear_betas needs T > 20)")
    return from_alphas_cumprod(xp.cumprod(1 - betas))


def from_alphas_cumprod(alphas_cumprod) -> Discrete:
    """The variance-preserving table with alpha_t^2 = ``alphas_cumprod[t - 1]``.

    Raises ValueError unless they fall from below 1 to 0 or above, which only the last may be.
    """
    xp = namespace(alphas_cumprod)
    alphas_cumprod = host(alphas_cumprod) if xp is np else alphas_cumprod
    if xp is np:
        fall = np.diff(alphas_cumprod, prepend=1.0) < 0
        fall[1:] &= alphas_cumprod[:-1] > 0
        if not (fall & (alphas_cumprod >= 0)).all():
            n = int(np.argmin(fall & (alphas_cumprod >= 0)))
            raise ValueError(
                f"alphas_cumprod[{n}] = {alphas_cumprod[n]:.4g} does not continue a fall from 1 to 0: the signal must shrink "
                "at every step (only the last may reach 0)"
            )
    one = xp.ones((1,), alphas_cumprod.dtype)
    bar = xp.concatenate([one, alphas_cumprod])
    return Discrete(xp.sqrt(bar), xp.sqrt(1 - bar))


@pytree
class VP(Schedule):
    """beta(t) = beta_min + t (beta_max - beta_min) on t in [0, 1] (score-SDE). The network is told 999 t."""

    beta_min: Any = 0.1
    beta_max: Any = 20.0
    T = 1.0

    def __post_init__(self):
        _as_floats(self, "beta_min", "beta_max")
        if is_concrete(self):
            low, high = host(self.beta_min), host(self.beta_max)
            if not np.all((low >= 0) & (high >= 0) & (low + high > 0) & np.isfinite(low + high)):
                raise ValueError(f"beta_min {low} and beta_max {high}: give rates >= 0, not both 0, for example 0.1 and 20")

    def _log_alpha(self, t):
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t):
        xp, t = _known(t, self)
        return xp.exp(self._log_alpha(t))

    def sigma(self, t):
        xp, t = _known(t, self)
        return safe_sqrt(-xp.expm1(2 * self._log_alpha(t)))  # expm1: 1 - exp is off by half a percent at t = 1e-5 in float32

    def smooth(self, t):
        _, t = _known(t, self)
        return self._log_alpha(t), -namespace(t, self).expm1(2 * self._log_alpha(t))

    def _time(self, log_alpha):
        d = self.beta_max - self.beta_min
        return safe_divide(-4 * log_alpha, self.beta_min + safe_sqrt(self.beta_min**2 - 4 * d * log_alpha))

    def time(self, log_snr):
        xp, log_snr = _known(log_snr, self)
        return self._time(-0.5 * xp.logaddexp(xp.zeros_like(log_snr), -log_snr))

    def network_time(self, t):
        return 999 * t


@pytree
class SubVP(VP):
    """The same alpha as VP with sigma = 1 - alpha^2 (score-SDE)."""

    variance_preserving = False

    def sigma(self, t):
        xp, t = _known(t, self)
        return -xp.expm1(2 * self._log_alpha(t))

    def smooth(self, t):
        log_alpha, variance = super().smooth(t)
        return log_alpha, variance**2

    def time(self, log_snr):
        xp, log_snr = _known(log_snr, self)
        return self._time(-xp.arcsinh(0.5 * xp.exp(-0.5 * log_snr)))  # sigma / alpha = (1 - alpha^2) / alpha


@pytree
class VE(Schedule):
    """alpha = 1, sigma(t) = sigma_min (sigma_max / sigma_min)^t on t in (0, 1] (score-SDE); t = 0 is clean.
    The network is told sigma."""

    sigma_min: Any = 0.01
    sigma_max: Any = 50.0
    T = 1.0
    variance_preserving = False

    def __post_init__(self):
        _as_floats(self, "sigma_min", "sigma_max")
        if is_concrete(self):
            low, high = host(self.sigma_min), host(self.sigma_max)
            if not np.all((low > 0) & (low < high) & np.isfinite(high)):
                raise ValueError(
                    f"sigma_min {low} and sigma_max {high}: give 0 < sigma_min < sigma_max, for example 0.01 and 50"
                )

    def alpha(self, t):
        xp, t = _known(t, self)
        return xp.ones_like(t)

    def sigma(self, t):
        xp, t = _known(t, self)
        return xp.where(t == 0, 0.0, self.sigma_min * (self.sigma_max / self.sigma_min) ** t)

    def smooth(self, t):
        xp, t = _known(t, self)  # the limit t -> 0 is sigma_min, from which VE steps down to the clean image
        return xp.zeros_like(t), (self.sigma_min * (self.sigma_max / self.sigma_min) ** t) ** 2

    def time(self, log_snr):
        xp, log_snr = _known(log_snr, self)
        t = (-0.5 * log_snr - xp.log(self.sigma_min)) / xp.log(self.sigma_max / self.sigma_min)
        return xp.where(log_snr == np.inf, 0.0, t)

    def network_time(self, t):
        return self.sigma(t)


@pytree
class EDM(Schedule):
    """alpha = 1, sigma(t) = t (Karras et al. 2022); ``T``, the largest time, is sigma_max."""

    T: float = static(default=80.0)
    variance_preserving = False

    def __post_init__(self):
        if not is_concrete(self.T):
            raise ValueError("T of EDM is part of the program: build the schedule outside jit, EDM(80.0)")
        object.__setattr__(self, "T", float(self.T))
        if not 0 < self.T < np.inf:
            raise ValueError(f"T {self.T:g} of EDM, its largest sigma, is out of range: give a number > 0, for example 80.0")

    def alpha(self, t):
        xp, t = _known(t, self)
        return xp.ones_like(t)

    def sigma(self, t):
        return _known(t, self)[1]

    def smooth(self, t):
        xp, t = _known(t, self)
        return xp.zeros_like(t), t**2

    def time(self, log_snr):
        xp, log_snr = _known(log_snr, self)
        return xp.exp(-0.5 * log_snr)


@pytree
class RectifiedFlow(Schedule):
    """alpha = 1 - t, sigma = t on t in [0, 1] (Liu et al. 2022)."""

    T = 1.0
    variance_preserving = False

    def alpha(self, t):
        return 1 - _known(t, self)[1]

    def sigma(self, t):
        return _known(t, self)[1]

    def smooth(self, t):
        xp, t = _known(t, self)
        return xp.log1p(-t), t**2

    def time(self, log_snr):
        xp, log_snr = _known(log_snr, self)
        return 1 / (1 + xp.exp(0.5 * log_snr))
