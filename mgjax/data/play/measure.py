"""What an agent does in an engine, in numbers: how much it sees, how often it runs into something, what it presses."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from mgjax.data import camera
from mgjax.data.play import motion, navmesh
from mgjax.data.play.agents.base import Agent
from mgjax.data.play.navmesh import Navigable


class Play(NamedTuple):
    """Episodes of one agent, measured."""

    coverage: float  # share of the mesh's area that an episode visits, mean over episodes
    area: float  # the same in square units
    collisions: float  # share of the frames with pressed moving keys in which something was in the way
    keys: Float[np.ndarray, " a"]  # share of frames that each key is down
    hold_frames: Float[np.ndarray, " 3"]  # 10 %, 50 % and 90 % quantile of how long a key stays down
    mouse_speed: Float[np.ndarray, " 3"]  # 50 %, 90 % and 99 % quantile of the mouse in degrees per second
    mouse_rest: float  # share of frames in which the mouse does not move
    mouse_jerks: float  # share of frames in which its speed changes by over 120 degrees/s


def measure(engine: Navigable, agent: Agent, num_frames: int, num_episodes: int, seed: int) -> Play:
    """Plays `num_episodes` of `num_frames` each, all from `seed`."""
    covered, areas, blocked, pressed, rows, holds = [], [], [], [], [], []
    for episode in range(num_episodes):
        rng = np.random.default_rng((seed, episode))
        observation = engine.reset(int(rng.integers(2**31)))
        state = agent.init(observation, rng)
        poses, keyboard, mouse = [observation.pose], [], []
        for _ in range(num_frames):
            (keys, row), state = agent.act(observation, state, rng)
            observation = engine.step(keys, row)
            poses.append(observation.pose)
            keyboard.append(keys)
            mouse.append(row)
        position, rotation, velocity = (np.stack(field) for field in zip(*poses, strict=True))
        keyboard, mouse = np.stack(keyboard), np.stack(mouse)
        mesh = engine.navmesh
        cells = navmesh.cell_of(mesh, position[:, :2])
        cells = np.unique(cells[mesh.walkable[cells[:, 0], cells[:, 1]]], axis=0)
        areas.append(len(cells) * mesh.cell**2)
        covered.append(areas[-1] / mesh.area)
        moving, hit = collisions(engine.motion, engine.fps, position, rotation, velocity, keyboard, mouse)
        blocked.append(hit[moving])
        pressed.append(keyboard)
        rows.append(mouse)
        holds += [length for column in keyboard.T for length in _runs(column)]
    speed = np.linalg.norm(np.concatenate(rows), axis=1) * engine.fps
    changes = np.concatenate([np.linalg.norm(np.diff(mouse, axis=0), axis=1) for mouse in rows]) * engine.fps
    return Play(
        coverage=float(np.mean(covered)),
        area=float(np.mean(areas)),
        collisions=float(np.mean(np.concatenate(blocked))) if any(map(len, blocked)) else 0.0,
        keys=np.concatenate(pressed).mean(0),
        hold_frames=np.quantile(holds, (0.1, 0.5, 0.9)) if holds else np.zeros(3),
        mouse_speed=np.quantile(speed, (0.5, 0.9, 0.99)),
        mouse_rest=float(np.mean(speed == 0)),
        mouse_jerks=float(np.mean(changes > 120.0)),
    )


def query_times(mesh: navmesh.NavMesh, num: int, seed: int) -> Float[np.ndarray, " num"]:
    """Milliseconds that each of `num` path queries between random places takes."""
    rng = np.random.default_rng(seed)
    times = np.zeros(num)
    for i in range(num):
        start, goal = navmesh.random_point(mesh, rng), navmesh.random_point(mesh, rng)
        begun = time.perf_counter()
        navmesh.find_path(mesh, start, goal, rng)
        times[i] = 1e3 * (time.perf_counter() - begun)
    return times


def collisions(
    model: motion.Motion, fps: float, position, rotation, velocity, keyboard, mouse
) -> tuple[Bool[np.ndarray, " f"], Bool[np.ndarray, " f"]]:
    """Frames of an episode whose keys push somewhere, and frames that move less than three quarters of the free way.

    position [f + 1, 3], rotation [f + 1, 4] and velocity [f + 1, 3] since the reset, keyboard [f, a], mouse [f, 2].
    """
    yaw = camera.to_yaw_pitch(rotation[:-1])[0]
    tics = motion.tics_of_frames(model, fps, len(keyboard))
    free, _ = motion.predict(model, velocity[:-1], yaw, keyboard, mouse, tics)
    way = np.linalg.norm(free, axis=1)
    off = np.linalg.norm(np.diff(position[:, :2], axis=0) - free, axis=1)
    pushing = np.linalg.norm(motion.push(model, keyboard, yaw), axis=1) > 0.5 * max(model.thrust)
    return pushing, off > 0.25 * way + 0.2


def _runs(column) -> np.ndarray:
    """Lengths of the stretches of ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], column, [0]])))
    return edges[1::2] - edges[::2]
