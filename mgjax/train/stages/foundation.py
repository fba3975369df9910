"""Stage 2: the bidirectional, action-conditioned image-to-video model by flow matching (training page section 1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mgjax.config import WorldConfig
from mgjax.diffusion.flow import add_noise, draw_sigmas, flow_loss
from mgjax.train.parts.fit import bind, fit_stage, loss_by_level
from mgjax.train.parts.network import bidirectional, hide_actions, network_of
from mgjax.train.stage import Stage, fold
from mgjax.train_config import FoundationStage


class Draws(NamedTuple):
    noise: Float[Array, "b t h w c"]
    sigma: Float[Array, " b"]  # one for all frames of a clip
    dropped: Bool[Array, " b"]  # clips whose actions are hidden


def make_stage(cfg: FoundationStage, world: WorldConfig) -> Stage:
    """Trains on windows of `cfg.latents` frames; half of them, or all where `cfg.starts` is 0, begin at the clip's
    picture. The first frame is noised like the rest and known through condition and features alone."""
    layers = world.dit.num_action_layers if cfg.num_action_layers is None else cfg.num_action_layers
    net = network_of(world, cfg.dtype, cfg.attention, cfg.remat, window=None, sink=0, num_action_layers=layers)
    shift = cfg.shift_in(world)

    def draw(state, clips):
        batch = clips.latents.shape[0]
        return Draws(
            noise=jax.random.normal(fold(state, "noise"), clips.latents[:, : cfg.latents].shape),
            sigma=draw_sigmas(fold(state, "level"), batch, shift, cfg.time_law),
            dropped=jax.random.uniform(fold(state, "dropout"), (batch,)) < cfg.action_dropout,
        )

    def loss(weights, state, piece):
        clips, draws = piece
        start = jnp.zeros((), jnp.int32)
        if cfg.starts:
            key, half = jax.random.split(fold(state, "start"))
            start = jax.random.randint(key, (), 1, cfg.starts + 1) * jax.random.bernoulli(half)
        window = jax.lax.dynamic_slice_in_dim(clips.latents, start, cfg.latents, 1)
        x = add_noise(window, draws.noise, draws.sigma)
        v = bidirectional(net, start)(weights, x, draws.sigma, hide_actions(clips, draws.dropped))
        return flow_loss(v, window, draws.noise), {}

    def evaluate(weights, clips):
        clips = clips._replace(latents=clips.latents[:, : cfg.latents])
        return loss_by_level(bind(bidirectional(net), weights, clips), clips)

    return fit_stage("foundation", cfg, world, net.dit, draw, loss, evaluate)
