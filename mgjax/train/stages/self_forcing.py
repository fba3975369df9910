"""Stage 4: distribution matching on the student's own rollouts (arXiv:2506.08009; training page section 3).

Every step trains the critic on a fresh rollout; every `ratio`-th also trains the generator on another. All chunks of a
rollout leave after the same step of the few-step list, drawn anew each time. Teacher and critic see the actions of
what they score: without them the scores average the control away.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.config import Settings, WorldConfig
from mgjax.diffusion.dmd import Score
from mgjax.train.parts.distil import distillation
from mgjax.train.parts.fit import clip_spec
from mgjax.train.parts.network import network_of
from mgjax.train.parts.rolling import (
    begin,
    chunk_rows,
    clip_of,
    draw_noise,
    replay,
    roll,
    stream_params,
    student_levels,
)
from mgjax.train.stage import Stage, fold
from mgjax.train_config import SelfForcingStage
from mgjax.world import World


class Draws(NamedTuple):
    noise: Float[Array, "b i steps t h w c"]  # of the rollout
    score: Score


def make_stage(cfg: SelfForcingStage, world: WorldConfig) -> Stage:
    """`pretrained` holds the student ("dit") and the foundation model ("teacher"), which the critic starts from as
    well."""
    net = network_of(world, cfg.dtype, cfg.attention, cfg.remat)
    functions = World(world, Settings(dtype=cfg.dtype, attention=cfg.attention))
    levels = jnp.asarray(student_levels(world), jnp.float32)
    chunks, draws = cfg.latents // net.dit.chunk, world.sampler.draws
    if cfg.latents % net.dit.chunk:
        raise ValueError(f"rollouts of {cfg.latents} latent frames are not whole chunks of {net.dit.chunk}")
    distil = distillation(cfg, net, cfg.shift_in(world))

    def draw(state, clips, role):
        batch = clips.features.shape[0]
        noise = draw_noise(fold(state, f"{role}rollout"), net, batch, chunks, draws)
        score = distil.draw(fold(state, f"{role}score"), (batch, cfg.latents, *noise.shape[-3:]))
        return Draws(noise, score)

    def rolled_out(weights, clips, noise, exit):
        params = stream_params(weights, net)
        streams = begin(functions, params, clips)
        return roll(functions, params, streams, chunk_rows(net, clips.actions, 0, chunks), noise, exit)[0]

    def step(both, state, clips):
        held = distil.hold(state)

        def generator_loss(params, piece):
            clips, draws = piece
            rolled = rolled_out(held.generator(), clips, draws.noise, exit)
            weights = distil.trained(params, state, held)
            x = replay(net, weights, clips, rolled, levels[exit], world.sampler.context, cfg.kv_gradient)
            loss, metrics = distil.generator_loss(held, x, clips, draws.score)
            return loss, {**metrics, "replay_error": jnp.abs(x - clip_of(rolled.latents)).max()}

        def loss_of_critic(critic, piece):
            clips, draws = piece
            x = clip_of(rolled_out(held.generator(), clips, draws.noise, critic_exit).latents)
            return distil.critic_loss(held, critic, x, clips, draws.score)

        exit = jax.random.randint(fold(state, "exit"), (), 0, len(levels))
        critic_exit = jax.random.randint(fold(state, "critic_exit"), (), 0, len(levels))
        piece = clips, draw(state, clips, "")
        critic_piece = clips, draw(state, clips, "critic_")
        return distil.step(both, state, generator_loss, piece, loss_of_critic, critic_piece)

    def evaluate(state, clips):
        noise = draw_noise(jax.random.key(0), net, clips.features.shape[0], chunks, draws)
        x = clip_of(rolled_out(distil.weights(state), clips, noise, len(levels) - 1).latents)
        score = distil.draw(jax.random.key(1), x.shape)
        _, metrics = distil.generator_loss(distil.hold(state), x, clips, score)
        return {"loss": metrics["score_gap"], "error": jnp.mean(jnp.square(x - clips.latents))}

    return Stage(
        name="self_forcing",
        init=distil.init,
        turns=distil.turns(step),
        batch_spec=lambda batch: clip_spec(world, batch, cfg.latents),
        evaluate=evaluate,
        export=distil.export,
    )
