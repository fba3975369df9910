"""Distribution matching distillation (arXiv:2405.14867, arXiv:2506.08009; training page section 3).

With mu_real and mu_fake the x0 predictions of teacher and critic at x_t = (1 - sigma) x + sigma noise:

(1) n_b = mean |x_b - mu_real_b|, one number a sample
(2) grad = (mu_fake - mu_real) / n_b, and L has dL/dx = grad / N with N the number of elements of x that count
(3) critic: L = mean ((x_t - mu_fake) / sigma - (noise - x))^2

(2) is written as sum(stop_gradient(grad) x) / N: the usual |x - stop_gradient(x - grad)|^2 / 2 has the same gradient
and cancels in float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from mgjax.diffusion.flow import add_noise, clean, expand, warp


class Score(NamedTuple):
    """Noise level and noise at which the two scores are compared."""

    sigma: Float[Array, " b"]
    noise: Float[Array, "b *shape"]


def draw_score(key: PRNGKeyArray, shape: tuple[int, ...], shift: float, limits: tuple[float, float]) -> Score:
    """One warped uniform sigma a sample, clamped to `limits`, and noise of `shape`."""
    level, noise = jax.random.split(key)
    sigma = jnp.clip(warp(jax.random.uniform(level, shape[:1]), shift), *limits)
    return Score(sigma, jax.random.normal(noise, shape))


def dmd_gradient(x: Array, mu_fake: Array, mu_real: Array, weight: Bool[Array, "b #t"] | None = None) -> Array:
    """(1) and (2), float32; `weight` marks the frames that count, None: all."""
    weight = jnp.ones((1, 1), bool) if weight is None else weight
    weight = jnp.broadcast_to(expand(weight, x), x.shape)
    axes = tuple(range(1, x.ndim))
    distance = jnp.sum(weight * jnp.abs(x - mu_real), axes, keepdims=True) / weight.sum(axes, keepdims=True)
    return jnp.where(weight, (mu_fake - mu_real) / jnp.maximum(distance, 1e-8), 0.0)


def dmd_loss(
    x: Float[Array, "b t *rest"],
    mu_fake: Float[Array, "b t *rest"],
    mu_real: Float[Array, "b t *rest"],
    weight: Bool[Array, "b #t"] | None = None,
) -> Float[Array, ""]:
    """(2). No gradient reaches the scores. The value itself means nothing; watch mean |mu_fake - mu_real|."""
    grad = jax.lax.stop_gradient(dmd_gradient(x, mu_fake, mu_real, weight))
    count = x.size if weight is None else jnp.broadcast_to(expand(weight, x), x.shape).sum()
    return jnp.sum(grad * x) / count


def critic_loss(
    velocity: Float[Array, "b t *rest"], x: Float[Array, "b t *rest"], score: Score, weight: Array | None = None
) -> Float[Array, ""]:
    """(3) of the critic's `velocity` at `noised(x, score)`, mean over the frames that count."""
    error = jnp.square(velocity - (score.noise - x))
    if weight is None:
        return error.mean()
    weight = jnp.broadcast_to(expand(weight, x), x.shape)
    return jnp.sum(weight * error) / weight.sum()


def noised(x: Float[Array, "b t *rest"], score: Score) -> Float[Array, "b t *rest"]:
    """x_t"""
    return add_noise(x, score.noise, score.sigma)


def posterior_mean(x_t: Float[Array, "b t *rest"], velocity: Float[Array, "b t *rest"], score: Score) -> Array:
    """The x0 prediction that belongs to a velocity at x_t."""
    return clean(x_t, velocity, score.sigma)
