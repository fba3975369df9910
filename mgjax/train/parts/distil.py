"""What Self-Forcing and long tuning share: generator, frozen teacher and critic, their losses and their update."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from mgjax.diffusion.dmd import Score, critic_loss, dmd_loss, draw_score, noised, posterior_mean
from mgjax.diffusion.flow import guided
from mgjax.models import dit
from mgjax.models.graft import count_actions
from mgjax.train.parts.fit import starting_weights
from mgjax.train.parts.gather import Weights, gathering
from mgjax.train.parts.lora import tuning
from mgjax.train.parts.network import Network, bidirectional, cast, null_actions
from mgjax.train.parts.optim import gradients, make_optimizer, start_ema, update, update_ema
from mgjax.train.stage import Metrics, Params, TrainState
from mgjax.train_config import SelfForcingStage
from mgjax.types import ClipBatch


class Held(NamedTuple):
    """The networks of one step, as its passes compute with them."""

    generator: Weights
    critic: Weights
    teacher: Weights
    frozen: Params  # the teacher as it is kept, which the critic's low-rank factors are added to


class Distillation(NamedTuple):
    """Functions of one pair of networks; latents are scored as a clip that begins at frame `start` of `clips`."""

    init: Callable[[Array, dict], TrainState]
    draw: Callable[[Array, tuple[int, ...]], Score]
    hold: Callable[[TrainState], Held]
    trained: Callable[[Params, TrainState, Held], Params]
    """(what is trained of the generator, state, networks) -> its weights, with their gradient"""
    generator_loss: Callable[..., tuple[Array, Metrics]]
    """(networks, x, clips, score, start=0, weight=None) -> (loss, metrics); `weight` [b, t] marks the frames that
    count."""
    critic_loss: Callable[..., tuple[Array, Metrics]]
    """(networks, critic parameters, x, clips, score, start=0, weight=None) -> (loss, metrics)"""
    turns: Callable[[Callable], tuple[Callable, ...]]
    """step (both, state, batch) -> what the steps of a stage do in turn: `both` networks train, or the critic alone"""
    step: Callable[..., tuple[TrainState, Metrics]]
    """(both, state, generator loss, its batch, critic loss, its batch) -> (state, metrics)"""
    weights: Callable[[TrainState], Params]
    """state -> the generator that is handed on: its EMA where there is one"""
    export: Callable[[TrainState], dict]


def distillation(cfg: SelfForcingStage, net: Network, shift: float) -> Distillation:
    """Teacher, critic and generator of one stage; the critic starts as a copy of the teacher."""
    optimizer = make_optimizer(cfg.optimizer, -(-cfg.steps // cfg.ratio))
    critic_optimizer = make_optimizer(cfg.critic, cfg.steps)
    tune, gather = tuning(cfg.lora), gathering(cfg.gather, net.dtype)

    def init(key: Array, pretrained: dict) -> TrainState:
        if "teacher" not in pretrained:
            raise ValueError("Self-Forcing needs the foundation model as its teacher")
        params, base = tune.start(jax.random.fold_in(key, 1), starting_weights(key, net.dit, pretrained.get("dit")))
        teacher = stacked_teacher(pretrained["teacher"], net)
        critic, _ = tune.start(jax.random.fold_in(key, 2), jax.tree.map(jnp.copy, teacher))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(key),
            params=params,
            opt_state=optimizer.init(params),
            ema=start_ema(cfg.ema, params),
            base=base,
            teacher=cast(teacher, net.dtype),
            critic=critic,
            critic_opt_state=critic_optimizer.init(critic),
        )

    def draw(key: Array, latents: tuple[int, ...]) -> Score:
        return draw_score(key, latents, shift, cfg.score_range)

    def hold(state: TrainState) -> Held:
        return Held(
            generator=gather.once(lambda: tune.adapt(state.params, state.base)),
            critic=gather.once(lambda: tune.adapt(state.critic, state.teacher)),
            teacher=gather.once(lambda: state.teacher),
            frozen=state.teacher,
        )

    def trained(params: Params, state: TrainState, held: Held) -> Params:
        return gather.trained(tune.adapt(params, state.base), held.generator)

    def generator_loss(held: Held, x, clips: ClipBatch, score: Score, start: Int[Array, ""] | int = 0, weight=None):
        velocity = bidirectional(net, start)
        x_t = noised(jax.lax.stop_gradient(x), score)

        def mean(weights, clips):
            return posterior_mean(x_t, velocity(weights, x_t, score.sigma, clips), score)

        fake = mean(held.critic(), clips)
        real = mean(held.teacher(), clips)
        if cfg.guidance != 1:
            real = guided(real, mean(held.teacher(), null_actions(clips)), cfg.guidance)
        return dmd_loss(x, fake, real, weight), {"score_gap": jnp.abs(fake - real).mean()}

    def loss_of_critic(held: Held, critic, x, clips: ClipBatch, score: Score, start=0, weight=None):
        weights = gather.trained(tune.adapt(critic, held.frozen), held.critic)
        velocity = bidirectional(net, start)(weights, noised(x, score), score.sigma, clips)
        return critic_loss(velocity, x, score, weight), {}

    def turns(step: Callable) -> tuple[Callable, ...]:
        return (partial(step, True), *[partial(step, False)] * (cfg.ratio - 1))

    def step(both: bool, state: TrainState, generator: Callable, piece: Any, critic: Callable, critic_piece: Any):
        told: Metrics = {"generator_updated": jnp.float32(both)}
        grads, metrics = gradients(critic, state.critic, critic_piece, cfg.accumulate)
        trained, critic_opt_state, norm = update(critic_optimizer, grads, state.critic, state.critic_opt_state)
        after = state._replace(step=state.step + 1, critic=trained, critic_opt_state=critic_opt_state)
        told |= {**metrics, **norm}
        if both:
            grads, metrics = gradients(generator, state.params, piece, cfg.accumulate)
            params, opt_state, norm = update(optimizer, grads, state.params, state.opt_state)
            ema = update_ema(cfg.ema, state.ema, params, state.step)
            after = after._replace(params=params, opt_state=opt_state, ema=ema)
            told |= {f"generator_{name}": value for name, value in {**metrics, **norm}.items()}
        return after, told

    return Distillation(
        init=init,
        draw=draw,
        hold=hold,
        trained=trained,
        generator_loss=generator_loss,
        critic_loss=loss_of_critic,
        turns=turns,
        step=step,
        weights=lambda state: tune.adapt(state.handed_on, state.base),
        export=lambda state: {"dit": dit.unstack(tune.merge(state.handed_on, state.base), net.dit)},
    )


def stacked_teacher(teacher: Params, net: Network) -> Params:
    """The foundation model, stacked; it may have more action modules than the student. Buffers of its own."""
    cfg = replace(net.dit, num_action_layers=count_actions(teacher))
    return starting_weights(jax.random.key(0), cfg, teacher)
