"""Pictures of what a prior has learned: one class per row, the same noise each time it is drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .. import kernels, timetables
from ..base import replace
from ..sample import sample
from ..training import data
from .images import pillow, save_page

COLUMNS = 8


def make_sampler(prior, steps, devices, conditions=None, seed=0):
    """-> jitted f(params) -> (rows, columns, H, W, C) in [-1, 1]: what ``prior`` makes with these parameters, by DDIM on
    ``steps`` log-SNR steps with clipped x0. Rows are classes, or 8 rows of a prior without. devices: (replicated, sharded).
    conditions: (rows, H, W, C) uint8, of a prior that is told images: a row each, which it begins with."""
    rows = prior.classes or (8 if conditions is None else len(conditions))
    table = timetables.log_snr(prior.schedule, steps)
    whole, sharded = devices
    even = rows * COLUMNS % len(sharded.device_set) == 0

    def one(params, key, row):
        given = row if prior.classes else None if conditions is None else data.scale(jnp.asarray(conditions))[row]
        denoise = replace(prior, params=params).denoiser(given)
        return sample(key, denoise, table, prior.shape, kernel=kernels.DDIM()).x

    def grid(params):
        keys = jax.random.split(jax.random.key(seed), rows * COLUMNS)
        labels = jnp.repeat(jnp.arange(rows), COLUMNS)
        if even:
            keys, labels = jax.lax.with_sharding_constraint((keys, labels), sharded)
        made = jax.vmap(one, (None, 0, 0))(params, keys, labels).reshape(rows, COLUMNS, *prior.shape)
        return made if conditions is None else made.at[:, 0].set(data.scale(jnp.asarray(conditions)))

    return jax.jit(grid, out_shardings=whole)


def save(file, grid, zoom=3):
    """Write a grid (rows, columns, H, W, C) in [-1, 1] as PNG, each pixel ``zoom`` x ``zoom``."""
    Image = pillow()
    grid = np.asarray(grid)
    rows, columns, height, width, channels = grid.shape
    sheet = grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    sheet = np.rint((np.clip(sheet, -1, 1) + 1) * 127.5).astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
    save_page(Image.fromarray(sheet[..., 0] if channels == 1 else sheet), file)
