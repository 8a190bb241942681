"""How to move from t to s, given predictions. Any two times; at s = t a kernel returns x itself."""

from .base import Kernel
from .ddim import DDIM
from .ddpm import DDPM
from .guidance import Guided, guided
from .marginal import Marginal
from .ode import DPMSolverPP2M, Euler, Heun

__all__ = ["DDIM", "DDPM", "DPMSolverPP2M", "Euler", "Guided", "Heun", "Kernel", "Marginal", "guided"]
