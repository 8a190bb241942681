"""The methods of experiments.methods as their papers run them: the same names, their timetables, kernels and values.

The papers' values were chosen for 256x256 images and networks of other schedules; ``experiments.evaluate --paper`` shows what
they give on the shipped priors. Methods without values of their own in a paper (ccdf: for other tasks; mmps, twisted,
optimise-start: for other problems) are not here.
"""

from __future__ import annotations

from diffjax.registry import ANY, INPAINTING, Entry, by_task, kind


def repaint(denoise, measurement, steps):
    """250 levels, stretches of 10 walked 10 times."""
    from diffjax import kernels, methods, timetables

    return (
        methods.RePaint(denoise, measurement),
        kernels.DDPM(),
        timetables.published("repaint", denoise.schedule),
    )


def copaint(name):
    def build(denoise, measurement, steps):
        from diffjax import kernels, methods

        settings, table = methods.copaint.published(name, denoise.schedule, steps)
        return methods.CoPaint(denoise, measurement, **settings), kernels.DDIM(), table

    return build


def score_sde(denoise, measurement, steps):
    from diffjax import kernels, methods, timetables

    return (
        methods.Replacement(denoise, measurement),
        kernels.DDPM(),
        timetables.published("ddpm", denoise.schedule),
    )


def blended(denoise, measurement, steps):
    """CoPaint's tables: 250 levels."""
    from diffjax import kernels, methods, timetables

    return (
        methods.Blended(denoise, measurement),
        kernels.DDIM(),
        timetables.published("adm-250", denoise.schedule),
    )


def resampling(denoise, measurement, steps):
    """CoPaint's tables: 250 levels, 10 particles."""
    from diffjax import kernels, methods, timetables

    method = methods.Resampling(denoise, measurement, particles=10)
    return method, kernels.DDIM(), timetables.published("adm-250", denoise.schedule)


def mcg(denoise, measurement, steps):
    from diffjax import kernels, methods, timetables

    return methods.MCG(denoise, measurement), kernels.DDPM(), timetables.published("ddpm", denoise.schedule)


def dps(denoise, measurement, steps):
    from diffjax import kernels, methods, timetables

    scales = methods.dps.SCALES
    values = {
        "inpainting": scales["inpainting"],
        "deblurring": scales["deblur"],
        "super-resolution": scales["super_resolution"],
    }
    method = methods.DPS(denoise, measurement, scale=by_task(None, measurement, values))
    return method, kernels.DDPM(), timetables.published("ddpm", denoise.schedule)


def pigdm(denoise, measurement, steps):
    from diffjax import kernels, methods, timetables

    return (
        methods.PiGDM(denoise, measurement),
        kernels.DDIM(eta=1.0),
        timetables.published("ddnm", denoise.schedule),
    )


def ddrm(denoise, measurement, steps):
    from diffjax import kernels, methods, timetables

    return (
        methods.DDRM(denoise, measurement),
        kernels.Marginal(),
        timetables.published("ddrm", denoise.schedule),
    )


def ddnm(denoise, measurement, steps):
    from diffjax import kernels, methods, timetables

    kernel = kernels.DDIM(zeta=0.85**2)
    return methods.DDNM(denoise, measurement), kernel, timetables.published("ddnm", denoise.schedule)


def ddnm_plus(denoise, measurement, steps):
    from diffjax import kernels, methods, timetables

    return (
        methods.DDNMPlus(denoise, measurement),
        kernels.Marginal(),
        timetables.published("ddnm", denoise.schedule),
    )


def diffpir(denoise, measurement, steps):
    from diffjax import methods

    settings, kernel, table = methods.diffpir.published(kind(measurement.A) or "deblurring", denoise.schedule, steps)
    return methods.DiffPIR(denoise, measurement, **settings), kernel, table


def red_diff(denoise, measurement, steps):
    from diffjax import kernels, methods, timetables

    return (
        methods.REDDiff(denoise, measurement),
        kernels.Marginal(),
        timetables.published("ddpm", denoise.schedule),
    )


def dpir(denoise, measurement, steps):
    from diffjax import kernels, methods, timetables

    table = timetables.dpir(denoise.schedule, measurement.noise_std, steps)
    return methods.DPIR(denoise, measurement), kernels.Marginal(), table


METHODS = {
    "repaint": Entry(repaint, 250, "250 levels, stretches of 10 walked 10 times", INPAINTING),
    "copaint-fast": Entry(copaint("copaint-fast"), 100, "lr 0.02 growing by 1.03", ANY, clip=False),
    "copaint": Entry(copaint("copaint"), 250, "lr 0.02 growing by 1.012", ANY, clip=False),
    "copaint-tt": Entry(copaint("copaint-tt"), 250, "lr 0.02 growing by 1.012", ANY, clip=False),
    "score-sde": Entry(score_sde, 1000, "1000 levels", ANY),
    "blended": Entry(blended, 250, "250 levels", INPAINTING, clip=False),
    "resampling": Entry(resampling, 250, "250 levels, 10 particles", INPAINTING, clip=False),
    "mcg": Entry(mcg, 1000, "1000 levels, scale 1", ANY),
    "dps": Entry(dps, 1000, "1000 levels, scale 0.3, inpainting 0.5", ANY),
    "pigdm": Entry(pigdm, 100, "100 levels, eta 1, prior_std 1", ANY, clip=False),
    "ddrm": Entry(ddrm, 20, "20 levels, eta 0.85", ANY, clip=False),
    "ddnm": Entry(ddnm, 100, "100 levels, eta 0.85", ANY, clip=False),
    "ddnm+": Entry(ddnm_plus, 100, "100 levels, eta 0.85", ANY, clip=False),
    "diffpir-20": Entry(diffpir, 20, "lambda and zeta by task, 20 levels", ANY),
    "diffpir": Entry(diffpir, 100, "lambda and zeta by task, 100 levels", ANY),
    "red-diff": Entry(red_diff, 1000, "1000 levels, weight 0.25, rate 0.1", ANY, clip=False),
    "dpir": Entry(dpir, 8, "8 levels, lambda 0.23", ANY),
}
