"""How fast a world streams, how much memory it takes, and whether anything is compiled after warm-up.

What is measured is `Session`, which is what runs when people play: frames delivered to the host, chunk by chunk, and
with the next chunk computed while the last one's frames are encoded as video. The parts of a chunk are timed alone
besides. Actions are the seeded composite of `mgjax.io.actions`, so that runs can be compared.
"""

from __future__ import annotations

import dataclasses
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mgjax import flops
from mgjax.export import ExportedWorld
from mgjax.io.actions import load_actions
from mgjax.io.video import VideoWriter
from mgjax.programs import Program, memory_of
from mgjax.stream.rows import chunk_rows, to_chunks
from mgjax.stream.session import Chunk, Session
from mgjax.types import Actions, StreamState
from mgjax.world import Params, World


def measure(
    world: World,
    load: Callable[[], Params],
    *,
    batch: int = 1,
    chunks: int = 20,
    seed: int = 0,
    profile: Path | None = None,
    notify: Callable[[str], None] = lambda text: None,
) -> dict:
    """All figures as one JSON-ready dict; seconds, bytes and frames a second. `load()` gives the whole world's
    parameters.
    """
    cfg = world.cfg
    report = _identity(world, batch)
    script = seeded_script(world, batch, chunks, seed)
    image = np.random.default_rng(seed).uniform(-1, 1, (batch, cfg.height, cfg.width, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as cache, _compilation_cache(cache):
        notify("loading")
        start = time.perf_counter()
        params = jax.block_until_ready(load())
        loaded = time.perf_counter()
        notify("encoding the picture")
        session = Session.start(world, params, image, [seed + row for row in range(batch)])
        params = session.params
        jax.block_until_ready(session.state)
        encoded = time.perf_counter()
        notify("compiling")
        report["state"] = state_bytes(session.state)
        session.step(script[0])
        first = time.perf_counter()
        jax.block_until_ready(session.state)
        report["start"] = {
            "load_s": loaded - start,
            "encode_s": encoded - loaded,
            "first_chunk_s": first - encoded,
            "cold_start_s": first - start,
        }
        notify("warm start")
        report["flops_per_chunk"] = _flops(world, params, session.state, script[0]) / batch
        again = time.perf_counter()
        compiled = _compile(world, params, session.state, script[0])
        report["start"]["compile_again_s"] = time.perf_counter() - again
        report["memory"] = _memory(compiled)

    notify("measuring")
    script = script[1:]
    forks = [session.fork() for _ in range(4)]
    with tempfile.TemporaryDirectory() as folder, _trace(profile), CompilationCounter() as counter:
        stepped, delivered, *encoded = (
            deliver(fork, script, overlapped=overlapped, video=video)
            for fork, (video, overlapped) in zip(forks, product((None, Path(folder)), (False, True)), strict=True)
        )
    report["compilations_after_warm_up"] = counter.count
    parts = time_parts(session.fork(), script)

    frames = cfg.chunk_frames * batch
    report["chunk_s"] = {f"p{q}": float(np.percentile(delivered, q)) for q in (50, 95, 99)}
    report["part_s"] = parts
    report["rows_to_frames_s"] = float(np.median(_latencies(session.fork(), script)))
    report["fps"] = {
        "dit_only": frames / (parts["sample"] + parts["commit"]),
        "dit_and_decode": frames / sum(parts.values()),
        "delivered": frames / float(np.mean(delivered)),
        "one_at_a_time": frames / float(np.mean(stepped)),
        "as_video": frames / float(np.mean(encoded[1])),
        "as_video_one_at_a_time": frames / float(np.mean(encoded[0])),
    }
    report["on_time_at_fps"] = float(np.mean(np.asarray(delivered) <= cfg.chunk_frames / cfg.fps))
    peak = flops.peak(jax.devices()[0])
    rate = report["flops_per_chunk"] * batch / sum(parts.values())
    report["flops_per_s"] = rate
    report["mfu"] = rate / peak if peak else None
    report["memory"]["peak_host_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    stats = jax.devices()[0].memory_stats() or {}
    report["memory"]["peak_device_bytes"] = stats.get("peak_bytes_in_use")
    return report


def inspect(world: World, batch: int = 1) -> dict:
    """The part of `measure`'s figures that follows from compiling: nothing is run and no weights are made."""
    if isinstance(world, ExportedWorld):
        params = world.streaming(world.param_shapes())
    else:
        params = jax.eval_shape(lambda key: world.streaming(world.init(key)), jax.random.key(0))
    state = world.state_shapes(batch)
    rows = seeded_script(world, batch, 1, 0)[0]
    return {
        **_identity(world, batch),
        "state": state_bytes(state),
        "memory": _memory(_compile(world, params, state, rows)),
        "flops_per_chunk": _flops(world, params, state, rows) / batch,
    }


def _flops(world: World, params: Params, state: StreamState, rows: Actions) -> float:
    """Of a chunk of all streams; an artefact, whose programs are closed, says it."""
    if isinstance(world, ExportedWorld):
        return world.manifest.flops * len(state.position)
    return flops.count(world.chunk_step, params, state, rows)


def _identity(world: World, batch: int) -> dict:
    settings = dataclasses.asdict(world.settings)
    return {"model": world.cfg.name, "settings": settings, "batch": batch, "machine": machine()}


def machine() -> dict:
    """What the figures were measured on."""
    from jaxlib.version import __version__ as jaxlib_version

    device = jax.devices()[0]
    return {
        "device": device.device_kind if device.platform != "cpu" else _processor(),
        "platform": device.platform,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "jaxlib": jaxlib_version,
        "python": platform.python_version(),
        "flags": " ".join(sys.argv[1:]),
    }


def _processor() -> str:
    import os

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def state_bytes(state) -> dict[str, int]:
    """Bytes of one stream's state, by part. "attention" is what grows with the window; the decoder's cache stands
    apart.
    """
    batch = state.position.shape[0]

    def size(tree) -> int:
        return sum(leaf.nbytes if hasattr(leaf, "nbytes") else leaf.size * leaf.dtype.itemsize
                   for leaf in jax.tree.leaves(tree)) // batch  # fmt: skip

    parts = {
        "self_attention": size([layer.tokens for layer in state.cache]),
        "mouse": size([layer.mouse for layer in state.cache]),
        "keyboard": size([layer.keyboard for layer in state.cache]),
        "image": size(state.image),
    }
    parts["attention"] = sum(parts.values())
    parts["decoder"] = size(state.decoder)
    parts["other"] = size([state.key, state.position, state.rows, state.condition])
    return parts


class CompilationCounter:
    """Counts the programs that XLA compiles inside its `with` block."""

    def __init__(self):
        self.count = 0

    def __enter__(self):
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, name: str, seconds: float, **_) -> None:
        self.count += name == "/jax/core/compile/backend_compile_duration"


def seeded_script(world: World, batch: int, chunks: int, seed: int) -> list[Actions]:
    """The rows of a new stream's first chunk and of `chunks` more."""
    keyboard, mouse = load_actions("bench", world.cfg, chunk_rows(world.cfg, chunks + 1), seed)
    rows = Actions(keyboard, mouse[:, : world.cfg.dit.action.mouse_dim])
    return [
        Actions(*(np.repeat(part[None], batch, 0) for part in chunk))
        for chunk in zip(*to_chunks(world.cfg, rows), strict=True)
    ]


def deliver(session: Session, script: list[Actions], *, overlapped: bool, video: Path | None = None) -> list[float]:
    """Seconds from one chunk's frames to the next one's; the frames of stream 0 are written to a `video`, if one is
    wanted. `overlapped` as `Session.play` does it, else each chunk is waited for before the next one is begun."""
    times, before = [], time.perf_counter()

    def chunks() -> Iterator[Chunk]:
        if overlapped:
            yield from session.overlapped(iter(script))
        else:
            yield from (session.dispatch(rows) for rows in script)

    with _writer(session.world, video) as write:
        for chunk in chunks():
            for frame in chunk.fetch()[0]:
                write(frame)
            if not overlapped:
                jax.block_until_ready(session.state)
            now = time.perf_counter()
            times.append(now - before)
            before = now
    return times


@contextmanager
def _writer(world: World, folder: Path | None):
    if folder is None:
        yield lambda frame: None
        return
    with VideoWriter(folder / "bench.mp4", world.cfg.height, world.cfg.width, world.cfg.fps) as video:
        yield video.write


def time_parts(session: Session, script: list[Actions]) -> dict[str, float]:
    """Median seconds of each program of a chunk, on a device that does nothing else."""
    world, params, state = session.world, session.params, session.state
    run = world.programs()
    times: dict[str, list[float]] = {"sample": [], "decode": [], "commit": []}

    def timed(name, *args):
        start = time.perf_counter()
        out = jax.block_until_ready(getattr(run, name)(world, params, *args))
        times[name].append(time.perf_counter() - start)
        return out

    for rows in script:
        decoder, state = state.decoder, state._replace(decoder=None)
        latents = timed("sample", state, rows)
        _, decoder = timed("decode", latents, state.position, decoder)
        state = timed("commit", state, rows, latents)._replace(decoder=decoder)
    return {name: float(np.median(values)) for name, values in times.items()}


def _latencies(session: Session, script: list[Actions]) -> list[float]:
    """Seconds from a chunk's rows to its frames, on a device that waits for them."""
    times = []
    for rows in script:
        jax.block_until_ready(session.state)
        start = time.perf_counter()
        session.step(rows)
        times.append(time.perf_counter() - start)
    return times


def _compile(world: World, params: Params, state, rows: Actions) -> dict[str, jax.stages.Compiled]:
    """The programs of a chunk, compiled for these shapes."""
    run, dit, batch = world.programs(), state._replace(decoder=None), state.position.shape[0]
    latents = jax.ShapeDtypeStruct((batch, *world.latent_shape), jnp.float32)
    if isinstance(state.position, jax.Array):
        latents = np.zeros(latents.shape, latents.dtype)
    arrays = {
        "sample": (params, dit, rows),
        "decode": (params, latents, state.position, state.decoder),
        "commit": (params, dit, rows, latents),
    }
    return {name: _compiled(getattr(run, name), world, *given) for name, given in arrays.items()}


def _compiled(program: Program, *args) -> jax.stages.Compiled:
    """From the disk where it is kept there, as the next process has it."""
    found = program.anew().of(*args)
    return found if isinstance(found, jax.stages.Compiled) else program.lower(*args).compile()


def _memory(compiled: dict[str, jax.stages.Compiled]) -> dict:
    """XLA's own analysis of the programs of a chunk, which run one after another."""
    analyses = {name: memory_of(program) for name, program in compiled.items()}
    return {
        "arguments_bytes": max(analysis.argument_size_in_bytes for analysis in analyses.values()),
        "aliased_bytes": sum(analysis.alias_size_in_bytes for analysis in analyses.values()),
        **{f"{name}_temporaries_bytes": analysis.temp_size_in_bytes for name, analysis in analyses.items()},
    }


@contextmanager
def _trace(folder: Path | None):
    if folder is None:
        yield
        return
    with jax.profiler.trace(str(folder)):
        yield


@contextmanager
def _compilation_cache(folder: str):
    """An empty persistent cache, so that cold and warm starts are told apart whatever the machine did before."""
    from jax.experimental.compilation_cache import compilation_cache

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (folder, 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
