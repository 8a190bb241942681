"""What was measured: y = A(x) + noise. Frozen pytrees for one image; batches are ``vmap``."""

from .base import Operator, Spectral, cg_prox, from_function, stack
from .downsample import Downsample
from .mask import Mask

__all__ = ["Downsample", "Mask", "Operator", "Spectral", "cg_prox", "from_function", "stack"]
