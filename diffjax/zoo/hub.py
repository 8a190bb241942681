"""Repositories of the Hugging Face hub: ``hf:owner/name`` or ``hf:owner/name@revision`` to a local folder.

Only what a network and, of latent diffusion, its autoencoder need is fetched, safe formats first; a ``.bin`` is read by our
restricted unpickler.
Needs the ``huggingface_hub`` package (``pip install "diffjax[hub]"``). What was fetched once is found without a network.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..wording import printable

PARTS = ("", "unet/", "vae/", "vqvae/")  # where networks lie
SMALL = (*(f"{part}config.json" for part in PARTS), "model_index.json", "scheduler_config.json",
         "scheduler/scheduler_config.json", "README.md")  # fmt: skip
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def download(repository, revision, patterns) -> str:
    """The local folder of a snapshot."""
    from huggingface_hub import snapshot_download

    return snapshot_download(repository, revision=revision, allow_patterns=list(patterns))


def fetch(name: str) -> tuple[Path, dict]:
    """(folder, facts for the card) of "hf:owner/name[@revision]".

    Raises ValueError, one line: a malformed name, no package, no network, no such repository.
    """
    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if not found:
        raise ValueError(f"{name!r} is no name on the hub: write hf:owner/name or hf:owner/name@revision")
    repository, revision = found.groups()
    try:
        folder = Path(download(repository, revision, [*SMALL, *_places(WEIGHTS[0])]))
        there = [part for part in PARTS if (folder / f"{part}config.json").is_file()]
        if not there or not all((folder / f"{part}{WEIGHTS[0]}").is_file() for part in there):
            folder = Path(download(repository, revision, [*SMALL, *_places(WEIGHTS[1])]))
    except ImportError:
        raise ValueError(
            f'{name} needs the huggingface_hub package: pip install "diffjax[hub]", or give the folder of a copy'
        ) from None
    except Exception as error:  # its kinds differ between versions: network, proxy, unknown name, access
        text = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name} cannot be fetched ({type(error).__name__}: {text}): check name and network, or give the folder of a copy"
        ) from error
    facts = {"source": f"https://huggingface.co/{repository}", "revision": revision or folder.name}
    licence = _licence(folder / "README.md")
    return folder, {"name": repository.split("/")[1], **facts, "licence": licence or "not stated on the hub"}


def recorded_sha256(file: Path) -> str | None:
    """The hash that the hub's cache keeps as the name of the file behind a link; None where there is none."""
    name = file.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else None


def _places(name):
    return tuple(f"{part}{name}" for part in PARTS)


def _licence(readme: Path) -> str | None:
    """The licence in the block between --- lines that a repository's README begins with."""
    text = readme.read_text(encoding="utf-8-sig", errors="replace") if readme.is_file() else ""
    head = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---", text[:100_000], re.S)
    lines = head.group(1).splitlines() if head else []
    names = [_clean(name) for name in _listed(lines, "license")]
    if names == ["other"]:  # with a name or an address of its own
        own = [_clean(text) for key in ("license_name", "license_link") for text in _listed(lines, key)]
        return " ".join(["other:", *own]) if any(own) else "other"
    return " and ".join(name for name in names if name) or None


def _listed(lines, key):
    """The values of ``key: value``, ``key: [a, b]``, or of the lines "- value" after ``key:``."""
    at = next((n for n, line in enumerate(lines) if re.match(rf"{key}[ \t]*:", line)), None)
    if at is None:
        return []
    value = lines[at].split(":", 1)[1].split(" #")[0].strip()
    if value:
        return value.strip("[]").split(",")
    found = []
    for line in lines[at + 1 :]:
        item = re.match(r"[ \t]*-[ \t]+(.*)", line)
        if not item:
            break
        found.append(item.group(1))
    return found


def _clean(text):
    return printable(text.strip().strip("\"'"), 120)
