"""Stage 3a: the causal student, from the foundation model's weights (training page sections 2a and 2b).

Every chunk has a noise level of its own. Teacher forcing shows it the clean past, diffusion forcing the past as noisy
as it is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mgjax.config import WorldConfig
from mgjax.diffusion.flow import add_noise, flow_loss
from mgjax.diffusion.schedule import NUM_TIMESTEPS, sigmas, training_weights
from mgjax.train.parts.fit import fit_stage, loss_by_level, per_frame
from mgjax.train.parts.network import PastNoise, causal, draw_past, forced, hide_actions, network_of
from mgjax.train.stage import Stage, fold
from mgjax.train_config import CausalStage


class Draws(NamedTuple):
    noise: Float[Array, "b t h w c"]
    level: Int[Array, "b t"]  # index of the schedule's table, the same within a chunk
    dropped: Bool[Array, " b"]  # clips whose actions are hidden
    past: PastNoise | None


def make_stage(cfg: CausalStage, world: WorldConfig) -> Stage:
    """Trains on whole clips under the mask that a stream's cache imposes."""
    net = network_of(world, cfg.dtype, cfg.attention)
    table = jnp.asarray(sigmas(cfg.shift_in(world)), jnp.float32)
    weight = jnp.asarray(training_weights(cfg.shift_in(world)), jnp.float32)

    def velocity(weights, x, sigma, clips, past=None):
        seen = forced(net, clips.latents, past) if cfg.forcing == "teacher" else causal(net)
        return seen(weights, x, sigma, clips)

    def draw(state, clips):
        batch, frames = clips.latents.shape[:2]
        chunks = jax.random.randint(fold(state, "level"), (batch, frames // net.dit.chunk), 0, NUM_TIMESTEPS)
        noise = jax.random.normal(fold(state, "noise"), clips.latents.shape)
        dropped = jax.random.uniform(fold(state, "dropout"), (batch,)) < cfg.action_dropout
        past = draw_past(fold(state, "context"), clips, cfg.context_noise)
        return Draws(noise, per_frame(chunks, net.dit), dropped, past)

    def loss(weights, state, piece):
        clips, draws = piece
        sigma = table[draws.level]
        x = add_noise(clips.latents, draws.noise, sigma)
        v = velocity(weights, x, sigma, hide_actions(clips, draws.dropped), draws.past)
        return flow_loss(v, clips.latents, draws.noise, weight[draws.level]), {}

    def evaluate(weights, clips):
        def at(x, sigma):
            return velocity(weights, x, jnp.broadcast_to(sigma[:, None], x.shape[:2]), clips)

        return loss_by_level(at, clips)

    return fit_stage("causal", cfg, world, net.dit, draw, loss, evaluate)
