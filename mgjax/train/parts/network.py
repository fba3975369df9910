"""The DiT over whole clips, as losses want it: functions (parameters, x, sigma, clips) -> velocity, everything else
bound.

Parameters are stacked and float32; they are cast to the compute dtype here, so gradients arrive in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from mgjax.config import AttentionKind, DiTConfig, Remat, WorldConfig
from mgjax.diffusion.flow import add_noise, clean, expand, timestep
from mgjax.models import dit
from mgjax.models.context import Context
from mgjax.models.masks import block_causal, teacher_forcing
from mgjax.train.stage import Params
from mgjax.types import Actions, ClipBatch
from mgjax.world import condition_channels

Velocity = Callable[[Params, Array, Array, ClipBatch], Array]


@dataclass(frozen=True)
class Network:
    """A DiT and how it computes."""

    dit: DiTConfig
    stride: int  # pixel frames a latent frame
    dtype: Any = jnp.float32
    attention: AttentionKind = "xla"
    remat: Remat = "layer"


def network_of(world: WorldConfig, dtype: str, attention: AttentionKind, remat: Remat = "layer", **changes) -> Network:
    """The world's DiT with `changes` of its config."""
    return Network(replace(world.dit, **changes), world.vae.temporal_stride, jnp.dtype(dtype), attention, remat)


def cast(params: Params, dtype) -> Params:
    """Floating leaves in `dtype`."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, params)


def hide_actions(clips: ClipBatch, hidden: Bool[Array, " b"]) -> ClipBatch:
    """The clips, those that are `hidden` with null actions."""

    def choose(real, null):
        return jnp.where(hidden[:, None, None], null, real)

    return clips._replace(actions=jax.tree.map(choose, clips.actions, null_actions(clips).actions))


def null_actions(clips: ClipBatch) -> ClipBatch:
    """The clips with every key released and a mouse at rest, which is what stands for "no condition"."""
    return clips._replace(actions=jax.tree.map(jnp.zeros_like, clips.actions))


def context(net: Network, actions: Actions, start: Int[Array, ""] | int, frames: int) -> Context:
    """Context of the latent frames from `start` on of clips whose rows `actions` [b, 4 (t - 1) + 1] begin at frame 0.

    Their positions count from `start`: to a network that is shown a window, the window is a clip.
    """
    action, stride = net.dit.action, net.stride
    early = stride * action.window

    def rows(part):
        part = jnp.concatenate([jnp.repeat(part[:, :1], early, 1), part.astype(jnp.float32)], 1)
        return jax.lax.dynamic_slice_in_dim(part, stride * start, stride * (frames - 1) + early, 1)

    position = jnp.broadcast_to(jnp.arange(frames), (actions.keyboard.shape[0], frames))
    return dit.prepare(net.dit, position, Actions(*map(rows, actions)), stride)


def conditions(net: Network, clips: ClipBatch, start: Int[Array, ""] | int, frames: int) -> Float[Array, "b t h w m"]:
    """Mask and image condition of the latent frames from `start` on."""
    position = jnp.broadcast_to(start + jnp.arange(frames), (clips.condition.shape[0], frames))
    return condition_channels(net.dit, clips.condition, position)


def bidirectional(net: Network, start: Int[Array, ""] | int = 0) -> Velocity:
    """Every frame sees every frame: foundation, teacher and critic. `sigma` [b]; `x` is the clips from frame `start`
    on."""
    return _whole(net, lambda frames: None, start)


def causal(net: Network) -> Velocity:
    """One pass in which chunks see the past as it is in `x`: noisy (diffusion forcing). `sigma` [b, t]."""
    return _whole(net, lambda frames: block_causal(net.dit, frames), 0)


def _whole(net: Network, mask_of: Callable[[int], np.ndarray | None], start) -> Velocity:
    def velocity(params, x, sigma, clips):
        frames = x.shape[1]
        time = timestep(sigma if sigma.ndim == 2 else sigma[:, None])
        given = (conditions(net, clips, start, frames), clips.features, context(net, clips.actions, start, frames))
        mask = mask_of(frames)
        how = {"dtype": net.dtype, "attention": net.attention, "remat": net.remat}
        return dit.forward(cast(params, net.dtype), net.dit, x, time, *given, mask, **how)

    return velocity


class PastNoise(NamedTuple):
    """In what noise chunks see the past of their clips."""

    noise: Float[Array, "b t h w c"]
    sigma: Float[Array, "#b"]


def draw_past(key: Array, clips: ClipBatch, limit: float) -> PastNoise | None:
    """A level for every clip, evenly up to sigma `limit`; None for a clean past."""
    if not limit:
        return None
    noise_key, level_key = jax.random.split(key)
    shape = clips.latents.shape
    return PastNoise(jax.random.normal(noise_key, shape), limit * jax.random.uniform(level_key, shape[:1]))


def per_frame(chunks: Shaped[Array, "b i"], net: DiTConfig) -> Array:
    """One value a chunk as one value a latent frame."""
    return jnp.repeat(chunks, net.chunk, 1)


def draw_own(key: Array, clips: ClipBatch, net: Network, share: float) -> Bool[Array, "b t"]:
    """Which chunks later ones are to see as the network predicts them (`with_own`): this share of all."""
    batch, frames = clips.latents.shape[:2]
    return per_frame(jax.random.uniform(key, (batch, frames // net.dit.chunk)) < share, net.dit)


def with_own(
    net: Network,
    params: Params,
    clips: ClipBatch,
    noise: Float[Array, "b t h w c"],
    own: Bool[Array, "b t"],
    past: PastNoise | None,
) -> Float[Array, "b t h w c"]:
    """The clips' latents, the frames of `own` as the network predicts them from the true past and `noise` alone, in one
    step (scheduled sampling, arXiv:1506.03099). No gradient flows into it."""
    sigma = jnp.ones(own.shape)
    velocity = forced(net, clips.latents, past)(jax.lax.stop_gradient(params), noise, sigma, clips)
    return jnp.where(expand(own, clips.latents), clean(noise, velocity, sigma), clips.latents)


def forced(
    net: Network, past: Float[Array, "b t h w c"], noise: PastNoise | None = None, detached: bool = False
) -> Velocity:
    """Chunks see the `past` of their clips (teacher forcing), clean at timestep 0 or in `noise` at its timestep: one
    pass over [past, x]. `sigma` [b, t].

    `detached`: no gradient flows into how the clean half's keys and values are computed, as in a stream's cache.
    """
    frames = past.shape[1]
    mask = teacher_forcing(net.dit, frames)
    level = jnp.zeros((1, 1)) if noise is None else noise.sigma[:, None]
    past = past if noise is None else add_noise(past, noise.noise, noise.sigma)

    def twice(tree):
        return jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf], 1), tree)

    def velocity(params, x, sigma, clips):
        out = dit.forward(
            cast(params, net.dtype),
            net.dit,
            jnp.concatenate([past, x], 1),
            timestep(jnp.concatenate([jnp.broadcast_to(level, sigma.shape), sigma], 1)),
            twice(conditions(net, clips, 0, frames)),
            clips.features,
            twice(context(net, clips.actions, 0, frames)),
            mask,
            net.dtype,
            net.attention,
            past=frames if detached else 0,
            remat=net.remat,
        )
        return out[:, -frames:]

    return velocity
