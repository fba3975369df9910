"""Rule-based steering that agents share: which keys run into a wall, and how a hand moves the mouse.

Keys. The motion model says where each of nine moves (eight directions and none) leads within half a second; the points
of that way that lie beside the navigation mesh are the move's price. A move without any is safe.

Mouse. The hand follows a wanted direction in one of three styles, each for a while: smooth (a rate that accelerates
towards what is left to turn, with a tremor), jerky (rest until it is far off, then a flick of one to three frames that
may fall short or go too far) and resting.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from mgjax.data.play.motion import Motion, push
from mgjax.data.play.navmesh import Navigable, NavMesh, cell_of
from mgjax.data.types import Engine
from mgjax.errors import InputError

IDLE = 8  # the move without keys; moves 0 to 7 go clockwise from forward
_OCTANTS = (
    *(("forward",), ("forward", "right"), ("right",), ("back", "right")),
    *(("back",), ("back", "left"), ("left",), ("forward", "left"), ()),
)
_PUSHED, _COASTED = 7, 6  # tics that a move is held, and that the player slides on, when its way is foreseen
_PACE = 17.5  # frames per second for which the hand's numbers below are given
STYLES = ("smooth", "jerky", "rest")


class Hand(NamedTuple):
    """What the hand is doing. Angles are degrees, (pitch, yaw)."""

    style: int
    frames: int  # until the style changes
    rate: Float[np.ndarray, " 2"]  # per frame
    flick: tuple[tuple[float, float], ...]  # rows that are still to come
    patience: float  # degrees off before a jerky hand flicks


def require(engine: Engine, who: str) -> Navigable:
    """The engine; InputError where it has no navigation mesh or motion model."""
    if not isinstance(engine, Navigable):
        raise InputError(f"{who} needs an engine with a navigation mesh and a motion model")
    return engine


def moves(keyboard: tuple[str, ...]) -> UInt8[np.ndarray, "9 a"]:
    """The nine moves as rows of the keyboard; a key that the engine lacks is left out."""
    return np.array([[name in octant for name in keyboard] for octant in _OCTANTS], np.uint8)


def foresee(
    motion: Motion,
    position: Float[np.ndarray, " 3"],
    velocity: Float[np.ndarray, " 3"],
    yaw: float,
    keys: UInt8[np.ndarray, "n a"],
) -> Float[np.ndarray, "t n 2"]:
    """Where each row of keys leads, tic by tic, if nothing is in the way: held for a while, then let go."""
    pushed, coasted = response(motion)
    thrust = push(motion, keys, np.full(len(keys), yaw))
    start = np.asarray(velocity)[:2] / motion.tics_per_second
    return np.asarray(position)[:2] + coasted[:, None, None] * start + pushed[:, None, None] * thrust


def prices(mesh: NavMesh, ways: Float[np.ndarray, "t n 2"]) -> Int[np.ndarray, " n"]:
    """How many points of each way lie beside the mesh: 0 is safe."""
    cells = cell_of(mesh, ways)
    return (~mesh.walkable[cells[..., 0], cells[..., 1]]).sum(0)


def new_hand(rng: np.random.Generator, fps: float) -> Hand:
    """A hand at rest that has just taken up a style."""
    style = int(rng.choice(len(STYLES), p=(0.6, 0.27, 0.13)))
    frames = int(rng.uniform(0.6, 4.0) * fps)
    return Hand(style, frames, np.zeros(2), (), float(rng.uniform(8.0, 35.0)))


def glance(hand: Hand, degrees: tuple[float, float], num_frames: int) -> Hand:
    """The hand with a flick of `degrees` (pitch, yaw) ahead of it, most of it in the first of its frames."""
    shares = 0.5 ** np.arange(num_frames)
    rows = np.outer(shares / shares.sum(), degrees)
    return hand._replace(flick=tuple(map(tuple, rows)), rate=np.zeros(2))


def move_hand(
    hand: Hand, left: Float[np.ndarray, " 2"], fps: float, rng: np.random.Generator
) -> tuple[Float[np.ndarray, " 2"], Hand]:
    """The mouse row (pitch, yaw) of this frame, with `left` degrees still to turn, and the hand after it."""
    pace = _PACE / fps
    hand = hand._replace(frames=hand.frames - 1) if hand.frames > 0 else new_hand(rng, fps)._replace(rate=hand.rate)
    if hand.flick:
        return np.array(hand.flick[0]), hand._replace(flick=hand.flick[1:])
    style = STYLES[hand.style]
    far = np.abs(left).max()
    if style == "jerky" and far > hand.patience:
        hand = glance(hand, tuple(left * rng.uniform(0.75, 1.15)), int(rng.integers(1, 4)))
        return np.array(hand.flick[0]), hand._replace(flick=hand.flick[1:])
    if style == "smooth" or far > 60.0:
        wanted = np.clip(0.25 * pace * left, (-5.0 * pace, -14.0 * pace), (5.0 * pace, 14.0 * pace))
        rate = hand.rate + np.clip(wanted - hand.rate, -2.5 * pace, 2.5 * pace)
        tremor = rng.normal(0.0, 0.12 * pace, 2) if far > 1.0 else 0.0
        return rate + tremor, hand._replace(rate=rate)
    return np.zeros(2), hand._replace(rate=np.zeros(2))


@functools.cache
def response(motion: Motion) -> tuple[np.ndarray, np.ndarray]:
    """Displacement after each tic per unit of thrust held for _PUSHED tics, and per unit of velocity at the start."""
    tics = np.arange(_PUSHED + _COASTED)
    coasted = (1.0 - motion.friction ** (tics + 1)) / (1.0 - motion.friction)
    held = tics[:, None] >= np.arange(_PUSHED)
    since = np.maximum(tics[:, None] - np.arange(_PUSHED), 0)
    return (held * coasted[since]).sum(1), coasted
