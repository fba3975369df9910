"""Attention between tokens of latent frames.

Keys that a query may see are always a set of whole latent frames, so no mask of tokens exists anywhere:
a stream passes how many keys are valid (`length`), training passes a static frame mask that `by_frames` cuts into dense
calls.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from mgjax.config import AttentionKind

_TILE = 5 * 2**19  # logits at most: measured at 2640 queries and 5280 keys
_WHOLE = 2**19  # logits that need no tiles
_HIDDEN = -1e30  # finite, for the gradient of a hidden key is zero times it
_BOUND = 30.0  # of logits: gradients divide by squared sums of their exponentials, and float32 holds these


def attention(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b s k e"],
    v: Float[Array, "b s k e"],
    length: Int[Array, " b"] | None = None,
    kind: AttentionKind = "xla",
) -> Float[Array, "b n k e"]:
    """Softmax attention over the first `length` keys of each row (None: over all), scaled by 1 / sqrt(e).

    "xla" is the readable reference and runs everywhere, with the softmax in float32. "tiled" is made for CPUs: all in
    float32, head by head in tiles of the queries, computed again for the gradient. "cudnn" is NVIDIA's fused kernel
    (float16 or bfloat16 inputs), which keeps no logits in memory.
    """
    if kind == "tiled":
        return _tiled(q, k, v, length)
    if kind == "cudnn":
        if k.shape[1] % 2:  # its gradient takes an even number of keys only; CLIP gives 257
            length = jnp.full(k.shape[:1], k.shape[1], jnp.int32) if length is None else length
            k, v = (jnp.pad(part, ((0, 0), (0, 1), (0, 0), (0, 0))) for part in (k, v))
        return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=length, implementation="cudnn")
    if kind != "xla":
        raise ValueError(f"there is no attention {kind!r}")
    scale = q.shape[-1] ** -0.5
    logits = jnp.einsum("bnke,bske->bkns", q * jnp.asarray(scale, q.dtype), k, preferred_element_type=jnp.float32)
    if length is not None:
        valid = jnp.arange(k.shape[1]) < length[:, None]
        logits = jnp.where(valid[:, None, None, :], logits, -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = weights.sum(-1)
    out = jnp.einsum("bkns,bske->bnke", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / total.swapaxes(1, 2)[..., None]).astype(q.dtype)


def _tiled(q, k, v, length):
    (batch, queries, heads, width), keys = q.shape, k.shape[1]
    if batch * heads * queries * keys <= _WHOLE:
        return attention(q, k, v, length)
    size = next(size for size in range(min(max(_TILE // keys, 1), queries), 0, -1) if queries % size == 0)
    dtype, (q, k, v) = q.dtype, (x.astype(jnp.float32) for x in (q * jnp.asarray(width**-0.5, q.dtype), k, v))
    bounded = jax.lax.stop_gradient(_longest(q) * _longest(k) < _BOUND**2)
    if length is not None:  # the mask is one more channel, so that it costs no pass over the logits
        hidden = jnp.where(jnp.arange(keys) < length[:, None], 0.0, _HIDDEN)[..., None, None]
        q = jnp.concatenate([q, jnp.ones_like(q[..., :1])], -1)
        k = jnp.concatenate([k, jnp.broadcast_to(hidden, (batch, keys, heads, 1))], -1)

    def head(args):
        q, k, v, bounded = args

        @jax.checkpoint
        def tile(q):
            logits = jax.lax.dot_general(q, k, (((1,), (1,)), ((), ())))
            # The maximum, a pass over the logits, is needed only where sums of their exponentials could leave float32.
            fixed = jax.lax.stop_gradient(logits)
            shift = jax.lax.cond(bounded, lambda x: jnp.zeros_like(x[:, :1]), _row_max, fixed)
            weights = jnp.exp(logits - shift)
            return weights @ v / (weights @ jnp.ones((keys, 1)))  # XLA:CPU sums rows on one core, a product on all

        return jax.lax.map(tile, q)

    q = rearrange(q, "b (n s) k e -> (b k) n s e", s=size)
    out = jax.lax.map(head, (q, *(rearrange(x, "b s k e -> (b k) s e") for x in (k, v)), bounded.ravel()))
    return rearrange(out, "(b k) n s e -> b (n s) k e", b=batch).astype(dtype)


def _longest(x: Float[Array, "b n k e"]) -> Float[Array, "b k"]:
    """Squared length of each head's longest vector. Two of them bound all inner products (Cauchy and Schwarz)."""
    return jnp.square(x).sum(-1).max(1)


def _row_max(x: Float[Array, "n s"]) -> Float[Array, "n 1"]:
    """Over quarters of the rows first: XLA:CPU takes several cores for a large result only. The barrier keeps it from
    making one reduction of the two."""
    if x.shape[-1] % 4 == 0:
        x = jax.lax.optimization_barrier(rearrange(x, "n (q s) -> n q s", q=4).max(1))
    return x.max(-1, keepdims=True)


def by_frames(
    attend: Callable[[Array, Array, Array], Array],
    mask: np.ndarray,
    q: Float[Array, "b t *q"],
    k: Float[Array, "b u *k"],
    v: Float[Array, "b u *k"],
) -> Float[Array, "b t *q"]:
    """Calls `attend(q, k, v)` once for each set of latent frames that see the same frames in `mask` [t, u] (static)."""
    rows, groups = np.unique(mask, axis=0, return_inverse=True)
    out = [None] * len(mask)
    for index, row in enumerate(rows):
        frames, seen = np.flatnonzero(groups.ravel() == index), np.flatnonzero(row)
        result = attend(take_frames(q, frames), take_frames(k, seen), take_frames(v, seen))
        for place, frame in enumerate(frames):
            out[frame] = result[:, place : place + 1]
    return jnp.concatenate(out, 1)


def take_frames(x: Float[Array, "b u *rest"], frames: np.ndarray) -> Float[Array, "b t *rest"]:
    """x[:, frames], as one slice where the frames are consecutive."""
    if len(frames) == frames[-1] - frames[0] + 1:
        return x[:, frames[0] : frames[-1] + 1]
    return x[:, frames]
