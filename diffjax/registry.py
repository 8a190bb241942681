"""The methods by name: what programs list, tables show and tests go through. A new method: its file, and one line here.

Each comes twice: as its paper runs it (``entry.published``) and with the house's settings for small images, which the programs
use (``entry.build``). From outside: ``registry.register(Entry("mine", Mine, mine_published, "what it does"))``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from . import timetables
from .base import Measurement, nearest, pytree
from .denoisers import from_eps
from .kernels import DPMSolverPP2M, Kernel
from .method import GIVES, INSTEAD, NOISE, Method
from .methods import (
    CCDF,
    DDNM,
    DDRM,
    DPIR,
    DPS,
    MCG,
    MMPS,
    PSLD,
    Blended,
    CoPaint,
    DDNMPlus,
    DiffPIR,
    Nonequilibrium,
    PiGDM,
    REDDiff,
    RePaint,
    Replacement,
    ReSample,
    Resampling,
    TwistedSMC,
    blended,
    ccdf,
    copaint,
    ddnm,
    ddrm,
    diffpir,
    dpir,
    dps,
    mcg,
    mmps,
    nonequilibrium,
    optimised_start,
    pigdm,
    psld,
    red_diff,
    repaint,
    replacement,
    resample,
    resampling,
    twisted,
)
from .methods.common import KINDS, Setup, by_kind, kind
from .operators import Decoded, Mask
from .schedules import discrete, linear_betas

INPAINTING = ("inpainting",)
ANY = tuple(dict.fromkeys(KINDS.values()))

__all__ = ["ANY", "INPAINTING", "METHODS", "Entry", "Setup", "by_kind", "get", "kind", "papers", "register", "rows"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method by name.

    method:    its class, which says what it needs and gives (:class:`diffjax.base.Method`)
    published: (denoise, measurement, steps=None, *, table=None, **settings) -> ``Setup``, as in its paper
    about:     one line
    steps:     the house's number of levels
    grid:      (schedule, steps) -> table, the house's walk; None, or where it returns None: the paper's
    house:     settings in place of the paper's; a dict of values: one for each kind of measurement
    exact:     whether ``published`` are values of a paper (else ours, where the paper has none for images)
    clip:      whether ``denoise`` comes with x0 clamped to [-1, 1] (False: the method does it, or its paper does not)
    long:      takes over 300 network calls, or as much by Jacobian products
    whole:     (key, denoise, measurement, steps, shape, **settings) -> (x, network calls): all of the restoration, of what is
               no method of the loop; ``published`` then is the walk inside, with the same settings
    paper_steps: levels of the paper's setting that is meant, where it has several
    latents:   settings in place of the house's where the operator is ``Decoded``; None: the method is not made for that, and
               runs only where decode is linear, as far as the operator then has what it needs
    """

    name: str
    method: type
    published: Callable
    about: str
    steps: int = 100
    grid: Callable | None = timetables.log_snr
    house: dict = dataclasses.field(default_factory=dict, hash=False)
    exact: bool = True
    clip: bool = True
    long: bool = False
    whole: Callable | None = None
    paper_steps: int | None = None
    latents: dict | None = dataclasses.field(default=None, hash=False)

    @property
    def tasks(self) -> tuple:
        """The kinds of measurement that it restores."""
        return INPAINTING if "mask" in self.method.requires else ANY

    def settings(self) -> list[str]:
        """The hyper-parameters that ``build`` takes by name."""
        of = inspect.signature(self.published).parameters
        named = [n for n, p in of.items() if p.kind is p.KEYWORD_ONLY and n not in ("table", "variant")]
        fields = [f.name for f in dataclasses.fields(self.method)] if any(p.kind is p.VAR_KEYWORD for p in of.values()) else []
        return named + [n for n in fields if n not in ("denoise", "measurement", *named)]

    def build(self, denoise, measurement, steps=None, **settings) -> Setup:
        """(method, kernel, table) with the house's settings, ``settings`` in their place (they may be traced).

        Raises ValueError where the operator is ``Decoded`` and the method needs more of it, and what the method refuses.
        """
        steps, house, A = self.steps if steps is None else steps, self.house, measurement.A
        if isinstance(A, Decoded):
            if self.latents is None and not A.linear:
                raise ValueError(
                    f"{self.name} does not restore through a decoder: in latent space use {', '.join(in_latents())}, or mask "
                    "the latents themselves (operators.masked_latents)"
                )
            house = house | (self.latents or {})
        chosen = {n: by_kind(None, measurement, v) if isinstance(v, dict) else v for n, v in house.items()}
        if "table" not in settings and self.grid is not None:
            chosen["table"] = self.grid(denoise.schedule, steps)
        return self.published(denoise, measurement, steps, **(chosen | settings))


METHODS: dict[str, Entry] = {}


def register(entry: Entry) -> Entry:
    """Add a method. Raises ValueError for a name that is taken, or what is no method."""
    if entry.name in METHODS:
        raise ValueError(f"there is a method {entry.name!r} already: choose another name")
    if not (isinstance(entry.method, type) and issubclass(entry.method, Method)):
        raise ValueError(f"{entry.name}: {entry.method!r} is no subclass of diffjax.Method")
    for fact, given, known in (
        ("requires", entry.method.requires, INSTEAD),
        ("noise", (entry.method.noise,), NOISE),
        ("gives", (entry.method.gives,), GIVES),
    ):
        for word in given:
            if word not in known:
                raise ValueError(f"{fact} of {entry.method.__name__} names {word!r}: {nearest(word, known)}")
    for kernel in entry.method.moves:
        if not (isinstance(kernel, type) and issubclass(kernel, Kernel)):
            raise ValueError(f"moves of {entry.method.__name__} names {kernel!r}: give classes of kernels, kernels.DDIM")
    METHODS[entry.name] = entry
    return entry


def get(name: str) -> Entry:
    """The method of that name. Raises ValueError with the nearest one."""
    if name == CONDITIONAL.name:
        return CONDITIONAL
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: {nearest(name, METHODS)}")
    return METHODS[name]


def in_latents() -> list[str]:
    """The methods that restore in latent space, through a decoder."""
    return [name for name, entry in METHODS.items() if entry.latents is not None]


def papers() -> dict[str, Entry]:
    """The methods that have values of a paper, with those: ``build`` gives what ``published`` does."""
    exact = {name: entry for name, entry in METHODS.items() if entry.exact}
    return {n: dataclasses.replace(e, house={}, grid=None, steps=e.paper_steps) for n, e in exact.items()}


def rows() -> list[dict]:
    """What each method is, as README's table and ``--list`` show it: name, paper, link, needs, noise, gives, levels, network
    calls and Jacobian products of one restoration with the house's settings (a "+" where it tries until it fits),
    differentiable."""
    schedule = discrete(linear_betas(1000))
    denoise = from_eps(lambda x, i: x, None, schedule)
    image = np.zeros((8, 8, 1), np.float32)
    found = []
    for entry in METHODS.values():
        of = entry.method
        method, kernel, table = entry.build(denoise, Measurement(image, Mask(image + 1), 0.1 if of.noise == "needed" else 0.0))
        least, most = method.least_calls(kernel) * len(table), method.calls(kernel) * len(table)
        products = method.products(kernel) * len(table)
        if entry.whole is not None:  # its walk is one turn of an optimiser
            turns = inspect.signature(entry.whole).parameters["iterations"].default
            least, most, products = least * (turns + 1), most * (turns + 1), products + len(table) * turns
        needs = " or ".join({"mask": "a mask"}.get(name, f"A.{name}") for name in method.requirements()) or "A"
        found.append({
            "name": entry.name, "paper": of.paper, "link": of.link, "needs": needs, "noise": of.noise, "gives": of.gives,
            "levels": entry.steps, "calls": f"{least}{'+' * (most > least)}", "products": products,
            "differentiable": of.differentiable, "about": entry.about,
        })  # fmt: skip
    return found


# --- the house's settings: chosen on validation images of 32x32 by lpips (experiments.tune); the papers' are for 256x256 ---

# How much x0 moves with x at high noise grows with the number of pixels. The papers' rate (0.02, growing by 1.012 to 1.03 a
# level) leaves the high levels of 32x32 images, where the layout is decided, unfitted, and the halves do not match. 2 is no
# better than 1, and costs half as many calls again, as most of its steps are shortened.
COPAINT = {"lr": 1.0, "lr_decay": 1.0}
COPAINT_IN_LATENTS = {"bounds": (-np.inf, np.inf), "lr": 0.1}
DDRM_ETA = {"inpainting": 0.85, "deblurring": 0.5, "super-resolution": 0.5}  # the paper's is 0.85
# the official ones in our units: lambda 0.25, 1.75, 1.5 and zeta 1, 0.3, 0.25
DIFFPIR = {
    "lam": {"inpainting": 1.0, "deblurring": 1.0, "super-resolution": 0.25},
    "zeta": {"inpainting": 1.0, "deblurring": 0.3, "super-resolution": 0.3},
    "prior_std": 1.0,
}


# of a decoded picture: lipschitz is |A decode|^2, about what f x f pixels change by with one number of a latent
DIFFPIR_IN_LATENTS = {"data": "gradient", "iterations": 4, "lipschitz": 20.0, "lam": 1.0, "zeta": 0.3}


def _jumping(schedule, steps):
    """Every stretch of five levels walked five times (fewer where there are fewer levels): 280 calls for 60."""
    return timetables.repaint(schedule, jump=5, times=5, grid=timetables.log_snr(schedule, steps), shorten=True)


def _counted(schedule, steps):
    """The paper's walk, which counts a table's entries; a formula has none: even in log-SNR."""
    return None if schedule.discrete else timetables.log_snr(schedule, steps)


def _travelling(schedule, steps):
    """The same, every stretch of ten levels walked twice."""
    grid = _counted(schedule, steps)
    return grid and timetables.travel(grid, before_jump=True, shorten=True)


def _copaint(name, about, steps, grid=_counted):
    of = functools.partial(copaint.published, variant=name)
    return Entry(name, CoPaint, of, about, steps, grid, COPAINT, clip=False, long=True, latents=COPAINT_IN_LATENTS)


_ENTRIES: tuple[Any, ...] = (
    Entry("repaint", RePaint, repaint.published, "pastes the known pixels at each level, walks back and forth", 60, _jumping),
    _copaint("copaint-fast", "fits x_t to the known pixels before each step, 1 gradient step each", 100),
    _copaint("copaint", "2 gradient steps at each of 250 levels", 250),
    _copaint("copaint-tt", "CoPaint with time travel: every stretch of 10 walked twice", 250, _travelling),
    Entry("score-sde", Replacement, replacement.published, "puts in a noisy copy of what was measured"),
    Entry("blended", Blended, blended.published, "merges known pixels at each level, DDIM", clip=False),
    Entry("resampling", Resampling, resampling.published, "Blended with 5 particles, of which the best survive", 50,
          house={"particles": 5}, clip=False),
    Entry("ccdf", CCDF, ccdf.published, "replacement from a late start", 50, None, exact=False),
    Entry("nonequilibrium", Nonequilibrium, nonequilibrium.published, "multiplies each step by how well it fits y"),
    Entry("mcg", MCG, mcg.published, "replacement and a gradient step through the network"),
    Entry("dps", DPS, dps.published, "a gradient step on |y - A x0| through the network", house={"scale": 1.0},
          latents={}),
    Entry("psld", PSLD, psld.published, "DPS after decode, and the encoder must agree", clip=False,
          latents={"omega": 0.6, "gamma": 0.06}),
    Entry("resample", ReSample, resample.published, "fits the latent to y on every tenth row, and noises it again",
          house={"iterations": 50, "lr": 0.02}, clip=False, long=True,
          latents={"tolerance": 0.1}),  # the scale of what an autoencoder loses
    Entry("pigdm", PiGDM, pigdm.published, "guided by the pseudo-inverse, through the network", house={"prior_std": 0.5},
          clip=False),
    Entry("mmps", MMPS, mmps.published, "the network's Jacobian as covariance", 50, exact=False, clip=False),
    Entry("twisted", TwistedSMC, twisted.published, "4 particles steered by MMPS, weighed", 25, exact=False, clip=False,
          long=True),
    Entry("ddrm", DDRM, ddrm.published, "fills in the spectrum, 20 calls", 20, house={"eta": DDRM_ETA}, clip=False),
    Entry("ddnm", DDNM, ddnm.published, "replaces the range, keeps the null space; no noise", clip=False),
    Entry("ddnm+", DDNMPlus, ddnm.published_plus, "DDNM for noisy measurements", clip=False),
    Entry("diffpir-20", DiffPIR, diffpir.published, "a proximal data step at each level, 20 calls", 20, _counted, DIFFPIR,
          paper_steps=20, latents=DIFFPIR_IN_LATENTS),
    Entry("diffpir", DiffPIR, diffpir.published, "DiffPIR, 100 calls", 100, _counted, DIFFPIR, paper_steps=100,
          latents=DIFFPIR_IN_LATENTS),
    Entry("red-diff", REDDiff, red_diff.published, "Adam on one image", clip=False, latents={}),
    Entry("dpir", DPIR, dpir.published, "8 denoisings at falling levels", 8, None, {"lam": 0.1}),
    Entry("optimise-start", optimised_start.Walk, optimised_start.published, "30 steps of Adam on x_T through 5 levels", 5,
          None, exact=False, clip=False, long=True, whole=optimised_start.restored, latents={}),
)  # fmt: skip


@pytree
class Conditional(Method):
    """Plain sampling: what is measured is told to the network.                          (Rombach et al. 2022, section 4.4)"""

    paper, link, noise = "Rombach et al. 2022", "arxiv.org/abs/2112.10752", "ignored"


def _conditional(denoise, measurement, steps=None, *, table):
    return Setup(Conditional(denoise), DPMSolverPP2M(), table)


# of priors that are told the measurement (``zoo.beside``), and of no others: hence not among METHODS
CONDITIONAL = Entry("conditional", Conditional, _conditional, "samples a prior that is told what is measured", 25, exact=False,
                    latents={})  # fmt: skip
for _entry in _ENTRIES:
    register(_entry)
