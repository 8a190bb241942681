"""Predictor-corrector sampling (Song et al., ICLR 2021, section 4.2, appendix G): Langevin steps at each level, then a move.

A corrector leaves the law of x_t alone and brings x nearer to it. At every time it runs ``steps`` of

    x <- x + e score + sqrt(2 e) z

and then the predictor, any kernel, moves on to the next time: the official order. The algorithm box of the paper predicts
first, which is the same walk but at its ends. A corrector is one small class: its ``size`` says what e is.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .. import process
from ..base import expand, in_range, normal, pytree, replace, safe_divide, safe_sqrt, static, whole
from .base import Kernel, Plan, check_kernel, stay_if_no_move
from .ddpm import DDPM


@pytree
class Level:
    """What a corrector knows of a row: alpha and sigma at t, and the share of the signal that the row's forward step keeps."""

    alpha: Any
    sigma: Any
    share: Any


@pytree
class Corrector:
    """e = 2 share (size sigma)^2: a subclass says what ``size`` is.

    snr:   the step in units of the noise level, >= 0. Official: 0.16 (CIFAR-10), 0.17 (CelebA), 0.075 (256 x 256); VP 0.01
    steps: updates at each time
    share is a^2 of q(x_t | x_s) = N(a x_s, .) for the row's own s, 1 for VE: the official alpha_i = 1 - beta_i. The score is
    that of the corrected image, (alpha x0 - x) / sigma^2. Raises ValueError for values out of range.
    """

    snr: Any = 0.16
    steps: int = static(default=1)

    def __post_init__(self):
        in_range("snr", self.snr, 0)
        whole("steps", self.steps)

    def coefficients(self, schedule, table) -> Level:
        alpha, sigma = process.marginal(schedule, table.t)
        return Level(alpha, sigma, process.transition(schedule, table.t, table.s)[0] ** 2)

    def size(self, eps, z):
        """Of the step, from the unit noise ``eps`` that the network sees in x and the noise ``z`` to be added."""
        raise NotImplementedError

    def update(self, p, x, k, z):
        """x after one update. With score = -eps / sigma nothing is divided by sigma."""
        sigma, root = expand(k.sigma, x), safe_sqrt(expand(k.share, x))
        eps = safe_divide(x - expand(k.alpha, x) * p.x0, sigma)
        size = self.size(eps, z)
        return x - 2 * sigma * (root * size) ** 2 * eps + 2 * sigma * root * size * z


@pytree
class AnnealedLangevin(Corrector):
    """size = snr: the step that Song & Ermon (2019) anneal with the noise level ("ald")."""

    def size(self, eps, z):
        return jnp.asarray(self.snr).astype(z.dtype)


@pytree
class Langevin(Corrector):
    """size = snr |z| / |eps|: the signal-to-noise rule, e = 2 share (snr |z| / |score|)^2.

    over: whose norms these are. None: the image's own. The official code averages both norms over a batch, which couples its
          images: 0, the leading axis of x holds them; a string, the name of an axis of the ``vmap`` or ``shard_map`` around
    """

    over: Any = static(default=None)

    def size(self, eps, z):
        snr = jnp.asarray(self.snr).astype(z.dtype)
        return snr * safe_divide(self._norm(z), self._norm(eps))

    def _norm(self, a):
        if self.over is None or isinstance(self.over, str):
            norm = safe_sqrt((a**2).sum())
            return norm if self.over is None else jax.lax.pmean(norm, self.over)
        images = jnp.moveaxis(a, self.over, 0)
        return safe_sqrt((images**2).reshape(len(images), -1).sum(1)).mean()


@pytree
class Move:
    predictor: Any
    corrector: Any


@pytree
class PredictorCorrector(Kernel):
    """At each time ``corrector``, then ``predictor`` on to the next; default: DDPM, and the signal-to-noise rule.

    Any kernel predicts (``EulerMaruyama``, ``ReverseDiffusion``, ``DDPM``, ``DPMSolverPP2M`` ...), and any method runs that
    takes any kernel: after the corrector, and after each update of the predictor, ``edit`` puts the data in
    (``methods.Replacement``). Costs ``corrector.steps`` network calls more than the predictor. Raises ValueError for what is
    no predictor or no corrector.
    """

    predictor: Any = DDPM()
    corrector: Any = Langevin()

    def __post_init__(self):
        check_kernel(self.predictor)
        if not isinstance(self.corrector, Corrector):
            who = getattr(self.corrector, "__name__", type(self.corrector).__name__)
            raise ValueError(f"{who} is no corrector: give corrector=kernels.Langevin(snr=0.16) or another")

    @property
    def calls(self) -> int:
        return self.corrector.steps + self.predictor.calls

    @property
    def updates(self) -> int:
        return 1 + self.predictor.updates

    def still(self) -> bool:
        return False

    def bind(self, schedule):
        predictor = self.predictor.bind(schedule if self.schedule is None else self.schedule)
        return replace(super().bind(schedule), predictor=predictor)

    def coefficients(self, table) -> Move:
        return Move(self.predictor.coefficients(table), self.corrector.coefficients(self.schedule, table))

    def init(self, x):
        return self.predictor.init(x)

    def draw(self, key, x):
        key_corrector, key_predictor = jax.random.split(key)
        z = normal(key_corrector, (self.corrector.steps, *x.shape), x.dtype)
        return {"corrector": z, "predictor": self.predictor.draw(key_predictor, x)}

    def step(self, predict, x, state, row, noise, first=None, edit=None):
        k = row.k.move
        for j in range(self.corrector.steps):  # a static number, mostly 1
            p = predict(x, row.t) if j or first is None else first
            x = stay_if_no_move(row, self.corrector.update(p, x, k.corrector, noise["corrector"][j]), x)
        after = None
        if edit is not None:
            x = edit(x, row.t, 0)
            after = lambda x, t, j: edit(x, t, j + 1)
        row = replace(row, k=Plan(k.predictor, row.k.jump))
        return self.predictor.step(predict, x, state, row, noise["predictor"], edit=after)
