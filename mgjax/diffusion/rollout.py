"""The few-step sampler of one chunk and the rollout of many: algorithms over functions that are handed in."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mgjax.diffusion.schedule import NUM_TIMESTEPS

State, Inputs, Outputs = TypeVar("State"), TypeVar("Inputs"), TypeVar("Outputs")


class Sample(NamedTuple):
    x0: Float[Array, "b *chunk"]  # clean chunk
    last: Float[Array, "b *chunk"]  # input of the step that predicted it


def sample(
    denoise: Callable[[Array, Array], Array],
    noise: Float[Array, "b steps *chunk"],
    sigmas: tuple[float, ...],
    exit: Int[Array, ""] | None = None,
) -> Sample:
    """The clean chunk: alternately predict x0 = x - sigma * velocity and re-noise it to the next sigma.

    `denoise(x, timestep [1, 1])` is the velocity. noise[:, 0] starts the chunk and noise[:, i] re-noises before step i.
    Training leaves after step `exit`, which may be traced: one program for all of them. None takes every step.
    """
    levels = np.asarray(sigmas)
    tables = [table.astype(np.float32) for table in (levels, 1 - levels, NUM_TIMESTEPS * levels)]
    if exit is not None:
        tables = [jnp.asarray(table) for table in tables]
    sigma, kept, timestep = tables

    def predict(index, x):
        return x - sigma[index] * denoise(x, jnp.full((1, 1), timestep[index], jnp.float32))

    def renoise(index, x):
        fresh = jax.lax.dynamic_index_in_dim(noise, index, 1, keepdims=False)
        return kept[index] * x + sigma[index] * fresh

    def advance(index, x):
        return renoise(index + 1, predict(index, x))

    last = noise[:, 0]
    if exit is None:
        for index in range(len(sigmas) - 1):
            last = advance(index, last)
        exit = len(sigmas) - 1
    else:
        last = jax.lax.fori_loop(0, exit, advance, last)
    return Sample(predict(exit, last), last)


def rollout(step: Callable[[State, Inputs], tuple[Outputs, State]], state: State, inputs: Inputs) -> tuple[Outputs, State]:
    """Chunks one after another: a scan of `step(state, inputs of one chunk) -> (outputs, state)` over the leading axis of
    `inputs`; the outputs are stacked along a new leading axis."""

    def body(state, chunk):
        outputs, state = step(state, chunk)
        return state, outputs

    state, outputs = jax.lax.scan(body, state, inputs)
    return outputs, state
