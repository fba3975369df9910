"""Recordings of other programs as clips: a folder of videos and their annotations into a dataset.

`videos.py` says what is shown and when, `formats.py` and `events.py` what was pressed, `tracks.py` which belongs to
which. Recordings are read by several processes: first each is scanned and matched, then parts of it are decoded and
stored, by the process that decoded them. One that does not fit is named at the end, and stops no other.

A recording is known by a checksum of its pictures. Another one of the same name gets a name of its own; one whose
annotations or options have changed since it was imported replaces its old clips.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mgjax.data.exchange import events, layout, tables, tracks, videos
from mgjax.data.exchange.formats import SUFFIXES, annotation_of, read_annotation
from mgjax.data.exchange.layout import Layout
from mgjax.data.exchange.tracks import Matched, Track
from mgjax.data.exchange.videos import SAME_RATE, Sequence, Source
from mgjax.data.quality import filters
from mgjax.data.quality.filters import FilterConfig
from mgjax.data.store import codec, dataset, schema
from mgjax.data.store.dataset import Dataset, Entry, Writer, clip_name
from mgjax.data.store.schema import Schema
from mgjax.data.types import Clip
from mgjax.errors import InputError
from mgjax.io.stores import is_local

# Frames that one process decodes at a time: what lies before them back to a key frame (250 frames in an x264 file) is
# decoded in vain, and a long recording should still keep all cores busy.
PART_FRAMES = 2000
FEW_BYTES = 20 << 20  # of videos below which processes take longer to start than they save


@dataclass(frozen=True)
class ImportConfig:
    """How recordings become clips."""

    kind: str  # of SUFFIXES
    size: tuple[int, int] = (352, 640)
    fps: float = 0.0  # 0: the dataset's own, and of a new one the first recording's
    clip_frames: int = 97
    codec: str = "zstd"
    filters: FilterConfig = field(default_factory=FilterConfig)
    drop: bool = False  # whether the filters drop clips, or only count
    offset: float | None = None  # time of the annotations at which the first picture was taken
    degrees: float | None = None  # that the camera turns for one count of the mouse; None: the files say it
    workers: int = 0  # processes; 0: one for each core

    def __post_init__(self):
        if self.kind not in SUFFIXES:
            raise InputError(f"there is no format {self.kind!r}; there are {', '.join(SUFFIXES)}")
        if self.codec not in codec.CODECS:
            raise InputError(f"there is no codec {self.codec!r}; there are {', '.join(codec.CODECS)}")
        if self.clip_frames < 2 or self.fps < 0:
            raise InputError("clips need at least 2 frames, and fps cannot be negative")


class Report(NamedTuple):
    """What one import brought."""

    videos: int
    clips: int
    frames: int
    dropped: Counter  # clips by the filter that dropped them
    problems: tuple[str, ...]  # a sentence for each thing that is wrong, and was left out


class _Setup(NamedTuple):
    """What every process is told about an import."""

    cfg: ImportConfig
    layout: Layout
    keys: tuple[str, ...] | None  # columns that the files are asked for; None: their own
    path: str  # of the dataset


class _Scanned(NamedTuple):
    """A recording before its pictures are stored."""

    matched: Matched
    columns: tuple[str, ...]
    content: str  # checksum of its pictures
    mark: str  # of its annotations and of the options that it is imported with
    ignored: tuple[str, ...]  # what its annotations hold and no column keeps


class _Part(NamedTuple):
    """Consecutive clips of a recording for one process."""

    source: Source
    name: str
    scheme: Schema
    rows: Track
    stamps: np.ndarray
    spans: list[tuple[int, int]]  # of rows and stamps, one for each clip
    numbers: np.ndarray  # of the source's frames
    first: int  # frame of the dataset that row 0 is
    info: dict


# --- In the processes -------------------------------------------------------------------------------------------------


def _scan(source: Source, setup: _Setup) -> _Scanned:
    """Reads and matches one recording.

    Raises:
      InputError: names the file, and the line or frame, of whatever is wrong.
    """
    cfg = setup.cfg
    annotation = annotation_of(source, cfg.kind)
    found, columns = read_annotation(annotation, cfg.kind, setup.keys, setup.layout)
    if isinstance(source, Sequence) and not cfg.fps:
        raise InputError(f"the pictures {source} have no rate: --fps says it")
    shown = videos.scan(source, cfg.fps)
    if not shown.fps:
        raise InputError(f"the video {source} does not say how many frames a second it has")
    ignored = ()
    if isinstance(found, events.Log):
        degrees = (cfg.degrees,) * 2 if cfg.degrees is not None else setup.layout.degrees
        matched = events.match_log(found, shown, source, found.keys, degrees, cfg.offset)
        ignored = events.left_out(found)
    else:
        matched = tracks.match(found, shown, source, cfg.offset)
    files = source.files if isinstance(source, Sequence) else (source,)
    options = dataclasses.asdict(cfg) | {
        "workers": 0,
        "fps": 0.0,
        "keys": setup.keys,
        **dataclasses.asdict(setup.layout),
    }
    mark = hashlib.sha256(f"{videos.checksum(annotation)} {json.dumps(options, sort_keys=True)}".encode())
    return _Scanned(matched, columns, videos.checksum(*files), mark.hexdigest()[:16], ignored)


def _store(part: _Part, setup: _Setup) -> list[Entry]:
    """Decodes, judges and stores the clips of a part; the parent, which holds the dataset, is told what it got."""
    cfg, path = setup.cfg, setup.path
    wanted = np.concatenate([part.stamps[start:stop] for start, stop in part.spans])
    pictures = videos.pictures(part.source, wanted, part.scheme.size)
    entries = []
    for start, stop in part.spans:
        frames = np.stack([next(pictures) for _ in range(stop - start)])
        keyboard, mouse, position, rotation, velocity, _ = (array[start:stop] for array in part.rows)
        clip = Clip(frames, keyboard, mouse.astype(np.float32), position, rotation, velocity)
        marks, reason = filters.judge(clip, part.scheme, cfg.filters)
        info = {**part.info, "first_frame": int(part.numbers[start]), "codec": cfg.codec, "marks": marks}
        name = f"{part.name}-{part.first + start:06d}"
        if cfg.drop and reason is not None:
            entries.append(dataset.store_clip(path, name, b"", cfg.clip_frames, {**info, "dropped": reason}))
        else:
            entries.append(dataset.store_clip(path, name, codec.encode(clip, cfg.codec), cfg.clip_frames, info))
    return entries


def _ignore_interrupts() -> None:
    """Ctrl-C reaches the whole group; the parent decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Here(Executor):
    """Runs everything in this process, when it is asked for."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except InputError as error:
            future.set_exception(error)
        return future


# --- In the parent ----------------------------------------------------------------------------------------------------


def import_folder(
    source: str | os.PathLike,
    out: str | os.PathLike,
    cfg: ImportConfig,
    schema_file: str | os.PathLike = "",
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Adds every recording below `source` to the dataset at `out`; what is left at its end is too short for a clip.

    `say` hears of each recording, `progress` how many of all are done. What is wrong with a recording is in the report.

    Raises:
      InputError: there is no recording at all, the schema is wrong, or the dataset is one of other recordings.
    """
    source = Path(source)
    if not source.is_dir():
        raise InputError(f"there is no folder {source}")
    given, how = None, Layout()
    if schema_file:
        text = tables.read_text(Path(schema_file))
        given, how = schema.loads(text, str(schema_file)), layout.loads(text, str(schema_file))
    elif cfg.kind == "rows":
        raise InputError("rows of a free format need a schema file that names their keyboard columns")
    found = videos.find(source)
    if found.hidden:
        say(f"{found.hidden} hidden files are left out")
    if not found.recordings:
        raise InputError(f"there is no video, and no sequence of pictures, in {source}")
    old = _schema_at(out)
    keys = given.keyboard if given else None
    if keys is None and cfg.kind == "vpt" and old is not None:
        keys = old.keyboard
    if keys is None and cfg.kind == "events":
        keys = old.keyboard if old is not None else _all_keys(found.recordings, how)
    if cfg.kind == "gf-minecraft":
        keys = None
    setup = _Setup(cfg, how, keys, str(out))
    return _Import(setup, found, given, old, say, progress).run()


def _schema_at(out: str | os.PathLike) -> Schema | None:
    try:
        return Dataset(out).schema
    except InputError:
        if is_local(out) and Path(out, schema.FILE).exists():
            raise
        return None


def _all_keys(recordings: dict[str, Source], how: Layout) -> tuple[str, ...] | None:
    """Columns for all that any log presses, where neither a schema nor their headers say it."""
    columns: dict[str, None] = {}
    for source in recordings.values():
        try:
            log = events.read_log(annotation_of(source, "events"))
        except InputError:
            continue  # it is named when its turn comes
        columns |= dict.fromkeys(events.columns_of(log, how.keys))
    return tuple(sorted(columns, key=lambda c: (list(events.KEYS).index(c) if c in events.KEYS else 99, c))) or None


class _Dataset(NamedTuple):
    """What is imported into."""

    writer: Writer
    scheme: Schema


class _Import:
    """One run of `import_folder`."""

    def __init__(self, setup: _Setup, found: videos.Found, given, old, say, progress):
        self.setup, self.found, self.given, self.say, self.progress = setup, found, given, say, progress
        self.old: Schema | None = old
        self.begun: _Dataset | None = None
        self.problems = list(found.faults)
        self.report = Report(len(found.recordings), 0, 0, Counter(), ())
        self.waiting: deque[tuple[Source, list[Future], int]] = deque()
        self.done = 0

    def run(self) -> Report:
        executor = self._executor()
        try:
            self._run(executor)
        except BrokenProcessPool:
            raise InputError(
                "a process of the import died; the machine may have too little memory for --workers"
            ) from None
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
            if self.begun is not None:
                self.begun.writer.close()
        return self.report._replace(problems=tuple(self.problems))

    def _executor(self) -> Executor:
        workers = self.setup.cfg.workers or len(os.sched_getaffinity(0))
        sizes = [sum(f.stat().st_size for f in _files(source)) for source in self.found.recordings.values()]
        if workers == 1 or (not self.setup.cfg.workers and sum(sizes) < FEW_BYTES):
            return _Here()
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_ignore_interrupts)

    def _run(self, executor: Executor) -> None:
        recordings = iter(self.found.recordings.items())
        scans: deque[tuple[str, Source, Future]] = deque()
        ahead = 1 if isinstance(executor, _Here) else 64
        while True:
            while len(scans) < ahead and (item := next(recordings, None)) is not None:
                scans.append((*item, executor.submit(_scan, item[1], self.setup)))
            if not scans:
                break
            name, source, future = scans.popleft()
            try:
                scanned = future.result()
            except InputError as error:
                self._wrong(str(error))
                continue
            if self.begun is None:
                self.begun = self._begin(scanned)  # what is wrong with the dataset ends the import
            try:
                parts, already = self._plan(name, source, scanned)
            except InputError as error:
                self._wrong(str(error))
                continue
            self.waiting.append((source, [executor.submit(_store, part, self.setup) for part in parts], already))
            while self.waiting and (len(self.waiting) > ahead or all(f.done() for f in self.waiting[0][1])):
                self._collect()
        while self.waiting:
            self._collect()

    @property
    def _dataset(self) -> _Dataset:
        """What the first recording that can be read has begun."""
        assert self.begun is not None
        return self.begun

    def _wrong(self, sentence: str) -> None:
        self.problems.append(sentence)
        self.done += 1
        self.progress(self.done, len(self.found.recordings))

    def _collect(self) -> None:
        """Takes over what the parts of the oldest recording have stored."""
        source, parts, already = self.waiting.popleft()
        kept, dropped, problem = 0, Counter(), None
        for future in parts:
            try:
                entries = future.result()
            except InputError as error:
                problem = str(error)
                continue
            for entry in entries:
                self._dataset.writer.adopt(entry)
                kept += entry.kept
                if not entry.kept:
                    dropped[str(entry.info["dropped"])] += 1
        report = self.report
        self.report = report._replace(
            clips=report.clips + kept,
            frames=report.frames + kept * self.setup.cfg.clip_frames,
            dropped=report.dropped + dropped,
        )
        there = f", {already} were there" if already else ""
        self.say(f"{source}: {kept} new clips{there}")
        if problem is not None:
            self._wrong(problem)
            return
        self.done += 1
        self.progress(self.done, len(self.found.recordings))

    def _plan(self, name: str, source: Source, scanned: _Scanned) -> tuple[list[_Part], int]:
        """The parts of a recording that are not stored yet, and how many of its clips are."""
        cfg, matched, scheme = self.setup.cfg, scanned.matched, self._dataset.scheme
        if scanned.columns != scheme.keyboard:
            raise InputError(
                f"{annotation_of(source, cfg.kind)} has the keys {', '.join(scanned.columns)}, "
                f"not {', '.join(scheme.keyboard)}"
            )
        self.problems += [f"{source}: {sentence}" for sentence in matched.faults]
        for sentence in scanned.ignored:
            self.say(f"{source}: {sentence}")
        try:
            chosen, rows = tracks.resample(matched, scheme.fps)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        twice = np.mean(np.diff(chosen) == 0) if len(chosen) > 1 else 0.0
        if twice > 0.05 and matched.fps < scheme.fps:
            rates = f"it has {matched.fps:.5g} frames a second, and the dataset {scheme.fps:.5g}"
            self.say(f"{source}: {twice:.0%} of its pictures are repeated: {rates}")
        clip, entries = self._name(name, source, scanned)
        spans = _segments(rows.usable, cfg.clip_frames)
        fresh = [span for span in spans if f"{clip}-{span[0]:06d}" not in entries]
        if not spans:
            what = "frames in a row are usable" if (~rows.usable).any() else "frames are there"
            longest = max((b - a for a, b in videos.spans(rows.usable)), default=0)
            self.say(f"{source}: {longest} {what}, too few for a clip of {cfg.clip_frames}")
        info = {"recording": cfg.kind, "source": name, "content": scanned.content, "mark": scanned.mark}
        stamps = matched.stamps[chosen]
        parts = []
        for group in _groups(fresh, cfg.clip_frames):
            first, last = group[0][0], group[-1][1]
            cut = Track(*(array[first:last] for array in rows))
            local = [(a - first, b - first) for a, b in group]
            parts.append(_Part(source, clip, scheme, cut, stamps[first:last], local, chosen[first:last], first, info))
        return parts, len(spans) - len(fresh)

    def _begin(self, scanned: _Scanned) -> _Dataset:
        """Opens the dataset, with the first recording's columns and rate where it is new."""
        cfg, given, old = self.setup.cfg, self.given, self.old
        fps = cfg.fps or (old.fps if old else scanned.matched.fps)
        if old is not None and abs(fps / old.fps - 1) < SAME_RATE:
            fps = old.fps
        columns = scanned.columns
        if given is None:
            scheme = Schema(columns, fps, cfg.size, models=schema.default_models(columns))
        else:
            scheme = Schema(columns, fps, cfg.size, given.mouse_scale, given.pitch_limits, models=given.models)
        if old is not None and given is None:  # what only a schema file says is as it was
            scheme = dataclasses.replace(
                scheme, mouse_scale=old.mouse_scale, pitch_limits=old.pitch_limits, models=old.models
            )
            if old.keyboard != columns:
                scheme = dataclasses.replace(scheme, keyboard=old.keyboard)
        writer = Writer(self.setup.path, scheme)
        self.say(f"keyboard columns: {', '.join(scheme.keyboard)}; {scheme.fps:.6g} frames a second")
        return _Dataset(writer, scheme)

    def _name(self, name: str, source: Source, scanned: _Scanned) -> tuple[str, set[str]]:
        """The recording's name in the dataset, and its clips that are there and as good as new."""
        writer = self._dataset.writer
        entries = writer.entries
        # The same pictures under another name are this recording, renamed or moved, unless that one is here, too.
        others = self.found.recordings.keys() - {name}
        same = [
            e
            for e in entries.values()
            if e.info.get("content") == scanned.content and e.info.get("source") not in others
        ]
        stale = [e for e in same if e.info.get("mark") != scanned.mark]
        if stale:
            self.say(f"{source}: its annotations or the options have changed: {len(stale)} old clips are replaced")
            writer.discard({entry.name for entry in stale})
        if len(stale) < len(same):
            keep = next(e for e in same if e.info.get("mark") == scanned.mark)
            if keep.info.get("source") != name:
                self.say(f"{source}: these pictures are there as {keep.info.get('source')}")
            return keep.name.rpartition("-")[0], {e.name for e in same} - {e.name for e in stale}
        clip = clip_name(name)
        if clip in {e.name.rpartition("-")[0] for e in writer.entries.values()}:
            self.say(f"{source}: another recording is there as {clip}; this one is {clip}-{scanned.content[:8]}")
            clip = f"{clip}-{scanned.content[:8]}"
        return clip, set()


def _files(source: Source) -> tuple[Path, ...]:
    return source.files if isinstance(source, Sequence) else (source,)


def _segments(usable: np.ndarray, length: int) -> list[tuple[int, int]]:
    """Frame spans [start, stop) of exactly `length` usable frames, one after another."""
    return [(start, start + length) for a, b in videos.spans(usable) for start in range(a, b - length + 1, length)]


def _groups(spans: list[tuple[int, int]], length: int) -> Iterator[list[tuple[int, int]]]:
    """Clips in groups for one process each."""
    size = max(1, PART_FRAMES // length)
    for k in range(0, len(spans), size):
        yield spans[k : k + size]
