"""How well a world follows its actions: error of samples under a clip's own actions, and under those of another clip
(T1.6).

The clips' first pictures are given, so what follows is decided by the actions as far as the world is predictable.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mgjax.config import Settings, WorldConfig
from mgjax.diffusion.consistency import grid, trajectory
from mgjax.feeds.encode import swap_actions
from mgjax.models import dit
from mgjax.models.graft import count_actions
from mgjax.train.parts.network import bidirectional, network_of
from mgjax.train.parts.rolling import begin, chunk_rows, clip_of, draw_noise, roll
from mgjax.types import ClipBatch
from mgjax.world import World


class Control(NamedTuple):
    """Mean squared errors of sampled latents against the clips'."""

    error: Float[Array, ""]  # under the clips' own actions
    swapped: Float[Array, ""]  # under the actions of the neighbour in the batch


def foundation_control(
    cfg: WorldConfig, params: dict, clips: ClipBatch, steps: int = 32, shift: float = 5.0
) -> Control:
    """Of the bidirectional model `params` (as streams hold a DiT), by `steps` Euler steps."""
    net = network_of(cfg, "float32", "xla", window=None, sink=0, num_action_layers=count_actions(params))
    velocity, weights = bidirectional(net), dit.stack(params, net.dit)
    noise = jax.random.normal(jax.random.key(0), clips.latents.shape)

    def make(clips):
        def at(x, sigma):
            return velocity(weights, x, jnp.broadcast_to(sigma, x.shape[:1]), clips)

        return trajectory(at, noise, grid(steps, shift, np.array([])), np.array([0]))[1]

    return _compare(make, clips)


def student_control(cfg: WorldConfig, params: dict, clips: ClipBatch) -> Control:
    """Of the causal model `params`, by its own rollout with the few-step list."""
    net, functions = network_of(cfg, "float32", "xla"), World(cfg, Settings("float32"))
    batch, chunks = clips.latents.shape[0], clips.latents.shape[1] // cfg.dit.chunk
    noise = draw_noise(jax.random.key(0), net, batch, chunks, cfg.sampler.draws)
    last = jnp.asarray(len(cfg.sampler.steps) - 1)
    params = {"dit": dit.stack(params, net.dit)}  # in loops over layers: compiled in a fraction of the time

    def make(clips):
        rows = chunk_rows(net, clips.actions, 0, chunks)
        rolled, _ = roll(functions, params, begin(functions, params, clips), rows, noise, last)
        return clip_of(rolled.latents)

    return _compare(make, clips)


def _compare(make, clips: ClipBatch) -> Control:
    def error(other):
        return jnp.mean(jnp.square(make(other) - clips.latents))

    # One program, run twice: the sampler is compiled once.
    pair = jax.tree.map(lambda *leaves: jnp.stack(leaves), clips, swap_actions(clips))
    return Control(*jax.lax.map(error, pair))
