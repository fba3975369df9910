"""Which recordings are worth keeping (paper, design page 1.1: redundant frames and invalid speeds are filtered).

Each filter marks frames; a clip is dropped whole when a filter marks more than its share of them, so that what is kept
stays continuous. The counts of a kept clip stay with it in the index, and those of a dropped one with its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from mgjax.data import camera
from mgjax.data.quality import kinematics
from mgjax.data.store.schema import Schema
from mgjax.data.types import Clip


@dataclass(frozen=True)
class FilterConfig:
    """Thresholds, and the share of a clip's frames that each filter may mark before the clip is dropped."""

    static_difference: float = 0.5  # mean pixel difference (of 255) up to which a frame repeats the one before
    max_static: float = 0.3
    min_speed: float = 1.0  # units a second up to which a frame is slow; the paper's epsilon
    max_slow: float = 0.8
    max_speed: float = 2000.0  # units a second above which the camera jumped
    max_jump: float = 0.0
    stuck_seconds: float = 1.0  # keys push for so long ...
    stuck_distance: float = 16.0  # ... and the camera stays within so many units
    max_stuck: float = 0.3
    black_level: float = 6.0  # mean brightness (of 255) up to which a picture is black
    max_black: float = 0.05
    frozen_turn: float = 0.5  # degrees of turning under which the very same picture is no capture error
    max_frozen: float = 0.02
    turn_tolerance: float = 0.05  # degrees that the camera may be away from what the mouse says
    move_cosine: float = -0.5  # below it the camera moves against what the keys say
    max_contradiction: float = 0.02


NAMES = ("static", "slow", "jump", "stuck", "black", "frozen", "contradiction")


def marks(clip: Clip, schema: Schema, cfg: FilterConfig) -> Mapping[str, Bool[np.ndarray, " f"]]:
    """The frames that each filter marks; unknown poses (NaN) are marked by none that needs them."""
    num_frames = len(clip.frames)
    # Every second pixel each way tells as much as all of them, in a quarter of the time.
    pixels = clip.frames[:, ::2, ::2].astype(np.int16)
    difference = np.abs(np.diff(pixels, axis=0)).mean(axis=(1, 2, 3))
    first = np.zeros(1, bool)

    velocity = np.linalg.norm(clip.velocity, axis=1)
    step = np.linalg.norm(np.diff(clip.position, axis=0), axis=1) * schema.fps
    angle = camera.angle_between(clip.rotation[:-1], clip.rotation[1:])
    turning = np.append(angle, angle[-1:]) > cfg.turn_tolerance if num_frames > 1 else first

    window = max(1, round(cfg.stuck_seconds * schema.fps))
    stuck = np.zeros(num_frames, bool)
    if num_frames > window:
        pushing = np.linalg.norm(kinematics.wishes(clip, schema), axis=1) > 0
        always = np.lib.stride_tricks.sliding_window_view(pushing[:-1], window).all(axis=1)
        way = np.linalg.norm(clip.position[window:] - clip.position[:-window], axis=1)
        stuck[window:] = always & (way < cfg.stuck_distance)

    wrong_turn = kinematics.turn_errors(clip, schema) > cfg.turn_tolerance
    wrong_way = kinematics.move_agreement(clip, schema) < cfg.move_cosine
    return {
        "static": np.append(first, difference <= cfg.static_difference),
        "slow": (velocity <= cfg.min_speed) & ~turning,
        "jump": (velocity > cfg.max_speed) | np.append(first, step > cfg.max_speed),
        "stuck": stuck,
        "black": pixels.mean(axis=(1, 2, 3)) <= cfg.black_level,
        "frozen": np.append(first, (difference == 0) & (angle > cfg.frozen_turn)),
        "contradiction": np.append(first, wrong_turn | wrong_way),
    }


def judge(clip: Clip, schema: Schema, cfg: FilterConfig) -> tuple[dict[str, int], str | None]:
    """How many frames each filter marked, and the first filter that drops the clip (None: it is kept)."""
    counts = {name: int(marked.sum()) for name, marked in marks(clip, schema, cfg).items()}
    for name in NAMES:
        if counts[name] > getattr(cfg, f"max_{name}") * len(clip.frames):
            return counts, name
    return counts, None
