"""Distribution matching on Gaussians with their closed forms (training page 3.1 to 3.6, 3.14, 3.16)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gaussian import Gaussian, posterior

from mgjax.diffusion.dmd import Score, critic_loss, dmd_gradient, dmd_loss, draw_score, noised, posterior_mean

LOWER = np.array([[1.0, 0, 0], [0.4, 0.7, 0], [-0.3, 0.2, 0.5]])
MEAN = np.array([1.0, -2.0, 0.5])


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def latents():
    return jax.random.normal(jax.random.key(0), (3, 2, 4, 5, 2))  # x, mu_fake, mu_real of [b t h w]


def real():
    return Gaussian(jnp.asarray(MEAN), jnp.asarray(LOWER @ LOWER.T))


def means(gaussian, x_t, score):
    """Posterior means of samples [b, 1, d]."""
    return posterior(gaussian, x_t[:, 0], score.sigma)[:, None]


def test_t3_1_the_gradient_is_the_score_difference(latents):
    x, fake, mu = latents
    grad = jax.grad(dmd_loss)(x, fake, mu)
    np.testing.assert_array_equal(grad, dmd_gradient(x, fake, mu) / x.size)
    distance = np.abs(x - mu).mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(grad, (fake - mu) / distance / x.size, atol=2e-18)


def test_t3_2_equal_scores_are_a_fixed_point(latents):
    x, fake, _ = latents
    np.testing.assert_array_equal(jax.grad(dmd_loss)(x, fake, fake), 0)


def test_t3_3_the_normaliser_is_each_samples_own(latents):
    x, fake, mu = latents
    np.testing.assert_allclose(dmd_gradient(7 * x, 7 * fake, 7 * mu), dmd_gradient(x, fake, mu), rtol=1e-12)
    other = dmd_gradient(x.at[1].multiply(100), fake, mu.at[1].add(5))
    np.testing.assert_array_equal(other[0], dmd_gradient(x, fake, mu)[0])


def test_t3_14_frames_that_do_not_count(latents):
    """Their gradient is zero, and both means are taken over the others alone."""
    x, fake, mu = latents
    counts = jnp.array([[False, True, True, True]] * 2)
    grad = jax.grad(dmd_loss)(x, fake, mu, counts)
    np.testing.assert_array_equal(grad[:, 0], 0)
    np.testing.assert_allclose(grad[:, 1:], jax.grad(dmd_loss)(x[:, 1:], fake[:, 1:], mu[:, 1:]), rtol=1e-12)
    score = Score(jnp.array([0.3, 0.6]), jnp.ones_like(x))
    np.testing.assert_allclose(
        critic_loss(fake, x, score, counts), critic_loss(fake[:, 1:], x[:, 1:], Score(score.sigma, score.noise[:, 1:]))
    )


def test_no_gradient_reaches_the_scores(latents):
    grads = jax.grad(dmd_loss, (1, 2))(*latents)
    assert all(jnp.all(grad == 0) for grad in grads)


@pytest.mark.parametrize("normalised", [True, False])
def test_t3_4_gaussian_generator_reaches_the_data(normalised):
    """With the exact scores plain gradient descent ends at the data's mean and covariance."""

    def loss(generator, key):
        noise, draw = jax.random.split(key)
        x = (generator["m"] + jax.random.normal(noise, (256, 3)) @ generator["l"].T)[:, None]
        score = draw_score(draw, x.shape, 5.0, (0.02, 0.98))
        x_t = jax.lax.stop_gradient(noised(x, score))
        fake = means(Gaussian(generator["m"], generator["l"] @ generator["l"].T), x_t, score)
        mu = means(real(), x_t, score)
        if normalised:
            return dmd_loss(x, fake, mu)
        grad = dmd_gradient(x, fake, mu) * jnp.abs(x - mu).mean((1, 2), keepdims=True)
        return jnp.sum(jax.lax.stop_gradient(grad) * x) / x.size

    @jax.jit
    def train(generator):
        def step(generator, index):
            grads = jax.grad(loss)(generator, jax.random.fold_in(jax.random.key(0), index))
            return jax.tree.map(lambda p, g: p - 0.3 * g, generator, grads), None

        return jax.lax.scan(step, generator, jnp.arange(4000))[0]

    generator = train({"m": jnp.zeros(3), "l": jnp.sqrt(2.0) * jnp.eye(3)})
    np.testing.assert_allclose(generator["m"], MEAN, atol=1e-12)
    np.testing.assert_allclose(generator["l"] @ generator["l"].T, LOWER @ LOWER.T, atol=1e-12)


def test_t3_4b_the_gradient_is_a_weighted_kl(latents):
    """Without the normaliser, of the generator's mean: sigma^2 / ((1 - sigma)^2 D) times that of KL(p_fake,t |
    p_real,t)."""
    sigma, fake = 0.6, Gaussian(jnp.zeros(3), 2 * jnp.eye(3))
    x = fake.mean + jax.random.normal(jax.random.key(0), (200_000, 3)) @ jnp.linalg.cholesky(fake.covariance).T
    score = Score(jnp.full(len(x), sigma), jax.random.normal(jax.random.key(1), (len(x), 1, 3)))
    x_t = noised(x[:, None], score)
    mu_fake, mu_real = means(fake, x_t, score), means(real(), x_t, score)
    distance = jnp.abs(x[:, None] - mu_real).mean((1, 2), keepdims=True)
    ours = (dmd_gradient(x[:, None], mu_fake, mu_real) * distance).mean((0, 1)) / 3

    def kl(mean):
        a = (1 - sigma) * (mean - MEAN)
        total = (1 - sigma) ** 2 * real().covariance + sigma**2 * jnp.eye(3)
        return 0.5 * a @ jnp.linalg.solve(total, a)

    np.testing.assert_allclose(ours / jax.grad(kl)(fake.mean), sigma**2 / ((1 - sigma) ** 2 * 3), rtol=0.01)


def distil(ratio, generator_rate, critic_rate, steps=6000):
    """Generator and critic, both Gaussians, trained in turn: errors (mean, covariance) of the generator's average."""
    optimizers = [optax.adam(rate, b1=0.0) for rate in (generator_rate, critic_rate)]

    def make(generator, key, size=256):
        return (generator["m"] + jax.random.normal(key, (size, 3)) @ generator["l"].T)[:, None]

    def gaussian(net):
        return Gaussian(net["m"], net["l"] @ net["l"].T)

    def generator_loss(generator, critic, key):
        noise, draw = jax.random.split(key)
        x = make(generator, noise)
        score = draw_score(draw, x.shape, 5.0, (0.02, 0.98))
        x_t = jax.lax.stop_gradient(noised(x, score))
        return dmd_loss(x, means(gaussian(critic), x_t, score), means(real(), x_t, score))

    def loss_of_critic(critic, generator, key):
        noise, draw = jax.random.split(key)
        x = make(generator, noise)
        score = draw_score(draw, x.shape, 5.0, (0.02, 0.98))
        x_t = noised(x, score)
        velocity = (x_t - means(gaussian(critic), x_t, score)) / score.sigma[:, None, None]
        np.testing.assert_equal(posterior_mean(x_t, velocity, score).shape, x.shape)
        return critic_loss(velocity, x, score)

    def step(state, index):
        generator, critic, ema, opts = state
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), index))
        updated = index % ratio == 0
        updates, opt = optimizers[0].update(jax.grad(generator_loss)(generator, critic, keys[0]), opts[0])
        new = (optax.apply_updates(generator, updates), opt)
        old = generator, opts[0]
        generator, opt = jax.tree.map(lambda a, b: jnp.where(updated, a, b), new, old)
        updates, critic_opt = optimizers[1].update(jax.grad(loss_of_critic)(critic, generator, keys[1]), opts[1])
        critic = optax.apply_updates(critic, updates)
        ema = jax.tree.map(lambda e, p: jnp.where(updated, 0.99 * e + 0.01 * p, e), ema, generator)
        return (generator, critic, ema, (opt, critic_opt)), None

    @jax.jit
    def train():
        start = {"m": jnp.zeros(3), "l": 2 * jnp.eye(3)}
        state = (start, start, start, tuple(optimizer.init(start) for optimizer in optimizers))
        return jax.lax.scan(step, state, jnp.arange(steps))[0][2]

    ema = train()
    return np.abs(ema["m"] - MEAN).max(), np.abs(ema["l"] @ ema["l"].T - LOWER @ LOWER.T).max()


def test_t3_5_with_a_trained_critic():
    mean, covariance = distil(5, 5e-3, 5e-3)
    assert mean < 0.05
    assert covariance < 0.1


@pytest.mark.slow
def test_t3_5_a_critic_that_is_too_slow_misleads():
    """The update ratio and the critic's rate matter: the page measures a covariance error of 0.52."""
    _, covariance = distil(1, 5e-3, 5e-4)
    assert covariance > 0.3


def test_t3_16_the_perfect_critic_attains_the_floor():
    """E Var(noise - x | x_t) = E tr Var(x | x_t) / (D sigma^2), because x_t / sigma is known."""
    data, size = real(), 200_000
    x = (data.mean + jax.random.normal(jax.random.key(0), (size, 3)) @ LOWER.T)[:, None]
    score = draw_score(jax.random.key(1), x.shape, 5.0, (0.02, 0.98))
    x_t = noised(x, score)
    loss = critic_loss((x_t - means(data, x_t, score)) / score.sigma[:, None, None], x, score)
    s = score.sigma[:, None, None]
    total = (1 - s) ** 2 * data.covariance + s**2 * jnp.eye(3)
    variance = data.covariance - (1 - s) ** 2 * data.covariance @ jnp.linalg.solve(total, jnp.eye(3)) @ data.covariance
    floor = jnp.mean(jnp.trace(variance, axis1=1, axis2=2) / (3 * score.sigma**2))
    np.testing.assert_allclose(loss, floor, rtol=0.01)  # Monte Carlo error of 200,000 samples
    worse = critic_loss((x_t - 0.9 * means(data, x_t, score)) / s, x, score)
    assert worse > 1.01 * floor
