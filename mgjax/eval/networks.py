"""Scores by networks that others trained, as ONNX files that a user brings; none comes with mgjax.

A network takes pictures [n, 3, h, w], red, green, blue in [0, 1], and what it gives says what it is:

    one picture  -> [n] or [n, 1]    a quality, as MUSIQ or the LAION aesthetic predictor give
    one picture  -> [n, d]           features, as CLIP or DINO give
    two pictures -> [n] or [n, 1]    a distance, as LPIPS gives
    two pictures -> [n, 3, h, w]     the picture between them, as AMT gives

Pictures are resized to the height and width that the file fixes; whatever else a network wants (means and deviations
of colours, a crop) belongs into its file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mgjax.errors import InputError
from mgjax.eval import score

Kind = Literal["quality", "features", "distance", "between"]
_PIECE = 8  # pictures at a time


@dataclass(frozen=True)
class Network:
    """What a file computes, and how it is called in reports."""

    name: str
    kind: Kind
    run: Callable[..., Float[np.ndarray, "n ..."]]  # of pictures in [0, 1], [n, h, w, 3]


def load(path: Path) -> Network:
    """The network in an ONNX file, called as the file is.

    Raises:
        InputError: onnxruntime is missing, or it is none of the networks above.
    """
    try:
        import onnxruntime
    except ImportError:
        raise InputError("networks of others need onnxruntime: pip install 'mgjax[networks]'") from None
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
    except Exception as error:  # onnxruntime has a dozen classes of its own
        raise InputError(f"{path} is no ONNX file that onnxruntime reads: {str(error).splitlines()[0]}") from None
    inputs, size = [given.name for given in session.get_inputs()], _size(session)

    def run(*pictures: np.ndarray) -> np.ndarray:
        given = {
            name: np.ascontiguousarray(_resized(part, size).transpose(0, 3, 1, 2))
            for name, part in zip(inputs, pictures, strict=True)
        }
        return np.asarray(session.run(None, given)[0])

    def in_pieces(*pictures: np.ndarray) -> np.ndarray:
        starts = range(0, len(pictures[0]), _PIECE)
        return np.concatenate([run(*(part[start : start + _PIECE] for part in pictures)) for start in starts])

    if len(inputs) not in (1, 2):
        raise InputError(f"{path} takes {len(inputs)} inputs; a network takes one picture, or two")
    blank = np.zeros((2, *(size or (64, 96)), 3), np.float32)
    try:
        shape = run(*[blank] * len(inputs)).shape
    except Exception as error:
        raise InputError(f"{path} does not take pictures [n, 3, h, w]: {str(error).splitlines()[0]}") from None
    return Network(path.stem, _kind(path, len(inputs), shape), in_pieces)


def _size(session: Any) -> tuple[int, int] | None:
    shape = session.get_inputs()[0].shape
    fixed = len(shape) == 4 and all(isinstance(side, int) for side in shape[2:])
    return tuple(shape[2:]) if fixed else None


def _kind(path: Path, inputs: int, shape: tuple[int, ...]) -> Kind:
    if shape[0] == 2:
        if shape in ((2,), (2, 1)):
            return "quality" if inputs == 1 else "distance"
        if len(shape) == 2 and inputs == 1:
            return "features"
        if len(shape) == 4 and shape[1] == 3 and inputs == 2:
            return "between"
    raise InputError(f"{path} gives {list(shape)} of two pictures each: no quality, features, distance or picture")


def _resized(pictures: Float[np.ndarray, "n h w 3"], size: tuple[int, int] | None) -> Float[np.ndarray, "n h w 3"]:
    if size is None or pictures.shape[1:3] == size:
        return pictures
    planes = [
        [
            np.asarray(Image.fromarray(picture[..., colour]).resize(size[::-1], Image.Resampling.BICUBIC))
            for colour in range(3)
        ]
        for picture in pictures
    ]
    return np.clip(np.moveaxis(np.asarray(planes, np.float32), 1, -1), 0, 1)


def ask(network: Network, videos: dict[str, UInt8[np.ndarray, "b f h w 3"]], fps: int, frames: dict[str, int]) -> dict:
    """Of "world" and "recording", looked at once a second: a quality at the start, in the middle of the clip and at its
    end; how like features stay to those of the first picture, and, after so many `frames`, to the recording's; a
    distance from the recording after these; how far every picture is from what the network puts between its neighbours,
    the mean difference of pixels."""
    length = videos["recording"].shape[1]
    if network.kind == "quality":
        times = {"at first": 0, "in the middle": length // 2, "at last": length - 1}
        return {
            when: {name: _interval(network.run(_unit(video[:, at]))) for name, video in videos.items()}
            for when, at in times.items()
        }
    if network.kind == "distance":
        truth, still = videos["recording"], videos["recording"][:, 0]
        return {
            time: {
                "world": _interval(network.run(_unit(videos["world"][:, at]), _unit(truth[:, at]))),
                "first picture": _interval(network.run(_unit(still), _unit(truth[:, at]))),
            }
            for time, at in frames.items()
        }
    if network.kind == "features":
        at = {
            name: {time: _features(network, video[:, frame]) for time, frame in frames.items()}
            for name, video in videos.items()
        }
        begun = _features(network, videos["recording"][:, 0])
        return {
            time: {
                **{f"{name} to its first picture": _interval((at[name][time] * begun).sum(-1)) for name in videos},
                "world to recording": _interval((at["world"][time] * at["recording"][time]).sum(-1)),
            }
            for time in frames
        }
    found = {}
    for name, video in videos.items():
        apart = []
        for at in range(1, length - 1, fps):
            before, here, after = (_unit(video[:, at + step]) for step in (-1, 0, 1))
            between = network.run(before, after).transpose(0, 2, 3, 1)
            apart.append(np.abs(between - _resized(here, between.shape[1:3])).mean((1, 2, 3)))
        found[name] = _interval(np.mean(apart, 0))
    return found


def _features(network: Network, pictures: UInt8[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b d"]:
    found = network.run(_unit(pictures))
    return found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-12)


def _unit(pictures: UInt8[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b h w 3"]:
    return pictures.astype(np.float32) / 255


def _interval(values: np.ndarray) -> dict:
    return score.interval(values.reshape(len(values)))._asdict()
