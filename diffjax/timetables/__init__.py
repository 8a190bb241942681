"""The whole walk through time as data: rows (t, s, r), made on the host.

A row goes down from t to s with the kernel, then jumps up from s to r by q(x_r | x_s); r = s means no jump. A row
(s, s, r) only climbs, after whatever the method does at s. Uniform grids, ADM respacing, RePaint's jumps and time travel
are all tables; print them, plot them, slice them, or pass them to one compiled sampler (same length: no retrace).
Within a trace, times, bounds and a schedule's parameters may be traced (a sweep over grids); the number of rows is fixed.

Sources: Nichol & Dhariwal 2021 (respacing), Song et al. 2021 (DDIM spacings), Karras et al. 2022 eq. 5, Lugmayr et al.
2022 (RePaint), Zhang et al. 2023 (CoPaint), Wang et al. 2023 (DDNM), Lu et al. 2022 (log-SNR), Zhu et al. 2023 (DiffPIR),
Zhang et al. 2021 (DPIR), Rombach et al. 2022 (latent diffusion), diffusers.
"""

from ..base import nearest
from .grids import diffpir, dpir, karras, log_snr, quadratic, respaced, space, space_rounded, uniform
from .jumps import ddnm, jump_walk, repaint, travel
from .latent import diffusers, indices_diffusers, ldm, plms, space_ldm
from .table import Timetable, from_rows, from_times, from_walk, padded, start_at

__all__ = [
    "Timetable",
    "ddnm",
    "diffpir",
    "diffusers",
    "dpir",
    "from_rows",
    "from_times",
    "from_walk",
    "indices_diffusers",
    "jump_walk",
    "karras",
    "ldm",
    "log_snr",
    "padded",
    "plms",
    "published",
    "quadratic",
    "repaint",
    "respaced",
    "space",
    "space_ldm",
    "space_rounded",
    "start_at",
    "travel",
    "uniform",
]

_PUBLISHED = {
    "repaint": lambda schedule: repaint(schedule, 250, 10, 10),
    "ddpm": lambda schedule: respaced(schedule, schedule.T),
    "adm-250": lambda schedule: respaced(schedule, 250),
    "adm-ddim25": lambda schedule: respaced(schedule, "ddim25"),
    "ddrm": lambda schedule: respaced(schedule, "ddim20"),
    "ddnm": lambda schedule: ddnm(schedule, 100),
    "ddnm-travel": lambda schedule: ddnm(schedule, 100, length=10, times=3),
    "diffpir-20": lambda schedule: diffpir(schedule, 20),
    "diffpir-100": lambda schedule: diffpir(schedule, 100),
    "ldm-50": lambda schedule: ldm(schedule, 50),
    "ldm-200": lambda schedule: ldm(schedule, 200),
    "ldm-plms-50": lambda schedule: plms(ldm(schedule, 50)),
}


def published(name: str, schedule) -> Timetable:
    """The timetable of a paper. Raises ValueError for an unknown name."""
    if name not in _PUBLISHED:
        raise ValueError(f"unknown timetable {name!r}: {nearest(name, _PUBLISHED)}")
    return _PUBLISHED[name](schedule)
