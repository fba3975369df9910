"""A world: the pure functions that start a stream from a picture and carry it on, built from one config.

One chunk is `cfg.dit.chunk` latent frames and, for every row of a batch alike, `cfg.chunk_frames` (12) action rows and
pixel frames. They are numbered from the beginning of the stream: the chunk that starts at latent frame T takes rows 4T
- 4 to 4T + 7 and makes frames 4T - 3 to 4T + 8, so that row r produces frame r + 1. A stream's first chunk (T = 0) has
no rows -4 to -1 and no frames -3 to -1: these rows are ignored and these frames are blank. That makes one program serve
every chunk, and rows of a batch that are at different places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from mgjax.config import DiTConfig, Settings, WorldConfig
from mgjax.diffusion.flow import add_noise
from mgjax.diffusion.rollout import rollout, sample
from mgjax.diffusion.schedule import NUM_TIMESTEPS, step_sigmas
from mgjax.models import clip, dit, taehv, vae
from mgjax.types import Actions, ImageCondition, StreamState


class Network(NamedTuple):
    """The DiT bound to one chunk of a stream."""

    chunk: dit.Chunk
    denoise: Callable[[Float[Array, "b t h w c"], Float[Array, "1 1"]], Float[Array, "b t h w c"]]
    """(noisy latents, timestep) -> velocity."""
    commit: Callable[..., StreamState]
    """(finished latents, noise) -> the state after the chunk, its decoder cache as before. `noise`, of their shape, is
    what they are remembered in; a world whose sampler has no context noise takes None."""


class World(NamedTuple):
    """The functions of one world; all are pure, and all but `init` want parameters in the compute dtype for full speed.

    `params` is {"dit", "vae", "taehv", "clip"}; a stream reads "dit" and its decoder's alone.
    """

    cfg: WorldConfig
    settings: Settings
    init: Callable[[PRNGKeyArray], dict]
    """key -> random parameters in the compute dtype."""
    encode: Callable[..., ImageCondition]
    """(params, image [b h w 3] in [-1, 1], horizon=None) -> condition. Only the first `horizon` latent frames are
    exact where it is given: a stream that is known to be short saves the time."""
    begin: Callable[..., StreamState]
    """(params, condition, keys [b]) -> the state of new streams."""
    network: Callable[..., Network]
    """(params, state, actions) -> the DiT bound to the next chunk."""
    sample_chunk: Callable[..., tuple[Float[Array, "b t h w c"], StreamState]]
    """(params, state, actions, noise=None) -> (latents, state): the DiT's part of a chunk, before decoding.
    `noise` [b, draws, t, h, w, c] replaces what is drawn from the state's key: one for each step, and the context's."""
    decode: Callable[..., tuple[UInt8[Array, "b f h w 3"], Array]]
    """(params, latents, position [b] of their first frame, decoder cache) -> (frames, cache)."""
    chunk_step: Callable[..., tuple[UInt8[Array, "b f h w 3"], StreamState]]
    """(params, state, actions [b, 12], noise=None) -> (frames, state), for `jit_step`."""
    rollout: Callable[..., tuple[UInt8[Array, "i b f h w 3"], StreamState]]
    """(params, state, actions [i, b, 12]) -> (frames of i chunks, state): a scan of `chunk_step`."""


def build(cfg: WorldConfig, settings: Settings = Settings()) -> World:  # noqa: B008
    """The functions of the world that `cfg` describes. ValueError where `cfg` cannot stream."""
    if cfg.dit.window is None:
        raise ValueError("its window is global: a stream needs DiTConfig.window to have a size")
    dtype, attention = jnp.dtype(settings.dtype), settings.attention
    chunk, stride = cfg.dit.chunk, cfg.vae.temporal_stride
    history = stride * (cfg.dit.action.window - 1)
    settled = vae.settled_latents(cfg.vae)
    level = cfg.sampler.context
    sigmas = tuple(step_sigmas(cfg.sampler.steps, cfg.sampler.shift).tolist())
    latent_shape = (chunk, cfg.dit.latent_height, cfg.dit.latent_width, cfg.dit.latent_channels)
    decoder_model, decoder_cfg = {"vae": (vae, cfg.vae), "taehv": (taehv, cfg.taehv)}[settings.decoder]

    def init(key: PRNGKeyArray) -> dict:
        keys = jax.random.split(key, 4)
        return {
            "dit": dit.init(keys[0], cfg.dit, dtype),
            "vae": vae.init(keys[1], cfg.vae, dtype),
            "taehv": taehv.init(keys[2], cfg.taehv, dtype),
            "clip": clip.init(keys[3], cfg.clip, dtype),
        }

    def encode(params: dict, image: Float[Array, "b h w 3"], horizon: int | None = None) -> ImageCondition:
        frames = settled if horizon is None else min(horizon, settled)
        return ImageCondition(
            latents=vae.encode_image_condition(params["vae"], cfg.vae, image, frames, dtype=dtype).astype(jnp.float32),
            features=clip.encode(params["clip"], cfg.clip, image, dtype=dtype),
        )

    def begin(params: dict, condition: ImageCondition, keys: PRNGKeyArray) -> StreamState:
        batch = keys.shape[0]
        action = cfg.dit.action
        return StreamState(
            key=jax.random.key_data(keys),
            position=jnp.zeros(batch, jnp.int32),
            rows=Actions(
                *(jnp.zeros((batch, history, n), jnp.float32) for n in (action.keyboard_dim, action.mouse_dim))
            ),
            condition=condition.latents,
            image=dit.prepare_image(params["dit"], cfg.dit, condition.features, dtype),
            cache=dit.init_cache(params["dit"], cfg.dit, batch, dtype),
            decoder=decoder_model.init_decoder_cache(
                decoder_cfg, batch, cfg.dit.latent_height, cfg.dit.latent_width, dtype
            ),
        )

    def seen_rows(state: StreamState, actions: Actions) -> Actions:
        """History and the chunk's rows; those before a stream's first, row `stride` of its first chunk, equal it."""
        new = (state.position == 0)[:, None, None]

        def join(past, rows):
            early = (jnp.arange(history + rows.shape[1]) < history + stride)[:, None]
            return jnp.where(new & early, rows[:, stride : stride + 1], jnp.concatenate([past, rows], 1))

        return Actions(*(join(past, rows.astype(jnp.float32)) for past, rows in zip(state.rows, actions, strict=True)))

    def draw(state: StreamState) -> Float[Array, "b draws t h w c"]:
        def row(key, position):
            key = jax.random.fold_in(jax.random.wrap_key_data(key), position)
            return jax.random.normal(key, (cfg.sampler.draws, *latent_shape), jnp.float32)

        return jax.vmap(row)(state.key, state.position)

    def bind(weights_at: Callable, state: StreamState, actions: Actions) -> Network:
        """`weights_at(x)` -> (the DiT's weights, x), asked anew by every pass over the network."""
        position = state.position[:, None] + jnp.arange(chunk)
        rows = seen_rows(state, actions)
        bound = dit.Chunk(
            condition=condition_channels(cfg.dit, state.condition, position),
            image=state.image,
            context=dit.prepare(cfg.dit, position, rows, stride),
            cache=state.cache,
            position=state.position,
        )

        def denoise(x, timestep):
            weights, x = weights_at(x)
            return dit.denoise(weights, cfg.dit, x, timestep, bound, dtype, attention)

        def commit(latents, noise=None):
            if level:
                latents = add_noise(latents, noise, jnp.float32(level))
            kept = Actions(*(part[:, -history:] for part in rows))
            weights, latents = weights_at(latents)
            cache = dit.commit(weights, cfg.dit, latents, bound, dtype, attention, NUM_TIMESTEPS * level)
            return state._replace(position=state.position + chunk, rows=kept, cache=cache)

        return Network(bound, denoise, commit)

    def network(params: dict, state: StreamState, actions: Actions) -> Network:
        return bind(lambda x: (params["dit"], x), state, actions)

    def sample_chunk(params: dict, state: StreamState, actions: Actions, noise: Array | None = None):
        # A CPU multiplies in float32: XLA would convert all weights before the first pass and keep them to the last.
        bound = bind(lambda x: jax.lax.optimization_barrier((params["dit"], x)), state, actions)
        noise = draw(state) if noise is None else noise
        latents = sample(bound.denoise, noise, sigmas).x0
        return latents, bound.commit(latents, noise[:, len(sigmas)] if level else None)

    def decode(params: dict, latents: Array, position: Int[Array, " b"], cache):
        frames, cache = decoder_model.decode_step(
            params[settings.decoder], decoder_cfg, latents.astype(dtype), position == 0, cache, dtype=dtype
        )
        return jnp.round((jnp.clip(frames, -1, 1) + 1) * 127.5).astype(jnp.uint8), cache

    def chunk_step(params: dict, state: StreamState, actions: Actions, noise: Array | None = None):
        latents, after = sample_chunk(params, state, actions, noise)
        frames, cache = decode(params, latents, state.position, state.decoder)
        return frames, after._replace(decoder=cache)

    def roll(params: dict, state: StreamState, actions: Actions):
        return rollout(lambda state, rows: chunk_step(params, state, rows), state, actions)

    return World(cfg, settings, init, encode, begin, network, sample_chunk, decode, chunk_step, roll)


def jit_step(step: Callable) -> jax.stages.Wrapped:
    """`step(params, state, ...)` of a world, compiled with the state donated."""
    return jax.jit(step, donate_argnums=1, compiler_options=memory_order(jax.default_backend()))


def memory_order(platform: str) -> dict | None:
    """Options of XLA for programs that must stay small. A CPU's default order puts early what can run early, and so
    holds the float32 weights of all blocks at a time."""
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if platform == "cpu" else None


def streaming_params(world: World, params: dict) -> dict:
    """The part of `params` that `begin`, `chunk_step` and `rollout` read, in the compute dtype."""
    decoder = world.settings.decoder
    part = {"dit": params["dit"], decoder: {"decoder": params[decoder]["decoder"]}}
    return jax.tree.map(lambda leaf: leaf.astype(world.settings.dtype), part)


def condition_channels(
    cfg: DiTConfig, condition: Float[Array, "b u h w c"], position: Int[Array, "b t"]
) -> Float[Array, "b t h w m"]:
    """Mask channels, 1 on latent frame 0, and the image condition of the latent frames at `position`."""
    index = jnp.minimum(position, condition.shape[1] - 1)
    latents = jnp.take_along_axis(condition, index[:, :, None, None, None], 1)
    mask = (position == 0).astype(latents.dtype)[:, :, None, None, None]
    mask = jnp.broadcast_to(mask, (*latents.shape[:-1], cfg.mask_channels))
    return jnp.concatenate([mask, latents], -1)


def replace_row(state: StreamState, row: int, other: StreamState, other_row: int = 0) -> StreamState:
    """`state` with stream `row` exchanged for stream `other_row` of `other`; the other streams go on undisturbed."""
    return jax.tree.map(lambda old, new: old.at[row].set(new[other_row]), state, other)
