"""What an agent is, and the rounding of its mouse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mgjax.data.camera import MOUSE_STEP
from mgjax.data.types import Observation

State = Any


class Agent(NamedTuple):
    """Pure functions. `init` comes after every reset of the engine.

    init: (first observation, generator) -> state
    act:  (observation, state, generator) -> ((keyboard [a] uint8, mouse (pitch, yaw) [2] float32 degrees), state)
    """

    init: Callable[[Observation, np.random.Generator], State]
    act: Callable[[Observation, State, np.random.Generator], tuple[tuple[np.ndarray, np.ndarray], State]]


def to_mouse(pitch: float, yaw: float) -> Float[np.ndarray, " 2"]:
    """Degrees as float32 [2], rounded to whole MOUSE_STEPs."""
    return (np.round(np.array([pitch, yaw]) / MOUSE_STEP) * MOUSE_STEP).astype(np.float32)
