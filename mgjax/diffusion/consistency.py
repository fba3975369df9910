"""Few-step initialisation: trajectories of the teacher's flow, and consistency along them (training page 2c and 2d).

(1) Euler: x' = x + (sigma' - sigma) velocity(x, sigma)
(2) regression: L = mean (x0_hat(x_k, sigma_k) - x_end)^2 over the pairs (x_k, x_end) of one trajectory
(3) consistency: L = mean (f(x_n, sigma_n) - stop_gradient f_EMA(x_n+1, sigma_n+1))^2, where the teacher leads from x_n
    to x_n+1 by (1) and f is a prediction of x0; where sigma_n+1 = 0 the target is x0 itself

The student's few levels are nodes of every grid, exactly: nothing is matched to its nearest neighbour.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mgjax.diffusion.flow import add_noise, expand


def grid(num: int, shift: float, inserted: np.ndarray) -> np.ndarray:
    """Descending sigmas, float64: `num` warped levels evenly spaced in u, those `inserted` among them, and 0."""
    u = 1 - np.arange(num) / num
    levels = np.concatenate([shift * u / (1 + (shift - 1) * u), inserted, [0.0]])
    levels = np.sort(levels)[::-1]
    # An inserted level replaces the even one that it equals but for rounding.
    return levels[np.append(True, -np.diff(levels) > 1e-9)]


def nodes(levels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index in `levels` of every `wanted` one; ValueError where one is not among them exactly."""
    index = np.abs(levels[:, None] - wanted).argmin(0)
    if np.abs(levels[index] - wanted).max() > 1e-9:
        raise ValueError(f"the levels {wanted} are not all on the trajectory's grid")
    return index


def trajectory(
    velocity: Callable[[Array, Array], Array], noise: Float[Array, "*shape"], levels: np.ndarray, keep: np.ndarray
) -> tuple[Float[Array, "k *shape"], Float[Array, "*shape"]]:
    """Integrates (1) from `noise` down `levels`, which end at 0: the states at the levels `keep` (indices), and the
    end.

    `velocity(x, sigma [])` is the teacher's.
    """
    slot = np.full(len(levels), len(keep))
    slot[keep] = np.arange(len(keep))
    steps = (jnp.asarray(levels[:-1], jnp.float32), jnp.asarray(np.diff(levels), jnp.float32), jnp.asarray(slot[:-1]))

    def step(carry, at):
        x, kept = carry
        sigma, delta, place = at
        kept = kept.at[place].set(x, mode="drop")
        return (x + delta * velocity(x, sigma), kept), None

    kept = jnp.zeros((len(keep), *noise.shape), noise.dtype)
    (end, kept), _ = jax.lax.scan(step, (noise, kept), steps)
    return kept, end


def regression_loss(x0: Array, end: Array, sigma: Float[Array, "*b"]) -> Float[Array, ""]:
    """(2), over the elements whose `sigma` (leading axes of `x0`) is not 0: a clean input has nothing to predict."""
    noisy = jnp.broadcast_to(expand(sigma > 0, x0), x0.shape)
    return jnp.sum(noisy * jnp.square(x0 - end)) / jnp.maximum(noisy.sum(), 1)


def consistency_loss(
    student: Callable[[Array, Array], Array],
    target: Callable[[Array, Array], Array],
    velocity: Callable[[Array, Array], Array],
    x0: Float[Array, "*shape"],
    noise: Float[Array, "*shape"],
    sigma: Float[Array, "*b"],
    following: Float[Array, "*b"],
) -> Float[Array, ""]:
    """(3) from the levels `sigma` to the `following` ones. `student` and `target` predict x0 from (x, sigma),
    `velocity` is the teacher's."""
    x = add_noise(x0, noise, sigma)
    after = x + expand(following - sigma, x) * velocity(x, sigma)
    goal = jnp.where(expand(following > 0, x), target(after, following), x0)
    return jnp.mean(jnp.square(student(x, sigma) - jax.lax.stop_gradient(goal)))
