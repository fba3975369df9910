"""The few-step sampler of one chunk: an algorithm over a network handed in as a function."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.diffusion.schedule import NUM_TIMESTEPS


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
