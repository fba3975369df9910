"""Recordings -> encoded datasets, and encoded datasets -> the clips that the DiT's stages train on.

Every clip is cut into consecutive windows, and each is encoded from its own first frame on, by the same function that
encodes pictures while training. Batch n holds the same windows in every run, however much of it an earlier run has
stored: what a resumed run adds is what an uninterrupted one would have written.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mgjax.config import WorldConfig
from mgjax.data.store import latents, schema
from mgjax.data.store.dataset import DamagedClip, Dataset, Writer, clip_name
from mgjax.data.store.feed import Batches, Window
from mgjax.data.store.latents import Item
from mgjax.data.store.schema import Encoded, Schema
from mgjax.errors import InputError
from mgjax.feeds.encode import encode_clips
from mgjax.stream.snapshot import fingerprint
from mgjax.types import Actions, ClipBatch

_READERS = 4  # threads that decode pictures while the devices encode


@dataclasses.dataclass(frozen=True)
class EncodeConfig:
    """How recordings become latents."""

    frames: int = 57  # of a window, 1 + 4 (t - 1); what is left over at the end of a clip is not used
    batch: int = 1  # windows at a time on each device
    compute: str = "float32"  # dtype of the encoders
    values: str = "bfloat16"  # dtype of latents, condition and features in the store
    codec: str = "zstd"  # or "raw"

    def __post_init__(self):
        if self.batch < 1:
            raise InputError(f"a batch of {self.batch} windows cannot be encoded")
        if self.values not in latents.VALUES:
            raise InputError(f"latents are stored in {' or '.join(latents.VALUES)}, not in {self.values!r}")
        if self.codec not in latents.CODECS:
            raise InputError(f"there is no codec {self.codec!r} for latents; there are {', '.join(latents.CODECS)}")


class Place(NamedTuple):
    """Where a window lies in its dataset, and the name of its item."""

    name: str
    clip: int
    start: int


class Report(NamedTuple):
    """What of a dataset is encoded so far, and how fast this run of it goes."""

    done: int  # windows that this and earlier runs stored
    total: int
    new: int  # of this run
    damaged: int  # windows of clips that could not be read
    seconds: float


def places(dataset: Dataset, frames: int) -> list[Place]:
    """The consecutive windows of `frames` frames of every clip."""
    return [
        Place(clip_name(f"{entry.name}.{start:06d}"), number, start)
        for number, entry in enumerate(dataset.clips)
        for start in range(0, entry.frames - frames + 1, frames)
    ]


def weights_mark(params: dict, cfg: WorldConfig) -> str:
    """A text that tells encoders (`cfg.encoders` of `params`) apart, whatever dtype they are held in."""
    encoders = {name: params[name] for name in cfg.encoders}
    heads = jax.tree.map(lambda leaf: leaf.ravel()[:8].astype(np.float32), encoders)
    return sha256(f"{fingerprint(heads)} {cfg.vae} {cfg.clip}".encode()).hexdigest()[:16]


def encoded_schema(recorded: Schema, params: dict, cfg: WorldConfig, how: EncodeConfig) -> Schema:
    """The schema of what `encode_dataset` makes of recordings under `recorded`."""
    made = Encoded(cfg.name, weights_mark(params, cfg), how.frames, how.compute, how.values)
    return dataclasses.replace(recorded, encoded=made)


def encode_dataset(
    source: str | os.PathLike,
    out: str | os.PathLike,
    params: dict,
    cfg: WorldConfig,
    how: EncodeConfig,
    *,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[Report], None] = lambda report: None,
    say: Callable[[str], None] = print,
) -> Report:
    """Encodes every window of the dataset `source` that `out` does not hold yet.

    Args:
      params: the `cfg.encoders`.
      devices: the batch is split over them; None takes all of this process.
      progress: called at the start and after every batch.
      say: given one sentence for each clip that cannot be read.

    Raises:
      InputError: the recordings do not fit the model, no clip is long enough, or `out` holds something else.
    """
    began = time.monotonic()
    dataset = Dataset(source)
    check_fit(dataset, cfg, how)
    todo = places(dataset, how.frames)
    if not todo:
        raise InputError(f"no clip of {source} has {how.frames} frames")
    devices = jax.local_devices() if devices is None else devices
    size = how.batch * len(devices)
    encode = _encoder(params, cfg, how, devices)
    for sentence in dataset.damaged:
        say(sentence)

    with (
        Writer(out, encoded_schema(dataset.schema, params, cfg, how)) as writer,
        ThreadPoolExecutor(_READERS) as readers,
    ):
        stored = sum(place.name in writer.entries for place in todo)
        batches = [todo[start : start + size] for start in range(0, len(todo), size)]
        batches = [batch for batch in batches if any(place.name not in writer.entries for place in batch)]
        new, damaged, told = 0, 0, set()

        def report() -> Report:
            return Report(stored + new, len(todo), new, damaged, time.monotonic() - began)

        def load(batch: list[Place]) -> list[Window | DamagedClip]:
            return list(readers.map(lambda place: _read(dataset, place, how.frames, cfg), batch))

        progress(report())
        loaded = load(batches[0]) if batches else []
        for number, batch in enumerate(batches):
            windows = loaded
            encoded = encode(_stack(windows, size, how.frames, cfg))
            if number + 1 < len(batches):
                loaded = load(batches[number + 1])  # while the devices encode
            encoded = jax.device_get(encoded)
            for row, (place, window) in enumerate(zip(batch, windows, strict=True)):
                if isinstance(window, DamagedClip):
                    damaged += 1
                    if str(window) not in told:
                        say(str(window))
                    told.add(str(window))
                elif place.name not in writer.entries:
                    frames, condition, features = (leaf[row] for leaf in encoded)
                    item = Item(frames, condition, features, window.keyboard, window.mouse)
                    origin = {"clip": dataset.clips[place.clip].name, "start": place.start}
                    writer.add(place.name, latents.encode(item, how.codec), how.frames, origin)
                    new += 1
            progress(report())
        return report()


def check_fit(dataset: Dataset, cfg: WorldConfig, how: EncodeConfig) -> None:
    """InputError where the recordings cannot be encoded for the world `cfg`."""
    stride = cfg.vae.temporal_stride
    if how.frames < 1 or how.frames % stride != 1 % stride:
        raise InputError(f"windows of {how.frames} frames cannot be encoded: give 1 + {stride} (t - 1)")
    if dataset.schema.encoded is not None:
        raise InputError(f"{dataset.path} is encoded already")
    if dataset.schema.size != (cfg.height, cfg.width):
        height, width = dataset.schema.size
        raise InputError(
            f"{dataset.path} has frames of {height}x{width}, and the model {cfg.name} takes {cfg.height}x{cfg.width}"
        )
    schema.columns_for(dataset.schema, cfg, f"{dataset.path}/{schema.FILE}")


def _encoder(
    params: dict, cfg: WorldConfig, how: EncodeConfig, devices: Sequence[jax.Device]
) -> Callable[[Window], tuple[jax.Array, jax.Array, jax.Array]]:
    """A batch of windows -> latents, condition and features as they are stored, rows split over `devices`."""
    mesh = Mesh(np.asarray(devices), ("data",))
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    params = jax.device_put({name: params[name] for name in cfg.encoders}, whole)
    program = _program(cfg, how.compute, how.values, whole, rows)
    return lambda window: program(params, jax.device_put(window, rows))


@functools.cache
def _program(cfg: WorldConfig, compute: str, values: str, whole: NamedSharding, rows: NamedSharding) -> Callable:
    """(params, windows) -> what `_encoder` gives, compiled once."""

    def run(params: dict, window: Window) -> tuple[jax.Array, jax.Array, jax.Array]:
        made = encode_clips(params, cfg, *window, dtype=jnp.dtype(compute))
        return made.latents.astype(values), made.condition.astype(values), made.features.astype(values)

    return jax.jit(run, in_shardings=(whole, rows), out_shardings=rows)


def _read(dataset: Dataset, place: Place, frames: int, cfg: WorldConfig) -> Window | DamagedClip:
    """A window in the model's convention, or what is wrong with its clip."""
    try:
        clip = dataset.read(place.clip, place.start, place.start + frames)
    except DamagedClip as error:
        return error
    except ValueError as error:
        return DamagedClip(f"{dataset.path}: clip {dataset.clips[place.clip].name} cannot be decoded: {error}")
    return Window(clip.frames, *schema.to_model(clip.keyboard, clip.mouse, dataset.schema, cfg))


def _stack(windows: list[Window | DamagedClip], size: int, frames: int, cfg: WorldConfig) -> Window:
    """A batch of `size` windows; what is damaged or missing at its end is blank."""
    action = cfg.dit.action
    blank = Window(
        np.zeros((frames, cfg.height, cfg.width, 3), np.uint8),
        np.zeros((frames, action.keyboard_dim), np.float32),
        np.zeros((frames, action.mouse_dim), np.float32),
    )
    rows = [window if isinstance(window, Window) else blank for window in windows]
    rows += [blank] * (size - len(rows))
    return Window(*map(np.stack, zip(*rows, strict=True)))


class LatentFeed:
    """Batches of encoded windows (`mgjax.data.store.latents.items`) as the DiT's stages take them."""

    def __init__(self, items: Batches[Item]):
        self._items = items

    def __next__(self) -> ClipBatch:
        item = next(self._items)
        return ClipBatch(item.latents, item.condition, item.features, Actions(item.keyboard, item.mouse))

    def get_state(self) -> dict:
        return self._items.get_state()

    def set_state(self, state: dict) -> None:
        self._items.set_state(state)


def latent_items(
    folders: Sequence[str | os.PathLike],
    frames: int,
    batch: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    params: dict,
    cfg: WorldConfig,
    weights: Sequence[float] = (),
    threads: int = 4,
) -> LatentFeed:
    """Endless shuffled batches of encoded windows of `frames` frames, for a run that uses the encoders of `params`.

    `batch` is that of one process. The state is one number, the same on every host, as in `mgjax.data.store.feed`.

    Raises:
      InputError: a dataset is not encoded, or by other weights, for another model or in shorter windows.
    """
    reading = {"seed": seed, "process_index": process_index, "process_count": process_count, "threads": threads}
    feed = LatentFeed(latents.items(folders, frames, batch, cfg=cfg, weights=weights, **reading))
    mark = weights_mark(params, cfg)
    for folder in folders:
        encoded = Dataset(folder).schema.encoded
        if encoded is None or encoded.weights != mark:
            raise InputError(
                f"{folder} was encoded by another VAE or CLIP tower than this run has: encode the recordings with its"
                " weights"
            )
    return feed


def is_encoded(folder: str | os.PathLike) -> bool:
    """Whether the dataset at `folder` holds latents."""
    return Dataset(folder).schema.encoded is not None
