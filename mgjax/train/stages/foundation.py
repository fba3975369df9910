"""Stage 2: the bidirectional, action-conditioned image-to-video model by flow matching (training page section 1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mgjax.config import WorldConfig
from mgjax.diffusion.flow import add_noise, draw_sigmas, flow_loss
from mgjax.train.parts.fit import bind, fit_stage, loss_by_level
from mgjax.train.parts.network import bidirectional, network_of, null_actions
from mgjax.train.stage import Stage, fold
from mgjax.train_config import FoundationStage


class Draws(NamedTuple):
    noise: Float[Array, "b t h w c"]
    sigma: Float[Array, " b"]  # one for all frames of a clip
    dropped: Bool[Array, " b"]  # clips whose actions are hidden


def make_stage(cfg: FoundationStage, world: WorldConfig) -> Stage:
    """Trains on whole clips; the first frame is noised like the rest and known through condition and features alone."""
    layers = world.dit.num_action_layers if cfg.num_action_layers is None else cfg.num_action_layers
    net = network_of(world, cfg.dtype, cfg.attention, window=None, sink=0, num_action_layers=layers)
    velocity = bidirectional(net)

    def draw(state, clips):
        batch = clips.latents.shape[0]
        return Draws(
            noise=jax.random.normal(fold(state, "noise"), clips.latents.shape),
            sigma=draw_sigmas(fold(state, "level"), batch, cfg.shift, cfg.time_law),
            dropped=jax.random.uniform(fold(state, "dropout"), (batch,)) < cfg.action_dropout,
        )

    def loss(weights, state, piece):
        clips, draws = piece

        def dropped(real, null):
            return jnp.where(draws.dropped[:, None, None], null, real)

        clips = clips._replace(actions=jax.tree.map(dropped, clips.actions, null_actions(clips).actions))
        x = add_noise(clips.latents, draws.noise, draws.sigma)
        return flow_loss(velocity(weights, x, draws.sigma, clips), clips.latents, draws.noise), {}

    def evaluate(weights, clips):
        return loss_by_level(bind(velocity, weights, clips), clips)

    return fit_stage("foundation", cfg, world, net.dit, draw, loss, evaluate)
