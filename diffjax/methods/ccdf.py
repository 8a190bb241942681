"""CCDF (Chung et al., CVPR 2022) and ILVR (Choi et al., ICCV 2021): replacement of what was measured, from a late start.

    x_t0 = alpha_t0 guess + sigma_t0 z,   t0 well below T;      then, after each reverse step,
    x <- x + A^+ (y_t - A x),   y_t = alpha_t y + sigma_t A z

CCDF (come closer, diffuse faster) starts from a first restoration, by default A^+ y, so that few steps are left:
``timetables.start_at(table, t0)``. The data step must not be expansive: A^+ A is a projection for the library's operators.
ILVR is the same without the late start, with low frequencies of a reference image for y, until a time from which on it lets
the image go: :func:`ilvr`.

There is no official code of CCDF; formulas from the papers. Late start and replacement both bias: an error of the guess that
is larger than sigma_t0 / alpha_t0 stays.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from .. import process, timetables
from ..base import Measurement, pytree
from ..kernels import DDPM
from ..operators import Downsample
from .common import Setup, cast
from .replacement import Replacement


@pytree
class CCDF(Replacement):
    """denoise: the prior. measurement: y and an operator with ``pinv``; with noise, with ``svd`` too (else ValueError).

    guess:    image to start from; default A^+ y
    until:    no replacement below this time (ILVR's range)
    strength: share of the replacement
    Any kernel; a table that begins late: ``timetables.start_at``. t0 trades the guess's errors against calls.
    """

    guess: Any = None
    until: Any = 0.0

    paper = "Chung et al. 2022"
    link = "arxiv.org/abs/2112.05146"

    def starts_anywhere(self):
        return True

    def start(self, kernel, row, noise):
        guess = self.measurement.A.pinv(cast(self.measurement.y, noise.dtype)) if self.guess is None else self.guess
        return process.q_sample(kernel.schedule, guess.astype(noise.dtype), row.t, noise)

    def step(self, kernel, x, state, row, noise):
        schedule = kernel.schedule

        def edit(x, t, j):
            edited = self.replaced(x, schedule.alpha(t), schedule.sigma(t), noise["known"][j])
            return jnp.where(t >= jnp.asarray(self.until, t.dtype), edited, x)

        x, state = kernel.step(self.predict, x, state, row, noise["move"], edit=edit)
        return x, state, {}


def ilvr(denoise, reference, factor: int = 4, until=0.0) -> CCDF:
    """ILVR: samples that share the low frequencies of ``reference`` (H, W, C), what block means over factor x factor keep.

    The paper's filter is a bicubic down- and up-sampling; a ``CCDF`` with that operator is it. until: 0 keeps the low
    frequencies to the end; larger lets the result depart from the reference. Use a full table and start from noise by passing
    ``sample`` a start array, or start late as CCDF.
    """
    A = Downsample(factor)
    return CCDF(denoise, Measurement(A(reference), A), guess=reference, until=until)


def published(denoise, measurement, steps=None, *, table=None, strength=1.0) -> Setup:
    """The paper chooses t0 for each of its tasks. Here the walk starts where sigma = alpha, by default with 50 rows equal in
    log-SNR."""
    if table is None:
        schedule = denoise.schedule
        table = timetables.log_snr(schedule, 50 if steps is None else steps, t_max=float(schedule.time(0.0)))
    return Setup(CCDF(denoise, measurement, strength), DDPM(), table)
