"""Action scripts in: what people write about keys and mouse, as one row per frame.

Row r is applied at frame r and produces frame r + 1; frame 0 is the picture.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from mgjax.config import ControlConfig, WorldConfig
from mgjax.errors import InputError

ACTION_HELP = """\
what the player does: a script, the path of one (.txt, .json, .csv), or `bench`.
A script is a list of KEYS:FRAMES, as in "w:24 wd:12 w+right:36 none:12". KEYS are letters held together (wd), or words
joined by +: the names of the world's keys (forward) and of the mouse's directions (up, down, left, right; right*0.5 is
half as fast). left and right are always the mouse: a key of that name is written by its letter (a, d). `none` or `-`
holds nothing. A .txt is such a script, with # comments. A .json is a list with an object per frame,
{"keys": "wd", "mouse": [pitch, yaw]} or {"keyboard": [1, 0, 0, 1], "mouse": [0, 0.1]}, or one object of two lists,
{"keyboard": [...], "mouse": [...]}. A .csv has a line per frame under the names of the world's keys, pitch and yaw.
`bench` is a random composite as in the paper, drawn from the seed. After the last row nothing is held."""

MAX_ROWS = 1_000_000  # eleven hours at 25 frames per second
_MAX_BYTES = 2**28
_MAX_STEPS = 100  # of the mouse, in one frame; what a model makes of more is noise
_DIRECTIONS = {"up": (1, 0), "down": (-1, 0), "right": (0, 1), "left": (0, -1)}
_MOUSE = ("pitch", "yaw")
_NOTHING = ("-", "none")
_OPPOSITES = ({"forward", "back"}, {"left", "right"})
_ITEM = re.compile(r"([^:]+):([0-9]+)")
_BENCH_ROWS = 596  # the paper's composites have 597 frames
_BENCH_HOLD = 12  # rows that the released demo holds one action

Keyboard = Float32[np.ndarray, "n a"]
Mouse = Float32[np.ndarray, "n 2"]


def load_actions(
    spec: str | Path, cfg: WorldConfig, num_rows: int | None = None, seed: int = 0
) -> tuple[Keyboard, Mouse]:
    """The rows that `spec` describes (`ACTION_HELP`), cut or filled with idle rows to `num_rows` if that is given.

    Returns:
        keyboard [n, a] in 0..1 and mouse [n, 2] (pitch, yaw; up and right positive; zero in a world without a mouse).

    Raises:
        InputError: a file or script cannot be read as actions of this world. The sentence names the place.
    """
    spec = os.fspath(spec)
    suffix = Path(spec).suffix.lower()
    if spec.strip() == "bench":
        keyboard, mouse = bench_actions(cfg, _BENCH_ROWS if num_rows is None else num_rows, seed)
    elif suffix in _READERS:
        text = _read(spec)
        try:
            keyboard, mouse = _READERS[suffix](text, cfg)
        except InputError as error:
            raise InputError(f"{spec}: {error}") from None
    elif os.path.exists(spec):
        raise InputError(f"the actions {spec} are in no format that can be read ({', '.join(_READERS)})")
    else:
        keyboard, mouse = _script(spec, cfg)
    if num_rows is None:
        return keyboard, mouse
    return _fit(keyboard, num_rows, idle_row(cfg.control)), _fit(mouse, num_rows, np.zeros(2, np.float32))


def parse_script(text: str, control: ControlConfig, *, has_mouse: bool = True) -> tuple[Keyboard, Mouse]:
    """The rows of a script such as "w:24 wd:12 w+right:36".

    Raises:
        InputError: an item is not KEYS:FRAMES of this world. The sentence names the item and its line.
    """
    lines = text.splitlines()
    rows, counts = [], []
    for number, line in enumerate(lines, 1):
        for item in line.split("#")[0].split():
            where = f"action {item[:40]!r}" + (f" in line {number}" if len(lines) > 1 else "")
            match = _ITEM.fullmatch(item)
            if match is None:
                raise InputError(f"{where} is not KEYS:FRAMES, such as w:24")
            counts.append(_frames(match[2], where))
            rows.append(_held(match[1].lower(), control, has_mouse, where))
    if not rows:
        raise InputError("the action script is empty: write KEYS:FRAMES, such as w:24")
    if sum(counts) > MAX_ROWS:
        raise InputError(f"the action script has {sum(counts)} frames, and at most {MAX_ROWS} can be made at once")
    keyboard, mouse = (np.stack(part).repeat(counts, axis=0) for part in zip(*rows, strict=True))
    return keyboard, mouse


def bench_actions(cfg: WorldConfig, num_rows: int, seed: int) -> tuple[Keyboard, Mouse]:
    """The paper's random composite: every 12 rows another action, drawn evenly from GameWorld Score's list.

    The list, for the keys of this world: each key, each two keys that do not undo each other, each direction of the
    mouse, each key with each direction, and nothing. A vehicle without keys to the sides is steered by yaw alone. In a
    world with an idle column: its columns. Row i of the list is drawn by `numpy.random.default_rng(seed).integers`.
    """
    control = cfg.control
    keys, nothing, still = list(np.eye(len(control.columns), dtype=np.float32)), idle_row(control), np.zeros(2)
    if control.idle is not None:
        actions = [(row, still) for row in keys]
    else:
        pairs = itertools.combinations(range(len(keys)), 2)
        doubles = [keys[i] + keys[j] for i, j in pairs if {control.columns[i], control.columns[j]} not in _OPPOSITES]
        tilts = (-1, 0, 1) if "left" in control.columns else (0,)
        turns = [
            control.mouse_step * np.array([p, y]) for p in tilts for y in (-1, 0, 1) if _has_mouse(cfg) and (p or y)
        ]
        actions = [(row, still) for row in (nothing, *keys, *doubles)]
        actions += [(row, turn) for row in (nothing, *keys) for turn in turns]
    drawn = np.random.default_rng(seed).integers(len(actions), size=-(-num_rows // _BENCH_HOLD))
    held = drawn.repeat(_BENCH_HOLD)[:num_rows]
    keyboard, mouse = (np.stack(part).astype(np.float32) for part in zip(*actions, strict=True))
    return keyboard[held], mouse[held]


def idle_row(control: ControlConfig) -> Float32[np.ndarray, " a"]:
    """The keyboard row of a player who holds nothing."""
    row = np.zeros(len(control.columns), np.float32)
    if control.idle is not None:
        row[control.idle] = 1
    return row


def parse_keys(text: str, cfg: WorldConfig) -> tuple[Float32[np.ndarray, " a"], Float32[np.ndarray, " m"]]:
    """The keyboard row and the mouse row (of this world's width) of keys held together, such as "w+right".

    Raises:
        InputError: they are no keys of this world.
    """
    keyboard, mouse = _held(text.strip().lower() or "-", cfg.control, _has_mouse(cfg), f"{text[:40]!r}")
    return keyboard, mouse[: cfg.dit.action.mouse_dim]


def _fit(rows: np.ndarray, length: int, idle: np.ndarray) -> np.ndarray:
    """`rows` cut to `length`, or filled up with `idle`."""
    rows = rows[:length]
    return np.concatenate([rows, np.tile(idle, (length - len(rows), 1))]).astype(np.float32)


def _has_mouse(cfg: WorldConfig) -> bool:
    return cfg.dit.action.mouse_dim > 0


def _frames(digits: str, where: str) -> int:
    count = int(digits[:9])
    if count == 0:
        raise InputError(f"{where} lasts for no frame")
    if len(digits) > 9 or count > MAX_ROWS:
        raise InputError(f"{where} lasts for more than the {MAX_ROWS} frames that can be made at once")
    return count


def _held(text: str, control: ControlConfig, has_mouse: bool, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The keyboard row [a] and mouse row [2] of keys held together, such as "wd" or "forward+right*0.5"."""
    keyboard, mouse = np.zeros(len(control.columns), np.float32), np.zeros(2, np.float32)
    for word in [] if text in _NOTHING else text.split("+"):
        name, star, strength = word.partition("*")
        if has_mouse and name in _DIRECTIONS:
            turn = np.array(_DIRECTIONS[name], np.float32)
            if (mouse * turn).any():
                raise InputError(f"{where} turns the mouse twice along the same axis")
            mouse += turn * np.float32(control.mouse_step) * _strength(strength if star else "1", where)
        elif word in control.columns:
            keyboard[control.columns.index(word)] = 1
        elif word and all(letter in control.keys for letter in word):
            for letter in word:
                keyboard[control.keys.index(letter)] = 1
        else:
            known = ", ".join(f"{key} ({name})" for key, name in zip(control.keys, control.columns, strict=True))
            mice = f"and the mouse turns {', '.join(_DIRECTIONS)}" if has_mouse else "and no mouse"
            raise InputError(f"{where} holds {word[:40]!r}, which is nothing here: there are the keys {known} {mice}")
    return _one_hot(keyboard, control, where), mouse


def _strength(text: str, where: str) -> float:
    if re.fullmatch(r"[0-9]{0,3}(\.[0-9]+)?", text) is None or not 0 < float(text or 0) <= _MAX_STEPS:
        raise InputError(f"{where} turns the mouse by {text[:40]!r}: not a number between 0 and {_MAX_STEPS}")
    return float(text)


def _one_hot(keyboard: np.ndarray, control: ControlConfig, where: str) -> np.ndarray:
    """`keyboard`, in a world with an idle column checked to be, or made, one-hot."""
    if control.idle is None:
        return keyboard
    if not keyboard.any():
        return idle_row(control)
    if not (keyboard.max() == 1 and np.count_nonzero(keyboard) == 1):
        raise InputError(f"{where} holds several keys or half of one, and this world takes exactly one key at a time")
    return keyboard


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"the actions {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise InputError(f"the actions {path} are not text") from None
    if len(data) > _MAX_BYTES:
        raise InputError(f"the actions {path} have more than {_MAX_BYTES} bytes")
    return text


def _script(text: str, cfg: WorldConfig) -> tuple[Keyboard, Mouse]:
    return parse_script(text, cfg.control, has_mouse=_has_mouse(cfg))


def _json(text: str, cfg: WorldConfig) -> tuple[Keyboard, Mouse]:
    """Rows from a list of objects, or from an object of lists."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"this is not JSON: {error}") from None
    if isinstance(data, dict):
        lists = list(data.values())
        if not all(isinstance(rows, list) for rows in lists):
            raise InputError("an object of actions holds a list for each of keyboard and mouse")
        if len({len(rows) for rows in lists}) > 1:
            raise InputError(f"the lists {' and '.join(data)} differ in length")
        data = [dict(zip(data, row, strict=True)) for row in zip(*lists, strict=True)]
    if not isinstance(data, list):
        raise InputError("actions are a list of rows, or an object of lists")
    return _stack([_json_row(row, cfg, f"row {number}") for number, row in enumerate(data)])


def _json_row(row: object, cfg: WorldConfig, where: str) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(row, dict) or not row or not row.keys() <= {"keys", "keyboard", "mouse"}:
        raise InputError(f'{where} is not an object with "keys" or "keyboard", and "mouse"')
    if row.keys() >= {"keys", "keyboard"}:
        raise InputError(f'{where} has both "keys" and "keyboard"')
    keyboard, mouse = idle_row(cfg.control), np.zeros(2, np.float32)
    if "keys" in row:
        if not isinstance(row["keys"], str):
            raise InputError(f'{where} has "keys" that are no string')
        keyboard, mouse = _held(row["keys"].lower() or "-", cfg.control, _has_mouse(cfg), where)
    if "keyboard" in row:
        keyboard = _keyboard(row["keyboard"], cfg, where)
    if "mouse" in row:
        if mouse.any():
            raise InputError(f'{where} turns the mouse in "keys" and in "mouse"')
        mouse = _mouse(row["mouse"], cfg, where)
    return keyboard, mouse


def _csv(text: str, cfg: WorldConfig) -> tuple[Keyboard, Mouse]:
    """Rows under a header with names of keyboard columns, pitch and yaw; what is not there is zero."""
    names, rows = (*cfg.control.columns, *_MOUSE), []
    lines = csv.reader(io.StringIO(text), strict=True)
    try:
        header = [name.strip().lower() for name in next(lines, [])]
        for name in header:
            if name not in names or header.count(name) > 1:
                problem = "is there twice" if name in names else f"is none of {', '.join(names)}"
                raise InputError(f"the column {name!r} in line 1 {problem}")
        for fields in lines:
            where = f"line {lines.line_num}"
            if not fields:
                continue
            if len(fields) != len(header):
                raise InputError(f"{where} has {len(fields)} fields, and the header {len(header)}")
            values = dict.fromkeys(names, 0.0) | {n: _number(f, where, n) for n, f in zip(header, fields, strict=True)}
            keyboard = _keyboard([values[name] for name in cfg.control.columns], cfg, where)
            rows.append((keyboard, _mouse([values[name] for name in _MOUSE], cfg, where)))
    except csv.Error as error:
        raise InputError(f"line {lines.line_num} is not CSV: {error}") from None
    return _stack(rows)


def _number(field: str, where: str, name: str) -> float:
    try:
        return float(field)
    except ValueError:
        raise InputError(f"{where}: {name} is {field.strip()[:40]!r}, not a number") from None


def _keyboard(values: object, cfg: WorldConfig, where: str) -> np.ndarray:
    return _one_hot(_bounded(values, cfg.control.columns, 0, 1, where), cfg.control, where)


def _mouse(values: object, cfg: WorldConfig, where: str) -> np.ndarray:
    if not _has_mouse(cfg):
        if isinstance(values, list) and all(value == 0 for value in values):
            return np.zeros(2, np.float32)
        raise InputError(f"{where} turns the mouse, and this world has none")
    most = _MAX_STEPS * cfg.control.mouse_step
    return _bounded(values, _MOUSE, -most, most, where)


def _bounded(values: object, names: tuple[str, ...], low: float, high: float, where: str) -> np.ndarray:
    if not isinstance(values, list) or len(values) != len(names):
        found = f"{len(values)} values" if isinstance(values, list) else "no list"
        raise InputError(f"{where} has {found} in place of {len(names)} numbers ({', '.join(names)})")
    for name, value in zip(names, values, strict=True):
        if not (isinstance(value, int | float) and low <= value <= high):  # not a number compares false, too
            raise InputError(f"{where}: {name} is {str(value)[:40]}, not a number from {low:g} to {high:g}")
    return np.array(values, np.float32)


def _stack(rows: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Keyboard, Mouse]:
    if not rows:
        raise InputError("there is no row of actions in it")
    if len(rows) > MAX_ROWS:
        raise InputError(f"there are {len(rows)} rows, and at most {MAX_ROWS} can be made at once")
    keyboard, mouse = (np.stack(part) for part in zip(*rows, strict=True))
    return keyboard, mouse


_READERS = {".txt": _script, ".json": _json, ".csv": _csv}
