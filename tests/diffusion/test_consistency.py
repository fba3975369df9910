"""Trajectories and consistency on Gaussians, whose flow is known (training page 2.5 to 2.7, 2.9)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian, flow_end, flow_start, posterior, velocity

from mgjax.diffusion.consistency import consistency_loss, grid, nodes, regression_loss, trajectory
from mgjax.diffusion.schedule import step_sigmas

NONE = np.array([])


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def gaussian():
    return Gaussian(jnp.array([1.0, -0.5]), jnp.array([[1.0, 0.8], [0.8, 1.3]]))


def end_of(gaussian, noise, levels, keep=(0,)):
    return trajectory(lambda x, sigma: velocity(gaussian, x, sigma), noise, levels, np.array(keep, int))


def test_t2_5_euler_error_halves_with_the_steps(gaussian):
    noise = jax.random.normal(jax.random.key(0), (4000, 2), jnp.float64)
    exact = flow_end(gaussian, noise, 1.0)
    errors = [
        float(jnp.sqrt(jnp.mean(jnp.square(end_of(gaussian, noise, grid(n, 5.0, NONE))[1] - exact))))
        for n in (24, 48, 96)
    ]
    np.testing.assert_allclose(errors, [0.101, 0.052, 0.026], rtol=0.05)  # the page's, to Monte Carlo error


def test_t2_5_regression_recovers_the_map(gaussian):
    noise = jax.random.normal(jax.random.key(0), (2000, 2), jnp.float64)
    levels = grid(400, 5.0, step_sigmas((1000, 666, 333), 5.0))
    keep = nodes(levels, step_sigmas((1000, 666, 333), 5.0))
    states, ends = end_of(gaussian, noise, levels, keep)

    def loss(student, x, sigma):
        return regression_loss(x @ student["w"] + student["b"], ends, jnp.full(len(x), sigma))

    for state, sigma in zip(states, levels[keep], strict=True):
        student = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
        hessian_free = jax.jit(jax.grad(loss))
        for _ in range(400):
            student = jax.tree.map(lambda p, g: p - 0.5 * g, student, hessian_free(student, state, sigma))
        x = flow_start(gaussian, jax.random.normal(jax.random.key(1), (100, 2), jnp.float64), sigma)
        # What remains is the trajectory's own Euler error at 400 steps: 0.101 * 24 / 400.
        error = jnp.sqrt(jnp.mean(jnp.square(x @ student["w"] + student["b"] - flow_end(gaussian, x, sigma))))
        assert error < 0.012


def test_t2_6_a_bidirectional_teacher_is_no_function_of_the_past(gaussian):
    """Frame 1 of pairs from a teacher that sees both frames depends on the noise of frame 2, which a student does not
    see."""
    sigma = step_sigmas((1000, 750), 5.0)[1]
    noise = jax.random.normal(jax.random.key(0), (20_000, 2), jnp.float64)
    first = Gaussian(gaussian.mean[:1], gaussian.covariance[:1, :1])
    levels = grid(96, 5.0, np.array([sigma]))

    def irreducible(teacher, noise):
        states, ends = end_of(teacher, noise, levels, nodes(levels, np.array([sigma])))
        x, y = np.asarray(states[0, :, 0]), np.asarray(ends[:, 0])
        return np.mean((np.polyval(np.polyfit(x, y, 1), x) - y) ** 2)

    assert irreducible(gaussian, noise) == pytest.approx(0.162, rel=0.05)
    assert irreducible(first, noise[:, :1]) < 1e-20


def test_t2_7_the_exact_flow_is_the_fixed_point(gaussian):
    """With the exact flow as prediction only Euler's error of one step is left: the loss falls as N^-4."""
    x0 = gaussian.mean + jax.random.normal(jax.random.key(0), (4000, 2)) @ jnp.linalg.cholesky(gaussian.covariance).T
    noise = jax.random.normal(jax.random.key(1), x0.shape)

    def predict(x, sigma):
        return flow_end(gaussian, x, sigma[0])

    def loss(num):
        levels = jnp.asarray(grid(num, 5.0, NONE))

        def at(pair):
            sigma, after = jnp.full(len(x0), pair[0]), jnp.full(len(x0), pair[1])
            exact = lambda x, sigma: velocity(gaussian, x, sigma)  # noqa: E731
            return consistency_loss(predict, predict, exact, x0, noise, sigma, after)

        # The last level's target is x0 itself, which no function of x_t equals; it is left out.
        return float(jax.lax.map(at, jnp.stack([levels[:-2], levels[1:-1]], 1)).mean())

    losses = [loss(num) for num in (24, 48, 96)]
    np.testing.assert_allclose(losses, [4.8e-5, 4.1e-6, 2.9e-7], rtol=0.3)  # the page's, to Monte Carlo error
    assert losses[0] / losses[1] > 8
    assert losses[1] / losses[2] > 12


def test_consistency_ends_at_the_data_and_trains_the_student_alone():
    x0, noise = jax.random.normal(jax.random.key(0), (2, 3, 4))

    def loss(student, target, sigma, after):
        return consistency_loss(
            lambda x, s: x + student,
            lambda x, s: x + target,
            lambda x, s: 0 * x,
            x0,
            noise,
            jnp.full(3, sigma),
            jnp.full(3, after),
        )

    grads = jax.grad(loss, (0, 1))(0.1, 0.2, 0.5, 0.25)
    assert abs(grads[0]) > 1e-3
    assert grads[1] == 0
    np.testing.assert_allclose(loss(0.0, 9.0, 1e-9, 0.0), 0.0, atol=1e-12)


@pytest.mark.parametrize("steps", [(1000, 666, 333), (1000, 750, 500, 250)])
@pytest.mark.parametrize("shift", [5.0, 8.0])
def test_t2_9_the_students_levels_are_nodes_of_the_grid(steps, shift):
    """Exactly, also where the grid's own shift would miss them; and the kept states are those of these levels."""
    student = step_sigmas(steps, 5.0)
    levels = grid(48, shift, student)
    keep = nodes(levels, student)
    np.testing.assert_array_equal(levels[keep], student)
    assert (np.diff(levels) < -1e-6).all()
    assert levels[-1] == 0
    states, _ = trajectory(lambda x, sigma: jnp.ones_like(x), jnp.zeros(1), levels, keep)
    np.testing.assert_allclose(1 + states[:, 0], student, atol=1e-6)  # x = sigma - 1; the steps are summed in float32


def test_t2_9_a_grid_without_them_is_refused():
    with pytest.raises(ValueError, match="not all on the trajectory's grid"):
        nodes(grid(48, 8.0, NONE), step_sigmas((1000, 666, 333), 5.0))


def test_t2_8_clean_frames_give_no_gradient():
    x0, end = jax.random.normal(jax.random.key(0), (2, 2, 4, 3))
    sigma = jnp.array([[0.5, 0.0, 1.0, 0.0], [0.0, 0.0, 0.2, 0.2]])
    grad = jax.grad(regression_loss)(x0, end, sigma)
    np.testing.assert_array_equal(grad[sigma == 0], 0)
    np.testing.assert_allclose(grad[sigma > 0], (2 * (x0 - end) / (4 * 3))[sigma > 0], rtol=1e-12)


def test_posterior_is_the_flows_derivative(gaussian):
    """The closed forms that these tests rest on agree with each other: dx/dsigma along an exact trajectory is the
    velocity."""
    z = jax.random.normal(jax.random.key(0), (5, 2))
    step = 1e-5
    slope = (flow_start(gaussian, z, 0.6 + step) - flow_start(gaussian, z, 0.6 - step)) / (2 * step)
    x = flow_start(gaussian, z, 0.6)
    np.testing.assert_allclose(velocity(gaussian, x, 0.6), slope, atol=1e-8)
    np.testing.assert_allclose(x - 0.6 * velocity(gaussian, x, 0.6), posterior(gaussian, x, 0.6), atol=1e-12)
