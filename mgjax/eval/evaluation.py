"""A world against recordings: streams from their first pictures, under their rows, beside what happened there.

The recordings are what an engine made of the same rows: they are truth and, read by the same judge, the ceiling of
every control score. Its floors are what is read off the recordings against the rows of another clip, and off a video
that stands still.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from mgjax.data.store import schema
from mgjax.data.store.dataset import Dataset
from mgjax.errors import InputError
from mgjax.eval import place, score
from mgjax.eval.inverse import Inverted, Judge, given, keyboard_hits, mouse_hits
from mgjax.eval.networks import Network, ask
from mgjax.eval.pose import PoseRegressor, cameras_of
from mgjax.io.actions import load_actions
from mgjax.loading import Model
from mgjax.models.pose import Camera
from mgjax.types import Actions

SECONDS = (1, 2, 5)  # after which pictures are compared
_BATCH = 8  # streams at a time
_LAGS = (1, 17, 85)  # frames over which pictures are compared with themselves
_WALKS = {"a turn and back": ("right", "left"), "ahead and back": ("w", "s")}  # of a second each way
_EDGE = 10  # seconds at the start and at the end between which drift is told


class Recordings(NamedTuple):
    """Clips to judge by, in the model's keys and mouse unit."""

    truth: UInt8[np.ndarray, "b f h w 3"]
    actions: Actions  # [b, f - 1]
    axes: tuple[int, ...]  # of the mouse, along which the camera turns at all
    cameras: Camera | None = None  # [b, f], where the recordings say it


class Evaluation(NamedTuple):
    """Figures, as the report writes them, and what they are of."""

    figures: dict
    made: UInt8[np.ndarray, "b f h w 3"]
    truth: UInt8[np.ndarray, "b f h w 3"]
    nearness: Float[np.ndarray, "b f"]  # PSNR of every frame
    looks: dict[str, score.Look]  # [b, f] of "world" and "recording"
    astray: dict[str, Float[np.ndarray, "b f"]]  # how far cameras are from where they should be; empty where not known


def read_recordings(folder: str, model: Model, clips: int, frames: int | None) -> Recordings:
    """The first `frames` frames (None: all) of the first clips that are as long as the shortest of them.

    Raises:
        InputError: the recordings do not fit the model, or have fewer frames or clips.
    """
    dataset, cfg = Dataset(folder), model.cfg
    if dataset.schema.size != (cfg.height, cfg.width):
        raise InputError(
            f"{folder} has frames of {dataset.schema.size}, the model {cfg.name} {(cfg.height, cfg.width)}"
        )
    if len(dataset) < 2:
        raise InputError(f"{folder} has fewer than two clips: rows of another clip are the floor of control")
    count = min(clips, len(dataset))
    shortest = min(entry.frames for entry in dataset.clips[:count])
    if frames is not None and shortest < frames:
        raise InputError(f"{folder} has a clip of {shortest} frames, and {frames} are asked for")
    read = [dataset.read(index, 0, frames or shortest) for index in range(count)]
    rows = [schema.to_model(clip.keyboard, clip.mouse, dataset.schema, cfg) for clip in read]
    keyboard, mouse = (np.stack([row[part][:-1] for row in rows]) for part in (0, 1))
    level = dataset.schema.pitch_limits == (0.0, 0.0)
    axes = tuple(axis for axis in range(cfg.dit.action.mouse_dim) if not (axis == 0 and level))
    cameras = [cameras_of(clip) for clip in read]
    known = None if None in cameras else Camera(*map(np.stack, zip(*cameras, strict=True)))
    return Recordings(np.stack([clip.frames for clip in read]), Actions(keyboard, mouse), axes, known)


def read_videos(folder: str, recordings: Recordings) -> UInt8[np.ndarray, "b f h w 3"]:
    """The clips of a dataset as they stand for the recordings', one for one.

    Raises:
        InputError: there are fewer, or they are shorter or of another size.
    """
    dataset, (count, frames, *size, _) = Dataset(folder), recordings.truth.shape
    if tuple(dataset.schema.size) != tuple(size):
        raise InputError(f"{folder} has frames of {dataset.schema.size}, the recordings {tuple(size)}")
    if len(dataset) < count:
        raise InputError(f"{folder} has {len(dataset)} clips, and {count} are compared (--clips)")
    short = next((entry.name for entry in dataset.clips[:count] if entry.frames < frames), None)
    if short is not None:
        raise InputError(f"clip {short} of {folder} is shorter than the {frames} frames that are compared (--frames)")
    return np.stack([dataset.read(index, 0, frames).frames for index in range(count)])


def evaluate(
    model: Model,
    recordings: Recordings,
    judge: Judge,
    say: Callable[[str], None] = lambda sentence: None,
    *,
    made: UInt8[np.ndarray, "b f h w 3"] | None = None,
    regressor: PoseRegressor | None = None,
    networks: Sequence[Network] = (),
) -> Evaluation:
    """Streams of the model from the recordings' first pictures, under their rows, and every measure of them; or of
    videos that something else `made` of the same, whose controls and chunks are those of `model`. What a pose
    `regressor` measures needs recordings that say where the camera was."""
    truth, actions, axes, cameras = recordings
    cfg, fps = model.cfg, model.cfg.fps
    own = made is None
    began = time.monotonic()
    if made is None:
        say(f"streaming {len(truth)} clips of {truth.shape[1]} frames")
        made = _in_batches(
            lambda part: _stream(model, truth[part], Actions(*(rows[part] for rows in actions))), len(truth)
        )
    seconds = time.monotonic() - began
    say("reading what was pressed off the videos")
    wanted = given(judge.cfg, cfg.control, actions)
    still = np.broadcast_to(truth[:, :1], truth.shape)
    videos = {"world": made, "recording": truth, "still": still}
    found = {name: _read(judge, video) for name, video in videos.items()}
    other = Inverted(*(np.roll(part, 1, 0) for part in wanted))
    zone = cfg.control.mouse_step / 4

    def hits(name, wanted):
        control = {"keyboard": keyboard_hits(found[name], wanted)}
        return {**control, "mouse": mouse_hits(found[name], wanted, zone, axes)} if axes else control

    scored = {
        "world": hits("world", wanted),
        "recording (ceiling)": hits("recording", wanted),
        "rows of another clip (floor)": hits("recording", other),
        "a still picture (floor)": hits("still", wanted),
    }
    say("comparing pictures")
    near = {
        "world": _in_batches(lambda part: score.psnr(made[part], truth[part]), len(truth)),
        "first picture": _in_batches(lambda part: score.psnr(still[part], truth[part]), len(truth)),
    }
    both = {"world": made, "recording": truth}
    looks = {name: score.look(video) for name, video in both.items()}
    edge = min(_EDGE * fps, truth.shape[1] // 2)
    times = {f"{second} s": second * fps for second in SECONDS if second * fps < truth.shape[1]}
    places = place.Places({}, {})
    if regressor is not None and cameras is not None:
        say("reading where the cameras are")
        hits_of = {"world": scored["world"], "recording": scored["recording (ceiling)"]}
        places = place.measure(regressor, both, cameras, hits_of, times)
    others = {}
    for network in networks:
        say(f"asking {network.name}")
        others[network.name] = {"kind": network.kind, **ask(network, both, fps, times)}
    figures = {
        "model": cfg.name,
        "clips": len(truth),
        "frames": truth.shape[1],
        "fps": fps,
        **({"streamed frames a second": len(made) * (made.shape[1] - 1) / seconds} if own else {}),
        "control": {
            name: {part: score.interval(values.mean(1))._asdict() for part, values in parts.items()}
            for name, parts in scored.items()
        },
        "control of the world, first and last seconds": {
            part: [float(values[:, :edge].mean()), float(values[:, -edge:].mean())]
            for part, values in scored["world"].items()
        },
        "dead zone of the mouse": zone,
        "delay in frames": {
            name: score.delay(found[name].mouse[..., axes[-1]], wanted.mouse[..., axes[-1]])
            for name in ("recording", "world")
        }
        if axes
        else {},
        "nearness": {
            time: {
                "PSNR": score.interval(near["world"][:, at])._asdict(),
                "PSNR of the first picture": score.interval(near["first picture"][:, at])._asdict(),
                "SSIM": score.interval(score.ssim(made[:, at], truth[:, at]))._asdict(),
                "SSIM of the first picture": score.interval(score.ssim(still[:, at], truth[:, at]))._asdict(),
            }
            for time, at in times.items()
        },
        **places.figures,
        **({"networks": others} if others else {}),
        "change over frames": {
            f"{lag}": {name: score.interval(score.change(video, lag))._asdict() for name, video in both.items()}
            for lag in _LAGS
            if lag < truth.shape[1]
        },
        **({"mirrored walk": _mirrored(model, truth)} if own else {}),
        "drift, last seconds over first": {
            name: {
                part: float(values[:, -edge:].mean() / max(values[:, :edge].mean(), 1e-6))
                for part, values in look._asdict().items()
            }
            for name, look in looks.items()
        },
        "world over recording, last seconds": {
            part: float(values[:, -edge:].mean() / max(getattr(looks["recording"], part)[:, -edge:].mean(), 1e-6))
            for part, values in looks["world"]._asdict().items()
        },
        "seams": {
            name: score.interval(
                _in_batches(lambda part, video=video: score.seam_ratio(video[part], cfg.chunk_frames), len(truth))
            )._asdict()
            for name, video in both.items()
        },
    }
    return Evaluation(figures, made, truth, near["world"], looks, places.distances)


def _mirrored(model: Model, truth: np.ndarray) -> dict:
    """Walks of a second and back from the recordings' first pictures, of the keys that the world has. The gate is half
    of what changes in the recordings in a second."""
    away = model.cfg.fps
    if truth.shape[1] <= away:
        return {}
    gate, found = 0.5 * float(np.median(score.change(truth, away))), {"gate": 0.0}
    found["gate"] = gate
    for name, (there, back) in _WALKS.items():
        try:
            rows = Actions(*load_actions(f"{there}:{away} {back}:{away}", model.cfg, 2 * away))
        except InputError:  # the world has no such keys
            continue

        def walk(part: slice, rows: Actions = rows) -> np.ndarray:
            pictures = list(truth[part, 0])
            session = model.start(pictures, seeds=list(range(len(pictures))))
            return np.stack(list(session.play(rows)), 1)[:, : 2 * away + 1]

        video = _in_batches(walk, len(truth))
        found[name] = score.interval(score.returned(video, away, gate))._asdict()
    return found


def _stream(model: Model, truth: np.ndarray, actions: Actions) -> UInt8[np.ndarray, "b f h w 3"]:
    session = model.start(list(truth[:, 0]), seeds=list(range(len(truth))), frames=truth.shape[1])
    return np.stack(list(session.play(actions)), 1)[:, : truth.shape[1]]


def _read(judge: Judge, video: np.ndarray) -> Inverted:
    parts = [judge.read(video[start : start + _BATCH]) for start in range(0, len(video), _BATCH)]
    return Inverted(*map(np.concatenate, zip(*parts, strict=True)))


def _in_batches(function: Callable[[slice], np.ndarray], count: int) -> np.ndarray:
    return np.concatenate([function(slice(start, start + _BATCH)) for start in range(0, count, _BATCH)])
