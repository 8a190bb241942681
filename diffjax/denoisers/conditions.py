"""What a network is told besides x and its time: a label, tokens, boxes, a small image; any pytree of arrays.

No condition is None. "Without a condition" for a network that always takes one is its *null*: a pytree of the same
structure (an index beyond the labels, empty text, a black image). Dropout and guidance exchange the whole tree.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ..base import replace


def null_like(cond, null):
    """``null`` leaf by leaf in the shape and dtype of ``cond``; its leaves may broadcast (0.0 for a black image).

    Raises ValueError, which names the leaf, where structures or shapes do not fit.
    """
    ours, theirs = jax.tree.structure(cond), jax.tree.structure(null)
    if ours != theirs:
        raise ValueError(f"the null {theirs} has another structure than the condition {ours}: give one null for each leaf")

    def one(path, c, n):
        c, n = jnp.asarray(c), jnp.asarray(n)
        try:
            return jnp.broadcast_to(n, c.shape).astype(c.dtype)
        except ValueError:
            where = jax.tree_util.keystr(path) or "it"
            raise ValueError(
                f"the null of the condition has shape {n.shape} where {where} is {c.shape}: give it that shape, or a scalar"
            ) from None

    return jax.tree_util.tree_map_with_path(one, cond, null)


def with_cond(denoise, cond):
    """``denoise`` under another condition, whatever is wrapped around it (clipping, guidance).

    Raises ValueError where there is no network that takes one.
    """
    if dataclasses.is_dataclass(denoise):
        names = {f.name for f in dataclasses.fields(denoise)}
        if "cond" in names:
            return replace(denoise, cond=cond)
        for inner in ("denoise", "inner"):
            if inner in names:
                return replace(denoise, **{inner: with_cond(getattr(denoise, inner), cond)})
    raise ValueError(f"{type(denoise).__name__} takes no condition: build the denoiser with denoisers.from_eps(..., cond=...)")
