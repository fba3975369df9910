"""Sample videos of a stage in training: what it makes of held-out clips, with their actions drawn over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8

from mgjax import sharding
from mgjax.config import Settings, WorldConfig
from mgjax.diffusion.schedule import sigmas
from mgjax.io.overlay import drawn, enlarge, enlargement
from mgjax.io.video import VideoWriter
from mgjax.models import codecs, dit, taehv, vae
from mgjax.models.graft import count_actions
from mgjax.train.parts.network import bidirectional, network_of
from mgjax.train.parts.rolling import chunk_rows
from mgjax.train.stage import Stage, TrainState
from mgjax.train_config import StageConfig
from mgjax.types import ImageCondition
from mgjax.world import World

_STEPS, _VIDEOS = 20, 4  # of the many-step sampler; of those written


def sampler(
    make: Callable, cfg: StageConfig, world: WorldConfig, stage: Stage, frozen: dict, held_out: Callable, mesh: Mesh
) -> Callable[[TrainState, Path], None]:
    """(state, folder) -> videos there, by `make`, one of the functions below. `frozen` holds the "vae" that decodes;
    stage vae has its own."""
    size = mesh.shape["data"] * mesh.shape["fsdp"]
    layout = sharding.batch_sharding(mesh)

    def frames(state, frozen, clips):
        return make(cfg, world, {**frozen, **stage.export(state)}, clips)

    program = jax.jit(frames, out_shardings=sharding.replicated(mesh))

    def write(state, folder):
        rows = held_out(sharding.local_rows(layout, size), size)
        with jax.set_mesh(mesh):
            videos = jax.device_get(program(state, frozen, sharding.place(rows, layout, size)))
        if jax.process_index() != 0:
            return
        actions = getattr(rows, "actions", None)
        for index, video in enumerate(videos[:_VIDEOS]):
            given = None if actions is None else jax.tree.map(lambda leaf, index=index: leaf[index], actions)
            _write(folder / f"{index}.mp4", video, given, world)

    return write


def _write(path: Path, video: UInt8[np.ndarray, "f h w 3"], actions: Any, world: WorldConfig) -> None:
    scale = enlargement(video.shape[2])
    with VideoWriter(path, scale * video.shape[1], scale * video.shape[2], world.fps) as writer:
        if actions is None:
            shown = (enlarge(frame, scale) for frame in video)
        else:
            rows = jax.tree.map(lambda leaf: leaf[: len(video) - 1], actions)
            shown = drawn(video, rows, world.control, scale, first=True)
        for frame in shown:
            writer.write(frame)


def reconstructions(cfg, world, params, clips) -> Array:
    """Left the clip, right what the autoencoder makes of it."""
    z = vae.encode(params["vae"], world.vae, clips.video)
    return _pixels(jnp.concatenate([clips.video, vae.decode(params["vae"], world.vae, z)], 3))


def fast_reconstructions(cfg, world, params, clips) -> Array:
    """Left the clip, right what the small autoencoder makes of the latents of the large one."""
    z = vae.encode(params["vae"], world.vae, clips.video)
    return _pixels(jnp.concatenate([clips.video, taehv.decode(params["taehv"], world.taehv, z)], 3))


def whole_clips(cfg, world, params, clips) -> Array:
    """Whole clips by Euler's method, every frame at once."""
    layers = count_actions(params["dit"])
    net = network_of(world, cfg.dtype, cfg.attention, window=None, sink=0, num_action_layers=layers)
    weights, velocity = dit.stack(params["dit"], net.dit), bidirectional(net)
    table = sigmas(cfg.shift_in(world))
    levels = jnp.asarray(np.append(table[:: len(table) // _STEPS], 0.0), jnp.float32)

    def step(x, pair):
        v = velocity(weights, x, jnp.full(x.shape[:1], pair[0]), clips)
        return x + (pair[1] - pair[0]) * v, None

    noise = jax.random.normal(jax.random.key(0), clips.latents.shape)
    x, _ = jax.lax.scan(step, noise, jnp.stack([levels[:-1], levels[1:]], 1))
    return _pixels(codecs.of(world.vae).decode(params["vae"], world.vae, x))


def rollouts(cfg, world, params, clips) -> Array:
    """Chunk after chunk, by the steps of inference."""
    world_functions = World(world, Settings(cfg.dtype, "vae", cfg.attention))
    net = network_of(world, cfg.dtype, cfg.attention)
    chunks = ((clips.actions.keyboard.shape[1] - 1) // net.stride + 1) // net.dit.chunk
    keys = jax.random.split(jax.random.key(0), clips.features.shape[0])
    condition = ImageCondition(clips.condition, clips.features)
    params = jax.tree.map(lambda leaf: leaf.astype(net.dtype), params)
    state = world_functions.begin(params, condition, keys)
    frames, _ = world_functions.rollout(params, state, chunk_rows(net, clips.actions, 0, chunks))
    frames = jnp.moveaxis(frames.pixels, 0, 1)
    return frames.reshape(frames.shape[0], -1, *frames.shape[3:])[:, net.stride - 1 :]


def _pixels(video: Array) -> UInt8[Array, ...]:
    return jnp.round((jnp.clip(video.astype(jnp.float32), -1, 1) + 1) * 127.5).astype(jnp.uint8)
