"""Build the data set of pictures to be told about: ``python -m experiments.orchard [--fruits data/fruits64.npz]``.

One to three fruits of Fruits-360 at random places and sizes on white, 64x64, each picture with a sentence made from its layout
("a red apple above two cherries") and its boxes. Leaves orchard64.npz with

  x_train, x_test              (N, 64, 64, 3) uint8; test pictures show the held-out varieties
  tokens_train, tokens_test    (N, 12): the words, as numbers of the vocabulary; 0 is no word
  boxes_train, boxes_test      (N, 3, 4): top, left, bottom, right in [0, 1], the bounding box of the fruit itself
  classes_train, classes_test  (N, 3): 0 no box, 1 apple, 2 cherry, 3 tomato
  vocabulary                   all this in words, JSON (diffjax.zoo.vocabulary)

Boxes do not overlap. A sentence never says what is not so, but it does not say all: a colour may be left out, and where
there are several of a kind they may be counted. The licence is that of the fruits, CC BY-SA 4.0.

Beside it lies phase_one64.npz with x_train and x_test, what the one autoencoder of fruits64 and orchard64 learns: the fruits
as they are, and twice as many of these pictures.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from diffjax.cli import errors, options
from diffjax.cli.errors import UserError
from diffjax.cli.images import pillow
from diffjax.cli.progress import Progress
from diffjax.zoo.vocabulary import Vocabulary

SIZE, MOST = 64, 3
NAMES = ("apple", "cherry", "tomato")
PLURAL = {"apple": "apples", "cherry": "cherries", "tomato": "tomatoes"}
COLOURS = ("red", "orange", "yellow", "green", "dark", "grey")
NUMBERS = {2: "two", 3: "three"}
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
WORDS = ("", "a", "an", "two", "three", "and", "above", "below", "left", "right", "of", *COLOURS, *NAMES, *PLURAL.values())
VOCABULARY = Vocabulary(WORDS, 12, ("", *NAMES), MOST)
SIDES = {1: (24, 52), 2: (18, 34), 3: (16, 28)}  # pixels of a fruit's longer side, by how many there are
SPOKEN = 0.7  # how often a colour is said


def main(argv=None) -> int:
    return errors.run(lambda: _main(argv))


def _main(argv) -> int:
    p = options.Parser("experiments.orchard", __doc__)
    p.add_argument("--fruits", metavar="FILE", default="data/fruits64.npz", help="default: data/fruits64.npz")
    p.add_argument("--out", metavar="FILE", default="data/orchard64.npz", help="default: data/orchard64.npz")
    p.add_argument("--train", metavar="N", type=options.whole(1), default=12_000, help="pictures to train on (default: 12000)")
    p.add_argument("--test", metavar="N", type=options.whole(1), default=512, help="pictures to test on (default: 512)")
    o = p.parse(argv)
    try:
        with np.load(o.fruits, allow_pickle=False) as archive:
            fruits = {name: archive[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    except (OSError, ValueError, KeyError) as error:
        why = errors.one_line(error)
        raise UserError(f"--fruits {o.fruits} cannot be read ({why}): make it, python -m experiments.fruits") from None
    arrays = {"vocabulary": np.array(json.dumps(VOCABULARY.entry()))}
    with Progress(o.train + o.test, label="planting", unit="pictures") as bar:
        for part, count, seed in (("train", o.train, 0), ("test", o.test, 1)):
            crops, labels, made = cut(fruits[f"x_{part}"]), fruits[f"y_{part}"], []
            for n in range(count):
                made.append(picture(crops, labels, np.random.default_rng((seed, n))))
                bar.update()
            for name in made[0]:
                arrays[f"{name}_{part}"] = np.stack([one[name] for one in made])
    both = {x: np.concatenate([fruits[x], arrays[x][: 2 * len(fruits[x])]]) for x in ("x_train", "x_test")}
    out = Path(o.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for file, found in ((out, arrays), (out.with_name("phase_one64.npz"), both)):
            np.savez_compressed(file, **found)
            print(f"wrote {file}")
    except OSError as error:
        raise UserError(f"--out {o.out} cannot be written ({error.strerror}): give another file") from None
    return 0


# --- fruits ---------------------------------------------------------------------------------------------------------


def pieces(image: np.ndarray):
    """(H, W) of what is on white, uint8: 0 the nearly white that hangs together with the border, then a number for each piece,
    its holes filled; and how many there are."""
    from scipy import ndimage

    white = (image.min(-1) >= 225) & (np.ptp(image.astype(int), axis=-1) < 25)
    framed = np.pad(white, 1, constant_values=True)
    found, _ = ndimage.label(framed)
    return ndimage.label(ndimage.binary_opening(found != found[0, 0])[1:-1, 1:-1])


def foreground(image: np.ndarray) -> np.ndarray:
    """bool (H, W) of one fruit on white, uint8: the largest piece."""
    numbered, count = pieces(image)
    return numbered == 1 + np.argmax(np.bincount(numbered.ravel())[1:]) if count else np.ones(image.shape[:2], bool)


def cut(images: np.ndarray) -> list:
    """[(the fruit's bounding box on pure white, its colour)] of fruits on white, uint8."""
    from scipy import ndimage

    found = []
    for image in images:
        fruit = foreground(image)
        rows, columns = (np.flatnonzero(fruit.any(axis)) for axis in (1, 0))
        clean = np.where(ndimage.binary_dilation(fruit)[..., None], image, 255).astype(np.uint8)
        found.append((clean[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], colour(image[fruit].mean(0))))
    return found


def colour(rgb) -> str:
    """The word for a mean colour, 0..255."""
    import colorsys

    hue, saturation, value = colorsys.rgb_to_hsv(*(np.asarray(rgb, float) / 255))
    hue *= 360
    if saturation < 0.2:
        return "grey"
    if 45 <= hue < 175 and (value < 0.5 or hue > 75):
        return "green"
    if value < 0.31:
        return "dark"
    if hue < 17 or hue > 300:
        return "red"
    return "orange" if hue < 34 else "yellow"


# --- pictures -------------------------------------------------------------------------------------------------------


def picture(crops, labels, rng) -> dict:
    """One picture: {"x", "tokens", "boxes", "classes"}."""
    while True:
        count = int(rng.choice((1, 2, 3), p=(0.25, 0.35, 0.4)))
        chosen = rng.integers(len(crops), size=count)
        sizes = [scaled(crops[i][0].shape, int(rng.integers(*SIDES[count], endpoint=True))) for i in chosen]
        boxes = place(sizes, rng)
        if boxes is None:
            continue
        things = [(NAMES[labels[i]], crops[i][1]) for i in chosen]
        said = sentence(things, boxes, rng)
        if said is not None:
            break
    x = np.full((SIZE, SIZE, 3), 255, np.uint8)
    Image = pillow()
    for i, (top, left, bottom, right) in zip(chosen, boxes):
        crop = crops[i][0][:, :: int(rng.choice((-1, 1)))]
        small = Image.fromarray(np.ascontiguousarray(crop)).resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        x[top:bottom, left:right] = np.asarray(small)
    order = rng.permutation(count)
    told = VOCABULARY.condition(said, [(things[n][0], *(side / SIZE for side in boxes[n])) for n in order])
    return {"x": x, **told}


def scaled(shape, longer) -> tuple[int, int]:
    height, width = shape[:2]
    return max(1, round(height * longer / max(height, width))), max(1, round(width * longer / max(height, width)))


def place(sizes, rng, tries=50):
    """Boxes (top, left, bottom, right) in pixels of these sizes, none touching another; None if it did not come out."""
    boxes = []
    for height, width in sizes:
        for _ in range(tries):
            top, left = int(rng.integers(SIZE - height + 1)), int(rng.integers(SIZE - width + 1))
            box = (top, left, top + height, left + width)
            if all(gap(box, other)[1] >= 1 for other in boxes):
                boxes.append(box)
                break
        else:
            return None
    return boxes


def gap(a, b) -> tuple[str, int]:
    """(where a lies as seen from b, the pixels between them along that axis), the axis with the larger gap."""
    gaps = {"above": b[0] - a[2], "below": a[0] - b[2], "left of": b[1] - a[3], "right of": a[1] - b[3]}
    return max(gaps.items(), key=lambda item: item[1])


def relation(these, those) -> str | None:
    """The one word for where all of these lie as seen from all of those, or None."""
    for word in OPPOSITE:
        axis = 0 if word in ("above", "below") else 1
        ahead, behind = (these, those) if word in ("above", "left of") else (those, these)
        if max(box[axis + 2] for box in ahead) <= min(box[axis] for box in behind):
            if all(gap(a, b)[0] == word for a in these for b in those):
                return word
    return None


def sentence(things, boxes, rng) -> str | None:
    """What is to be said of [(name, colour)] in boxes, or None where no relation holds."""
    groups = {}
    apart = rng.random() < 0.5  # a red apple and a green apple: two apples, or one of each
    for (name, hue), box in zip(things, boxes):
        groups.setdefault((name, hue if apart else None), []).append((hue, box))
    phrases = []
    for (name, _), members in groups.items():
        phrases.append((phrase(name, [hue for hue, _ in members], rng), [box for _, box in members]))
    if len(phrases) == 1:
        return phrases[0][0]
    for n in rng.permutation(len(phrases)):
        said, here = phrases[n]
        rest = [phrases[m] for m in range(len(phrases)) if m != n]
        where = relation(here, [box for _, there in rest for box in there])
        if where is not None and len({text for text, _ in phrases}) == len(phrases):
            return f"{said} {where} {' and '.join(text for text, _ in rest)}"
    return None


def phrase(name, hues, rng) -> str:
    """ "a red apple", "two cherries": a colour only where all have it, and not always."""
    words = [hues[0]] if len(set(hues)) == 1 and rng.random() < SPOKEN else []
    words.append(name if len(hues) == 1 else PLURAL[name])
    count = NUMBERS[len(hues)] if len(hues) > 1 else ("an" if words[0][0] in "aeiou" else "a")
    return " ".join([count, *words])


if __name__ == "__main__":
    sys.exit(main())
