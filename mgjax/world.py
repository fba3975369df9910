"""A world: the pure functions that start a stream from a picture and carry it on.

One chunk is `cfg.dit.chunk` latent frames and, for every row of a batch alike, `cfg.chunk_frames` (12) action rows and
pixel frames. They are numbered from the beginning of the stream: the chunk that starts at latent frame T takes rows 4T
- 4 to 4T + 7 and makes frames 4T - 3 to 4T + 8, so that row r produces frame r + 1. A stream's first chunk (T = 0) has
no rows -4 to -1 and no frames -3 to -1: these rows are ignored and these frames are blank. That makes one program serve
every chunk, and rows of a batch that are at different places.

A chunk is three programs, in the order in which a stream wants them: `sample` (noise to latents), `decode` (latents to
frames, which may leave now) and `commit` (latents into the cache, for the next chunk). `chunk_step` is all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from mgjax.config import DiTConfig, Settings, WorldConfig
from mgjax.diffusion import rollout
from mgjax.diffusion.flow import add_noise
from mgjax.diffusion.schedule import NUM_TIMESTEPS, step_sigmas
from mgjax.errors import InputError
from mgjax.models import clip, codecs, dit, taehv
from mgjax.programs import Programs, programs
from mgjax.types import Actions, Frames, ImageCondition, StreamState

Params = dict[str, Any]  # {"dit", "vae", "taehv", "clip"}; a stream reads "dit" and its decoder's alone


@dataclass(frozen=True)
class World:
    """A config and how it is computed. Every method is a pure function, and two equal worlds share what was compiled.

    Parameters and state are arguments and results. All methods but `init` want parameters in the compute dtype for full
    speed. InputError where the config cannot stream.
    """

    cfg: WorldConfig
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self):
        if self.cfg.dit.window is None:
            raise InputError(
                f"the model {self.cfg.name} cannot stream: its window is global (DiTConfig.window is None)"
            )
        self.cfg.check_fit(self.settings.decoder)

    @property
    def dtype(self) -> Any:
        """What is computed in; float32 islands aside."""
        return jnp.dtype(self.settings.dtype)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise level of every denoising step."""
        return tuple(step_sigmas(self.cfg.sampler.steps, self.cfg.sampler.shift).tolist())

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """[t, h, w, c] of a chunk."""
        cfg = self.cfg.dit
        return cfg.chunk, cfg.latent_height, cfg.latent_width, cfg.latent_channels

    @property
    def history(self) -> int:
        """Action rows of earlier chunks that a chunk still sees."""
        return self.cfg.vae.temporal_stride * (self.cfg.dit.action.window - 1)

    @property
    def settled(self) -> int:
        """Latent frames of a picture's condition that differ; the last stands for all later ones."""
        return codecs.of(self.cfg.vae).settled_latents(self.cfg.vae)

    def init(self, key: PRNGKeyArray) -> Params:
        """Random parameters of all networks in the compute dtype."""
        keys, cfg = jax.random.split(key, 4), self.cfg
        return {
            "dit": dit.init(keys[0], cfg.dit, self.dtype),
            "vae": codecs.init(keys[1], cfg.vae, self.dtype),
            "taehv": taehv.init(keys[2], cfg.taehv, self.dtype),
            "clip": clip.init(keys[3], cfg.clip, self.dtype),
        }

    def encode(self, params: Params, image: Float[Array, "b h w 3"], horizon: int | None = None) -> ImageCondition:
        """What the DiT sees of pictures in [-1, 1]. Only the first `horizon` latent frames of it are exact where that
        is given: a stream that is known to be short saves the time."""
        self.cfg.check_fit(*self.cfg.encoders)
        frames = self.settled if horizon is None else min(horizon, self.settled)
        codec = codecs.of(self.cfg.vae)
        latents = codec.encode_image_condition(params["vae"], self.cfg.vae, image, frames, dtype=self.dtype)
        features = clip.features(params, self.cfg, image, dtype=self.dtype)
        return ImageCondition(latents.astype(jnp.float32), features)

    def encode_video(self, params: Params, video: Float[Array, "b f h w 3"]) -> Float[Array, "b t hl wl c"]:
        """Latents of videos in [-1, 1] of 1 + 4 (t - 1) frames, as `prefill` takes them."""
        latents = codecs.of(self.cfg.vae).encode(params["vae"], self.cfg.vae, video, dtype=self.dtype)
        return latents.astype(jnp.float32)

    def begin(self, params: Params, condition: ImageCondition, keys: Key[Array, " b"]) -> StreamState:
        """The state of new streams, one a picture; `keys` are what their noise is drawn from."""
        cfg, batch = self.cfg.dit, keys.shape[0]
        widths = cfg.action.keyboard_dim, cfg.action.mouse_dim
        codec, codec_cfg = self._codec
        return StreamState(
            key=jax.random.key_data(keys),
            position=jnp.zeros(batch, jnp.int32),
            rows=Actions(*(jnp.zeros((batch, self.history, width), jnp.float32) for width in widths)),
            condition=condition.latents,
            image=dit.prepare_image(params["dit"], cfg, condition.features, self.dtype),
            cache=dit.init_cache(params["dit"], cfg, batch, self.dtype),
            decoder=codec.init_decoder_cache(codec_cfg, batch, cfg.latent_height, cfg.latent_width, self.dtype),
        )

    def bind(self, params: Params, state: StreamState, actions: Actions) -> dit.Chunk:
        """What the next chunk gives to every pass of the DiT over it; `actions` are its rows [b, 12]."""
        cfg, stride = self.cfg.dit, self.cfg.vae.temporal_stride
        position = state.position[:, None] + jnp.arange(cfg.chunk)
        return dit.Chunk(
            condition=condition_channels(cfg, state.condition, position),
            image=state.image,
            context=dit.prepare(cfg, position, self.seen_rows(state, actions), stride),
            cache=state.cache,
            position=state.position,
        )

    def denoise(
        self, params: Params, chunk: dit.Chunk, x: Float[Array, "b t h w c"], timestep: Float[Array, "#b #t"]
    ) -> Float[Array, "b t h w c"]:
        """Velocity (noise - x0) of the noisy latents `x` of a chunk of `bind`."""
        return dit.denoise(params["dit"], self.cfg.dit, x, timestep, chunk, self.dtype, self.settings.attention)

    def sample(
        self,
        params: Params,
        state: StreamState,
        actions: Actions,
        noise: Float[Array, "b draws t h w c"] | None = None,
    ) -> Float[Array, "b t h w c"]:
        """Latents of the next chunk, for its rows [b, 12]. `noise`, one array a step, replaces what is drawn from the
        state's key."""
        chunk = self.bind(params, state, actions)

        def denoise(x, timestep):
            dit, x = _anew((params["dit"], x))
            return self.denoise({"dit": dit}, chunk, x, timestep)

        return rollout.sample(denoise, self._draw(state) if noise is None else noise, self.sigmas).x0

    def decode(
        self, params: Params, latents: Float[Array, "b t h w c"], position: Int[Array, " b"], cache: Any
    ) -> tuple[Frames, Any]:
        """Frames of a chunk and the decoder's cache after it; `position` is that of the chunk's first latent frame."""
        codec, cfg = self._codec
        weights = params[self.settings.decoder]
        # cuDNN's attention is NVIDIA's: their GPUs decode the latent frames of a chunk faster together (58.7 against
        # 65.2 ms on an H200), and have the memory. The numbers are the same.
        whole = self.settings.attention == "cudnn"
        video, cache = codec.decode_step(weights, cfg, latents, position == 0, cache, dtype=self.dtype, whole=whole)
        finite = jnp.isfinite(video).all((1, 2, 3, 4)) & jnp.isfinite(latents).all((1, 2, 3, 4))
        return Frames(jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5).astype(jnp.uint8), finite), cache

    def commit(
        self,
        params: Params,
        state: StreamState,
        actions: Actions,
        latents: Float[Array, "b t h w c"],
        noise: Float[Array, "b t h w c"] | None = None,
    ) -> StreamState:
        """The state after a chunk of these rows and finished latents; its decoder's cache is as it was.

        A world whose sampler has a `context` remembers the chunk in that much noise: `noise`, or where it is None what
        is drawn from the state's key.
        """
        chunk, cfg, level = self.bind(params, state, actions), self.cfg.dit, self.cfg.sampler.context
        if level:
            noise = self._draw(state)[:, -1] if noise is None else noise
            latents = add_noise(latents, noise, jnp.float32(level))
        weights, latents = _anew((params["dit"], latents))
        timestep = NUM_TIMESTEPS * level
        rows = self.seen_rows(state, actions)
        return state._replace(
            position=state.position + cfg.chunk,
            rows=Actions(*(part[:, part.shape[1] - self.history :] for part in rows)),
            cache=dit.commit(weights, cfg, latents, chunk, self.dtype, self.settings.attention, timestep),
        )

    def chunk_step(
        self, params: Params, state: StreamState, actions: Actions, noise: Array | None = None
    ) -> tuple[Frames, StreamState]:
        """The next chunk of every stream, for its rows [b, 12]: its frames and the state after it.

        `noise` [b, draws, t, h, w, c], one array a step and where the sampler has a `context` another for it, replaces
        what is drawn from the state's key.
        """
        latents = self.sample(params, state, actions, noise)
        # The three parts are compiled as they are alone, so that a stream's frames do not depend on who composes them.
        latents = jax.lax.optimization_barrier(latents)
        frames, decoder = self.decode(params, latents, state.position, state.decoder)
        noise = None if noise is None else noise[:, -1]
        return frames, self.commit(params, state, actions, latents, noise)._replace(decoder=decoder)

    def rollout(self, params: Params, state: StreamState, actions: Actions) -> tuple[Frames, StreamState]:
        """`chunk_step` for the rows [i, b, 12] of i chunks: the frames of all, stacked on a new axis 0, and the state
        after them.

        As `programs().rollout` compiles it, the frames of stepping, bit by bit where XLA multiplies alike inside and
        outside of a loop, which it does for small matrices; else, or with other options of XLA, a sum's last bit may
        differ, and so a grey level of a few pixels.
        """
        return rollout.rollout(lambda state, rows: self.chunk_step(params, state, rows), state, actions)

    def prefill(
        self, params: Params, state: StreamState, actions: Actions, latents: Float[Array, "i b t h w c"]
    ) -> StreamState:
        """The state of streams that made the given latents for the rows [i, b, 12], as if they had been sampled."""

        def step(state, chunk):
            rows, latents = chunk
            _, decoder = self.decode(params, latents, state.position, state.decoder)
            return None, self.commit(params, state, rows, latents)._replace(decoder=decoder)

        return rollout.rollout(step, state, (actions, latents))[1]

    def seen_rows(self, state: StreamState, actions: Actions) -> Actions:
        """The rows [b, history + 12] that a chunk sees; rows before a stream's first, number 0, equal it.

        A first chunk of a single latent frame has no row 0 yet: there the last that was given stands for it.
        """
        stride = self.cfg.vae.temporal_stride
        # Far from a stream's beginning all is past row 0, and a large position must not overflow.
        position = jnp.minimum(state.position, self.cfg.dit.action.window + 1)
        first = self.history + stride * (1 - position)  # where row 0 is

        def join(past, rows):
            rows = jnp.concatenate([past, rows.astype(jnp.float32)], 1)
            index = jnp.arange(rows.shape[1])
            opening = jnp.take_along_axis(rows, jnp.clip(first, 0, len(index) - 1)[:, None, None], 1)
            return jnp.where((index < first[:, None])[..., None], opening, rows)

        return Actions(*map(join, state.rows, actions))

    def streaming(self, params: Params) -> Params:
        """The part of `params` that a stream reads once it has begun, in the compute dtype."""
        decoder = self.settings.decoder
        part = {"dit": params["dit"], decoder: {"decoder": params[decoder]["decoder"]}}
        return jax.tree.map(lambda leaf: leaf.astype(self.dtype), part)

    def state_shapes(self, batch: int, horizon: int | None = None) -> StreamState:
        """Shapes and dtypes of the state of `batch` streams, begun from pictures of which `horizon` latent frames are
        exact (`encode`)."""
        cfg, frames = self.cfg.dit, self.settled if horizon is None else min(horizon, self.settled)
        latents = batch, frames, *self.latent_shape[1:]

        def begin(key):
            features = jnp.zeros((batch, cfg.image_tokens, cfg.image_dim), self.dtype)
            condition = ImageCondition(jnp.zeros(latents, jnp.float32), features)
            return self.begin({"dit": dit.init(key, cfg, self.dtype)}, condition, jax.random.split(key, batch))

        return jax.eval_shape(begin, jax.random.key(0))

    @staticmethod
    def programs() -> Programs:
        """The methods, compiled: one set for all worlds of a process."""
        return programs(World)

    @property
    def _codec(self):
        decoder = self.settings.decoder
        return (taehv if decoder == "taehv" else codecs.of(self.cfg.vae)), getattr(self.cfg, decoder)

    def _draw(self, state: StreamState) -> Float[Array, "b draws t h w c"]:
        def row(key, position):
            key = jax.random.fold_in(jax.random.wrap_key_data(key), position)
            return jax.random.normal(key, (self.cfg.sampler.draws, *self.latent_shape), jnp.float32)

        return jax.vmap(row)(state.key, state.position)


def _anew(tree):
    """`tree`, on a CPU as values of this place alone. A CPU multiplies in float32: XLA would convert all weights before
    the first pass and keep them to the last."""
    return jax.lax.platform_dependent(tree, cpu=jax.lax.optimization_barrier, default=lambda tree: tree)


def condition_channels(
    cfg: DiTConfig, condition: Float[Array, "b u h w c"], position: Int[Array, "b t"]
) -> Float[Array, "b t h w m"]:
    """Mask channels, 1 on latent frame 0, and the image condition of the latent frames at `position`."""
    index = jnp.minimum(position, condition.shape[1] - 1)
    latents = jnp.take_along_axis(condition, index[:, :, None, None, None], 1)
    mask = (position == 0).astype(latents.dtype)[:, :, None, None, None]
    mask = jnp.broadcast_to(mask, (*latents.shape[:-1], cfg.mask_channels))
    return jnp.concatenate([mask, latents], -1)
