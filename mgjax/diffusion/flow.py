"""Flow matching: what is noised, at which level, and what is asked of the network (training page sections 0.2 and 1.2).

(1) x_t = (1 - sigma) x0 + sigma noise          (2) velocity = noise - x0          (3) x0 = x_t - sigma velocity
(4) u ~ U(0, 1) or logit-normal,  sigma = s u / (1 + (s - 1) u)
(5) guidance: velocity(null) + g (velocity(condition) - velocity(null)); g = 1 is the condition alone. Others write
    velocity(condition) + (g - 1) (velocity(condition) - velocity(null))
(6) L = mean of w(sigma) (velocity_hat - velocity)^2

Sigmas are float32 and broadcast over the axes behind theirs. Everything here is float32.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from mgjax.diffusion.schedule import NUM_TIMESTEPS


def expand(sigma: Shaped[Array, "*b"], like: Shaped[Array, "*shape"]) -> Shaped[Array, "*ones"]:
    """`sigma`, or a flag of each sample, with axes of length one for those that `like` has behind it."""
    return sigma.reshape(*sigma.shape, *(1,) * (like.ndim - sigma.ndim))


def add_noise(x0: Float[Array, "*shape"], noise: Float[Array, "*shape"], sigma: Array) -> Float[Array, "*shape"]:
    """(1)"""
    sigma = expand(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def clean(x: Float[Array, "*shape"], velocity: Float[Array, "*shape"], sigma: Array) -> Float[Array, "*shape"]:
    """(3)"""
    return x - expand(sigma, x) * velocity


def warp(u: Float[Array, "*shape"], shift: float) -> Float[Array, "*shape"]:
    """The schedule's shift of (4)."""
    return shift * u / (1 + (shift - 1) * u)


def draw_sigmas(
    key: PRNGKeyArray, batch: int, shift: float, law: Literal["uniform", "logit_normal"] = "uniform"
) -> Float[Array, " b"]:
    """(4). The uniform law is stratified: every one of `batch` equal parts of (0, 1) gets one draw, in random order."""
    if law == "logit_normal":
        return warp(jax.nn.sigmoid(jax.random.normal(key, (batch,))), shift)
    order, inside = jax.random.split(key)
    return warp((jax.random.permutation(order, batch) + jax.random.uniform(inside, (batch,))) / batch, shift)


def guided(conditional: Array, null: Array, guidance: float) -> Array:
    """(5), of velocities or of predictions of x0."""
    return null + guidance * (conditional - null)


def timestep(sigma: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """What the network is told of the noise level."""
    return NUM_TIMESTEPS * sigma


def flow_loss(
    velocity: Float[Array, "*shape"],
    x0: Float[Array, "*shape"],
    noise: Float[Array, "*shape"],
    weight: Array | float = 1.0,
) -> Float[Array, ""]:
    """(6); `weight` has leading axes of the others."""
    weight = expand(jnp.asarray(weight, jnp.float32), velocity)
    return jnp.mean(weight * jnp.square(velocity - (noise - x0)))
