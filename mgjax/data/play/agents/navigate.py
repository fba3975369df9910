"""Navigate: walks random paths of the navigation mesh as a person might, looking around on the way.

A goal is drawn, a path found (`mgjax.data.play.navmesh.find_path`), and of nine moves that one is pressed which comes
nearest to the path without running into a wall (`steering.py`). The view follows the path, but for a
while it may be turned aside, so that the same way is walked forwards, sideways and backwards. Keys are held for random
times, pauses happen, and who makes no headway takes another path.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mgjax.data import camera
from mgjax.data.play import navmesh
from mgjax.data.play.agents import steering
from mgjax.data.play.agents.base import Agent, to_mouse
from mgjax.data.play.motion import yaw_of
from mgjax.data.types import Engine, Pose

_REACHED = 24.0  # units from a way point at which the next one counts


class State(NamedTuple):
    mesh: navmesh.NavMesh
    path: np.ndarray  # [n, 2] way points that lie ahead
    hand: steering.Hand
    move: int
    key_frames: int  # until the keys may change freely
    pause_frames: int
    aside: float  # degrees between the view and the way
    pitch: float  # wanted
    aside_frames: int  # until these two change
    landmark: np.ndarray  # [2], where headway was last measured
    landmark_frames: int


def navigate_agent(engine: Engine, randomness: float = 0.4, pauses: float = 0.06, aside: float = 0.35) -> Agent:
    """`randomness` of the paths, pauses per second, and the share of time that the view is turned aside."""
    level = steering.require(engine, "agent navigate")
    fps, motion, table = level.fps, level.motion, steering.moves(level.keyboard)

    def seconds(rng, low: float, high: float) -> int:
        return max(1, round(rng.uniform(low, high) * fps))

    def plan(mesh, position, rng) -> np.ndarray:
        return navmesh.find_path(mesh, position, navmesh.random_point(mesh, rng), rng, randomness)[1:]

    def init(observation, rng):
        mesh, position = level.navmesh, observation.pose.position[:2]
        path, hand = plan(mesh, position, rng), steering.new_hand(rng, fps)
        return State(mesh, path, hand, steering.IDLE, 0, 0, 0.0, 0.0, seconds(rng, 1, 3), position, seconds(rng, 1, 2))

    def follow(state: State, position, rng) -> State:
        """The state with the path that lies ahead of `position`."""
        path = state.path
        if state.landmark_frames == 0:
            stuck = np.hypot(*(position - state.landmark)) < 16.0 and state.pause_frames == 0
            path = path[:0] if stuck else path
            state = state._replace(landmark=position, landmark_frames=seconds(rng, 1.0, 2.0))
        while len(path) and np.hypot(*(path[0] - position)) < _REACHED:
            path = path[1:]
        if len(path) > 1 and navmesh.is_free(state.mesh, position, path[1]):
            path = path[1:]
        return state._replace(
            path=path if len(path) else plan(state.mesh, position, rng), landmark_frames=state.landmark_frames - 1
        )

    def wander(state: State, rng) -> State:
        """The state with moods renewed that have run out: pauses, the view aside, a sudden glance."""
        if state.pause_frames == 0 and rng.random() < pauses / fps:
            state = state._replace(pause_frames=seconds(rng, 0.3, 2.0), aside=rng.normal(0.0, 60.0))
        if state.aside_frames == 0:
            degrees = 0.0
            if rng.random() < aside:
                degrees = rng.choice((90.0, -90.0, 45.0, -45.0, 180.0)) + rng.normal(0.0, 15.0)
            pitch = float(np.clip(rng.normal(0.0, 8.0), -25.0, 25.0))
            state = state._replace(aside=degrees, pitch=pitch, aside_frames=seconds(rng, 0.8, 4.0))
        if rng.random() < 0.15 / fps:
            degrees = (rng.normal(0.0, 6.0), rng.choice((-1.0, 1.0)) * rng.uniform(30.0, 110.0))
            state = state._replace(hand=steering.glance(state.hand, degrees, int(rng.integers(1, 4))))
        return state._replace(pause_frames=max(0, state.pause_frames - 1), aside_frames=max(0, state.aside_frames - 1))

    def choose(state: State, pose: Pose, yaw: float, rng) -> State:
        """The state with the move that comes nearest to the path among those without a wall in their way."""
        ways = steering.foresee(motion, pose.position, pose.velocity, yaw, table)
        price = steering.prices(state.mesh, ways)
        held = state.key_frames > 0 and price[state.move] == 0
        if held and state.pause_frames == 0:
            return state._replace(key_frames=state.key_frames - 1)
        cost = 40.0 * price
        if state.pause_frames == 0:
            cost = cost + np.hypot(*np.moveaxis(ways[-1] - state.path[0], -1, 0))
            cost = cost + rng.exponential(2.0, len(cost))
        else:
            cost = cost + 20.0 * (np.arange(len(table)) != steering.IDLE)
        return state._replace(move=int(np.argmin(cost)), key_frames=seconds(rng, 0.05, 0.6))

    def act(observation, state: State, rng) -> tuple[Any, State]:
        pose = observation.pose
        yaw, pitch = map(float, camera.to_yaw_pitch(pose.rotation))
        state = wander(follow(state, pose.position[:2], rng), rng)
        state = choose(state, pose, yaw, rng)
        wanted = float(yaw_of(state.path[0] - pose.position[:2])) + state.aside
        left = np.array([state.pitch - pitch, (wanted - yaw + 180.0) % 360.0 - 180.0])
        row, hand = steering.move_hand(state.hand, left, fps, rng)
        return (table[state.move], to_mouse(*row)), state._replace(hand=hand)

    return Agent(init, act)
