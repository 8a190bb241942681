"""Restoration methods, one paper per file. Each wraps a denoiser and a measurement and is passed to ``sample``."""

from . import copaint, diffpir, dps, partdiff, twisted
from .blended import Blended
from .ccdf import CCDF, ilvr
from .copaint import CoPaint
from .ddnm import DDNM, DDNMPlus
from .ddrm import DDRM
from .diffpir import DiffPIR
from .dpir import DPIR
from .dps import DPS
from .mcg import MCG
from .mmps import MMPS
from .nonequilibrium import Nonequilibrium
from .optimised_start import optimise_start
from .partdiff import LateStart, PartDiff
from .pigdm import PiGDM
from .psld import PSLD
from .red_diff import REDDiff
from .repaint import RePaint
from .replacement import Replacement
from .resample import ReSample
from .resampling import Resampling
from .twisted import TwistedSMC

__all__ = [
    "CCDF",
    "DDNM",
    "DDRM",
    "DPIR",
    "DPS",
    "MCG",
    "MMPS",
    "PSLD",
    "Blended",
    "CoPaint",
    "DDNMPlus",
    "DiffPIR",
    "LateStart",
    "Nonequilibrium",
    "PartDiff",
    "PiGDM",
    "REDDiff",
    "RePaint",
    "ReSample",
    "Replacement",
    "Resampling",
    "TwistedSMC",
    "copaint",
    "diffpir",
    "dps",
    "ilvr",
    "optimise_start",
    "partdiff",
    "twisted",
]
