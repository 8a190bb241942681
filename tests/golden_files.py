"""Recorded runs of the official codes: finding, reading, comparing."""

import json
from pathlib import Path

import numpy as np


def find(folder, family, *prefixes, exclude=()):
    """Files FAMILY/PREFIX*.npz under ``folder``; an ``h_`` before the prefix is ignored."""

    def kind(path):
        return path.stem.removeprefix("h_")

    files = sorted((Path(folder) / family).glob("*.npz"))
    return [f for f in files if kind(f).startswith(prefixes) and not kind(f).startswith(tuple(exclude) or ("\0",))]


def load(path):
    """(arrays, metadata) of a run; metadata from the ``meta_json`` or ``meta`` field or the .json beside it. A float32 run
    that names its float64 ``twin`` gets the fields that only the twin holds."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {k: file[k] for k in file.files}
    inside = next((name for name in ("meta_json", "meta") if name in arrays), None)
    if inside:
        meta = json.loads(str(arrays.pop(inside)))
    else:
        beside = path.with_suffix(".json")
        meta = json.loads(beside.read_text()) if beside.exists() else {}
    if "twin" in meta:
        twin, _ = load(path.with_name(f"{meta['twin']}.npz"))
        arrays = {**{name: twin[name] for name in meta["fields_in_twin"] if name in twin}, **arrays}
    return arrays, meta


def relative_error(got, expected):
    """max |got - expected| / max |expected|"""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, f"shape {got.shape}, recorded {expected.shape}"
    return float(np.max(np.abs(got - expected), initial=0) / max(np.max(np.abs(expected), initial=0), 1e-300))


def check(name, got, expected, tolerance, absolute=False):
    """Print file, error, tolerance, and fail when the error is larger."""
    error = (
        float(np.max(np.abs(np.asarray(got, np.float64) - np.asarray(expected, np.float64))))
        if absolute
        else relative_error(got, expected)
    )
    print(f"{name}: error {error:.2e}, tolerance {tolerance:.0e}")
    assert error <= tolerance, f"{name}: error {error:.3e} exceeds {tolerance:.0e}"
    return error
