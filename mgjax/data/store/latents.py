"""Encoded datasets: a store (`dataset.py`) whose clips are windows that an encoder has turned into what training takes.

Every clip of it is one `Item`: as bytes one safetensors file of its fields, or that file in zstd. The schema is that of
the recordings, with a table [encoded] that says what made the latents.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
import zstandard
from jaxtyping import Float

from mgjax.config import WorldConfig
from mgjax.data.store.dataset import Dataset
from mgjax.data.store.feed import Batches, Clips, check_reader, read_good, shuffled
from mgjax.errors import InputError

CODECS = ("zstd", "raw")
VALUES = ("bfloat16", "float32")  # dtypes of latents, condition and features in the store
_DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16}
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"  # as the length of a safetensors header it would be 4 GB
_ZSTD_LEVEL = 3


class Item(NamedTuple):
    """A window of t latent frames and its f = 4 (t - 1) + 1 rows; in a batch, every array has a leading batch axis."""

    latents: Float[np.ndarray, "*b t h w c"]  # normalised
    condition: Float[np.ndarray, "*b t h w c"]  # ImageCondition.latents of the window's first frame
    features: Float[np.ndarray, "*b i f"]  # CLIP features of the window's first frame
    keyboard: Float[np.ndarray, "*b f a"]  # in the model's convention, as is the mouse
    mouse: Float[np.ndarray, "*b f m"]


def encode(item: Item, codec: str = "zstd") -> bytes:
    """The item as bytes, its arrays (float32 or bfloat16) as they are; `codec` is "zstd" or "raw"."""
    if codec not in CODECS:
        raise InputError(f"there is no codec {codec!r} for latents; there are {', '.join(CODECS)}")
    data = safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in item._asdict().items()})
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(data) if codec == "zstd" else data


def decode(data: bytes) -> Item:
    """The item in `data`, in float32; ValueError when the bytes are none."""
    try:
        if data.startswith(_ZSTD_MAGIC):
            data = zstandard.ZstdDecompressor().decompress(data)
        found = {
            name: np.frombuffer(array["data"], _DTYPES[array["dtype"]]).reshape(array["shape"]).astype(np.float32)
            for name, array in safetensors.deserialize(data)
        }
        return Item(**{name: found[name] for name in Item._fields})
    except (zstandard.ZstdError, safetensors.SafetensorError, KeyError) as error:
        raise ValueError(f"these bytes are no encoded window: {error}") from None


def items(
    folders: Sequence[str | os.PathLike],
    frames: int,
    batch: int,
    *,
    cfg: WorldConfig,
    seed: int = 0,
    weights: Sequence[float] = (),
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 4,
) -> Batches[Item]:
    """Endless shuffled batches of encoded windows, in the order that `feed.windows` would give as many clips.

    Args:
      folders: encoded datasets.
      frames: rows of an item, 1 + 4 (t - 1); longer windows are cut to their beginning, which is what encoding the
        shorter one gives: encoder and condition are causal.
      batch, seed, weights, process_index, process_count, workers, threads: as in `feed.windows`.
      cfg: the model that trains.

    Raises:
      InputError: a dataset is not encoded, or for another model, or its windows are too short.
    """
    check_reader(frames, batch, process_index, process_count)
    for folder in folders:
        encoded = Dataset(folder).schema.encoded
        if encoded is None:
            raise InputError(f"{folder} holds pictures, not latents: `mgjax data encode` makes them")
        if encoded.model != cfg.name:
            raise InputError(f"{folder} was encoded for the model {encoded.model}, not {cfg.name}")
        if encoded.frames < frames:
            raise InputError(f"{folder} holds windows of {encoded.frames} frames, and {frames} are needed")
    stride = cfg.vae.temporal_stride
    if frames % stride != 1 % stride:
        raise InputError(f"windows of {frames} frames do not end with a latent frame: give 1 + {stride} (t - 1)")
    clips = Clips(folders, frames, cfg)
    order = shuffled(clips, seed, weights).map(functools.partial(_read, clips, frames, stride))
    return Batches(order, len(clips), batch, (process_index, process_count), workers, threads)


def _read(clips: Clips, frames: int, stride: int, index: int) -> Item:
    """The first `frames` frames of item `index`."""
    latents = 1 + frames // stride

    def read(dataset: Dataset, number: int) -> Item:
        item = decode(dataset.read_bytes(number))
        return Item(
            item.latents[:latents], item.condition[:latents], item.features, item.keyboard[:frames], item.mouse[:frames]
        )

    return read_good(clips, index, read)
