"""The pressed keys and the mouse, drawn over a frame: keycaps at the lower left, a dial at the lower right.

The layers are premultiplied RGBA. Everything that does not depend on the row is drawn once per frame size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8

from mgjax.config import ControlConfig
from mgjax.io.actions import idle_row
from mgjax.types import Actions

_READABLE = 480  # pixels of width from which controls can be read
_DARK, _LIGHT, _ACCENT = (14, 16, 20), (255, 255, 255), (255, 200, 64)
_CLUSTER = {"w": (0, 1), "a": (1, 0), "s": (1, 1), "d": (1, 2)}  # row and column on a keyboard
_DIAL_STEPS = 32  # places of the knob from the centre to the rim
_FINE = 8  # times as large a shape is drawn, which gives it smooth edges
_SMALLEST_WORD = 9  # pixels of letter height below which a name becomes its key's letter


class _Keys(NamedTuple):
    """All keycaps of a world, released and pressed, and the keyboard column that each pixel belongs to."""

    top: int
    left: int
    released: Float32[np.ndarray, "h w 4"]
    pressed: Float32[np.ndarray, "h w 4"]
    column: np.ndarray


def draw_controls(
    frame: UInt8[np.ndarray, "h w 3"],
    keyboard: Float[np.ndarray, " a"],
    mouse: Float[np.ndarray, " m"],
    control: ControlConfig,
) -> UInt8[np.ndarray, "h w 3"]:
    """A copy of `frame` that shows one row of controls; without a dial where the row has no mouse (m = 0)."""
    frame = frame.copy()
    height, width = frame.shape[:2]
    keys = _keys(control, height, width)
    held = np.clip(keyboard, 0, 1).astype(np.float32)[keys.column][..., None]
    _blend(frame, keys.top, keys.left, keys.released + held * (keys.pressed - keys.released))
    if len(mouse):
        pitch, yaw = np.asarray(mouse, np.float64) / control.mouse_step
        length = max(1.0, float(np.hypot(pitch, yaw)))
        dial = _dial(_unit(height, width), *(round(float(v) / length * _DIAL_STEPS) for v in (pitch, yaw)))
        margin = _margin(height, width)
        _blend(frame, height - margin - len(dial), width - margin - len(dial), dial)
    return frame


def drawn(
    frames: Iterable[UInt8[np.ndarray, "h w 3"]],
    rows: Actions,
    control: ControlConfig,
    scale: int,
    overlay: bool = True,
    *,
    first: bool,
) -> Iterator[UInt8[np.ndarray, "h2 w2 3"]]:
    """The frames, enlarged, and with `overlay` the controls [n, *] that made them: row r is seen on frame r + 1. Where
    the `first` of them is the picture, it is before any row."""
    held = list(zip(*rows, strict=True))
    if first:
        held = [(idle_row(control), np.zeros(rows.mouse.shape[1], np.float32)), *held]
    for frame, controls in zip(frames, held, strict=True):
        frame = enlarge(frame, scale)
        yield draw_controls(frame, *controls, control) if overlay else frame


def enlargement(width: int) -> int:
    """How many times as large a picture is shown so that the controls on it can be read."""
    return max(1, round(_READABLE / width))


def enlarge(frame: UInt8[np.ndarray, "h w 3"], times: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """`frame` with every pixel as a square of `times` x `times`."""
    return frame if times == 1 else frame.repeat(times, axis=0).repeat(times, axis=1)


def _unit(height: int, width: int) -> int:
    """Side of a keycap in pixels."""
    return max(12, round(0.095 * min(height, 0.6 * width)))


def _margin(height: int, width: int) -> int:
    return max(3, _unit(height, width) // 3)


@functools.lru_cache(maxsize=16)
def _keys(control: ControlConfig, height: int, width: int) -> _Keys:
    """Keycaps as they lie on a keyboard; in a world with other keys than WASD a row of caps with the names."""
    unit, margin = _unit(height, width), _margin(height, width)
    gap, count = max(1, unit // 9), len(control.keys)
    if control.keys and set(control.keys) <= _CLUSTER.keys():
        places = np.array([_CLUSTER[key] for key in control.keys])
        places -= places.min(axis=0)
        cap, labels, letters = unit, [key.upper() for key in control.keys], round(0.55 * unit)
    else:
        places = np.stack([np.zeros(count, int), np.arange(count)], axis=1)
        cap = max(2, min(3 * unit, (width - 2 * margin + gap) // count - gap))
        labels, letters = _names(control, cap, unit)
    rows, columns = places.max(axis=0) + 1
    released = np.zeros((rows * (unit + gap) - gap, columns * (cap + gap) - gap, 4), np.float32)
    pressed, owner = released.copy(), np.zeros(released.shape[:2], int)
    for index, (row, column) in enumerate(places):
        top, left = row * (unit + gap), column * (cap + gap)
        box = np.s_[top : top + unit, left : left + cap]
        released[box], pressed[box] = _keycap(unit, cap, _text(unit, cap, labels[index], letters))
        owner[box] = index
    return _Keys(height - margin - len(released), margin, released, pressed, owner)


def _names(control: ControlConfig, cap: int, unit: int) -> tuple[list[str], int]:
    """Labels of wide caps and their letters' height: the columns' names where they can be read, else the keys."""
    names = [name.replace("_", "\n") for name in control.columns]
    widest = max(_font(100).getlength(line) for name in names for line in name.split("\n")) / 100
    letters = int(min(0.38 * unit, 0.86 * cap / widest))
    if letters >= _SMALLEST_WORD:
        return names, letters
    return [key.upper() for key in control.keys], round(0.55 * min(unit, cap))


def _keycap(height: int, width: int, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One cap, released (dark glass) and pressed (lit), each [height, width, 4]."""
    radius, line = 0.2 * min(height, width), max(1.0, height / 26)
    outside, inside = (0, 0, width, height), (line, line, width - line, height - line)
    cap = _shape(height, width, lambda pen: pen.rectangle(outside, radius))
    rim = cap - _shape(height, width, lambda pen: pen.rectangle(inside, max(0.0, radius - line)))
    empty = np.zeros((height, width, 4), np.float32)
    released = _over(_over(empty, cap, _DARK, 0.6), rim, _LIGHT, 0.5)
    pressed = _over(empty, cap, _ACCENT, 0.95)
    return _over(released, text, _LIGHT, 0.95), _over(pressed, text, _DARK, 1.0)


@functools.lru_cache(maxsize=128)
def _dial(unit: int, pitch: int, yaw: int) -> Float32[np.ndarray, "h w 4"]:
    """The dial with its knob pushed `pitch` up and `yaw` to the right, in 1/32 of the way to the rim."""
    rim = 1.05 * unit
    side = 2 * int(np.ceil(rim))
    line, knob, centre = max(1.0, unit / 26), 0.24 * unit, side / 2
    way = rim - knob - 2 * line
    x, y = centre + yaw / _DIAL_STEPS * way, centre - pitch / _DIAL_STEPS * way

    def layer(draw):
        return _shape(side, side, draw)

    face = layer(lambda pen: pen.circle((centre, centre), rim))
    hole = layer(lambda pen: pen.circle((centre, centre), rim - line))
    dial = _over(_over(np.zeros((side, side, 4), np.float32), face, _DARK, 0.6), face - hole, _LIGHT, 0.5)
    for dy, dx in ((way, line / 2), (line / 2, way)):
        bar = (centre - dx, centre - dy, centre + dx, centre + dy)
        dial = _over(dial, layer(lambda pen, bar=bar: pen.rectangle(bar)), _LIGHT, 0.15)
    if not (pitch or yaw):
        return _over(dial, layer(lambda pen: pen.circle((centre, centre), 0.7 * knob)), _LIGHT, 0.6)
    dial = _over(dial, layer(lambda pen: pen.line((centre, centre, x, y), 2.4 * line)), _ACCENT, 0.8)
    return _over(dial, layer(lambda pen: pen.circle((x, y), knob)), _ACCENT, 0.95)


class _Pen:
    """Pillow's drawing of white shapes on a picture that is `_FINE` times as large."""

    def __init__(self, draw: Any):
        self._draw = draw

    def rectangle(self, box: tuple[float, ...], radius: float = 0.0) -> None:
        left, top, right, bottom = (_FINE * value for value in box)
        if right - left > 1 and bottom - top > 1:
            self._draw.rounded_rectangle((left, top, right - 1, bottom - 1), _FINE * radius, fill=255)

    def circle(self, centre: tuple[float, float], radius: float) -> None:
        x, y = centre
        low, high = (x - radius, y - radius), (x + radius, y + radius)
        self._draw.ellipse([*(_FINE * v for v in low), *(_FINE * v - 1 for v in high)], fill=255)

    def line(self, ends: tuple[float, ...], width: float) -> None:
        self._draw.line([_FINE * value for value in ends], fill=255, width=round(_FINE * width))


def _shape(height: int, width: int, draw: Callable[[_Pen], None]) -> Float32[np.ndarray, "h w"]:
    """How much of each pixel a shape covers."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (_FINE * width, _FINE * height))
    draw(_Pen(ImageDraw.Draw(image)))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), np.float32) / 255


def _over(layer: np.ndarray, coverage: np.ndarray, colour: tuple[int, int, int], opacity: float) -> np.ndarray:
    """`layer` with a shape of one colour painted over it."""
    alpha = (coverage * opacity)[..., None]
    return layer * (1 - alpha) + alpha * np.array([*colour, 1], np.float32)


def _font(size: int):
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _text(height: int, width: int, text: str, size: int) -> Float32[np.ndarray, "h w"]:
    """Coverage of centred text, of one or more lines; all texts of as many lines stand on the same ones."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    options = {"font": _font(size), "align": "center", "spacing": size / 8}
    left, _, right, _ = draw.multiline_textbbox((0, 0), text, **options)
    _, top, _, bottom = draw.multiline_textbbox((0, 0), "\n".join("H" for _ in text.split("\n")), **options)
    draw.multiline_text(((width - left - right) / 2, (height - top - bottom) / 2), text, fill=255, **options)
    return np.asarray(image, np.float32) / 255


def _blend(frame: np.ndarray, top: int, left: int, layer: np.ndarray) -> None:
    """Paints a premultiplied layer into `frame`; what does not fit is cut."""
    top, left = max(0, top), max(0, left)
    place = frame[top : top + layer.shape[0], left : left + layer.shape[1]]
    layer = layer[: place.shape[0], : place.shape[1]]
    place[:] = (place * (1 - layer[..., 3:]) + layer[..., :3] + 0.5).astype(np.uint8)
