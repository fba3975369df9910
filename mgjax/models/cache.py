"""Keys and values that a block keeps of past latent frames, as fixed-shape rings.

Keys are stored after rotation at absolute positions, and softmax does not care about order, so a ring that overwrites
its oldest frame equals the released roll-and-append. A stream keeps the window without the chunk that is being
denoised: half of what the released code keeps for a window of 6 and chunks of 3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mgjax.config import DiTConfig


class KV(NamedTuple):
    """Keys and values, latent frames on axis 1."""

    k: Float[Array, "b t *tokens k e"]
    v: Float[Array, "b t *tokens k e"]


class BlockKV(NamedTuple):
    """What one block remembers of latent frames; the keyboard's keys, the same at every token, exist once a frame."""

    tokens: KV  # [b, t, hp * wp, heads, e]
    mouse: KV | None  # [b, t, hp * wp, heads, e]
    keyboard: KV | None  # [b, t, heads, e]


def empty(cfg: DiTConfig, has_action: bool, batch: int, dtype) -> BlockKV:
    """The empty rings of one block, of `cfg.past` latent frames."""

    def kv(*shape):
        return KV(jnp.zeros((batch, cfg.past, *shape), dtype), jnp.zeros((batch, cfg.past, *shape), dtype))

    heads = cfg.action.num_heads, cfg.action.head_dim
    return BlockKV(
        tokens=kv(cfg.frame_tokens, cfg.num_heads, cfg.head_dim),
        mouse=kv(cfg.frame_tokens, *heads) if has_action and cfg.action.mouse_dim else None,
        keyboard=kv(*heads) if has_action else None,
    )


def filled(cfg: DiTConfig, position: Int[Array, " b"]) -> Int[Array, " b"]:
    """Slots of the ring that hold frames when `position` latent frames were committed; they are the first ones."""
    return jnp.minimum(position, cfg.past)


def slots(cfg: DiTConfig, position: Int[Array, " b"], frames: int) -> Int[Array, "b t"]:
    """Slot of each of the `frames` latent frames from `position` on; `cfg.past`, which is no slot, if it is not kept.

    The first `sink` frames of a stream keep their slots for ever; the newest others share the rest as a ring.
    """
    offset = jnp.arange(frames)
    index = position[:, None] + offset
    ring = cfg.past - cfg.sink
    newest = offset >= frames - ring
    kept = jnp.where(newest, cfg.sink + (index - cfg.sink) % max(ring, 1), cfg.past)
    return jnp.where(index < cfg.sink, index, kept)


def write(
    cfg: DiTConfig, ring: Float[Array, "b u *rest"], new: Float[Array, "b t *rest"], position: Int[Array, " b"]
) -> Float[Array, "b u *rest"]:
    """`ring` with the frames of `new` at their `slots`: a chunk, which begins at a multiple of its length."""
    frames = new.shape[1]
    if not cfg.sink and frames % max(cfg.past, 1) == 0:  # every slot is written anew, in order, at any such position
        return new[:, frames - cfg.past :].astype(ring.dtype)
    # A map over the batch, not indices of its rows: these the partitioner would gather on every device.
    put = jax.vmap(lambda ring, new, where: ring.at[where].set(new, mode="drop"))
    return put(ring, new.astype(ring.dtype), slots(cfg, position, frames))
