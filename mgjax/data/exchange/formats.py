"""Annotations of other programs' videos as tracks: a row of keys, mouse and camera for every frame.

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

Unknown poses are NaN. Whatever is wrong is named with its file and its line or frame.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from mgjax.data import camera
from mgjax.data.quality import kinematics
from mgjax.errors import InputError

VPT_DEGREES = 360.0 / 2400.0  # per pixel of mouse movement
_NAN = float("nan")


class Track(NamedTuple):
    """The annotations of one video, a row per frame."""

    keyboard: UInt8[np.ndarray, "f a"]
    mouse: Float[np.ndarray, "f 2"]  # degrees of (pitch, yaw), up and right positive
    position: Float[np.ndarray, "f 3"]
    rotation: Float[np.ndarray, "f 4"]
    velocity: Float[np.ndarray, "f 3"]
    usable: np.ndarray  # [f] bool; a frame that is not ends a clip


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


def read_text(file: Path) -> str:
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
    lines = csv.reader(read_text(file).splitlines(), strict=True)
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
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if line.strip():
            row = _Row(file, f"line {number}", {})
            values = _json(file, line, row.place)
            if not isinstance(values, dict):
                raise row.wrong("this is no JSON object")
            rows.append(row._replace(values=values))
    return rows


def _json_rows(file: Path) -> list[_Row]:
    values = _json(file, read_text(file))
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
    data = _json(file, read_text(file))
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


def annotation_of(video: Path, suffixes: Sequence[str]) -> Path:
    """The file that describes a video: beside it, or in `metadata` beside its folder."""
    places = [video.with_suffix(suffix) for suffix in suffixes]
    places += [video.parent.parent / "metadata" / f"{video.stem}{suffix}" for suffix in suffixes]
    for place in places:
        if place.is_file():
            return place
    raise InputError(f"the video {video} has no {' or '.join(f'{video.stem}{s}' for s in suffixes)} beside it")


SUFFIXES = {"paper": (".csv",), "gf-minecraft": (".json",), "vpt": (".jsonl",), "rows": (".csv", ".json", ".jsonl")}
_READ_ROWS = {".csv": _csv_rows, ".json": _json_rows, ".jsonl": _jsonl_rows}


def read_track(file: Path, kind: str, keys: Sequence[str] | None) -> tuple[Track, tuple[str, ...]]:
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
