"""One update of trained parameters: gradients over micro-batches, the optimiser, the moving average.

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

_ALWAYS = 2**31 - 1  # the loop says when there were too many updates that are not finite, not the optimiser


def make_optimizer(cfg: OptimizerConfig, updates: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW or Muon at the rates of `schedule`; an update that is not finite changes
    nothing. Weights that are no matrices (norms, biases, modulations) do not decay."""
    rate = schedule(cfg, updates)
    if cfg.kind == "muon":
        rule = optax.contrib.muon(
            rate,
            beta=0.95,
            adam_b1=cfg.b1,
            adam_b2=cfg.b2,
            weight_decay=cfg.weight_decay,
            weight_decay_mask=_matrices,
            adam_weight_decay=0.0,
            muon_weight_dimension_numbers=_as_matrices,
            consistent_rms=0.2,  # of an update, as AdamW's is: one rate serves both (arXiv:2502.16982)
        )
    else:
        rule = optax.adamw(rate, cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay, mask=_matrices)
    return optax.apply_if_finite(optax.chain(optax.clip_by_global_norm(cfg.clip), rule), _ALWAYS)


def schedule(cfg: OptimizerConfig, updates: int) -> optax.Schedule:
    """The rate of each of `updates` updates: a linear rise over `cfg.warmup` of them, then the rate itself, and over
    the last `cfg.decay` of them, a share, a linear fall to zero."""
    fall = round(cfg.decay * updates)
    rise = min(cfg.warmup, updates - fall)
    parts, ends = [optax.schedules.constant_schedule(cfg.learning_rate)], []
    if rise:
        start = cfg.learning_rate / rise
        parts, ends = [optax.schedules.linear_schedule(start, cfg.learning_rate, max(1, rise - 1)), *parts], [rise]
    if fall:
        parts.append(optax.schedules.linear_schedule(cfg.learning_rate, 0.0, fall))
        ends.append(updates - fall)
    return optax.schedules.join_schedules(parts, ends)


def _kernel(path) -> bool:
    return path[-1].key in ("kernel", "a", "b")


def _matrices(params: Params) -> Params:
    """Which leaves are matrices: kernels and low-rank factors, whatever layers they are stacked over."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _kernel(path), params)


def _as_matrices(params: Params) -> Params:
    """How Muon reads a leaf: its last axis out, all others but stacked layers in; None leaves it to Adam."""

    def numbers(path, leaf):
        if not _kernel(path) or leaf.ndim < 2:
            return None
        layers = 1 if path[0].key == "blocks" and path[1].key in ("action", "plain") else 0
        return optax.contrib.MuonDimensionNumbers(tuple(range(layers, leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(numbers, params)


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


def mean_over(function: Callable[[Any], Metrics], batch: Any, parts: int) -> Metrics:
    """Mean of `function`'s metrics over `parts` equal parts of `batch`, one after another."""
    if parts == 1:
        return function(batch)
    return jax.tree.map(lambda leaf: leaf.mean(0), jax.lax.map(function, _cut(batch, parts)))


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
    return optax.incremental_update(params, ema, jnp.where(step < cfg.start, 1.0, 1 - cfg.decay))
