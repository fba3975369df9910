"""One update of trained parameters: gradients over micro-batches, AdamW, moving average.

Keys never enter a loss: what a step draws is drawn for the whole batch first and then cut together with it, so a step
over m micro-batches is the step over one batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from mgjax.train.stage import Metrics, Params
from mgjax.train_config import EMAConfig, OptimizerConfig


def make_optimizer(cfg: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW with a linear warm-up."""
    rate = cfg.learning_rate
    if cfg.warmup:
        rate = optax.linear_schedule(rate / cfg.warmup, rate, cfg.warmup - 1)
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip),
        optax.adamw(rate, b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, weight_decay=cfg.weight_decay),
    )


def gradients(
    loss: Callable[[Params, Any], tuple[Array, Metrics]], params: Params, batch: Any, accumulate: int
) -> tuple[Params, Metrics]:
    """Mean gradient and metrics, "loss" among them, over `accumulate` equal parts of `batch`, one after another."""
    grad = jax.value_and_grad(loss, has_aux=True)

    def part(piece):
        (value, metrics), grads = grad(params, piece)
        return grads, {**metrics, "loss": value}

    if accumulate == 1:
        return part(batch)
    pieces = _cut(batch, accumulate)

    def add(total, piece):
        return jax.tree.map(jnp.add, total, part(piece)), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(part, _first(pieces)))
    total, _ = jax.lax.scan(add, zeros, pieces)
    return jax.tree.map(lambda leaf: leaf / accumulate, total)


def in_parts(function: Callable[[Any], Any], batch: Any, parts: int) -> Any:
    """`function(batch)`, in `parts` equal parts one after another; all leaves, in and out, have the batch on axis 0."""
    if parts == 1:
        return function(batch)
    made = jax.lax.map(function, _cut(batch, parts))
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), made)


def _cut(batch, parts):
    """Every part takes rows from all over the batch, so that a batch laid out over devices stays where it is."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), batch)


def _first(pieces):
    return jax.tree.map(lambda leaf: leaf[0], pieces)


def update(
    optimizer: optax.GradientTransformation, grads: Params, params: Params, opt_state: Any
) -> tuple[Params, Any, Metrics]:
    """New parameters and optimiser state, and the gradient's norm before clipping."""
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, {"grad_norm": optax.tree.norm(grads)}


def start_ema(cfg: EMAConfig | None, params: Params) -> Params | None:
    """A copy, never the same buffers: both are donated."""
    return None if cfg is None else jax.tree.map(jnp.copy, params)


def update_ema(cfg: EMAConfig | None, ema: Params | None, params: Params, step: Int[Array, ""]) -> Params | None:
    """Before step `cfg.start` the parameters themselves, then ema <- d ema + (1 - d) params, float32."""
    if cfg is None:
        return None
    decay = jnp.where(step < cfg.start, 0.0, cfg.decay)
    return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)
