"""What the recorded inputs say about the recorded camera: what the contradiction filter and `mgjax data check` ask.

Row k is applied at frame k and produces frame k + 1, so each result has one number per pair (k, k + 1). What cannot be
known, because the poses are not (NaN) or the keys have no direction, is NaN.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from mgjax.data import camera
from mgjax.data.camera import DIRECTIONS
from mgjax.data.store.schema import Schema
from mgjax.data.types import Clip

MOMENTUM_SECONDS = 0.3  # how long a movement lingers after its key; games lie between 0 and this


def turn_errors(clip: Clip, schema: Schema) -> Float[np.ndarray, " pairs"]:
    """Degrees between the recorded camera at k + 1 and the one at k turned by mouse row k."""
    predicted = camera.turn(clip.rotation[:-1], clip.mouse[:-1], schema.pitch_limits)
    return camera.angle_between(predicted, clip.rotation[1:])


def turns(rotation: Float[np.ndarray, "f 4"]) -> Float[np.ndarray, "pairs 2"]:
    """Degrees of (pitch, yaw) from each camera to the next, up and right positive."""
    yaw, pitch = camera.to_yaw_pitch(rotation)
    return np.stack([np.diff(pitch), (np.diff(yaw) + 180.0) % 360.0 - 180.0], axis=1)


def turned(clip: Clip, tolerance: float) -> Bool[np.ndarray, " pairs"]:
    """Pairs in which the mouse moved or the camera turned by more than `tolerance` degrees."""
    angle = camera.angle_between(clip.rotation[:-1], clip.rotation[1:])
    return (np.abs(clip.mouse[:-1]).max(axis=1) > tolerance) | (angle > tolerance)


def wishes(clip: Clip, schema: Schema) -> Float[np.ndarray, "f 2"]:
    """Where the keys push at each frame: (forward, left), of length 1 or 0."""
    table = np.array([DIRECTIONS.get(column, (0.0, 0.0)) for column in schema.keyboard]).reshape(-1, 2)
    push = clip.keyboard @ table
    length = np.linalg.norm(push, axis=1, keepdims=True)
    return np.divide(push, length, out=np.zeros_like(push), where=length > 0)


def move_agreement(clip: Clip, schema: Schema) -> Float[np.ndarray, " pairs"]:
    """Cosine between the way moved from k to k + 1 and the way that the keys have been pushing, both level.

    The push is averaged over MOMENTUM_SECONDS in the world's axes. Pairs are NaN that say nothing: the push is weak, or
    the camera moves slower than a fifth of the clip's fastest (it was stopped by something).
    """
    yaw = np.deg2rad(-camera.to_yaw_pitch(clip.rotation)[0])
    forward, left = wishes(clip, schema).T
    push = np.stack([forward * np.cos(yaw) - left * np.sin(yaw), forward * np.sin(yaw) + left * np.cos(yaw)], axis=1)
    keep = np.exp(-1.0 / (schema.fps * MOMENTUM_SECONDS))
    lasting = np.zeros_like(push)
    for k in range(len(push)):
        lasting[k] = (keep * lasting[k - 1] if k else 0.0) + (1.0 - keep) * push[k]
    moved = np.diff(clip.position[:, :2], axis=0)
    distance, strength = np.linalg.norm(moved, axis=1), np.linalg.norm(lasting[:-1], axis=1)
    fastest = np.max(distance, initial=0.0, where=np.isfinite(distance))
    telling = (strength > 0.5) & (distance > 0.2 * fastest)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(telling, np.sum(moved * lasting[:-1], axis=1) / (distance * strength), np.nan)
