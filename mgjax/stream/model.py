"""What a player needs of a world: its programs and its weights, from which streams start. No networks, no web code."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mgjax.config import WorldConfig
from mgjax.errors import InputError
from mgjax.io.image import as_picture
from mgjax.stream import snapshot
from mgjax.stream.rows import Rows, all_rows, chunk_rows, num_chunks, to_chunks
from mgjax.stream.session import Session
from mgjax.types import Actions

if TYPE_CHECKING:
    from mgjax.world import Params, World

Picture = Any  # a path, a PIL.Image.Image, or an array [h, w, 3]: uint8, or float in [-1, 1]


@dataclass(frozen=True, eq=False)
class Model:
    """A world and its weights. It starts streams, which keep of the weights what they need: the encoders of pictures
    are let go of with the model."""

    world: World
    params: Params
    source: str

    @property
    def cfg(self) -> WorldConfig:
        """Sizes, keys and frame rate."""
        return self.world.cfg

    @functools.cached_property
    def fingerprint(self) -> str:
        """A short hash of the weights that streams use."""
        return snapshot.fingerprint(self.world.streaming(self.params))

    def __repr__(self) -> str:
        cfg, how = self.cfg, self.world.settings
        return (
            f"<Model {cfg.name} from {self.source}: {cfg.width}x{cfg.height} at {cfg.fps} frames a second, keys"
            f" {' '.join(cfg.control.keys)}; {how.dtype}, decoder {how.decoder}, attention {how.attention}>"
        )

    def start(
        self,
        picture: Picture | Sequence[Picture],
        seed: int = 0,
        *,
        seeds: Sequence[int] | None = None,
        frames: int | None = None,
    ) -> Session:
        """A stream from a picture; or several, stepped together, from several pictures or one picture and `seeds`.

        Args:
            picture: a file, a Pillow image or an array [h, w, 3], uint8 or float in [-1, 1]. Of any size: the largest
                centred part with the world's shape is resized to it. Several: a list, or an array [b, h, w, 3].
            seed: of the noise.
            seeds: one for each stream, in place of `seed`.
            frames: how many frames will be asked for at most, where that is known: a short stream's picture is encoded
                in less time.

        Raises:
            InputError: a picture is none, or pictures and seeds differ in number.
        """
        horizon = None
        if frames is not None:
            if frames < 1:
                raise InputError(f"a stream of {frames} frames has no frame")
            horizon = num_chunks(self.cfg, frames - 1) * self.cfg.dit.chunk
        return self._start(picture, [seed] if seeds is None else list(seeds), horizon)

    def _start(self, picture: Picture | Sequence[Picture], seeds: list[int], horizon: int | None) -> Session:
        several = isinstance(picture, list | tuple) or getattr(picture, "ndim", 0) == 4
        pictures = [as_picture(one, self.cfg.height, self.cfg.width) for one in (picture if several else [picture])]
        if not pictures or not seeds:
            raise InputError("a stream needs a picture and a seed")
        for seed in seeds:
            check_seed(seed)
        seeds = seeds * len(pictures) if len(seeds) == 1 else seeds
        return Session.start(self.world, self.params, np.stack(pictures), seeds, horizon, self)

    def prefill(self, video: Picture | Sequence[Picture], rows: Rows, seed: int = 0) -> Session:
        """A stream that goes on after the frames of a given `video`, as if it had made them.

        Args:
            video: its frames [f, h, w, 3] or a list of pictures, as in `start`: as many as whole chunks give, which for
                chunks of 12 are 9, 21, 33 and so on.
            rows: the f - 1 rows that made them, a script or arrays: row r made frame r + 1.
            seed: of the noise of what follows.

        Raises:
            InputError: frames or rows are none of this world, or of another number.
        """
        check_seed(seed)
        cfg = self.cfg
        given, count = all_rows(cfg, rows), len(video)
        chunks = num_chunks(cfg, count - 1)
        if count != chunk_rows(cfg, chunks) + 1:
            lengths = ", ".join(str(chunk_rows(cfg, chunks) + 1) for chunks in (1, 2, 3))
            raise InputError(f"a stream does not begin with {count} frames: give {lengths} and so on")
        if given.keyboard.shape[:-1] != (count - 1,):
            raise InputError(
                f"{count} frames were made by {count - 1} rows, and these are {list(given.keyboard.shape[:-1])}"
            )
        frames = np.stack([as_picture(frame, cfg.height, cfg.width) for frame in video])
        session = Session.start(self.world, self.params, frames[:1], [seed], model=self)
        run, actions = self.world.programs(), to_chunks(cfg, Actions(*(part[None] for part in given)))
        latents = run.encode_video(self.world, self.params, frames[None])
        latents = latents.reshape(1, chunks, -1, *latents.shape[2:]).swapaxes(0, 1)
        state = run.prefill(self.world, session.params, session.state, actions, latents)
        return Session(self.world, session.params, state, self)

    def resume(self, path: str | os.PathLike) -> Session:
        """The streams that `Session.save` wrote; they go on as they would have.

        Raises:
            InputError: the file is damaged, or belongs to another model, other weights or settings.
        """
        return Session.load(self.world, self.params, path, self)


def check_seed(seed: int) -> None:
    """InputError for a seed that the generators do not take."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise InputError(f"{seed!r} is no seed: a seed is a whole number from 0 to {2**32 - 1}")
