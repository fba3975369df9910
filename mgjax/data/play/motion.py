"""How keys move a player on open ground: thrust and friction, tic by tic.

Per tic, with e_m the direction of the pressed keys in the world (a sum, so that two keys push harder than one):

    v <- v + thrust e_m;    x <- x + v;    v <- friction v                                  (1)

The turn of a tic comes before its thrust. In the air neither thrust nor friction works, which this model does not know.
Yaw and mouse are degrees, right positive (`mgjax.data.camera`); x is forward and y left of a camera with yaw 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from mgjax.data.camera import DIRECTIONS


class Motion(NamedTuple):
    """Constants of (1). Thrust is in units per tic squared, one for each column of the keyboard."""

    keyboard: tuple[str, ...]
    thrust: tuple[float, ...]
    friction: float
    tics_per_second: float


def heading(yaw: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b 2"]:
    """Unit vector [..., 2] in the world of a camera's yaw in degrees."""
    radians = np.deg2rad(yaw)
    return np.stack([np.cos(radians), -np.sin(radians)], axis=-1)


def yaw_of(vector: Float[np.ndarray, "*b 2"]) -> Float[np.ndarray, "*b"]:
    """Yaw in (-180, 180] of a camera that looks along a world vector [..., 2]."""
    return np.rad2deg(np.arctan2(-vector[..., 1], vector[..., 0]))


def push(
    motion: Motion, keyboard: Float[np.ndarray, "*b a"], yaw: Float[np.ndarray, "*b"]
) -> Float[np.ndarray, "*b 2"]:
    """Thrust [..., 2] in the world of the keys [..., a] pressed by a camera with that yaw, units per tic squared."""
    table = np.array([DIRECTIONS[name] for name in motion.keyboard]) * np.array(motion.thrust)[:, None]
    along, left = np.moveaxis(np.asarray(keyboard, np.float64) @ table, -1, 0)
    forward = heading(yaw)
    return along[..., None] * forward + left[..., None] * np.stack([-forward[..., 1], forward[..., 0]], axis=-1)


def tics_of_frames(motion: Motion, fps: float, num: int) -> Int[np.ndarray, " f"]:
    """Tics that each of an episode's first `num` frames lasts: frame k shows tic floor(k tics_per_second / fps)."""
    return np.diff((np.arange(num + 1) * motion.tics_per_second / fps + 1e-9).astype(int))


def predict(
    motion: Motion,
    velocity: Float[np.ndarray, "*b 3"],
    yaw: Float[np.ndarray, "*b"],
    keyboard: Float[np.ndarray, "*b a"],
    mouse: Float[np.ndarray, "*b 2"],
    tics: Int[np.ndarray, "*b"],
) -> tuple[Float[np.ndarray, "*b 2"], Float[np.ndarray, "*b 2"]]:
    """Displacement [..., 2] over one frame that nothing blocks, and the velocity after it in units per second.

    velocity and yaw are those of the frame, keyboard and mouse the row applied at it, tics what the frame lasts; the
    mouse's turn is spread evenly over them.
    """
    velocity = np.asarray(velocity, np.float64)[..., :2] / motion.tics_per_second
    tics = np.broadcast_to(tics, np.shape(yaw))
    moved = np.zeros_like(velocity)
    for tic in range(int(tics.max())):
        running = (tic < tics)[..., None]
        thrust = push(motion, keyboard, yaw + np.asarray(mouse)[..., 1] * (tic + 1) / tics)
        moved = np.where(running, moved + velocity + thrust, moved)
        velocity = np.where(running, (velocity + thrust) * motion.friction, velocity)
    return moved, velocity * motion.tics_per_second
