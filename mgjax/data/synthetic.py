"""Windows of the nano world made up on the spot, for runs that have no recordings."""

from __future__ import annotations

import numpy as np

from mgjax.config import WorldConfig
from mgjax.data.engines.shapes import ShapesEngine
from mgjax.data.feed import Window
from mgjax.data.schema import MOUSE_SCALE

_CHANGE = 0.15  # probability a frame that a player's intention changes


def windows(cfg: WorldConfig, seed: int, count: int, frames: int) -> Window:
    """`count` windows [count, frames, ...] of a player who holds keys and mouse directions for a while, in the model's
    convention (`cfg.control`). Window i follows from (seed, i) alone."""
    parts = [_window(cfg, np.random.default_rng((seed, index)), frames) for index in range(count)]
    return Window(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))


def _window(cfg: WorldConfig, rng: np.random.Generator, frames: int) -> Window:
    engine = ShapesEngine((cfg.height, cfg.width))
    keyboard, mouse = np.zeros(4), np.zeros(2)
    pictures, keys, turns = [], [], []
    observation = engine.reset(int(rng.integers(2**31)))
    for frame in range(frames):
        if frame == 0 or rng.random() < _CHANGE:
            # Opposite keys are never held together.
            vertical, horizontal = rng.integers(3, size=2)
            keyboard = np.array([vertical == 1, vertical == 2, horizontal == 1, horizontal == 2], np.float32)
            mouse = cfg.control.mouse_step * rng.integers(-1, 2, size=2).astype(np.float32)
        pictures.append(observation.frame)
        keys.append(keyboard)
        turns.append(mouse)
        observation = engine.step(keyboard, mouse * MOUSE_SCALE)
    return Window(np.stack(pictures), np.stack(keys), np.stack(turns))
