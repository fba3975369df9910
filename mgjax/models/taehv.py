"""TAEHV (`taew2_1`), the small fast autoencoder of the Wan 2.1 latent space (design page section 7).

2-D convolutions on single frames; each memory block also reads its own input one frame earlier, zeros at the start of
a stream. These last inputs are the whole cache. Frames are in [-1, 1] here; the released weights work in [0, 1].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mgjax.config import TAEHVConfig
from mgjax.models.layers import Conv, Dense, apply, create
from mgjax.ops.loops import fold
from mgjax.ops.straight import clip

TEMPORAL_STRIDE, (SPATIAL_STRIDE, _) = TAEHVConfig().temporal_stride, TAEHVConfig().place
POOLS = (2, 2, 1)  # frames that become one before each down-sampling of the encoder
GROWS = (1, 2, 2)  # frames that one becomes after each up-sampling of the decoder
Cache = dict  # last input frame [b h w c] of every memory block, under its name


def _dense(features: int, x: Array, name: str) -> Array:
    return Dense(features, use_bias=False, dtype=x.dtype, name=name)(x)


class MemoryBlock(nn.Module):
    """Residual block over each frame and the one before it."""

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], last: Float[Array, "b h w c"]) -> tuple[Array, Array]:
        features = x.shape[-1]
        h = jnp.concatenate([x, jnp.concatenate([last[:, None], x[:, :-1]], axis=1)], axis=-1)
        h = nn.relu(Conv(features, name="conv_0")(h))
        h = nn.relu(Conv(features, name="conv_1")(h))
        return nn.relu(Conv(features, name="conv_2")(h) + x), x[:, -1]


def _memory_blocks(x: Array, cache: Cache, first: Array, level: int) -> tuple[Array, Cache]:
    new = {}
    for name in (f"block_{level}_{block}" for block in range(3)):
        last = cache.get(name, jnp.zeros_like(x[:, 0]))
        last = jnp.where(first[:, None, None, None], 0, last)
        x, new[name] = MemoryBlock(name=name)(x, last)
    return x, new


class Encoder(nn.Module):
    cfg: TAEHVConfig

    @nn.compact
    def __call__(self, x: Array, cache: Cache, first: Array) -> tuple[Array, Cache]:
        """Frames [b 4t h w 3] in [0, 1] to latent frames; `first` [b] marks rows whose stream begins here."""
        width, new = self.cfg.encoder_width, {}
        x = nn.relu(Conv(width, name="conv_in")(x))
        for level, pool in enumerate(POOLS):
            x = _dense(width, rearrange(x, "b (t s) h w c -> b t h w (s c)", s=pool), f"pool_{level}")
            x = Conv(width, halved=(1, 1), use_bias=False, name=f"down_{level}")(x)
            x, memory = _memory_blocks(x, cache, first, level)
            new |= memory
        return Conv(self.cfg.latent_channels, name="conv_out")(x), new


class Decoder(nn.Module):
    cfg: TAEHVConfig

    @nn.compact
    def __call__(self, z: Array, cache: Cache, first: Array) -> tuple[Array, Cache]:
        """Latent frames [b t h w c] to frames [b 4t H W 3] in [0, 1]; `first` [b] marks rows that begin here."""
        widths, new = self.cfg.decoder_widths, {}
        x = nn.relu(Conv(widths[0], name="conv_in")(3 * jnp.tanh(z / 3)))
        for level, grow in enumerate(GROWS):
            x, memory = _memory_blocks(x, cache, first, level)
            new |= memory
            # pointwise, so it may come before the up-sampling that the released code puts first: a quarter of the work
            x = _dense(widths[level] * grow, x, f"grow_{level}")
            x = rearrange(x, "b t h w (s c) -> b (t s) h w c", s=grow)
            x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
            x = Conv(widths[level + 1], use_bias=False, name=f"up_{level}")(x)
        return Conv(3, name="conv_out")(nn.relu(x)), new


def init(key: Array, cfg: TAEHVConfig, dtype=jnp.float32) -> dict:
    """Random parameters {"encoder", "decoder"} of the shapes that `mgjax.models.names.taehv_tensors` lists.

    Memory blocks begin by passing on what they are given: from random ones a level's units can all fall below zero,
    where a rectified unit has no gradient, and the decoder then never learns more than a mean colour.
    """
    video = jnp.zeros((1, TEMPORAL_STRIDE, SPATIAL_STRIDE, SPATIAL_STRIDE, 3))
    latents, first = jnp.zeros((1, 1, 1, 1, cfg.latent_channels)), jnp.ones(1, bool)

    def shapes():
        return {
            "encoder": Encoder(cfg).init(key, video, {}, first)["params"],
            "decoder": Decoder(cfg).init(key, latents, {}, first)["params"],
        }

    return create(jax.eval_shape(shapes), key, dtype, zero=r"/block_\w+/conv_2/")


def _empty_cache(module: nn.Module, shape: tuple[int, ...], dtype) -> Cache:
    def run():
        return module.init_with_output(jax.random.key(0), jnp.zeros(shape, dtype), {}, jnp.ones(shape[0], bool))

    (_, cache), _ = jax.eval_shape(run)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), cache)


def init_encoder_cache(cfg: TAEHVConfig, batch: int, height: int, width: int, dtype=jnp.float32) -> Cache:
    """An encoder cache of the right shapes; what it holds does not matter before a row's first frames."""
    return _empty_cache(Encoder(cfg), (batch, TEMPORAL_STRIDE, height, width, 3), dtype)


def encode_step(
    params: dict,
    cfg: TAEHVConfig,
    video: Float[Array, "b f h w 3"],
    first: Bool[Array, " b"],
    cache: Cache,
    *,
    dtype=jnp.float32,
) -> tuple[Float[Array, "b t hl wl c"], Cache]:
    """Encodes the next frames, in [-1, 1] and a multiple of 4, of every row's stream; `first` rows begin here."""
    x = (video.astype(jnp.float32) * 0.5 + 0.5).astype(dtype)
    latents, cache = apply(Encoder(cfg), params["encoder"], x, cache, first)
    return latents.astype(jnp.float32), cache


def encode(
    params: dict, cfg: TAEHVConfig, video: Float[Array, "b f h w 3"], *, dtype=jnp.float32, whole: bool = False
) -> Float[Array, "b t hl wl c"]:
    """Latents of a video in [-1, 1]; its last frame is repeated up to a multiple of 4 frames. `whole` as in
    `mgjax.models.vae.decode`."""
    video = jnp.pad(video, ((0, 0), (0, -video.shape[1] % TEMPORAL_STRIDE), *((0, 0),) * 3), mode="edge")
    latents = video.shape[1] // TEMPORAL_STRIDE
    groups = rearrange(video, "b (n f) h w c -> n b f h w c", n=1 if whole else latents)
    cache = init_encoder_cache(cfg, video.shape[0], video.shape[2], video.shape[3], dtype)
    first = jnp.ones(video.shape[0], bool)

    def step(carry, group):
        cache, first = carry
        latents, cache = encode_step(params, cfg, group, first, cache, dtype=dtype)
        return (cache, jnp.zeros_like(first)), latents

    _, latents = fold(step, (cache, first), groups)
    return rearrange(latents, "n b t h w c -> b (n t) h w c")


def init_decoder_cache(cfg: TAEHVConfig, batch: int, latent_height: int, latent_width: int, dtype=jnp.float32) -> Cache:
    """A decoder cache of the right shapes; what it holds does not matter before a row's first latent frame."""
    return _empty_cache(Decoder(cfg), (batch, 1, latent_height, latent_width, cfg.latent_channels), dtype)


def decode_step(
    params: dict,
    cfg: TAEHVConfig,
    latents: Float[Array, "b t hl wl c"],
    first: Bool[Array, " b"],
    cache: Cache,
    *,
    dtype=jnp.float32,
    whole: bool = False,
) -> tuple[Float[Array, "b f h w 3"], Cache]:
    """Decodes the next latent frames of every row's stream into 4 frames each, in [-1, 1]. `whole` as in
    `mgjax.models.vae.decode`.

    `first` marks the rows whose stream begins with this call: what the cache held of them is forgotten, and of their
    frames the leading 3 do not exist (zeros, to be dropped).
    """

    def step(carry, z):
        cache, first = carry
        frames, cache = apply(Decoder(cfg), params["decoder"], z, cache, first)
        frames = 2 * clip(frames.astype(jnp.float32), 0.0, 1.0) - 1
        hidden = first[:, None] & (jnp.arange(frames.shape[1]) < TEMPORAL_STRIDE - 1)
        return (cache, jnp.zeros_like(first)), jnp.where(hidden[:, :, None, None, None], 0, frames)

    groups = rearrange(latents.astype(dtype), "b (n t) h w c -> n b t h w c", n=1 if whole else latents.shape[1])
    (cache, _), frames = fold(step, (cache, first), groups)
    return rearrange(frames, "n b f h w c -> b (n f) h w c"), cache


def decode(
    params: dict, cfg: TAEHVConfig, latents: Float[Array, "b t hl wl c"], *, dtype=jnp.float32, whole: bool = False
) -> Float[Array, "b f h w 3"]:
    """The whole video of 1 + 4 (t - 1) frames, in [-1, 1]. `whole` as in `mgjax.models.vae.decode`."""
    cache = init_decoder_cache(cfg, latents.shape[0], latents.shape[2], latents.shape[3], dtype)
    frames, _ = decode_step(params, cfg, latents, jnp.ones(latents.shape[0], bool), cache, dtype=dtype, whole=whole)
    return frames[:, TEMPORAL_STRIDE - 1 :]
