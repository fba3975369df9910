"""A second engine, in one file: a square room with striped walls, and helpers that make small datasets of it."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

import numpy as np

from mgjax.data import camera
from mgjax.data.play.agents import make_agent
from mgjax.data.record import RecordConfig, record, schema_of
from mgjax.data.store import codec
from mgjax.data.store.dataset import Dataset, Writer
from mgjax.data.store.schema import Schema
from mgjax.data.types import Clip, Observation, Pose

ROOM = 8.0  # half of the room's side
SPEED = 4.0  # units a second


class FakeEngine:
    """Flat shading, no momentum, exact poses. `log` gets a line with the process for every episode that starts."""

    keyboard = ("forward", "back", "left", "right")

    def __init__(self, size=(24, 40), fps=10.0, delay=0.0, log=""):
        self.size, self.fps, self.delay, self.log = tuple(size), fps, delay, log

    def reset(self, seed: int) -> Observation:
        rng = np.random.default_rng(seed)
        self.position = np.append(rng.uniform(-ROOM / 2, ROOM / 2, 2), 1.0)
        self.rotation = camera.from_yaw_pitch(rng.uniform(-180, 180), 0.0)
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()}\n")
        return self._observe(np.zeros(3))

    def step(self, keyboard, mouse) -> Observation:
        time.sleep(self.delay)
        forward, back, left, right = keyboard.astype(float)
        push = np.array([forward - back, left - right, 0.0])
        yaw, _ = camera.to_yaw_pitch(self.rotation)
        moved = camera.rotate(camera.from_yaw_pitch(yaw, 0.0), push) * SPEED / self.fps
        before, self.position = self.position, np.clip(self.position + moved, -ROOM + 1, ROOM - 1)
        self.rotation = camera.turn(self.rotation, mouse)
        return self._observe((self.position - before) * self.fps)

    def close(self) -> None: ...

    def _observe(self, velocity) -> Observation:
        height, width = self.size
        across, down = np.linspace(0.8, -0.8, width), np.linspace(0.5, -0.5, height)
        rays = np.stack(np.broadcast_arrays(1.0, across[None], down[:, None]), axis=-1)
        rays = camera.rotate(self.rotation, rays)
        with np.errstate(divide="ignore"):
            walls = np.where(rays > 0, ROOM - self.position, -ROOM - self.position) / rays
        side = np.argmin(walls, axis=-1)
        hit = self.position + rays * np.min(walls, axis=-1)[..., None]
        colours = np.array([[200, 80, 60], [60, 160, 90], [70, 90, 190]])[side]
        stripes = (np.floor(hit.sum(axis=-1)) % 2)[..., None]
        frame = (colours * (0.55 + 0.45 * stripes)).astype(np.uint8)
        return Observation(frame, Pose(self.position.copy(), self.rotation.copy(), velocity))


def schema(**options) -> Schema:
    return schema_of(FakeEngine(**options), "fake", {}, 15.0)


def record_fake(out: Path, clips: int = 6, clip_frames: int = 24, **options):
    """Records `clips` clips of the random agent in this process's children; returns the report."""
    engine_options = {k: options.pop(k) for k in ("delay", "log", "size", "fps") if k in options}
    cfg = RecordConfig("fake-random", clips * clip_frames, clip_frames=clip_frames, **options)
    make = functools.partial(FakeEngine, **engine_options)
    shape = {k: v for k, v in engine_options.items() if k in ("size", "fps")}
    return record(out, schema(**shape), make, functools.partial(make_agent, "random"), cfg)


def play(rows, seed: int = 0, **options) -> Clip:
    """The clip of given (keyboard [f, 4], mouse [f, 2]) rows."""
    keyboard, mouse = np.asarray(rows[0], np.uint8), np.asarray(rows[1], np.float32)
    engine = FakeEngine(**options)
    seen = [engine.reset(seed)]
    seen += [engine.step(k, m) for k, m in zip(keyboard[:-1], mouse[:-1], strict=True)]
    poses = [np.stack([getattr(o.pose, name) for o in seen]) for name in ("position", "rotation", "velocity")]
    return Clip(np.stack([o.frame for o in seen]), keyboard, mouse, *poses)


def random_rows(frames: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (frames, 4)), rng.uniform(-6, 6, (frames, 2)) * [0.2, 1.0]


def small_dataset(out: Path, clips: int = 8, frames: int = 24, **writer_options) -> Dataset:
    """A dataset of random play, made in this process."""
    with Writer(out, schema(), **writer_options) as writer:
        for i in range(clips):
            data = codec.encode(play(random_rows(frames, i), seed=i))
            writer.add(f"clip-{i:03d}", data, frames, {"engine_seed": i, "codec": "zstd", "marks": {}})
    return Dataset(out)


def changed_copy(dataset: Dataset, out: Path, change) -> Dataset:
    """A copy of a dataset whose clips went through `change`."""
    with Writer(out, dataset.schema) as writer:
        for i, entry in enumerate(dataset.clips):
            writer.add(entry.name, codec.encode(change(dataset.read(i))), entry.frames, entry.info)
    return Dataset(out)


def shift_actions(clip: Clip) -> Clip:
    """The rows one frame too late."""
    return clip._replace(keyboard=np.roll(clip.keyboard, 1, axis=0), mouse=np.roll(clip.mouse, 1, axis=0))


def flip_mouse(clip: Clip) -> Clip:
    return clip._replace(mouse=-clip.mouse)
