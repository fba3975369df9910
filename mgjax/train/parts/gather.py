"""When a step gathers weights, which lie in parts on the devices of axis `fsdp`: a layer at a time, wherever it is used
(FSDP), or all of a network once, in the compute dtype (ZeRO-1: what is kept from step to step stays in parts).

A layer's weights are gathered anew by every pass: in Self-Forcing by each step of each chunk of each micro-batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mgjax import sharding
from mgjax.train.parts.network import cast
from mgjax.train.stage import Params
from mgjax.train_config import Gather

Weights = Callable[[], Params]  # a function: low-rank factors are scaled where they are used


class Gathering(NamedTuple):
    once: Callable[[Weights], Weights]
    """What all passes of a step compute with; no gradient flows into it."""
    trained: Callable[[Params, Weights], Params]
    """(weights, what `once` made of them) -> the same values as the latter, whose gradient is that of the former."""


def gathering(when: Gather, dtype) -> Gathering:
    """Both ways of computing with weights in parts; `dtype` is that of the computation."""
    if when == "layer":
        return Gathering(once=lambda weights: weights, trained=lambda weights, _: weights)

    def once(weights):
        whole = _placed(cast(jax.lax.stop_gradient(weights()), dtype), whole=True)
        return lambda: whole

    return Gathering(once, trained=lambda weights, gathered: _in_place_of(weights, gathered()))


@jax.custom_vjp
def _in_place_of(weights: Params, gathered: Params) -> Params:
    return gathered


def _forward(weights, gathered):
    return gathered, jax.tree.map(lambda leaf: jnp.zeros(0, leaf.dtype), weights)


def _backward(kinds, gradient):
    """Every device keeps its part of the sum."""
    parts = jax.tree.map(lambda leaf, kind: leaf.astype(kind.dtype), gradient, kinds)
    return _placed(parts, whole=False), jax.tree.map(jnp.zeros_like, gradient)


_in_place_of.defvjp(_forward, _backward)


def _placed(weights: Params, *, whole: bool) -> Params:
    """Where the table of shardings has them, `whole` on all devices of axis `fsdp`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return weights

    def place(path, leaf):
        spec = sharding.spec(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, mesh)
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(*map(_without_fsdp, spec)) if whole else spec)

    return jax.tree_util.tree_map_with_path(place, weights)


def _without_fsdp(axes: str | tuple[str, ...] | None) -> tuple[str, ...] | None:
    names = (axes,) if isinstance(axes, str) else axes or ()
    return tuple(axis for axis in names if axis != "fsdp") or None
