"""Whether a ladder did what it is for: every loss fell; the autoencoder shows its worst frame well enough; every stage
follows its actions (T1.6); a few-step student's samples are about as near to the clips as its teacher's, and its
pictures, seconds on, nearer to the engine's than the first one repeated.

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

from mgjax import checkpoint
from mgjax.config import WorldConfig
from mgjax.data.store.feed import Window
from mgjax.eval.control import Control, foundation_control, student_control
from mgjax.eval.pixels import SECONDS, Pixels, frames_needed, student_pixels, worst_frame
from mgjax.train.run import log
from mgjax.train.stages import RECORDS
from mgjax.train_config import TrainConfig
from mgjax.types import Actions, ClipBatch

ALLOWED = 1.2  # the few-step student's sample error over its teacher's
WORST = 20.0  # dB that an autoencoder's worst frame must have; a picture of the mean colour has about 12
LONG = 129  # frames over which an autoencoder is watched
_MANY = 16  # steps of a causal model that was not distilled


class Line(NamedTuple):
    """One stage of a ladder; None where it was not measured."""

    stage: str
    steps: int
    seconds: float
    rate: float | None  # steps a second, once compiled
    loss: tuple[float, float] | None  # at first and at last; not of stages whose loss is their critic's
    control: Control | None
    ratio: float | None  # sample error over that of its teacher, the better one where there are two
    psnr: float | None  # of an autoencoder's worst frame
    pixels: Pixels | None
    updates: tuple[int, int] | None  # of a distilled generator: all, and those after its warm-up

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
        if self.psnr is not None and not self.psnr >= WORST:
            found.append(f"its worst frame has {self.psnr:.1f} dB, less than {WORST:.0f}")
        if self.pixels and not self.pixels.own[-1] < self.pixels.first[-1]:
            found.append(f"after {SECONDS[-1]} seconds its pictures are no better than the first one repeated")
        if self.pixels and not sum(self.pixels.own) < sum(self.pixels.swapped):
            found.append("its pictures do not follow the actions")
        if self.updates and not self.updates[1] >= self.updates[0] / 2:
            found.append(f"its warm-up swallows most of its generator's {self.updates[0]} updates")
        return found


def measure(
    cfg: TrainConfig, name: str, folder: Path, clips: ClipBatch | None, window: Window | None
) -> dict[str, object]:
    """Facts for the summary of stage `name`, whose weights stand in `folder`: errors of samples against the held-out
    `clips`, and of pictures against those of the held-out `window`."""
    record, facts = RECORDS[name], {}
    world = checkpoint.read_config(folder)
    if record.gives != "dit":
        if window is not None:
            params = {part: checkpoint.load(folder, part, dtype=np.float32) for part in {"vae", record.gives}}
            psnr, frame = worst_frame(world, params, _pixels(window), fast=record.gives == "taehv")
            facts["worst_frame"] = {"psnr": psnr, "frame": frame, "frames": window.frames.shape[1]}
        return facts
    params = {part: checkpoint.load(folder, part, dtype=np.float32) for part in ("dit", *world.encoders)}
    if clips is not None:
        facts["control"] = measure_control(cfg, name, params["dit"], clips)._asdict()
    if record.few_steps and window is not None:
        made = student_pixels(world, params, _pixels(window), Actions(window.keyboard, window.mouse))
        facts["pixels"] = made._asdict()
    if "teacher" in record.needs:
        own = getattr(cfg, name)
        total = -(-own.steps // own.ratio)
        facts["updates"] = [total, max(0, total - own.optimizer.warmup)]
    return facts


def frames_wanted(world: WorldConfig, name: str) -> int:
    """Frames of the held-out clips that stage `name` is judged by: a student's SECONDS, an autoencoder's LONG."""
    return frames_needed(world) if RECORDS[name].gives == "dit" else LONG


def _pixels(window: Window) -> np.ndarray:
    return np.asarray(window.frames, np.float32) / 127.5 - 1


def measure_control(cfg: TrainConfig, name: str, params: dict, clips: ClipBatch) -> Control:
    """Sample errors of the DiT `params` that stage `name` exported: by the steps of inference for a few-step student,
    by many steps for the others. Of the clips, the first frames count that the stage with the fewest scores at once, so
    that the errors of a ladder can be compared."""
    least = min(filter(None, (getattr(stage, "latents", None) for stage in cfg.stages().values())))
    clips = _begin(clips, least, cfg.world.vae.temporal_stride)
    if name == "foundation":
        assert cfg.foundation is not None  # its weights are here
        shift = cfg.foundation.shift_in(cfg.world)
        measured = jax.jit(lambda params, clips: foundation_control(cfg.world, params, clips, shift=shift))
    else:
        world = cfg.world
        if not RECORDS[name].few_steps:
            steps = tuple(np.linspace(1000, 1000 / _MANY, _MANY).round().astype(int).tolist())
            world = dataclasses.replace(world, sampler=dataclasses.replace(world.sampler, steps=steps))
        measured = jax.jit(lambda params, clips: student_control(world, params, clips))
    own = getattr(cfg, name)
    size = min(len(clips.latents), max(2, own.batch // own.accumulate))
    parts = [jax.tree.map(lambda leaf, at=at: leaf[at : at + size], clips) for at in range(0, len(clips.latents), size)]
    found = [measured(params, part) for part in parts if len(part.latents) == size]
    return Control(*(float(np.mean(errors)) for errors in zip(*found, strict=True)))


def _begin(clips: ClipBatch, latents: int, stride: int) -> ClipBatch:
    """The first `latents` latent frames of `clips`."""
    return clips._replace(
        latents=clips.latents[:, :latents],
        condition=clips.condition[:, :latents],
        actions=jax.tree.map(lambda rows: rows[:, : stride * (latents - 1) + 1], clips.actions),
    )


def judge(out: Path, stages: list[str]) -> list[Line]:
    """A line for each of `stages` that was trained in `out`, where its teachers are looked for as well."""
    found = {name: _summary(out / name) for name in RECORDS}
    errors = {name: summary["control"]["error"] for name, summary in found.items() if summary.get("control")}
    return [_line(out / stage, found[stage], errors) for stage in stages if found[stage]]


def _line(folder: Path, summary: dict, errors: dict[str, float]) -> Line:
    name, record = folder.name, RECORDS[folder.name]
    logged = [line for line in log.read(folder) if line["kind"] == "train"]
    losses = [line["loss"] for line in logged]
    rates = [line["steps_per_s"] for line in logged if "steps_per_s" in line]
    tenth = -(-len(losses) // 10)
    teachers = [errors[teacher] for teacher in record.taught_by if teacher in errors]
    own_loss = len(losses) > 1 and "teacher" not in record.needs
    return Line(
        stage=name,
        steps=summary["steps"],
        seconds=summary["seconds"],
        rate=median(rates) if rates else None,
        loss=(fmean(losses[:tenth]), fmean(losses[-tenth:])) if own_loss else None,
        control=Control(**summary["control"]) if name in errors else None,
        ratio=errors[name] / min(teachers) if name in errors and teachers else None,
        psnr=summary["worst_frame"]["psnr"] if "worst_frame" in summary else None,
        pixels=Pixels(**summary["pixels"]) if "pixels" in summary else None,
        updates=tuple(summary["updates"]) if "updates" in summary else None,
    )


def _summary(folder: Path) -> dict:
    """What a finished stage wrote of itself; empty where there is none."""
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else {}
