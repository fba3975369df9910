"""Training the inverse dynamics model that judges worlds, and its scores as the GameWorld Score counts them.

Matrix-Game 1's GameWorldScore asks of every frame which of forward, back or neither, of left, right or neither is
pressed (both count as neither), and in which of nine directions the mouse goes. Other keys are each asked alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from mgjax.config import ControlConfig, WorldConfig
from mgjax.data.store.feed import Window, windows
from mgjax.eval import npz
from mgjax.feeds.resident import ResidentFeed
from mgjax.models import inverse
from mgjax.models.inverse import InverseConfig
from mgjax.train.parts.optim import make_optimizer
from mgjax.train_config import OptimizerConfig
from mgjax.types import Actions

_OPPOSITES = (("forward", "back"), ("left", "right"), ("turn_left", "turn_right"), ("side_left", "side_right"))
_FRAMES = 33  # of a window in training
_PIECE = 64  # frames that are read at a time, but for what lies around them


class Inverted(NamedTuple):
    """What is pressed at every frame but the last, read off or given."""

    keys: Int[np.ndarray, "b f g"]  # of every group 0 for none (or several), else the key's number in it
    mouse: Float[np.ndarray, "b f m"]


@dataclasses.dataclass(frozen=True)
class Judge:
    """An inverse dynamics model and its weights."""

    cfg: InverseConfig
    params: dict

    def read(self, video: UInt8[np.ndarray, "b f h w 3"]) -> Inverted:
        """The rows under which the videos go from frame to frame."""
        around, steps = 2 * self.cfg.reach, video.shape[1] - 1
        keys, mouse = [], []
        for start in range(0, steps, _PIECE):
            low, high = max(0, start - around), min(steps, start + _PIECE + around)
            made = _read(self.params, self.cfg, video[:, low : high + 1])
            piece = slice(start - low, min(start + _PIECE, steps) - low)
            keys.append(np.stack([np.asarray(logits.argmax(-1)) for logits in made[0]], -1)[:, piece])
            mouse.append(np.asarray(made[1])[:, piece])
        return Inverted(np.concatenate(keys, 1), np.concatenate(mouse, 1))

    def save(self, path: Path) -> None:
        npz.write(path, self.cfg, self.params)

    @classmethod
    def load(cls, path: Path) -> Judge:
        """InputError where the file is none."""
        return cls(*npz.read(path, InverseConfig, inverse.init, "inverse dynamics model")[:2])


@functools.partial(jax.jit, static_argnums=1)
def _read(params, cfg, video):
    return inverse.read(params, cfg, video)


def groups_of(control: ControlConfig) -> tuple[tuple[str, ...], ...]:
    """The keys that are asked for together: opposites, and of a model with an idle column all."""
    columns = [name for index, name in enumerate(control.columns) if index != control.idle]
    if control.idle is not None:
        return (tuple(columns),)
    pairs = [pair for pair in _OPPOSITES if set(pair) <= set(columns)]
    return (*pairs, *((name,) for name in columns if not any(name in pair for pair in pairs)))


def given(cfg: InverseConfig, control: ControlConfig, actions: Actions) -> Inverted:
    """What a judge should read where these rows [b, f] are given."""
    keyboard = np.asarray(actions.keyboard) > 0.5
    keys = []
    for group in cfg.groups:
        pressed = keyboard[..., [control.columns.index(name) for name in group]]
        keys.append(np.where(pressed.sum(-1) == 1, pressed.argmax(-1) + 1, 0))
    return Inverted(np.stack(keys, -1), np.asarray(actions.mouse))


def train(
    folders: Sequence[str],
    world: WorldConfig,
    steps: int,
    seed: int = 0,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    *,
    batch: int = 8,
    resident: bool = False,
) -> Judge:
    """A judge trained on recordings, in the keys and the mouse unit of `world`, by so many windows a step; `resident`
    as `mgjax.feeds.resident`. `progress` is told every tenth loss.

    The colours of every batch are exchanged at random: what is read is movement, and worlds tint their pictures.
    """
    cfg = InverseConfig(groups_of(world.control), world.dit.action.mouse_dim)
    params = inverse.init(jax.random.key(seed), cfg)
    optimizer = make_optimizer(
        OptimizerConfig(kind="muon", learning_rate=2e-3, b2=0.99, weight_decay=0.01, warmup=20, decay=0.5), steps
    )
    unit = world.control.mouse_step  # by which mouse errors are measured, so that they count as keys do

    def loss(params, window: Window, keys):
        logits, mouse = inverse.read(params, cfg, window.frames)
        crossed = sum(_cross_entropy(found, keys[..., index]) for index, found in enumerate(logits))
        return crossed + _huber((mouse - window.mouse[:, :-1]) / unit) if cfg.mouse_dim else crossed

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, window, keys):
        value, grads = jax.value_and_grad(loss)(params, window, keys)
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state, value

    state, colours = optimizer.init(params), np.random.default_rng(seed)
    if resident:
        held = ResidentFeed(folders, _FRAMES, batch, lambda _, *parts: Window(*parts), seed=seed, cfg=world)
        feed = contextlib.nullcontext(held)
    else:
        feed = contextlib.closing(windows(folders, _FRAMES, batch, seed=seed, cfg=world))
    with feed as source:
        for index in range(steps):
            window = next(source)
            window = window._replace(frames=window.frames[..., colours.permutation(3)])
            keys = given(cfg, world.control, Actions(window.keyboard[:, :-1], window.mouse[:, :-1])).keys
            params, state, value = step(params, state, window, keys)
            if index % 10 == 0 or index + 1 == steps:
                progress(index + 1, float(value))
    return Judge(cfg, jax.device_get(params))


def _cross_entropy(logits: Array, labels: Array) -> Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1).mean()


def _huber(error: Array) -> Array:
    size = jnp.abs(error)
    return jnp.where(size < 1, 0.5 * size**2, size - 0.5).mean()


def keyboard_hits(found: Inverted, wanted: Inverted) -> Float[np.ndarray, "b f"]:
    """Of every row the share of its groups that is right."""
    return (found.keys == wanted.keys).mean(-1)


def mouse_hits(found: Inverted, wanted: Inverted, zone: float, axes: tuple[int, ...]) -> Float[np.ndarray, "b f"]:
    """Whether every row's direction is right: up, down or neither and left, right or neither, where less than `zone` is
    neither; of `axes` alone, where a world does not turn along the other."""

    def direction(mouse):
        return np.where(np.abs(mouse) > zone, np.sign(mouse), 0)[..., list(axes)]

    return (direction(found.mouse) == direction(wanted.mouse)).all(-1).astype(float)
