"""How to move from t to s, given predictions. Any two times; at s = t a kernel returns x itself."""

from .base import GaussianKernel, Kernel, check_kernel
from .ddim import DDIM
from .ddpm import DDPM
from .guidance import Guided, guided
from .marginal import Marginal
from .ode import DPMSolverPP2M, Euler, Heun
from .predictor_corrector import AnnealedLangevin, Corrector, Langevin, PredictorCorrector
from .predictors import EulerMaruyama, Predictor, ReverseDiffusion
from .stochastic import Churn, SDEDPMSolverPP2M

__all__ = [
    "DDIM",
    "DDPM",
    "AnnealedLangevin",
    "Churn",
    "Corrector",
    "DPMSolverPP2M",
    "Euler",
    "EulerMaruyama",
    "GaussianKernel",
    "Guided",
    "Heun",
    "Kernel",
    "Langevin",
    "Marginal",
    "Predictor",
    "PredictorCorrector",
    "ReverseDiffusion",
    "SDEDPMSolverPP2M",
    "check_kernel",
    "guided",
]
