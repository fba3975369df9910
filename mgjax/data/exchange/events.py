"""Event logs as input: keys, buttons, mouse and sticks with their times (docs/data.md has the lines).

The log's clock is tied to the video's time stamps by what the log says of pictures (`frame` lines), of the recording's
start and stop (`video` lines), or by a given offset. All pairs together give offset and drift; a line for every picture
gives each its own time.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mgjax.data.exchange import tables
from mgjax.data.exchange.tables import Row
from mgjax.data.exchange.tracks import MAX_DRIFT, UNITS, Matched, Track, held, warp
from mgjax.data.exchange.videos import Shown, Source, grid
from mgjax.errors import InputError

SUFFIXES = (".events.jsonl", ".events.ndjson", ".events.csv", ".jsonl", ".ndjson")
# Columns of keys that a log without a map presses; other keys are columns of their own names.
KEYS = {
    "forward": ("w",), "back": ("s",), "left": ("a",), "right": ("d",), "jump": ("space",),
    "sneak": ("shift", "shift_l"), "sprint": ("ctrl", "ctrl_l"), "attack": ("mouse:left",), "use": ("mouse:right",),
}  # fmt: skip
_TIMES = ("t", "time", "timestamp", "ts")
# What other programs call the lines: the type, and whether something goes down.
_ALIASES = {
    "keydown": ("key", True), "keyup": ("key", False), "keypress": ("key", True), "keyrelease": ("key", False),
    "keypressed": ("key", True), "keyreleased": ("key", False), "keyboard": ("key", None),
    "buttondown": ("button", True), "buttonup": ("button", False), "mousedown": ("button", True),
    "mouseup": ("button", False), "mousepressed": ("button", True), "mousereleased": ("button", False),
    "mousebutton": ("button", None), "click": ("button", None), "mousebuttondown": ("button", True),
    "mousebuttonup": ("button", False), "mousemove": ("mouse", None), "mousemoved": ("mouse", None),
    "move": ("mouse", None), "mousemotion": ("mouse", None), "gamepad": ("pad", None), "padaxis": ("axis", None),
    "wheel": ("scroll", None), "mousewheel": ("scroll", None),
}  # fmt: skip
_DOWN = {"down": True, "pressed": True, "press": True, "up": False, "released": False, "release": False}
_THRESHOLD = 0.5  # of a stick that stands for keys
MOST_COUNTS = 1e6  # of the mouse in one line; more is no movement, and spoils sums
MOST_UNEVEN = 5.0  # how many times as long as its video a recording may have taken
_LATENCY = 1.0  # seconds that a program may be late to say that the video has ended


class Log(NamedTuple):
    """An event log as it was read: times in seconds of its own clock.

    Attributes:
      presses: [down, up) spans of each input (`w`, `mouse:left`, `pad:a`), apart and in order.
      moves: times [n] and (dx, dy) [n, 2] in counts, right and down positive.
      axes: times [n] and values [n] of each stick's axis.
      frames: number and time of pictures.
      start, stop: of the video, where the log says it.
      degrees: (pitch, yaw) that the camera turns for one count of the mouse; None: the log does not say.
      keys, sticks: the maps of its header.
      ignored: types of lines that mean nothing here, counted.
      first, last: times between which something is pressed or moved; NaN: nothing is.
    """

    file: Path
    presses: Mapping[str, Float[np.ndarray, "p 2"]]
    moves: tuple[np.ndarray, np.ndarray]
    axes: Mapping[str, tuple[np.ndarray, np.ndarray]]
    frames: Float[np.ndarray, "n 2"]
    start: float | None
    stop: float | None
    degrees: tuple[float, float] | None
    keys: Mapping[str, tuple[str, ...]] | None
    sticks: Mapping[str, Mapping]
    ignored: Mapping[str, int]
    first: float
    last: float


def read_log(file: Path) -> Log:
    """Reads a log; lines may stand in any order.

    Raises:
      InputError: names the file and line of what is wrong.
    """
    rows = tables.read_rows(file) if file.suffix.lower() == ".csv" else _lines(file)
    header, unit = {}, 1.0
    if rows and str(rows[0].values.get("type", "")).lower() == "header":
        header, unit = _header(rows.pop(0))
    changes, axes, moves, frames, ignored, ends = defaultdict(list), defaultdict(list), [], [], Counter(), {}
    times = []
    for row in rows:
        kind, down, t = _kind(row)
        t *= unit
        if kind in ("key", "button", "pad"):
            name = _input(row, kind)
            changes[name].append((t, _goes_down(row) if down is None else down))
        elif kind == "mouse":
            moves.append((t, row.number("dx", 0.0), row.number("dy", 0.0)))
            if "dx" not in row.values and "dy" not in row.values:
                raise row.wrong("a line of the mouse needs dx and dy, the counts since the line before")
            if not max(map(abs, moves[-1][1:])) < MOST_COUNTS:
                raise row.wrong(f"dx and dy are {moves[-1][1]:g} and {moves[-1][2]:g}, and should be counts of a mouse")
        elif kind == "axis":
            axes[str(row.values.get("axis", row.values.get("name", "")))].append((t, row.known("value")))
        elif kind == "frame":
            number = row.known("frame")
            if number < 0 or number != int(number):
                raise row.wrong(f"frame is {number:g}, and should be a whole number")
            frames.append((number, t))
        elif kind == "video":
            state = str(row.values.get("state", "")).lower()
            if state not in ("start", "stop"):
                raise row.wrong('the state of the video is "start" or "stop"')
            ends[state] = t
        elif kind == "focus":
            if not _goes_down(row):
                changes[""].append((t, False))
        else:
            ignored[kind] += 1
        if kind in ("key", "button", "pad", "mouse", "axis"):
            times.append(t)
    if not (times or frames or ends):
        raise InputError(f"{file} holds no event")
    return Log(
        file=file,
        presses=_presses(changes, max(times, default=0.0)),
        moves=_sorted(moves, 3),
        axes={name: _sorted(values, 2) for name, values in axes.items()},
        frames=np.array(sorted(frames)).reshape(-1, 2),
        start=ends.get("start"),
        stop=ends.get("stop"),
        degrees=header.get("degrees"),
        keys=header.get("keys"),
        sticks=header.get("axes", {}),
        ignored=ignored,
        first=min(times, default=np.nan),
        last=max(times, default=np.nan),
    )


def _lines(file: Path) -> list[Row]:
    """Lines of JSON; one that was cut off at the very end, by a recorder that was killed, is left out."""
    rows, lines = [], tables.read_text(file).split("\n")
    numbered = [(k, line) for k, line in enumerate(lines, 1) if line.strip()]
    for k, line in numbered:
        try:
            values = json.loads(line)
        except ValueError:
            if k == len(lines) and rows:  # no newline after it
                break
            raise InputError(f"{file}, line {k}: this is not JSON") from None
        if not isinstance(values, dict):
            raise InputError(f"{file}, line {k}: this is no JSON object")
        rows.append(Row(file, f"line {k}", {name.lower(): value for name, value in values.items()}))
    return rows


def _header(row: Row) -> tuple[dict, float]:
    values = row.values
    if values.get("version", 1) != 1:
        raise row.wrong(f"version {values['version']} of event logs is not known here")
    unit = values.get("unit", "s")
    if unit not in UNITS:
        raise row.wrong(f"unit is {unit!r}, and should be {', '.join(UNITS)}")
    header = {}
    if "degrees" in values:
        degrees = values["degrees"] if isinstance(values["degrees"], list) else [values["degrees"]] * 2
        if len(degrees) != 2 or not all(isinstance(d, int | float) and np.isfinite(d) for d in degrees):
            raise row.wrong("degrees should be a number, or [pitch, yaw]")
        header["degrees"] = (float(degrees[0]), float(degrees[1]))
    if "keys" in values:
        header["keys"] = key_map(values["keys"], f"{row.file}, {row.place}")
    if "axes" in values:
        header["axes"] = stick_map(values["axes"], f"{row.file}, {row.place}")
    return header, UNITS[unit]


def key_map(table: object, where: str) -> dict[str, tuple[str, ...]]:
    """Inputs that press each column, as a header or a schema's [source.keys] has them; InputError names `where`."""
    if not isinstance(table, dict) or not table:
        raise InputError(f'{where}: keys should say what presses each column, as in {{"forward": ["w"]}}')
    keys = {}
    for column, inputs in table.items():
        inputs = [inputs] if isinstance(inputs, str) else inputs
        if not isinstance(inputs, list) or not all(isinstance(name, str) for name in inputs):
            raise InputError(f"{where}: keys.{column} should be a list of names")
        keys[column] = tuple(name.lower() for name in inputs)
    return keys


def stick_map(table: object, where: str) -> dict[str, dict]:
    """What each axis of a pad does; InputError names `where`."""
    if not isinstance(table, dict):
        raise InputError(f"{where}: axes should say what each axis does")
    for axis, what in table.items():
        pair = what.get("keys") if isinstance(what, dict) else None
        turns = {"yaw", "pitch"} & what.keys() if isinstance(what, dict) else set()
        good = isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair)
        if not (good or (turns and all(isinstance(what[name], int | float) for name in turns))):
            raise InputError(
                f'{where}: axes.{axis} should be {{"keys": [negative, positive]}}, {{"yaw": degrees a second}} or pitch'
            )
    return table


def _kind(row: Row) -> tuple[str, bool | None, float]:
    """The kind of a line, whether something goes down where the kind says it, and its time in the log's unit."""
    kind = row.values.get("type", row.values.get("event"))
    if not isinstance(kind, str):
        raise row.wrong('there is no "type"')
    name = re.sub(r"[^a-z]", "", kind.lower())
    kind, down = _ALIASES.get(name, (name, None))
    column = next((c for c in _TIMES if c in row.values), None)
    if column is None:
        raise row.wrong("the time t is missing")
    return kind, down, row.time(column)


def _input(row: Row, kind: str) -> str:
    value = next(
        (row.values[c] for c in (kind, "key", "button", "name", "code") if row.values.get(c) is not None), None
    )
    if value is None or value == "" or isinstance(value, list | dict):
        raise row.wrong(f"which {kind} is missing")
    name = str(value).strip().lower() if str(value).strip() else "space"
    name = re.sub(r"^(key|button)\.", "", name)
    return name if kind == "key" else f"{'mouse' if kind == 'button' else 'pad'}:{name}"


def _goes_down(row: Row) -> bool:
    for column in ("down", "pressed", "state", "action", "value"):
        value = row.values.get(column)
        if value is None or value == "":
            continue
        if isinstance(value, str) and value.strip().lower() in _DOWN:
            return _DOWN[value.strip().lower()]
        return bool(row.choice(column, 2))
    raise row.wrong('whether it went down is missing: "down" is true or false')


def _presses(changes: Mapping[str, list[tuple[float, bool]]], end: float) -> dict[str, np.ndarray]:
    """Spans from each first `down` to its `up`; one that is up first was held before the log began."""
    released = [t for t, _ in changes.get("", [])]
    presses = {}
    for name, events in changes.items():
        if not name:
            continue
        events = sorted([*events, *((t, False) for t in released)], key=lambda event: event[0])
        spans, since = [], None
        own = min(t for t, _ in changes[name])
        first_is_up = not min(changes[name], key=lambda event: event[0])[1]
        if first_is_up and not any(t <= own for t in released):
            since = -np.inf
        for t, down in events:
            if down and since is None:
                since = t
            elif not down and since is not None:
                spans.append((since, t))
                since = None
        if since is not None:
            spans.append((since, np.inf))
        low, high = min(end, own) - 1e6, end + 1e6  # finite, for sums of durations
        presses[name] = np.clip(np.array(spans).reshape(-1, 2), low, high)
    return presses


def _sorted(values: list[tuple[float, ...]], width: int) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(values, np.float64).reshape(-1, width)
    array = array[np.argsort(array[:, 0], kind="stable")]
    return array[:, 0], array[:, 1:] if width > 2 else array[:, 1]


# --- Joined with a video ----------------------------------------------------------------------------------------------


class EventInput(NamedTuple):
    """A log in the video's clock: `at` are the times in the log's clock of the times `clock` in the video's."""

    log: Log
    columns: Mapping[str, tuple[str, ...]]
    degrees: tuple[float, float]
    clock: Float[np.ndarray, " f"]
    at: Float[np.ndarray, " f"]
    by_time: bool = True

    def between(self, edges):
        log, count = self.log, len(edges) - 1
        edges = warp(edges, self.clock, self.at)
        times, counts = log.moves
        sums = np.concatenate([np.zeros((1, 2)), np.cumsum(counts, axis=0)])[np.searchsorted(times, edges, "left")]
        moved = np.diff(sums, axis=0)
        mouse = np.stack([-moved[:, 1] * self.degrees[0], moved[:, 0] * self.degrees[1]], axis=1)
        presses = dict(log.presses)
        for axis, what in log.sticks.items():
            if axis not in log.axes:
                continue
            for i, name in enumerate(("pitch", "yaw")):
                if name in what:
                    mouse[:, i] += what[name] * np.diff(_integral(*log.axes[axis], edges))
            for column, sign in zip(what.get("keys", ()), (-1, 1), strict=False):
                presses[f"{column}<{axis}"] = _beyond(*log.axes[axis], sign)
        keyboard = np.zeros((count, len(self.columns)), np.uint8)
        for i, (column, inputs) in enumerate(self.columns.items()):
            sticks = [name for name in presses if name.startswith(f"{column}<")]
            for name in (*inputs, *sticks):
                if name in presses:
                    keyboard[:, i] |= held(presses[name], edges)
        nan = np.full((count, 4), np.nan)
        return Track(keyboard, mouse, nan[:, :3], nan, nan[:, :3], np.ones(count, bool))


def _integral(times: np.ndarray, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Integral up to each edge of a value that stays until the next one."""
    sums = np.concatenate([[0.0], np.cumsum(values[:-1] * np.diff(times))])
    k = np.clip(np.searchsorted(times, edges, "right") - 1, 0, len(times) - 1)
    return sums[k] + values[k] * np.maximum(edges - times[k], 0.0)


def _beyond(times: np.ndarray, values: np.ndarray, sign: int) -> Float[np.ndarray, "p 2"]:
    marks = np.concatenate([[False], sign * values > _THRESHOLD, [False]]).astype(int)
    ends = np.append(times, times[-1] + 1e6)
    edges = np.flatnonzero(np.diff(marks))
    return ends[edges].reshape(-1, 2)


def columns_of(log: Log, keys: Mapping[str, tuple[str, ...]] | None) -> dict[str, tuple[str, ...]]:
    """Keyboard columns and what presses each: as given, as the log's header says, or all that the log presses."""
    if keys is not None:
        return dict(keys)
    if log.keys is not None:
        columns = dict(log.keys)
    else:
        known = {name for names in KEYS.values() for name in names}
        used = {column: names for column, names in KEYS.items() if any(name in log.presses for name in names)}
        columns = used | {_column(name): (name,) for name in sorted(log.presses) if name not in known}
    for what in log.sticks.values():
        for column in what.get("keys", ()):
            columns.setdefault(column, ())
    return columns


def left_out(log: Log) -> tuple[str, ...]:
    """Sentences about what no column keeps."""
    used = {name for names in (log.keys or {}).values() for name in names}
    presses = {name: len(spans) for name, spans in log.presses.items() if name not in used and len(spans)}
    sentences = []
    if presses:
        sentences.append("no column has " + ", ".join(f"{name} ({n} times)" for name, n in sorted(presses.items())))
    if log.ignored:
        sentences.append("not read are " + ", ".join(f"{n} lines of {kind}" for kind, n in sorted(log.ignored.items())))
    unused = sorted(set(log.axes) - set(log.sticks))
    if unused:
        sentences.append(f"nothing is said of the axes {', '.join(unused)}")
    return tuple(sentences)


def _column(name: str) -> str:
    return name.replace(":", "_")


def match_log(
    log: Log,
    shown: Shown,
    source: Source,
    columns: Mapping[str, tuple[str, ...]],
    degrees: tuple[float, float] | None,
    offset: float | None,
) -> Matched:
    """Log and video in one clock.

    Raises:
      InputError: what ties the two is missing or cannot be true, or nothing says how far the mouse turns.
    """
    degrees = degrees or log.degrees
    if degrees is None and len(log.moves[0]):
        raise InputError(
            f"{log.file} does not say how many degrees the camera turns for one count of the mouse: "
            '"degrees" in its header, in [source] of the schema, or --degrees'
        )
    at, faults = _tie(log, shown, source, offset)
    held_before = any(spans.size and spans[-1, 1] > at[0] for spans in log.presses.values())
    if (log.last < at[0] and not held_before) or log.first > at[-1]:
        raise InputError(
            f"{log.file} has events from {log.first - at[0]:.3f} to {log.last - at[0]:.3f} s after {source} begins, "
            f"which lasts {at[-1] - at[0]:.3f} s"
        )
    times, clock, slots, fps = at - at[0], shown.clock, shown.slots, shown.fps
    if len(log.frames) >= len(at):  # when the pictures were taken, rather than what the container says of it
        fps, slots = grid(times)
        clock = times if slots is None else slots / fps
    tied = EventInput(log, columns, degrees or (0.0, 0.0), clock, at)
    return Matched(clock, shown.stamps, shown.good, fps, slots is not None, tied, (*faults, *shown.faults))


def _tie(log: Log, shown: Shown, source: Source, offset: float | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """The time of each picture in the log's clock."""
    times, total = shown.times, len(shown.times)
    if offset is not None:
        return times + offset, ()
    numbers, taken = log.frames[:, 0].astype(int), log.frames[:, 1]
    if len(numbers):
        if len(np.unique(numbers)) < len(numbers):
            raise InputError(f"{log.file} has two lines for one frame")
        if np.any(np.diff(taken) <= 0):
            k = int(np.flatnonzero(np.diff(taken) <= 0)[0])
            raise InputError(f"{log.file}: frame {numbers[k + 1]} was taken before frame {numbers[k]}")
        if numbers[-1] >= total and shown.slots is not None and numbers[-1] == shown.slots[-1]:
            # Pictures are missing in the video, and its time stamps say which.
            return np.interp(shown.slots, numbers, taken), ()
        if numbers[-1] >= total:
            # A recorder that was killed may have logged pictures that never reached the file.
            lost = numbers[-1] + 1 - total
            if not np.array_equal(numbers, np.arange(len(numbers))) or lost > 0.5 * total:
                raise InputError(f"{log.file} has a frame {numbers[-1]}, and {source} has {total} frames")
            return taken[:total], (f"{source} ends {lost} frames before {log.file}",)
        if np.array_equal(numbers, np.arange(total)):
            # A container may say that pictures came evenly when they did not, but not by that much.
            if total > 1 and not 1 / MOST_UNEVEN < (speed := (taken[-1] - taken[0]) / times[-1]) < MOST_UNEVEN:
                raise _other_clock(log, source, speed)
            return taken, ()
        if len(numbers) > 1:
            return _line(log, source, times[numbers], taken, times), ()
        return times + (taken[0] - times[numbers[0]]), ()
    if log.start is None:
        raise InputError(
            f"{log.file} does not say when the video began: it needs lines of the type frame or video, or --offset"
        )
    length = times[-1] + 1.0 / shown.fps
    if log.stop is None:
        return times + log.start, ()
    late = log.stop - log.start - length
    if MAX_DRIFT * length < abs(late) < _LATENCY:
        sentence = f"{log.file} says that the video lasts {late:+.3f} s more than {source} does: only its start counts"
        return times + log.start, (sentence,)
    return _line(log, source, np.array([0.0, length]), np.array([log.start, log.stop]), times), ()


def _line(log: Log, source: Source, video: np.ndarray, clock: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Times in the log's clock by offset and drift, the straight line through all pairs."""
    drift, offset = np.polyfit(video, clock, 1)
    if abs(drift - 1.0) > MAX_DRIFT:
        raise _other_clock(log, source, drift)
    return offset + drift * times


def _other_clock(log: Log, source: Source, speed: float) -> InputError:
    return InputError(
        f"the clock of {log.file} runs {speed:.3f} times as fast as the time stamps of {source}: "
        "one of them is not of this recording, or not in this unit"
    )
