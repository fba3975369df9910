"""Stage 3b: from the causal student, which needs many steps, to one that starts well with few (training page 2c and
2d).

Two methods have the causal student itself as teacher and the clean past in sight: a bidirectional teacher's
trajectories are no function of what a causal student sees (arXiv:2602.02214). The third has no teacher: it fits the
clips at the student's own levels, which alone are asked of it. Where the rows decide what is seen that is the shortest
way; where they do not, the first step from pure noise is the mean of what may follow, and blurs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mgjax.config import WorldConfig
from mgjax.diffusion.consistency import consistency_loss, grid, nodes, regression_loss, trajectory
from mgjax.diffusion.flow import add_noise, clean, flow_loss, guided
from mgjax.diffusion.schedule import step_sigmas
from mgjax.models import dit
from mgjax.train.parts.fit import fit_stage
from mgjax.train.parts.lora import tuning
from mgjax.train.parts.network import (
    Network,
    PastNoise,
    draw_own,
    draw_past,
    forced,
    network_of,
    null_actions,
    per_frame,
    with_own,
)
from mgjax.train.stage import Stage, fold
from mgjax.train_config import FewStepStage
from mgjax.types import ClipBatch


class PairBatch(NamedTuple):
    """ODE pairs: where the teacher's trajectories pass the student's levels, and where they end."""

    clips: ClipBatch
    states: Float[Array, "b k t h w c"]
    ends: Float[Array, "b t h w c"]


class Draws(NamedTuple):
    noise: Float[Array, "b t h w c"]
    level: Int[Array, "b t"]  # of the grid, or of the student's list; the same within a chunk
    past: PastNoise | None
    own: Bool[Array, "b t"] | None = None  # chunks that later ones see as the network predicts them


def make_stage(cfg: FewStepStage, world: WorldConfig) -> Stage:
    net = network_of(world, cfg.dtype, cfg.attention, cfg.remat)
    make = {"consistency": _consistency, "ode": _regression, "flow": _flow}[cfg.method]
    return make(cfg, world, net)


def _teacher(cfg: FewStepStage, net: Network, weights, clips: ClipBatch, past: PastNoise | None = None):
    """The frozen model's velocity (x, sigma [b, t]), guided where the config says so."""
    velocity = forced(net, clips.latents, past)

    def at(x, sigma):
        conditional = velocity(weights, x, sigma, clips)
        if cfg.guidance == 1:
            return conditional
        return guided(conditional, velocity(weights, x, sigma, null_actions(clips)), cfg.guidance)

    return at


def _predict(net: Network, weights, clips: ClipBatch, past: PastNoise | None = None):
    """The prediction of x0 (x, sigma [b, t])."""
    velocity = forced(net, clips.latents, past)
    return lambda x, sigma: clean(x, velocity(weights, x, sigma, clips), sigma)


def _draw_levels(key, clips: ClipBatch, net: Network, num: int) -> Int[Array, "b t"]:
    batch, frames = clips.latents.shape[:2]
    return per_frame(jax.random.randint(key, (batch, frames // net.dit.chunk), 0, num), net.dit)


def _student_levels(world: WorldConfig):
    return step_sigmas(world.sampler.steps, world.sampler.shift)


def _one_step_errors(net: Network, world: WorldConfig):
    """Held-out mean squared error of x0 predicted from each of the student's levels, the clean past in sight."""
    levels = _student_levels(world)

    def evaluate(weights, clips):
        noise = jax.random.normal(jax.random.key(0), clips.latents.shape)
        predict = _predict(net, weights, clips)

        def one(sigma):
            x = (1 - sigma) * clips.latents + sigma * noise
            x0 = predict(x, jnp.full(clips.latents.shape[:2], sigma))
            return jnp.mean(jnp.square(x0 - clips.latents))

        errors = jax.lax.map(one, jnp.asarray(levels, jnp.float32))
        named = {f"error_t{1000 * sigma:.0f}": errors[index] for index, sigma in enumerate(levels)}
        return {"error": errors.mean(), **named}

    return evaluate


def _consistency(cfg: FewStepStage, world: WorldConfig, net: Network) -> Stage:
    levels = jnp.asarray(grid(cfg.grid, cfg.shift_in(world), _student_levels(world)), jnp.float32)
    tune = tuning(cfg.lora)

    def target_of(state):
        return tune.adapt(state.handed_on, state.base)

    def draw(state, clips):
        return Draws(
            noise=jax.random.normal(fold(state, "noise"), clips.latents.shape),
            level=_draw_levels(fold(state, "level"), clips, net, len(levels) - 1),
            past=draw_past(fold(state, "context"), clips, cfg.context_noise),
        )

    def loss(weights, state, piece):
        clips, draws = piece
        value = consistency_loss(
            _predict(net, weights, clips, draws.past),
            _predict(net, target_of(state), clips, draws.past),
            _teacher(cfg, net, state.teacher, clips, draws.past),
            clips.latents,
            draws.noise,
            levels[draws.level],
            levels[draws.level + 1],
        )
        return value, {}

    evaluate = _one_step_errors(net, world)
    return fit_stage("few_step", cfg, world, net.dit, draw, loss, evaluate, teacher=True)


def _regression(cfg: FewStepStage, world: WorldConfig, net: Network) -> Stage:
    levels = grid(cfg.grid, cfg.shift_in(world), _student_levels(world))
    keep = nodes(levels, _student_levels(world))
    student = jnp.asarray(levels[keep], jnp.float32)

    def prepare(pretrained, clips, key):
        velocity = _teacher(cfg, net, dit.stack(pretrained["dit"], net.dit), clips)
        noise = jax.random.normal(key, clips.latents.shape)

        def at(x, sigma):
            return velocity(x, jnp.broadcast_to(sigma, x.shape[:2]))

        states, ends = trajectory(at, noise, levels, keep)
        return PairBatch(clips, jnp.moveaxis(states, 0, 1), ends)

    def draw(state, pairs):
        past = draw_past(fold(state, "context"), pairs.clips, cfg.context_noise)
        return _draw_levels(fold(state, "level"), pairs.clips, net, len(keep)), past

    def loss(weights, state, piece):
        pairs, (level, past) = piece
        batch, frames = level.shape
        x = pairs.states[jnp.arange(batch)[:, None], level, jnp.arange(frames)]
        x0 = _predict(net, weights, pairs.clips, past)(x, student[level])
        return regression_loss(x0, pairs.ends, student[level]), {}

    evaluate = _one_step_errors(net, world)
    return fit_stage("few_step", cfg, world, net.dit, draw, loss, evaluate, prepare=prepare)


def _flow(cfg: FewStepStage, world: WorldConfig, net: Network) -> Stage:
    levels = jnp.asarray(_student_levels(world), jnp.float32)

    def draw(state, clips):
        return Draws(
            noise=jax.random.normal(fold(state, "noise"), clips.latents.shape),
            level=_draw_levels(fold(state, "level"), clips, net, len(levels)),
            past=draw_past(fold(state, "context"), clips, cfg.context_noise),
            own=draw_own(fold(state, "own"), clips, net, cfg.own_past) if cfg.own_past else None,
        )

    def loss(weights, state, piece):
        clips, draws = piece
        sigma = levels[draws.level]
        x = add_noise(clips.latents, draws.noise, sigma)
        seen = clips.latents
        if draws.own is not None:
            seen = with_own(net, weights, clips, draws.noise, draws.own, draws.past)
        v = forced(net, seen, draws.past)(weights, x, sigma, clips)
        return flow_loss(v, clips.latents, draws.noise), {}

    return fit_stage("few_step", cfg, world, net.dit, draw, loss, _one_step_errors(net, world))
