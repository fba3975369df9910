"""An inverse dynamics model: what was pressed, told from pictures.

It judges worlds: rows that it reads off a generated video are compared with those that the video was made under
(GameWorld Score of Matrix-Game 1; VPT, arXiv:2206.11795, trained such models to label videos). Two frames and the
change between them are read patch by patch; rows are read off the features of the pairs around them, later ones too.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from mgjax.models.layers import apply, create

_PATCH = (8, 4)  # pixels, high and wide: what moves most moves sideways


@dataclass(frozen=True)
class InverseConfig:
    """Sizes, and what is read: of every group of keys which one is pressed, or none or several; and the mouse."""

    groups: tuple[tuple[str, ...], ...] = (("forward", "back"), ("left", "right"))
    mouse_dim: int = 2
    height: int = 64  # pictures are resized to it
    width: int = 96
    channels: int = 64
    dim: int = 192
    reach: int = 4  # pairs of frames before and after that a row is read from; even


class Inverse(nn.Module):
    cfg: InverseConfig

    @nn.compact
    def __call__(self, video: Float[Array, "b f h w 3"]) -> tuple[list[Array], Array]:
        """Frames in [-1, 1] -> of f - 1 rows the logits of every group, and the mouse."""
        cfg = self.cfg
        b, f = video.shape[:2]
        before, after = video[:, :-1], video[:, 1:]
        x = jnp.concatenate([before, after - before], -1)
        x = rearrange(x, "b f (h p) (w q) c -> (b f) h w (p q c)", p=_PATCH[0], q=_PATCH[1])
        x = nn.gelu(nn.Dense(cfg.channels, name="patch")(x))
        x = nn.gelu(nn.Conv(cfg.channels, (3, 5), 2, name="conv")(x))
        x = nn.LayerNorm(name="norm")(nn.gelu(nn.Dense(cfg.dim, name="frame")(x.reshape(b, f - 1, -1))))
        for index in range(2):
            x = nn.gelu(nn.Conv(cfg.dim, (cfg.reach + 1,), name=f"time_{index}")(x))
        keys = [nn.Dense(len(group) + 1, name=f"keys_{index}")(x) for index, group in enumerate(cfg.groups)]
        return keys, nn.Dense(cfg.mouse_dim, name="mouse")(x)


def init(key: PRNGKeyArray, cfg: InverseConfig) -> dict:
    """Random parameters in float32."""
    video = jax.ShapeDtypeStruct((1, 2 + 2 * cfg.reach, cfg.height, cfg.width, 3), jnp.float32)
    return create(jax.eval_shape(lambda video: Inverse(cfg).init(key, video)["params"], video), key)


def read(params: dict, cfg: InverseConfig, video: UInt8[Array, "b f h w 3"]) -> tuple[list[Array], Array]:
    """Of the f - 1 rows of a video the logits of every group [b, f - 1, keys + 1], the first for none of them, and the
    mouse [b, f - 1, m]."""
    video = video.astype(jnp.float32) / 127.5 - 1
    if video.shape[2:4] != (cfg.height, cfg.width):
        video = jax.image.resize(video, (*video.shape[:2], cfg.height, cfg.width, 3), "linear")
    return apply(Inverse(cfg), params, video)
