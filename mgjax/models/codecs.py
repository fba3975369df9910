"""Which module codes a world's videos: both have `init`, `encode`, `encode_image_condition`, `settled_latents`,
`decode`, `decode_step` and `init_decoder_cache`."""

from types import ModuleType

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from mgjax.config import LinearConfig, VAEConfig
from mgjax.models import linear, vae


def of(cfg: VAEConfig | LinearConfig) -> ModuleType:
    return linear if isinstance(cfg, LinearConfig) else vae


def init(key: PRNGKeyArray, cfg: VAEConfig | LinearConfig, dtype=jnp.float32) -> dict:
    """Random parameters."""
    return of(cfg).init(key, cfg, dtype)
