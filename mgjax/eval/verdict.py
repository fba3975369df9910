"""Whether a ladder did what it is for: every loss fell, every stage follows its actions (T1.6), and the few-step
student's samples are about as near to the clips as those of its many-step teacher.

Losses are those of training, means over the first and the last tenth of a stage's steps.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

import jax
import numpy as np

from mgjax.eval.control import Control, foundation_control, student_control
from mgjax.train.run import log
from mgjax.train_config import TrainConfig
from mgjax.types import ClipBatch

ALLOWED = 1.2  # the few-step student's sample error over its teacher's
STUDENTS = ("few_step", "self_forcing", "long")  # stages whose result samples with the few-step list
_MANY = 16  # steps of a causal model that was not distilled


class Line(NamedTuple):
    """One stage of a ladder; None where it was not measured."""

    stage: str
    steps: int
    seconds: float
    rate: float | None  # steps a second, once compiled
    loss: tuple[float, float] | None  # at first and at last
    control: Control | None
    ratio: float | None  # sample error over the foundation stage's, of a few-step student

    @property
    def failures(self) -> list[str]:
        """What does not hold, in words."""
        found = []
        if self.loss and not self.loss[1] < self.loss[0]:
            found.append("its loss did not fall")
        if self.control and not self.control.error < self.control.swapped:
            found.append("it does not follow its actions")
        if self.ratio is not None and not self.ratio <= ALLOWED:
            found.append(f"its error is over {ALLOWED} times its teacher's")
        return found


def measure_control(cfg: TrainConfig, name: str, params: dict, clips: ClipBatch) -> Control:
    """Sample errors of the DiT `params` that stage `name` exported: by the steps of inference for a few-step student,
    by many steps for the others. Of the clips, the first frames count that the stage scores at once, so that the errors
    of a ladder whose stages score as many can be compared."""
    clips = _begin(clips, getattr(cfg, name).latents, cfg.world.vae.temporal_stride)
    if name == "foundation":
        shift = cfg.foundation.shift_in(cfg.world)
        measured = jax.jit(lambda params, clips: foundation_control(cfg.world, params, clips, shift=shift))
    else:
        world = cfg.world
        if name not in STUDENTS:
            steps = tuple(np.linspace(1000, 1000 / _MANY, _MANY).round().astype(int).tolist())
            world = dataclasses.replace(world, sampler=dataclasses.replace(world.sampler, steps=steps))
        measured = jax.jit(lambda params, clips: student_control(world, params, clips))
    return Control(*map(float, measured(params, clips)))


def _begin(clips: ClipBatch, latents: int, stride: int) -> ClipBatch:
    """The first `latents` latent frames of `clips`."""
    return clips._replace(
        latents=clips.latents[:, :latents],
        condition=clips.condition[:, :latents],
        actions=jax.tree.map(lambda rows: rows[:, : stride * (latents - 1) + 1], clips.actions),
    )


def judge(out: Path, stages: list[str]) -> list[Line]:
    """A line for each of `stages` that was trained in `out`; a student's teacher is the foundation stage there."""
    teacher = _control(_summary(out / "foundation"))
    summaries = {stage: _summary(out / stage) for stage in stages}
    return [_line(out / stage, summary, teacher) for stage, summary in summaries.items() if summary]


def _line(folder: Path, summary: dict, teacher: Control | None) -> Line:
    logged = [line for line in log.read(folder) if line["kind"] == "train"]
    losses = [line["loss"] for line in logged]
    rates = [line["steps_per_s"] for line in logged if "steps_per_s" in line]
    tenth, control = -(-len(losses) // 10), _control(summary)
    return Line(
        stage=folder.name,
        steps=summary["steps"],
        seconds=summary["seconds"],
        rate=median(rates) if rates else None,
        loss=(fmean(losses[:tenth]), fmean(losses[-tenth:])) if len(losses) > 1 else None,
        control=control,
        ratio=control.error / teacher.error if folder.name in STUDENTS and control and teacher else None,
    )


def _summary(folder: Path) -> dict:
    """What a finished stage wrote of itself; empty where there is none."""
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _control(summary: dict) -> Control | None:
    return Control(**summary["control"]) if summary.get("control") else None
