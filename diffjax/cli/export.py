"""Make a prior of a training run: ``diffjax export RUN_FOLDER FOLDER [--checkpoint best]``.

Writes the averaged weights in half precision (weights.safetensors) and a card (card.json) into FOLDER, where ``zoo.load`` and
``--prior`` find it. Its quality is measured afterwards: ``diffjax evaluate-prior FOLDER``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from . import config as configuration
from . import errors, interrupt, options
from .errors import UserError

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
                    " experiments/fruits.py of the repository makes it",
            "origin": "Mihai Oltean: Fruits-360 dataset, 2017-; GitHub fruits-360/fruits-360-3-body-problem,"
                      " commit f0f029370699ac3317e66d09878cf537af67a3ae",
            "licence": "CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/), Copyright 2017- Mihai Oltean",
        },
    },
}  # fmt: skip
DATA["orchard"] = DATA["fruits"] | {"data": DATA["fruits"]["data"] | {
    "name": "pictures of one to three fruits, 64x64, made by experiments/orchard.py of the repository from Fruits-360,"
            " 3-body-problem edition: 49 varieties to train, 16 others to test"}}  # fmt: skip


def cost(folder: Path, step: int) -> dict:
    """What the log of a run says up to ``step``: images seen, seconds, and the held-out losses there."""
    result = {"images_seen": None, "seconds": None}
    try:
        lines = (folder / "log.jsonl").read_text(errors="replace").splitlines()
    except OSError:
        return result
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # a kill cut the last line
            continue
        if not isinstance(record, dict) or not isinstance(at := record.get("step"), int) or at > step:
            continue
        result["seconds"] = record.get("seconds")
        if record.get("kind") == "train":
            result["images_seen"] = record.get("images")
        if record.get("kind") == "held_out":
            result["held_out_loss"] = record.get("mean")
    return result


def export(run: str, target: str, which="best", note: str = "") -> Path:
    """-> the folder written. Raises ValueError if the run cannot be read or the folder not written."""
    import jax

    from .. import zoo

    if not (Path(run) / "config.json").is_file():
        raise UserError(f"{run} is not the folder of a training run: it has no config.json")
    config = configuration.read(Path(run) / "config.json")
    if isinstance(config, configuration.FirstStageConfig):
        raise UserError(f"{run} is the run of an autoencoder: export the prior that was trained on its latents")
    folder = _new(target, zoo)
    params, step = zoo.prior.read_run(Path(run), which)
    params = {"params": params["params"]}  # not what only the loss asks for
    auto, entry = zoo.first_stage.of_run(Path(run), dataclasses.asdict(config))
    card = {"name": folder.name}
    names = {"fashion": zoo.bundled.FASHION_CLASSES, "fruits": zoo.bundled.FRUITS_CLASSES}
    for word in DATA:
        if word in str(config.data).lower():
            card |= DATA[word] | {"class_names": list(names.get(word, ()))[: config.classes]}
    card["config"] = dataclasses.asdict(config) | {"out": f"runs/{config.name}"}  # not where it lay on this machine
    card |= entry | zoo.prior.read_vocabulary(run)
    first = Path(config.autoencoder or "")
    if config.autoencoder and (first / "config.json").is_file():
        what = configuration.command(configuration.read(first / "config.json"))
        card["autoencoder"]["training"] = {"command": what, **cost(first, 10**9)}
    card["training"] = {
        "command": configuration.command(config),
        "checkpoint": step,
        **cost(Path(run), step),
        "parameters": sum(a.size for a in jax.tree.leaves(params)),
        **({"machine": note} if note else {}),
    }
    card["weights"] = "exponential average of the parameters, float16"
    card["commands"] = {
        "export": f"diffjax export {run} {target}",
        "quality": f"diffjax evaluate-prior {target}",
        "use": f"diffjax {'sample' if config.network == 'latent' else 'restore'} --prior {target}",
    }
    try:
        zoo.save(folder, params, card, autoencoder=auto)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): give another folder") from None
    return folder


def _new(target: str, zoo) -> Path:
    """The folder to write into: new, empty, or of an earlier export of ours. Raises UserError for others."""
    folder = Path(target)
    if not target.strip() or folder.resolve() == Path().resolve():
        raise UserError(f"target {target!r} is no folder of its own: give a name for the prior")
    if folder.resolve().parent == Path(zoo.__file__).resolve().parent:
        raise UserError(f"target {target} is within the package: give a folder of your own")
    try:
        there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        if folder.exists() and not folder.is_dir():
            raise UserError(f"target {target} is a file: give a folder")
        ours = "commands" in zoo.prior.read_json(folder / "card.json") if "card.json" in there else not there
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"target {target} cannot be looked at ({errors.one_line(error)}): give another folder") from None
    if not ours:
        raise UserError(f"target {target} has other files in it, which are kept: give a new or empty folder")
    return folder


def main(argv=None) -> int:
    return interrupt.run(lambda stop: _main(argv))


def _main(argv) -> int:
    parser = options.Parser("export", __doc__)
    parser.add_argument("run", metavar="RUN_FOLDER", help="folder of a training run, for example runs/fashion32")
    parser.add_argument("target", metavar="FOLDER", help="where to; its name becomes the prior's")
    parser.add_argument("--checkpoint", default="best", help="best, last or a step number (default: best)")
    parser.add_argument("--machine", default="", help="a note for the card on where and how fast it was trained")
    given = parser.parse(argv)
    which = int(given.checkpoint) if given.checkpoint.isdecimal() else given.checkpoint
    if which not in ("best", "last") and not isinstance(which, int):
        raise errors.unknown("checkpoint", given.checkpoint, ("best", "last"))
    with errors.library_errors(), errors.needs("reading a run", 'pip install "diffjax[train]"'):
        folder = export(given.run, given.target, which, given.machine)
    print(f"wrote {folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}")
    return 0
