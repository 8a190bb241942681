"""Restoration methods, one paper per file. Each wraps a denoiser and a measurement and is passed to ``sample``."""

from . import copaint
from .copaint import CoPaint
from .optimise_start import optimise_start
from .repaint import RePaint

__all__ = ["CoPaint", "RePaint", "copaint", "optimise_start"]
