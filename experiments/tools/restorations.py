"""What a restored batch depends on, as fingerprints: a kept cell with others is stale."""

from __future__ import annotations

import dataclasses

import numpy as np

from . import code, provenance

ENGINE = ("diffjax.sample", "diffjax.metrics", "experiments.tools.scores")
# Not followed: what registries say of a method, timetables and tasks is taken by its values; a mesh changes no number
BESIDES = ("diffjax.registry", "diffjax.cli", "diffjax.zoo.bundled", "diffjax.timetables", "diffjax.parallel", *(
    f"experiments.{name}" for name in ("configs",)))  # fmt: skip


def fingerprints(prior, entry, steps, noise_std, ys, operators, truth, **more) -> dict:
    """{"code", "settings", "built"} of ``entry`` of a registry on measurements ys behind operators (a list, one for each).

    Code: the files behind the method, kernel, table, network and operator, the program that runs them, and the scores.
    Settings: every number in them, the measurements and the truth. Built: the settings in words. more: anything else that
    matters, a pytree.
    """
    import diffjax as dj
    from diffjax.batch import restore
    from diffjax.cli.tasks import misfit

    steps = entry.steps if steps is None else steps
    try:
        denoise, A = prior.denoiser(clip=entry.clip), operators[0]
        if prior.autoencoder is not None:
            told = prior.told(dj.Measurement(ys[0], A)) if prior.beside else None
            denoise, A = prior.denoiser(told), dj.operators.Decoded(A, prior.autoencoder)
        built = entry.build(denoise, dj.Measurement(ys[0], A, noise_std), steps)
    except ValueError as refusal:  # the cell will say so
        built = (str(refusal),)
    modules = code.behind(built, prior.net, operators[0]) | {*ENGINE, restore.__module__}
    sources = [code.of_function(misfit)[0]]
    besides = BESIDES
    if entry.whole:  # makes its timetables inside
        besides = [name for name in BESIDES if name != "diffjax.timetables"]
        text, used = code.of_function(entry.whole)
        modules, sources = modules | used, [*sources, text]
    return {
        "code": code.fingerprint(*sorted(modules), besides=besides),
        "settings": provenance.values(built, sources, ys, operators, truth, more),
        "built": described(*built[:3]) if len(built) >= 3 else "",
    }


def described(method, kernel, table) -> str:
    """RePaint(order=official), DDPM(variance=small), 280 rows from t = 1000 to 0"""
    words = [f"{type(thing).__name__}({', '.join(_plain(thing))})" for thing in (method, kernel) if thing is not None]
    return f"{', '.join(words)}, {len(table)} rows from t = {float(table.t[0]):g} to {float(table.r[-1]):g}"


def _plain(thing):
    """name=value of the fields that are numbers, words or tuples of them."""
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if isinstance(value, bool | str | tuple):
            yield f"{field.name}={value}"
        elif isinstance(value, int | float) or (hasattr(value, "dtype") and np.ndim(value) == 0):
            yield f"{field.name}={float(value):g}"
