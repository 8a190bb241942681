"""The methods that programs know by name. A new one: its function here, and one line in METHODS."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

INPAINTING = ("inpainting",)
ANY = ("inpainting", "deblurring", "super-resolution")


class Entry(NamedTuple):
    """build(denoise, measurement, schedule, steps, **settings) -> (method, kernel, table), settings: hyper-parameters that
    may be traced, their defaults in its signature (None: it depends on the task); steps: the default; about: one line;
    tasks: what it can restore; clip: whether ``denoise`` comes with x0 clamped to [-1, 1] (False: the method does it, or its
    paper does not); long: takes over 300 network calls, or as much by Jacobian products;
    whole(key, denoise, measurement, schedule, steps, shape, **settings) -> (x, network calls): all of the restoration, of
    what is no method of the loop; ``build`` then is the walk inside, with the same settings."""

    build: Callable
    steps: int
    about: str
    tasks: tuple = INPAINTING
    clip: bool = True
    long: bool = False
    whole: Callable | None = None


def kind(A):
    """Which of ``ANY`` an operator measures for; None for others."""
    from diffjax import operators

    kinds = {
        operators.Mask: "inpainting",
        operators.Blur: "deblurring",
        operators.Resize: "super-resolution",
        operators.Downsample: "super-resolution",
    }
    return kinds.get(type(A))


def by_task(value, measurement, values: dict):
    """``value``, or where it is None that of the measurement's kind (the first for kinds that have none)."""
    return values.get(kind(measurement.A), next(iter(values.values()))) if value is None else value


def repaint(denoise, measurement, schedule, steps):
    """RePaint on ``steps`` levels equal in log-SNR, every stretch of five walked five times: 280 calls for 60."""
    from diffjax import kernels, methods, timetables

    table = timetables.repaint(schedule, jump=5, times=5, grid=timetables.log_snr(schedule, steps), shorten=True)
    return methods.RePaint(denoise, measurement), kernels.DDPM(schedule), table


# Not the paper's (lr 0.02, growing by 1.012 to 1.03 a level): how much x0 moves with x at high noise grows with the number of
# pixels, and those rates were tuned on 256x256x3. At 32x32 they leave the high levels, where the layout is decided, unfitted,
# and the halves do not match. Chosen among seven on validation images (results/tune_copaint_fast_fashion32.md): 2 is no better
# and costs half as many calls again, as most of its steps are shortened.
COPAINT = {"lr": 1.0, "lr_decay": 1.0}


def copaint(name):
    """A row of the paper's table (its timetable, iterations and weights for CelebA-HQ) with the rate ``COPAINT``."""

    def build(denoise, measurement, schedule, steps, lr=COPAINT["lr"], lr_decay=COPAINT["lr_decay"]):
        from diffjax import kernels, methods

        settings, table = methods.copaint.published(name, schedule, steps)
        settings = {**settings, "lr": lr, "lr_decay": lr_decay}
        return methods.CoPaint(denoise, measurement, **settings), kernels.DDIM(schedule), table

    return build


# --- corrections and guidance of a walk that never climbs. Grids: equal steps in log-SNR unless the paper's is said -------


def score_sde(denoise, measurement, schedule, steps):
    from diffjax import kernels, methods, timetables

    return methods.Replacement(denoise, measurement), kernels.DDPM(schedule), timetables.log_snr(schedule, steps)


def blended(denoise, measurement, schedule, steps):
    from diffjax import kernels, methods, timetables

    return methods.Blended(denoise, measurement), kernels.DDIM(schedule), timetables.log_snr(schedule, steps)


def resampling(denoise, measurement, schedule, steps, scale=100.0):
    """5 particles (10 in CoPaint's tables)."""
    from diffjax import kernels, methods, timetables

    method = methods.Resampling(denoise, measurement, scale=scale, particles=5)
    return method, kernels.DDIM(schedule), timetables.log_snr(schedule, steps)


def ccdf(denoise, measurement, schedule, steps):
    """From sigma = alpha on; there is no published code, nor a value for these images."""
    from diffjax import kernels, methods, timetables

    table = timetables.log_snr(schedule, steps, t_max=float(schedule.time(0.0)))
    return methods.CCDF(denoise, measurement), kernels.DDPM(schedule), table


def mcg(denoise, measurement, schedule, steps, scale=1.0):
    from diffjax import kernels, methods, timetables

    return methods.MCG(denoise, measurement, scale=scale), kernels.DDPM(schedule), timetables.log_snr(schedule, steps)


def dps(denoise, measurement, schedule, steps, scale=1.0):
    """scale: chosen below; 0.3 in the configurations, 0.5 for inpainting, for 1000 steps on images of 256x256x3."""
    from diffjax import kernels, methods, timetables

    return methods.DPS(denoise, measurement, scale=scale), kernels.DDPM(schedule), timetables.log_snr(schedule, steps)


def pigdm(denoise, measurement, schedule, steps, scale=1.0, prior_std=0.5, eta=1.0):
    """prior_std: chosen below; 1 in the paper."""
    from diffjax import kernels, methods, timetables

    method = methods.PiGDM(denoise, measurement, scale=scale, prior_std=prior_std)
    return method, kernels.DDIM(schedule, eta=eta), timetables.log_snr(schedule, steps)


def mmps(denoise, measurement, schedule, steps):
    """3 solver steps and fresh noise. (For exact denoisers 10 steps and DPM-Solver++ 2M are best: experiments.calibrate.)"""
    from diffjax import kernels, methods, timetables

    method = methods.MMPS(denoise, measurement, iterations=3)
    return method, kernels.DDIM(schedule, eta=1.0), timetables.log_snr(schedule, steps)


def twisted(denoise, measurement, schedule, steps, noise_floor=0.05):
    """4 particles. The likelihood needs noise: ``noise_floor`` where there is less."""
    import diffjax as dj
    from diffjax import kernels, methods, timetables

    measurement = dj.replace(measurement, noise_std=_at_least(measurement.noise_std, noise_floor))
    method = methods.TwistedSMC(denoise, measurement, iterations=3, particles=4)
    return method, kernels.DDPM(schedule), timetables.log_snr(schedule, steps)


def _at_least(a, b):
    import jax.numpy as jnp

    return jnp.maximum(a, b)


def ddrm(denoise, measurement, schedule, steps, eta=None, eta_b=1.0):
    from diffjax import kernels, methods, timetables

    method = methods.DDRM(denoise, measurement, eta=by_task(eta, measurement, DDRM), eta_b=eta_b)
    return method, kernels.Marginal(schedule), timetables.log_snr(schedule, steps)


def ddnm(denoise, measurement, schedule, steps, eta=0.85):
    from diffjax import kernels, methods, timetables

    kernel = kernels.DDIM(schedule, zeta=eta**2)
    return methods.DDNM(denoise, measurement), kernel, timetables.log_snr(schedule, steps)


def ddnm_plus(denoise, measurement, schedule, steps, eta=0.85):
    from diffjax import kernels, methods, timetables

    method = methods.DDNMPlus(denoise, measurement, eta=eta)
    return method, kernels.Marginal(schedule), timetables.log_snr(schedule, steps)


def diffpir(denoise, measurement, schedule, steps, lam=None, zeta=None):
    """On the paper's timetable, dense at low noise."""
    from diffjax import kernels, methods, timetables

    lam, zeta = (by_task(v, measurement, values) for v, values in ((lam, DIFFPIR_LAM), (zeta, DIFFPIR_ZETA)))
    method = methods.DiffPIR(denoise, measurement, lam=lam)
    return method, kernels.DDIM(schedule, zeta=zeta), timetables.diffpir(schedule, steps)


# --- estimates: one answer, whose spread means nothing ------------------------------------------------------------------


def red_diff(denoise, measurement, schedule, steps, weight=0.25, lr=0.1):
    from diffjax import kernels, methods, timetables

    method = methods.REDDiff(denoise, measurement, weight=weight, lr=lr)
    return method, kernels.Marginal(schedule), timetables.log_snr(schedule, steps)


def dpir(denoise, measurement, schedule, steps, lam=0.1):
    """The prior as the denoiser, on the paper's levels. lam: chosen below; 0.23 in the paper."""
    from diffjax import kernels, methods, timetables

    table = timetables.dpir(schedule, measurement.noise_std, steps)
    return methods.DPIR(denoise, measurement, lam=lam), kernels.Marginal(schedule), table


def deterministic(denoise, measurement, schedule, steps, lr=0.05, reg=1e-4):
    from diffjax import kernels, timetables
    from diffjax.base import Method

    return Method(denoise), kernels.DDIM(schedule), timetables.log_snr(schedule, steps)


def optimise_start(key, denoise, measurement, schedule, steps, shape, lr=0.05, reg=1e-4, iterations=30):
    from diffjax import methods

    _, kernel, table = deterministic(denoise, measurement, schedule, steps)
    options = dict(iterations=iterations, lr=lr, reg=reg, kernel=kernel)
    return methods.optimise_start(key, denoise, measurement, table, shape, **options).x, steps * (iterations + 1)


# Chosen on validation images, by lpips: results/tune_*_fashion32.md, which have the commands. The papers' are for 256x256.
DDRM = {"inpainting": 0.85, "deblurring": 0.5, "super-resolution": 0.5}  # the paper's eta is 0.85
# DiffPIR's in our units: lambda 0.25, 1.75, 1.5 and zeta 1, 0.3, 0.25
DIFFPIR_LAM = {"inpainting": 1.0, "deblurring": 1.0, "super-resolution": 0.25}
DIFFPIR_ZETA = {"inpainting": 1.0, "deblurring": 0.3, "super-resolution": 0.3}

METHODS = {
    "repaint": Entry(
        repaint, 60, "RePaint (Lugmayr et al. 2022): pastes the known pixels at each level, walks back and forth"
    ),
    "copaint-fast": Entry(
        copaint("copaint-fast"),
        100,
        "CoPaint (Zhang et al. 2023): fits x_t to the known pixels before each step, 1 gradient step each",
        ANY,
        clip=False,
        long=True,
    ),
    "copaint": Entry(copaint("copaint"), 250, "CoPaint, 2 gradient steps at each of 250 levels", ANY, clip=False, long=True),
    "copaint-tt": Entry(
        copaint("copaint-tt"), 250, "CoPaint with time travel: every stretch of 10 walked twice", ANY, clip=False, long=True
    ),
    "score-sde": Entry(score_sde, 100, "replacement (Song et al. 2021): puts in a noisy copy of what was measured", ANY),
    "blended": Entry(blended, 100, "Blended (Avrahami et al. 2022): merges known pixels at each level, DDIM", clip=False),
    "resampling": Entry(resampling, 50, "Blended with 5 particles, of which the best survive", clip=False),
    "ccdf": Entry(ccdf, 50, "CCDF (Chung et al. 2022): replacement from a late start", ANY),
    "mcg": Entry(mcg, 100, "MCG (Chung et al. 2022): replacement and a gradient step through the network", ANY),
    "dps": Entry(dps, 100, "DPS (Chung et al. 2023): a gradient step on |y - A x0| through the network", ANY),
    "pigdm": Entry(pigdm, 100, "PiGDM (Song et al. 2023): guided by the pseudo-inverse, through the network", ANY, clip=False),
    "mmps": Entry(mmps, 50, "MMPS (Rozet et al. 2024): the network's Jacobian as covariance", ANY, clip=False),
    "twisted": Entry(
        twisted, 25, "twisted SMC (Wu et al. 2023): 4 particles steered by MMPS, weighed", ANY, clip=False, long=True
    ),
    "ddrm": Entry(ddrm, 20, "DDRM (Kawar et al. 2022): fills in the spectrum, 20 calls", ANY, clip=False),
    "ddnm": Entry(ddnm, 100, "DDNM (Wang et al. 2023): replaces the range, keeps the null space; no noise", ANY, clip=False),
    "ddnm+": Entry(ddnm_plus, 100, "DDNM+: for noisy measurements", ANY, clip=False),
    "diffpir-20": Entry(diffpir, 20, "DiffPIR (Zhu et al. 2023): a proximal data step at each level, 20 calls", ANY),
    "diffpir": Entry(diffpir, 100, "DiffPIR, 100 calls", ANY),
    "red-diff": Entry(red_diff, 100, "RED-diff (Mardani et al. 2024): Adam on one image, an estimate", ANY, clip=False),
    "dpir": Entry(dpir, 8, "DPIR (Zhang et al. 2021): 8 denoisings at falling levels, an estimate", ANY),
    "optimise-start": Entry(
        deterministic,
        5,
        "30 steps of Adam on x_T through a sampler of 5 (D-Flow, DMPlug), an estimate",
        ANY,
        clip=False,
        long=True,
        whole=optimise_start,
    ),
}
