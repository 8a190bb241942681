"""Where numbers come from: commit, date, device, versions, and a fingerprint of the values behind them."""

from __future__ import annotations

import datetime
import functools
import hashlib
import platform
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("diffjax", "experiments", "tests/oracle")  # what can change a number


def checkout() -> Path | None:
    """The checkout's root, or None where experiments was installed without one."""
    return ROOT if (ROOT / "pyproject.toml").is_file() else None


def results() -> Path:
    """Where result files are written unless told otherwise: the checkout's, else ./results."""
    return ROOT / "experiments" / "results" if checkout() else Path("results")


# of a study's option --out
OUT = {
    "default": results(),
    "help": "folder of the result files (default: the checkout's experiments/results, else ./results)",
}


def _git(*words) -> str | None:
    """What git says of the checkout; None where there is no git, or the folder is no repository's root."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def commit() -> dict:
    """{"commit": full hash or None, "dirty": whether code differs from it}; the results themselves do not count."""
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT.resolve():
        return {"commit": None, "dirty": None}
    changed = _git("status", "--porcelain", "--", *PARTS, ":!experiments/results")
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(changed)}


def versions() -> dict:
    import jax
    import numpy

    import diffjax

    return {"python": platform.python_version(), "jax": jax.__version__, "numpy": numpy.__version__,
            "diffjax": diffjax.__version__}  # fmt: skip


def made() -> dict:
    """Commit, date (UTC) and device of a number that is computed now."""
    import jax

    now = datetime.datetime.now(datetime.UTC)
    return {**commit(), "date": now.strftime("%Y-%m-%d"), "device": jax.devices()[0].device_kind}


def values(*trees) -> str:
    """Twelve digits that change with any number, type or name in the pytrees."""
    import jax
    import numpy as np

    digest = hashlib.sha256()
    leaves, structure = jax.tree.flatten(trees)
    digest.update(re.sub(r" at 0x\w+", "", str(structure)).encode())  # functions that are no leaves: where they lie in memory
    for leaf in leaves:
        if isinstance(leaf, str):
            digest.update(leaf.encode())
        else:
            leaf = np.asarray(leaf)
            digest.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
    return digest.hexdigest()[:12]
