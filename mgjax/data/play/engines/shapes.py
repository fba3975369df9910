"""The nano world: a flat-shaded plane of discs that the mouse pans, and a square that the keys move over it.

The plane repeats itself, so a view never leaves what a model has seen, and the next frame follows from this one and
the input.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from mgjax.data.camera import from_yaw_pitch
from mgjax.data.types import Observation, Pose

_PAN = 1.0  # pixels of the plane a degree, for a picture 64 pixels high
_SPEED = 2.0  # pixels of the square a frame
_DISCS = (  # place in periods of the plane, radius in heights of the picture, colour
    (0.15, 0.25, 0.22, (235, 90, 70)),
    (0.65, 0.75, 0.26, (70, 170, 235)),
    (0.50, 0.20, 0.12, (245, 205, 80)),
    (0.90, 0.65, 0.14, (120, 215, 120)),
)


class ShapesEngine:
    """See `mgjax.data.types.Engine`. `size` is height and width of a frame."""

    keyboard = ("forward", "back", "left", "right")
    fps = 12.0

    def __init__(self, size: tuple[int, int] = (64, 96)):
        self.size = size
        self._unit = size[0] / 64

    def reset(self, seed: int) -> Observation:
        rng = np.random.default_rng(seed)
        height, width = self.size
        self._camera = rng.uniform(0, 1, 2) * (height, width)
        self._square = rng.uniform(0.15, 0.85, 2) * (height, width)
        return self._observe(np.zeros(2))

    def step(self, keyboard: np.ndarray, mouse: np.ndarray) -> Observation:
        """Up on the screen is forward; a mouse to the right pans the plane to the left, as a turning head would."""
        forward, back, left, right = np.asarray(keyboard, np.float64) > 0
        move = _SPEED * self._unit * np.array([float(back) - float(forward), float(right) - float(left)])
        margin = self._margin
        self._square = np.clip(self._square + move, margin, np.asarray(self.size) - margin)
        pitch, yaw = np.asarray(mouse, np.float64)
        pan = _PAN * self._unit * np.array([-pitch, yaw])
        self._camera = (self._camera + pan) % self.size
        return self._observe(pan)

    def close(self) -> None:
        pass

    @property
    def _margin(self) -> float:
        return 8 * self._unit

    def _observe(self, pan: np.ndarray) -> Observation:
        pose = Pose(
            position=np.array([self._camera[1], self._camera[0], 0.0]),
            rotation=from_yaw_pitch(np.float64(0), np.float64(0)),
            velocity=np.array([pan[1], pan[0], 0.0]) * self.fps,
        )
        return Observation(self._draw(), pose)

    def _draw(self) -> UInt8[np.ndarray, "h w 3"]:
        height, width = self.size
        y = (np.arange(height) + 0.5)[:, None]
        x = (np.arange(width) + 0.5)[None, :]
        py, px = y + self._camera[0], x + self._camera[1]
        wave = np.sin(2 * np.pi * px / width) * np.sin(2 * np.pi * py / height)
        picture = 60 + 18 * wave[..., None] * np.array([1.0, -0.5, 1.5])
        for right, down, radius, colour in _DISCS:
            dx = _wrap(px - right * width, width)
            dy = _wrap(py - down * height, height)
            picture = _blend(picture, colour, radius * height - np.hypot(dx, dy))
        inside = self._margin - np.maximum(np.abs(y - self._square[0]), np.abs(x - self._square[1]))
        return np.round(_blend(picture, (250, 250, 250), inside)).astype(np.uint8)


def _wrap(distance: Float[np.ndarray, "*b"], period: float) -> Float[np.ndarray, "*b"]:
    """The distance to the nearest copy of something that repeats."""
    return (distance + period / 2) % period - period / 2


def _blend(picture, colour, inside: Float[np.ndarray, "h w"]):
    """`picture` under a shape of `colour` whose edge is `inside` = 0, smooth over one pixel."""
    cover = np.clip(inside + 0.5, 0, 1)[..., None]
    return picture * (1 - cover) + cover * np.asarray(colour)
