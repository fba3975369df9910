"""Batches for the stages: windows of recordings, encoded now or by `mgjax data encode`, or clips held in memory.

A feed's state is how many clips all processes have taken, so a run continues at the same clip on any number of hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgjax.config import WorldConfig
from mgjax.data.play.agents import make_agent
from mgjax.data.play.engines import make_engine
from mgjax.data.record import record_clip, schema_of
from mgjax.data.store.dataset import Dataset
from mgjax.data.store.feed import Batches, Window, windows
from mgjax.data.store.schema import Schema, check_fits, check_same_mouse, to_model
from mgjax.errors import InputError
from mgjax.feeds.encode import encode_clips
from mgjax.feeds.encode_dataset import LatentFeed, is_encoded, latent_items
from mgjax.feeds.resident import ResidentFeed
from mgjax.io.files import atomic_path
from mgjax.train_config import DiTStage, TrainConfig
from mgjax.types import ClipBatch, VideoBatch

_PART = 16  # clips played and encoded at a time

MakeFeed = Callable[[slice, int], Any]  # (rows of this process, clips of the whole batch) -> its feed


def make(
    cfg: TrainConfig, spec: ClipBatch | VideoBatch, dtype: str, frozen: dict, cache: Path
) -> tuple[MakeFeed, Callable[[slice, int], Any] | None]:
    """The training feed of a stage that takes batches of shapes `spec`, and its held-out clips (rows, batch) -> clips,
    if there are any.

    `frozen` holds the encoders of clips for the DiT's stages; the autoencoder's stage has none. Played
    clips are kept in the folder `cache`, which belongs to these weights.

    Raises:
        InputError: the recordings do not fit the world or are too short for the stage, or latents are of other weights.
    """
    pixels = isinstance(spec, VideoBatch)
    frames = spec.video.shape[1] if pixels else spec.actions.keyboard.shape[1]
    encode = videos if pixels else clip_encoder(cfg.world, frozen, dtype)
    played = (lambda window: VideoBatch(window.frames)) if pixels else encode
    if cfg.data.path is None:
        how = frames if pixels else longest(cfg), played, spec, dtype, cache
        train = _played(cfg, cfg.data.clips, cfg.data.seed, *how)
        held_out = _played(cfg, cfg.data.validation_clips, cfg.data.seed + 1, *how)
        return (
            lambda rows, batch: MemoryFeed(train, rows, batch, cfg.data.seed),
            lambda rows, batch: next(MemoryFeed(held_out, rows, batch, 0)),
        )

    def resident(rows: slice, batch: int) -> ResidentFeed:
        if batch != rows.stop - rows.start or jax.local_device_count() > 1:
            raise InputError("data.resident keeps the recordings on one device, and this run has several")
        if _holds_latents(folders):
            raise InputError(f"{folders[0]} holds latents: data.resident takes the recordings")
        if cfg.data.weights:
            raise InputError("data.resident takes every clip alike: leave data.weights out")
        reading = {"seed": cfg.data.seed, "cfg": cfg.world, "threads": cfg.data.num_threads}
        if pixels:
            return ResidentFeed(folders, frames, batch, lambda _, video, *rows: _as_video(video), **reading)
        encoders = jax.device_put({name: frozen[name] for name in cfg.world.encoders}, jax.local_devices()[0])
        return ResidentFeed(folders, frames, batch, encoder_of(cfg.world, dtype), encoders, **reading)

    def recordings(folders: Sequence[str], seed: int, weights: Sequence[float] = ()) -> MakeFeed:
        encoded = _holds_latents(folders)
        if encoded and pixels:
            raise InputError(f"{folders[0]} holds latents, and stage vae trains on pictures: name the recordings")

        def feed(rows: slice, batch: int) -> EncodedFeed | LatentFeed:
            own = rows.stop - rows.start
            reader = {"process_index": rows.start // own, "process_count": batch // own}
            reading = {"seed": seed, "cfg": cfg.world, "threads": cfg.data.num_threads, "weights": weights}
            if encoded:
                return latent_items(folders, frames, own, params=frozen, **reading, **reader)
            return EncodedFeed(windows(folders, frames, own, **reading, **reader), encode)

        return feed

    folders = cfg.data.folders
    train = resident if cfg.data.resident else recordings(folders, cfg.data.seed, cfg.data.weights)
    if cfg.data.validation_path is None:
        return train, None
    validation = recordings([cfg.data.validation_path], 0)
    return train, lambda rows, batch: next(validation(rows, batch))


def longest(cfg: TrainConfig) -> int:
    """Frames of the longest clips that a stage of the DiT takes."""
    latents = max(stage.clip_latents for stage in cfg.stages().values() if isinstance(stage, DiTStage))
    return 1 + cfg.world.vae.temporal_stride * (latents - 1)


def _holds_latents(folders: Sequence[str]) -> bool:
    """Whether the datasets hold latents; InputError where some do and some hold pictures."""
    encoded = {folder: is_encoded(folder) for folder in folders}
    if len(set(encoded.values())) > 1:
        latents = next(folder for folder, holds in encoded.items() if holds)
        raise InputError(f"{latents} holds latents and other folders hold pictures: encode all of them, or none")
    return any(encoded.values())


def schema_of_clips(cfg: TrainConfig) -> Schema:
    """What the actions of the clips mean that `make` feeds.

    Raises:
        InputError: the recordings have not the world's size or rate.
    """
    if cfg.data.path is None:
        engine = make_engine(cfg.data.engine, size=(cfg.world.height, cfg.world.width))
        return schema_of(engine, cfg.data.engine, {}, cfg.data.mouse_scale)
    places = (*cfg.data.folders, cfg.data.validation_path)
    schemas = {path: Dataset(path).schema for path in places if path is not None}
    for path, schema in schemas.items():
        check_fits(schema, cfg.world, path)
        check_same_mouse(schema, schemas[cfg.data.path], path, cfg.data.path)
    return schemas[cfg.data.path]


def held_out_window(cfg: TrainConfig, frames: int, count: int) -> Window | None:
    """`count` held-out clips of `frames` frames, from their first on: what the engine plays, or what the validation
    recordings hold; None where these have no pictures or none as long."""
    if cfg.data.path is None:
        played = _player(cfg, cfg.data.seed + 1, frames)
        return jax.tree.map(lambda *leaves: np.stack(leaves), *map(played, range(count)))
    path = cfg.data.validation_path
    if path is None or is_encoded(path):
        return None
    try:
        return next(windows([path], frames, count, seed=0, cfg=cfg.world, threads=cfg.data.num_threads))
    except InputError:
        return None


def _player(cfg: TrainConfig, seed: int, frames: int) -> Callable[[int], Window]:
    """episode -> a clip of the config's engine, in the model's convention."""
    engine = make_engine(cfg.data.engine, size=(cfg.world.height, cfg.world.width))
    agent = make_agent(cfg.data.agent, engine)
    schema = schema_of(engine, cfg.data.engine, {}, cfg.data.mouse_scale)

    def window(episode: int) -> Window:
        clip = record_clip(engine, agent, seed, episode, frames)
        return Window(clip.frames, *to_model(clip.keyboard, clip.mouse, schema, cfg.world))

    return window


def _played(
    cfg: TrainConfig, count: int, seed: int, frames: int, encode: Callable, spec: Any, dtype: str, cache: Path
) -> Any:
    """`count` clips of the config's engine as a stage takes them (`spec`), from `cache` if they were played before: the
    first frames of longer ones (`frames`), which are encoded once for all stages."""
    decisive = f"{cfg.data.mouse_scale} {cfg.world.control} {cfg.world.dit.action} {dtype}"
    mark = sha256(decisive.encode()).hexdigest()[:8]
    path = cache / f"{cfg.data.engine}-{cfg.data.agent}-{frames}-{count}-{seed}-{mark}.npz"
    window = _player(cfg, seed, frames)

    def part(start: int) -> Any:
        windows = map(window, range(start, min(start + _PART, count)))
        return jax.device_get(encode(jax.tree.map(lambda *leaves: np.stack(leaves), *windows)))

    if not path.exists():
        parts = [jax.tree.leaves(part(start)) for start in range(0, count, _PART)]
        with atomic_path(path) as temporary:
            np.savez(temporary, *(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))
    with np.load(path) as arrays:
        leaves = [arrays[name] for name in arrays.files]
    # What is made of a clip's first frames is first in what is made of the clip: its encoders are causal.
    cut = [leaf[:, : shape.shape[1]] for leaf, shape in zip(leaves, jax.tree.leaves(spec), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(spec), cut)


class MemoryFeed:
    """Shuffled batches of `items`, numpy arrays with the clips on axis 0; every epoch has an order of its own."""

    def __init__(self, items: Any, rows: slice, batch: int, seed: int):
        self._items, self._rows, self._batch, self._seed, self._position = items, rows, batch, seed, 0
        self._count = len(jax.tree.leaves(items)[0])

    def __next__(self) -> Any:
        places = self._position + np.arange(self._batch)[self._rows]
        self._position += self._batch
        chosen = np.asarray([self._order(place // self._count)[place % self._count] for place in places])
        return jax.tree.map(lambda leaf: _floats(leaf[chosen]), self._items)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(self._count)

    def get_state(self) -> dict:
        return {"position": self._position}

    def set_state(self, state: dict) -> None:
        self._position = int(state["position"])


class EncodedFeed:
    """Windows of a recording (`mgjax.data.store.feed.windows`), each batch passed through `encode`."""

    def __init__(self, windows: Batches[Window], encode: Callable[[Window], Any]):
        self._windows, self._encode = windows, encode

    def __next__(self) -> Any:
        return jax.device_get(self._encode(next(self._windows)))

    def get_state(self) -> dict:
        return self._windows.get_state()

    def set_state(self, state: dict) -> None:
        self._windows.set_state(state)


def videos(window: Window) -> VideoBatch:
    """What the autoencoder's stage takes."""
    return VideoBatch(_floats(window.frames))


def _as_video(video: jax.Array) -> VideoBatch:
    return VideoBatch(video.astype(jnp.float32) / 127.5 - 1)


def _floats(leaf: np.ndarray) -> np.ndarray:
    """Pictures, which are held as bytes, in [-1, 1]; anything else as it is."""
    return leaf.astype(np.float32) / 127.5 - 1 if leaf.dtype == np.uint8 else leaf


def clip_encoder(world: WorldConfig, params: dict, dtype: str) -> Callable[[Window], ClipBatch]:
    """Windows -> what the DiT's stages take, by the frozen encoders in `params`; on one device a process."""
    device = jax.local_devices()[0]
    params = jax.device_put({name: params[name] for name in world.encoders}, device)
    encode = jax.jit(encoder_of(world, dtype))
    return lambda window: encode(params, *jax.device_put(window, device))


def encoder_of(world: WorldConfig, dtype: str) -> Callable[..., ClipBatch]:
    """(encoders, frames, keyboard, mouse) -> clips."""
    return lambda params, *window: encode_clips(params, world, *window, dtype=jnp.dtype(dtype))
