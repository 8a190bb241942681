"""A volume through a network of cuts: the whole of it as one object, from the interpolated volume, in a few steps.

    x_K = alpha_K v + sigma_K z,     v: the coarse volume, interpolated; z: one draw for the whole volume
    x_K ... x_0:                     PartDiff's walk; the clean volume is, at every step, the mean over the stacks of cuts

Volumes are laid with the axis of the slices first. With a data step the thick slices of the result are the measured ones as
far as ``noise_std`` lets them, and an operator of volumes is what ties cuts together.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import denoisers, timetables
from ..base import Measurement
from ..kernels import DDIM
from ..method import Method
from ..methods import DiffPIR
from ..methods.partdiff import LateStart, PartDiff
from ..operators import SliceAverage
from ..sample import begin, plan, run
from .resolution import IN_PLANE, Coarse

ORDERS = {IN_PLANE: ((0, 1, 2),), "through-plane": ((1, 0, 2), (2, 0, 1))}
ROWS = 100  # of a table; those that a walk has no steps for are not walked
PIXELS_AT_ONCE = 400_000  # of all cuts in one call of the network: what their activations need is about 1 GB


@dataclasses.dataclass(frozen=True)
class InTiles:
    """``net`` on images of any size, those larger than ``size`` in tiles of that size that overlap by ``overlap`` pixels.

    What a tile says within ``net.reach`` of a border that the image goes on beyond is not used, as far as the overlap allows;
    tiles fade into each other where both are right. With an overlap of twice the reach and more this is what the network gives
    of the whole image. Raises ValueError for an overlap that leaves nothing of a tile.
    """

    net: Any
    size: int = 256
    overlap: int = 48

    def apply(self, params, x, t, cond):
        multiple = self.net.multiple
        size = self.size // multiple * multiple
        sides = [min(n, size) for n in x.shape[:2]]
        if list(x.shape[:2]) == sides:
            return self.net.apply(params, x, t, cond)
        if not 0 <= self.overlap <= size - multiple:
            raise ValueError(f"tiles of {size} overlap by {self.overlap}: take larger tiles, or less")
        along = [self._along(n, side, multiple) for n, side in zip(x.shape[:2], sides)]
        corners = np.stack(np.meshgrid(*(starts for starts, _ in along), indexing="ij"), -1).reshape(-1, 2)
        weights = jnp.asarray((along[0][1][:, None, :, None] * along[1][1][None, :, None, :]).reshape(-1, *sides, 1), x.dtype)

        def add(out, tile):
            (i, j), weight = tile
            cut = lambda a: jax.lax.dynamic_slice(a, (i, j, 0), (*sides, a.shape[2]))
            made = self.net.apply(params, cut(x), t, cut(cond))
            return jax.lax.dynamic_update_slice(out, cut(out) + weight * made, (i, j, 0)), None

        shape = jax.eval_shape(self.net.apply, params, x[: sides[0], : sides[1]], t, cond[: sides[0], : sides[1]]).shape
        start = jnp.zeros((*x.shape[:2], shape[-1]), x.dtype)
        return jax.lax.scan(add, start, (jnp.asarray(corners), weights))[0]

    def _along(self, n, side, multiple):
        """(where tiles begin, their weights (tiles, side)) along one axis; weights of all tiles sum to 1 everywhere."""
        count = 1 if side == n else -(-(n - side) // ((side - self.overlap) // multiple * multiple)) + 1
        starts = (np.linspace(0, (n - side) // multiple, count).round() * multiple).astype(int)
        unused = min(self.net.reach, max(self.overlap // 2 - multiple, 0))
        inside = np.arange(side)
        weights, total = [], np.zeros(n)
        for start in starts:
            fade = lambda away: np.clip((away - unused + 1) / (max(self.overlap - 2 * unused, 0) + 1), 1e-9, 1)
            w = np.ones(side)
            w *= fade(inside) if start > 0 else 1
            w *= fade(side - 1 - inside) if start + side < n else 1
            weights.append(w)
            total[start : start + side] += w
        return starts, np.stack([w / total[s : s + side] for s, w in zip(starts, weights)])


@dataclasses.dataclass(frozen=True)
class Enlarger:
    """A network of cuts that predicts the noise, told sqrt(abar) and the cut enlarged; a PartDiff network of ``K``, or (None)
    one of all noise levels. params: of ``net``; card: where it is from."""

    params: Any
    net: Any
    schedule: Any
    K: float | None = None
    card: dict = dataclasses.field(default_factory=dict)

    def denoiser(self, low, plane, orientations=None, tile=256):
        """A denoiser of volumes (S, B, C, 1) that is told the volume ``low``. orientations: how many stacks of cuts."""
        orders = ORDERS[plane][:orientations]
        inner = denoisers.from_eps(InTiles(self.net, tile).apply, self.params, self.schedule, time=denoisers.NoiseLevel())
        pixels = max(int(np.prod(low.shape[:3])) // low.shape[order[0]] for order in orders)
        whole = denoisers.Slicewise(inner, low, orders, max(1, PIXELS_AT_ONCE // pixels))
        return denoisers.clipped(whole)


@dataclasses.dataclass(frozen=True)
class How:
    """start: the time to start from (default: the network's K, else a quarter of T), at T in pure noise, below K as if the
    network were not aligned; steps: of the walk; orientations: 1 or all stacks; noise_std: of the coarse volume, in [-1, 1],
    for the data step, None: no data step; eta: of the moves (0: the start alone is random, 1: ancestral); move: of PartDiff's
    walk without a data step, see ``PartDiff``"""

    start: float | None = None
    steps: int = 5
    orientations: int | None = None
    noise_std: float | None = None
    eta: float = 0.0
    tile: int = 256
    move: str = "trained"


def method_of(enlarger, low, measured, coarse: Coarse, how: How, start):
    """(method, kernel, table). Tables have one length, whatever the start and the steps: a sweep is one program."""
    denoise = enlarger.denoiser(low, coarse.plane, how.orientations, how.tile)
    table = timetables.from_times(np.linspace(start, 0.0, how.steps + 1), enlarger.schedule)
    table = timetables.padded(table, max(how.steps, ROWS))
    if how.noise_std is not None:
        flat = dataclasses.replace(coarse, axis=0)
        A = SliceAverage(coarse.factor, 0) if coarse.plane != IN_PLANE and coarse.how == "box" else flat.operator
        return DiffPIR(denoise, Measurement(measured, A, how.noise_std), lam=1.0, guess=low), DDIM(eta=how.eta), table
    if start >= enlarger.schedule.T:  # from pure noise: SR3
        return Method(denoise), DDIM(eta=how.eta), table
    if enlarger.K is None or start < enlarger.K:
        return LateStart(denoise, low), DDIM(eta=how.eta), table
    return PartDiff(denoise, low, K=enlarger.K, bounds=(-1.0, 1.0), move=how.move), DDIM(eta=how.eta), table


def superresolve(enlarger: Enlarger, coarse: Coarse, measured, key, how: How = How(), samples: int = 1, report=None):
    """Draws of the fine volume, one after the other: a generator of float32 (X, Y, Z) in [-1, 1].

    measured: the coarse volume (X, Y, Z), normalised; what lies beyond [-1, 1] is interpolated. report(done, total): of steps
    Image k of a run with more samples is that of a run with fewer. Raises ValueError for a volume with an axis that is too
    short, and where the network's result is not finite.
    """
    if min(coarse.fine_shape(measured.shape)[a] for a in range(3) if a != coarse.axis or coarse.plane != IN_PLANE) < 4:
        raise ValueError(f"a volume of {'x'.join(map(str, measured.shape))} is too small: it needs 4 voxels along each axis")
    if coarse.plane != IN_PLANE and measured.shape[coarse.axis] < 2:
        raise ValueError(f"axis {coarse.axis} has one slice: there is nothing between slices, use the plane in-plane")
    first = np.moveaxis(np.asarray(measured, np.float32), coarse.axis, 0)
    flat = dataclasses.replace(coarse, axis=0)
    padded = _padded(first, flat, enlarger.net.multiple)
    inside = np.clip(padded, -1, 1)
    low = np.clip(flat.enlarge(inside), -1, 1)
    beyond = flat.enlarge(padded) - flat.enlarge(inside)
    start = float(how.start or enlarger.K or 0.25 * enlarger.schedule.T)
    method, kernel, table = method_of(enlarger, jnp.asarray(low[..., None]), jnp.asarray(inside[..., None]), flat, how, start)
    walk = plan(method, table, low.shape + (1,), kernel=kernel)
    blank = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(begin, key, walk))
    fine = flat.fine_shape(first.shape)
    for n in range(samples):
        state, own = blank, jax.random.fold_in(key, n)
        for row in range(how.steps):
            done = run(own, walk, state=state, part=(row, row + 1), remat="none")
            state = done.state
            if not bool(done.info.finite[row]):
                raise ValueError(f"the volume is not finite from step {row + 1} of {how.steps} on: another network?")
            if report is not None:
                report(n * how.steps + row + 1, samples * how.steps)
        x = np.asarray(done.x)[..., 0] + beyond
        yield np.moveaxis(x[: fine[0], : fine[1], : fine[2]], 0, coarse.axis)


def _padded(volume, coarse, multiple):
    """Mirrored at the ends until the network takes its cuts: the fine sides are multiples of ``multiple``."""
    need = [multiple // np.gcd(multiple, coarse.factor) if a in coarse.axes else multiple for a in range(3)]
    if coarse.plane == IN_PLANE:
        need[0] = 1  # counts the cuts
    widths = [(0, -n % m) for n, m in zip(volume.shape, need)]
    for axis, (_, after) in enumerate(widths):
        while after:  # a mirror is no longer than what it shows
            step = min(after, volume.shape[axis])
            volume = np.pad(volume, [(0, step if a == axis else 0) for a in range(3)], "symmetric")
            after -= step
    return volume
