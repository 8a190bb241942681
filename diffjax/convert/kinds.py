"""What a file is, from its first bytes: which reader it needs, or what it is instead of a checkpoint and what to do then."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

# first bytes: (what it is, what to do)
OTHERS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", 'fetch it with "git lfs pull"'),
    (b"GGUF", "a GGUF file, which holds language models or quantised networks", "give the .safetensors it was made from"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "save its arrays as .npz or .safetensors"),
    (b"\x93NUMPY", "one .npy array without a name", "give .npz or .safetensors"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it first"),
    (b"\xfd7zXZ", "compressed by xz", "unpack it first"),
    (b"BZh", "compressed by bzip2", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it first"),
    (b"\x89PNG", "a picture", "give the file of weights"),
    (b"\xff\xd8\xff", "a picture", "give the file of weights"),
    (b"GIF8", "a picture", "give the file of weights"),
    (b"%PDF", "a PDF", "give the file of weights"),
    (b"\x7fELF", "a program", "give the file of weights"),
)
PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<body", b"<!--", b"<script", b"<svg")
TAR = "a tar archive (torch before 0.1.10 wrote these, or it is packed)"


def regular(path: Path) -> int:
    """The size of a file. ValueError where it is none, is not to be read, or waits for someone to write."""
    try:
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode):
            with open(path, "rb"):
                return found.st_size
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # a name that no file can have is a ValueError
        raise ValueError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    raise ValueError(f"{path} is {'a folder' if stat.S_ISDIR(found.st_mode) else 'no regular file'}: give a file of weights")


def kind(path: Path, head: bytes) -> str:
    """ "zip", "pickle", "safetensors", "json", or "" for what is none of them and nothing else that is known."""
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40:
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "pickle"
    if zipfile.is_zipfile(path):  # something lies before the archive
        return "zip"
    return "json" if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[") else ""


def instead(head: bytes) -> str:
    """What the file is instead, and what to do; "" where it is nothing that is known."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(PAGE):
        return "is a web page: the download ended in a login or an error, fetch it again"
    if head[257:262] == b"ustar" or head.startswith((b"sys_info\0", b"./sys_info\0", b"storages\0")):
        return f"is {TAR}: unpack it, or load it with torch and save it again"
    found = next(((what, remedy) for first, what, remedy in OTHERS if head.startswith(first)), None)
    return f"is {found[0]}: {found[1]}" if found else ""


def archive(names) -> str:
    """The same of a zip archive that has these members."""
    last = {name.rsplit("/", 1)[-1] for name in names}
    if "constants.pkl" in last or any("/code/" in name for name in names):
        return "is a TorchScript program, not weights alone: save them with torch.save(model.state_dict(), path)"
    if "model.json" in last or "[Content_Types].xml" in last or "META-INF/MANIFEST.MF" in names:
        return "is an archive of something else: give the file of weights"
    if any(name.endswith((".pt", ".pth", ".ckpt", ".safetensors", ".bin")) for name in names):
        return "is an archive with files of weights in it: unpack it first"
    if "config.json" in last and "model.weights.h5" in last:
        return "is a Keras model: save its arrays as .npz or .safetensors"
    return "is a zip archive without a checkpoint in it: give the file of weights"
