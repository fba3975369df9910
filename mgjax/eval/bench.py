"""How fast a world streams, how much memory it takes, and whether anything is compiled after warm-up.

Three rates are told apart because the field mixes them up: the DiT alone, the DiT with decoding, and frames delivered
to the host. Actions are the seeded composite of `mgjax.io.actions`, so that runs can be compared.
"""

from __future__ import annotations

import dataclasses
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mgjax import flops
from mgjax.io.actions import chunk_rows, load_actions, to_chunks
from mgjax.types import Actions
from mgjax.world import World, jit_step, streaming_params


def measure(
    world: World,
    load: Callable[[], dict],
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
    report = {"model": cfg.name, "settings": dataclasses.asdict(world.settings), "batch": batch, "machine": machine()}
    with tempfile.TemporaryDirectory() as cache, _compilation_cache(cache):
        notify("loading")
        start = time.perf_counter()
        params = jax.block_until_ready(load())
        loaded = time.perf_counter()
        notify("encoding the picture")
        image = jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (batch, cfg.height, cfg.width, 3)), jnp.float32)
        horizon = (chunks + 3) * cfg.dit.chunk
        condition = jax.block_until_ready(jax.jit(lambda p, i: world.encode(p, i, horizon))(params, image))
        encoded = time.perf_counter()
        params = streaming_params(world, params)
        keys = jax.random.split(jax.random.key(seed), batch)
        begin = jax.jit(world.begin)
        state = jax.block_until_ready(begin(params, condition, keys))
        script = _script(world, batch, chunks + 2, seed)
        notify("compiling")
        before = time.perf_counter()
        step = _compile(world.chunk_step, params, state, script[0])
        compiled = time.perf_counter()
        report["state"] = state_bytes(state)
        frames, state = step(params, state, script[0])
        np.asarray(frames)
        first = time.perf_counter()
        report["start"] = {
            "load_s": loaded - start,
            "encode_s": encoded - loaded,
            "compile_s": compiled - before,
            "first_chunk_s": first - compiled,
            "cold_start_s": first - start,
        }
        notify("warm start")
        jax.clear_caches()
        before = time.perf_counter()
        _compile(world.chunk_step, params, state, script[0])
        report["start"]["compile_again_s"] = time.perf_counter() - before

    notify("measuring")
    sampler = _compile(world.sample_chunk, params, state, script[0])
    report["memory"] = _memory(step, sampler, _compile_decode(world, params, state))
    report["flops_per_chunk"] = flops.count(world.chunk_step, params, state, script[0]) / batch
    counter = CompilationCounter()
    with _trace(profile), counter:
        times, state = _time(lambda state, rows: step(params, state, rows), state, script[1:], deliver=True)
        report["compilations_after_warm_up"] = counter.count
    dit_times, state = _time(lambda state, rows: sampler(params, state, rows), state, script[1:], deliver=False)
    whole_times, state = _time(lambda state, rows: step(params, state, rows), state, script[1:], deliver=False)

    frames = cfg.chunk_frames * batch
    report["chunk_s"] = {f"p{q}": float(np.percentile(times, q)) for q in (50, 95, 99)}
    report["fps"] = {
        "dit_only": frames / float(np.median(dit_times)),
        "dit_and_decode": frames / float(np.median(whole_times)),
        "delivered": frames / float(np.median(times)),
    }
    report["on_time_at_fps"] = float(np.mean(np.asarray(times) <= cfg.chunk_frames / cfg.fps))
    peak = flops.peak(jax.devices()[0])
    rate = report["flops_per_chunk"] * batch / float(np.median(whole_times))
    report["flops_per_s"] = rate
    report["mfu"] = rate / peak if peak else None
    report["memory"]["peak_host_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    stats = jax.devices()[0].memory_stats() or {}
    report["memory"]["peak_device_bytes"] = stats.get("peak_bytes_in_use")
    return report


def inspect(world: World, batch: int = 1) -> dict:
    """The part of `measure`'s figures that follows from compiling: nothing is run and no weights are made."""
    cfg = world.cfg

    def begin(key):
        params = world.init(key)
        image = jnp.zeros((batch, cfg.height, cfg.width, 3))
        state = world.begin(params, world.encode(params, image), jax.random.split(key, batch))
        return streaming_params(world, params), state

    params, state = jax.eval_shape(begin, jax.random.key(0))
    rows = _script(world, batch, 1, 0)[0]
    programs = (_compile(function, params, state, rows) for function in (world.chunk_step, world.sample_chunk))
    return {
        "model": cfg.name,
        "settings": dataclasses.asdict(world.settings),
        "batch": batch,
        "machine": machine(),
        "state": state_bytes(state),
        "memory": _memory(*programs, _compile_decode(world, params, state)),
        "flops_per_chunk": flops.count(world.chunk_step, params, state, rows) / batch,
    }


def machine() -> dict:
    """What the figures were measured on."""
    import jaxlib

    device = jax.devices()[0]
    return {
        "device": device.device_kind if device.platform != "cpu" else _processor(),
        "platform": device.platform,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
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


def _compile(function, params, state, actions):
    return jit_step(function).lower(params, state, actions).compile()


def _compile_decode(world, params, state):
    cfg, position = world.cfg.dit, state.position
    shape = (position.shape[0], cfg.chunk, cfg.latent_height, cfg.latent_width, cfg.latent_channels)

    def decode(params, cache, latents, position):
        return world.decode(params, latents, position, cache)

    return jit_step(decode).lower(params, state.decoder, jax.ShapeDtypeStruct(shape, jnp.float32), position).compile()


def _script(world: World, batch: int, chunks: int, seed: int) -> list[Actions]:
    rows = load_actions("bench", world.cfg, chunk_rows(world.cfg, chunks), seed)
    parts = to_chunks(*rows, world.cfg, chunks)
    return [
        Actions(*(jnp.asarray(np.repeat(part[None], batch, 0)) for part in chunk)) for chunk in zip(*parts, strict=True)
    ]


def _time(step, state, script, *, deliver: bool) -> tuple[list[float], object]:
    """Seconds of every chunk but the first; `deliver` includes the frames' way to the host."""
    times = []
    for index, rows in enumerate(script):
        start = time.perf_counter()
        out, state = step(state, rows)
        if deliver:
            np.asarray(out)
        jax.block_until_ready((out, state))
        if index:
            times.append(time.perf_counter() - start)
    return times, state


def _memory(step, sampler, decoder) -> dict:
    """XLA's own analysis of the whole chunk step, and what its two parts need when they are programs of their own."""
    analysis = step.memory_analysis()
    return {
        "arguments_bytes": analysis.argument_size_in_bytes,
        "temporaries_bytes": analysis.temp_size_in_bytes,
        "dit_temporaries_bytes": sampler.memory_analysis().temp_size_in_bytes,
        "decoder_temporaries_bytes": decoder.memory_analysis().temp_size_in_bytes,
        "aliased_bytes": analysis.alias_size_in_bytes,
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
