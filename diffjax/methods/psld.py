"""PSLD, posterior sampling with latent diffusion (Rout et al., NeurIPS 2023, algorithm 2).

    z_{t-1} = kernel's move from z_t  -  grad_{z_t} (omega |y - A x| + gamma |z0_hat - encode(x - A^+ (A x - y))|)
    x       = decode(z0_hat)

DPS after decode, and "gluing": of all latents that fit y, those are preferred that are what the encoder makes of their own
picture with what was measured put in. Without it (gamma = 0: DPS) a decoder that is not one to one fits y by latents that no
picture has. One network call a row; the gradient goes through network, decoder and encoder.

Paper and code: the paper has squares of the norms and two step sizes, the code norms, gamma = 0.1 and omega = 1, which we
follow. The paper and the code put A^T where we have A^+: alike for masks; for super-resolution the code's "transpose" is an
interpolation, a pseudo-inverse as well. The code draws the encoder's latent, we take its mean. Norms are over one image, the
code's over the batch. With an operator that is not ``Decoded``, encode and decode are the identity. ``noise_std`` is not used.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from .. import timetables
from ..base import Measurement, pytree
from ..kernels import DDIM
from ..method import NOT_NEGATIVE, Method, check_operator
from ..operators import Decoded
from .common import Setup, cast, norm
from .dps import gradient_of


def in_pictures(A):
    """(decode, encode, the operator of the picture) of an operator of latents; of another operator it is itself."""
    return (A.picture, A.latent, A.A) if isinstance(A, Decoded) else (lambda z: z, lambda x: x, A)


def of_the_picture(method):
    """What a method of latents or pictures needs of its operator: with ``Decoded`` the picture's is to have it."""
    A = method.measurement.A
    if isinstance(A, Decoded):
        check_operator(type(method).__name__, A.A, method.requires)
        return ()
    return method.requires


@pytree
class PSLD(Method):
    """denoise: the prior of latents, not clipped. measurement: y with ``operators.Decoded(A, autoencoder)``, A linear with
    A.pinv.

    omega: step size for y; gamma: for gluing
    Any kernel runs it. Raises ValueError for an operator of pictures without pseudo-inverse.
    """

    measurement: Measurement = None
    omega: Any = 1.0
    gamma: Any = 0.1

    paper = "Rout et al. 2023"
    link = "arxiv.org/abs/2307.00402"
    requires = ("pinv",)
    noise = "ignored"
    ranges = {"omega": NOT_NEGATIVE, "gamma": NOT_NEGATIVE}

    def requirements(self):
        return of_the_picture(self)

    def default_kernel(self):
        return DDIM()

    def objective(self, z0):
        """The scalar whose gradient is followed, of a clean latent."""
        decode, encode, A = in_pictures(self.measurement.A)
        x = decode(z0)
        r = A.residual(x, cast(self.measurement.y, z0.dtype))
        omega, gamma = (jnp.asarray(c, z0.dtype) for c in (self.omega, self.gamma))
        return omega * norm(r) + gamma * norm(z0 - encode(x - A.pinv(r)))

    def step(self, kernel, x, state, row, noise):
        value, p, gradient = gradient_of(self.objective, self.denoise, x, row.t)
        moved, state = kernel.step(self.predict, x, state, row, noise, first=p)
        return moved - gradient, state, {"loss": value}

    def products(self, kernel) -> int:
        return 1


def published(denoise, measurement, steps=None, *, table=None, omega=1.0, gamma=0.1) -> Setup:
    """1000 levels of DDIM with eta 1 where the schedule is a table, as its code's scripts run it; else equal in log-SNR."""
    if table is None:
        steps = 1000 if steps is None else steps
        make = timetables.ldm if denoise.schedule.discrete else timetables.log_snr
        table = make(denoise.schedule, min(steps, denoise.schedule.T) if denoise.schedule.discrete else steps)
    return Setup(PSLD(denoise, measurement, omega, gamma), DDIM(eta=1.0), table)
