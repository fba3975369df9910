"""Where the camera of a world has gone: its error against the engine's under the same rows, how far pictures are apart
in features that tell places apart, and how control depends on how often a place was trained on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from mgjax.eval import score
from mgjax.eval.pose import PoseRegressor, angle
from mgjax.models.pose import Camera

_GROUPS = 4  # of places, by how often they were visited; each has as many frames of the recordings


class Places(NamedTuple):
    """Figures of the report, and how far the cameras are from where they should be, in the engine's units."""

    figures: dict
    distances: dict[str, Float[np.ndarray, "b f"]]


def measure(
    regressor: PoseRegressor,
    videos: dict[str, UInt8[np.ndarray, "b f h w 3"]],
    cameras: Camera,
    hits: dict[str, dict[str, Float[np.ndarray, "b r"]]],
    frames: dict[str, int],
) -> Places:
    """Of `videos` "world" and "recording", whose rows were read with `hits`, where the engine had `cameras` [b, f];
    errors after so many `frames`, by what the report calls that time.

    What the regressor reads off the recordings is its own error, below which none is to be had; a camera that stays
    where it was at first is the floor.
    """
    seen = {name: regressor.read(video) for name, video in videos.items()}
    first = Camera(*(np.broadcast_to(part[:, :1], part.shape) for part in cameras))
    compared = {"world": seen["world"], "recording": seen["recording"], "first picture": first}
    distances = {name: np.linalg.norm(found.position - cameras.position, axis=-1) for name, found in compared.items()}
    angles = {name: angle(found.direction, cameras.direction) for name, found in compared.items()}
    still = np.broadcast_to(videos["recording"][:, :1], videos["recording"].shape)
    pictures = {"world": videos["world"], "first picture": still}

    def apart(at: int) -> dict:
        return {
            name: score.interval(regressor.distance(video[:, at], videos["recording"][:, at]))._asdict()
            for name, video in pictures.items()
        }

    size = np.subtract(regressor.cfg.high, regressor.cfg.low)
    figures = {
        "camera error": {
            "the level's size": size.round(3).tolist(),
            **{
                time: {
                    "distance": {name: score.interval(part[:, at])._asdict() for name, part in distances.items()},
                    "degrees": {name: score.interval(part[:, at])._asdict() for name, part in angles.items()},
                }
                for time, at in frames.items()
            },
        },
        "feature distance": {time: apart(at) for time, at in frames.items()},
        "control by coverage": _by_coverage(
            {"world": regressor.visited(seen["world"]), "recording": regressor.visited(cameras)}, hits
        ),
    }
    return Places(figures, distances)


def _by_coverage(
    visits: dict[str, Float[np.ndarray, "b f"]], hits: dict[str, dict[str, Float[np.ndarray, "b r"]]]
) -> list[dict]:
    """Control where a place was seldom trained on and where often, the world's where its own pictures say it is."""
    rows = {name: found[:, :-1] for name, found in visits.items()}
    edges = np.quantile(rows["recording"], np.linspace(0, 1, _GROUPS + 1)[1:-1])
    group = {name: np.searchsorted(edges, found) for name, found in rows.items()}
    borders = [0, *(int(edge) for edge in edges), int(rows["recording"].max())]

    def scores(name: str, index: int) -> dict:
        here = group[name] == index
        control = {part: float(values[here].mean()) if here.any() else None for part, values in hits[name].items()}
        return {"share of frames": float(here.mean()), **control}

    return [
        {"visits": [borders[index], borders[index + 1]], **{name: scores(name, index) for name in rows}}
        for index in range(_GROUPS)
    ]
