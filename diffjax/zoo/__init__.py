"""Priors, weights and test images that ship. ``from diffjax import zoo; prior = zoo.load("fashion32")``."""

from . import bundled
from .classifier import fashion_classifier
from .lpips import lpips_weights
from .prior import Prior, load, names, save

__all__ = ["Prior", "bundled", "fashion_classifier", "load", "lpips_weights", "names", "save"]
