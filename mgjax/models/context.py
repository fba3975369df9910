"""What a call hands to every block: who sees whom, and what does not change from block to block."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mgjax.models.cache import KV, BlockKV
from mgjax.ops.rope import Turn


class Context(NamedTuple):
    """What a call's blocks share; it does not change over the denoising steps of a chunk."""

    turn: Turn  # of the tokens [b, t, hp * wp, e / 2]
    action_turn: Turn  # of the frames [b, t, pairs]
    keyboard: Float[Array, "b t r"]  # flattened rows that each latent frame sees
    mouse: Float[Array, "b t r"]


class Sight(NamedTuple):
    """Which latent frames the frames of this call see.

    A stream gives `past`, the block's ring, and `filled`, how many of its slots are valid; its own frames see one
    another. Training gives `mask` [t, u] over the call's own frames, static. With neither every frame sees every frame.
    No gradient flows into the keys and values of the first `detached` own frames.
    """

    past: BlockKV | None = None
    filled: Int[Array, " b"] | None = None
    mask: np.ndarray | None = None
    detached: int = 0


def held(own: KV, sight: Sight) -> KV:
    """`own` without the gradient of its first `sight.detached` frames."""
    if not sight.detached:
        return own
    n = sight.detached
    return KV(*(jnp.concatenate([jax.lax.stop_gradient(x[:, :n]), x[:, n:]], 1) for x in own))


def with_past(own: KV, past: KV) -> KV:
    """Own frames first, so that the valid frames are a prefix; then the ring."""
    return KV(*(jnp.concatenate(pair, 1) for pair in zip(own, past, strict=True)))
