"""Compiled programs kept on the disk: the second start of a program compiles nothing."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path

from .errors import UserError


def default_folder() -> Path:
    """$XDG_CACHE_HOME/diffjax, or ~/.cache/diffjax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "diffjax"


def processor() -> str:
    """A short name for this kind of processor: code compiled for another may use instructions that this one lacks."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        known = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    except OSError:
        known = [platform.processor()]
    return f"{platform.machine()}-{hashlib.sha256(repr(known).encode()).hexdigest()[:8]}"


def use_cache(folder: str | os.PathLike | None = None) -> None:
    """Keep compiled programs in ``folder``, made if missing (default: where the user told jax to, or :func:`default_folder`).

    Leaves the user's JAX_COMPILATION_CACHE_DIR and JAX_ENABLE_COMPILATION_CACHE alone. UserError where the folder that was
    asked for cannot be written; the default is then left out, and it is said.
    """
    import jax

    if folder is None and (jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache):
        return
    place = Path(folder or default_folder()) / processor()
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK):
            raise PermissionError(None, "not writable")
    except OSError as error:
        if folder is not None:
            raise UserError(f"cache {folder} cannot be written ({error.strerror}): give another, or --no-cache") from None
        print(f"note: no cache of compiled programs, {place} cannot be written ({error.strerror})", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # many small programs add up
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
