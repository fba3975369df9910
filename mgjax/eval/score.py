"""Measures of videos, numpy in and out: nearness to the truth, drift, seams, how late a world answers, and how sure a
mean is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

_WINDOW = 7  # side of the square over which SSIM compares
_DRAWS = 2000  # of the bootstrap


class Interval(NamedTuple):
    """A mean over clips and the middle 95 % of its bootstrap distribution."""

    mean: float
    low: float
    high: float


def interval(values: Float[np.ndarray, " n"], seed: int = 0) -> Interval:
    """Of a value a clip, by drawing as many clips anew (Efron's percentiles)."""
    values = np.asarray(values, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(values), (_DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(1), (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


def psnr(video: UInt8[np.ndarray, "*f h w 3"], truth: UInt8[np.ndarray, "*f h w 3"]) -> Float[np.ndarray, "*f"]:
    """Decibels of every frame; frames that are equal have 100."""
    error = np.square(video.astype(np.float32) - truth).mean((-3, -2, -1))
    return 10 * np.log10(255**2 / np.maximum(error, 255**2 * 1e-10))


def ssim(video: UInt8[np.ndarray, "*f h w 3"], truth: UInt8[np.ndarray, "*f h w 3"]) -> Float[np.ndarray, "*f"]:
    """Structural similarity of every frame (Wang et al. 2004), over 7 x 7 squares and the three colours."""
    x, y = video.astype(np.float64), truth.astype(np.float64)
    mean_x, mean_y = _boxes(x), _boxes(y)
    unbiased = _WINDOW**2 / (_WINDOW**2 - 1)
    var_x, var_y = (unbiased * (_boxes(part * part) - mean**2) for part, mean in ((x, mean_x), (y, mean_y)))
    covariance = unbiased * (_boxes(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean((-3, -2, -1))


def _boxes(x: np.ndarray) -> np.ndarray:
    """Means over all squares within the picture."""
    for axis in (-3, -2):
        total = np.cumsum(x, axis)
        zero = np.zeros_like(np.take(total, [0], axis))
        total = np.concatenate([zero, total], axis)
        length = total.shape[axis]
        upper, lower = (np.take(total, range(*part), axis) for part in ((_WINDOW, length), (0, length - _WINDOW)))
        x = (upper - lower) / _WINDOW
    return x


class Look(NamedTuple):
    """What drifts, of every frame, in [0, 1]."""

    brightness: Float[np.ndarray, "*f"]
    saturation: Float[np.ndarray, "*f"]  # of colours: (largest - smallest) / largest, mean over the picture
    sharpness: Float[np.ndarray, "*f"]  # mean difference between neighbouring pixels


def look(video: UInt8[np.ndarray, "*f h w 3"]) -> Look:
    x = video.astype(np.float32) / 255
    largest, smallest = x.max(-1), x.min(-1)
    saturation = (largest - smallest) / np.maximum(largest, 1 / 255)
    edges = (np.abs(np.diff(x, axis=axis)).mean((-3, -2, -1)) for axis in (-3, -2))
    return Look(x.mean((-3, -2, -1)), saturation.mean((-2, -1)), sum(edges) / 2)


def seam_ratio(video: UInt8[np.ndarray, "b f h w 3"], chunk: int) -> Float[np.ndarray, " b"]:
    """Change from frame to frame at chunk borders over that within chunks; 1 is a video without seams.

    Frame 0 is a chunk's last: borders lie before frames 1, 1 + chunk, ...
    """
    change = np.abs(np.diff(video.astype(np.float32), axis=1)).mean((2, 3, 4))
    border = np.arange(change.shape[1]) % chunk == 0
    return change[:, border].mean(1) / np.maximum(change[:, ~border].mean(1), 1e-6)


def change(video: UInt8[np.ndarray, "b f h w 3"], lag: int) -> Float[np.ndarray, " b"]:
    """Mean difference of pixels, in [0, 1], between frames that are `lag` apart: what a world keeps over that time."""
    return (np.abs(video[:, lag:].astype(np.float32) - video[:, :-lag]) / 255).mean((1, 2, 3, 4))


def returned(
    video: UInt8[np.ndarray, "b f h w 3"], away: int, gate: Float[np.ndarray, ""] | float
) -> Float[np.ndarray, " b"]:
    """How far a walk that is mirrored after `away` frames comes back to its first picture: 1 is there again, 0 no
    nearer than at the turning point. Who is less than `gate` (mean difference of pixels in [0, 1]) away from the first
    picture at the turning point has not walked, and has 0: a picture that stands still is no walk."""
    first = video[:, 0].astype(np.float32) / 255
    far, back = (np.abs(video[:, at].astype(np.float32) / 255 - first).mean((1, 2, 3)) for at in (away, 2 * away))
    return np.where(far >= gate, np.clip(1 - back / np.maximum(far, 1e-6), 0, 1), 0.0)


def delay(found: Float[np.ndarray, "b f"], wanted: Float[np.ndarray, "b f"], most: int = 24) -> int:
    """Frames after which what is read off a video follows best what was given: the lag of the largest correlation."""

    def at(lag: int) -> float:
        late, early = found[:, lag:].ravel(), wanted[:, : wanted.shape[1] - lag].ravel()
        spread = late.std() * early.std()
        return float(((late - late.mean()) * (early - early.mean())).mean() / spread) if spread else 0.0

    return int(np.argmax([at(lag) for lag in range(min(most, wanted.shape[1] - 1) + 1)]))
