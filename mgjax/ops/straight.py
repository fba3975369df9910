"""Functions whose gradient is not their derivative."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def clip(x: Float[Array, "*shape"], low: float, high: float) -> Float[Array, "*shape"]:
    """`x` within [low, high]. The gradient passes everywhere: a decoder learns its way back from outside."""
    return jnp.clip(x, low, high)


@clip.defjvp
def _clip_jvp(low, high, primals, tangents):
    return clip(primals[0], low, high), tangents[0]
