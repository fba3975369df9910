"""A world of 2 x 2 tokens, its random weights and random clips, for the tests of the ladder."""

import jax
import jax.numpy as jnp
import numpy as np

from mgjax.config import (
    ActionConfig,
    CLIPConfig,
    ControlConfig,
    DiTConfig,
    SamplerConfig,
    TAEHVConfig,
    VAEConfig,
    WorldConfig,
)
from mgjax.models import dit
from mgjax.train.parts.fit import clip_spec


def world(keyboard_dim: int = 4, **changes) -> WorldConfig:
    """`changes` are fields of the DiT's config."""
    net = dict(
        latent_height=4,
        latent_width=4,
        latent_channels=4,
        dim=32,
        num_heads=2,
        ffn_dim=48,
        num_layers=2,
        num_action_layers=2,
        time_dim=32,
        image_dim=8,
        image_tokens=5,
        chunk=2,
        window=4,
        action=ActionConfig(keyboard_dim=keyboard_dim, num_heads=2, head_dim=8, embed_dim=8, rope_dim=4),
    )
    return WorldConfig(
        name="tiny",
        dit=DiTConfig(**{**net, **changes}),
        vae=VAEConfig(dim=4, num_res_blocks=1, latent_channels=4, latent_mean=(0.0,) * 4, latent_std=(1.0,) * 4),
        taehv=TAEHVConfig(decoder_widths=(8, 8, 4, 4), encoder_width=4, latent_channels=4),
        clip=CLIPConfig(image_size=28, patch=14, dim=8, num_heads=2, num_layers=2, output_dim=8),
        sampler=SamplerConfig(steps=(1000, 666, 333)),
        control=ControlConfig(columns=tuple("abcdefgh"[:keyboard_dim]), keys=tuple("abcdefgh"[:keyboard_dim])),
    )


def weights(cfg: WorldConfig, seed: int = 0) -> dict:
    """DiT parameters as streams hold them, no leaf of them zero."""
    rng = np.random.default_rng(seed)

    def leaf(path, spec):
        name = path[-1].key
        if name in ("scale", "unused_q_scale", "unused_k_scale"):
            return jnp.asarray(rng.uniform(0.7, 1.3, spec.shape), jnp.float32)
        width = spec.shape[0] if name == "kernel" else 25
        return jnp.asarray(rng.normal(size=spec.shape) * width**-0.5, jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(lambda key: dit.init(key, cfg.dit), jax.random.key(0)))


def clips(cfg: WorldConfig, batch: int, latents: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    spec = clip_spec(cfg, batch, latents)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), spec)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def unmoved(before, after) -> set[str]:
    """Paths of leaves that training left bit for bit as they were, which no gradient reached; what the released code
    has and does not use is left out."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for (path, a), b in pairs if (a == b).all()}
    return {name for name in names if "unused" not in name}


def relative(tree, other) -> float:
    """Norm of the difference over the norm of `other`."""
    difference = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), tree, other)
    size = jax.tree.map(lambda b: jnp.sum(jnp.square(b)), other)
    return float(jnp.sqrt(sum(jax.tree.leaves(difference)) / sum(jax.tree.leaves(size))))
