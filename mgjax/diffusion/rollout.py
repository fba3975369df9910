"""The few-step sampler of one chunk and the rollout of many: algorithms over functions that are handed in."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mgjax.diffusion.schedule import NUM_TIMESTEPS

State = TypeVar("State")
Inputs = TypeVar("Inputs")
Outputs = TypeVar("Outputs")


class Sample(NamedTuple):
    x0: Float[Array, "b *chunk"]  # clean chunk
    last: Float[Array, "b *chunk"]  # input of the step that predicted it


def sample(
    denoise: Callable[[Array, Array], Array],
    noise: Float[Array, "b steps *chunk"],
    sigmas: tuple[float, ...],
    exit: int | Int[Array, ""] | None = None,
) -> Sample:
    """The clean chunk: mix in fresh noise up to the next sigma, predict x0 = x - sigma * velocity, and again.

    `denoise(x, timestep [1, 1])` is the velocity. noise[:, 0] starts the chunk and noise[:, i] re-noises before step i.
    Training leaves after step `exit`, which may be traced: one program for all of them. None takes every step. The
    network is compiled once for all steps.
    """
    sigma = jnp.asarray(sigmas, jnp.float32)
    kept = (1 - sigma).at[0].set(0.0)  # the first step starts from noise alone, whatever its sigma
    fresh = sigma.at[0].set(1.0)

    def step(index, before: Sample) -> Sample:
        x = kept[index] * before.x0 + fresh[index] * jax.lax.dynamic_index_in_dim(noise, index, 1, keepdims=False)
        timestep = jnp.full((1, 1), NUM_TIMESTEPS * sigma[index])
        return Sample(x - sigma[index] * denoise(x, timestep), x)

    blank = jnp.zeros_like(noise[:, 0])
    return jax.lax.fori_loop(0, len(sigmas) if exit is None else exit + 1, step, Sample(blank, blank))


def rollout(
    step: Callable[[State, Inputs], tuple[Outputs, State]], state: State, inputs: Inputs
) -> tuple[Outputs, State]:
    """Chunks one after another: a scan of `step(state, inputs of one chunk) -> (outputs, state)` over the leading axis
    of `inputs`; the outputs are stacked along a new leading axis.
    """

    def body(state, chunk):
        outputs, state = step(state, chunk)
        return state, outputs

    state, outputs = jax.lax.scan(body, state, inputs)
    return outputs, state
