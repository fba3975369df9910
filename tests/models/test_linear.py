"""The linear code: what it holds exactly, which frames a latent stands for, and a world that streams by it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.config import LinearConfig, Settings, preset
from mgjax.models import linear
from mgjax.types import Actions
from mgjax.world import World

CFG = LinearConfig(frames=4, rows=4, columns=2, latent_channels=6)
ROUNDING = 1e-5  # of float32 sums


@pytest.fixture(scope="module")
def blocks():
    """Of six components and a mean, the first of them the largest; within [-1, 1]."""
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(400, 6)) * (8, 4, 2, 1, 0.5, 0.25)
    found = (parts @ np.linalg.qr(rng.normal(size=(CFG.block_size, 6)))[0].T + rng.normal(size=CFG.block_size)) / 12
    return found.astype(np.float32)


@pytest.fixture(scope="module")
def params(blocks):
    return linear.fit(CFG, blocks)


def test_what_has_as_many_components_is_held_exactly(params, blocks):
    whole = jnp.asarray(blocks[:24].reshape(2, 1, 3, 4, -1))
    video = linear.from_blocks(CFG, whole)
    latents = linear._product(params["encoder"], whole, jnp.float32)
    frames, cache = linear.decode_step(params, CFG, latents, jnp.zeros(2, bool), {})
    assert cache == {}
    assert np.abs(video).max() < 1
    np.testing.assert_allclose(frames, video, atol=ROUNDING)


def test_latents_have_variance_1_and_begin_with_the_largest_component(params, blocks):
    deviation = np.asarray(linear._product(params["encoder"], jnp.asarray(blocks), jnp.float32)).std(0)
    np.testing.assert_allclose(np.mean(deviation**2), 1, rtol=1e-3)
    assert np.all(np.diff(deviation) < 0)
    # Half of 32 to 1 in decibels; the draw of 400 blocks is within a tenth of it.
    np.testing.assert_allclose(deviation[0] / deviation[-1], 32**0.5, rtol=0.1)


def test_fewer_blocks_than_components_are_refused(blocks):
    with pytest.raises(ValueError, match="5 blocks do not have 6 components"):
        linear.fit(CFG, blocks[:5])


def test_a_latent_stands_for_its_own_frames(params):
    """Latent 0 for frame 0, latent i for frames 4 i - 3 to 4 i, and a video decoded in parts is the whole."""
    video = jax.random.uniform(jax.random.key(0), (1, 13, 8, 6, 3), minval=-1)
    latents = linear.encode(params, CFG, video)
    assert latents.shape == (1, 4, 2, 3, 6)
    for frame in range(13):
        moved = np.abs(linear.encode(params, CFG, video.at[:, frame].add(0.5)) - latents).max((0, 2, 3, 4)) > ROUNDING
        np.testing.assert_array_equal(np.flatnonzero(moved), [-(-frame // 4)])
    whole = linear.decode(params, CFG, latents)
    assert whole.shape == video.shape
    first, _ = linear.decode_step(params, CFG, latents[:, :1], jnp.ones(1, bool), {})
    rest, _ = linear.decode_step(params, CFG, latents[:, 1:], jnp.zeros(1, bool), {})
    assert not first[:, :3].any()
    np.testing.assert_array_equal(jnp.concatenate([first[:, 3:], rest], 1), whole)
    with pytest.raises(ValueError, match="12 frames"):
        linear.encode(params, CFG, video[:, :12])


def test_a_world_streams_by_it_one_latent_frame_at_a_time():
    """The rooms, smaller: no tower, no VAE. The actions of a chunk reach its frames, and none before."""
    cfg = preset("rooms")
    small = dataclasses.replace(cfg.dit, dim=32, num_heads=2, ffn_dim=32, num_layers=1, latent_channels=8)
    world = World(
        dataclasses.replace(cfg, dit=small, vae=dataclasses.replace(cfg.vae, latent_channels=8)), Settings("float32")
    )
    assert world.cfg.encoders == ("vae",)
    assert (world.cfg.height, world.cfg.width, world.cfg.chunk_frames) == (64, 96, 4)
    params = {name: tree for name, tree in world.init(jax.random.key(0)).items() if name in ("dit", "vae")}
    params["dit"] = jax.tree.map(
        lambda leaf: leaf if leaf.any() else 0.2 * jax.random.normal(jax.random.key(1), leaf.shape), params["dit"]
    )
    condition = world.encode(params, jax.random.uniform(jax.random.key(2), (1, 64, 96, 3), minval=-1))
    np.testing.assert_array_equal(condition.latents[:, 1:], 0)
    begun = world.begin(params, condition, jax.random.split(jax.random.key(3), 1))
    step = jax.jit(world.chunk_step)

    def play(keyboard):
        state, frames = begun, []
        for keys in keyboard:
            rows = Actions(jnp.broadcast_to(jnp.float32(keys), (1, 4, 4)), jnp.zeros((1, 4, 2)))
            made, state = step(params, state, rows)
            frames.append(np.asarray(made.pixels[0]))
        return frames

    still, moved = play([[0, 0, 0, 0]] * 3), play([[0, 0, 0, 0]] * 2 + [[1, 0, 0, 0]])
    assert np.all(still[0][:3] == 128)  # frames before the stream are blank
    np.testing.assert_array_equal(still[1], moved[1])
    assert np.any(still[2] != moved[2])
