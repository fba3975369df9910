"""Camera rotations: unit quaternions in double precision, renormalised after every composition.

A quaternion (w, x, y, z) turns the camera's axes (x forward, y left, z up) into the world's (right-handed, z up).
Yaw and pitch are degrees in the sense of the mouse: yaw right positive, pitch up positive. With Rz a turn about the
world's z axis and Ry about the camera's left axis, both counter-clockwise seen from the tip of the axis:

    q(yaw, pitch) = Rz(-yaw) Ry(-pitch)                                     (1)
    q'            = Rz(-dyaw) q Ry(-dpitch), renormalised                   (2)

(2) equals adding the angles in (1) as long as the camera has no roll. The paper (design page 1.1) composes in double
precision for the same reason as here: float32 products of small turns drift by their rounding, step after step.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

# Agents move the mouse in whole units of this: degrees that float32 holds exactly and that Doom turns by exactly.
MOUSE_STEP = 360.0 / 65536
# Unit steps in camera coordinates (x forward, y left) by the names of the keyboard columns.
DIRECTIONS = {"forward": (1.0, 0.0), "back": (-1.0, 0.0), "left": (0.0, 1.0), "right": (0.0, -1.0)}

Quaternion = Float[np.ndarray, "*b 4"]


def normalize(q: Quaternion) -> Quaternion:
    """The unit quaternion [..., 4] (float64) of the same direction."""
    q = np.asarray(q, np.float64)
    return q / np.sqrt(np.sum(q * q, axis=-1, keepdims=True))


def _product(p, q):
    """The unit quaternion of p after q, on tuples (w, x, y, z) of arrays or of plain numbers."""
    pw, px, py, pz = p
    qw, qx, qy, qz = q
    w = pw * qw - px * qx - py * qy - pz * qz
    x = pw * qx + px * qw + py * qz - pz * qy
    y = pw * qy - px * qz + py * qw + pz * qx
    z = pw * qz + px * qy - py * qx + pz * qw
    scale = (w * w + x * x + y * y + z * z) ** -0.5
    return w * scale, x * scale, y * scale, z * scale


def multiply(p: Quaternion, q: Quaternion) -> Quaternion:
    """The rotation p after q, renormalised: quaternions [..., 4], leading axes broadcast."""
    p, q = (np.moveaxis(np.asarray(r, np.float64), -1, 0) for r in (p, q))
    return np.stack(_product(p, q), axis=-1)


def conjugate(q: Quaternion) -> Quaternion:
    """The inverse of a unit quaternion [..., 4]."""
    return np.asarray(q, np.float64) * np.array([1.0, -1.0, -1.0, -1.0])


def rotate(q: Quaternion, vector: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
    """Camera coordinates [..., 3] in the world: q v q*."""
    q = np.asarray(q, np.float64)
    vector = np.asarray(vector, np.float64)
    w, u = q[..., :1], q[..., 1:]
    twice = 2.0 * np.cross(u, vector)
    return vector + w * twice + np.cross(u, twice)


def from_yaw_pitch(yaw: Float[np.ndarray, "*b"], pitch: Float[np.ndarray, "*b"]) -> Quaternion:
    """Quaternion [..., 4] of a camera without roll, eq. (1); degrees, yaw right and pitch up positive."""
    a, b = np.broadcast_arrays(np.deg2rad(yaw) / -2.0, np.deg2rad(pitch) / -2.0)
    ca, sa, cb, sb = np.cos(a), np.sin(a), np.cos(b), np.sin(b)
    return np.stack([ca * cb, -sa * sb, ca * sb, sa * cb], axis=-1)


def to_yaw_pitch(q: Quaternion) -> tuple[Float[np.ndarray, "*b"], Float[np.ndarray, "*b"]]:
    """Yaw in (-180, 180] and pitch in [-90, 90] of the viewing direction, degrees, in the sense of `from_yaw_pitch`."""
    x, y, z = np.moveaxis(rotate(q, np.array([1.0, 0.0, 0.0])), -1, 0)
    return np.rad2deg(np.arctan2(-y, x)), np.rad2deg(np.arctan2(z, np.hypot(x, y)))


def angle_between(p: Quaternion, q: Quaternion) -> Float[np.ndarray, "*b"]:
    """Degrees in [0, 180] of the rotation that leads from p to q; accurate for tiny angles (arctan2, not arccos)."""
    difference = multiply(conjugate(p), q)
    return np.rad2deg(2.0 * np.arctan2(np.linalg.norm(difference[..., 1:], axis=-1), np.abs(difference[..., 0])))


def turn(
    q: Quaternion, mouse: Float[np.ndarray, "*b 2"], pitch_limits: tuple[float, float] = (-90.0, 90.0)
) -> Quaternion:
    """Cameras [..., 4] after one mouse movement (pitch, yaw) [..., 2] in degrees, eq. (2), within the pitch limits."""
    pitch, yaw = np.moveaxis(np.asarray(mouse, np.float64), -1, 0)
    before = to_yaw_pitch(q)[1]
    pitch = np.clip(before + pitch, *pitch_limits) - before
    zero = np.zeros_like(yaw)
    return multiply(multiply(from_yaw_pitch(yaw, zero), q), from_yaw_pitch(zero, pitch))


def integrate(
    start: Quaternion, mouse: Float[np.ndarray, "f 2"], pitch_limits: tuple[float, float] = (-90.0, 90.0)
) -> Float[np.ndarray, "f1 4"]:
    """Cameras [f + 1, 4] that start at `start` [4] and follow mouse movements (pitch, yaw) [f, 2] one after another."""
    mouse = np.asarray(mouse, np.float64)
    low, high = pitch_limits
    before = float(to_yaw_pitch(start)[1])
    camera = tuple(map(float, normalize(start)))
    cameras = [camera]
    for pitch, half_yaw in zip(mouse[:, 0].tolist(), (np.deg2rad(mouse[:, 1]) / -2.0).tolist(), strict=True):
        after = min(max(before + pitch, low), high)
        half_pitch = math.radians(after - before) / -2.0
        before = after
        camera = _product((math.cos(half_yaw), 0.0, 0.0, math.sin(half_yaw)), camera)
        camera = _product(camera, (math.cos(half_pitch), 0.0, math.sin(half_pitch), 0.0))
        cameras.append(camera)
    return np.array(cameras)
