"""Recording: engines that agents play, one process each, and one writer.

Episode e of a recording is a clip of its own that follows from (seed, e) alone: the engine's seed and the agent's
random numbers are derived from the two. A recording of N frames is the first ceil(N / clip_frames) episodes that the
filters keep. Workers take episodes in order and no more of them than are still needed, and every finished one is
stored at once, kept or dropped; so a recording that was killed and started again ends with the clips of one that was
not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

import numpy as np

from mgjax.data.play.agents.base import Agent
from mgjax.data.quality import filters
from mgjax.data.quality.filters import FilterConfig
from mgjax.data.store import codec
from mgjax.data.store.dataset import Writer, clip_name
from mgjax.data.store.schema import Schema, default_models
from mgjax.data.types import Clip, Engine
from mgjax.errors import InputError

QUEUED = 2  # episodes that a worker holds: the one it is on and the next
HOPELESS = 20  # dropped clips after which nine dropped for each kept one end the recording


@dataclass(frozen=True)
class RecordConfig:
    """What to record; `name` tells this recording from others in the same dataset."""

    name: str
    frames: int = 20000
    seed: int = 0
    clip_frames: int = 97
    codec: str = "zstd"
    workers: int = 2
    filters: FilterConfig = field(default_factory=FilterConfig)
    agent_options: tuple[str, ...] = ()  # only told apart here; `make_agent` has them

    def __post_init__(self):
        if self.frames < 1 or self.clip_frames < 2 or self.workers < 1 or self.seed < 0:
            raise InputError(
                "a recording needs at least 1 frame, clips of at least 2 frames, 1 worker, and a seed of 0 or more"
            )
        if self.codec not in codec.CODECS:
            raise InputError(f"there is no codec {self.codec!r}; there are {', '.join(codec.CODECS)}")

    @property
    def num_clips(self) -> int:
        return -(-self.frames // self.clip_frames)

    @property
    def settings(self) -> str:
        """Digest of all that decides what an episode's clip holds, beside the schema, the name and the seed."""
        told = (self.clip_frames, self.codec, dataclasses.astuple(self.filters), self.agent_options)
        return hashlib.sha256(repr(told).encode()).hexdigest()[:12]

    def clip(self, episode: int) -> str:
        return clip_name(f"{self.name}-{self.seed}-{episode:06d}")


class Report(NamedTuple):
    """What a recording holds so far, and how fast this run of it went."""

    clips: int
    frames: int
    dropped: Mapping[str, int]  # clips by the filter that dropped them
    marked: Mapping[str, int]  # frames of kept clips by the filter that marked them
    new_frames: int  # kept and dropped ones of this run
    seconds: float


def engine_seed(seed: int, episode: int) -> int:
    """The seed that an episode's engine starts from."""
    return int(np.random.SeedSequence([seed, episode, 1]).generate_state(1)[0] >> 1)


def record_clip(engine: Engine, agent: Agent, seed: int, episode: int, num_frames: int) -> Clip:
    """Plays one episode from its reset on; row k is applied at frame k, the last row at the last frame."""
    rng = np.random.default_rng([seed, episode])
    observation = engine.reset(engine_seed(seed, episode))
    state = agent.init(observation, rng)
    observations, rows = [], []
    for k in range(num_frames):
        if k:
            observation = engine.step(*rows[-1])
        row, state = agent.act(observation, state, rng)
        observations.append(observation)
        rows.append(row)
    poses = [observation.pose for observation in observations]
    return Clip(
        frames=np.stack([observation.frame for observation in observations]),
        keyboard=np.stack([keyboard for keyboard, _ in rows]).astype(np.uint8),
        mouse=np.stack([mouse for _, mouse in rows]).astype(np.float32),
        position=np.stack([pose.position for pose in poses]).astype(np.float64),
        rotation=np.stack([pose.rotation for pose in poses]).astype(np.float64),
        velocity=np.stack([pose.velocity for pose in poses]).astype(np.float64),
    )


def schema_of(engine: Engine, name: str, options: Mapping[str, object], mouse_scale: float) -> Schema:
    """The schema of what `engine`, called `name` and built with `options`, records."""
    return Schema(
        keyboard=tuple(engine.keyboard),
        fps=float(engine.fps),
        size=(int(engine.size[0]), int(engine.size[1])),
        mouse_scale=mouse_scale,
        pitch_limits=getattr(engine, "pitch_limits", (-90.0, 90.0)),
        engine=name,
        options=options,
        models=default_models(tuple(engine.keyboard)),
    )


def record(
    out: str | os.PathLike,
    schema: Schema,
    make_engine: Callable[[], Engine],
    make_agent: Callable[[Engine], Agent],
    cfg: RecordConfig,
    progress: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Records into the dataset at `out`, going on where an earlier run of the same recording ended.

    The two factories run in the worker processes (spawned, so they have to be picklable). `progress` is called after
    every episode.

    Raises:
      InputError: the dataset there has another schema, the engine fails, or the filters drop nearly everything.
    """
    start = time.monotonic()
    new_frames = 0
    with Writer(out, schema) as writer:
        kept, marked, dropped = 0, Counter(), Counter()

        def count(info: Mapping) -> None:
            nonlocal kept
            if "dropped" in info:
                dropped[info["dropped"]] += 1
            else:
                kept += 1
                marked.update(info["marks"])

        def report() -> Report:
            seconds = time.monotonic() - start
            return Report(kept, kept * cfg.clip_frames, dict(dropped), dict(marked), new_frames, seconds)

        for entry in writer.entries.values():
            info = entry.info
            if (info.get("recording"), info.get("seed")) == (cfg.name, cfg.seed):
                if info.get("settings") != cfg.settings:
                    raise InputError(
                        f"{out} holds clips of {cfg.name} with seed {cfg.seed} of another clip length, codec, filter "
                        "or agent option: give the same again, or another seed or folder"
                    )
                count(info)

        todo = (e for e in itertools.count() if cfg.clip(e) not in writer.entries)
        if kept < cfg.num_clips:
            with _workers(min(cfg.workers, cfg.num_clips - kept), make_engine, make_agent, schema, cfg) as connections:
                in_work = dict.fromkeys(connections, 0)

                def hand_out() -> None:
                    # The least busy first, and never more episodes than clips are missing.
                    while kept + sum(in_work.values()) < cfg.num_clips and min(in_work.values()) < QUEUED:
                        connection = min(in_work, key=in_work.__getitem__)
                        in_work[connection] += 1
                        connection.send(next(todo))

                hand_out()
                while any(in_work.values()):
                    for connection in wait([c for c, busy in in_work.items() if busy]):
                        episode, data, info = _receive(connection)
                        writer.add(cfg.clip(episode), data, cfg.clip_frames, info)
                        in_work[connection] -= 1
                        new_frames += cfg.clip_frames
                        count(info)
                        hand_out()
                        progress(report())
                    if sum(dropped.values()) >= max(HOPELESS, 9 * kept):
                        reasons = ", ".join(f"{name} {number}" for name, number in dropped.most_common())
                        raise InputError(f"the filters drop nearly every clip ({reasons}): loosen their thresholds")
        return report()


@contextlib.contextmanager
def _workers(number: int, make_engine, make_agent, schema: Schema, cfg: RecordConfig):
    """Connections to `number` new processes, which end with this one in whatever way it ends."""
    # A spawned child holds no copy of its parent's end of the pipe: the pipe breaks when the parent is killed.
    context = multiprocessing.get_context("spawn")
    processes, connections = [], []
    try:
        for _ in range(number):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, make_engine, make_agent, schema, cfg), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            connections.append(ours)
        yield connections
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
                process.join()


def _receive(connection: Connection) -> tuple[int, bytes, dict]:
    try:
        answer = connection.recv()
    except EOFError:
        raise InputError("a recording process died; the same command goes on from the last clip") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _work(connection: Connection, make_engine, make_agent, schema: Schema, cfg: RecordConfig) -> None:
    """Records the episodes whose numbers come in, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            engine = make_engine()
            try:
                agent = make_agent(engine)
                while True:
                    episode = connection.recv()
                    connection.send(_record_one(engine, agent, schema, cfg, episode))
            finally:
                engine.close()
        except InputError as error:
            connection.send(error)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception:
            connection.send(RuntimeError(f"a recording process failed:\n{traceback.format_exc()}"))


def _record_one(engine: Engine, agent: Agent, schema: Schema, cfg: RecordConfig, episode: int):
    clip = record_clip(engine, agent, cfg.seed, episode, cfg.clip_frames)
    marks, reason = filters.judge(clip, schema, cfg.filters)
    info = {
        "recording": cfg.name,
        "seed": cfg.seed,
        "settings": cfg.settings,
        "episode": episode,
        "engine_seed": engine_seed(cfg.seed, episode),
        "codec": cfg.codec,
        "marks": marks,
    }
    if reason is not None:
        return episode, b"", {**info, "dropped": reason}
    return episode, codec.encode(clip, cfg.codec), info
