"""Pictures of what a prior has learned: one class per row, the same noise each time it is drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .. import kernels, timetables
from ..base import replace
from ..sample import sample
from .images import pillow, save_page

COLUMNS = ROWS = 8


def make_sampler(prior, steps, devices, seed=0, conds=None):
    """-> jitted f(params) -> (rows, columns, H, W, C) in [-1, 1]: what ``prior`` makes with these parameters, by DDIM on
    ``steps`` log-SNR steps, x0 clipped where it is of pixels. Rows are classes, or 8 rows of a prior without, each with one of
    ``conds``, a condition with a leading axis, where the prior takes one. devices: (replicated, sharded)."""
    rows = prior.classes or ROWS
    if not prior.conditional:
        conds = np.arange(rows)
    table = timetables.log_snr(prior.schedule, steps)
    whole, sharded = devices
    even = rows * COLUMNS % len(sharded.device_set) == 0

    def one(params, key, cond):
        denoise = replace(prior, params=params).denoiser(cond if prior.classes or prior.conditional else None)
        return sample(key, denoise, table, prior.shape, kernel=kernels.DDIM()).x

    def grid(params):
        keys = jax.random.split(jax.random.key(seed), rows * COLUMNS)
        told = jax.tree.map(lambda a: jnp.repeat(jnp.resize(jnp.asarray(a), (rows, *np.shape(a)[1:])), COLUMNS, 0), conds)
        if even:
            keys, told = jax.lax.with_sharding_constraint((keys, told), sharded)
        x = prior.decode(jax.vmap(one, (None, 0, 0))(params, keys, told))
        return x.reshape(rows, COLUMNS, *x.shape[1:])

    return jax.jit(grid, out_shardings=whole)


def save(file, grid, zoom=3):
    """Write a grid (rows, columns, H, W, C) in [-1, 1] as PNG, each pixel ``zoom`` x ``zoom``."""
    Image = pillow()
    grid = np.asarray(grid)
    rows, columns, height, width, channels = grid.shape
    sheet = grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    sheet = np.rint((np.clip(sheet, -1, 1) + 1) * 127.5).astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
    save_page(Image.fromarray(sheet[..., 0] if channels == 1 else sheet), file)
