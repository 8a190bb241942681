"""Priors, weights and test images that ship. ``from diffjax import zoo; prior = zoo.load("fashion32")``."""

from . import bundled
from .classifier import fashion_classifier
from .dncnn import dncnn
from .lpips import lpips_weights, perceptual
from .prior import Assumed, Prior, load, names, save
from .volumes import mri_sr


def load_classifier(source, config=None):
    """A classifier of noisy images of guided-diffusion, see ``zoo.public.load_classifier``."""
    from . import public

    return public.load_classifier(source, config)


__all__ = [
    "Assumed",
    "Prior",
    "bundled",
    "dncnn",
    "fashion_classifier",
    "load",
    "load_classifier",
    "lpips_weights",
    "mri_sr",
    "names",
    "perceptual",
    "save",
]
