"""What was measured: y = A(x) + noise. Frozen pytrees for one image; batches are ``vmap``."""

from .base import Operator, from_function
from .downsample import Downsample
from .mask import Mask

__all__ = ["Downsample", "Mask", "Operator", "from_function"]
