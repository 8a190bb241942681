"""Two-dimensional cuts of a volume, which is what a network of images sees, and the intensities that it expects.

In-plane the cuts are the slices. Through-plane they contain the axis of the slices, which comes first, so that a network meets
the coarse axis always as rows; there are two such stacks of cuts, and what comes of them is averaged or one is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .resolution import IN_PLANE, Coarse


@dataclass(frozen=True)
class Cuts:
    """One stack of cuts. order: axis of the volume that counts the cuts, that of their rows, that of their columns."""

    order: tuple

    def of(self, volume):
        """(X, Y, Z) -> (cuts, rows, columns)"""
        return volume.transpose(self.order)

    def volume(self, cuts):
        """The way back."""
        return cuts.transpose(tuple(int(a) for a in np.argsort(self.order)))


def cuts_of(coarse: Coarse) -> list[Cuts]:
    """The stacks of cuts that a network may look at: one in-plane, two through-plane."""
    a = coarse.axis
    b, c = (n for n in range(3) if n != a)
    return [Cuts((a, b, c))] if coarse.plane == IN_PLANE else [Cuts((b, a, c)), Cuts((c, a, b))]


@dataclass(frozen=True)
class Intensity:
    """A volume's numbers as [-1, 1] and back: ``low`` becomes -1 and ``high`` 1. Nothing is clipped or rounded.

    A network's images end at -1 and 1; what lies beyond them is kept aside as ``beyond`` and added again.
    """

    low: float
    high: float

    @classmethod
    def of(cls, volume, percentiles=(0.5, 99.8)):
        """By the percentiles of its finite numbers (default: those of the shipped networks' training volumes).

        Raises ValueError where nothing is finite, or where all of it is one number.
        """
        finite = np.asarray(volume)[np.isfinite(volume)]
        if not finite.size:
            raise ValueError("the volume has no finite number in it: nothing can be restored")
        low, high = (float(v) for v in np.percentile(finite.astype(np.float64), percentiles))
        if not high > low:  # a small thing on a large background
            low, high = float(finite.min()), float(finite.max())
        if not high > low:
            raise ValueError(f"the volume is {low:g} everywhere: there is nothing to restore")
        return cls(low, high)

    def normalised(self, volume):
        return (2 * (np.asarray(volume, np.float64) - self.low) / (self.high - self.low) - 1).astype(np.float32)

    def restored(self, x):
        return ((np.asarray(x, np.float64) + 1) * 0.5 * (self.high - self.low) + self.low).astype(np.float32)
