"""Recordings of other programs as clips: a folder of videos and their annotations (`formats.py`) into a dataset.

Time: a recording is resampled by choosing frames, frame j the one on show at time j / fps. Its row is what led from it
to the next chosen frame: mouse deltas of the rows between are summed, and a key counts as held when it was held in at
least half of them. So the rows stay in step with the pictures, whatever the two rates are; fps above the source's shows
some frames twice, with no mouse on the first of them.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import UInt8

from mgjax.data.exchange.formats import SUFFIXES, Track, annotation_of, read_text, read_track
from mgjax.data.quality import filters
from mgjax.data.quality.filters import FilterConfig
from mgjax.data.store import codec, schema
from mgjax.data.store.dataset import Writer, clip_name
from mgjax.data.store.schema import Schema
from mgjax.data.types import Clip
from mgjax.errors import InputError

_CONTAINERS = "mov,mp4,m4a,matroska,webm,avi"  # none that names further files


@dataclass(frozen=True)
class ImportConfig:
    """How recordings become clips."""

    kind: str  # of SUFFIXES
    size: tuple[int, int] = (352, 640)
    fps: float = 0.0  # 0: the first video's own
    clip_frames: int = 97
    codec: str = "zstd"
    filters: FilterConfig = field(default_factory=FilterConfig)
    drop: bool = False  # whether the filters drop clips, or only count

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


# --- Videos -----------------------------------------------------------------------------------------------------------


class _Video(NamedTuple):
    file: Path
    fps: float
    frames: int  # 0: the file does not say


def _open_video(file: Path) -> _Video:
    with _Decoding(file) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate
        if not rate:
            raise InputError(f"the video {file} does not say how many frames a second it has")
        return _Video(file, float(rate), stream.frames)


class _Decoding:
    """An opened video; its errors become one sentence."""

    def __init__(self, file: Path):
        self.file = file

    def __enter__(self):
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        try:
            self._container = av.open(f"file:{self.file}", options=options)
        except (OSError, ValueError) as error:
            raise InputError(f"the video {self.file} cannot be read: {error}") from None
        if not self._container.streams.video:
            self._container.close()
            raise InputError(f"there is no video in {self.file}")
        return self._container

    def __exit__(self, kind, error, trace):
        self._container.close()
        if isinstance(error, OSError):
            raise InputError(f"the video {self.file} cannot be read: {error}") from None


def _frames(video: _Video, size: tuple[int, int], chosen: np.ndarray) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The frames whose numbers are in `chosen` (ascending, repeats allowed), scaled to cover `size` and cut to it."""
    wanted = iter(chosen.tolist())
    target = next(wanted, None)
    with _Decoding(video.file) as container:
        number = -1
        for number, frame in enumerate(container.decode(video=0)):
            if target is None:
                return
            if number == target:
                picture = _cover(frame, size)
                while number == target:
                    yield picture
                    target = next(wanted, None)
    if target is not None:
        raise InputError(f"the video {video.file} ends after frame {number}, and its rows go on to frame {chosen[-1]}")


def _cover(frame: av.VideoFrame, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    height, width = size
    scale = max(height / frame.height, width / frame.width)
    h, w = max(height, round(frame.height * scale)), max(width, round(frame.width * scale))
    pixels = frame.to_ndarray(format="rgb24", width=w, height=h, interpolation="AREA")
    top, left = (h - height) // 2, (w - width) // 2
    return pixels[top : top + height, left : left + width]


# --- From tracks to clips ---------------------------------------------------------------------------------------------


def resample(track: Track, source: float, target: float) -> tuple[np.ndarray, Track]:
    """Numbers of the chosen frames [n], and their rows; see the module's text on time."""
    count = len(track.usable)
    number = int(np.floor((count - 1) * target / source + 1e-6)) + 1
    chosen = np.minimum(np.floor(np.arange(number) * source / target + 1e-6).astype(int), count - 1)
    ends = np.append(chosen[1:], count)
    sums = np.concatenate([np.zeros((1, 2)), np.cumsum(track.mouse, axis=0)])
    held = np.concatenate([np.zeros((1, track.keyboard.shape[1])), np.cumsum(track.keyboard, axis=0)])
    spans = (ends - chosen)[:, None]
    share = np.divide(held[ends] - held[chosen], spans, out=track.keyboard[chosen].astype(float), where=spans > 0)
    bad = np.concatenate([[0], np.cumsum(~track.usable)])
    return chosen, Track(
        keyboard=(share >= 0.5).astype(np.uint8),
        mouse=sums[ends] - sums[chosen],
        position=track.position[chosen],
        rotation=track.rotation[chosen],
        velocity=track.velocity[chosen],
        usable=bad[np.maximum(ends, chosen + 1)] == bad[chosen],
    )


def _segments(usable: np.ndarray, length: int) -> list[tuple[int, int]]:
    """Frame spans [start, stop) of exactly `length` usable frames, one after another."""
    spans, start = [], 0
    for k, good in enumerate(usable.tolist()):
        if not good:
            start = k + 1
        elif k + 1 - start == length:
            spans.append((start, k + 1))
            start = k + 1
    return spans


def import_folder(
    source: str | os.PathLike,
    out: str | os.PathLike,
    cfg: ImportConfig,
    schema_file: str | os.PathLike = "",
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Adds every video of `source` to the dataset at `out`; what is left over at a video's end is too short for a clip.

    Raises:
      InputError: names the file, and the line or frame, of whatever is wrong; clips of earlier videos stay.
    """
    source = Path(source)
    if not source.is_dir():
        raise InputError(f"there is no folder {source}")
    videos = sorted(path for path in source.rglob("*") if path.suffix.lower() == ".mp4")
    if not videos:
        raise InputError(f"there is no .mp4 file in {source}")
    given = None
    if schema_file:
        given = schema.loads(read_text(Path(schema_file)), str(schema_file))
    elif cfg.kind == "rows":
        raise InputError("rows of a free format need a schema file that names their keyboard columns")
    keys = given.keyboard if given and cfg.kind in ("paper", "rows") else None

    writer, total = None, Report(len(videos), 0, 0, Counter())
    with contextlib.ExitStack() as stack:
        for file in videos:
            annotation = annotation_of(file, SUFFIXES[cfg.kind])
            track, columns = read_track(annotation, cfg.kind, keys)
            video = _open_video(file)
            if cfg.kind in ("paper", "rows") and video.frames not in (0, len(track.usable)):
                raise InputError(f"{annotation} has {len(track.usable)} rows, and {file} has {video.frames} frames")
            if writer is None:
                scheme = _schema(columns, cfg.fps or video.fps, cfg.size, given)
                writer = stack.enter_context(Writer(out, scheme))
            if columns != scheme.keyboard:
                raise InputError(f"{annotation} has the keys {', '.join(columns)}, not {', '.join(scheme.keyboard)}")
            name = file.relative_to(source).with_suffix("").as_posix()
            kept, dropped = _import_video(writer, scheme, video, track, name, cfg)
            total = total._replace(
                clips=total.clips + kept, frames=total.frames + kept * cfg.clip_frames, dropped=total.dropped + dropped
            )
            say(f"{file}: {kept} new clips")
    return total


def _schema(columns: tuple[str, ...], fps: float, size: tuple[int, int], given: Schema | None) -> Schema:
    """The schema of the dataset: what the videos say, and the rest as it was given."""
    if given is None:
        return Schema(columns, fps, size, models=schema.default_models(columns))
    return Schema(columns, fps, size, given.mouse_scale, given.pitch_limits, models=given.models)


def _import_video(
    writer: Writer, scheme: Schema, video: _Video, track: Track, name: str, cfg: ImportConfig
) -> tuple[int, Counter]:
    """Adds the clips of one video that are not there yet: how many, and how many each filter dropped instead."""
    chosen, rows = resample(track, video.fps, scheme.fps)
    spans = [(f"{clip_name(name)}-{start:06d}", start, stop) for start, stop in _segments(rows.usable, cfg.clip_frames)]
    spans = [span for span in spans if span[0] not in writer.entries]
    wanted = [chosen[start:stop] for _, start, stop in spans]
    pictures = _frames(video, scheme.size, np.concatenate(wanted)) if spans else iter(())
    dropped = Counter()
    for clip_id, start, stop in spans:
        frames = np.stack([next(pictures) for _ in range(stop - start)])
        keyboard, mouse, position, rotation, velocity, _ = (array[start:stop] for array in rows)
        clip = Clip(frames, keyboard, mouse.astype(np.float32), position, rotation, velocity)
        marks, reason = filters.judge(clip, scheme, cfg.filters)
        info = {"recording": cfg.kind, "source": name, "first_frame": int(chosen[start]), "codec": cfg.codec}
        info["marks"] = marks
        if cfg.drop and reason is not None:
            dropped[reason] += 1
            writer.add(clip_id, b"", cfg.clip_frames, {**info, "dropped": reason})
        else:
            writer.add(clip_id, codec.encode(clip, cfg.codec), cfg.clip_frames, info)
    return len(spans) - dropped.total(), dropped
