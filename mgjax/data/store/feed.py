"""Batches of windows for training, from one or more datasets (grain).

Every epoch is a shuffle of all clips by (seed, epoch), each clip giving one window at a random offset. Epochs follow
one another in one endless order of windows, and position p of it is a function of (seed, p) alone. Each batch is cut
into consecutive rows, a host's own each, so rows lie in the same order for any number of hosts. The whole state of an
iterator is how many windows all hosts have taken together: it continues exactly from there, with any number of hosts,
and no clip is repeated or lost within an epoch.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import grain
import numpy as np
from jaxtyping import Float, UInt8

from mgjax.config import WorldConfig
from mgjax.data.store import schema
from mgjax.data.store.dataset import DamagedClip, Dataset
from mgjax.errors import InputError
from mgjax.io.stores import is_local

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Window(NamedTuple):
    """Consecutive frames and the inputs applied at them; in a batch, every array has a leading batch axis."""

    frames: UInt8[np.ndarray, "*b f h w 3"]
    keyboard: Float[np.ndarray, "*b f a"]  # 0 or 1; the model's columns if a model was given, else the dataset's
    mouse: Float[np.ndarray, "*b f m"]  # [pitch, yaw] in the model's unit if a model was given, else degrees


class Clips:
    """The clips of several datasets that are long enough, as one random-access source."""

    def __init__(self, folders: Sequence[str | os.PathLike], length: int, cfg: WorldConfig | None):
        self.datasets = [Dataset(folder) for folder in folders]
        self.cfg = cfg
        self._long = [[i for i, e in enumerate(d.clips) if e.frames >= length] for d in self.datasets]
        self._starts = list(itertools.accumulate(map(len, self._long), initial=0))
        for dataset in self.datasets:
            for sentence in dataset.damaged:
                _log.warning("%s: %s", dataset.path, sentence)
            if dataset.schema.size != self.datasets[0].schema.size:
                raise InputError(f"{dataset.path} has frames of another size than {self.datasets[0].path}")
            if cfg is not None:
                schema.columns_for(dataset.schema, cfg, f"{dataset.path}/{schema.FILE}")
            elif dataset.schema.keyboard != self.datasets[0].schema.keyboard:
                raise InputError(f"{dataset.path} has other keyboard columns than {self.datasets[0].path}")
        if not len(self):
            raise InputError(f"no clip of {', '.join(map(str, folders))} has {length} frames")

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def numbers(self) -> list[range]:
        """The clips of each dataset."""
        return [range(first, last) for first, last in itertools.pairwise(self._starts)]

    def __getitem__(self, index: int) -> tuple[Dataset, int]:
        """The dataset of a clip and its number there."""
        which = bisect.bisect_right(self._starts, index) - 1
        return self.datasets[which], self._long[which][index - self._starts[which]]


def read_good(clips: Clips, index: int, read: Callable[[Dataset, int], T]) -> T:
    """`read` of clip `index`; a damaged clip is named, and the next good one takes its place."""
    for step in range(len(clips)):
        try:
            return read(*clips[(index + step) % len(clips)])
        except (DamagedClip, ValueError) as error:
            _log.warning("skipped: %s", error)
    raise InputError("every clip is damaged")


def _cut(clips: Clips, length: int, index: int, rng: np.random.Generator) -> Window:
    """A window of clip `index` at a random offset."""

    def read(dataset: Dataset, number: int) -> Window:
        start = int(rng.integers(dataset.clips[number].frames - length + 1))
        clip = dataset.read(number, start, start + length)
        keyboard, mouse = clip.keyboard.astype(np.float32), clip.mouse
        if clips.cfg is not None:
            keyboard, mouse = schema.to_model(clip.keyboard, clip.mouse, dataset.schema, clips.cfg)
        return Window(clip.frames, keyboard, mouse)

    return read_good(clips, index, read)


class Batches(Iterator[T]):
    """An endless iterator of batches whose state is one number; see `windows`."""

    def __init__(
        self, order: grain.MapDataset, clips: int, batch: int, process: tuple[int, int], workers: int, threads: int
    ):
        self._order = order
        self._clips = clips
        self._batch = batch
        self._process = process
        self._workers = workers
        self._threads = threads
        self._batches = None
        self._position = 0

    def __next__(self) -> T:
        if self._batches is None:
            self._batches = iter(self._pipeline())
        batch = next(self._batches)
        self._position += self._batch * self._process[1]
        return batch

    def get_state(self) -> dict[str, int]:
        """{"position": windows that all hosts have taken, "clips": clips of an epoch}: the same on every host."""
        return {"position": self._position, "clips": self._clips}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on at `state`, also when another number of hosts made it."""
        if state.get("clips", self._clips) != self._clips:
            text = (
                "there were %d clips, and there are %d: the order is another one, and the epoch begun may repeat some"
            )
            _log.warning(text, state["clips"], self._clips)
        self.close()
        self._position = int(state["position"])

    def close(self) -> None:
        """Ends the worker threads and processes; the next batch starts them again."""
        if self._batches is not None and hasattr(self._batches, "close"):
            self._batches.close()
        self._batches = None

    def _pipeline(self) -> grain.IterDataset:
        index, count = self._process
        # Consecutive rows of the whole batch for each process: its order is the same for any number of them.
        own = self._order[self._position :].batch(self._batch, drop_remainder=True)[index::count]
        reading = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=max(2, self._threads))
        batches = own.to_iter_dataset(reading)
        if self._workers:
            _parse_no_flags()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        return batches


def _parse_no_flags() -> None:
    """grain's worker processes read absl flags, which this program has none of."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def shuffled(clips: Clips, seed: int, weights: Sequence[float] = ()) -> grain.MapDataset:
    """The endless order of the clips' numbers: epoch after epoch, each a shuffle of its own.

    With `weights`, one a dataset, every dataset has epochs of its own, and they take turns in these proportions.

    Raises:
      InputError: there are not as many weights as datasets, or one is not positive.
    """
    if not weights:
        return grain.MapDataset.range(len(clips)).seed(seed).shuffle().repeat()
    folders = [dataset.path for dataset in clips.datasets]
    if len(weights) != len(folders) or not all(0 < weight < math.inf for weight in weights):
        raise InputError(f"{len(folders)} data sets need as many weights above 0, not {', '.join(map(str, weights))}")
    for folder, numbers in zip(folders, clips.numbers, strict=True):
        if not numbers:
            raise InputError(f"no clip of {folder} is long enough, and it has a weight")
    own = [grain.MapDataset.range(part.start, part.stop).seed(seed).shuffle().repeat() for part in clips.numbers]
    return grain.MapDataset.mix(own, weights)


def check_reader(length: int, batch: int, process_index: int, process_count: int) -> None:
    """InputError for windows, batches or processes that cannot be."""
    if length < 1 or batch < 1 or not 0 <= process_index < process_count:
        raise InputError(
            f"windows of {length} frames in batches of {batch} for process {process_index} of {process_count}"
        )


def windows(
    folders: Sequence[str | os.PathLike],
    length: int,
    batch: int,
    *,
    seed: int = 0,
    weights: Sequence[float] = (),
    cfg: WorldConfig | None = None,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 4,
) -> Batches[Window]:
    """Endless shuffled batches of windows.

    Args:
      folders: datasets (`dataset.Dataset`); clips shorter than `length` are left out.
      length: frames of a window.
      batch: windows of a batch, on each process.
      seed: of the shuffle and the offsets.
      weights: of the datasets, in whose proportions they are mixed; without them every clip is as frequent.
      cfg: a model whose columns and mouse unit the actions are given in; None leaves them as recorded.
      process_index, process_count: this host among all that read.
      workers: further processes that decode; 0 decodes in threads of this one.
      threads: of each process that decodes.

    Raises:
      InputError: the datasets do not fit together or the model, or hold no clip that is long enough.
    """
    check_reader(length, batch, process_index, process_count)
    clips = Clips(folders, length, cfg)
    for dataset in clips.datasets:
        if dataset.schema.encoded is not None:
            raise InputError(f"{dataset.path} holds the latents that `mgjax data encode` made, not pictures")
    order = shuffled(clips, seed, weights)
    order = order.random_map(functools.partial(_cut, clips, length))
    return Batches(order, len(clips), batch, (process_index, process_count), workers, threads)


class Speed(NamedTuple):
    """What `bench` measured, a second."""

    samples: float  # windows out of the loader
    reads: float  # whole clips read as bytes from their shards by one thread, in the same order, and thrown away
    decodes: float  # windows read and decoded one after another by one thread


def bench(folder: str | os.PathLike, length: int, batch: int, workers: int, threads: int, seconds: float) -> Speed:
    """Windows a second of the loader, and of plain reading, each measured for about `seconds` after a first batch."""
    if not is_local(folder):
        raise InputError(f"{folder} is no local folder, whose files could be read plainly for comparison")
    clips = Clips([folder], length, None)
    order = np.random.default_rng(0).permutation(len(clips))

    def rate(step, samples: int) -> float:
        step(0)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            count += 1
            step(count)
        return count * samples / (time.perf_counter() - start)

    def plain(i: int) -> None:
        dataset, number = clips[order[i % len(order)]]
        entry = dataset.clips[number]
        with open(f"{dataset.path}/shards/{entry.shard}.clips", "rb") as file:
            file.seek(entry.offset)
            file.read(entry.bytes)

    rng = np.random.default_rng(0)
    loader = windows([folder], length, batch, workers=workers, threads=threads)
    try:
        samples = rate(lambda i: next(loader), batch)
    finally:
        loader.close()
    return Speed(samples, rate(plain, 1), rate(lambda i: _cut(clips, length, order[i % len(order)], rng), 1))
