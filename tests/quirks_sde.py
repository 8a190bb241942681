"""What recorded runs of the score-SDE code need and the library does not do, each with the reason."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax.base import pytree, replace

K = dj.kernels


@pytree
class Euler(K.EulerMaruyama):
    """Steps of 1 / N, whatever the distance of the grid's times. Sub-VP's "reverse diffusion" too."""

    N: Any = 1.0

    def update(self, t, s):
        return super().update(t, t - 1 / self.N)


@pytree
class Ancestral(K.Predictor):
    """The ancestral step in terms of the score, as ``DDPM`` does it but for the last step's deviation."""

    ve: bool = False

    def update(self, t, s):
        a, std = dj.process.transition(self.schedule, t, s)
        return 1 / a, std**2 / a, dj.process.posterior(self.schedule, t, s)[2] if self.ve else std


@pytree
class Stay(K.Predictor):
    """No predictor."""

    def update(self, t, s):
        return 1 + 0 * t, 0 * t, 0 * t


@pytree
class NoisyEnd(K.GaussianKernel):
    """Noise in the last step too."""

    kernel: Any = None

    def bind(self, schedule):
        kernel = self.kernel.bind(schedule)
        return replace(self, kernel=kernel, schedule=kernel.schedule, quiet=getattr(kernel, "quiet", False))

    quiet: bool = dj.base.static(default=False)

    def coefficients(self, table):
        return self.kernel.coefficients(table)

    def transition(self, p, x, row):
        return self.kernel.transition(p, x, row)


@pytree
class NoCorrector(K.Corrector):
    """The loops put the data in after a corrector that does nothing, too."""

    def update(self, p, x, k, z):
        return x


@pytree
class Annealed(K.AnnealedLangevin):
    """Its deviation is taken at the time, its alpha_i from the table: ``share`` makes up for it."""

    share: Any = None

    def coefficients(self, schedule, table):
        return replace(super().coefficients(schedule, table), share=self.share)


@pytree
class Langevin(K.Langevin):
    """Beside Euler's steps alpha_i is still the table's."""

    share: Any = None

    def coefficients(self, schedule, table):
        return replace(super().coefficients(schedule, table), share=self.share)


@pytree
class Colours(dj.operators.Operator):
    """Channel 0 of the official rotation, whose digits are float32 and whose inverse is computed: not quite orthonormal."""

    forth: Any  # (C,), the first column of M
    back: Any  # (C,), the first row of its inverse

    def __call__(self, x):
        return jnp.einsum("...chw,c->...hw", x, self.forth)[..., None, :, :]

    def pinv(self, y):
        return y * self.back[:, None, None]


@pytree
class Levels:
    alpha: Any
    sigma: Any


@pytree
class Published(dj.methods.Replacement):
    """The published loops of imputation and colourisation: the data is put in at the level of the step's start, after the
    predictor too. ``levels``: that level in each row. What the state was before the predictor is reported."""

    levels: Any = None

    def plan(self, kernel, table):
        return self.levels

    def step(self, kernel, x, state, row, noise):
        seen = []

        def edit(x, t, j):
            seen.append(self.replaced(x, row.m.alpha, row.m.sigma, noise["known"][j]))
            return seen[-1]

        x, state = kernel.step(self.predict, x, state, row, noise["move"], edit=edit)
        return x, state, {"before": seen[0]}


def clean_start(method, x, y, task):
    """The loops start with the data as it is, not noised to the first level. Colourisation takes channels 1 and 2 of the prior
    before it rotates them, and adds the data to what that has in the rotated channel 0."""
    A = method.measurement.A
    if task == "color":
        return x * np.array([0.0, 1.0, 1.0])[:, None, None] + A.pinv(y)
    return x - A.pinv(A.residual(jnp.asarray(x), y))
