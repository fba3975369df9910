"""The autoencoder stage: terms against closed forms, both models learn, and the latents' statistics are measured."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mgjax.config import LinearConfig, preset
from mgjax.models import linear
from mgjax.models import vae as model
from mgjax.train.stages import autoencoder
from mgjax.train_config import OptimizerConfig, VAEStage
from mgjax.types import VideoBatch

FRAMES = 13
COMMON = {"batch": 2, "frames": FRAMES, "dtype": "float32", "optimizer": OptimizerConfig(learning_rate=3e-3)}


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


def test_statistics_are_those_of_whole_clips_latents(world, batch):
    """Built with the statistics that the exported weights are measured to have, worlds have latents of mean 0 and
    deviation 1, over two batches as over one of both."""
    params = model.init(jax.random.key(0), world.vae)
    clips = batch.video[:, :5]
    run = jax.jit(lambda video: autoencoder.statistics(params, world.vae, video))
    cfg = autoencoder.measured(world.vae, [run(clips[:1]), run(clips[1:])])
    latents = model.normalize(cfg, jax.jit(lambda v: model.encode_moments(params, world.vae, v)[0])(clips))
    np.testing.assert_allclose(latents.mean((0, 1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std((0, 1, 2, 3)), 1, atol=1e-3)


def untrained_taps(world, frames):
    """Paths of kernels, tap by tap where they have three, that a loss on a clip of so many frames has no gradient
    of."""
    params = model.init(jax.random.key(0), world.vae)
    video = tiny.normal(3, 1, frames, 8, 8, 3)

    def loss(params):
        mean, log_variance = model.encode_moments(params, world.vae, video, whole=True)
        return jnp.square(model.decode(params, world.vae, mean, whole=True) - video).mean() + log_variance.mean()

    grads = jax.jit(jax.grad(loss))(params)
    found = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        temporal = name.endswith("/kernel") and ("/time/" in name or (leaf.ndim == 4 and leaf.shape[2] % 3 == 0))
        taps = jnp.split(leaf, 3, -2) if temporal and "/conv/" not in name else [leaf]
        found |= {f"{name} tap {index}" for index, tap in enumerate(taps) if not (tap != 0).any()}
    return found


@pytest.mark.slow  # two gradients of the VAE, half a minute each to compile
def test_the_least_clip_trains_every_tap_and_a_shorter_one_does_not(world):
    least = model.trained_latents(world.vae)
    assert least == 4
    assert untrained_taps(world, 4 * (least - 1) + 1) == set()
    shorter = untrained_taps(world, 4 * (least - 2) + 1)
    assert shorter == {"decoder/up_0/time/kernel tap 0"}


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


ROOMS = preset("rooms")
PLAIN = dataclasses.replace(ROOMS, vae=dataclasses.replace(ROOMS.vae, refine_layers=0))


def test_a_linear_code_has_no_stage():
    for make, world in ((autoencoder.make_stage, PLAIN), (autoencoder.make_taehv_stage, ROOMS)):
        with pytest.raises(ValueError, match="pictures of rooms are coded linearly"):
            make(VAEStage(), world)


def test_what_refines_a_linear_code_learns_and_leaves_the_code_alone():
    """Pictures that a code of few numbers blurs, edges at places of every frame's own, come nearer; every weight of the
    decoder moves, the encoder not, and at first the decoder is the code's."""
    net = LinearConfig(rows=8, columns=8, latent_channels=6, refine_layers=2, refine_dim=16)
    world = dataclasses.replace(
        ROOMS, vae=net, dit=dataclasses.replace(ROOMS.dit, latent_height=1, latent_width=4, latent_channels=6)
    )
    rng = np.random.default_rng(0)
    edges = rng.integers(4, 28, (24, 1, 1, 1, 1)) + np.arange(9)[:, None, None, None]
    video = np.broadcast_to(np.where(np.arange(32)[:, None] < edges, -0.8, 0.8), (24, 9, 8, 32, 3)).astype(np.float32)
    code = linear.fit(net, np.asarray(linear.to_blocks(net, video[:, 1:])).reshape(-1, net.block_size))
    optimizer = OptimizerConfig(learning_rate=3e-3)
    stage = autoencoder.make_stage(VAEStage(steps=150, batch=24, frames=9, dtype="float32", optimizer=optimizer), world)
    state = stage.init(jax.random.key(0), {"vae": code})
    batch, step, evaluate = VideoBatch(jnp.asarray(video)), jax.jit(stage.step), jax.jit(stage.evaluate)
    before = float(evaluate(state, batch)["psnr"])
    made = np.asarray(linear.decode(code, net, linear.encode(code, net, batch.video)))
    np.testing.assert_allclose(
        before, 10 * np.log10(4 / np.square(made - video).mean()), atol=0.01
    )  # a sum of its own order
    for _ in range(150):
        state, _ = step(state, batch)
    assert float(evaluate(state, batch)["psnr"]) > before + 3
    after = stage.export(state)["vae"]
    assert jax.tree.structure(after) == jax.tree.structure(code)
    jax.tree.map(np.testing.assert_array_equal, after["encoder"], code["encoder"])
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), after["decoder"], code["decoder"])))
