"""Batches for the stages: windows of recordings, or clips held in memory, encoded as the stage wants them.

A feed's state is how many clips all processes have taken, so a run continues at the same clip on any number of hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from mgjax.config import WorldConfig
from mgjax.data.feed import Window
from mgjax.models import clip, vae
from mgjax.train.stage import ClipBatch, VideoBatch
from mgjax.types import Actions


class MemoryFeed:
    """Shuffled batches of `items`, numpy arrays with the clips on axis 0; every epoch has an order of its own."""

    def __init__(self, items: Any, rows: slice, batch: int, seed: int):
        self._items, self._rows, self._batch, self._seed, self._position = items, rows, batch, seed, 0
        self._count = len(jax.tree.leaves(items)[0])

    def __next__(self) -> Any:
        places = self._position + np.arange(self._batch)[self._rows]
        self._position += self._batch
        chosen = np.asarray([self._order(place // self._count)[place % self._count] for place in places])
        return jax.tree.map(lambda leaf: leaf[chosen], self._items)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(self._count)

    def get_state(self) -> dict:
        return {"position": self._position}

    def set_state(self, state: dict) -> None:
        self._position = int(state["position"])


class EncodedFeed:
    """Windows of a recording (`mgjax.data.feed.windows`), each batch passed through `encode`."""

    def __init__(self, windows: Iterator[Window], encode: Callable[[Window], Any]):
        self._windows, self._encode = windows, encode

    def __next__(self) -> Any:
        return jax.device_get(self._encode(next(self._windows)))

    def get_state(self) -> dict:
        return self._windows.get_state()

    def set_state(self, state: dict) -> None:
        self._windows.set_state(state)


def floats(frames: UInt8[np.ndarray, "*s 3"]) -> Float[jax.Array, "*s 3"]:
    """Pixels in [-1, 1]."""
    return jnp.asarray(frames, jnp.float32) / 127.5 - 1


def videos(window: Window) -> VideoBatch:
    """What the autoencoder's stage takes."""
    return VideoBatch(np.asarray(window.frames, np.float32) / 127.5 - 1)


def clip_encoder(world: WorldConfig, params: dict, dtype) -> Callable[[Window], ClipBatch]:
    """Windows of 4 (t - 1) + 1 frames -> what the DiT's stages take, by the frozen "vae" and "clip" of `params`.

    Runs on this process's first device.
    """
    device = jax.local_devices()[0]
    params = jax.device_put({name: params[name] for name in ("vae", "clip")}, device)

    @jax.jit
    def encode(params, frames):
        video = floats(frames)
        first, latents = video[:, 0], 1 + (video.shape[1] - 1) // world.vae.temporal_stride
        settled = min(latents, vae.settled_latents(world.vae))
        condition = vae.encode_image_condition(params["vae"], world.vae, first, settled, dtype=dtype)
        rest = jnp.repeat(condition[:, -1:], latents - settled, 1)
        return (
            vae.encode(params["vae"], world.vae, video, dtype=dtype).astype(jnp.float32),
            jnp.concatenate([condition, rest], 1).astype(jnp.float32),
            clip.encode(params["clip"], world.clip, first, dtype=dtype).astype(jnp.float32),
        )

    def encoded(window: Window) -> ClipBatch:
        return ClipBatch(*encode(params, jax.device_put(window.frames, device)), Actions(window.keyboard, window.mouse))

    return encoded
