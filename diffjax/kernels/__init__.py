"""How to move from t to s, given predictions. Any two times; at s = t a kernel returns x itself."""

from .base import GaussianKernel, Kernel, check_kernel
from .ddim import DDIM
from .ddpm import DDPM
from .guidance import Guided, guided
from .marginal import Marginal
from .multistep import DPMSolverPP3M, UniPC
from .ode import DPMSolverPP2M, Euler, Heun
from .runge_kutta import RK4

__all__ = [
    "DDIM",
    "DDPM",
    "RK4",
    "DPMSolverPP2M",
    "DPMSolverPP3M",
    "Euler",
    "GaussianKernel",
    "Guided",
    "Heun",
    "Kernel",
    "Marginal",
    "UniPC",
    "check_kernel",
    "guided",
]
