"""Mixture: what a level must be seen with to be learnt whole. It walks, holds keys, stands still, pushes into walls and
spins, each for a while.

Blind stretches teach what every key does everywhere, walks lead from room to room, and idling, pushing and spinning are
what a world forgets first that was never shown them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mgjax.data.play.agents.base import Agent, to_mouse
from mgjax.data.play.agents.hold import hold_agent
from mgjax.data.play.agents.navigate import navigate_agent
from mgjax.data.play.agents.steering import moves
from mgjax.data.types import Engine


class State(NamedTuple):
    behaviour: int
    inner: Any  # of that behaviour
    frames: int  # until the next one


def _steady_agent(engine: Engine, octants: tuple[int, ...], turns: tuple[float, ...]) -> Agent:
    """One move of `octants` (`steering.moves`) and one turn of `turns`, degrees a frame, drawn once."""
    table = moves(engine.keyboard)

    def init(observation, rng):
        return table[rng.choice(octants)], to_mouse(0.0, rng.choice(turns))

    return Agent(init, lambda observation, state, rng: (state, state))


def mixture_agent(
    engine: Engine,
    shares: tuple[float, ...] = (0.4, 0.3, 0.06, 0.12, 0.12),
    seconds: float = 2.5,
    turn: float = 4.0,
    max_turn: float = 5.0,
) -> Agent:
    """`shares` of the stretches, of `seconds` on average: navigate, hold, idle, push, spin. `turn` is the step of a
    held mouse and `max_turn` the most of all, degrees a frame."""
    behaviours = (
        navigate_agent(engine),
        hold_agent(engine, turn=turn),
        _steady_agent(engine, (8,), (0.0,)),
        _steady_agent(engine, (0, 1, 2, 4, 6, 7), (0.0, 0.0, turn / 4, -turn / 4)),
        _steady_agent(engine, (0, 8, 8), (turn, -turn, turn / 2, -turn / 2)),
    )
    odds = np.array(shares) / sum(shares)

    def begin(observation, rng):
        behaviour = int(rng.choice(len(behaviours), p=odds))
        return State(
            behaviour, behaviours[behaviour].init(observation, rng), 1 + int(rng.exponential(seconds) * engine.fps)
        )

    def act(observation, state: State, rng):
        if state.frames == 0:
            state = begin(observation, rng)
        (keys, mouse), inner = behaviours[state.behaviour].act(observation, state.inner, rng)
        return (keys, to_mouse(*np.clip(mouse, -max_turn, max_turn))), State(state.behaviour, inner, state.frames - 1)

    return Agent(begin, act)
