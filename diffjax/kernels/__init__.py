"""How to move from t to s, given predictions. Any two times; at s = t a kernel returns x itself.

Which kernel on which grid (``experiments.solvers`` measures all of them against exact posteriors):

* The grid matters more than the kernel: ``timetables.log_snr``. Equal steps of t waste their rows on noise.
* Few calls, no noise wanted: ``UniPC`` or ``DPMSolverPP2M``; 20 calls are enough where the posterior is known. ``Heun`` and
  ``RK4`` spend several calls on a row, and have too few rows then.
* Noise wanted (it forgets earlier errors): ``SDEDPMSolverPP2M``, second order at one call a row, with the dial ``eta``;
  ``Churn`` around ``Heun``. ``DDPM`` and ``DDIM(eta)`` are its first order, and too narrow at few rows.
* ``EulerMaruyama`` and ``ReverseDiffusion`` are the textbook's: hundreds of rows. With the exact score ``PredictorCorrector``
  is seldom better than its predictor alone with as many calls: a row more is worth more.
"""

from .base import GaussianKernel, Kernel, check_kernel
from .ddim import DDIM
from .ddpm import DDPM
from .guidance import Guided, guided
from .marginal import Marginal
from .multistep import DPMSolverPP3M, UniPC
from .ode import DPMSolverPP2M, Euler, Heun
from .plms import PLMS, PRK
from .predictor_corrector import AnnealedLangevin, Corrector, Langevin, PredictorCorrector
from .predictors import EulerMaruyama, Predictor, ReverseDiffusion
from .runge_kutta import RK4
from .stochastic import Churn, SDEDPMSolverPP2M

__all__ = [
    "DDIM",
    "DDPM",
    "PLMS",
    "PRK",
    "RK4",
    "AnnealedLangevin",
    "Churn",
    "Corrector",
    "DPMSolverPP2M",
    "DPMSolverPP3M",
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
    "UniPC",
    "check_kernel",
    "guided",
]
