"""Attention on TPUs, by the fused kernel that comes with JAX (jax.experimental.pallas.ops.tpu.splash_attention).

It takes whole tiles of rows and heads of whole lanes: what is smaller is filled up with zeros, and keys that are none
stand in another segment than all queries.
"""

from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_LANES = 128
_TILES = (512, 384, 256, 128)  # rows of queries or keys at a time


def splash_attention(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b s k e"],
    v: Float[Array, "b s k e"],
    length: Int[Array, " b"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "b n k e"]:
    """Softmax attention over the first `length` keys of each row (None: over all), scaled by 1 / sqrt(e). No logits are
    kept in memory. `interpret`: what the kernel does, computed anywhere, to test it."""
    # Imported here: Pallas takes a third of a second, which only TPUs have a use for.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    (batch, queries, heads, width), keys = q.shape, k.shape[1]
    rows, columns = _tile(queries), _tile(keys)
    q = _filled(q * jnp.asarray(width**-0.5, q.dtype), rows)
    k, v = _filled(k, columns), _filled(v, columns)
    mask = splash_attention_mask.FullMask((q.shape[2], k.shape[2]))
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=rows, block_kv=columns, block_q_dkv=rows, block_kv_dkv=columns, block_q_dq=rows, block_kv_dq=columns
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    valid = jnp.full(batch, keys, jnp.int32) if length is None else length
    hidden = (jnp.arange(k.shape[2]) >= valid[:, None]).astype(jnp.int32)
    segments = splash_attention_kernel.SegmentIds(jnp.zeros((batch, q.shape[2]), jnp.int32), hidden)
    out = cast(jax.Array, jax.vmap(kernel)(q, k, v, segments))
    return out[:, :, :queries, :width].swapaxes(1, 2)


def _tile(rows: int) -> int:
    """The tile that leaves the fewest rows to fill up; of several the largest."""
    return min(_TILES, key=lambda tile: (-rows % tile, -tile))


def _filled(x: Float[Array, "b n k e"], tile: int) -> Float[Array, "b k n2 e2"]:
    """Heads before rows, in whole tiles and lanes."""
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % tile), (0, -x.shape[3] % _LANES)))
