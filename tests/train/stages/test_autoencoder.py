"""The autoencoder stage: terms against closed forms, both models learn, and the latents' statistics are measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mgjax.models import vae as model
from mgjax.train.stages import autoencoder
from mgjax.train_config import OptimizerConfig, VAEStage
from mgjax.types import VideoBatch

FRAMES = 13
COMMON = {"batch": 2, "frames": FRAMES, "dtype": "float32", "optimizer": OptimizerConfig(learning_rate=3e-3)}


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with tiny.quick_compilation():
        yield


@pytest.fixture(scope="module")
def world():
    return tiny.world()


@pytest.fixture(scope="module")
def batch(world):
    """Two soft-edged pictures that move."""
    y, x = np.mgrid[: world.height, : world.width] / 8.0
    frames = [
        np.stack([np.sin(x + 0.3 * f + k), np.cos(y - 0.2 * f), np.sin(x + y) * k], -1)
        for k in (0, 1)
        for f in range(FRAMES)
    ]
    return VideoBatch(jnp.asarray(np.stack(frames).reshape(2, FRAMES, world.height, world.width, 3) * 0.8, jnp.float32))


def test_kl_divergence_closed_form():
    mean, deviation = 0.7, 1.9
    expected = 0.5 * (mean**2 + deviation**2 - 1) - np.log(deviation)
    np.testing.assert_allclose(
        autoencoder.kl_divergence(jnp.full(3, mean), jnp.full(3, 2 * np.log(deviation))), expected, rtol=1e-6
    )
    assert autoencoder.kl_divergence(jnp.zeros(3), jnp.zeros(3)) == 0


def test_sharpness_sees_blur_and_no_offset():
    """A constant offset has no gradient; a ramp of slope s in x counts s, 2 s and 4 s at the three sizes."""
    video = tiny.normal(0, 1, 2, 16, 16, 3)
    np.testing.assert_allclose(autoencoder.sharpness(video + 0.5, video), 0, atol=1e-6)
    ramp = 0.01 * jnp.arange(16.0)[None, None, None, :, None]
    np.testing.assert_allclose(autoencoder.sharpness(video + ramp, video), 0.07, rtol=1e-4)
    blurred = (video + jnp.roll(video, 1, 3)) / 2
    assert autoencoder.sharpness(blurred, video) > 0.5


def train(stage, batch, steps, pretrained):
    state = jax.jit(stage.init)(jax.random.key(0), pretrained)
    step = jax.jit(stage.step, donate_argnums=0)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        assert np.isfinite(float(metrics["grad_norm"]))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.fixture(scope="module")
def wan(world, batch):
    stage = autoencoder.make_stage(VAEStage(**COMMON), world)
    return stage, *train(stage, batch, 40, {})


@pytest.mark.slow  # XLA compiles the gradient of the VAE for minutes on a CPU
def test_the_autoencoder_learns(wan, batch):
    stage, state, losses = wan
    assert losses[-1] < 0.7 * losses[0]
    metrics = jax.jit(stage.evaluate)(state, batch)
    assert np.isfinite(metrics["psnr"])
    assert set(stage.export(state)) == {"vae"}


@pytest.mark.slow
def test_statistics_are_those_of_the_latents(world, batch, wan):
    """Built with the measured statistics the latents of the training clips have mean 0 and deviation 1; the running
    ones lag behind weights that still move, here by a few per cent."""
    _, state, _ = wan
    cfg = autoencoder.measured(world.vae, state)
    state = state._replace(stream=None)
    mean, _ = jax.jit(lambda p, v: model.encode_moments(p, world.vae, v))(state.params, batch.video)
    statistics = autoencoder.Statistics(mean.mean((0, 1, 2, 3)), jnp.square(mean).mean((0, 1, 2, 3)))
    exact = autoencoder.measured(world.vae, state._replace(stream=statistics))
    latents = model.normalize(exact, mean)
    np.testing.assert_allclose(latents.mean((0, 1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std((0, 1, 2, 3)), 1, atol=1e-3)
    assert len(cfg.latent_mean) == len(cfg.latent_std) == world.vae.latent_channels
    assert min(cfg.latent_std) > 0
    assert cfg.latent_std != world.vae.latent_std


def test_crops_are_parts_of_their_clips(batch):
    video = batch.video[:, :, :12, :20]
    cut = np.asarray(autoencoder.cropped(video, (8, 16), jax.random.key(0)))
    assert cut.shape == (*video.shape[:2], 8, 16, 3)
    for clip, part in zip(np.asarray(video), cut, strict=True):
        places = [(y, x) for y in range(5) for x in range(5)]
        assert any(np.array_equal(clip[:, y : y + 8, x : x + 16], part) for y, x in places)
    other = np.asarray(autoencoder.cropped(video, (8, 16), jax.random.key(1)))
    assert np.abs(cut - other).max() > 0


def test_a_crop_is_whole_latents_of_the_picture(world):
    for crop in ((world.height + 8, 8), (8, 12)):
        with pytest.raises(ValueError, match="is not whole latents"):
            autoencoder.make_stage(VAEStage(**COMMON, crop=crop), world)


@pytest.mark.slow
def test_the_small_autoencoder_learns_from_the_frozen_one(world, batch):
    stage = autoencoder.make_taehv_stage(VAEStage(**COMMON), world)
    frozen = {"vae": model.init(jax.random.key(1), world.vae)}
    state, losses = train(stage, batch, 40, frozen)
    assert losses[-1] < 0.7 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, state.teacher, frozen["vae"])
    assert set(stage.export(state)) == {"taehv"}
