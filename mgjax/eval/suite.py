"""What a device gives, in one run of minutes. Of a GPU: its ceilings, the parts of a chunk by decoder and number of
streams, and how far its fast attention is from the plain one. Of a CPU: how much of what its products reach a DiT gets,
and how many tokens a second a small one trains on.

Every figure is written the moment it is there, so that a run that is cut short leaves what it had measured.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mgjax import flops
from mgjax.config import ActionConfig, DecoderKind, DiTConfig, DType, VAEConfig, WorldConfig
from mgjax.eval import bench
from mgjax.io.files import atomic_path
from mgjax.models import dit, vae
from mgjax.stream.session import Session
from mgjax.train.parts.fit import clip_spec
from mgjax.train.stages import causal
from mgjax.train_config import CausalStage
from mgjax.types import ImageCondition
from mgjax.world import Params, World

FILE = "suite.json"
_WIDTHS: tuple[tuple[int, int, DType], ...] = (
    (256, 4, "float32"),
    (256, 4, "bfloat16"),
    (512, 8, "float32"),
    (512, 8, "bfloat16"),
)
_TRAINED = ((256, 2), (384, 4))  # width and patch
_CLIPS = 8, 12  # that a training step takes, and latent frames of each
_STREAMS: tuple[tuple[DecoderKind, int], ...] = (("vae", 1), ("taehv", 1), ("taehv", 4), ("vae", 4))


def measure(
    world: World, out: Path, *, chunks: int = 12, seconds: float = 480, notify: Callable[[str], None] = print
) -> dict:
    """All figures as one JSON-ready dict, also in `out`/suite.json. Weights and pictures are random: speed does not
    depend on them. What would begin after `seconds` is left out, and says so; so does what fails."""
    take = _Report(world.cfg.name, out, seconds, notify)
    take("ceilings", ceilings)
    params = jax.block_until_ready(world.init(jax.random.key(0)))
    for decoder, streams in _STREAMS:
        how = dataclasses.replace(world, settings=dataclasses.replace(world.settings, decoder=decoder))
        take(f"{decoder}, {streams} streams", lambda how=how, streams=streams: stream(how, params, streams, chunks))
    if world.settings.attention != "xla":
        take("attention", lambda: attention_error(world, params))
    if isinstance(world.cfg.vae, VAEConfig):
        take("decoder forms", lambda: decoder_forms(world, params))
    return take.report


class _Report:
    """Figures under their names, on the disk the moment they are there."""

    def __init__(self, model: str, out: Path, seconds: float, notify: Callable[[str], None]):
        self.report = {"model": model, "machine": bench.machine()}
        self._out, self._seconds, self._notify, self._began = out, seconds, notify, time.monotonic()

    def __call__(self, name: str, figure: Callable[[], dict]) -> None:
        start = time.monotonic()
        if start - self._began > self._seconds:
            self.report[name] = {"left_out": f"{self._seconds:.0f} s were over"}
        else:
            self._notify(name)
            try:
                self.report[name] = figure()
            except Exception as error:  # whatever a device answers: what else was measured is worth keeping
                self.report[name] = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
            self.report[name]["took_s"] = round(time.monotonic() - start, 1)
        with atomic_path(self._out / FILE) as path:
            path.write_text(json.dumps(self.report, indent=1) + "\n")


def measure_cpu(world: World, out: Path, *, seconds: float = 480, notify: Callable[[str], None] = print) -> dict:
    """As `measure`, of a CPU: networks shaped as the world's DiT at small widths, in both dtypes, their products a
    second beside what one large product reaches before and after, for machines change their speed meanwhile; and
    training steps of DiTs as a CPU can train them."""
    take = _Report(world.cfg.name, out, seconds, notify)
    for width, layers, dtype in _WIDTHS:
        take(f"{width} x {layers}, {dtype}", lambda of=(width, layers, dtype): share_of_ceiling(world, *of))
    for width, patch in _TRAINED:
        take(f"training, width {width}, patch {patch}", lambda of=(width, patch): training_step(world.cfg, *of))
    return take.report


def share_of_ceiling(world: World, width: int, layers: int, dtype: DType) -> dict:
    """Of the denoising passes of a chunk: seconds, products a second, and these as a share of one large product's."""
    small = _narrow(world, width, layers, dtype)
    params = jax.jit(lambda key: {"dit": dit.init(key, small.cfg.dit, small.dtype)})(jax.random.key(0))
    state = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), small.state_shapes(1)._replace(decoder=None))
    rows = jax.device_put(bench.seeded_script(small, 1, 1, 0)[0])
    sample = small.programs().sample.of(small, params, state, rows)
    before = _product(dtype)
    time_s = _seconds(lambda: sample(params, state, rows), times=1)
    ceiling = (before + _product(dtype)) / 2
    work = flops.count(small.sample, params, state, rows)
    rate = work / time_s
    return {
        "time_s": time_s,
        "flops": work,
        "flops_per_s": rate,
        "ceiling_flops_per_s": ceiling,
        "share": rate / ceiling,
    }


def _narrow(world: World, width: int, layers: int, dtype: DType) -> World:
    """A world whose DiT has this width and depth, and else the proportions of the given one."""
    net = world.cfg.dit
    heads, action_heads = max(1, width // net.head_dim), max(1, round(net.action.num_heads * width / net.dim))
    shape = {
        "dim": width,
        "num_heads": heads,
        "ffn_dim": round(net.ffn_dim * width / net.dim),
        "num_layers": layers,
        "num_action_layers": round(net.num_action_layers * layers / net.num_layers),
        "action": dataclasses.replace(net.action, num_heads=action_heads),
    }
    cfg = dataclasses.replace(world.cfg, dit=dataclasses.replace(net, **shape))
    return dataclasses.replace(world, cfg=cfg, settings=dataclasses.replace(world.settings, dtype=dtype))


def training_step(world: WorldConfig, width: int, patch: int) -> dict:
    """Of a step of stage causal by diffusion forcing, in bfloat16 with AdamW: seconds, and tokens of the clips a
    second. The DiT has 6 layers, 3 of them with actions, over latents of 12 x 20."""
    net = DiTConfig(
        latent_height=12,
        latent_width=20,
        patch=patch,
        dim=width,
        num_heads=max(1, width // 64),
        ffn_dim=4 * width,
        num_layers=6,
        num_action_layers=3,
        image_dim=16,
        image_tokens=17,
        window=9,
        action=ActionConfig(num_heads=4, head_dim=32, embed_dim=32, additive=True),
    )
    batch, latents = _CLIPS
    world = dataclasses.replace(world, dit=net)
    stage = causal.make_stage(CausalStage(batch=batch, latents=latents, forcing="diffusion"), world)
    state = jax.jit(lambda key: stage.init(key, {}))(jax.random.key(0))
    clips = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), clip_spec(world, batch, latents))
    step = jax.jit(stage.turns[0], donate_argnums=0)

    def run():
        nonlocal state
        state, metrics = step(state, clips)
        return metrics

    time_s = _seconds(run, times=1)
    tokens = batch * latents * net.frame_tokens
    return {"time_s": time_s, "tokens": tokens, "tokens_per_s": tokens / time_s}


def _product(dtype: DType, side: int = 4096) -> float:
    """Products a second of one large product, summed in float32."""
    a, b = jax.random.normal(jax.random.key(0), (2, side, side), jnp.dtype(dtype))
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    return 2 * side**3 / _seconds(lambda: multiply(a, b), times=2)


def ceilings() -> dict:
    """Products a second in bfloat16 and bytes a second of a copy, read and written."""
    big = jax.default_backend() != "cpu"
    side, length = (8192, 2**29) if big else (1024, 2**24)
    a, b = jax.random.normal(jax.random.key(0), (2, side, side), jnp.bfloat16)
    row = jax.random.normal(jax.random.key(1), (length,), jnp.bfloat16)
    multiply = jax.jit(lambda a, b: a @ b)
    shift = jax.jit(lambda row: row + 1)
    return {
        "product_flops_per_s": 2 * side**3 / _seconds(lambda: multiply(a, b)),
        "copy_bytes_per_s": 2 * row.nbytes / _seconds(lambda: shift(row)),
        "peak_flops_per_s": flops.peak(jax.devices()[0]),
    }


def _seconds(run: Callable[[], Any], times: int = 10) -> float:
    """Of one of so many calls that follow one another, after two to warm up; the best of three rows."""
    jax.block_until_ready([run() for _ in range(2)])
    rows = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready([run() for _ in range(times)][-1])
        rows.append((time.perf_counter() - start) / times)
    return min(rows)


def stream(world: World, params: Params, streams: int, chunks: int) -> dict:
    """Seconds of the parts of a chunk of so many streams together, and frames a second, of all of them."""
    session, start = begin(world, params, streams), time.perf_counter()
    script = bench.seeded_script(world, streams, chunks, 0)
    for rows in script[:3]:  # the first chunk compiles; then the window fills
        session.step(rows)
    jax.block_until_ready(session.state)
    compiled, forks = time.perf_counter() - start, (session.fork(), session.fork())
    with bench.CompilationCounter() as counter:
        delivered = bench.deliver(forks[0], script[3:], overlapped=True)
        parts = bench.time_parts(forks[1], script[3:])
    frames = world.cfg.chunk_frames * streams
    work = flops.count(world.chunk_step, session.params, session.state, script[0])
    stats, peak = jax.devices()[0].memory_stats() or {}, flops.peak(jax.devices()[0])
    return {
        "compile_s": compiled,
        "part_s": parts,
        "fps_dit": frames / (parts["sample"] + parts["commit"]),
        "fps_dit_and_decode": frames / sum(parts.values()),
        "fps_delivered": frames / float(np.mean(delivered)),
        "chunk_s": {f"p{q}": float(np.percentile(delivered, q)) for q in (50, 95)},
        "flops_per_s": work / sum(parts.values()),
        "mfu": work / sum(parts.values()) / peak if peak else None,
        "compilations_after_warm_up": counter.count,
        "peak_device_bytes": stats.get("peak_bytes_in_use"),
    }


def begin(world: World, params: Params, streams: int) -> Session:
    """Streams that start from conditions of noise, which no encoder has to make."""
    cfg = world.cfg.dit
    latents = jax.random.normal(jax.random.key(2), (streams, world.settled, *world.latent_shape[1:]), jnp.float32)
    features = jax.random.normal(jax.random.key(3), (streams, cfg.image_tokens, cfg.image_dim), world.dtype)
    keys, own = jax.random.split(jax.random.key(4), streams), world.streaming(params)
    return Session(world, own, world.programs().begin(world, own, ImageCondition(latents, features), keys))


def attention_error(world: World, params: Params, chunks: int = 4) -> dict:
    """Relative L2 of the latents of a chunk of the fast attention against the plain one's, from one and the same state
    of a stream of so many chunks."""
    params = {**params, "dit": _stirred(params["dit"])}
    plain = dataclasses.replace(world, settings=dataclasses.replace(world.settings, attention="xla"))
    session, script = begin(world, params, 1), bench.seeded_script(world, 1, chunks, 0)
    for rows in script[:-1]:
        session.step(rows)
    state, rows = session.state._replace(decoder=None), jax.device_put(script[-1])
    fast, slow = (
        np.asarray(how.programs().sample(how, session.params, state, rows), np.float64) for how in (world, plain)
    )
    return {"relative_l2": float(np.linalg.norm(fast - slow) / np.linalg.norm(slow)), "chunks": chunks}


def _stirred(params: Params) -> Params:
    """The weights and a little noise: a new head puts out zeros, from which no attention can be told."""
    leaves, form = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(6), len(leaves))
    noisy = [
        leaf + 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(form, noisy)


def decoder_forms(world: World, params: Params) -> dict:
    """Seconds of a chunk's decoding by the full decoder: its convolutions as the one of all taps or as those of three
    axes, its latent frames one after another or all at once."""
    cfg, weights = world.cfg.vae, world.streaming(params)[world.settings.decoder]
    latents = jax.random.normal(jax.random.key(5), (1, *world.latent_shape), jnp.float32)
    cache = vae.init_decoder_cache(cfg, 1, *world.latent_shape[1:3], world.dtype)
    times = {}
    for impl, whole in (("cat2d", False), ("cat2d", True), ("conv3d", True)):

        @jax.jit
        def decode(weights, latents, cache, impl=impl, whole=whole):
            how = {"dtype": world.dtype, "impl": impl, "whole": whole}
            return vae.decode_step(weights, cfg, latents, jnp.zeros(1, bool), cache, **how)

        how = f"{impl}, {'at once' if whole else 'one by one'}"
        times[how] = _seconds(lambda decode=decode: decode(weights, latents, cache))
    return times
