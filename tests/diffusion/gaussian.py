"""A Gaussian x0 ~ N(mean, covariance) under x_t = a x0 + sigma noise, a = 1 - sigma, in closed form; jnp, any
precision."""

from typing import NamedTuple

import jax.numpy as jnp


class Gaussian(NamedTuple):
    mean: jnp.ndarray  # [d]
    covariance: jnp.ndarray  # [d, d]


def _power(matrix, p):
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * values[..., None, :] ** p) @ jnp.swapaxes(vectors, -1, -2)


def _total(gaussian, sigma):
    """Covariance of x_t [..., d, d]."""
    sigma = jnp.asarray(sigma)[..., None, None]
    return (1 - sigma) ** 2 * gaussian.covariance + sigma**2 * jnp.eye(len(gaussian.mean))


def posterior(gaussian, x, sigma):
    """E[x0 | x_t = x] for x [..., d] and sigma [...]."""
    a = (1 - jnp.asarray(sigma))[..., None]
    centred = jnp.linalg.solve(_total(gaussian, sigma), (x - a * gaussian.mean)[..., None])[..., 0]
    return gaussian.mean + a * centred @ gaussian.covariance


def velocity(gaussian, x, sigma):
    """E[noise - x0 | x_t = x]; at sigma 0, where nothing is noise, -x0."""
    a = (1 - jnp.asarray(sigma))[..., None]
    centred = jnp.linalg.solve(_total(gaussian, sigma), (x - a * gaussian.mean)[..., None])[..., 0]
    return jnp.asarray(sigma)[..., None] * centred - posterior(gaussian, x, sigma)


def flow_end(gaussian, x, sigma):
    """Where the probability flow leads from x at `sigma` (a number)."""
    turn = _power(_total(gaussian, sigma), -0.5) @ _power(gaussian.covariance, 0.5)
    return gaussian.mean + (x - (1 - sigma) * gaussian.mean) @ turn


def flow_start(gaussian, z, sigma):
    """The state at `sigma` on the trajectory that starts from the noise z."""
    return (1 - sigma) * gaussian.mean + z @ _power(_total(gaussian, sigma), 0.5)
