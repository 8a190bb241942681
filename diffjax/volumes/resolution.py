"""How a coarse volume comes of a fine one, and the plain way back: interpolation.

in-plane       both axes of the slices: a crop of k-space (the lowest frequencies of the mirrored image), or bicubic
through-plane  the axis of the slices: thick slices, averages over a stated slice profile

Both are operators of the library on (D, H, W, C); here they act on (X, Y, Z), whatever the axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..base import nearest, whole
from ..operators import Resize, ThickSlices, resize_matrix
from ..operators.slices import PROFILES, slice_matrix

IN_PLANE, THROUGH_PLANE = "in-plane", "through-plane"
PLANES = (IN_PLANE, THROUGH_PLANE)


@dataclass(frozen=True)
class Coarse:
    """A volume (X, Y, Z) that is ``factor`` times coarser.

    plane   "in-plane": along both axes but ``axis``; "through-plane": along ``axis``
    axis    0, 1 or 2, that of the slices
    how     in-plane: "fourier" (k-space crop) or a kernel of ``operators.Resize``; through-plane: the slice profile, "box" or
            "gaussian", see ``operators.ThickSlices``; None: "fourier" and "box"
    Raises ValueError for other planes, axes and ways, and for factors below 1.
    """

    plane: str = THROUGH_PLANE
    factor: int = 2
    axis: int = 2
    how: str | None = None

    def __post_init__(self):
        if self.plane not in PLANES:
            raise ValueError(f"plane {self.plane!r} is unknown: {nearest(str(self.plane), PLANES)}")
        whole("axis of the slices", self.axis, 0, 2)
        how = self.how or ("fourier" if self.plane == IN_PLANE else PROFILES[0])
        object.__setattr__(self, "how", how)
        object.__setattr__(self, "factor", whole("factor", self.factor))
        _ = self.operator

    @property
    def axes(self) -> tuple:
        """The axes that are coarser."""
        return (self.axis,) if self.plane == THROUGH_PLANE else tuple(a for a in range(3) if a != self.axis)

    @property
    def operator(self):
        """The operator on (D, H, W, C): of in-plane with the slices' axis first, of through-plane as the volume lies."""
        if self.plane == IN_PLANE:
            return Resize(self.factor, self.how)
        return ThickSlices(self.factor, self.axis, self.how)

    def __call__(self, volume):
        """(X, Y, Z) -> the coarse volume, on the host: what ``operator`` gives, without a program for each shape. Raises
        ValueError where the factor does not divide an axis that gets coarser."""
        for axis in self.axes:
            if (n := volume.shape[axis]) % self.factor:
                raise ValueError(f"factor {self.factor} does not divide axis {axis} of {n}: keep {n - n % self.factor}")
        matrix = resize_matrix if self.plane == IN_PLANE else slice_matrix
        factor = 1 / self.factor if self.plane == IN_PLANE else self.factor
        return _along(volume, self.axes, lambda n: matrix(n, factor, self.how))

    def enlarge(self, coarse, kernel: str = "cubic"):
        """Back to the fine grid by interpolation."""
        return _along(coarse, self.axes, lambda n: resize_matrix(n, float(self.factor), kernel))

    def fine_shape(self, shape) -> tuple:
        return tuple(n * self.factor if a in self.axes else n for a, n in enumerate(shape))

    def fitting(self, volume):
        """The volume cropped at its ends to axes that the factor divides."""
        return volume[tuple(slice(n // self.factor * self.factor) if a in self.axes else slice(None)
                            for a, n in enumerate(volume.shape))]  # fmt: skip


def _along(volume, axes, matrix):
    """``matrix(length)`` along each of the axes, in the volume's dtype."""
    out = np.asarray(volume)
    for axis in axes:
        M = matrix(out.shape[axis]).astype(out.dtype)
        out = np.moveaxis(np.tensordot(M, out, (1, axis)), 0, axis)
    return np.ascontiguousarray(out)
