"""Explore: a small learned policy that decides three times a second where to go and what to look at, under the rules.

The policy (`ppo.py` trains it; PPO on top of rule-based avoidance as in the paper, design page 1.1) sees rays
over the navigation mesh and how often it has been where they lead. It chooses one of nine moves, of which the rules
(`steering.py`) strike out those that run into a wall, and a turn, which the hand carries out. Between
decisions the rules replace a move that has become unsafe by the nearest safe one.

The weights beside this file come from (5 minutes on two cores):
    mgjax agents --train explore.npz --engine-option 'levels=["my_way_home","map01","map02","map07"]'

`senses` and `policy` take the array library as their first argument: JAX trains, NumPy plays.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from mgjax.data import camera
from mgjax.data.play.agents import steering
from mgjax.data.play.agents.base import Agent, to_mouse
from mgjax.data.play.navmesh import NavMesh
from mgjax.data.types import Engine
from mgjax.errors import InputError
from mgjax.io.files import atomic_path

TURNS = (-90.0, -45.0, -15.0, 0.0, 15.0, 45.0, 90.0)  # degrees, right positive
DECISION_SECONDS = 12 / 35
PLACE = 4  # cells along a side of the squares in which visits are counted
NUM_RAYS, RAY_CELLS = 16, 32
NUM_SENSES = 3 * NUM_RAYS + 3 + 9
FORGET = 0.95  # of the moves' frequencies, per decision
WEIGHTS = "explore.npz"


class Params(NamedTuple):
    """A perceptron with two hidden layers; the output holds 9 moves, 7 turns and the value."""

    w1: Float[Array, "i d"]
    b1: Float[Array, " d"]
    w2: Float[Array, "d d"]
    b2: Float[Array, " d"]
    w3: Float[Array, "d o"]
    b3: Float[Array, " o"]


class State(NamedTuple):
    mesh: NavMesh
    visits: np.ndarray  # [r, c] decisions that were made at each place
    habits: np.ndarray  # [9] recent frequencies of the moves
    hand: steering.Hand
    move: int
    yaw: float  # wanted
    pitch: float  # wanted
    frames: int  # until the next decision


def senses(
    xp: ModuleType,
    walkable: Float[Array, "r c"],
    visits: Float[Array, "pr pc"],
    position: Float[Array, " 2"],
    velocity: Float[Array, " 2"],
    yaw: Float[Array, ""],
    habits: Float[Array, " 9"],
) -> Float[Array, " i"]:
    """What the policy sees. position in cells (x, y), velocity in units per tic, yaw in degrees."""
    forward = xp.stack([xp.cos(xp.deg2rad(yaw)), -xp.sin(xp.deg2rad(yaw))])
    angles = xp.deg2rad(yaw + xp.arange(NUM_RAYS) * (360.0 / NUM_RAYS))
    directions = xp.stack([xp.cos(angles), -xp.sin(angles)], axis=-1)
    points = position + (1.0 + xp.arange(RAY_CELLS))[:, None, None] * directions
    cols = xp.clip(xp.rint(points[..., 0]).astype(int), 0, walkable.shape[1] - 1)
    rows = xp.clip(xp.rint(points[..., 1]).astype(int), 0, walkable.shape[0] - 1)
    free = xp.cumprod(walkable[rows, cols].astype(xp.float32), axis=0)
    news = free / (1.0 + visits[rows // PLACE, cols // PLACE])
    col, row = (xp.clip(xp.rint(position[i]).astype(int), 0, walkable.shape[1 - i] - 1) for i in (0, 1))
    left = xp.stack([-forward[1], forward[0]])
    own = xp.stack([velocity @ forward, velocity @ left, xp.log1p(visits[row // PLACE, col // PLACE])])
    return xp.concatenate([free.mean(0), news.mean(0), news[:8].mean(0), own / xp.array([8.0, 8.0, 2.0]), habits])


def policy(
    xp: ModuleType, params: Params, seen: Float[Array, "*b i"]
) -> tuple[Float[Array, "*b 9"], Float[Array, "*b 7"], Float[Array, "*b"]]:
    """Logits of the moves and of the turns, and the value."""
    hidden = xp.tanh(seen @ params.w1 + params.b1)
    hidden = xp.tanh(hidden @ params.w2 + params.b2)
    out = hidden @ params.w3 + params.b3
    return out[..., :9], out[..., 9:-1], out[..., -1]


def places(mesh: NavMesh) -> tuple[int, int]:
    """Shape of the grid in which visits are counted."""
    rows, cols = mesh.walkable.shape
    return rows // PLACE + 1, cols // PLACE + 1


def load(path=None) -> Params:
    """The policy's weights from an .npz, the trained ones of this package by default.

    Raises:
      InputError: the file is missing or holds something else.
    """
    path = resources.files("mgjax.data.play.agents").joinpath(WEIGHTS) if path is None else path
    try:
        with np.load(path, allow_pickle=False) as file:
            params = Params(**{name: file[name] for name in Params._fields})
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} does not hold the weights of the explore agent: {error}") from error
    if params.w1.shape[0] != NUM_SENSES or params.b3.shape != (9 + len(TURNS) + 1,):
        raise InputError(f"{path} holds weights for other senses or actions")
    return params


def save(path: str | Path, params: Params) -> None:
    """Writes what `load` reads."""
    with atomic_path(Path(path)) as temporary:
        np.savez(temporary, **{name: np.asarray(value, np.float32) for name, value in params._asdict().items()})


def nearest_safe(move: int, price: np.ndarray) -> int:
    """The move itself if it is safe, else the safe one in the most similar direction, else the cheapest."""
    if price[move] == price.min():
        return move
    apart = np.abs((np.arange(8) - move + 4) % 8 - 4) if move != steering.IDLE else np.full(8, 4)
    return int(np.lexsort((np.append(apart, 5), price))[0])


def explore_agent(engine: Engine, weights=None, temperature: float = 1.0) -> Agent:
    """`weights`: an .npz of `mgjax agents --train`; `temperature` of the draws, towards 0 the most likely is taken."""
    level = steering.require(engine, "agent explore")
    params = load(weights)
    fps, motion, table = level.fps, level.motion, steering.moves(level.keyboard)

    def draw(logits: np.ndarray, rng) -> int:
        return int(np.argmax(logits / max(temperature, 1e-6) + rng.gumbel(size=logits.shape)))

    def init(observation, rng):
        mesh = level.navmesh
        hand = steering.new_hand(rng, fps)
        return State(mesh, np.zeros(places(mesh)), np.full(9, 1 / 9), hand, steering.IDLE, 0.0, 0.0, 0)

    def decide(state: State, pose, yaw: float, price: np.ndarray, rng) -> State:
        position = (pose.position[:2] - state.mesh.origin) / state.mesh.cell
        velocity = pose.velocity[:2] / motion.tics_per_second
        visits = state.visits.copy()
        row, col = np.clip(np.rint(position[::-1]), 0, np.array(state.mesh.walkable.shape) - 1).astype(int) // PLACE
        visits[row, col] += 1.0
        seen = senses(np, state.mesh.walkable, visits, position, velocity, np.asarray(yaw), state.habits)
        moves, turns, _ = policy(np, params, seen)
        move = draw(np.where(price == price.min(), moves, -np.inf), rng)
        return state._replace(
            visits=visits,
            habits=FORGET * state.habits + (1 - FORGET) * np.eye(9)[move],
            move=move,
            yaw=yaw + TURNS[draw(turns, rng)],
            pitch=float(np.clip(rng.normal(0.0, 8.0), -25.0, 25.0)) if rng.random() < 0.2 else state.pitch,
            frames=max(1, round(DECISION_SECONDS * fps)),
        )

    def act(observation, state: State, rng) -> tuple[Any, State]:
        pose = observation.pose
        yaw, pitch = map(float, camera.to_yaw_pitch(pose.rotation))
        price = steering.prices(state.mesh, steering.foresee(motion, pose.position, pose.velocity, yaw, table))
        if state.frames == 0:
            state = decide(state, pose, yaw, price, rng)
        move = nearest_safe(state.move, price)
        left = np.array([state.pitch - pitch, (state.yaw - yaw + 180.0) % 360.0 - 180.0])
        row, hand = steering.move_hand(state.hand, left, fps, rng)
        return (table[move], to_mouse(*row)), state._replace(hand=hand, move=move, frames=state.frames - 1)

    return Agent(init, act)
