"""PartDiff, partial diffusion for super-resolution (Zhao et al. 2023, arXiv:2307.11926; IEEE TMI 2024).

    x_K = alpha_K low + sigma_K z,      low: the low-resolution image, enlarged;       then K steps instead of T

Noised enough, the latents of low and of the high-resolution image are hard to tell apart. What is left of their difference is
taken up in training, by *latent alignment*: the network is shown

    x^_t = alpha_t x0^_t + sigma_t eps,     x0^_t = lambda_t high + (1 - lambda_t) low,     lambda_t = (K - t) / K

which are low's latents at t = K and high's at t = 0. The step it learns is the interpolated posterior (:func:`posterior`)

    q(x^_s | x^_t, low, high) = N(lambda mu~(x_t^high, high) + (1 - lambda) mu~(x_t^low, low), beta~ I)

and, with the same noise in both latents (else their mixture has less variance than sigma_t^2), mu~ is linear: the mean is
c_0 x0^_t + c_t x^_t, the ordinary step towards x0^_t. So the KL is a weighted squared error of the noise (:func:`kl_weight`).
No code was published. The survey that this follows prints sqrt(alpha_K) where sqrt(abar_K) is meant in the start, "until x_T"
where the walk ends at x_0, and x_{t-1} without its hat in the posterior; it does not say that the noise is shared.

Taken literally this has a fault. The step from t lands at alpha_s x0^_t, where training showed alpha_s x0^_s. The walk ends at
x0^_1 = high + (low - high) / K: 4 % of low remain for K = 25. That is so where low determines high. Where it does not, the
network takes what the latent lacks of high for a property of high, and more remains. What a network predicts, and how the walk
moves, is therefore one of three *targets*. All say x0 = low + m (high - low), and differ in how far they reach:

    "eps"      m = lambda_t                                    the literal reading: the noise of x^_t
    "unmixed"  m = 1                                           high itself: ends there, but walks off the latents of training
    "drift"    m = lambda_t + (lambda_s - lambda_t) / (1 - r)  lands at alpha_s x0^_s: stays on them, and ends at high

with r = SNR_t / SNR_s. "drift" is what the interpolated posterior becomes where its lambda is that of s. In short steps of
DDIM it is the flow of the latents' own marginals, so that it ends in the posterior of high. Any target gives an estimate of
high, low + (x0 - low) / m, so that a network of one can move as another. One of target "eps" says nothing of high at t = K,
where m = 0, and its error is magnified by 1 / m after.

Late start alone, without alignment, works on any trained prior: :class:`LateStart`, which is CCDF without its projection.
Where to start: :func:`start_time`. A network trained without alignment is aligned by a change of variables: :class:`Aligned`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import process, timetables
from ..base import Prediction, clip, expand, in_range, is_concrete, like, namespace, nearest, pytree, safe_divide, static
from ..denoisers import with_cond
from ..kernels import DDPM
from ..method import Method, as_denoiser
from .common import Setup

TARGETS = ("eps", "unmixed", "drift")


def check_target(name: str, what: str = "target") -> None:
    """ValueError for an unknown target."""
    if name not in TARGETS:
        raise ValueError(f"{what} {name!r} is unknown: {nearest(name, TARGETS)}")


def share(t, K, ahead=0.0):
    """lambda_t = (K - t + ahead) / K, in [0, 1]: how much of the high-resolution image there is in the latent at t.

    ahead: 0, or the length of a step for lambda_{t-1} in place of lambda_t (then the last step reaches high, and the first
    begins at a latent that holds 1 / K of it, which the start does not)
    """
    xp = namespace(t, K, ahead)
    if xp is jnp:
        t = jnp.asarray(t, None if hasattr(t, "dtype") else float)
        K, ahead = (jnp.asarray(a).astype(t.dtype) for a in (K, ahead))
    return xp.clip((K - t + ahead) / K, 0.0, 1.0)


def reach(target: str, schedule, t, K, ahead=0.0, unit=1.0):
    """m of ``target`` at times t: x0 = low + m (high - low). unit: the length of a step, for "drift" (1 on tables)."""
    check_target(target)
    lam = share(t, K, ahead)
    if target != "drift":
        return lam if target == "eps" else namespace(lam).ones_like(lam)
    s = below(t, unit)
    learned = 1 - process.snr_ratio(schedule, t, s)
    return lam + safe_divide(share(s, K, ahead) - lam, learned.astype(lam.dtype))


def below(t, unit=1.0):
    """The time one step below t, at least 0."""
    xp = namespace(t, unit)
    unit = unit if xp is np else jnp.asarray(unit).astype(jnp.result_type(t, float))
    return xp.maximum(t - unit, 0.0)


def mixed(low, high, lam):
    """lambda high + (1 - lambda) low."""
    return expand(lam, low) * high + expand(1 - lam, low) * low


def posterior(schedule, low, high, noise, t, s, lam):
    """(mean, std) of the interpolated posterior q(x^_s | x^_t, low, high) as it is printed: lambda times the DDPM posterior of
    high plus (1 - lambda) times that of low, both latents with the same ``noise``. lam: of t, as the survey has it; of s: that of
    target "drift"."""
    c_0, c_t, std = process.posterior(schedule, t, s)
    mean = lambda x_0: expand(c_0, x_0) * x_0 + expand(c_t, x_0) * process.q_sample(schedule, x_0, t, noise)
    return mixed(mean(low), mean(high), lam), std


def kl_weight(schedule, t, s, floor=1e-20):
    """w of KL = w |eps - eps_theta|^2 between the interpolated posterior and the step t -> s that the network takes: c_0^2
    sigma_t^2 / (2 alpha_t^2 beta~). floor: of the variance beta~, which is 0 in the step to s = 0 (SR3's is 1e-20)."""
    c_0, _, std = process.posterior(schedule, t, s)
    alpha, sigma = process.marginal(schedule, t)
    return (c_0 * sigma / alpha) ** 2 / (2 * namespace(std).maximum(std**2, floor))


# --- where to start --------------------------------------------------------------------------------------------------


def contraction(schedule, t, variance, ancestral=True):
    """How much of a difference between two images, noised to t, is left after the walk down to 0, in directions along which
    the prior has ``variance``: a factor in [0, 1].

        ancestral steps (DDPM):      variance SNR / (1 + variance SNR)
        probability flow (DDIM):     the root of that

    Derivation. Along one direction let the prior be N(m, v). The exact reverse walk is a Markov chain whose mean given its
    start is E[x_0 | x_t] = m + g (x_t - alpha m), g = alpha v / (alpha^2 v + sigma^2). Two images d apart are alpha d apart
    when both are noised with the same z, so that their ends are alpha g d apart, and alpha g = v SNR / (1 + v SNR): the same
    noise is added to both walks on the way. The probability flow carries quantiles to quantiles: x_0 - m = (x_t - alpha m)
    sqrt(v / (alpha^2 v + sigma^2)), which is alpha d sqrt(v / (alpha^2 v + sigma^2)), the root.
    This is the contraction of CCDF (Chung et al. 2022, theorem 1) with the product of its rates taken exactly: every step is a
    factor below 1, so that the error of the start shrinks the faster the less the prior varies along it.
    """
    snr = namespace(t, schedule).exp(schedule.log_snr(t))
    left = variance * snr / (1 + variance * snr)
    return left if ancestral else left**0.5


def start_time(schedule, distance, keep=0.1, ancestral=True):
    """The least noisy time t from which a walk forgets all but ``keep`` of what the start lacks (:func:`contraction`).

        SNR_t = q / ((1 - q) distance^2),     q = keep for ancestral steps, keep^2 for the probability flow

    distance: root mean square of high - low over the directions that low lacks, on [-1, 1]: |high - low| / sqrt(their number);
              for images reduced by f, D (1 - 1 / f^2) of D. As what low lacks is the prior's own spread there, its square
              stands for the variance in the contraction's formula
    keep:     in (0, 1): 0.1 leaves a tenth of the difference. Smaller starts higher
    A whole number for a table (rounded up, 1 to T), otherwise in (0, T]. sigma / alpha at t is distance sqrt((1 - q) / q):
    three times the distance for a tenth. What low has right is forgotten as well, where the prior varies less than
    sigma / alpha: a network told low, or a data step, keeps it. Raises ValueError for a distance below 0 or a ``keep`` outside
    (0, 1).
    """
    in_range("distance", distance, 0)
    in_range("keep", keep, 1e-6, 1 - 1e-6)
    q = keep if ancestral else keep**2
    xp = namespace(schedule, distance, keep)
    t = schedule.time(xp.log(q / (1 - q)) - 2 * xp.log(xp.maximum(distance, 1e-12)))
    return xp.clip(xp.ceil(t - 1e-6), 1, schedule.T) if schedule.discrete else t


# --- the walks -------------------------------------------------------------------------------------------------------


@pytree
class LateStart(Method):
    """Plain sampling from ``low`` noised to the first row's t, in place of pure noise.

    denoise: any prior, told low or not; low: (H, W, C) in [-1, 1], the size of the result
    Any kernel; a table that begins late: ``timetables.start_at``. An error of low that is larger than sigma / alpha there
    stays. Raises ValueError without ``low``, or where it has another shape.
    """

    low: Any = None

    paper = "Zhao et al. 2023"
    link = "arxiv.org/abs/2307.11926"

    def starts_anywhere(self):
        return True

    def default_kernel(self):
        return DDPM()

    def check(self, kernel, table):
        super().check(kernel, table)
        if self.low is None:
            raise ValueError(f"{type(self).__name__} has no image to start from: pass low=, the enlarged low-resolution image")

    def start(self, kernel, row, noise):
        return process.q_sample(kernel.schedule, like(noise, self.low, "low").astype(noise.dtype), row.t, noise)


@pytree
class PartDiff(LateStart):
    """denoise: a network trained with latent alignment (``training.partdiff``). low: (H, W, C) in [-1, 1], enlarged.

    K:       where it was trained to start, and the table begins: ``published``, or ``timetables.start_at(table, K)``
    target:  what it was trained on: "eps", "unmixed" or "drift"
    move:    how to walk, of the same words, or as "trained". "drift" needs a kernel whose step is Gaussian
    ahead, unit: of :func:`share` and :func:`reach`, as in training
    guess:   the estimate of high where the network has none (target "eps", t = K); default low
    bounds:  what estimates of high are clamped to, (low, high); None: not at all
    tell:    (low, lambda) -> condition, for one network for all K (``with_plane``); None: the denoiser keeps its own
    Any steps and kernel, as long as the first row is at K. Raises ValueError for another start, unknown words, or kernels that
    "drift" cannot be added to.
    """

    K: Any = None
    ahead: Any = 0.0
    unit: Any = 1.0
    guess: Any = None
    bounds: Any = None
    target: str = static(default="eps")
    move: str = static(default="trained")
    tell: Callable = static(default=None)

    ranges = {"K": (1e-9, np.inf), "ahead": (0, np.inf), "unit": (1e-9, np.inf)}

    def __post_init__(self):
        super().__post_init__()
        check_target(self.target)
        check_target(self.moves_as, "move")

    @property
    def moves_as(self) -> str:
        return self.target if self.move == "trained" else self.move

    def check(self, kernel, table):
        super().check(kernel, table)
        if self.K is None:
            raise ValueError("PartDiff has no K: pass the time from which it was trained, K=25")
        if is_concrete(self.K, table) and table.i[0] == 0 and not np.allclose(table.t[0], self.K, rtol=1e-5):
            raise ValueError(
                f"the walk starts at t = {float(table.t[0]):g}, the network was aligned from K = {float(self.K):g}: "
                f"use timetables.start_at(table, {float(self.K):g})"
            )
        if self.moves_as == "drift" and not hasattr(kernel, "transition"):
            raise ValueError(f'move "drift" is added to Gaussian steps, not to {type(kernel).__name__}: use DDPM() or DDIM()')

    def network(self, x, t) -> Prediction:
        """What the network predicts, told lambda where it wants to know it."""
        if self.tell is None:
            return self.denoise(x, t)
        low = jnp.asarray(self.low).astype(x.dtype)
        return with_cond(self.denoise, self.tell(low, share(t, self.K, self.ahead)))(x, t)

    def image(self, p, t):
        """The estimate of high in prediction ``p``."""
        low = jnp.asarray(self.low).astype(p.x0.dtype)
        m = reach(self.target, getattr(self.denoise, "schedule", None), t, self.K, self.ahead, self.unit)
        guess = low if self.guess is None else jnp.asarray(self.guess).astype(p.x0.dtype)
        high = p.x0 if self.target == "unmixed" else low + safe_divide(p.x0 - low, expand(m, low))
        high = jnp.where(expand(m, low) > 0, high, guess)
        return high if self.bounds is None else clip(high, *self.bounds)

    def seen(self, p, t) -> Prediction:
        """``p`` as the kernel moves by it."""
        if self.target == self.moves_as == "eps":
            return p
        low, high = jnp.asarray(self.low).astype(p.x0.dtype), self.image(p, t)
        return p.with_x0(high if self.moves_as == "unmixed" else mixed(low, high, share(t, self.K, self.ahead)))

    def predict(self, x, t) -> Prediction:
        return self.seen(self.network(x, t), t)

    def step(self, kernel, x, state, row, noise):
        p = self.network(x, row.t)
        x, state = kernel.step(self.predict, x, state, row, noise, first=self.seen(p, row.t))
        if self.moves_as == "drift":
            more = share(row.s, self.K, self.ahead) - share(row.t, self.K, self.ahead)
            difference = self.image(p, row.t) - jnp.asarray(self.low).astype(x.dtype)
            x = x + expand(kernel.schedule.alpha(row.s), x) * expand(more, x) * difference
        return x, state, {}


def with_plane(low, lam):
    """``low`` (..., H, W, C) with one more channel that says lambda: the condition of one network for all K."""
    plane = jnp.broadcast_to(expand(lam, low), (*low.shape[:-1], 1)).astype(low.dtype)
    return jnp.concatenate([low, plane], axis=-1)


@pytree
class Aligned:
    """Any trained denoiser, with no alignment in its training, as PartDiff's of target "unmixed".

        x^_t = alpha_t lambda high + alpha_t (1 - lambda) low + sigma_t eps

    less what is known of it, alpha_t (1 - lambda) low, is a noisy image of high like any other, of SNR lambda^2 SNR_t: the
    denoiser is asked at that time. Exact for the exact denoiser. At t = K nothing of high is in the latent: without a network
    that is told low (``cond``), or a data step within ``denoise``, what low knows is lost.

    denoise: (x, t) -> Prediction of high; low, K, ahead: as of :class:`PartDiff`; schedule: default the denoiser's
    Beyond the schedule's T (lambda near 0) the denoiser is asked at T.
    """

    denoise: Any
    low: Any
    K: Any
    ahead: Any = 0.0
    schedule: Any = None

    def __post_init__(self):
        object.__setattr__(self, "denoise", as_denoiser(self.denoise))
        if self.schedule is None:
            object.__setattr__(self, "schedule", self.denoise.schedule)

    def __call__(self, x, t) -> Prediction:
        schedule, low = self.schedule, jnp.asarray(self.low).astype(x.dtype)
        alpha, sigma, lam = schedule.alpha(t), schedule.sigma(t), jnp.asarray(share(t, self.K, self.ahead))
        log_snr = jnp.asarray(schedule.log_snr(t))
        asked = schedule.time(log_snr + 2 * jnp.log(jnp.maximum(lam, 1e-12)).astype(log_snr.dtype))
        asked = jnp.asarray(asked).astype(lam.dtype)
        rest = x - expand(alpha, x) * expand(1 - lam, x) * low
        scale = safe_divide(expand(schedule.sigma(asked), x), expand(sigma, x))
        p = self.denoise(scale * rest, asked)
        return Prediction(p.x0, p.x0, p.mix, x, alpha, sigma).with_x0(p.x0)


def published(denoise, low, K=25, steps=None, *, table=None, **settings) -> Setup:
    """The paper's walk: T = 100, from K = 25 or 50, ancestral. steps: fewer than K, equally long; settings: of the class."""
    if table is None:
        steps = int(np.ceil(K)) if steps is None else steps
        table = timetables.from_times(np.linspace(float(K), 0.0, steps + 1), denoise.schedule)
    return Setup(PartDiff(denoise, low, K, **settings), DDPM(), table)
