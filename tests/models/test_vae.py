"""The Wan VAE: parity with the reference tensors, streams, causality."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from safetensors.numpy import load_file

from mgjax.config import VAEConfig
from mgjax.models import names, vae

SMALL = VAEConfig(
    dim=4,
    multipliers=(1, 2, 3),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    latent_channels=3,
    latent_mean=(0.5, -0.5, 0.1),
    latent_std=(2.0, 1.0, 0.5),
)

decode = jax.jit(vae.decode, static_argnums=1, static_argnames=("dtype", "impl", "whole"))
encode_moments = jax.jit(vae.encode_moments, static_argnums=1, static_argnames="whole")
encode = jax.jit(vae.encode, static_argnums=1, static_argnames=("dtype", "impl"))
decode_step = jax.jit(vae.decode_step, static_argnums=1, static_argnames="dtype")
encode_step = jax.jit(vae.encode_step, static_argnums=1, static_argnames="first")
encode_image_condition = jax.jit(vae.encode_image_condition, static_argnums=(1, 3))


def load(path, table):
    tensors, tree = load_file(path), {}
    for t in table:
        node = tree
        for key in t.path[:-1]:
            node = node.setdefault(key, {})
        node[t.path[-1]] = rearrange(tensors[t.name], t.layout, **dict(t.sizes)) if t.layout else tensors[t.name]
    return tree


def relative(a, b):
    assert a.shape == b.shape
    return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)


@pytest.fixture(scope="module")
def cfg(golden):
    file = json.loads((golden / "vae" / "config.json").read_text())
    return VAEConfig(
        dim=file["dim"],
        multipliers=tuple(file["dim_mult"]),
        num_res_blocks=file["num_res_blocks"],
        temporal_downsample=tuple(file["temporal_downsample"]),
        latent_channels=file["z_dim"],
        latent_mean=tuple(file["latent_mean"]),
        latent_std=tuple(file["latent_std"]),
    )


@pytest.fixture(scope="module")
def io(golden):
    file = load_file(golden / "vae" / "io.safetensors")
    return {name: np.moveaxis(x.astype(np.float32), 1, -1) for name, x in file.items()}


@pytest.fixture(scope="module")
def released(golden, cfg):
    return load(golden / "vae" / "weights.safetensors", names.vae_tensors(cfg))


def draw(cfg):
    """Random parameters, biases and scales included: a bias is what a forgotten mask would show."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda key: vae.init(key, cfg), jax.random.key(0)))
    rng = np.random.default_rng(0)

    def one(x):
        if len(x.shape) == 1:
            return rng.normal(0.3, 0.5, x.shape).astype(np.float32)
        return rng.normal(0, np.prod(x.shape[:-1]) ** -0.5, x.shape).astype(np.float32)

    return jax.tree.unflatten(tree, [one(x) for x in leaves])


@functools.cache
def small_params():
    return draw(SMALL)


def latents(seed: int, rows: int, count: int):
    rng = np.random.default_rng(seed)
    return jnp.array(rng.normal(size=(rows, count, 3, 5, SMALL.latent_channels)), jnp.float32)


def stream(z, chunks):
    """Frames of the rows of `z` decoded from their beginning in chunks of the given sizes."""
    cache = vae.init_decoder_cache(SMALL, z.shape[0], *z.shape[2:4])
    frames, start = [], 0
    for count in chunks:
        first = jnp.full(z.shape[0], start == 0)
        out, cache = decode_step(small_params(), SMALL, z[:, start : start + count], first, cache)
        frames.append(out)
        start += count
    return np.concatenate(frames, axis=1)


# Parity. Both sides are float32; the order of the sums differs.


def test_parity_encode(cfg, io, released):
    assert relative(encode(released, cfg, io["video"]), io["latents"]) < 1e-5


def test_parity_image_condition(cfg, io, released):
    count = io["image_cond_latents"].shape[1]
    condition = encode_image_condition(released, cfg, io["video"][:, 0], count)
    assert relative(condition, io["image_cond_latents"]) < 1e-5


@pytest.mark.parametrize("impl", ["cat2d", "conv3d"])
def test_parity_decode(cfg, io, released, impl):
    assert relative(decode(released, cfg, io["z"], impl=impl), io["decoded"]) < 1e-5


def test_parity_chunked_decode(cfg, io, released):
    cache = vae.init_decoder_cache(cfg, 1, *io["z"].shape[2:4])
    first, cache = decode_step(released, cfg, io["z"][:, :3], jnp.array([True]), cache)
    second, _ = decode_step(released, cfg, io["z"][:, 3:], jnp.array([False]), cache)
    assert relative(np.clip(first[:, 3:], -1, 1), io["stream.chunk0"]) < 1e-5
    assert relative(np.clip(second, -1, 1), io["stream.chunk1"]) < 1e-5


# Streams


def test_chunks_give_the_whole_video():
    z = latents(1, 2, 6)
    whole = decode(small_params(), SMALL, z)
    assert whole.shape == (2, 1 + 4 * 5, 12, 20, 3)
    for chunks in ((3, 3), (1, 3)):
        frames = stream(z, chunks)
        np.testing.assert_array_equal(frames[:, :3], 0)
        # The same sums in another program.
        np.testing.assert_allclose(frames[:, 3:], whole[:, : 4 * sum(chunks) - 3], atol=1e-6)


def test_a_row_can_begin_while_others_go_on():
    """Row 1 begins a new stream at the second chunk, over a cache of something else; row 0 does not notice."""
    z, fresh = latents(1, 2, 6), latents(2, 1, 3)
    params = small_params()
    cache = jax.tree.map(lambda x: x + jnp.nan, vae.init_decoder_cache(SMALL, 2, 3, 5))
    first, cache = decode_step(params, SMALL, z[:, :3], jnp.array([True, True]), cache)
    chunk = jnp.concatenate([z[:1, 3:], fresh])
    second, _ = decode_step(params, SMALL, chunk, jnp.array([False, True]), cache)
    row = np.concatenate([first[:1], second[:1]], axis=1)
    # Rows do not mix, so float32 may only differ by the order of sums.
    np.testing.assert_allclose(row, stream(z, (3, 3))[:1], atol=1e-6)
    np.testing.assert_allclose(second[1:], stream(jnp.concatenate([fresh, fresh]), (3,))[1:], atol=1e-6)
    assert np.abs(second[1, 3:]).max() > 0.1


def test_decode_is_causal():
    z = latents(1, 2, 6)
    frames = decode(small_params(), SMALL, z)
    changed = decode(small_params(), SMALL, z.at[:, 3].add(1))
    start = 1 + 4 * 2  # frames of the first three latents
    np.testing.assert_array_equal(frames[:, :start], changed[:, :start])
    assert np.abs(frames[:, start] - changed[:, start]).max() > 1e-3


def test_bfloat16_is_close_and_stays_in_the_cache():
    z = latents(1, 2, 3)
    cache = vae.init_decoder_cache(SMALL, 2, 3, 5, jnp.bfloat16)
    frames, cache = decode_step(small_params(), SMALL, z, jnp.ones(2, bool), cache, dtype=jnp.bfloat16)
    assert frames.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(cache)} == {jnp.dtype(jnp.bfloat16)}
    # bfloat16 keeps 8 bits: 0.4 % per rounding over some thirty layers.
    assert relative(frames, stream(z, (3,))) < 0.05


def test_encode_is_causal_and_streams():
    video = jnp.array(np.random.default_rng(2).uniform(-1, 1, (2, 13, 12, 20, 3)), jnp.float32)
    params = small_params()
    whole = encode(params, SMALL, video)
    changed = encode(params, SMALL, video.at[:, 9].add(1))  # first frame of the last group
    np.testing.assert_array_equal(whole[:, :3], changed[:, :3])
    assert np.abs(whole[:, 3] - changed[:, 3]).max() > 1e-3
    cache = vae.init_encoder_cache(SMALL, 2, 12, 20)
    parts, start = [], 0
    for count in (1, 12):  # a chunk may hold several groups
        out, cache = encode_step(params, SMALL, video[:, start : start + count], cache, first=start == 0)
        parts.append(out)
        start += count
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-5)  # the same sums in another program


@pytest.mark.parametrize("count", [1, 4])
def test_one_pass_over_all_latents_is_the_fold_over_them(count):
    params, z = small_params(), latents(6, 2, count)
    frames = decode(params, SMALL, z)
    np.testing.assert_allclose(decode(params, SMALL, z, whole=True), frames, atol=1e-5)  # the same sums
    folded = encode_moments(params, SMALL, frames)
    for one, other in zip(encode_moments(params, SMALL, frames, whole=True), folded, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_encode_refuses_frames_that_make_no_group():
    with pytest.raises(ValueError, match="10 frames"):
        vae.encode(small_params(), SMALL, jnp.zeros((1, 10, 12, 20, 3)))
    with pytest.raises(ValueError, match="3 frames"):
        vae.encode_step(small_params(), SMALL, jnp.zeros((1, 3, 12, 20, 3)), {}, first=False)


# The settled condition


def test_settled_latents_of_the_released_model():
    assert vae.settled_latents(VAEConfig()) == 30


@pytest.mark.parametrize(("temporal", "blocks"), [((True,), 1), ((False, True), 1)])
def test_image_condition_settles_exactly_when_said(temporal, blocks):
    cfg = VAEConfig(
        dim=4,
        multipliers=(1,) * (1 + len(temporal)),
        num_res_blocks=blocks,
        temporal_downsample=temporal,
        latent_channels=4,
        latent_mean=(0.0,) * 4,
        latent_std=(1.0,) * 4,
    )

    def favour_the_past(path, x):
        """Makes the oldest temporal tap the largest, so that the farthest influence does not drown in rounding."""
        three_taps = path[-2].key == "time" or (x.ndim == 4 and x.shape[2] % 3 == 0)
        if path[-1].key == "kernel" and three_taps:
            x[..., : x.shape[-2] // 3, :] *= 4
        return x

    params = jax.tree_util.tree_map_with_path(favour_the_past, draw(cfg))
    settled = vae.settled_latents(cfg)
    image = jnp.array(np.random.default_rng(4).uniform(-1, 1, (1, 8, 8, 3)), jnp.float32)
    condition = np.asarray(encode_image_condition(params, cfg, image, settled + 2))[0]
    np.testing.assert_array_equal(condition[settled - 1], condition[settled])
    np.testing.assert_array_equal(condition[settled - 1], condition[settled + 1])
    assert (condition[settled - 2] != condition[settled - 1]).any()


def test_init_keeps_activations_of_order_one():
    """Variance 1 / fan-in everywhere: a fresh network neither dies nor explodes."""
    params = vae.init(jax.random.key(0), SMALL)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    frames = decode(params, SMALL, latents(1, 2, 6))
    assert 0.05 < np.std(frames) < 1
    assert not np.array_equal(frames, decode(vae.init(jax.random.key(1), SMALL), SMALL, latents(1, 2, 6)))
