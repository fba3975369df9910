"""The small autoencoder: parity with the reference tensors, and streams."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from safetensors.numpy import load_file

from mgjax.config import TAEHVConfig
from mgjax.models import names, taehv

CFG = TAEHVConfig(decoder_widths=(32, 16, 8, 8), encoder_width=8)
SMALL = TAEHVConfig(decoder_widths=(8, 8, 4, 4), encoder_width=4, latent_channels=4)

decode = jax.jit(taehv.decode, static_argnums=1, static_argnames="whole")
encode = jax.jit(taehv.encode, static_argnums=1, static_argnames="whole")
decode_step = jax.jit(taehv.decode_step, static_argnums=1)
encode_step = jax.jit(taehv.encode_step, static_argnums=1)


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
def io(golden):
    file = load_file(golden / "taehv" / "io.safetensors")
    return {name.removesuffix("_ntchw"): np.moveaxis(x.astype(np.float32), 2, -1) for name, x in file.items()}


@pytest.fixture(scope="module")
def released(golden):
    return load(golden / "taehv" / "weights.safetensors", names.taehv_tensors(CFG))


def draw(module, cfg):
    """Random parameters, biases and scales included."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda key: module.init(key, cfg), jax.random.key(0)))
    rng = np.random.default_rng(0)

    def one(x):
        if len(x.shape) == 1:
            return rng.normal(0.3, 0.5, x.shape).astype(np.float32)
        return rng.normal(0, np.prod(x.shape[:-1]) ** -0.5, x.shape).astype(np.float32)

    return jax.tree.unflatten(tree, [one(x) for x in leaves])


@functools.cache
def small_params():
    return draw(taehv, SMALL)


def latents(key: int, rows: int, count: int):
    return jax.random.normal(jax.random.key(key), (rows, count, 3, 5, SMALL.latent_channels))


def stream(z, chunks, cache=None):
    """Frames of the rows of `z` decoded from their beginning in chunks of the given sizes."""
    cache = taehv.init_decoder_cache(SMALL, z.shape[0], *z.shape[2:4]) if cache is None else cache
    frames, start = [], 0
    for count in chunks:
        first = jnp.full(z.shape[0], start == 0)
        out, cache = decode_step(small_params(), SMALL, z[:, start : start + count], first, cache)
        frames.append(out)
        start += count
    return np.concatenate(frames, axis=1)


def test_parity_decode(io, released):
    frames = decode(released, CFG, io["z"])
    # Both are float32; the order of the sums differs.
    assert relative(frames * 0.5 + 0.5, io["decoded"]) < 1e-5


def test_parity_encode(io, released):
    assert relative(encode(released, CFG, 2 * io["video"] - 1), io["latents"]) < 1e-5


def test_one_pass_over_all_latents_is_the_fold_over_them():
    z = latents(3, 2, 3)
    frames = decode(small_params(), SMALL, z)
    np.testing.assert_allclose(decode(small_params(), SMALL, z, whole=True), frames, atol=1e-5)  # the same sums
    folded = encode(small_params(), SMALL, frames)
    np.testing.assert_allclose(encode(small_params(), SMALL, frames, whole=True), folded, atol=1e-5)


def test_chunks_give_the_whole_video():
    z = latents(1, 2, 6)
    whole = decode(small_params(), SMALL, z)
    for chunks in ((3, 3), (1, 3)):
        frames = stream(z, chunks)
        np.testing.assert_array_equal(frames[:, :3], 0)
        # The same sums in another program.
        np.testing.assert_allclose(frames[:, 3:], whole[:, : 4 * sum(chunks) - 3], atol=1e-6)


def test_a_row_can_begin_while_others_go_on():
    """Row 1 begins a new stream at the second chunk, over a cache of something else; row 0 does not notice."""
    z, fresh = latents(1, 2, 6), latents(2, 1, 3)
    cache = taehv.init_decoder_cache(SMALL, 2, 3, 5)
    cache = jax.tree.map(lambda x: x.at[0].set(jnp.nan), cache)
    first, cache = decode_step(small_params(), SMALL, z[:, :3], jnp.array([True, True]), cache)
    chunk = jnp.concatenate([z[:1, 3:], fresh])
    second, _ = decode_step(small_params(), SMALL, chunk, jnp.array([False, True]), cache)
    row = np.concatenate([first[:1], second[:1]], axis=1)
    # Rows do not mix, so float32 may only differ by the order of sums.
    np.testing.assert_allclose(row, stream(z, (3, 3))[:1], atol=1e-6)
    np.testing.assert_allclose(second[1:], stream(jnp.concatenate([fresh, fresh]), (3,))[1:], atol=1e-6)


def test_decode_is_causal():
    z = latents(1, 2, 6)
    frames = decode(small_params(), SMALL, z)
    changed = decode(small_params(), SMALL, z.at[:, 3].add(1))
    frame = 1 + 4 * 2  # frames of the first three latents
    np.testing.assert_array_equal(frames[:, :frame], changed[:, :frame])
    assert np.abs(frames[:, frame + 3] - changed[:, frame + 3]).max() > 1e-3


def test_encode_streams_and_pads_with_the_last_frame():
    video = jax.random.uniform(jax.random.key(3), (2, 10, 24, 40, 3), minval=-1)
    whole = encode(small_params(), SMALL, video)
    assert whole.shape == (2, 3, 3, 5, SMALL.latent_channels)
    padded = jnp.concatenate([video, video[:, -1:], video[:, -1:]], axis=1)
    cache = jax.tree.map(lambda x: x + jnp.nan, taehv.init_encoder_cache(SMALL, 2, 24, 40))
    head, cache = encode_step(small_params(), SMALL, padded[:, :8], jnp.ones(2, bool), cache)
    tail, _ = encode_step(small_params(), SMALL, padded[:, 8:], jnp.zeros(2, bool), cache)
    np.testing.assert_allclose(jnp.concatenate([head, tail], axis=1), whole, atol=1e-5)


def test_memory_blocks_begin_by_passing_on_what_they_are_given():
    """From random ones the levels of nano's decoder fell below zero and learned nothing but a mean colour."""
    params = taehv.init(jax.random.key(0), SMALL)
    x, last = jax.random.normal(jax.random.key(1), (2, 2, 3, 4, 6, 8))
    for name, block in params["decoder"].items():
        if name.startswith("block_0"):
            out, kept = taehv.MemoryBlock().apply({"params": block}, x, last[:, 0])
            np.testing.assert_array_equal(out, jax.nn.relu(x))
            np.testing.assert_array_equal(kept, x[:, -1])
    assert all(block["conv_0"]["kernel"].all() for name, block in params["decoder"].items() if "block" in name)
