"""The methods of a world as compiled programs, one set for a process, and what moves streams within a batch.

A class of worlds is any whose instances are hashable and have the pure methods named here: `mgjax.world.World`, or an
exported world, which needs no networks.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from mgjax.errors import InputError
from mgjax.traces import traced_once
from mgjax.types import StreamState


class Programs(NamedTuple):
    """The methods of a class of worlds, compiled; the world is their first argument. What is named as donated must not
    be used again."""

    encode: jax.stages.Wrapped  # (world, params, image, horizon)
    encode_video: jax.stages.Wrapped
    begin: jax.stages.Wrapped
    sample: jax.stages.Wrapped
    decode: jax.stages.Wrapped  # donates the decoder's cache
    commit: jax.stages.Wrapped  # donates the state
    chunk_step: jax.stages.Wrapped  # donates the state
    rollout: jax.stages.Wrapped  # donates the state
    prefill: jax.stages.Wrapped  # donates the state
    replace: jax.stages.Wrapped  # `replace_row`, without a world; donates the first state
    take: jax.stages.Wrapped  # `take_rows`, without a world


@functools.cache
def programs(kind: type, *, trace_once: bool = True, platform: str | None = None) -> Programs:
    """The compiled methods of the class `kind`, for this process's default backend or another `platform`. With
    `trace_once` their traces are kept on disk (`mgjax.traces`), for methods that are long to trace."""
    options: dict[str, Any] = {"compiler_options": compiler_options(platform or jax.default_backend())}
    once = traced_once if trace_once else lambda method, static=(): method
    return Programs(
        encode=jax.jit(once(kind.encode, (0, 3)), static_argnums=(0, 3), **options),
        encode_video=jax.jit(once(kind.encode_video), static_argnums=0, **options),
        begin=jax.jit(once(kind.begin), static_argnums=0, **options),
        sample=jax.jit(once(kind.sample), static_argnums=0, **options),
        decode=jax.jit(once(kind.decode), static_argnums=0, donate_argnums=4, **options),
        commit=jax.jit(once(kind.commit), static_argnums=0, donate_argnums=2, **options),
        chunk_step=jax.jit(once(kind.chunk_step), static_argnums=0, donate_argnums=2, **options),
        rollout=jax.jit(once(kind.rollout), static_argnums=0, donate_argnums=2, **options),
        prefill=jax.jit(once(kind.prefill), static_argnums=0, donate_argnums=2, **options),
        replace=jax.jit(replace_row, donate_argnums=0, **options),
        take=jax.jit(take_rows, **options),
    )


def compiler_options(platform: str) -> dict | None:
    """Options of XLA for the programs of a stream. On a CPU, besides those of `memory_order`, its second level of
    optimisation: the third compiles twice as long for what is no faster, and sums long rows in another
    order, so that programs that are to agree bit by bit need the same options."""
    order = memory_order(platform)
    return {**order, "xla_backend_optimization_level": 2} if order else None


def memory_of(program: jax.stages.Compiled):
    """XLA's account of the bytes that `program` holds: of its arguments, results and temporaries.

    Raises:
        InputError: this backend keeps none.
    """
    found = program.memory_analysis()
    if found is None:
        raise InputError("this backend does not say how much memory a program takes")
    return found


def memory_order(platform: str) -> dict | None:
    """Options of XLA for programs that must stay small. A CPU's default order puts early what can run early, and so
    holds the float32 weights of all blocks at a time."""
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if platform == "cpu" else None


def replace_row(
    state: StreamState, row: int | Int[Array, ""], other: StreamState, other_row: int | Int[Array, ""] = 0
) -> StreamState:
    """`state` with stream `row` exchanged for stream `other_row` of `other`; the other streams go on undisturbed."""
    return jax.tree.map(lambda old, new: old.at[row].set(new[other_row]), state, other)


def take_rows(state: StreamState, rows: Int[Array, " c"]) -> StreamState:
    """The streams `rows` of `state`, in this order, copied; one may be taken more than once."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), state)
