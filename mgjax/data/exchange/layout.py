"""How a program writes its rows: the [source] table of a schema file, which only the import reads.

    [source]
    axes = ["forward", "right", "up"]    # where its x, y and z point; Unreal's are these, which are left-handed
    unit = "cm"                          # of positions and velocities: m, cm, mm, in, ft, or metres as a number
    turns = ["up", "right"]              # where its pitch and yaw grow; these are the defaults
    mouse = false                        # of a game that has none: it rests in every row
    degrees = 0.022                      # that the camera turns for one count of the mouse, or [pitch, yaw]

    [source.columns]                     # what stands for our names; nested JSON has dots
    x = "vehicle.position.x"
    forward = "vehicle.throttle > 0.1"   # a key may be a comparison of a column with a number

    [source.keys]                        # vpt and events: what presses each column
    attack = ["mouse:left"]

    [source.sticks]                      # events: what a pad's axes do
    right_x = { yaw = 120 }

Unknown poses are left unknown. Rotations are those of a camera that looks along the axis called forward when it is
not turned, which is what Unreal (forward, right, up), Unity (right, up, forward), GTA V (right, forward, up) and
OpenGL (right, up, back) mean by theirs.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from mgjax.data import camera
from mgjax.data.exchange.events import key_map, stick_map
from mgjax.data.exchange.tables import Row
from mgjax.errors import InputError

# The clip's axes: x forward, y left, z up.
_DIRECTIONS = {
    "forward": (1, 0, 0), "back": (-1, 0, 0), "left": (0, 1, 0), "right": (0, -1, 0),
    "up": (0, 0, 1), "down": (0, 0, -1),
}  # fmt: skip
_METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254, "ft": 0.3048}
_COMPARISON = re.compile(r"\s*(.+?)\s*(>=|<=|==|!=|>|<)\s*([-+.\deE]+)\s*")
_COMPARE = {
    ">": np.greater, "<": np.less, ">=": np.greater_equal, "<=": np.less_equal, "==": np.equal, "!=": np.not_equal,
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """The [source] table (fields as in the module's example)."""

    axes: tuple[str, str, str] = ("forward", "left", "up")
    metres: float = 1.0
    turns: tuple[str, str] = ("up", "right")
    mouse: bool = True
    degrees: tuple[float, float] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, tuple[str, ...]] | None = None
    sticks: Mapping[str, Mapping] = field(default_factory=dict)

    @property
    def matrix(self) -> np.ndarray:
        """[3, 3]: from a vector in their axes to the clip's."""
        return np.array([_DIRECTIONS[name] for name in self.axes], float).T

    def vector(self, vectors: np.ndarray) -> np.ndarray:
        """Positions or velocities [n, 3] in the clip's axes and metres."""
        return np.asarray(vectors, float) @ self.matrix.T * self.metres

    def rotation(self, quaternions: np.ndarray) -> np.ndarray:
        """Quaternions [n, 4] (w, x, y, z) in the clip's axes; a mirrored frame turns the other way round."""
        matrix = self.matrix
        turned = np.linalg.det(matrix) * quaternions[:, 1:] @ matrix.T
        return np.concatenate([quaternions[:, :1], turned], axis=1)

    def angles(self, pitch: np.ndarray, yaw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Degrees, up and right positive."""
        return pitch * (1 if self.turns[0] == "up" else -1), yaw * (1 if self.turns[1] == "right" else -1)

    def look(self, pitch: np.ndarray, yaw: np.ndarray, roll: np.ndarray) -> np.ndarray:
        """Quaternions [n, 4] of cameras with these angles in degrees; roll is positive when the head tilts right."""
        half = np.deg2rad(roll) / 2
        rolled = np.stack([np.cos(half), np.sin(half), np.zeros_like(half), np.zeros_like(half)], axis=-1)
        pitch, yaw = self.angles(pitch, yaw)
        return camera.multiply(camera.from_yaw_pitch(yaw, pitch), rolled)

    def rename(self, rows: list[Row]) -> list[Row]:
        """The rows with their columns under our names, too."""
        wanted = {name: _column(text) for name, text in self.columns.items()}
        return [row._replace(values=row.values | {n: get(row) for n, get in wanted.items()}) for row in rows]


def _column(text: str) -> Callable[[Row], object]:
    comparison = _COMPARISON.fullmatch(text)
    if comparison is None:
        name = text.strip().lower()

        def plain(row: Row) -> object:
            if name not in row.values:
                raise row.wrong(f"there is no {name}")
            return row.values[name]

        return plain
    name, sign, number = comparison[1].lower(), comparison[2], float(comparison[3])
    return lambda row: int(_COMPARE[sign](row.known(name), number))


def loads(text: str, where: str) -> Layout:
    """The [source] table of a schema's text; InputError names the file `where` and the key that is wrong."""
    try:
        data = tomllib.loads(text).get("source", {})
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where} is not TOML: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{where}: [source] should be a table")
    known = {"axes", "unit", "turns", "mouse", "degrees", "columns", "keys", "sticks"}
    for key in data:
        if key not in known:
            raise InputError(f"{where}: there is no key source.{key}; there are {', '.join(sorted(known))}")

    def bad(key: str, wish: str) -> InputError:
        return InputError(f"{where}: source.{key} is {data[key]!r}, and should be {wish}")

    options = {}
    if "axes" in data:
        axes = data["axes"]
        names = isinstance(axes, list) and len(axes) == 3 and all(name in tuple(_DIRECTIONS) for name in axes)
        if not names or abs(np.linalg.det(np.array([_DIRECTIONS[name] for name in axes]))) != 1:
            raise bad("axes", f"where x, y and z point, three of {', '.join(_DIRECTIONS)}")
        options["axes"] = tuple(axes)
    if "unit" in data:
        unit = data["unit"]
        number = isinstance(unit, int | float) and not isinstance(unit, bool) and 0 < unit < np.inf
        if not number and unit not in tuple(_METRES):  # which may be a list, and no key
            raise bad("unit", f"{', '.join(_METRES)}, or metres as a number")
        options["metres"] = float(unit) if number else _METRES[unit]
    if "turns" in data:
        if data["turns"] not in [[p, y] for p in ("up", "down") for y in ("left", "right")]:
            raise bad("turns", 'where pitch and yaw grow, such as ["up", "right"]')
        options["turns"] = tuple(data["turns"])
    if "mouse" in data:
        if not isinstance(data["mouse"], bool):
            raise bad("mouse", "true, or false of a game that has none")
        options["mouse"] = data["mouse"]
    if "degrees" in data:
        degrees = data["degrees"] if isinstance(data["degrees"], list) else [data["degrees"]] * 2
        if len(degrees) != 2 or not all(isinstance(d, int | float) and np.isfinite(d) for d in degrees):
            raise bad("degrees", "a number, or [pitch, yaw]")
        options["degrees"] = tuple(map(float, degrees))
    if "columns" in data:
        columns = data["columns"]
        if not isinstance(columns, dict) or not all(isinstance(text, str) for text in columns.values()):
            raise bad("columns", "a table of names")
        options["columns"] = {name.lower(): text for name, text in columns.items()}
    if "keys" in data:
        options["keys"] = key_map(data["keys"], f"{where}, [source]")
    if "sticks" in data:
        options["sticks"] = stick_map(data["sticks"], f"{where}, [source]")
    return Layout(**options)
