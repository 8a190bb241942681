"""What a prior is told on the command line: a class, a sentence, boxes; and what it needs that no option gives."""

from __future__ import annotations

import argparse

from .errors import UserError, library_errors

BOX = "NAME:TOP,LEFT,BOTTOM,RIGHT"


def add_options(group, nargs=None):
    """--text and --boxes. nargs: "+" where several texts can be given."""
    group.add_argument("--text", metavar="WORDS", nargs=nargs, help="for a prior that reads words: \"a red apple above two "
                       "cherries\" (default: none are told)")  # fmt: skip
    group.add_argument(
        "--boxes",
        metavar=BOX,
        type=box,
        nargs="+",
        default=[],
        help="for a prior that is told boxes: what is where, sides in [0, 1] of the picture, apple:0.1,0.1,0.5,0.5",
    )


def box(text: str) -> tuple:
    """An argparse type: NAME:TOP,LEFT,BOTTOM,RIGHT -> (name, top, left, bottom, right)."""
    name, colon, sides = text.rpartition(":")
    try:
        numbers = [float(side) for side in sides.split(",")]
    except ValueError:
        numbers = []
    if not (name and colon and len(numbers) == 4):
        raise argparse.ArgumentTypeError(f"{text!r} is no box: write {BOX}, for example apple:0.1,0.1,0.5,0.5")
    return name, *numbers


def check(o, prior, label=None) -> None:
    """UserError where the prior is told something of another kind than it reads, or needs what is not there."""
    given = ["--text"] * (o.text is not None) + ["--boxes"] * bool(o.boxes)
    if prior.beside:
        given += ["--label"] * (label is not None)
        if given:
            raise UserError(f"prior {prior.name} is told what is measured of a picture: leave out {' and '.join(given)}")
        return
    if prior.conditional and label is not None:
        takes = "--text" if reads(prior) else "no label"
        raise UserError(f"prior {prior.name} knows no labels, it is told {kinds(prior)}: use {takes} in place of --label")
    if given and not prior.conditional:
        instead = (
            f"--label, one of {', '.join(prior.class_names)}" if prior.class_names else "--label" if prior.classes else ""
        )
        raise UserError(f"prior {prior.name} reads neither words nor boxes: " + (f"use {instead}" if instead else
                        f"leave out {' and '.join(given)}"))  # fmt: skip
    if prior.conditional and not reads(prior):
        if given:
            raise UserError(f"prior {prior.name} is told {kinds(prior)}, not words of a list: its own tokeniser makes them, "
                            "use prior.denoiser(cond=...) in Python")  # fmt: skip
        if prior.null is None:
            takes = prior.card.get("condition", {})
            image = set(takes) == {"concat"} and hasattr(o, "task")  # a program that restores
            of = "inpaint-ldm" if image and takes["concat"][-1] == prior.shape[-1] + 1 else "sr4"
            made = f", or say what it is made of, --prior-config beside={of}" if image else ""
            raise UserError(f"prior {prior.name} needs {kinds(prior)}, which no option gives: use prior.denoiser(cond=...) in "
                            f"Python{made}")  # fmt: skip
    if o.boxes and not prior.vocabulary.boxes:
        raise UserError(f"prior {prior.name} is told no boxes: use --text")


def reads(prior) -> bool:
    """Whether there is a list of words and names of boxes."""
    return "vocabulary" in prior.card


def kinds(prior) -> str:
    """What the condition is of."""
    if reads(prior):
        known = prior.vocabulary
        return " and ".join(["words"] * bool(known.length) + ["boxes"] * bool(known.boxes))
    shapes = prior.card.get("condition", {})
    return ", ".join(f"{name} {'x'.join(map(str, shape)) or 'a number'}" for name, shape in shapes.items()) or "a condition"


def conditions(o, prior) -> list:
    """[(the condition, its name)] of each --text with the --boxes; [(None, the prior's name)] where nothing is told."""
    texts = o.text if isinstance(o.text, list) else [o.text]
    if not o.boxes and not any(texts):
        return [(None, prior.name)]
    with library_errors():
        return [(prior.vocabulary.condition(text or "", o.boxes), text or boxed(o.boxes)) for text in texts or [None]]


def entries(o, prior) -> dict:
    """What metrics.json says of it."""
    return {"text": o.text, "boxes": o.boxes} if prior.conditional else {}


def boxed(boxes) -> str:
    return " ".join(name for name, *_ in boxes)
