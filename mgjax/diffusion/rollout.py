"""The few-step sampler of one chunk and the rollout of many: algorithms over functions that are handed in."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.diffusion.schedule import NUM_TIMESTEPS

State, Inputs, Outputs = TypeVar("State"), TypeVar("Inputs"), TypeVar("Outputs")


def sample(
    denoise: Callable[[Array, Array], Array],
    noise: Float[Array, "b steps *chunk"],
    sigmas: tuple[float, ...],
) -> Float[Array, "b *chunk"]:
    """The clean chunk: alternately predict x0 = x - sigma * velocity and re-noise it to the next sigma.

    `denoise(x, timestep [1, 1])` is the velocity. noise[:, 0] starts the chunk and noise[:, i] re-noises before step i.
    """
    x = noise[:, 0]
    for index, sigma in enumerate(sigmas):
        if index:
            x = (1 - sigma) * x + sigma * noise[:, index]
        x = x - sigma * denoise(x, jnp.full((1, 1), NUM_TIMESTEPS * sigma, jnp.float32))
    return x


def rollout(step: Callable[[State, Inputs], tuple[Outputs, State]], state: State, inputs: Inputs) -> tuple[Outputs, State]:
    """Chunks one after another: a scan of `step(state, inputs of one chunk) -> (outputs, state)` over the leading axis of
    `inputs`; the outputs are stacked along a new leading axis."""

    def body(state, chunk):
        outputs, state = step(state, chunk)
        return state, outputs

    state, outputs = jax.lax.scan(body, state, inputs)
    return outputs, state
