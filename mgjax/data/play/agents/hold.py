"""Held inputs: one of the nine moves and a step of the mouse in any direction, kept for a while, blind to the world.

Scripts of `mgjax generate` are made of such rows.
"""

from __future__ import annotations

from mgjax.data.play.agents.base import Agent, to_mouse
from mgjax.data.play.agents.steering import moves
from mgjax.data.types import Engine


def hold_agent(engine: Engine, change: float = 0.15, turn: float = 1.5) -> Agent:
    """Draws keys and mouse anew, evenly, with probability `change` a frame; along each axis the mouse rests or turns by
    `turn` degrees a frame."""
    table = moves(engine.keyboard)

    def draw(rng):
        return table[rng.integers(len(table))], to_mouse(*(turn * rng.integers(-1, 2, size=2)))

    def act(observation, state, rng):
        if rng.random() < change:
            state = draw(rng)
        return state, state

    return Agent(init=lambda observation, rng: draw(rng), act=act)
