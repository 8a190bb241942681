"""The words and boxes that a prior can be told: from text and boxes to the arrays of its condition, and back.

``prior.vocabulary`` is that of a prior's card. The arrays are those of ``nets.TokenEncoder``: nothing is zero everywhere.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from ..base import nearest


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """words: those known, the first is the empty one; length: the most in a text; classes: names of what a box may hold, the
    first is none; boxes: the most in a picture."""

    words: tuple[str, ...]
    length: int
    classes: tuple[str, ...] = ("",)
    boxes: int = 0

    @classmethod
    def of(cls, entry: Mapping) -> Vocabulary:
        """From JSON, as :meth:`entry` makes it. Raises ValueError if something is missing."""
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in entry]
        if missing:
            raise ValueError(f"the vocabulary lacks {', '.join(missing)}: copy the prior again")
        return cls(tuple(entry["words"]), int(entry["length"]), tuple(entry["classes"]), int(entry["boxes"]))

    def entry(self) -> dict:
        """As JSON can hold it."""
        return dataclasses.asdict(self)

    def condition(self, text: str = "", boxes: Sequence = ()) -> dict:
        """{"tokens" (length,), "boxes" (N, 4), "classes" (N,)} of a text and of boxes, each (name, top, left, bottom, right)
        with sides in [0, 1] of the picture.

        Raises ValueError for an unknown word or name, for too many of them, and for a box that is none.
        """
        said = re.findall(r"[a-z]+", text.lower())
        if len(said) > self.length:
            raise ValueError(f"the text has {len(said)} words, this prior reads {self.length}: use fewer")
        if len(boxes) > self.boxes:
            raise ValueError(f"{len(boxes)} boxes are more than this prior's {self.boxes}: use fewer")
        tokens, kinds = np.zeros(self.length, np.int32), np.zeros(self.boxes, np.int32)
        places = np.zeros((self.boxes, 4), np.float32)
        tokens[: len(said)] = [self._index(word, self.words, "word") for word in said]
        for n, (name, *sides) in enumerate(boxes):
            kinds[n], places[n] = self._index(name, self.classes, "box"), self._box(name, sides)
        told = {"tokens": tokens, "boxes": places, "classes": kinds}
        return {name: a for name, a in told.items() if a.size}

    def text(self, tokens) -> str:
        """The words of tokens (length,)."""
        return " ".join(self.words[int(i)] for i in tokens if int(i))

    @staticmethod
    def _index(word, known, what):
        if not word or word not in known:
            raise ValueError(f"unknown {what} {word!r}: {nearest(word, known[1:])}")
        return known.index(word)

    @staticmethod
    def _box(name, sides):
        sides = np.asarray(sides, np.float64)
        if sides.shape != (4,) or not (np.all(sides >= 0) and np.all(sides <= 1) and np.all(sides[:2] < sides[2:])):
            raise ValueError(f"the box of {name!r} is {sides.tolist()}: give top, left, bottom, right in [0, 1], top < bottom "
                             "and left < right")  # fmt: skip
        return sides
