"""Scripted: a given sequence of rows, again and again. For benchmarks and for replaying a recording."""

from __future__ import annotations

import numpy as np

from mgjax.data.play.agents.base import Agent
from mgjax.data.types import Engine
from mgjax.errors import InputError


def scripted_agent(engine: Engine, keyboard: np.ndarray | None = None, mouse: np.ndarray | None = None) -> Agent:
    """Plays keyboard [f, a] and mouse (pitch, yaw) [f, 2] in a loop; without any, walks forward while turning right.

    Raises:
      InputError: the rows do not fit each other or the engine.
    """
    if keyboard is None and mouse is None:
        keyboard, mouse = np.array([[name == "forward" for name in engine.keyboard]]), np.array([[0.0, 2.8125]])
    keys, turns = np.asarray(keyboard, np.uint8), np.asarray(mouse, np.float32)
    if keys.ndim != 2 or keys.shape[1] != len(engine.keyboard) or turns.shape != (len(keys), 2) or not len(keys):
        wanted = f"{len(engine.keyboard)} keys and 2 mouse degrees"
        raise InputError(f"a script has rows of {wanted}; these are {keys.shape} and {turns.shape}")

    def act(observation, state, rng):
        return (keys[state % len(keys)], turns[state % len(keys)]), state + 1

    return Agent(init=lambda observation, rng: 0, act=act)
