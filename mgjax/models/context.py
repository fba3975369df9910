"""What a call hands to every block: who sees whom, and what does not change from block to block."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from mgjax.models.cache import KV, BlockKV
from mgjax.ops.bits import concatenate
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
    another. Training gives `mask` [t, u], static, over the call's own frames, and behind them those of `past` where
    there are some. With neither every frame sees every frame.
    """

    past: BlockKV | None = None
    filled: Int[Array, " b"] | None = None
    mask: np.ndarray | None = None


def with_past(own: KV, past: KV | None) -> KV:
    """Own frames first, so that the valid frames are a prefix; then the past's."""
    if past is None:
        return own
    return KV(*(concatenate(*pair, 1) for pair in zip(own, past, strict=True)))
