"""What the stages that fit one DiT to a loss have in common: foundation, causal student, few-step initialisation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mgjax.config import DiTConfig, WorldConfig
from mgjax.models import dit
from mgjax.models.graft import fit_actions
from mgjax.train.parts.gather import gathering
from mgjax.train.parts.lora import tuning
from mgjax.train.parts.network import Velocity
from mgjax.train.parts.optim import gradients, make_optimizer, start_ema, update, update_ema
from mgjax.train.stage import Metrics, Params, Stage, TrainState
from mgjax.train_config import DiTStage
from mgjax.types import Actions, ClipBatch

BUCKETS = (125, 250, 375, 500, 625, 750, 875)  # timesteps of the validation loss

Loss = Callable[[Params, TrainState, Any], tuple[Array, Metrics]]


def fit_stage(
    name: str,
    cfg: DiTStage,
    world: WorldConfig,
    net: DiTConfig,
    draw: Callable[[TrainState, Any], Any],
    loss: Loss,
    evaluate: Callable[[Params, Any], Metrics],
    *,
    teacher: bool = False,
    prepare: Callable | None = None,
) -> Stage:
    """A stage that trains a DiT of config `net` on `loss(weights, state, (batch, draws))`, where `draws = draw(state,
    batch)` has the batch on the leading axis of every leaf. `teacher`: what training starts from also stays, frozen,
    as teacher."""
    optimizer, tune = make_optimizer(cfg.optimizer, cfg.steps), tuning(cfg.lora)
    gather = gathering(cfg.gather, cfg.dtype)

    def init(key, pretrained):
        weights = starting_weights(key, net, pretrained.get("dit"))
        params, base = tune.start(jax.random.fold_in(key, 1), weights)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(key),
            params=params,
            opt_state=optimizer.init(params),
            ema=start_ema(cfg.ema, params),
            base=base,
            teacher=jax.tree.map(jnp.copy, weights) if teacher and base is None else None,
        )

    def step(state, batch):
        seen = gather.once(lambda: tune.adapt(state.params, state.base))
        frozen = {"teacher": state.teacher, "ema": state.ema} if state.base is None else {"teacher": state.base}
        held = state._replace(**{name: gather.once(lambda w=w: w)() for name, w in frozen.items() if w is not None})

        def part(params, piece):
            return loss(gather.trained(tune.adapt(params, state.base), seen), held, piece)

        grads, metrics = gradients(part, state.params, (batch, draw(state, batch)), cfg.accumulate)
        params, opt_state, norm = update(optimizer, grads, state.params, state.opt_state)
        ema = update_ema(cfg.ema, state.ema, params, state.step)
        state = state._replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)
        return state, {**metrics, **norm}

    return Stage(
        name=name,
        init=init,
        turns=(step,),
        batch_spec=lambda batch: clip_spec(world, batch, cfg.clip_latents),
        evaluate=lambda state, batch: evaluate(tune.adapt(state.handed_on, state.base), batch),
        export=lambda state: {"dit": dit.unstack(tune.merge(state.handed_on, state.base), net)},
        prepare=prepare,
    )


def starting_weights(key: PRNGKeyArray, net: DiTConfig, pretrained: Params | None) -> Params:
    """Stacked float32 weights of their own (donating them leaves `pretrained` alone); random where there are none."""
    weights = dit.init(key, net) if pretrained is None else fit_actions(pretrained, net)
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), dit.stack(weights, net))


def clip_spec(world: WorldConfig, batch: int, latents: int) -> ClipBatch:
    """Shapes of a batch of clips of `latents` latent frames."""
    net = world.dit
    frame = net.latent_height, net.latent_width, net.latent_channels
    rows = world.vae.temporal_stride * (latents - 1) + 1

    def of(*shape):
        return jax.ShapeDtypeStruct((batch, *shape), jnp.float32)

    return ClipBatch(
        latents=of(latents, *frame),
        condition=of(latents, *frame),
        features=of(net.image_tokens, net.image_dim),
        actions=Actions(of(rows, net.action.keyboard_dim), of(rows, net.action.mouse_dim)),
    )


def loss_by_level(
    velocity: Callable[[Array, Array], Array], clips: ClipBatch, timesteps: tuple[int, ...] = BUCKETS
) -> Metrics:
    """Flow loss at each of the timesteps, with noise from a fixed key: {"loss_t125": ..., ..., "loss": their mean}.

    `velocity(x, sigma [b])` is the network's.
    """
    x0 = clips.latents
    noise = jax.random.normal(jax.random.key(0), x0.shape)

    def one(sigma):
        x = (1 - sigma) * x0 + sigma * noise
        return jnp.mean(jnp.square(velocity(x, jnp.full(x0.shape[:1], sigma)) - (noise - x0)))

    losses = jax.lax.map(one, jnp.asarray(timesteps) / 1000)
    return {"loss": losses.mean(), **{f"loss_t{t}": losses[index] for index, t in enumerate(timesteps)}}


def bind(velocity: Velocity, params: Params, clips: ClipBatch) -> Callable[[Array, Array], Array]:
    return lambda x, sigma: velocity(params, x, sigma, clips)
