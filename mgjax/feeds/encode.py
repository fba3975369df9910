"""Recorded windows -> the clips that the DiT's stages train on, by a world's own frozen encoders."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from mgjax.config import WorldConfig
from mgjax.models import clip, codecs
from mgjax.types import Actions, ClipBatch


def encode_clips(
    params: dict,
    cfg: WorldConfig,
    frames: UInt8[Array, "b f h w 3"],
    keyboard: Float[Array, "b f a"],
    mouse: Float[Array, "b f m"],
    dtype=jnp.float32,
) -> ClipBatch:
    """`params` holds the `cfg.encoders`; f = 4 (t - 1) + 1 frames become t latent frames. Rows in the model's
    convention."""
    video = frames.astype(jnp.float32) / 127.5 - 1
    codec = codecs.of(cfg.vae)
    latents = codec.encode(params["vae"], cfg.vae, video, dtype=dtype)
    settled = min(codec.settled_latents(cfg.vae), latents.shape[1])
    condition = codec.encode_image_condition(params["vae"], cfg.vae, video[:, 0], settled, dtype=dtype)
    condition = jnp.pad(condition, ((0, 0), (0, latents.shape[1] - settled), *((0, 0),) * 3), mode="edge")
    return ClipBatch(
        latents=latents,
        condition=condition.astype(jnp.float32),
        features=clip.features(params, cfg, video[:, 0], dtype=dtype).astype(jnp.float32),
        actions=Actions(keyboard.astype(jnp.float32), mouse.astype(jnp.float32)),
    )


def swap_actions(clips: ClipBatch) -> ClipBatch:
    """Every clip with the actions of its neighbour in the batch: what a model makes of them must fit its own clip
    worse."""
    return clips._replace(actions=jax.tree.map(lambda rows: jnp.roll(rows, 1, 0), clips.actions))
