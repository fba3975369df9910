"""Annotations of other programs' videos as rows of keys, mouse and camera.

    paper         NAME.mp4 + NAME.csv: a column of 0 and 1 for each key, and the camera as x, y, z and qw, qx, qy, qz,
                  or as pitch, yaw, roll (degrees; up and right positive); optionally mouse_pitch, mouse_yaw (else taken
                  from the camera) and vx, vy, vz, and frame or time. What `mgjax data export` writes.
    gf-minecraft  video/NAME.mp4 + metadata/NAME.json (or side by side): {"actions": {"0": {ws, ad, scs, pitch_delta,
                  yaw_delta, ...}}}, degrees, pitch positive down. ws 1 forward 2 back, ad 1 left 2 right, scs 1 jump
                  2 sneak 3 sprint. The action of frame 0 is void. Optional yaw, pitch and pos [x, y, z] tell whether an
                  action led to its own frame or to the next one; without them, to its own.
    vpt           NAME.mp4 + NAME.jsonl: keyboard.keys, mouse.buttons, mouse.dx dy (360 / 2400 degrees a pixel, dy
                  positive down), optionally yaw, pitch, xpos, ypos, zpos. Frames with an open menu (isGuiOpen) end a
                  clip.
    rows          NAME.mp4 + NAME.csv, .tsv, .json or .jsonl with the columns of `paper`, or others that the schema file
                  maps to them (`layout.py`); it also names the keys.
    events        NAME.mp4 + NAME.events.jsonl: what was pressed, with times (`events.py`).

Unknown poses are NaN. Whatever is wrong is named with its file and its line or frame.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence as Several
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mgjax.data import camera
from mgjax.data.exchange import events, tables
from mgjax.data.exchange.layout import Layout
from mgjax.data.exchange.tables import Row, read_rows
from mgjax.data.exchange.tracks import Rows, Track
from mgjax.data.exchange.videos import Sequence, Source
from mgjax.data.quality import kinematics
from mgjax.errors import InputError

VPT_DEGREES = 360.0 / 2400.0  # per pixel of mouse movement
MOST_DEGREES = 1e5  # of the mouse in one row; more is no movement, and spoils sums
_NAN = float("nan")

SUFFIXES = {
    "paper": (".csv", ".tsv"),
    "gf-minecraft": (".json",),
    "vpt": (".jsonl",),
    "rows": (".csv", ".tsv", ".json", ".jsonl", ".ndjson"),
    "events": events.SUFFIXES,
}

_FRAME_COLUMNS = ("frame", "frame_id", "frame_idx", "frame_index", "frame_number", "frame_num", "index")
_TIME_COLUMNS = ("time", "timestamp", "datetime", "seconds")
_TIME_UNITS = {f"{name}_{unit}": seconds for name in ("time", "timestamp") for unit, seconds in
               (("s", 1.0), ("sec", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))}  # fmt: skip
_CAMERA = ("mouse_pitch", "mouse_yaw", "mouse_dx", "mouse_dy", "pitch", "yaw", "roll")
_CAMERA += ("x", "y", "z", "qw", "qx", "qy", "qz", "vx", "vy", "vz")
_NO_KEYS = {*_FRAME_COLUMNS, *_TIME_COLUMNS, *_TIME_UNITS, *_CAMERA}


def _stack(rows: Several[Row], keyboard, mouse, position=None, rotation=None, velocity=None, usable=None) -> Track:
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


def _degrees(row: Row, name: str) -> float:
    degrees = row.known(name)
    if abs(degrees) > MOST_DEGREES:
        raise row.wrong(f"{name} is {degrees:g}, and should be degrees that a camera turns in a frame")
    return degrees


def _pose_track(rows: list[Row], keys: Several[str], layout: Layout) -> Track:
    """Rows with a column per key and the columns of the camera (see the module's text)."""
    columns = set(rows[0].values)
    mouse, position, rotation, velocity = None, None, None, None

    def numbers(names, read=lambda row, name: row.number(name, _NAN)):
        return np.array([[read(row, name) for name in names] for row in rows])

    if {"qw", "qx", "qy", "qz"} <= columns:
        rotation = numbers(("qw", "qx", "qy", "qz"))
        length = np.linalg.norm(rotation, axis=1)
        for row, norm in zip(rows, length, strict=True):
            if abs(norm - 1.0) > 1e-3:
                raise row.wrong(f"the quaternion qw, qx, qy, qz has length {norm:.4g}, and should have 1")
        rotation = np.where(np.abs(length[:, None] - 1.0) < 1e-12, rotation, rotation / length[:, None])
        rotation = layout.rotation(rotation)
    elif {"pitch", "yaw"} <= columns:
        pitch, yaw = numbers(("pitch", "yaw"), Row.known).T
        roll = numbers(("roll",), Row.known)[:, 0] if "roll" in columns else np.zeros(len(rows))
        rotation = layout.look(pitch, yaw, roll)
    if {"x", "y", "z"} <= columns:
        position = layout.vector(numbers("xyz"))
    if {"vx", "vy", "vz"} <= columns:
        velocity = layout.vector(numbers(("vx", "vy", "vz")))
    if not layout.mouse:
        if given := sorted(columns & {"mouse_pitch", "mouse_yaw", "mouse_dx", "mouse_dy"}):
            raise rows[0].wrong(f"[source] of the schema says that there is no mouse, and there is a column {given[0]}")
        mouse = np.zeros((len(rows), 2))
    elif {"mouse_pitch", "mouse_yaw"} <= columns:
        mouse = np.stack(layout.angles(*numbers(("mouse_pitch", "mouse_yaw"), _degrees).T), axis=1)
    elif {"mouse_dx", "mouse_dy"} <= columns:
        if layout.degrees is None:
            raise rows[0].wrong("mouse_dx and mouse_dy are counts: [source] of the schema needs degrees")
        dx, dy = numbers(("mouse_dx", "mouse_dy"), _degrees).T
        mouse = np.stack([-dy * layout.degrees[0], dx * layout.degrees[1]], axis=1)
    elif rotation is not None and np.isfinite(rotation).all():
        mouse = np.append(kinematics.turns(rotation), np.zeros((1, 2)), axis=0)
    else:
        found = ", ".join(str(name) for name in rows[0].values)
        raise rows[0].wrong(
            f"there are neither mouse_pitch and mouse_yaw nor the camera's pose (the columns are {found}); of a game"
            " without a mouse, [source] of the schema says mouse = false"
        )
    why = ", as all columns but the camera's do, which are keys"
    keyboard = [[row.choice(key.lower(), 2, why) for key in keys] for row in rows]
    return _stack(rows, keyboard, mouse, position, rotation, velocity)


def _ordered(rows: list[Row]) -> tuple[list[Row], dict]:
    """Rows by their frame or time, where there is such a column, and that column as fields of `Rows`."""
    columns = rows[0].values
    frame = next((name for name in _FRAME_COLUMNS if name in columns), None)
    time = next((name for name in (*_TIME_COLUMNS, *_TIME_UNITS) if name in columns), None)
    if frame is None and time is None:
        return rows, {}
    if frame is not None:
        values = np.array([row.known(frame) for row in rows])
        for row, number in zip(rows, values, strict=True):
            if number != int(number) or abs(number) > 1e12:
                raise row.wrong(f"{frame} is {number:g}, and should be a whole number")
    else:
        values = np.array([row.time(time) for row in rows])
    order = np.argsort(values, kind="stable")
    rows, values = [rows[k] for k in order], values[order]
    if frame is not None:
        return rows, {"frames": values.astype(np.int64)}
    return rows, {"times": values, "unit": _TIME_UNITS.get(time)}


def _paper_keys(rows: list[Row]) -> tuple[str, ...]:
    keys = tuple(str(name) for name in rows[0].values if name not in _NO_KEYS)
    if not keys:
        raise rows[0].wrong("there is no column with a key")
    return keys


# --- Minecraft --------------------------------------------------------------------------------------------------------

_MINECRAFT_KEYS = ("forward", "back", "left", "right", "jump", "sneak", "sprint")


def _minecraft_pose(rows: list[Row], x: str, y: str, z: str, yaw: str, pitch: str):
    """Positions and rotations of Minecraft (y up, yaw 0 to +z, right and down positive) in the clip's axes."""
    at = np.array([[row.number(name, _NAN) for name in (x, y, z)] for row in rows])
    angles = np.array([[row.number(name, _NAN) for name in (yaw, pitch)] for row in rows])
    # Forward at yaw 0 is Minecraft's z, left of it its x, up its y: a cyclic change, so the axes stay right-handed.
    return at[:, [2, 0, 1]], camera.from_yaw_pitch(angles[:, 0], -angles[:, 1])


def _gf_rows(file: Path) -> Rows:
    data = tables.parse_json(file, tables.read_text(file))
    actions = data.get("actions") if isinstance(data, dict) else None
    if not isinstance(actions, dict) or not actions:
        raise InputError(f'{file} should hold {{"actions": {{"0": {{...}}, ...}}}}')
    rows = []
    for k in range(len(actions)):
        row = Row(file, f"frame {k}", actions.get(str(k)))
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
        mouse[k] = -_degrees(row, "pitch_delta"), _degrees(row, "yaw_delta")
    position, rotation = _minecraft_pose(rows, "x", "y", "z", "yaw", "pitch")
    usable = np.ones(len(rows), bool)
    if _leads_to_own_frame(mouse, rotation):
        keyboard, mouse = np.roll(keyboard, -1, axis=0), np.roll(mouse, -1, axis=0)
        usable[-1] = False
    else:
        usable[0] = False
    track = _stack(rows, keyboard, mouse, position, rotation, usable=usable)
    return Rows(file, track, tuple(row.place for row in rows))


def _leads_to_own_frame(mouse: Float[np.ndarray, "f 2"], rotation: Float[np.ndarray, "f 4"]) -> bool:
    """Whether mouse row k turned the camera of frame k - 1 into that of frame k, rather than k into k + 1.

    The camera tells, where it is recorded. Where it is not, the row of frame 0, which is void, says that it does.
    """
    before = np.nansum(camera.angle_between(camera.turn(rotation[:-1], mouse[1:]), rotation[1:]))
    after = np.nansum(camera.angle_between(camera.turn(rotation[:-1], mouse[:-1])[1:], rotation[2:]))
    return bool(before <= after)


# What VPT's contractors could press, by the game's own names; a schema's [source.keys] may add to it.
VPT_KEYS = {
    "forward": ("key.keyboard.w",), "back": ("key.keyboard.s",), "left": ("key.keyboard.a",),
    "right": ("key.keyboard.d",), "jump": ("key.keyboard.space",), "sneak": ("key.keyboard.left.shift",),
    "sprint": ("key.keyboard.left.control",), "attack": ("mouse:0",), "use": ("mouse:1",),
    "pick": ("mouse:2",), "drop": ("key.keyboard.q",), "inventory": ("key.keyboard.e",), "swap": ("key.keyboard.f",),
    **{f"hotbar.{k}": (f"key.keyboard.{k}",) for k in range(1, 10)},
}  # fmt: skip
_VPT_COLUMNS = (*_MINECRAFT_KEYS, "attack", "use")


def _vpt_rows(file: Path, keys: Several[str], layout: Layout) -> Rows:
    presses = {**VPT_KEYS, **(layout.keys or {})}
    for key in keys:
        if key not in presses:
            raise InputError(f"what presses {key} in {file} is not known: [source.keys] of the schema should say it")
    degrees = layout.degrees or (VPT_DEGREES, VPT_DEGREES)
    rows = tables.json_lines(file)
    if not rows:
        raise InputError(f"{file} is empty")
    keyboard, mouse, usable = [], [], []
    for row in rows:
        held, moved = row.values.get("keyboard.keys"), row.values.get("mouse")
        if not isinstance(held, list):
            raise row.wrong("keyboard.keys is missing")
        if not isinstance(moved, dict):
            raise row.wrong("mouse is missing")
        buttons = moved.get("buttons", [])
        down = {str(key).lower() for key in held}
        down |= {f"mouse:{b}" for b in (buttons if isinstance(buttons, list) else [])}
        keyboard.append([int(any(name in down for name in presses[key])) for key in keys])
        pixels = Row(file, row.place, moved)
        mouse.append((-_degrees(pixels, "dy") * degrees[0], _degrees(pixels, "dx") * degrees[1]))
        usable.append(not row.values.get("isguiopen", False))
    position, rotation = _minecraft_pose(rows, "xpos", "ypos", "zpos", "yaw", "pitch")
    track = _stack(rows, keyboard, mouse, position, rotation, usable=usable)
    return Rows(file, track, tuple(row.place for row in rows))


# --- Any --------------------------------------------------------------------------------------------------------------


def annotation_of(source: Source, kind: str) -> Path:
    """The file that describes a recording: beside it, or in `metadata` beside its folder; capitals do not matter.

    Of pictures that are alone in their folder it may also be the only such file there, or be named by that folder.
    """
    suffixes = SUFFIXES[kind]
    if isinstance(source, Sequence):
        inside = source.files[0].parent
        there = [path for path in _listed(inside) if path.name.lower().endswith(suffixes)]
        if source.alone and len(there) == 1:
            return there[0]
        stems = [source.stem, *([inside / inside.name, inside] if source.alone else [])]
    else:
        stems = [source.with_suffix(""), *([source.resolve().with_suffix("")] if source.is_symlink() else [])]
    stems += [stem.parent.parent / "metadata" / stem.name for stem in stems]
    for stem in stems:
        there = {_plain(path.name): path for path in reversed(_listed(stem.parent))}
        names = [f"{stem.name}{suffix}" for suffix in suffixes]
        for path in (*(stem.parent / name for name in names), *(there.get(_plain(name)) for name in names)):
            if path is not None and path.is_file():
                return path
    names = [f"{stem.name}{suffix}" for stem in stems for suffix in suffixes]
    raise InputError(f"{source} has no {' or '.join(dict.fromkeys(names))} beside it")


def _plain(name: str) -> str:
    """A name without capitals, and with accents as Windows and Linux write them, which a Mac takes apart."""
    return unicodedata.normalize("NFC", name).lower()


def _listed(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def read_annotation(
    file: Path, kind: str, keys: Several[str] | None, layout: Layout
) -> tuple[Rows | events.Log, tuple[str, ...]]:
    """The annotations in `file` and their keyboard columns: `keys`, or where that is None those of the file.

    Raises:
      InputError: names the file and line of what is wrong.
    """
    if kind == "events":
        log = events.read_log(file)
        columns = events.columns_of(log, layout.keys)
        if keys is not None:  # a column that is none of the map's is pressed by the input of its own name
            columns = {key: columns.get(key, events.KEYS.get(key, (key,))) for key in keys}
        return log._replace(keys=columns, sticks={**log.sticks, **layout.sticks}), tuple(columns)
    if kind == "gf-minecraft":
        return _gf_rows(file), _MINECRAFT_KEYS
    if kind == "vpt":
        keys = _VPT_COLUMNS if keys is None else tuple(keys)
        return _vpt_rows(file, keys, layout), keys
    rows = layout.rename(read_rows(file))
    keys = _paper_keys(rows) if keys is None else tuple(keys)
    rows, order = _ordered(rows)
    return Rows(file, _pose_track(rows, keys, layout), tuple(row.place for row in rows), **order), keys
