"""A pose regressor: where a camera stands and where it looks, told from one picture of a level that it has learned
(PoseNet, arXiv:1505.07427).

It judges worlds: how far the camera of a generated video has come away from the engine's under the same rows. Its
features, which tell the places of a level apart, compare pictures as LPIPS does (arXiv:1801.03924).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from mgjax.models.layers import apply, create

_PATCH = 4  # pixels, high and wide


@dataclass(frozen=True)
class PoseConfig:
    """Sizes, and the box in which the cameras stood that it learned from, in the engine's units."""

    low: tuple[float, ...] = (0.0, 0.0, 0.0)
    high: tuple[float, ...] = (1.0, 1.0, 1.0)
    height: int = 64  # pictures are resized to it
    width: int = 96
    channels: tuple[int, ...] = (64, 96, 128)
    dim: int = 192


class Camera(NamedTuple):
    """Where cameras stand, in the engine's units, and the unit vector along which they look; the third axis is up."""

    position: Float[np.ndarray, "*s 3"]
    direction: Float[np.ndarray, "*s 3"]


class Pose(nn.Module):
    cfg: PoseConfig

    @nn.compact
    def __call__(
        self, pictures: Float[Array, "n h w 3"]
    ) -> tuple[Float[Array, "n 3"], Float[Array, "n 3"], list[Float[Array, "n ..."]]]:
        """Pictures in [-1, 1] -> positions within the box, from -1 to 1, directions of any length, and the features of
        every level."""
        cfg, features = self.cfg, []
        x = rearrange(pictures, "n (h p) (w q) c -> n h w (p q c)", p=_PATCH, q=_PATCH)
        for level, channels in enumerate(cfg.channels):
            layer = nn.Conv(channels, (3, 3), 2, name=f"level_{level}") if level else nn.Dense(channels, name="level_0")
            x = nn.gelu(nn.LayerNorm(name=f"norm_{level}")(layer(x)))
            features.append(x)
        x = nn.gelu(nn.Dense(cfg.dim, name="picture")(x.reshape(len(x), -1)))
        x = nn.gelu(nn.Dense(cfg.dim, name="hidden")(x))
        return nn.Dense(3, name="position")(x), nn.Dense(3, name="direction")(x), features


def init(key: PRNGKeyArray, cfg: PoseConfig) -> dict:
    """Random parameters in float32."""
    pictures = jax.ShapeDtypeStruct((1, cfg.height, cfg.width, 3), jnp.float32)
    return create(jax.eval_shape(lambda pictures: Pose(cfg).init(key, pictures)["params"], pictures), key)


def prepare(cfg: PoseConfig, pictures: UInt8[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """Pictures of any size as `Pose` takes them."""
    x = pictures.astype(jnp.float32) / 127.5 - 1
    if x.shape[1:3] == (cfg.height, cfg.width):
        return x
    return jax.image.resize(x, (len(x), cfg.height, cfg.width, 3), "linear")


def read(
    params: dict, cfg: PoseConfig, pictures: UInt8[Array, "n h w 3"]
) -> tuple[Float[Array, "n 3"], Float[Array, "n 3"]]:
    """Positions in the engine's units, and directions of length 1."""
    position, direction, _ = apply(Pose(cfg), params, prepare(cfg, pictures))
    low, high = jnp.asarray(cfg.low), jnp.asarray(cfg.high)
    length = jnp.maximum(jnp.linalg.norm(direction, axis=-1, keepdims=True), 1e-6)
    return low + (position + 1) / 2 * (high - low), direction / length


def distance(
    params: dict, cfg: PoseConfig, one: UInt8[Array, "n h w 3"], other: UInt8[Array, "n h w 3"]
) -> Float[Array, " n"]:
    """Between pictures, of their features: those of a place scaled to length 1, squared differences summed over the
    channels, means over places, summed over levels; from 0 to 4 a level (LPIPS without its weights of channels)."""

    def features(pictures):
        _, _, levels = apply(Pose(cfg), params, prepare(cfg, pictures))
        return [x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6) for x in levels]

    levels = zip(features(one), features(other), strict=True)
    return jnp.stack([jnp.square(x - y).sum(-1).mean((1, 2)) for x, y in levels]).sum(0)
