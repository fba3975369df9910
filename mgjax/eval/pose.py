"""Training the pose regressor that tells where a world's camera has gone, and what of a level was trained on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from mgjax.data import camera
from mgjax.data.store.dataset import Dataset
from mgjax.data.store.feed import Clips, read_good
from mgjax.data.types import Clip
from mgjax.errors import InputError
from mgjax.eval import npz
from mgjax.models import pose
from mgjax.models.layers import apply
from mgjax.models.pose import Camera, PoseConfig
from mgjax.train.parts.optim import make_optimizer
from mgjax.train_config import OptimizerConfig

CELLS, HEADINGS = 16, 8  # of the map each way, and of the compass
_FORWARD = np.array([1.0, 0.0, 0.0])
_PICTURES = 16  # of a clip in a batch
_PIECE = 256  # pictures that are read at a time
_NOISE, _GAIN = 0.05, 0.2  # of pictures in training, whose colours lie in [-1, 1]


@dataclasses.dataclass(frozen=True, eq=False)
class PoseRegressor:
    """A pose regressor, its weights, and how often it was shown each cell of the map and heading."""

    cfg: PoseConfig
    params: dict
    visits: Int[np.ndarray, "x y headings"]

    def read(self, video: UInt8[np.ndarray, "*s h w 3"]) -> Camera:
        """Where the camera of every picture is."""
        found = _in_pieces(lambda part: _read(self.params, self.cfg, part), _pictures(video))
        return Camera(*(part.reshape(*video.shape[:-3], 3) for part in map(np.concatenate, zip(*found, strict=True))))

    def distance(
        self, video: UInt8[np.ndarray, "*s h w 3"], truth: UInt8[np.ndarray, "*s h w 3"]
    ) -> Float[np.ndarray, "*s"]:
        """Of features (`mgjax.models.pose.distance`), picture by picture."""
        found = _in_pieces(
            lambda one, other: _distance(self.params, self.cfg, one, other), _pictures(video), _pictures(truth)
        )
        return np.concatenate(found).reshape(video.shape[:-3])

    def visited(self, cameras: Camera) -> Int[np.ndarray, "*s"]:
        """How many of the pictures that it learned from were taken in the cell, with the heading, of each camera."""
        return self.visits[cells(self.cfg, cameras)]

    def save(self, path: Path) -> None:
        npz.write(path, self.cfg, self.params, {"visits": self.visits})

    @classmethod
    def load(cls, path: Path) -> PoseRegressor:
        """InputError where the file is none."""
        cfg, params, beside = npz.read(path, PoseConfig, pose.init, "pose regressor", ("visits",))
        return cls(cfg, params, beside["visits"])


def cells(cfg: PoseConfig, cameras: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cell of the map, both ways, and heading of cameras; those outside of the box count to its border."""
    low, high = np.asarray(cfg.low), np.asarray(cfg.high)
    place = (cameras.position - low) / np.maximum(high - low, 1e-6)
    x, y, _ = np.moveaxis(np.clip((place * CELLS).astype(int), 0, CELLS - 1), -1, 0)
    turn = np.arctan2(cameras.direction[..., 1], cameras.direction[..., 0]) / (2 * np.pi)
    return x, y, np.floor(turn * HEADINGS + 0.5).astype(int) % HEADINGS


def cameras_of(clip: Clip) -> Camera | None:
    """As the engine had them; None where they are not known."""
    if not (np.isfinite(clip.position).all() and np.isfinite(clip.rotation).all()):
        return None
    return Camera(clip.position, camera.rotate(clip.rotation, _FORWARD))


def angle(one: Float[np.ndarray, "*s 3"], other: Float[np.ndarray, "*s 3"]) -> Float[np.ndarray, "*s"]:
    """Degrees between unit vectors."""
    return np.rad2deg(np.arccos(np.clip((one * other).sum(-1), -1, 1)))


class _Batch(NamedTuple):
    pictures: UInt8[np.ndarray, "n h w 3"]
    cameras: Camera


def train(
    folders: Sequence[str],
    steps: int,
    seed: int = 0,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    *,
    batch: int = 256,
) -> PoseRegressor:
    """A pose regressor trained on recordings of one level, by so many pictures a step. `progress` is told every tenth
    loss.

    Pictures are made lighter or darker, noisy and, half of them, a little blurred: those of worlds are.

    Raises:
        InputError: the recordings do not say where the camera was.
    """
    clips = Clips(folders, _PICTURES, None)
    low, high, visits = _survey(clips)
    cfg = PoseConfig(tuple(low.tolist()), tuple(high.tolist()))
    params = pose.init(jax.random.key(seed), cfg)
    optimizer = make_optimizer(
        OptimizerConfig(kind="muon", learning_rate=2e-3, b2=0.99, weight_decay=0.01, warmup=20, decay=0.7), steps
    )
    span = jnp.maximum(jnp.asarray(high - low, jnp.float32), 1e-6)

    def loss(params, key, pictures, position, direction):
        shown = _disturbed(key, pose.prepare(cfg, pictures))
        found = apply(pose.Pose(cfg), params, shown)
        wanted = 2 * (position - jnp.asarray(low, jnp.float32)) / span - 1
        return jnp.abs(found[0] - wanted).mean() + jnp.abs(found[1] - direction).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, key, pictures, position, direction):
        value, grads = jax.value_and_grad(loss)(params, key, pictures, position, direction)
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state, value

    state, key = optimizer.init(params), jax.random.key(seed)
    for index, (pictures, cameras) in enumerate(_batches(clips, steps, batch, seed)):
        parts = (part.astype(np.float32) for part in cameras)
        params, state, value = step(params, state, jax.random.fold_in(key, index), pictures, *parts)
        if index % 10 == 0 or index + 1 == steps:
            progress(index + 1, float(value))
    return PoseRegressor(cfg, jax.device_get(params), visits)


def _survey(clips: Clips) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The box in which all cameras stand, and how often each of its cells and headings was visited."""

    def read(dataset: Dataset, number: int) -> tuple[str, Camera | None]:
        return f"clip {dataset.clips[number].name} of {dataset.path}", cameras_of(dataset.read_rows(number))

    found = []
    for index in range(len(clips)):
        name, cameras = read_good(clips, index, read)
        if cameras is None:
            raise InputError(f"{name} does not say where the camera was")
        found.append(cameras)
    cameras = Camera(*(np.concatenate(part) for part in zip(*found, strict=True)))
    low, high = cameras.position.min(0), cameras.position.max(0)
    visits = np.zeros((CELLS, CELLS, HEADINGS), np.int32)
    box = PoseConfig(tuple(low.tolist()), tuple(high.tolist()))
    np.add.at(visits, cells(box, cameras), 1)
    return low, high, visits


def _batches(clips: Clips, steps: int, batch: int, seed: int) -> Iterator[_Batch]:
    """A few pictures each of clips at random, the next batch read meanwhile."""

    def read(dataset: Dataset, number: int, rng: np.random.Generator) -> _Batch:
        clip = dataset.read(number)
        chosen = np.sort(rng.choice(len(clip.frames), _PICTURES, replace=False))
        cameras = cameras_of(clip)
        assert cameras is not None  # surveyed
        return _Batch(clip.frames[chosen], Camera(*(part[chosen] for part in cameras)))

    def make(index: int) -> _Batch:
        rng = np.random.default_rng((seed, index))
        chosen = rng.integers(0, len(clips), -(-batch // _PICTURES))
        parts = [read_good(clips, int(number), functools.partial(read, rng=rng)) for number in chosen]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:batch], *parts)

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(make, 0)
        for index in range(steps):
            ready = coming.result()
            coming = pool.submit(make, index + 1)
            yield ready


def _disturbed(key: Array, pictures: Float[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    noise, gain, blur = jax.random.split(key, 3)
    own = (len(pictures), 1, 1, 1)
    rolled = [jnp.roll(pictures, (up, left), (1, 2)) for up in (-1, 0, 1) for left in (-1, 0, 1)]
    pictures = jnp.where(jax.random.bernoulli(blur, 0.5, own), sum(rolled) / len(rolled), pictures)
    pictures = (pictures + 1) * (1 + _GAIN * jax.random.uniform(gain, own, minval=-1)) - 1
    return pictures + _NOISE * jax.random.normal(noise, pictures.shape)


@functools.partial(jax.jit, static_argnums=1)
def _read(params, cfg, pictures):
    return pose.read(params, cfg, pictures)


@functools.partial(jax.jit, static_argnums=1)
def _distance(params, cfg, one, other):
    return pose.distance(params, cfg, one, other)


def _pictures(video: np.ndarray) -> np.ndarray:
    return video.reshape(-1, *video.shape[-3:])


def _in_pieces(function: Callable, *pictures: np.ndarray) -> list:
    """`function` of so many pictures at a time; the last ones are filled up, so that it is compiled once."""
    found = []
    for start in range(0, len(pictures[0]), _PIECE):
        parts = [part[start : start + _PIECE] for part in pictures]
        count = len(parts[0])
        padded = [np.concatenate([part, np.repeat(part[-1:], _PIECE - count, 0)]) for part in parts]
        found.append(jax.tree.map(lambda leaf, count=count: np.asarray(leaf)[:count], function(*padded)))
    return found
