"""What was measured: y = A(x) + noise. Frozen pytrees for one image; batches are ``vmap``."""

from . import masks, noise
from .base import Operator, Spectral, cg_prox, from_function, stack
from .blur import Blur
from .checks import check_image
from .colour import Grey
from .decoded import Decoded, latent_mask, masked_latents
from .downsample import Downsample
from .mask import Mask
from .matrix import matrix, separable
from .noise import measure
from .phase import PhaseRetrieval
from .psf import anisotropic_kernel, gaussian_kernel, motion_kernel, uniform_kernel
from .resize import Resize, resize, resize_matrix
from .slices import SliceAverage, ThickSlices
from .transforms import Fourier, Hadamard, random_mask

__all__ = [
    "Blur",
    "Decoded",
    "Downsample",
    "Fourier",
    "Grey",
    "Hadamard",
    "Mask",
    "Operator",
    "PhaseRetrieval",
    "Resize",
    "SliceAverage",
    "Spectral",
    "ThickSlices",
    "anisotropic_kernel",
    "cg_prox",
    "check_image",
    "from_function",
    "gaussian_kernel",
    "latent_mask",
    "masked_latents",
    "masks",
    "matrix",
    "measure",
    "motion_kernel",
    "noise",
    "random_mask",
    "resize",
    "resize_matrix",
    "separable",
    "stack",
    "uniform_kernel",
]
