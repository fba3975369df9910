"""A world as a gymnasium environment, in which agents act as players do. Wants the extra `gym`.

One step is one chunk, with one row held for all of it: `cfg.chunk_frames` frames of the world. A world knows of no
reward and of no end; who trains an agent says what is good (`reward`), and wraps the rest as for any environment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from jaxtyping import Float32, UInt8

from mgjax.config import WorldConfig
from mgjax.errors import InputError
from mgjax.io.image import as_picture, to_uint8
from mgjax.stream.controls import FASTEST
from mgjax.stream.rows import chunk_rows, no_rows
from mgjax.types import Actions

if TYPE_CHECKING:
    from mgjax.stream.model import Model, Picture
    from mgjax.stream.session import Session

Reward = Callable[[UInt8[np.ndarray, "f h w 3"], Actions], float]  # of the frames of a step, and its row [*]


class WorldEnv(gymnasium.Env):
    """Observations are frames [h, w, 3] of 0 to 255, the last of each step; all of a step's are in `info["frames"]`.

    An action is a row [a + m] float32: the keyboard's columns, held from 0.5 on, then [pitch, yaw] as in the world's
    rows, where it has a mouse. Where one key is held at a time, it is the number of that key's column.
    """

    def __init__(
        self,
        model: Model,
        pictures: Sequence[Picture],
        *,
        steps: int | None = None,
        reward: Reward = lambda frames, row: 0.0,
        render_mode: str | None = None,
    ):
        """`pictures`: where episodes begin, one drawn for each; `steps` of an episode, after which it is truncated.

        Raises:
            InputError: there is no picture or no step, or one of the pictures is none.
        """
        cfg = model.cfg
        if not pictures or (steps is not None and steps < 1):
            raise InputError("an environment has at least one picture, and episodes of at least one step")
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": cfg.fps / cfg.chunk_frames}
        if render_mode not in (None, "rgb_array"):
            raise InputError(f"there is no render mode {render_mode!r}, only rgb_array")
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (cfg.height, cfg.width, 3), np.uint8)
        self.action_space = _actions(cfg)
        self._model, self._limit, self._reward = model, steps, reward
        self._pictures = [_pixels(picture, cfg) for picture in pictures]
        self._session: Session | None = None
        self._frame = np.zeros(self.observation_space.shape, np.uint8)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[UInt8[np.ndarray, "h w 3"], dict[str, Any]]:
        """Begins an episode: with `options["picture"]`, or with a picture that is drawn, as the world's noise is."""
        super().reset(seed=seed)
        drawn = self._pictures[self.np_random.integers(len(self._pictures))]
        picture = (options or {}).get("picture")
        frame = drawn if picture is None else _pixels(picture, self._model.cfg)
        self._session = self._model.start(frame, int(self.np_random.integers(2**32)))
        self._frame, self._steps = frame.copy(), 0
        if not chunk_rows(self._model.cfg, 1):  # the first chunk is the picture, as the world sees it
            self._frame = self._session.step(no_rows(self._model.cfg))[0][-1]
        return self._frame, {"frames": self._frame[None]}

    def step(
        self, action: Float32[np.ndarray, " i"] | int
    ) -> tuple[UInt8[np.ndarray, "h w 3"], float, bool, bool, dict[str, Any]]:
        """Holds a row for a chunk.

        Raises:
            InputError: nothing was begun, or the action is none.
        """
        if self._session is None:
            raise InputError("reset the environment before its first step")
        row, cfg = self._row(action), self._model.cfg
        count = chunk_rows(cfg, 1, resumed=bool(self._session.position[0]))
        frames = self._session.step(Actions(*(np.tile(part, (count, 1)) for part in row)))[0]
        self._frame, self._steps = frames[-1], self._steps + 1
        truncated = self._limit is not None and self._steps >= self._limit
        return self._frame, float(self._reward(frames, row)), False, truncated, {"frames": frames}

    def render(self) -> UInt8[np.ndarray, "h w 3"] | None:
        """The last frame, where the mode is rgb_array."""
        return self._frame if self.render_mode else None

    def _row(self, action: Float32[np.ndarray, " i"] | int) -> Actions:
        if not self.action_space.contains(action):
            raise InputError(f"{str(action)[:80]} is no action of {self.action_space}")
        action_cfg = self._model.cfg.dit.action
        if isinstance(self.action_space, gymnasium.spaces.Discrete):
            row = np.eye(action_cfg.keyboard_dim, dtype=np.float32)[int(action)]
            return Actions(row, np.zeros(action_cfg.mouse_dim, np.float32))
        keyboard, mouse = np.split(np.asarray(action, np.float32), [action_cfg.keyboard_dim])
        return Actions(np.float32(keyboard >= 0.5), mouse)


def _actions(cfg: WorldConfig) -> gymnasium.Space:
    action, control = cfg.dit.action, cfg.control
    if control.idle is not None and not action.mouse_dim:
        return gymnasium.spaces.Discrete(action.keyboard_dim)
    turn = np.full(action.mouse_dim, FASTEST * control.mouse_step, np.float32)
    keys = np.ones(action.keyboard_dim, np.float32)
    return gymnasium.spaces.Box(np.concatenate([0 * keys, -turn]), np.concatenate([keys, turn]), dtype=np.float32)


def _pixels(picture: Picture, cfg: WorldConfig) -> UInt8[np.ndarray, "h w 3"]:
    return to_uint8(as_picture(picture, cfg.height, cfg.width))
