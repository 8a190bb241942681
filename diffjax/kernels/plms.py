"""Pseudo linear multistep and pseudo Runge-Kutta methods (Liu, Ren, Lin & Zhao, ICLR 2022, "Pseudo numerical methods for
diffusion models on manifolds", arXiv 2202.09778), as latent diffusion and diffusers sample by.

    phi(x, e, t, s) = alpha_s (x - sigma_t e) / alpha_t + sigma_s e     DDIM's move, exact where e does not change
    x_s = phi(x_t, e', t, s),    e' a combination of the eps of several times

PLMS takes e' from the rows before, at one network call a row:

    e' = (55 e - 59 e_1 + 37 e_2 - 9 e_3) / 24      with three before it (Adams-Bashforth of order 4)
    e' = (23 e - 16 e_1 + 5 e_2) / 12,   (3 e - e_1) / 2,   e      with two, one, none

They are the weights of even steps, as published, whatever the table's are. What the history holds is e, never e'.

Its first step has a second call in official code: x_s is made again with the mean of e at t and e at (x_s, s). That call is a
row (s, s, s) of the table (``timetables.plms`` puts it in): the row after a fresh one, with t = s, corrects the step before
it. No other row without a move does anything.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from .. import process
from ..base import expand, namespace, pytree, safe_divide
from ..denoisers.codes import to_codes
from .base import Kernel, stay_if_no_move


@pytree
class Move:
    ratio: Any  # sigma_t / alpha_t, 0 where alpha_t = 0
    alpha_s: Any
    sigma_s: Any


def _move(x0, eps, combined, ratio, alpha_s, sigma_s, codes):
    """phi with ``combined`` in place of eps. x0 + ratio (eps - combined) is (x - sigma combined) / alpha where x0 is the
    network's; where it was corrected with the network's own eps kept (clipping, a codebook) the correction stays."""
    x0 = x0 + expand(ratio, x0) * (eps - combined)
    x0 = x0 if codes is None else to_codes(codes, x0)
    return expand(alpha_s, x0) * x0 + expand(sigma_s, x0) * combined


@pytree
class PLMS(Kernel):
    """Pseudo linear multistep of order 4; see the module.

    codes: an autoencoder with a codebook, or a function of x0 (as for ``denoisers.quantised``), applied to the clean image of
           the combined eps, as latent diffusion's ``quantize_denoised`` does; None: none
    History is dropped on fresh rows (the start, after a jump).
    """

    codes: Any = None

    def coefficients(self, table) -> Move:
        alpha_t, sigma_t = process.marginal(self.schedule, table.t)
        return Move(safe_divide(sigma_t, alpha_t), *process.marginal(self.schedule, table.s))

    def init(self, x):
        zeros, zero = jnp.zeros_like(x), jnp.zeros((), x.dtype)
        return (zeros, zeros, zeros, zeros), (zero, zero)

    def draw(self, key, x):
        return ()

    def step(self, predict, x, state, row, noise, first=None, edit=None):
        p = predict(x, row.t) if first is None else first
        (x0_1, e_1, e_2, e_3), (known, ratio_1) = state
        k, known = row.k.move, jnp.where(row.fresh, 0, known)
        again = (row.s == row.t) & (known == 1)
        e = p.eps
        combined = jnp.where(known < 1, e, (3 * e - e_1) / 2)
        combined = jnp.where(known > 1, (23 * e - 16 * e_1 + 5 * e_2) / 12, combined)
        combined = jnp.where(known > 2, (55 * e - 59 * e_1 + 37 * e_2 - 9 * e_3) / 24, combined)
        combined = jnp.where(again, (e + e_1) / 2, combined)
        x0, eps, ratio = (jnp.where(again, old, new) for old, new in ((x0_1, p.x0), (e_1, e), (ratio_1, k.ratio)))
        moved = _move(x0, eps, combined, ratio, k.alpha_s, k.sigma_s, self.codes)
        moved = jnp.where(again, moved, stay_if_no_move(row, moved, x))
        history = tuple(jnp.where(again, old, new) for old, new in ((x0_1, p.x0), (e_1, e), (e_2, e_1), (e_3, e_2)))
        known = jnp.where(again, known, jnp.minimum(known + 1, 3))
        state = history, (known.astype(x.dtype), jnp.asarray(ratio).astype(x.dtype))
        return (moved if edit is None else edit(moved, row.s, 0)), state


@pytree
class MovePRK(Move):
    half: Any  # (ratio at the middle's start t, alpha and sigma of the middle)
    t_mid: Any
    t_next: Any  # t on the last row, whose later calls are dropped


@pytree
class PRK(PLMS):
    """Pseudo Runge-Kutta of order 4: four calls a row, at t, twice at (t + s) / 2 and at s, all moves from x_t.

    Its state is that of :class:`PLMS`: walk the first three rows by it and the others by PLMS from its state, as published,

        head = sample(key, denoise, table[:3], shape, kernel=PRK())
        rest = sample(key, denoise, table[3:], shape, kernel=PLMS(), state=head.state)

    The last row, s = 0, is a step by the first eps; its other calls are spent and dropped. ``edit`` is applied at s only.
    """

    calls = 4

    def coefficients(self, table) -> MovePRK:
        move = super().coefficients(table)
        xp = namespace(table.t, table.s)
        last = table.s == 0
        t_mid = xp.where(last, table.t, 0.5 * (table.t + table.s))
        half = process.marginal(self.schedule, t_mid)
        return MovePRK(move.ratio, move.alpha_s, move.sigma_s, half, t_mid, xp.where(last, table.t, table.s))

    def step(self, predict, x, state, row, noise, first=None, edit=None):
        p = predict(x, row.t) if first is None else first
        (_, e_1, e_2, _), (known, _) = state
        k, known = row.k.move, jnp.where(row.fresh, 0, known)
        last, e = row.s == 0, p.eps
        to_mid = lambda combined: _move(p.x0, e, combined, k.ratio, *k.half, self.codes)
        to_s = lambda combined: _move(p.x0, e, combined, k.ratio, k.alpha_s, k.sigma_s, self.codes)
        at = lambda x_next, t: predict(jnp.where(last, x, x_next), t.astype(row.t.dtype)).eps
        second = at(to_mid(e), k.t_mid)
        third = at(to_mid(second), k.t_mid)
        fourth = at(to_s(third), k.t_next)
        x = stay_if_no_move(row, to_s(jnp.where(last, e, (e + 2 * second + 2 * third + fourth) / 6)), x)
        known = jnp.minimum(known + 1, 3)
        state = (p.x0, e, e_1, e_2), (known.astype(x.dtype), jnp.asarray(k.ratio).astype(x.dtype))
        return (x if edit is None else edit(x, row.s, 0)), state
