"""What recorded worlds are made of: the engine protocol and the clip.

Row k of an action array is the input applied at frame k, which produces frame k + 1 (design page section 3).
Angles are degrees. The world is right-handed with z up; a pose's rotation is a unit quaternion (w, x, y, z) that turns
the camera's axes (x forward, y left, z up) into the world's.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class Pose(NamedTuple):
    """Exact camera pose and velocity at one frame (float64)."""

    position: np.ndarray  # [3], engine units
    rotation: np.ndarray  # [4], unit quaternion (w, x, y, z)
    velocity: np.ndarray  # [3], engine units per second


class Observation(NamedTuple):
    frame: np.ndarray  # [h, w, 3] uint8
    pose: Pose


class Clip(NamedTuple):
    """Consecutive frames with the inputs applied at them and the camera's exact poses."""

    frames: np.ndarray  # [f, h, w, 3] uint8
    keyboard: np.ndarray  # [f, a] uint8, multi-hot in the order of the dataset's schema
    mouse: np.ndarray  # [f, 2] float32, degrees of (pitch, yaw), up and right positive
    position: np.ndarray  # [f, 3] float64
    rotation: np.ndarray  # [f, 4] float64
    velocity: np.ndarray  # [f, 3] float64


class Engine(Protocol):
    """A game that can be stepped frame by frame. One file in `mgjax/data/play/engines/` implements it."""

    keyboard: tuple[str, ...]  # names of the keyboard columns that `step` takes
    fps: float  # recorded frames per second
    size: tuple[int, int]  # height, width of a frame

    def reset(self, seed: int) -> Observation:
        """Starts an episode; everything random in it follows from `seed`."""
        ...

    def step(self, keyboard: np.ndarray, mouse: np.ndarray) -> Observation:
        """Applies keyboard [a] and mouse [2] (degrees) at the current frame; returns the next frame."""
        ...

    def close(self) -> None: ...
