"""What makes a condition out of labels, images, words and boxes, for the networks of `latent_unet.py`.

Source: Rombach et al. 2022, arXiv:2112.10752, section 3.3 and appendix E; their code's `ClassEmbedder`, `SpatialRescaler`,
`BERTEmbedder` / `TransformerEmbedder`. `TokenEncoder` is our own.

Each reads the entries `reads` of a condition, in that order, and gives the entries `gives`. `Conditioned` joins one to a
network, so that both are trained, stored and handed to `denoisers` as one.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .transformer import TokenLayer, layer_norm

METHODS = ("nearest", "bilinear", "bicubic", "area")


def _table(module, name, rows, width):
    return module.param(name, nn.initializers.normal(0.02), (rows, width))


def _look_up(table, index, what):
    """Rows of a table; an index out of range gives NaN, not a neighbour."""
    index = jnp.asarray(index)
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(f"{what} must be integers in 0..{table.shape[0] - 1}, not {index.dtype}")
    return jnp.take(table, index, axis=0)


class ClassEmbedder(nn.Module):
    """A label (...) in 0..classes - 1 as one token (..., 1, width)."""

    width: int
    classes: int = 1000
    reads: ClassVar = ("label",)
    gives: ClassVar = ("context",)

    @nn.compact
    def __call__(self, label):
        table = self.param("label", nn.initializers.normal(1.0), (self.classes, self.width))
        return _look_up(table, label, "labels")[..., None, :]

    def blank(self, x):
        return {"label": jnp.zeros((), jnp.int32)}


@functools.lru_cache(maxsize=64)
def rescaling(n, factor, method):
    """(floor(n factor), n) matrix of one axis of torch's `interpolate`: no antialiasing, pixel centres at halves.

    method: "nearest", "bilinear" (edges repeated), "bicubic" (Keys' kernel with a = -3/4, edges repeated) or "area" (the mean
    of the pixels that an output pixel touches).
    """
    m = int(np.floor(n * factor))
    if m < 1:
        raise ValueError(f"{n} pixels times {factor} leave none: give a larger image")
    M, rows = np.zeros((m, n)), np.arange(m)
    if method == "area":
        for i in rows:
            first, last = i * n // m, -(-(i + 1) * n // m)
            M[i, first:last] = 1 / (last - first)
        return M
    if method == "nearest":
        M[rows, np.minimum(np.floor(rows / factor).astype(int), n - 1)] = 1
        return M
    centre = (rows + 0.5) / factor - 0.5
    if method == "bilinear":
        centre = np.maximum(centre, 0)
    base = np.floor(centre).astype(int)
    for tap in (0, 1) if method == "bilinear" else (-1, 0, 1, 2):
        d = np.abs(centre - base - tap)
        near, far = (1.25 * d - 2.25) * d * d + 1, -0.75 * (((d - 5) * d + 8) * d - 4)
        weight = 1 - d if method == "bilinear" else np.where(d <= 1, near, far)
        np.add.at(M, (rows, np.clip(base + tap, 0, n - 1)), weight)
    return M


class SpatialRescaler(nn.Module):
    """(..., H, W, C) -> (..., h, w, channels): `stages` times smaller by `factor`, then a product over the channels.

    channels: None: no product, C stays. Raises ValueError for an unknown method.
    """

    stages: int = 1
    factor: float = 0.5
    method: str = "bilinear"
    channels: int | None = None
    bias: bool = False
    in_channels: int = 3  # of the blank image alone
    reads: ClassVar = ("image",)
    gives: ClassVar = ("concat",)

    def __post_init__(self):
        super().__post_init__()
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}: use one of {', '.join(METHODS)}")

    @nn.compact
    def __call__(self, image):
        for _ in range(self.stages):
            rows, columns = (jnp.asarray(rescaling(n, self.factor, self.method), image.dtype) for n in image.shape[-3:-1])
            image = jnp.einsum("ih,...hwc,jw->...ijc", rows, image, columns, precision=jax.lax.Precision.HIGHEST)
        return image if self.channels is None else nn.Dense(self.channels, use_bias=self.bias, name="mapper")(image)

    def blank(self, x):
        grow = lambda n: round(n / self.factor**self.stages)
        return {"image": jnp.zeros((grow(x.shape[-3]), grow(x.shape[-2]), self.in_channels), x.dtype)}


class TextTransformer(nn.Module):
    """Tokens (..., L) in 0..vocabulary - 1, L at most `length`, as (..., L, width): the official `BERTEmbedder`.

    Every token attends to every other; those that fill a text up count like words, as in the official code.
    """

    width: int
    layers: int
    vocabulary: int = 30522
    length: int = 77
    heads: int = 8
    head_size: int = 64
    dtype: Any = None
    reads: ClassVar = ("tokens",)
    gives: ClassVar = ("context",)

    @nn.compact
    def __call__(self, tokens):
        tokens = jnp.asarray(tokens)
        x = _look_up(_table(self, "token", self.vocabulary, self.width), tokens, "tokens")
        x = x + _positions(self, tokens.shape[-1])
        for n in range(self.layers):
            x = TokenLayer(self.heads, self.head_size, self.dtype, name=f"layer_{n}")(x)
        return layer_norm("norm")(x)

    def blank(self, x):
        return {"tokens": jnp.zeros((1,), jnp.int32)}


def _positions(module, count):
    if count > module.length:
        raise ValueError(f"{count} tokens are more than the {module.length} of this encoder: cut the text")
    return _table(module, "position", module.length, module.width)[:count]


class TokenEncoder(nn.Module):
    """Words and boxes as tokens: (context (..., 1 + L + N, width), mask (..., 1 + L + N)), for any of the two.

      tokens   (..., L) in 0..vocabulary - 1, L at most `length`; 0 is no word
      boxes    (..., N, 4): top, left, bottom, right in [0, 1], in any order of boxes; N is free
      classes  (..., N) in 0..classes - 1, what is in each box; 0 is no box

    The first token is learned and always there, so zeros everywhere are the null condition. What is no word or no box is
    attended to by nobody. Fields: vocabulary and length, 0: no words; classes, 0: no boxes; layers, heads; frequencies: each
    side of a box is told by sines and cosines of 2^0 ... 2^(frequencies - 1) half turns.
    """

    width: int
    vocabulary: int = 0
    length: int = 0
    classes: int = 0
    layers: int = 2
    heads: int = 4
    frequencies: int = 6
    dtype: Any = None
    gives: ClassVar = ("context", "mask")

    def __post_init__(self):
        super().__post_init__()
        if not self.classes and not (self.vocabulary and self.length):
            raise ValueError("this encoder reads nothing: set vocabulary and length for words, classes for boxes")

    @property
    def reads(self):
        return ("tokens",) * bool(self.vocabulary) + ("boxes", "classes") * bool(self.classes)

    @nn.compact
    def __call__(self, *given):
        if len(given) != len(self.reads):
            raise ValueError(f"this encoder reads {', '.join(self.reads)}, got {len(given)} arrays")
        given = {name: jnp.asarray(a) for name, a in zip(self.reads, given)}
        parts, counts = [], []
        if "tokens" in given:
            words = given["tokens"]
            x = _look_up(_table(self, "token", self.vocabulary, self.width), words, "tokens")
            parts, counts = [x + _positions(self, words.shape[-1])], [words != 0]
        if "boxes" in given:
            boxes, classes = given["boxes"], given["classes"]
            if boxes.shape != (*classes.shape, 4):
                raise ValueError(
                    f"boxes have shape {boxes.shape}, their classes {classes.shape}: give (..., N, 4) and (..., N)"
                )
            angle = jnp.pi * boxes[..., None].astype(jnp.float32) * 2.0 ** jnp.arange(self.frequencies)
            waves = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*classes.shape, 8 * self.frequencies)
            x = nn.Dense(self.width, name="box")(waves) + _look_up(_table(self, "class", self.classes, self.width), classes,
                                                                   "classes")  # fmt: skip
            parts, counts = [*parts, x], [*counts, classes != 0]
        lead = parts[0].shape[:-2]
        first = jnp.broadcast_to(_table(self, "first", 1, self.width), (*lead, 1, self.width))
        x = jnp.concatenate([first, *parts], axis=-2)
        mask = jnp.concatenate([jnp.ones((*lead, 1), bool), *counts], axis=-1)
        for n in range(self.layers):
            x = TokenLayer(self.heads, None, self.dtype, name=f"layer_{n}")(x, mask)
        return layer_norm("norm")(x), mask

    def blank(self, x):
        zeros = {"tokens": jnp.zeros((1,), jnp.int32), "boxes": jnp.zeros((1, 4)), "classes": jnp.zeros((1,), jnp.int32)}
        return {name: zeros[name] for name in self.reads}


class Conditioned(nn.Module):
    """A network and what reads its condition as one: `apply(params, x, t, cond, train=False)`; parameters `net`, `reader`.

    net: a `LatentUNet` or `ConditionUNet`; reader: one of the modules of this file. cond: a dict with what the reader reads
    and whatever else the network takes. Raises ValueError for a condition of another kind.
    """

    net: nn.Module
    reader: nn.Module

    @nn.compact
    def __call__(self, x, t, cond=None, train=False):
        reads = self.reader.reads
        if len(reads) == 1 and cond is not None and not isinstance(cond, Mapping):
            cond = {reads[0]: cond}
        lacking = [name for name in reads if not isinstance(cond, Mapping) or cond.get(name) is None]
        if lacking:
            raise ValueError(
                f"the condition lacks {', '.join(lacking)}: give cond={{{', '.join(f'{n!r}: ...' for n in reads)}}}"
            )
        read = self.reader(*(cond[name] for name in reads))
        read = zip(self.reader.gives, read if isinstance(read, tuple) else (read,))
        return self.net(x, t, {n: a for n, a in cond.items() if n not in reads} | dict(read), train)

    @property
    def classes(self):
        return None  # of the network itself: the reader's labels are no affair of the network

    def blank(self, x):
        rest = {n: a for n, a in self.net.blank(x).items() if n not in self.reader.gives}
        return rest | self.reader.blank(x)
