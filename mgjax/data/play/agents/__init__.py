"""Agents by name: pure functions from what is seen to what is pressed.

An agent is built for one engine (`make_agent(name, engine)`); all it remembers is in the state that it is handed and
hands back, all that is random in it comes from the generator that it is handed.
"""

from __future__ import annotations

import importlib

from mgjax.data.play.agents.base import Agent
from mgjax.data.types import Engine
from mgjax.errors import InputError

AGENTS = {
    "random": "mgjax.data.play.agents.random:random_agent",
    "hold": "mgjax.data.play.agents.hold:hold_agent",
    "composite": "mgjax.data.play.agents.composite:composite_agent",
    "navigate": "mgjax.data.play.agents.navigate:navigate_agent",
    "explore": "mgjax.data.play.agents.explore:explore_agent",
    "mixture": "mgjax.data.play.agents.mixture:mixture_agent",
    "scripted": "mgjax.data.play.agents.scripted:scripted_agent",
}


def make_agent(name: str, engine: Engine, **options) -> Agent:
    """The agent of that name for `engine`, built with its own options.

    Raises:
      InputError: no such agent, or an option that it does not have.
    """
    if name not in AGENTS:
        raise InputError(f"there is no agent {name!r}; there are: {', '.join(AGENTS)}")
    module, factory = AGENTS[name].split(":")
    build = getattr(importlib.import_module(module), factory)
    try:
        return build(engine, **options)
    except TypeError as error:
        raise InputError(f"agent {name!r} does not take these options: {error}") from error
