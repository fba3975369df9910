"""What a recording shows, and when: videos of any container, and sequences of numbered pictures.

Pictures are counted and timed by decoding them, by their time stamps, never by what a container's header says: that
counts pictures which an edit list hides, none in a fragmented file, and averages over what was lost. A picture is
found again by its stamp, so that any part of a video can be decoded alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import av.logging
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mgjax.errors import InputError

VIDEO_SUFFIXES = (
    ".mp4", ".mov", ".m4v", ".3gp", ".mkv", ".webm", ".avi", ".flv", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".wmv",
    ".ogv", ".mxf", ".gif", ".y4m",
)  # fmt: skip
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".exr", ".bmp", ".tif", ".tiff", ".webp")
# Containers that hold their own frames: FFmpeg would follow the addresses in a playlist.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,asf,ogg,mxf,gif,yuv4mpegpipe"
_PICTURES = "image2,png_pipe,jpeg_pipe,exr_pipe,bmp_pipe,tiff_pipe,webp_pipe"
_OPTIONS = {"protocol_whitelist": "file"}
# Rates that a measured one is taken to be when it is nearer than _SNAP; halves of whole numbers besides.
_NAMED_RATES = tuple(float(Fraction(n * 1000, 1001)) for n in (24, 30, 48, 60, 120))
_SNAP = 3e-4
# Rates nearer than this are one to a dataset: 30 and 29.97, and two clocks of the same nominal rate. To resample them
# would show a picture twice every few seconds, and nobody sees a hundredth of speed.
SAME_RATE = 0.01
# Decoders of these say when a picture that they need is missing; of others, pictures after a gap are not trusted.
_KNOW_LOSSES = ("h264", "hevc")


@dataclass(frozen=True)
class Sequence:
    """Numbered pictures of one folder, in order."""

    stem: Path  # their common path without number and suffix
    files: tuple[Path, ...]
    numbers: tuple[int, ...]
    alone: bool  # whether their folder holds nothing else that is a recording

    def __str__(self) -> str:
        return f"{self.files[0]} .. {self.files[-1].name}"


Source = Path | Sequence


class Shown(NamedTuple):
    """The pictures of a recording, in order.

    Attributes:
      times: seconds since the first picture, as stamped.
      stamps: what finds a picture again: its time stamp in the container's units, or its number in a sequence.
      good: False for pictures that are damaged, or made of lost ones.
      fps: nominal rate: that of the regular grid the stamps lie on, or one over their median distance; 0 if unknown.
      slots: number of each picture on that grid, with gaps where pictures are missing; None: there is no such grid.
      faults: a sentence for each thing that is wrong, with its frame.
    """

    times: Float[np.ndarray, " f"]
    stamps: Int[np.ndarray, " f"]
    good: Bool[np.ndarray, " f"]
    fps: float
    slots: Int[np.ndarray, " f"] | None
    faults: tuple[str, ...] = ()

    @property
    def clock(self) -> Float[np.ndarray, " f"]:
        """`times` without the jitter of a regular recording."""
        return self.times if self.slots is None or not self.fps else self.slots / self.fps


# --- Time -------------------------------------------------------------------------------------------------------------


def grid(times: Float[np.ndarray, " f"]) -> tuple[float, Int[np.ndarray, " f"] | None]:
    """Nominal rate and slots (`Shown`) of ascending times: a grid holds when none is half a slot off it.

    Jitter, a slow drift of the clock and lost pictures leave a grid a grid; a rate that varies does not.
    """
    if len(times) < 2:
        return 0.0, np.zeros(len(times), np.int64)
    steps = np.diff(times)
    slots = np.append(0, np.cumsum(np.maximum(1, np.rint(steps / np.median(steps)))).astype(np.int64))
    # Twice: a median of rounded stamps (33, 33, 34 ms) miscounts long gaps, the slope that it leads to does not.
    for _ in range(2):
        slope, start = np.polyfit(slots, times, 1)
        slots = np.append(0, np.cumsum(np.maximum(1, np.rint(steps / slope)))).astype(np.int64)
    slope, start = np.polyfit(slots, times, 1)
    if np.abs(times - (start + slope * slots)).max() < 0.45 * slope:
        return nominal_rate(1.0 / slope), slots
    return nominal_rate(1.0 / np.median(steps)), None


def nominal_rate(fps: float) -> float:
    """The usual rate that a measured one is, or itself."""
    fps = float(fps)
    usual = min((*_NAMED_RATES, max(round(2 * fps), 1) / 2), key=lambda rate: abs(rate - fps))
    return usual if abs(usual / fps - 1) < _SNAP else fps


# --- Scanning ---------------------------------------------------------------------------------------------------------


def scan(source: Source, fps: float = 0.0) -> Shown:
    """Decodes all pictures once, to count, time and judge them; `fps` is the rate of a sequence of pictures.

    Raises:
      InputError: it cannot be read, holds no picture, or its time stamps go backwards.
    """
    if isinstance(source, Sequence):
        return _scan_sequence(source, fps)
    stamps, good, fresh, reasons, lost = [], [], [], {}, False
    with _Decoding(source) as (container, stream):
        announced, unit, rate = stream.frames, float(stream.time_base), float(stream.average_rate or 0)
        codec = stream.codec_context.name
        for event in _decode(container, stream):
            if isinstance(event, _Damage):
                lost = True
                reasons.setdefault(len(stamps), event.text)
                continue
            lost = lost and not event.fresh
            if event.frame.is_corrupt:
                reasons.setdefault(len(stamps), "the decoder says so")
            good.append(not lost and not event.frame.is_corrupt)
            fresh.append(event.fresh)
            stamp = event.frame.pts
            stamps.append(stamp if stamp is not None else _counted(source, len(stamps), rate, unit))
    if not stamps:
        raise InputError(f"the video {source} cannot be read: {', '.join(reasons.values()) or 'it has no picture'}")
    numbers = np.array(stamps, np.int64)
    backwards = np.flatnonzero(np.diff(numbers) <= 0)
    if len(backwards):
        k = int(backwards[0]) + 1
        raise InputError(f"the video {source}, frame {k}: its time stamp is not after that of frame {k - 1}")
    times = (numbers - numbers[0]) * unit
    fps, slots = grid(times)
    good = np.array(good)
    if slots is not None and codec not in _KNOW_LOSSES:
        trusted = _trusted(fresh, slots)
        doubt = f"may need pictures that are missing; {codec} does not tell, H.264 would"
        reasons |= {int(k): doubt for k in np.flatnonzero(good & ~trusted)}
        good &= trusted
    faults = [_damage(start, stop, times, reasons) for start, stop in spans(~good)]
    if reasons and len(stamps) not in reasons and not faults:
        faults.append("something between its pictures is damaged (" + next(iter(reasons.values())) + ")")
    if len(stamps) in reasons:
        header = f", and its header announces {announced}" if announced > len(stamps) else ""
        faults.append(f"frame {len(stamps) - 1} is the last that can be read{header}")
    return Shown(times, numbers, good, fps if len(times) > 1 else rate, slots, tuple(faults))


def spans(marks: Bool[np.ndarray, " f"]) -> list[tuple[int, int]]:
    """[start, stop) of each run of marks."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marks.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _damage(start: int, stop: int, times: np.ndarray, reasons: dict[int, str]) -> str:
    reason = next((f" ({text})" for k, text in reasons.items() if start <= k < stop), "")
    if stop - start == 1:
        return f"frame {start} ({times[start]:.3f} s) is damaged{reason}"
    return f"frames {start} ({times[start]:.3f} s) to {stop - 1} are damaged{reason}"


def _counted(file: Path, number: int, rate: float, unit: float) -> int:
    """The stamp of a picture in a container that has none, by its number."""
    if not rate:
        raise InputError(f"the video {file} has neither time stamps nor a rate")
    return round(number / rate / unit)


class _Picture(NamedTuple):
    frame: av.VideoFrame
    fresh: bool  # decoded without any other


class _Damage(NamedTuple):
    stamp: int | None
    text: str


def _decode(container, stream) -> Iterator[_Picture | _Damage]:
    """All pictures in the order in which they are shown, and between them what the decoder found damaged or missing."""
    packets, keys = container.demux(stream), set()
    while True:
        stamp, frames, damage = None, [], None
        with _overheard() as messages:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                stamp = packet.pts
                if packet.is_keyframe:
                    keys.add(stamp)
                frames = packet.decode()
            except (OSError, ValueError) as error:
                damage = _Damage(stamp, _reason(error))
        for severity, _, text in messages:
            if severity <= av.logging.ERROR or "Frame num gap" in text:
                lost = "a picture before it is missing" if "Frame num gap" in text else text.strip()
                damage = damage or _Damage(stamp, lost)
        if damage is not None:
            yield damage
        for frame in frames:  # AV1 says of an old key frame, shown again for a lost one, that it is one
            yield _Picture(frame, frame.key_frame and (frame.pts in keys or None in keys))
        if damage is not None and stamp is None:  # the file itself ends in the middle
            return


@contextlib.contextmanager
def _overheard() -> Iterator[list[tuple[int, str, str]]]:
    """What FFmpeg says meanwhile: H.264 tells of a missing picture on its lowest level only."""
    level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.DEBUG)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as messages:
            yield messages
    finally:
        av.logging.set_skip_repeated(skip)
        av.logging.set_level(level)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _trusted(fresh: list[bool], slots: Int[np.ndarray, " f"]) -> Bool[np.ndarray, " f"]:
    """Pictures that no gap can have spoilt: those before the first gap, and from the first fresh one after it on."""
    gaps = np.append(False, np.diff(slots) > 1)
    good, trusted = np.ones(len(slots), bool), True
    for k in range(len(slots)):
        trusted = fresh[k] or (trusted and not gaps[k])
        good[k] = trusted
    return good


def _scan_sequence(source: Sequence, fps: float) -> Shown:
    numbers = np.array(source.numbers, np.int64)
    slots = numbers - numbers[0]
    good, faults = np.ones(len(slots), bool), []
    for k, file in enumerate(source.files):
        try:
            _still(file)
        except InputError as error:
            good[k] = False
            faults.append(str(error))
    if not good.any():
        raise InputError(faults[0])
    faults += [f"the picture after {source.files[k].name} is missing" for k in np.flatnonzero(np.diff(slots) > 1)]
    times = slots / fps if fps else slots.astype(float)
    return Shown(times, np.arange(len(slots)), good, fps, slots, tuple(faults))


# --- Reading ----------------------------------------------------------------------------------------------------------


class _Decoding:
    """An opened video and its stream of pictures; its errors become one sentence."""

    def __init__(self, file: Path):
        self.file = file

    def __enter__(self):
        options = {**_OPTIONS, "format_whitelist": _CONTAINERS}
        try:
            self._container = av.open(f"file:{self.file}", options=options)
        except (OSError, ValueError) as error:
            raise InputError(f"the video {self.file} cannot be read: {_reason(error)}") from None
        # Not the first: covers and thumbnails are streams of one picture.
        stream = self._container.streams.best("video")
        if not isinstance(stream, av.VideoStream):
            self._container.close()
            raise InputError(f"there is no video in {self.file}")
        stream.thread_count = 1  # with several threads an error is not reported at its own picture
        stream.codec_context.options = {"err_detect": "explode"}
        return self._container, stream

    def __exit__(self, kind, error, trace):
        self._container.close()
        if isinstance(error, OSError | ValueError) and not isinstance(error, InputError):
            raise InputError(f"the video {self.file} cannot be read: {_reason(error)}") from None


def pictures(
    source: Source, stamps: Int[np.ndarray, " f"], size: tuple[int, int]
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The pictures with these stamps (ascending, repeats allowed), scaled to cover `size` and cut in the middle.

    Raises:
      InputError: one of them is not there.
    """
    wanted = stamps.tolist()
    if isinstance(source, Sequence):
        seen = (_cover(_still(source.files[k]), size) for k in dict.fromkeys(wanted))
    else:
        seen = _seek(source, list(dict.fromkeys(wanted)), size)
    for _, repeats in itertools.groupby(wanted):
        picture = next(seen)
        yield from (picture for _ in repeats)


def _seek(file: Path, wanted: list[int], size: tuple[int, int]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """One picture for each stamp. Begins at the key frame before the first; where that fails, at the beginning."""
    for from_start in (False, True):
        with _Decoding(file) as (container, stream):
            if not from_start:
                with contextlib.suppress(OSError, ValueError):
                    container.seek(wanted[0], stream=stream, backward=True)
            rate, unit = float(stream.average_rate or 0), float(stream.time_base)
            events = _decode(container, stream)
            first = next(events, None)
            usable = isinstance(first, _Picture) and first.frame.pts is not None and first.frame.pts <= wanted[0]
            if not usable and not from_start:
                continue
            frames = (event.frame for event in itertools.chain([first], events) if isinstance(event, _Picture))
            seen = (
                (_counted(file, k, rate, unit) if frame.pts is None else frame.pts, frame)
                for k, frame in enumerate(frames)
            )
            aspect = float(stream.sample_aspect_ratio or 1)
            for stamp in wanted:
                frame = next((frame for at, frame in seen if at >= stamp), None)
                if frame is None or frame.pts not in (stamp, None):
                    raise InputError(f"the video {file} changed while it was read")
                yield _cover(frame, size, aspect)
            return


def _still(file: Path) -> av.VideoFrame:
    with _overheard() as messages:
        try:
            with av.open(f"file:{file}", options={**_OPTIONS, "format_whitelist": _PICTURES}) as container:
                frame = next(container.decode(video=0))
        except (OSError, ValueError, StopIteration, IndexError) as error:
            raise InputError(f"the picture {file} cannot be read: {_reason(error)}") from None
    for severity, _, text in messages:
        if severity <= av.logging.ERROR:
            raise InputError(f"the picture {file} is damaged: {text.strip()}")
    if file.suffix.lower() == ".exr" and not _is_whole(file.read_bytes()):
        raise InputError(f"the picture {file} is damaged: it ends in the middle")
    return frame


# Rows of pixels in a piece of an EXR file, by its compression.
_EXR_LINES = (1, 1, 1, 16, 32, 16, 32, 32, 32, 256)


def _is_whole(exr: bytes) -> bool:
    """Whether all pieces of an EXR file of rows are there: to FFmpeg a file that ends in the middle is a picture, too.

    The header is (name, 0, type, 0, bytes, value).. 0; offsets of the pieces follow, and the pieces (row, bytes, data).
    """
    if struct.unpack_from("<I", exr, 4)[0] & ~0x4FF:  # tiles or several parts, which are laid out otherwise
        return True
    values, at = {}, 8
    try:
        while exr[at]:
            name, kind, _ = exr[at:].split(b"\0", 2)
            at += len(name) + len(kind) + 2
            (size,) = struct.unpack_from("<i", exr, at)
            values[name] = exr[at + 4 : at + 4 + size]
            at += 4 + size
        _, top, _, bottom = struct.unpack("<4i", values[b"dataWindow"])
        count = -(-(bottom - top + 1) // _EXR_LINES[values[b"compression"][0]])
        pieces = struct.unpack_from(f"<{count}Q", exr, at + 1)
        ends = [k + 8 + struct.unpack_from("<i", exr, k + 4)[0] if k else len(exr) + 1 for k in pieces]
    except (struct.error, LookupError, ValueError):
        return False
    return max(ends) <= len(exr)


def _cover(frame: av.VideoFrame, size: tuple[int, int], aspect: float = 1.0) -> UInt8[np.ndarray, "h w 3"]:
    """A picture as it is meant to be seen, covering `size` and cut to it; `aspect` is width / height of a pixel."""
    height, width = size
    across, down, transposed = _orientation(frame)
    if transposed:
        height, width = width, height
    shape = frame.height, frame.width * aspect
    scale = max(height / shape[0], width / shape[1])
    h, w = max(height, round(shape[0] * scale)), max(width, round(shape[1] * scale))
    pixels = _rgb(frame, h, w)
    top, left = (h - height) // 2, (w - width) // 2
    pixels = pixels[top : top + height, left : left + width]
    pixels = pixels.transpose(1, 0, 2) if transposed else pixels
    return pixels[::down, ::across]


def _rgb(frame: av.VideoFrame, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    # One thread: all cores have a recording of their own, and swscale's threads cost more than they save.
    if frame.format.name.startswith("gbr") and "f" in frame.format.name:  # EXR: linear light in floating point
        linear = frame.reformat(width, height, "gbrpf32le", interpolation="AREA", threads=1).to_ndarray()
        linear = np.clip(np.nan_to_num(linear[..., :3]), 0.0, 1.0)
        curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)  # sRGB
        return np.rint(255 * curve).astype(np.uint8)
    return frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA", threads=1)


def _orientation(frame: av.VideoFrame) -> tuple[int, int, bool]:
    """(step across, step down, transposed) of the display matrix: a turn by quarters, mirrored or not."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # beside it is something that this PyAV does not know, such as EXIF
        return _turn(frame.rotation)
    if data is None:
        return 1, 1, False
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
    if abs(a) >= abs(b):  # x' = a x, y' = d y
        return (-1 if a < 0 else 1), (-1 if d < 0 else 1), False
    return (-1 if c < 0 else 1), (-1 if b < 0 else 1), True  # x' = c y, y' = b x


def _turn(degrees: int) -> tuple[int, int, bool]:
    """The same of an angle, counter-clockwise; it does not tell of mirrors."""
    quarters = {0: (1, 1, False), 90: (1, -1, True), -90: (-1, 1, True)}
    return quarters.get(degrees, (-1, -1, False))


# --- Folders ----------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """The recordings below a folder."""

    recordings: dict[str, Source]  # by the path below the folder, without suffix
    hidden: int  # files and folders whose names begin with a dot, left out
    faults: list[str]


def find(folder: Path) -> Found:
    """Videos and sequences of pictures below `folder`; links are followed, each file is found once."""
    found, faults, hidden, seen, files = {}, [], 0, set(), set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link back, or a second one to the same folder
            folders.clear()
            continue
        seen.add(real)
        hidden += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        stills: dict[tuple[str, str], list[tuple[int, Path]]] = {}
        videos = any(Path(name).suffix.lower() in VIDEO_SUFFIXES for name in names)
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() in VIDEO_SUFFIXES:
                if not path.exists():
                    faults.append(f"{path} is a link to nothing")
                elif (real := os.path.realpath(path)) not in files:
                    files.add(real)
                    other = found.setdefault(_name(path.with_suffix(""), folder), path)
                    if other != path:
                        faults.append(f"{path} and {other} have the same name and annotations: {other.name} is taken")
            elif path.suffix.lower() in PICTURE_SUFFIXES and (match := re.fullmatch(r"(.*?)(\d+)", path.stem)):
                stills.setdefault((match[1], path.suffix), []).append((int(match[2]), path))
        stills = {key: sorted(parts) for key, parts in stills.items() if len(parts) > 1}
        for (stem, _), parts in stills.items():
            numbers, paths = zip(*parts, strict=True)
            base = Path(place, stem.rstrip("._- ")) if stem.rstrip("._- ") else Path(place)
            name = _name(base, folder)
            if name in found or len(set(numbers)) < len(numbers):
                faults.append(f"{paths[0]}: the pictures {base.name} are there twice")
            else:
                found[name] = Sequence(base, paths, numbers, alone=len(stills) == 1 and not videos)
    return Found(dict(sorted(found.items())), hidden, faults)


def _name(path: Path, folder: Path) -> str:
    name = path.relative_to(folder).as_posix()
    return folder.resolve().name if name == "." else name


def checksum(*files: Path) -> str:
    """A mark of what the files hold."""
    digest = hashlib.sha256()
    for file in files:
        try:
            with open(file, "rb") as data:
                digest.update(hashlib.file_digest(data, "sha256").digest())
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from None
    return digest.hexdigest()[:16]
