"""Volumes: NIfTI files in and out, coarser ones of finer ones, the two-dimensional cuts that a network sees."""

from .cuts import Cuts, Intensity, cuts_of
from .enlarger import Enlarger, How, superresolve
from .files import Volume, finer, read, write
from .resolution import IN_PLANE, THROUGH_PLANE, Coarse

__all__ = [
    "IN_PLANE",
    "THROUGH_PLANE",
    "Coarse",
    "Cuts",
    "Enlarger",
    "How",
    "Intensity",
    "Volume",
    "cuts_of",
    "finer",
    "read",
    "superresolve",
    "write",
]
