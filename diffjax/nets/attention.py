"""Attention of queries to keys and values of any lengths: the one place that chooses how it is computed.

    softmax(q k^T / sqrt(size)) v

Few tokens: the formula as it stands. More: heads first, so that both products run over contiguous memory, and the softmax is
normalised after the product with v, where a row has `size` numbers instead of `keys`. Many: the same for one block of queries
after another, each computed again in the backward pass, so that the matrix of all tokens by all tokens never exists (Rabe and
Staats 2021, arXiv:2112.05682). Half precision on NVIDIA GPUs: cuDNN's fused attention (Dao et al. 2022, arXiv:2205.14135).
"""

import functools

import jax
import jax.numpy as jnp

# Pairs of a query and a key from which on the other forms pay; queries in a block. Measured on CPUs; the block of accelerators
# is what fills them and still bounds the memory, chosen without a measurement.
HEADS_FIRST, BLOCKS = 128**2, 256**2
QUERIES_CPU, QUERIES_ELSEWHERE = 128, 1024


def attention(q, k, v, mask=None):
    """(..., queries, heads, size) of q (..., queries, heads, size) and k, v (..., keys, heads, size): same leading axes.

    mask (..., keys): True for the keys that count; where none does, all count alike. Products are summed and the softmax is
    computed in at least float32; the result has v's type. Every derivative exists.
    """
    given = (q, k, v) if mask is None else (q, k, v, mask)
    pairs = q.shape[-3] * k.shape[-3]
    usual, special = _as_it_stands if pairs < HEADS_FIRST else _heads_first, {}
    if pairs > BLOCKS:
        usual = functools.partial(_in_blocks, QUERIES_ELSEWHERE)
        special["cpu"] = functools.partial(_in_blocks, QUERIES_CPU)
    if pairs >= HEADS_FIRST and mask is None and fused(q):
        special["cuda"] = _cudnn
    if not special:
        return usual(*given)
    # Reverse mode of a branch keeps the residuals of all branches; inside a checkpoint it keeps q, k and v.
    return jax.checkpoint(lambda *args: jax.lax.platform_dependent(*args, **special, default=usual))(*given)


def attend(qkv, heads, order):
    """(..., tokens, 3C) -> (..., tokens, C): multi-head attention of joint queries, keys and values."""
    return attention(*split(qkv, heads, order)).reshape(*qkv.shape[:-1], qkv.shape[-1] // 3)


def split(qkv, heads, order):
    """q, k, v (..., tokens, heads, size) of their joint projection (..., tokens, 3C), laid out as `Attention` says."""
    *lead, tokens, channels = qkv.shape
    size = channels // (3 * heads)
    if order == "legacy":
        return jnp.moveaxis(qkv.reshape(*lead, tokens, heads, 3, size), -2, 0)
    return jnp.moveaxis(qkv.reshape(*lead, tokens, 3, heads, size), -3, 0)


def _scaled(q, k):
    scale = q.shape[-1] ** -0.25  # on both sides of the product, so that it stays small in half precision
    return q * scale, k * scale


def _sums(dtype):
    """The type in which products of this type are summed."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def _counted(weight, mask):
    """weight (..., heads, queries, keys) with the smallest number where the mask (..., keys) says no."""
    return weight if mask is None else jnp.where(mask[..., None, None, :], weight, jnp.finfo(weight.dtype).min)


def _as_it_stands(q, k, v, mask=None):
    q, k = _scaled(q, k)
    wide = _sums(v.dtype)
    weight = jnp.einsum("...qhd,...khd->...hqk", q, k, preferred_element_type=wide)
    weight = jax.nn.softmax(_counted(weight, mask), axis=-1).astype(v.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weight, v)


def _block(q, k, v, mask=None):
    """Scaled q (..., heads, queries, size), k and v likewise."""
    wide = _sums(v.dtype)
    weight = _counted(jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=wide), mask)
    weight = jnp.exp(weight - jax.lax.stop_gradient(weight.max(-1, keepdims=True)))  # any constant: it cancels
    mean = jnp.einsum("...qk,...kd->...qd", weight.astype(v.dtype), v, preferred_element_type=wide)
    return (mean / weight.sum(-1, keepdims=True)).astype(v.dtype)


def _heads_first(q, k, v, mask=None):
    q, k = _scaled(q, k)
    q, k, v = (jnp.swapaxes(a, -3, -2) for a in (q, k, v))
    return jnp.swapaxes(_block(q, k, v, mask), -3, -2)


def _in_blocks(most, q, k, v, mask=None):
    """Queries in blocks of equal size, at most `most`; the last one may end with up to one row of zeros per block."""
    q, k = _scaled(q, k)
    q, k, v = (jnp.swapaxes(a, -3, -2) for a in (q, k, v))
    *lead, queries, size = q.shape
    blocks = -(-queries // most)
    each = -(-queries // blocks)
    padded = jnp.pad(q, [(0, 0)] * len(lead) + [(0, blocks * each - queries), (0, 0)])
    stacked = jnp.moveaxis(padded.reshape(*lead, blocks, each, size), -3, 0)
    one = jax.checkpoint(lambda q: _block(q, k, v, mask), prevent_cse=False)  # a loop's body needs no barrier
    out = jnp.moveaxis(jax.lax.map(one, stacked), 0, -3).reshape(*lead, blocks * each, size)
    return jnp.swapaxes(out[..., :queries, :], -3, -2)


def fused(q):
    """Whether cuDNN's attention takes q: half precision, a head's size a multiple of 8 up to 128, a GPU from Ampere on."""
    half = q.dtype in (jnp.float16, jnp.bfloat16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    return half and jax.default_backend() == "gpu" and all(_ampere(device) for device in jax.devices())


def _ampere(device):
    version = str(getattr(device, "compute_capability", ""))  # "8.0"; AMD's devices say "gfx90a"
    return version.replace(".", "").isdigit() and float(version) >= 8


@jax.custom_jvp
def _cudnn(q, k, v):
    """cuDNN's forward pass. Its own backward pass has no forward mode and no second derivative: ours is the formula's."""
    flat = (a.reshape(-1, *a.shape[-3:]) for a in (q, k, v))
    return jax.nn.dot_product_attention(*flat, implementation="cudnn").reshape(q.shape)


@_cudnn.defjvp
def _(primals, tangents):
    form = functools.partial(_in_blocks, QUERIES_ELSEWHERE)
    return _cudnn(*primals), jax.jvp(form, primals, tangents)[1]
