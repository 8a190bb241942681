"""What a restored batch depends on, as fingerprints: a kept cell with others is stale."""

from __future__ import annotations

from . import code, provenance

ENGINE = ("diffjax.sample", "diffjax.metrics", "experiments.tools.scores")
# Not followed: what registries say of a method, timetables and tasks is taken by its values; a mesh changes no number
BESIDES = ("diffjax.registry", "diffjax.cli", "diffjax.zoo.bundled", "diffjax.timetables", "diffjax.parallel", *(
    f"experiments.{name}" for name in ("configs",)))  # fmt: skip


def fingerprints(prior, entry, steps, noise_std, ys, operators, truth, **more) -> dict:
    """{"code", "settings"} of ``entry`` of a registry on measurements ys behind operators (a list, one for each).

    Code: the files behind the method, kernel, table, network and operator, the program that runs them, and the scores.
    Settings: every number in them, the measurements and the truth. more: anything else that matters, a pytree.
    """
    import diffjax as dj
    from diffjax.batch import restore
    from diffjax.cli.tasks import misfit

    steps = entry.steps if steps is None else steps
    try:
        denoise = prior.denoiser(clip=entry.clip)
        built = entry.build(denoise, dj.Measurement(ys[0], operators[0], noise_std), steps)
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
    }
