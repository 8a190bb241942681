"""Configurations of training runs, one file each, named ``config``."""

import importlib
import pkgutil


def load() -> dict:
    """All of them by name."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").config for name in names}
