"""Where a public checkpoint's files are: weights, the configuration of the network, that of the scheduler."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..convert import files
from ..wording import some
from . import hub
from .network import read_json

SUFFIXES = (".safetensors", ".npz", *files.TORCH)
AUTOENCODERS = ("vqvae", "vae", "movq", "first_stage_model")  # sub-folders of latent diffusion
UNET = {"block_out_channels", "down_block_types"}  # a config.json with one of them is of a UNet2DModel, class named or not


def is_public(path: Path) -> bool:
    """Whether a path is a checkpoint's file, or a folder with a `UNet2DModel`."""
    if path.is_file():
        return path.suffix in SUFFIXES
    if (path / "unet").is_dir() or (path / "model_index.json").is_file():
        return True
    return (path / "config.json").is_file() and bool(read_json(path / "config.json").keys() & {"_class_name", *UNET})


def locate(path: Path, config: Mapping | None, notes: list):
    """(file of weights, what is given of the configuration, UNet2DModel's and the scheduler's configuration or None).

    The config.json beside a file belongs to it whatever the file is called; mine.json beside mine.pt comes first.
    """
    given = dict(config or {})
    if not path.is_dir():
        beside, own = path.with_suffix(".json"), path.parent / "config.json"
        if beside.is_file() and beside != own:
            return path, read_json(beside) | given, None, None
        if own.is_file() and path.suffix in (*SUFFIXES, ".json") and is_public(path.parent):
            _check_space(path.parent)
            return path, given, unet(own), scheduler(path.parent, path.parent.parent)
        return path, given, None, None
    folder = path / "unet" if (path / "unet").is_dir() else path
    _check_space(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"folder {folder} has no config.json of a UNet2DModel: give the file of weights itself")
    return weights(folder, notes), given, unet(folder / "config.json"), scheduler(path, folder)


def weights(folder, notes):
    """The file of weights of a folder: the plain one, shards, or the only variant."""
    there = [folder / name for name in (*hub.WEIGHTS, *(f"{name}{files.INDEX}" for name in hub.WEIGHTS))]
    if found := next((file for file in there if file.is_file()), None):
        return found
    stems = tuple(name.rsplit(".", 1)[0] for name in hub.WEIGHTS)
    variants = sorted(f for f in folder.iterdir() if f.is_file() and f.name.startswith(stems) and
                      (f.name.endswith(files.INDEX) or (f.suffix in SUFFIXES and "-of-" not in f.name)))  # fmt: skip
    if not variants:
        raise ValueError(f"folder {folder} has no weights: it needs {' or '.join(hub.WEIGHTS)}")
    if len(variants) > 1:
        raise ValueError(
            f"folder {folder} has several variants, {some((f.name for f in variants), 4)}: give one of these files"
        )
    notes.append(f"took the only variant, {variants[0].name}")
    return variants[0]


def _check_space(folder):
    """ValueError where the network works on latents: its pipeline, in the folder or above ``unet``, has an autoencoder."""
    for place in (folder, *([folder.parent] if folder.name == "unet" else [])):
        index = place / "model_index.json"
        latent = read_json(index).keys() & set(AUTOENCODERS) if index.is_file() else ()
        if latent:
            raise ValueError(f"{folder} works in the latent space of its {min(latent)}: give the folder {place}, with both")


def scheduler(*folders):
    places = [folder / name for folder in folders for name in ("scheduler/scheduler_config.json", "scheduler_config.json")]
    found = next((place for place in places if place.is_file()), None)
    return read_json(found) if found else None


def unet(file) -> dict:
    """The configuration of a `UNet2DModel`. Raises ValueError for another network."""
    config = read_json(file)
    name = config.get("_class_name", "UNet2DModel")
    if name not in ("UNet2DModel", "UNetUnconditionalModel"):
        raise ValueError(f"{file} describes a {json.dumps(name)[1:-1][:60]}: only UNet2DModel is supported")
    size = config.get("sample_size")
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        config["sample_size"] = size[0]
    return config
