"""A level of this project's own: rooms in a square, joined by doorways, each with walls, floor and post of its colours.

It is made for small worlds: nothing in it is noise, every wall is a ramp of colours from end to end, so that a picture
tells where it was taken, and the same picture comes again wherever the player stands there again. Every second stripe
of a wall is lighter and floors are chequered: whoever moves sees it, also with a wall before his eyes. The level is
written as a WAD with its own palette and textures; nothing in it comes from another game. Format: a PWAD of lumps, the
map as UDMF text (its nodes are built by the game), textures as PNG between TX_START and TX_END.
"""

from __future__ import annotations

import colorsys
import io
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

NAME = "rooms"
SIDE, WALL, DOOR, POST, HEIGHT = 384, 32, 128, 64, 96  # map units; the player is 32 wide and 56 high
STRIPES = 12  # plain stripes of a wall's ramp
CHECK = 64  # side of a floor's squares
_HUES = (0.00, 0.30, 0.58, 0.12)  # red, green, blue and yellow rooms
_GRID = 2


Colour = tuple[int, int, int]


class Line(NamedTuple):
    """A wall or an opening; the sector `front` lies to the right of the way from `start` to `end`."""

    start: tuple[int, int]
    end: tuple[int, int]
    front: int
    back: int | None = None  # the sector behind an opening
    texture: str = "-"
    offset: int = 0  # of the texture, units


def wad() -> bytes:
    """The level as a WAD whose only map is MAP01; the same bytes every time."""
    colours: dict[Colour, int] = {}
    textures = [(name, _png(pixels, colours)) for name, pixels in _textures()]
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colours)] = list(colours)
    lumps = [("PLAYPAL", palette.tobytes() * 14), ("TX_START", b"")]
    lumps += [*textures, ("TX_END", b""), ("MAP01", b""), ("TEXTMAP", _text().encode()), ("ENDMAP", b"")]
    body, directory = b"", b""
    for name, data in lumps:
        directory += struct.pack("<II8s", 12 + len(body), len(data), name.encode())
        body += data
    return struct.pack("<4sII", b"PWAD", len(lumps), 12 + len(body)) + body + directory


def _colour(hue: float, lightness: float, saturation: float) -> Colour:
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue % 1.0, lightness, saturation))
    return red, green, blue


def _textures() -> Iterator[tuple[str, np.ndarray]]:
    """Name and pixels [h, w, 3] of every texture, a unit each; walls go clockwise from west."""
    for room, hue in enumerate(_HUES):
        for wall in range(4):
            turn, light = ((-0.07, 0.40), (0.0, 0.66), (0.05, 0.50), (0.0, 0.30))[wall]
            places = enumerate(np.linspace(-1, 1, STRIPES))
            lights = [(x, light + 0.08 * x + (0.07 if i % 2 else -0.07)) for i, x in places]
            yield f"W{room}{wall}", _tall([_colour(hue + turn + 0.035 * x, level, 0.85) for x, level in lights], HEIGHT)
        for wall in range(4):
            light = (0.25, 0.75, 0.5, 0.85)[wall]
            yield f"P{room}{wall}", _tall([_colour(hue + 0.5, light + step, 0.9) for step in (-0.07, 0.07)], HEIGHT)
        yield f"F{room}", _chequered(_colour(hue, 0.14, 0.35), _colour(hue, 0.24, 0.35))
        yield f"C{room}", _tall([_colour(hue, 0.86, 0.30)], 64)
    yield "JAMB", _tall([(250, 250, 250)], 64)
    yield f"F{_GRID**2}", _tall([(60, 60, 60)], 64)
    yield f"C{_GRID**2}", _tall([(200, 200, 200)], 64)


def _tall(stripes: list[Colour], height: int) -> np.ndarray:
    """Upright stripes from left to right, of a whole wall, of a post's side or, where there is one, of 64 units."""
    width = {1: 64, 2: POST // 2, STRIPES: SIDE // STRIPES}[len(stripes)]
    return np.tile(np.repeat(np.array(stripes, np.uint8), width, 0), (height, 1, 1))


def _chequered(dark: Colour, light: Colour) -> np.ndarray:
    squares = np.array([[dark, light], [light, dark]], np.uint8)
    return squares.repeat(CHECK, 0).repeat(CHECK, 1)


def _png(pixels: np.ndarray, colours: dict[Colour, int]) -> bytes:
    for colour in map(tuple, np.unique(pixels.reshape(-1, 3), axis=0).tolist()):
        colours.setdefault(colour, len(colours))
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


def _corner(room: int) -> tuple[int, int]:
    return (room % _GRID) * (SIDE + WALL), (room // _GRID) * (SIDE + WALL)


def _lines() -> list[Line]:
    """All lines; sectors 0 to 3 are rooms, those after them doorways."""
    lines, low, high = [], (SIDE - DOOR) // 2, (SIDE + DOOR) // 2
    # Of each wall: where it starts, the way along it, and the neighbour behind it; clockwise from west.
    sides = (((0, 0), (0, 1), -1), ((0, 1), (1, 0), _GRID), ((1, 1), (0, -1), 1), ((1, 0), (-1, 0), -_GRID))
    doors: dict[frozenset, int] = {}
    for room in range(_GRID**2):
        x, y = _corner(room)
        for wall, ((sx, sy), (dx, dy), step) in enumerate(sides):
            other = room + step
            column_fits = abs(step) == _GRID or other // _GRID == room // _GRID
            open_ = 0 <= other < _GRID**2 and column_fits

            def at(distance, sx=sx, sy=sy, dx=dx, dy=dy, x=x, y=y):
                return x + sx * SIDE + dx * distance, y + sy * SIDE + dy * distance

            name = f"W{room}{wall}"
            if not open_:
                lines.append(Line(at(0), at(SIDE), room, None, name))
                continue
            door = doors.setdefault(frozenset((room, other)), _GRID**2 + len(doors))
            lines.append(Line(at(0), at(low), room, None, name))
            lines.append(Line(at(low), at(high), room, door))
            lines.append(Line(at(high), at(SIDE), room, None, name, high))
            # A jamb leads from this room's edge of the doorway to the other's; the doorway lies to its right.
            ox, oy = -dy * WALL, dx * WALL
            (ax, ay), (bx, by) = at(low), at(high)
            if room < other:
                lines.append(Line((ax, ay), (ax + ox, ay + oy), door, None, "JAMB"))
                lines.append(Line((bx + ox, by + oy), (bx, by), door, None, "JAMB"))
        cx, cy = x + SIDE // 2, y + SIDE // 2
        half = POST // 2
        ring = [(cx - half, cy - half), (cx + half, cy - half), (cx + half, cy + half), (cx - half, cy + half)]
        for wall in range(4):  # anticlockwise: the room lies outside
            lines.append(Line(ring[wall], ring[(wall + 1) % 4], room, None, f"P{room}{wall}"))
    return lines


def _text() -> str:
    """The map in UDMF."""
    lines = _lines()
    vertices = {point: index for index, point in enumerate(dict.fromkeys(p for s in lines for p in (s.start, s.end)))}
    written, sides = [], []
    sectors = 1 + max(line.front for line in lines)
    parts = ['namespace = "zdoom";']
    parts += [f"vertex {{ x = {x}; y = {y}; }}" for x, y in vertices]

    def side(sector, texture="-", offset=0):
        sides.append(f'sidedef {{ sector = {sector}; texturemiddle = "{texture}"; offsetx = {offset}; }}')
        return len(sides) - 1

    for line in lines:
        ends = f"v1 = {vertices[line.start]}; v2 = {vertices[line.end]};"
        front = side(line.front, line.texture, line.offset)
        if line.back is None:
            written.append(f"linedef {{ {ends} sidefront = {front}; blocking = true; }}")
        else:
            written.append(f"linedef {{ {ends} sidefront = {front}; sideback = {side(line.back)}; twosided = true; }}")
    for sector in range(sectors):
        floor = min(sector, _GRID**2)
        parts.append(
            f'sector {{ heightfloor = 0; heightceiling = {HEIGHT}; lightlevel = 255; texturefloor = "F{floor}";'
            f' textureceiling = "C{floor}"; }}'
        )
    x, y = _corner(0)
    skills = " ".join(f"skill{i} = true;" for i in range(1, 6))
    player = "type = 1; single = true; dm = true; coop = true;"
    start = f"thing {{ x = {x + 96}; y = {y + 96}; angle = 45; {player} {skills} }}"
    return "\n".join([*parts, *sides, *written, start]) + "\n"
