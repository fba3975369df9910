"""Composite random: keys and mouse rates drawn anew for stretches of random length, blind to the world."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mgjax.data.play.agents.base import Agent, to_mouse
from mgjax.data.play.agents.steering import moves
from mgjax.data.types import Engine

_ODDS = np.array([8, 2, 1, 0.5, 1, 0.5, 1, 2, 2])  # forward most often, then its diagonals and none


class Stretch(NamedTuple):
    move: int
    rate: tuple[float, float]  # (pitch, yaw), degrees per frame
    key_frames: int
    mouse_frames: int


def composite_agent(engine: Engine, seconds: float = 1.2, turn: float = 90.0) -> Agent:
    """Holds keys and mouse rates for exponential times of mean `seconds`; `turn` is the rates' spread in degrees/s."""
    table = moves(engine.keyboard)

    def frames(rng) -> int:
        return 1 + int(rng.exponential(seconds) * engine.fps)

    def rate(rng) -> tuple[float, float]:
        if rng.random() < 0.4:
            return 0.0, 0.0
        return rng.normal(0.0, turn / 8 / engine.fps), rng.normal(0.0, turn / engine.fps)

    def init(observation, rng):
        return Stretch(0, (0.0, 0.0), 0, 0)

    def act(observation, state, rng):
        if state.key_frames == 0:
            state = state._replace(move=int(rng.choice(len(table), p=_ODDS / _ODDS.sum())), key_frames=frames(rng))
        if state.mouse_frames == 0:
            state = state._replace(rate=rate(rng), mouse_frames=frames(rng))
        state = state._replace(key_frames=state.key_frames - 1, mouse_frames=state.mouse_frames - 1)
        return (table[state.move], to_mouse(*state.rate)), state

    return Agent(init, act)
