"""Recordings of other programs as clips.

Formats, each a folder searched with all its sub-folders:

    paper         NAME.mp4 + NAME.csv: one row a frame; a column of 0 and 1 for each key, and the camera as x, y, z and
                  qw, qx, qy, qz, or as pitch, yaw (degrees; up and right positive); optionally mouse_pitch, mouse_yaw
                  (else taken from the camera) and vx, vy, vz. What `mgjax data export` writes.
    gf-minecraft  video/NAME.mp4 + metadata/NAME.json (or side by side): {"actions": {"0": {ws, ad, scs, pitch_delta,
                  yaw_delta, ...}}}, degrees, pitch positive down. ws 1 forward 2 back, ad 1 left 2 right, scs 1 jump
                  2 sneak 3 sprint. The action of frame 0 is void. Optional yaw, pitch and pos [x, y, z] tell whether an
                  action led to its own frame or to the next one; without them, to its own.
    vpt           NAME.mp4 + NAME.jsonl: keyboard.keys, mouse.dx dy (360 / 2400 degrees a pixel, dy positive down),
                  optionally yaw, pitch, xpos, ypos, zpos. Frames with an open menu (isGuiOpen) end a clip.
    rows          NAME.mp4 + NAME.csv, .json or .jsonl with the columns of `paper`; the schema file names the keys.

Time: a recording is resampled by choosing frames, frame j the one on show at time j / fps. Its row is what led from it
to the next chosen frame: mouse deltas of the rows between are summed, and a key counts as held when it was held in at
least half of them. So the rows stay in step with the pictures, whatever the two rates are; fps above the source's shows
some frames twice, with no mouse on the first of them. Unknown poses are NaN.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Float, UInt8

from mgjax.data import camera, codec, kinematics, schema
from mgjax.data.schema import Schema
from mgjax.data.store import Writer, clip_name
from mgjax.data.types import Clip
from mgjax.errors import InputError

VPT_DEGREES = 360.0 / 2400.0  # per pixel of mouse movement
_NAN = float("nan")
_CONTAINERS = "mov,mp4,m4a,matroska,webm,avi"  # none that names further files


class Track(NamedTuple):
    """The annotations of one video, a row per frame."""

    keyboard: UInt8[np.ndarray, "f a"]
    mouse: Float[np.ndarray, "f 2"]  # degrees of (pitch, yaw), up and right positive
    position: Float[np.ndarray, "f 3"]
    rotation: Float[np.ndarray, "f 4"]
    velocity: Float[np.ndarray, "f 3"]
    usable: np.ndarray  # [f] bool; a frame that is not ends a clip


class Report(NamedTuple):
    videos: int
    clips: int
    frames: int


# --- Annotations -----------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """One row of an annotation file, which knows where it stands."""

    file: Path
    place: str  # "line 7" or "frame 7"
    values: dict

    def wrong(self, text: str) -> InputError:
        return InputError(f"{self.file}, {self.place}: {text}")

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        if value is None or value == "":
            if default is None:
                raise self.wrong(f"{name} is missing")
            return default
        try:
            if isinstance(value, list | dict):
                raise TypeError
            return float(value)
        except (TypeError, ValueError):
            raise self.wrong(f"{name} is {value!r}, and should be a number") from None

    def known(self, name: str) -> float:
        """A number that has to be there and finite."""
        number = self.number(name)
        if not np.isfinite(number):
            raise self.wrong(f"{name} is {number}, and should be finite")
        return number

    def choice(self, name: str, count: int) -> int:
        number = self.known(name)
        if number not in range(count):
            raise self.wrong(f"{name} is {number:g}, and should be a whole number from 0 to {count - 1}")
        return int(number)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a text in UTF-8 (byte {error.start})") from None


def _json(file: Path, text: str, place: str = ""):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}, {place or f'line {error.lineno}'}: this is not JSON ({error.msg})") from None


def _csv_rows(file: Path) -> list[_Row]:
    lines = csv.reader(_text(file).splitlines(), strict=True)
    rows = []
    try:
        header = [name.strip() for name in next(lines, [])]
        if not header or len(set(header)) < len(header) or not all(header):
            raise InputError(f"{file}, line 1: the columns need names that differ")
        for values in lines:
            row = _Row(file, f"line {lines.line_num}", dict(zip(header, values, strict=False)))
            if len(values) != len(header):
                raise row.wrong(f"it has {len(values)} values, and the first line has {len(header)}")
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{file}, line {lines.line_num}: this is not CSV ({error})") from None
    return rows


def _jsonl_rows(file: Path) -> list[_Row]:
    rows = []
    for number, line in enumerate(_text(file).splitlines(), 1):
        if line.strip():
            row = _Row(file, f"line {number}", {})
            values = _json(file, line, row.place)
            if not isinstance(values, dict):
                raise row.wrong("this is no JSON object")
            rows.append(row._replace(values=values))
    return rows


def _json_rows(file: Path) -> list[_Row]:
    values = _json(file, _text(file))
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise InputError(f"{file} should hold a list of objects, one for each frame")
    return [_Row(file, f"frame {k}", value) for k, value in enumerate(values)]


def _stack(rows: Sequence[_Row], keyboard, mouse, position=None, rotation=None, velocity=None, usable=None) -> Track:
    """Lists of numbers as a track; what is None is unknown."""
    count = len(rows)

    def array(values, width, dtype=np.float64):
        return np.full((count, width), _NAN) if values is None else np.asarray(values, dtype).reshape(count, width)

    return Track(
        keyboard=np.asarray(keyboard, np.uint8).reshape(count, -1),
        mouse=array(mouse, 2),
        position=array(position, 3),
        rotation=array(rotation, 4),
        velocity=array(velocity, 3),
        usable=np.ones(count, bool) if usable is None else np.asarray(usable),
    )


_POSE_COLUMNS = ("frame", "time", "mouse_pitch", "mouse_yaw", "pitch", "yaw")
_POSE_COLUMNS += ("x", "y", "z", "qw", "qx", "qy", "qz", "vx", "vy", "vz")


def _pose_rows(rows: list[_Row], keys: Sequence[str]) -> Track:
    """Rows with a column per key and the columns of the camera (see the module's text)."""
    columns = set(rows[0].values)
    mouse, position, rotation, velocity = None, None, None, None
    if {"qw", "qx", "qy", "qz"} <= columns:
        rotation = np.array([[row.number(c, _NAN) for c in ("qw", "qx", "qy", "qz")] for row in rows])
        length = np.linalg.norm(rotation, axis=1)
        for row, norm in zip(rows, length, strict=True):
            if abs(norm - 1.0) > 1e-3:
                raise row.wrong(f"the quaternion qw, qx, qy, qz has length {norm:.4g}, and should have 1")
        rotation = np.where(np.abs(length[:, None] - 1.0) < 1e-12, rotation, rotation / length[:, None])
    elif {"pitch", "yaw"} <= columns:
        angles = np.array([[row.known("yaw"), row.known("pitch")] for row in rows])
        rotation = camera.from_yaw_pitch(angles[:, 0], angles[:, 1])
    if {"x", "y", "z"} <= columns:
        position = [[row.number(c, _NAN) for c in "xyz"] for row in rows]
    if {"vx", "vy", "vz"} <= columns:
        velocity = [[row.number(c, _NAN) for c in ("vx", "vy", "vz")] for row in rows]
    if {"mouse_pitch", "mouse_yaw"} <= columns:
        mouse = [[row.known("mouse_pitch"), row.known("mouse_yaw")] for row in rows]
    elif rotation is not None and np.isfinite(rotation).all():
        mouse = np.append(kinematics.turns(rotation), np.zeros((1, 2)), axis=0)
    else:
        raise rows[0].wrong("there are neither mouse_pitch and mouse_yaw nor the camera's pose")
    keyboard = [[row.choice(key, 2) for key in keys] for row in rows]
    return _stack(rows, keyboard, mouse, position, rotation, velocity)


def _paper_keys(rows: list[_Row]) -> tuple[str, ...]:
    keys = tuple(name for name in rows[0].values if name not in _POSE_COLUMNS)
    if not keys:
        raise rows[0].wrong("there is no column with a key")
    return keys


_MINECRAFT_KEYS = ("forward", "back", "left", "right", "jump", "sneak", "sprint")


def _minecraft_pose(rows: list[_Row], x: str, y: str, z: str, yaw: str, pitch: str):
    """Positions and rotations of Minecraft (y up, yaw 0 to +z, right and down positive) in the clip's axes."""
    at = np.array([[row.number(name, _NAN) for name in (x, y, z)] for row in rows])
    angles = np.array([[row.number(name, _NAN) for name in (yaw, pitch)] for row in rows])
    # Forward at yaw 0 is Minecraft's z, left of it its x, up its y: a cyclic change, so the axes stay right-handed.
    return at[:, [2, 0, 1]], camera.from_yaw_pitch(angles[:, 0], -angles[:, 1])


def _gf_track(file: Path) -> Track:
    data = _json(file, _text(file))
    actions = data.get("actions") if isinstance(data, dict) else None
    if not isinstance(actions, dict) or not actions:
        raise InputError(f'{file} should hold {{"actions": {{"0": {{...}}, ...}}}}')
    rows = []
    for k in range(len(actions)):
        row = _Row(file, f"frame {k}", actions.get(str(k)))
        if not isinstance(row.values, dict):
            raise row.wrong("there is no action for it")
        values = dict(row.values)
        if isinstance(values.get("pos"), list) and len(values["pos"]) == 3:
            values |= dict(zip(("x", "y", "z"), values["pos"], strict=True))
        rows.append(row._replace(values=values))
    keyboard, mouse = np.zeros((len(rows), 7), np.uint8), np.zeros((len(rows), 2))
    for k, row in enumerate(rows[1:], 1):
        for name, count, first in (("ws", 3, 0), ("ad", 3, 2), ("scs", 4, 4)):
            if pressed := row.choice(name, count):
                keyboard[k, first + pressed - 1] = 1
        mouse[k] = -row.known("pitch_delta"), row.known("yaw_delta")
    position, rotation = _minecraft_pose(rows, "x", "y", "z", "yaw", "pitch")
    usable = np.ones(len(rows), bool)
    if _leads_to_own_frame(mouse, rotation):
        keyboard, mouse = np.roll(keyboard, -1, axis=0), np.roll(mouse, -1, axis=0)
        usable[-1] = False
    else:
        usable[0] = False
    return _stack(rows, keyboard, mouse, position, rotation, usable=usable)


def _leads_to_own_frame(mouse: Float[np.ndarray, "f 2"], rotation: Float[np.ndarray, "f 4"]) -> bool:
    """Whether mouse row k turned the camera of frame k - 1 into that of frame k, rather than k into k + 1.

    The camera tells, where it is recorded. Where it is not, the row of frame 0, which is void, says that it does.
    """
    before = np.nansum(camera.angle_between(camera.turn(rotation[:-1], mouse[1:]), rotation[1:]))
    after = np.nansum(camera.angle_between(camera.turn(rotation[:-1], mouse[:-1])[1:], rotation[2:]))
    return bool(before <= after)


_VPT_KEYS = {
    "key.keyboard.w": 0,
    "key.keyboard.s": 1,
    "key.keyboard.a": 2,
    "key.keyboard.d": 3,
    "key.keyboard.space": 4,
    "key.keyboard.left.shift": 5,
    "key.keyboard.left.control": 6,
}


def _vpt_track(file: Path) -> Track:
    rows = _jsonl_rows(file)
    keyboard, mouse, usable = [], [], []
    for row in rows:
        keys, moved = row.values.get("keyboard"), row.values.get("mouse")
        if not isinstance(keys, dict) or not isinstance(keys.get("keys"), list):
            raise row.wrong("keyboard.keys is missing")
        if not isinstance(moved, dict):
            raise row.wrong("mouse is missing")
        held = np.zeros(7, np.uint8)
        held[[_VPT_KEYS[key] for key in keys["keys"] if isinstance(key, str) and key in _VPT_KEYS]] = 1
        keyboard.append(held)
        pixels = _Row(file, row.place, moved)
        mouse.append((-pixels.known("dy") * VPT_DEGREES, pixels.known("dx") * VPT_DEGREES))
        usable.append(not row.values.get("isGuiOpen", False))
    position, rotation = _minecraft_pose(rows, "xpos", "ypos", "zpos", "yaw", "pitch") if rows else (None, None)
    return _stack(rows, keyboard, mouse, position, rotation, usable=usable)


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


def _annotation(video: Path, suffixes: Sequence[str]) -> Path:
    """The file that describes a video: beside it, or in `metadata` beside its folder."""
    places = [video.with_suffix(suffix) for suffix in suffixes]
    places += [video.parent.parent / "metadata" / f"{video.stem}{suffix}" for suffix in suffixes]
    for place in places:
        if place.is_file():
            return place
    raise InputError(f"the video {video} has no {' or '.join(f'{video.stem}{s}' for s in suffixes)} beside it")


_SUFFIXES = {"paper": (".csv",), "gf-minecraft": (".json",), "vpt": (".jsonl",), "rows": (".csv", ".json", ".jsonl")}
_READ_ROWS = {".csv": _csv_rows, ".json": _json_rows, ".jsonl": _jsonl_rows}


def _read_track(file: Path, kind: str, keys: Sequence[str] | None) -> tuple[Track, tuple[str, ...]]:
    """The annotations in `file` and their keyboard columns."""
    if kind == "gf-minecraft":
        return _gf_track(file), _MINECRAFT_KEYS
    if kind == "vpt":
        track = _vpt_track(file)
        if not len(track.usable):
            raise InputError(f"{file} is empty")
        return track, _MINECRAFT_KEYS
    rows = _READ_ROWS[file.suffix](file)
    if not rows:
        raise InputError(f"{file} has no rows")
    keys = _paper_keys(rows) if keys is None else tuple(keys)
    return _pose_rows(rows, keys), keys


def import_folder(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    kind: str,
    size: str | tuple[int, int] = (352, 640),
    fps: float = 0.0,
    clip_frames: int = 97,
    codec_name: str = "zstd",
    schema_file: str | os.PathLike = "",
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Adds every video of `source` to the dataset at `out`, as clips of `clip_frames` frames; what is left over at a
    video's end is too short for a clip and is left out.

    Raises:
      InputError: names the file, and the line or frame, of whatever is wrong; clips of earlier videos stay.
    """
    source = Path(source)
    if kind not in _SUFFIXES:
        raise InputError(f"there is no format {kind!r}; there are {', '.join(_SUFFIXES)}")
    if clip_frames < 2 or fps < 0:
        raise InputError("clips need at least 2 frames, and fps cannot be negative")
    if not source.is_dir():
        raise InputError(f"there is no folder {source}")
    videos = sorted(path for path in source.rglob("*") if path.suffix.lower() == ".mp4")
    if not videos:
        raise InputError(f"there is no .mp4 file in {source}")
    given = None
    if schema_file:
        given = schema.loads(_text(Path(schema_file)), str(schema_file))
    elif kind == "rows":
        raise InputError("rows of a free format need a schema file that names their keyboard columns")
    keys = given.keyboard if given and kind in ("paper", "rows") else None

    height_width = schema.parse_size(size) if isinstance(size, str) else size
    writer, num_clips = None, 0
    with contextlib.ExitStack() as stack:
        for file in videos:
            annotation = _annotation(file, _SUFFIXES[kind])
            track, columns = _read_track(annotation, kind, keys)
            video = _open_video(file)
            if kind in ("paper", "rows") and video.frames not in (0, len(track.usable)):
                raise InputError(f"{annotation} has {len(track.usable)} rows, and {file} has {video.frames} frames")
            fps = fps or video.fps
            if writer is None:
                mapping = given.models if given else schema.default_models(columns)
                scale = given.mouse_scale if given else schema.MOUSE_SCALE
                limits = given.pitch_limits if given else (-90.0, 90.0)
                new_schema = Schema(columns, fps, height_width, scale, limits, models=mapping)
                writer = stack.enter_context(Writer(out, new_schema))
            if columns != new_schema.keyboard:
                raise InputError(
                    f"{annotation} has the keys {', '.join(columns)}, not {', '.join(new_schema.keyboard)}"
                )
            new = _import_video(writer, video, track, source, height_width, fps, clip_frames, codec_name, kind)
            num_clips += new
            say(f"{file}: {new} new clips")
    return Report(len(videos), num_clips, num_clips * clip_frames)


def _import_video(writer, video, track, source, size, fps, clip_frames, codec_name, kind) -> int:
    """Adds the clips of one video that are not there yet; returns their number."""
    chosen, rows = resample(track, video.fps, fps)
    name = video.file.relative_to(source).with_suffix("").as_posix()
    spans = [(f"{clip_name(name)}-{start:06d}", start, stop) for start, stop in _segments(rows.usable, clip_frames)]
    spans = [span for span in spans if span[0] not in writer.entries]
    if not spans:
        return 0
    wanted = np.concatenate([chosen[start:stop] for _, start, stop in spans])
    pictures = _frames(video, size, wanted)
    for clip, start, stop in spans:
        frames = np.stack([next(pictures) for _ in range(stop - start)])
        keyboard, mouse, position, rotation, velocity, _ = (array[start:stop] for array in rows)
        data = Clip(frames, keyboard, mouse.astype(np.float32), position, rotation, velocity)
        info = {"recording": kind, "source": name, "first_frame": int(chosen[start]), "codec": codec_name}
        writer.add(clip, codec.encode(data, codec_name), clip_frames, info)
    return len(spans)
