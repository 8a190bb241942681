"""What recorded runs of the official codes need and the library does not do, each with the reason."""

import jax.numpy as jnp

import diffjax as dj
from diffjax.base import expand, pytree


def clipped_mean(denoise, mean_type):
    """The denoiser whose ancestral step an official run with ``clip_denoised`` takes.

    guided-diffusion clamps the x0 it reports, but a network that predicts the previous mean has its raw output taken as
    the mean. Here a corrected x0 always reaches the move.
    """
    return denoise if mean_type == "PREVIOUS_X" else dj.denoisers.clipped(denoise)


@pytree
class Shares(dj.methods.RePaint):
    """RePaint by a mask with fractions: the code takes its y for the image itself and blends it in by the share m. Here y is m
    times the image where m is a fraction, and y / m is merged."""

    def merge(self, x, plan, noise):
        y = self.measurement.y.astype(x.dtype)
        m = self.measurement.A.weights(x) * expand(plan.merge, x)
        return m * (expand(plan.alpha, x) * y + expand(plan.sigma, x) * noise) + (1 - m) * x


@pytree
class MaskOfBatch(dj.operators.Mask):
    """CoPaint's ``filter_xT`` tries one start against the masks and images of the whole batch; ours fits one image."""

    def weights(self, x):
        return jnp.asarray(self.mask).astype(x.dtype)
