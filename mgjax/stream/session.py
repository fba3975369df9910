"""A running stream: the weights and the state in one place, and a device that never waits. No web code.

The state on the device is donated from chunk to chunk; nothing is copied and nothing is compiled after the first chunk.
A chunk is three programs (`mgjax.world`), dispatched at once and without waiting for any. Its frames leave for the host
before the last of them, which writes the cache, has run.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, UInt8

from mgjax.errors import InputError, NotFiniteError
from mgjax.stream import snapshot
from mgjax.stream.rows import Rows, chunk_of, script_of
from mgjax.types import Frames, StreamState

if TYPE_CHECKING:
    from mgjax.stream.model import Model, Picture
    from mgjax.world import Params, World


class Chunk:
    """Frames on their way to the host."""

    def __init__(self, frames: Frames, blank: Int[np.ndarray, " b"], index: int):
        """`blank`: leading frames of each stream that do not exist; `index`: chunks of the session before this one."""
        self.index = index
        self._frames, self._blank = frames, blank

    @property
    def finite(self) -> Bool[np.ndarray, " b"]:
        """Which streams' frames are numbers. Waits for them."""
        return np.asarray(self._frames.finite)

    def ready(self) -> bool:
        """Whether the frames are computed, without waiting for them."""
        return self._frames.pixels.is_ready()  # pyright: ignore[reportAttributeAccessIssue] of jax.Array's stub

    def wait(self) -> Chunk:
        """Waits until the frames are computed."""
        jax.block_until_ready(self._frames)
        return self

    def fetch(self, *, check: bool = True) -> list[UInt8[np.ndarray, "f h w 3"]]:
        """Each stream's new frames: 9 of its first chunk, then 12. Waits for them.

        Raises:
            NotFiniteError: some are no numbers; never without `check`, for who looks at `finite` himself.
        """
        if check and not self.finite.all():
            lost = ", ".join(map(str, np.flatnonzero(~self.finite)))
            raise NotFiniteError(
                f"chunk {self.index} of stream {lost} is not made of finite numbers: the weights or the state of the"
                " stream are damaged"
            )
        return [row[skip:] for row, skip in zip(np.asarray(self._frames.pixels), self._blank, strict=True)]


class Session:
    """Streams of one world, all rows of the batch stepped together. `Model.start` and `Model.resume` make one."""

    def __init__(self, world: World, params: Params, state: StreamState, model: Model | None = None):
        """`params`: the whole world's, or those of `World.streaming`, which alone are kept. `state` belongs to the
        session from now on, and `model`, which encodes pictures for `replace`, is not kept alive."""
        self.world, self.params = world, world.streaming(params)
        # Bound to where it lies, as what programs give is, and what was read from a file is not: two of each would be
        # compiled otherwise. Nothing is copied.
        self.state = jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding), state)
        self.index = 0
        self._programs: dict[str, Callable] = {}
        self._position = np.array(state.position)
        self._model = weakref.ref(model) if model is not None else lambda: None

    @classmethod
    def start(
        cls,
        world: World,
        params: Params,
        image: jax.typing.ArrayLike,
        seeds: list[int],
        horizon: int | None = None,
        model: Model | None = None,
    ) -> Session:
        """New streams, one a picture [b, h, w, 3] in [-1, 1], with the whole world's `params`; `horizon` as in
        `World.encode`. `Model.start` is the same for pictures of all kinds.

        Raises:
            InputError: pictures and seeds differ in number, or a picture is none of this world.
        """
        image = _pictures(world, image, len(seeds))
        # A length that is no shorter than what is settled is none, so that one program encodes for all of them.
        horizon = None if horizon is None or horizon >= world.settled else horizon
        condition = world.programs().encode(world, params, image, horizon=horizon)
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        params = world.streaming(params)
        return cls(world, params, world.programs().begin(world, params, condition, keys), model)

    @property
    def streams(self) -> int:
        """How many streams run side by side."""
        return len(self._position)

    @property
    def position(self) -> Int[np.ndarray, " b"]:
        """Latent frames that each stream has made."""
        return self._position.copy()

    @property
    def seconds(self) -> np.ndarray:
        """Seconds of video [b] that each stream has made."""
        frames = 1 + (self._position - 1) * self.world.cfg.vae.temporal_stride
        return np.where(self._position, frames, 0) / self.world.cfg.fps

    @property
    def horizon(self) -> int | None:
        """Latent frames that a stream can have, where it was begun for a short one; None: without end."""
        frames = self.state.condition.shape[1]
        return frames if frames < self.world.settled else None

    def __repr__(self) -> str:
        cfg, how = self.world.cfg, self.world.settings
        seconds = ", ".join(f"{value:.1f} s" for value in self.seconds)
        many = f"{self.streams} streams" if self.streams > 1 else "one stream"
        end = "" if self.horizon is None else f" of at most {self._limit} frames"
        return (
            f"<Session of {cfg.name}: {many}{end} of {cfg.width}x{cfg.height} at {cfg.fps} frames a second, stands at"
            f" {seconds}; {how.dtype}, decoder {how.decoder}, attention {how.attention}>"
        )

    def dispatch(self, rows: Rows) -> Chunk:
        """Hands the next chunk of every stream to the device and returns at once: nothing waits, not even for the chunk
        before. `rows` as in `mgjax.stream.rows.chunk_of`: 12 of them, or the 8 that a first chunk has.

        Raises:
            InputError: the rows are none of this world, or its streams were begun to be shorter.
        """
        world, fresh = self.world, self._position == 0
        actions = chunk_of(world.cfg, rows, self.streams, fresh)
        self._check_horizon()
        actions = jax.device_put(actions)
        decoder, state = self.state.decoder, self.state._replace(decoder=None)
        latents = self._run("sample", state, actions)
        frames, decoder = self._run("decode", latents, state.position, decoder)
        for part in frames:
            part.copy_to_host_async()
        self.state = self._run("commit", state, actions, latents)._replace(decoder=decoder)
        self._position = self._position + world.cfg.dit.chunk
        self.index += 1
        return Chunk(frames, np.where(fresh, world.cfg.vae.temporal_stride - 1, 0), self.index - 1)

    def step(self, rows: Rows) -> list[UInt8[np.ndarray, "f h w 3"]]:
        """Plays the rows of the next chunk (`dispatch`) and waits for each stream's new frames: 9 of its first chunk,
        then 12."""
        return self.dispatch(rows).fetch()

    def play(self, script: Rows) -> Iterator[UInt8[np.ndarray, "*b h w 3"]]:
        """The frames that a script makes, one by one: [h, w, 3], or [b, h, w, 3] of several streams.

        `script` is text or a file ("w:24 wd:12", `mgjax.io.actions`), rows as in `step` but of any number, or an
        iterable of single rows ("w+right", or arrays), which may be without end. Frames come in whole chunks; after the
        last row nothing is held. While a caller works on the frames of a chunk the next one is computed, and its rows
        are read just before, when those frames are there.
        """
        fresh = self._position == 0
        if fresh.any() != fresh.all():
            raise InputError("some of the streams begin and some go on: step them, or play them before or after")
        chunks = self.overlapped(script_of(self.world.cfg, script, resumed=not fresh.all()))
        return chain.from_iterable(map(self._frames, chunks))

    def overlapped(self, script: Iterable[Rows]) -> Iterator[Chunk]:
        """The chunks of `script`, which has the rows of one chunk after another, each computed before it is given out:
        the next one is under way by then. Its rows are read as late as can be without making the device wait."""
        before = None
        for rows in script:
            following = self.dispatch(rows)
            if before is not None:
                yield before
            # When the frames are there the cache is still being written: the device has work while rows are read.
            before = following.wait()
        if before is not None:
            yield before

    def _frames(self, chunk: Chunk) -> Iterable[UInt8[np.ndarray, "*b h w 3"]]:
        frames = chunk.fetch()
        return frames[0] if self.streams == 1 else map(np.stack, zip(*frames, strict=True))

    def replace(self, row: int, picture: Picture | Session, seed: int = 0) -> None:
        """Puts a new stream in the place of stream `row`; the others go on undisturbed. `picture` as in `Model.start`,
        or a session of one stream.

        Raises:
            InputError: there is no such row, or the model that encodes pictures was let go of.
        """
        if not 0 <= row < self.streams:
            raise InputError(f"there is no stream {row}: {self.streams} run, counted from 0")
        if not isinstance(picture, Session):
            model = self._model()
            if model is None:
                raise InputError("the model that began these streams was let go of: keep it, to encode more pictures")
            picture = model._start(picture, [seed], self.horizon)
        elif picture.streams != 1 or picture.world != self.world:
            raise InputError("a stream is replaced by a session of one stream of the same world")
        elif picture.state.condition.shape[1] != self.state.condition.shape[1]:
            raise InputError("the other stream was begun for another length: begin both with the same `frames`")
        self.state = self.world.programs().replace(self.state, np.asarray(row, np.int32), picture.state)
        self._position[row] = picture._position[0]

    def fork(self) -> Session:
        """A second session that begins where this one stands; both go on independently."""
        return self.take(range(self.streams))

    def take(self, rows: Sequence[int]) -> Session:
        """A second session, of the streams `rows` in this order; one may be taken more than once. Both go on
        independently.

        Raises:
            InputError: there is no such stream.
        """
        rows = list(rows)
        if not rows or not all(0 <= row < self.streams for row in rows):
            raise InputError(f"there are no streams {rows}: {self.streams} run, counted from 0")
        other = copy.copy(self)
        other._programs = {}
        other.state = self.world.programs().take(self.state, np.asarray(rows, np.int32))
        other._position = self._position[rows]
        return other

    def save(self, path: str | Path) -> None:
        """Writes the streams to a file; they can be taken up again with `Model.resume` or `load`."""
        snapshot.save(path, self.world, self.params, self.state)

    @classmethod
    def load(cls, world: World, params: Params, path: str | Path, model: Model | None = None) -> Session:
        """The streams that `save` wrote, with the whole world's `params` or those of `World.streaming`."""
        params = world.streaming(params)
        return cls(world, params, snapshot.load(path, world, params), model)

    def _run(self, name: str, *arrays: Any) -> Any:
        """What a program of the world gives. Its arrays have the same shapes from chunk to chunk."""
        if name not in self._programs:
            self._programs[name] = getattr(self.world.programs(), name).of(self.world, self.params, *arrays)
        return self._programs[name](self.params, *arrays)

    @property
    def _limit(self) -> int:
        return 1 + ((self.horizon or 0) - 1) * self.world.cfg.vae.temporal_stride

    def _check_horizon(self) -> None:
        if self.horizon is not None and (self._position + self.world.cfg.dit.chunk > self.horizon).any():
            raise InputError(f"this stream was begun for {self._limit} frames, and they are made")


def _pictures(world: World, image: jax.typing.ArrayLike, count: int) -> jax.Array:
    """Pictures in [-1, 1], one for each of `count` streams."""
    shape, cfg = np.shape(image), world.cfg
    if len(shape) != 4 or shape[1:] != (cfg.height, cfg.width, 3):
        raise InputError(f"pictures of {cfg.name} are [b, {cfg.height}, {cfg.width}, 3], and these are {list(shape)}")
    if not jnp.issubdtype(jnp.result_type(image), jnp.floating):
        raise InputError("pictures are floats in [-1, 1] here; Model.start takes those of 0 to 255, too")
    if shape[0] not in (1, count):
        raise InputError(f"there are {shape[0]} pictures and {count} seeds: give as many, or one picture")
    return jnp.broadcast_to(jnp.asarray(image, jnp.float32), (count, *shape[1:]))
