"""Make a prior of a training run: ``python -m experiments.export RUN_FOLDER NAME_OR_FOLDER [--checkpoint best]``.

Writes the averaged weights in half precision (weights.safetensors) and a card (card.json). A plain NAME goes to
diffjax/zoo/NAME, from where ``zoo.load(NAME)`` and ``--prior NAME`` find it; anything with a slash is a folder.
The card's quality is measured afterwards: ``python -m experiments.evaluate_prior NAME_OR_FOLDER``.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from pathlib import Path

from experiments import errors, options
from experiments.errors import UserError

# What a card says of a data set: by a word in the configuration's path to it.
DATA = {
    "fashion": {
        "licence": "Apache-2.0, as the code",
        "data": {
            "name": "Fashion-MNIST, 60,000 training images, 28x28 padded with black to 32x32, in [-1, 1]",
            "origin": "H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST, arXiv:1708.07747; Debian package dataset-fashion-mnist",
            "licence": "MIT, Copyright 2017 Zalando SE",
        },
    },
    "fruits": {
        "licence": "CC BY-SA 4.0, as the images it was trained on",
        "data": {
            "name": "Fruits-360, 3-body-problem edition: 1,666 training images of 49 varieties of apples, cherries and"
                    " tomatoes, reduced from 100x100, in [-1, 1]; 128 test images of 16 other varieties;"
                    " python -m experiments.fruits",
            "origin": "Mihai Oltean: Fruits-360 dataset, 2017-; GitHub fruits-360/fruits-360-3-body-problem,"
                      " commit f0f029370699ac3317e66d09878cf537af67a3ae",
            "licence": "CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/), Copyright 2017- Mihai Oltean",
        },
    },
}  # fmt: skip


def command(config) -> str:
    """The training command: the name of the configuration and every option that differs from its file."""
    text = f"python -m experiments.train {config.name}"
    try:
        base = importlib.import_module(f"experiments.configs.{config.name}").config
    except ImportError:
        return text
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), getattr(base, field.name)
        if value != default and field.name not in ("name", "out"):
            text += f" --{field.name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
    return text


def cost(folder: Path, step: int) -> dict:
    """What the log of a run says up to ``step``: images seen, seconds, and the held-out losses there."""
    result = {"images_seen": None, "seconds": None}
    try:
        lines = (folder / "log.jsonl").read_text().splitlines()
    except OSError:
        return result
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # a kill cut the last line
            continue
        if record.get("step", step + 1) > step:
            continue
        result["seconds"] = record["seconds"]
        if record["kind"] == "train":
            result["images_seen"] = record["images"]
        if record["kind"] == "held_out":
            result["held_out_loss"] = record["mean"]
    return result


def export(run: str, target: str, which="best", note: str = "") -> Path:
    """-> the folder written. Raises ValueError if the run cannot be read or the folder not written."""
    import jax

    import diffjax.zoo
    from experiments import training_run

    if not (Path(run) / "config.json").is_file():
        raise UserError(f"{run} is not the folder of a training run: it has no config.json")
    config = training_run.read_config(Path(run) / "config.json")
    params, step = diffjax.zoo.prior.read_run(Path(run), which)
    plain = os.sep not in target and target not in (".", "..")
    folder = Path(diffjax.zoo.__file__).parent / target if plain else Path(target)
    name = folder.name
    card = {"name": name}
    bundled = diffjax.zoo.bundled
    for word, classes in (("fashion", bundled.FASHION_CLASSES), ("fruits", bundled.FRUITS_CLASSES)):
        if word in str(config.data).lower():
            card |= DATA[word] | {"class_names": list(classes)[: config.classes]}
    card["config"] = dataclasses.asdict(config)
    card["training"] = {
        "command": command(config),
        "checkpoint": step,
        **cost(Path(run), step),
        "parameters": sum(a.size for a in jax.tree.leaves(params)),
        **({"machine": note} if note else {}),
    }
    card["weights"] = "exponential average of the parameters, float16"
    card["commands"] = {
        "export": f"python -m experiments.export {run} {target}",
        "quality": f"python -m experiments.evaluate_prior {target}",
        "use": f"python -m experiments.restore --prior {target}",
    }
    try:
        diffjax.zoo.save(folder, params, card)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): give another name or folder") from None
    return folder


def main(argv=None) -> int:
    return errors.run(lambda: _main(argv))


def _main(argv) -> int:
    parser = options.Parser("experiments.export", __doc__)
    parser.add_argument("run", metavar="RUN_FOLDER", help="folder of a training run, for example runs/fashion32")
    parser.add_argument("target", metavar="NAME_OR_FOLDER", help="a name for the zoo, or a folder (with a slash)")
    parser.add_argument("--checkpoint", default="best", help="best, last or a step number (default: best)")
    parser.add_argument("--machine", default="", help="a note for the card on where and how fast it was trained")
    given = parser.parse(argv)
    which = int(given.checkpoint) if given.checkpoint.isdecimal() else given.checkpoint
    if which not in ("best", "last") and not isinstance(which, int):
        raise errors.unknown("checkpoint", given.checkpoint, ("best", "last"))
    with errors.library_errors():
        folder = export(given.run, given.target, which, given.machine)
    print(f"wrote {folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
