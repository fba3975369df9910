"""Stage 3a: the causal student, from the foundation model's weights (training page sections 2a and 2b).

Every chunk has a noise level of its own. Teacher forcing shows it the clean past, or chunks of it as the network itself
predicts them; diffusion forcing the past as noisy as it is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mgjax.config import WorldConfig
from mgjax.diffusion.flow import add_noise, flow_loss
from mgjax.diffusion.schedule import sigmas, step_sigmas, training_weights
from mgjax.train.parts.fit import BUCKETS, fit_stage, loss_by_level
from mgjax.train.parts.network import (
    PastNoise,
    causal,
    draw_own,
    draw_past,
    forced,
    hide_actions,
    network_of,
    per_frame,
    with_own,
)
from mgjax.train.stage import Stage, fold
from mgjax.train_config import CausalStage


class Draws(NamedTuple):
    noise: Float[Array, "b t h w c"]
    sigma: Float[Array, "b t"]  # the same within a chunk
    weight: Float[Array, "b t"]  # of the loss at that level
    dropped: Bool[Array, " b"]  # clips whose actions are hidden
    past: PastNoise | None
    own: Bool[Array, "b t"]  # chunks that later ones see as the network predicts them


def make_stage(cfg: CausalStage, world: WorldConfig) -> Stage:
    """Trains on whole clips under the mask that a stream's cache imposes."""
    net = network_of(world, cfg.dtype, cfg.attention, cfg.remat)
    table, weight = _levels(cfg, world)

    def velocity(weights, x, sigma, clips, past=None, seen=None):
        """`seen`: the past where it is not the clips' own."""
        shown = clips.latents if seen is None else seen
        how = forced(net, shown, past) if cfg.forcing == "teacher" else causal(net)
        return how(weights, x, sigma, clips)

    def draw(state, clips):
        batch, frames = clips.latents.shape[:2]
        chunks = batch, frames // net.dit.chunk
        level = per_frame(jax.random.randint(fold(state, "level"), chunks, 0, len(table)), net.dit)
        noise = jax.random.normal(fold(state, "noise"), clips.latents.shape)
        dropped = jax.random.uniform(fold(state, "dropout"), (batch,)) < cfg.action_dropout
        past = draw_past(fold(state, "context"), clips, cfg.context_noise)
        own = draw_own(fold(state, "own"), clips, net, cfg.own_past)
        return Draws(noise, table[level], weight[level], dropped, past, own)

    def loss(weights, state, piece):
        clips, draws = piece
        shown = hide_actions(clips, draws.dropped)
        seen = with_own(net, weights, shown, draws.noise, draws.own, draws.past) if cfg.own_past else None
        x = add_noise(clips.latents, draws.noise, draws.sigma)
        v = velocity(weights, x, draws.sigma, shown, draws.past, seen)
        return flow_loss(v, clips.latents, draws.noise, draws.weight), {}

    def evaluate(weights, clips):
        def at(x, sigma):
            return velocity(weights, x, jnp.broadcast_to(sigma[:, None], x.shape[:2]), clips)

        few = step_sigmas(world.sampler.steps, cfg.shift_in(world))
        return loss_by_level(at, clips, BUCKETS if cfg.levels == "all" else tuple(map(round, 1000 * few)))

    return fit_stage("causal", cfg, world, net.dit, draw, loss, evaluate)


def _levels(cfg: CausalStage, world: WorldConfig) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Sigmas that chunks are trained at, and the weight of the loss at each."""
    if cfg.levels == "all":
        levels, weights = sigmas(cfg.shift_in(world)), training_weights(cfg.shift_in(world))
        return jnp.asarray(levels, jnp.float32), jnp.asarray(weights, jnp.float32)
    few = jnp.asarray(step_sigmas(world.sampler.steps, cfg.shift_in(world)), jnp.float32)
    return few, jnp.ones_like(few)
