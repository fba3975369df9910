"""Attention between tokens of latent frames.

Keys that a query may see are always a set of whole latent frames, so no mask of tokens exists anywhere:
a stream passes how many keys are valid (`length`), training passes a static frame mask that `by_frames` cuts into dense
calls.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mgjax.config import AttentionKind
from mgjax.ops.splash import splash_attention
from mgjax.ops.tiled import tiled_attention


def attention(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b s k e"],
    v: Float[Array, "b s k e"],
    length: Int[Array, " b"] | None = None,
    kind: AttentionKind = "xla",
) -> Float[Array, "b n k e"]:
    """Softmax attention over the first `length` keys of each row (None: over all), scaled by 1 / sqrt(e).

    "xla" is the readable reference and runs everywhere, with the softmax in float32. "tiled" is made for CPUs
    (`mgjax.ops.tiled`). "cudnn" is NVIDIA's fused kernel (float16 or bfloat16 inputs), "splash" the one for TPUs
    (`mgjax.ops.splash`). All three keep no logits in memory.
    """
    if kind == "splash":
        return splash_attention(q, k, v, length)
    if kind == "tiled":
        return tiled_attention(q, k, v, length)
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


def by_mask(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b s k e"],
    v: Float[Array, "b s k e"],
    mask: np.ndarray,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "b n k e"]:
    """Attention of the tokens of t frames to those of the u frames that `mask` [t, u] (static) shows them, in one call.

    It computes what is hidden too: for short sequences, of which `by_frames` makes many small calls.
    """
    rows, columns = mask.shape
    tokens = np.repeat(np.repeat(mask, q.shape[1] // rows, 0), k.shape[1] // columns, 1)[None, None]
    return jax.nn.dot_product_attention(q, k, v, mask=jnp.asarray(tokens), implementation=implementation)


def by_frames(
    attend: Callable[[Array, Array, Array], Array],
    mask: np.ndarray,
    q: Float[Array, "b t *q"],
    k: Float[Array, "b u *k"],
    v: Float[Array, "b u *k"],
) -> Float[Array, "b t *q"]:
    """Calls `attend(q, k, v)` once for each set of latent frames that see the same frames in `mask` [t, u] (static)."""
    rows, groups = np.unique(mask, axis=0, return_inverse=True)
    out: dict[int, Array] = {}
    for index, row in enumerate(rows):
        frames, seen = np.flatnonzero(groups.ravel() == index), np.flatnonzero(row)
        result = attend(take_frames(q, frames), take_frames(k, seen), take_frames(v, seen))
        for place, frame in enumerate(frames):
            out[frame] = result[:, place : place + 1]
    return jnp.concatenate([out[frame] for frame in range(len(mask))], 1)


def take_frames(x: Float[Array, "b u *rest"], frames: np.ndarray) -> Float[Array, "b t *rest"]:
    """x[:, frames], a slice for every run of consecutive frames: the gradient of a gather would be a scatter."""
    runs = np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1)
    slices = [x[:, run[0] : run[-1] + 1] for run in runs]
    return slices[0] if len(slices) == 1 else jnp.concatenate(slices, 1)
