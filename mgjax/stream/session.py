"""A running stream: the compiled step, the weights and the state in one place. No web code.

The state on the device is donated from chunk to chunk; nothing is copied and nothing is compiled after the first chunk.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from mgjax.stream import snapshot
from mgjax.types import Actions, StreamState
from mgjax.world import World, jit_step, streaming_params


class Session:
    """Streams of one world, all rows of the batch stepped together."""

    def __init__(self, world: World, params: dict, state: StreamState, step=None):
        """`params` as of `streaming_params`; `state` belongs to the session from now on; `step`: a compiled one."""
        self.world, self.params, self.state = world, params, state
        self._fresh = np.asarray(state.position) == 0
        self._step = step or jit_step(world.chunk_step)

    @classmethod
    def start(
        cls, world: World, params: dict, image: Float[Array, "b h w 3"], seeds: list[int], horizon: int | None = None
    ) -> Session:
        """New streams, one a picture in [-1, 1], with the whole world's `params`; `horizon` as in `World.encode`."""
        condition = jax.jit(world.encode, static_argnames="horizon")(params, image, horizon=horizon)
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        params = streaming_params(world, params)
        return cls(world, params, jax.jit(world.begin)(params, condition, keys))

    @property
    def streams(self) -> int:
        """How many streams run side by side."""
        return self.state.position.shape[0]

    def step(self, actions: Actions) -> list[UInt8[np.ndarray, "f h w 3"]]:
        """Plays the rows [b, 12] of the next chunk; returns each stream's new frames: 9 of its first chunk, then 12."""
        frames, self.state = self._step(self.params, self.state, actions)
        blank = np.where(self._fresh, self.world.cfg.vae.temporal_stride - 1, 0)
        self._fresh = np.zeros_like(self._fresh)
        return [row[skip:] for row, skip in zip(np.asarray(frames), blank, strict=True)]

    def save(self, path: str | Path) -> None:
        """Writes the streams to a file; they can be taken up again with `load`."""
        snapshot.save(path, self.world, self.params, self.state)

    @classmethod
    def load(cls, world: World, params: dict, path: str | Path) -> Session:
        """The streams that `save` wrote, with the whole world's `params` or those of `streaming_params`."""
        params = streaming_params(world, params)
        return cls(world, params, snapshot.load(path, world, params))

    def fork(self) -> Session:
        """A second session that begins where this one stands; both go on independently."""
        return Session(self.world, self.params, jax.tree.map(jnp.copy, self.state), self._step)
