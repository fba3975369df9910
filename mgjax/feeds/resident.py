"""Recordings that lie on the device as pictures: windows are cut out of them and encoded there.

A small world trains faster on a GPU than threads can read and unpack: here a step needs of the host no more than the
numbers of its windows. The memory is that of the pictures, a gigabyte for 58,000 frames of 64 x 96.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgjax.config import WorldConfig
from mgjax.data.store import schema
from mgjax.data.store.dataset import Dataset
from mgjax.data.store.feed import Clips, Window, read_good
from mgjax.errors import InputError


class ResidentFeed:
    """Shuffled batches of windows of `length` frames, as `encode(given, frames, keyboard, mouse)` makes them on the
    device; every epoch has an order of its own, and takes one window of each clip from a random place on.

    Raises:
        InputError: as `mgjax.data.store.feed.windows`; or the recordings do not fit into the device's memory.
    """

    def __init__(
        self,
        folders: Sequence[str],
        length: int,
        batch: int,
        encode: Callable[..., Any],
        given: Any = None,
        *,
        seed: int = 0,
        cfg: WorldConfig | None = None,
        threads: int = 4,
    ):
        clips = Clips(folders, length, cfg)
        whole = _read(clips, threads)
        lengths = np.array([len(clip.frames) for clip in whole])
        first, room = np.cumsum(lengths) - lengths, lengths - length + 1
        self._starts = functools.lru_cache(2)(functools.partial(_epoch_starts, first, room, seed))
        self._clips, self._batch, self._position, self._given = len(whole), batch, 0, given
        size = whole[0].frames.shape[1:]
        device = jax.local_devices()[0]
        stats = device.memory_stats() or {}
        wanted, there = int(lengths.sum()) * int(np.prod(size)), stats.get("bytes_limit")
        if there is not None and wanted > there:
            raise InputError(f"the recordings are {wanted / 1e9:.1f} GB of pictures, {device} has {there / 1e9:.1f} GB")
        rows = (np.concatenate([getattr(clip, name) for clip in whole]) for name in ("keyboard", "mouse"))
        self._held = (_upload(whole, device), *(jax.device_put(part, device) for part in rows))

        @jax.jit
        def cut(given, held, starts):
            rows = starts[:, None] + jnp.arange(length)
            frames, keyboard, mouse = (jnp.take(part, rows, axis=0) for part in held)
            return encode(given, frames.reshape(*rows.shape, *size), keyboard, mouse)

        self._cut = cut

    def __next__(self) -> Any:
        places = range(self._position, self._position + self._batch)
        starts = [self._starts(place // self._clips)[place % self._clips] for place in places]
        self._position += self._batch
        return self._cut(self._given, self._held, np.asarray(starts, np.int32))

    def get_state(self) -> dict:
        return {"position": self._position}

    def set_state(self, state: dict) -> None:
        self._position = int(state["position"])


def _epoch_starts(first: np.ndarray, room: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The first frames of an epoch's windows, in its order: one of each clip, at one of the `room` places in it."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(first))
    return first[order] + (rng.random(len(first)) * room[order]).astype(np.int64)


def _read(clips: Clips, threads: int) -> list[Window]:
    """All clips, in the model's convention; a damaged one is named, and the next good one takes its place."""

    def read(dataset: Dataset, number: int) -> Window:
        clip = dataset.read(number)
        if clips.cfg is None:
            return Window(clip.frames, clip.keyboard.astype(np.float32), clip.mouse.astype(np.float32))
        keyboard, mouse = schema.to_model(clip.keyboard, clip.mouse, dataset.schema, clips.cfg)
        return Window(clip.frames, np.asarray(keyboard, np.float32), np.asarray(mouse, np.float32))

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda index: read_good(clips, index, read), range(len(clips))))


def _upload(whole: list[Window], device: jax.Device, size: int = 256) -> jax.Array:
    """The pictures of all clips on the device, [n, h * w * 3], so many clips at a time: nothing is there twice.

    Rows of one picture each: an index of rows stays small where one of pixels would not.
    """
    put = jax.jit(lambda held, part, at: jax.lax.dynamic_update_slice(held, part, (at, 0)), donate_argnums=0)
    rows, width = sum(len(clip.frames) for clip in whole), whole[0].frames[0].size
    with jax.default_device(device):
        held, at = jnp.zeros((rows, width), jnp.uint8), 0
        for start in range(0, len(whole), size):
            part = np.concatenate([clip.frames for clip in whole[start : start + size]])
            held = put(held, part.reshape(len(part), -1), at)
            at += len(part)
    return held
