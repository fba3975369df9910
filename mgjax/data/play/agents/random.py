"""Uniform random: every key and both mouse axes anew at every frame."""

from __future__ import annotations

import numpy as np

from mgjax.data.play.agents.base import Agent, to_mouse
from mgjax.data.types import Engine


def random_agent(engine: Engine, press: float = 0.5, turn: float = 10.0) -> Agent:
    """Presses each key with probability `press`; yaw is uniform within `turn` degrees a frame, pitch within a fifth."""

    def act(observation, state, rng):
        keyboard = (rng.random(len(engine.keyboard)) < press).astype(np.uint8)
        mouse = to_mouse(rng.uniform(-turn / 5, turn / 5), rng.uniform(-turn, turn))
        return (keyboard, mouse), state

    return Agent(init=lambda observation, rng: (), act=act)
