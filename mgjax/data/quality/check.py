"""Does what was pressed explain what was recorded? Replays the inputs and compares.

Frames on which nothing is pressed agree whatever the annotation says, so each test counts only frames that could show
it wrong, and the agreement of a dataset is that of its worst test:

    turning     the mouse or the camera moves: is the camera at k + 1 the one at k turned by mouse row k?
    changing    the mouse or the camera's turn differs from the frame before: the same question. Rows shifted by a frame
                answer it wrongly at least half of the time, even where the mouse mostly rests or turns evenly.
    moving      a key has been pushing and the camera moves: does it move the way it is pushed?
    re-rendered a key or the mouse led to the frame, and the engine is here: does the engine, started from the clip's
                seed and fed its rows, show this very picture from this very pose?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mgjax.data import camera
from mgjax.data.quality import kinematics
from mgjax.data.store.dataset import DamagedClip, Dataset
from mgjax.data.store.schema import Schema
from mgjax.data.types import Clip, Engine

TESTS = ("turning", "changing", "moving", "re-rendered")


@dataclass(frozen=True)
class CheckConfig:
    """Tolerances of the tests."""

    turn: float = 0.05  # degrees of the camera, and of the mouse below which it rests
    cosine: float = -0.5  # between the way moved and the way pushed
    position: float = 1e-6  # engine units between recorded and replayed positions
    picture: float = 0.0  # mean pixel difference (of 255) between recorded and re-rendered pictures
    packed_picture: float = 8.0  # the same where the pictures are stored as H.264
    replays: int = 16  # clips, evenly spread, that are re-rendered; -1: all


class Tally(NamedTuple):
    """Frames that a test could judge, and those of them that passed."""

    frames: int = 0
    agreeing: int = 0

    @property
    def share(self) -> float:
        return self.agreeing / self.frames if self.frames else float("nan")

    def plus(self, judged: np.ndarray, passed: np.ndarray) -> Tally:
        return Tally(self.frames + int(judged.sum()), self.agreeing + int((judged & passed).sum()))


class Verdict(NamedTuple):
    """What the tests found; `all_frames` counts a frame as agreeing unless a test says otherwise."""

    clips: int
    all_frames: Tally
    tests: Mapping[str, Tally]
    damaged: tuple[str, ...]

    @property
    def agreement(self) -> float:
        """Share of the worst test that had frames to judge; NaN when none had."""
        shares = [tally.share for tally in self.tests.values() if tally.frames]
        return min(shares, default=float("nan"))


def judge(clip: Clip, schema: Schema, cfg: CheckConfig) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(frames judged, frames that pass) [f - 1] of the tests without an engine; pair k is about frame k + 1."""
    error = kinematics.turn_errors(clip, schema)
    known = np.isfinite(error)
    close = known & (error <= cfg.turn)
    turns = np.concatenate([clip.mouse[:-1], kinematics.turns(clip.rotation)], axis=1)
    changes = np.abs(np.diff(turns, axis=0, prepend=turns[:1])).max(axis=1) > cfg.turn
    cosine = kinematics.move_agreement(clip, schema)
    return {
        "turning": (known & kinematics.turned(clip, cfg.turn), close),
        "changing": (known & changes, close),
        "moving": (np.isfinite(cosine), cosine >= cfg.cosine),
    }


def replay(clip: Clip, engine: Engine, seed: int, cfg: CheckConfig, lossless: bool) -> tuple[np.ndarray, np.ndarray]:
    """(frames that an input led to, frames that the engine shows again) [f - 1], from the clip's seed and rows."""
    same = np.zeros(len(clip.frames), bool)
    tolerance = cfg.picture if lossless else cfg.packed_picture
    observation = engine.reset(seed)
    for k in range(len(clip.frames)):
        if k:
            observation = engine.step(clip.keyboard[k - 1], clip.mouse[k - 1])
        difference = np.abs(observation.frame.astype(np.int16) - clip.frames[k]).mean()
        way = np.abs(observation.pose.position - clip.position[k]).max()
        angle = camera.angle_between(observation.pose.rotation, clip.rotation[k])
        same[k] = difference <= tolerance and way <= cfg.position and angle <= cfg.turn
    led = (clip.keyboard[:-1] > 0).any(axis=1) | (np.abs(clip.mouse[:-1]).max(axis=1) > cfg.turn)
    return led, same[1:]


def check(
    dataset: Dataset,
    engine: Engine | None,
    cfg: CheckConfig,
    progress: Callable[[int], None] = lambda clips: None,
) -> Verdict:
    """Tests every clip; with an engine of the dataset's kind, some are re-rendered too (`CheckConfig.replays`)."""
    tests = dict.fromkeys(TESTS, Tally())
    everything, damaged = Tally(), list(dataset.damaged)
    number = len(dataset) if cfg.replays < 0 else min(cfg.replays, len(dataset))
    replayed = set(np.linspace(0, len(dataset) - 1, number).round().astype(int).tolist()) if engine else set()
    for i, entry in enumerate(dataset.clips):
        try:
            clip = dataset.read(i) if i in replayed else dataset.read_rows(i)
        except (DamagedClip, ValueError) as error:
            damaged.append(str(error))
            continue
        results = judge(clip, dataset.schema, cfg)
        if i in replayed and "engine_seed" in entry.info:
            results["re-rendered"] = replay(
                clip, engine, int(entry.info["engine_seed"]), cfg, entry.info.get("codec") == "zstd"
            )
        wrong = np.zeros(len(clip.frames) - 1, bool)
        for name, (judged, passed) in results.items():
            tests[name] = tests[name].plus(judged, passed)
            wrong |= judged & ~passed
        everything = everything.plus(np.ones_like(wrong), ~wrong)
        progress(i + 1)
    return Verdict(len(dataset), everything, tests, tuple(damaged))
